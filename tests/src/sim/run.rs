//! Runs: events chosen by weight from a seed, or read from a file; then the faults end, and what was begun must end, too.

use std::fmt::Write as _;

use lockbox_core::wire::TransferState;

use super::event::Event;
use super::invariants::{Observer, Violation};
use super::rng::SeededRng;
use super::world::World;

/// A run that broke an invariant, with all it takes to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub lockboxes: usize,
    pub events: Vec<Event>,
    pub violation: Violation,
}

/// How much happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub events: u64,
    pub keys: u64,
    pub authorizations: u64,
    pub completed: u64,
}

impl Summary {
    pub fn add(&mut self, other: Self) {
        self.events += other.events;
        self.keys += other.keys;
        self.authorizations += other.authorizations;
        self.completed += other.completed;
    }
}

/// What can go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    On,
    /// Nothing is lost, repeated, revoked or cut: every permitted transfer must complete.
    Off,
}

/// One run of so many events from a seed.
pub fn run(seed: u64, lockboxes: usize, length: usize, faults: Faults) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(seed, lockboxes);
    let mut choice = SeededRng::new(!seed);
    let mut events = Vec::with_capacity(length);
    let mut observer = Observer::default();
    let outcome = (|| {
        for _ in 0..length {
            let event = choose(&world, &mut choice, faults);
            events.push(event);
            world.apply(event);
            observer.check(&world, event)?;
        }
        let settling = settle(&mut world, &mut observer, faults)?;
        Ok(summary(&world, length as u64 + settling))
    })();
    outcome.map_err(|violation| {
        Box::new(Failure {
            seed,
            lockboxes,
            events,
            violation,
        })
    })
}

/// Makes the events of a failed run happen again.
pub fn replay(text: &str) -> Result<Summary, Box<Failure>> {
    let failure = Failure::parse(text).expect("a file that a failed run has written");
    let mut world = World::new(failure.seed, failure.lockboxes);
    let mut observer = Observer::default();
    let outcome = (|| {
        for event in &failure.events {
            world.apply(*event);
            observer.check(&world, *event)?;
        }
        let settling = settle(&mut world, &mut observer, Faults::On)?;
        Ok(summary(&world, failure.events.len() as u64 + settling))
    })();
    outcome.map_err(|violation| Box::new(Failure { violation, ..failure }))
}

impl Failure {
    /// The event file: what [`replay`] reads.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "# {}: {}\nseed {}\nlockboxes {}\n",
            self.violation.invariant, self.violation.evidence, self.seed, self.lockboxes
        );
        for event in &self.events {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{event}");
        }
        text
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let mut number = |name: &str| {
            let line = lines.next().ok_or("the file is cut off")?;
            let value = line.strip_prefix(name).ok_or_else(|| format!("{name} was expected"))?;
            value.trim().parse::<u64>().map_err(|error| error.to_string())
        };
        let seed = number("seed")?;
        let lockboxes = number("lockboxes")?;
        Ok(Self {
            seed,
            lockboxes: usize::try_from(lockboxes).map_err(|error| error.to_string())?,
            events: lines.map(str::parse).collect::<Result<_, String>>()?,
            violation: Violation {
                invariant: "",
                evidence: String::new(),
            },
        })
    }
}

/// The next event. What moves things on is much likelier than what breaks them, or nothing would ever be on its way.
fn choose(world: &World, choice: &mut SeededRng, faults: Faults) -> Event {
    loop {
        let node = choice.below(world.nodes.len());
        let roll = choice.below(1_000);
        if faults == Faults::Off && roll >= 890 {
            continue;
        }
        let event = match roll {
            0..400 => sync_somewhere(world, node),
            400..750 => message(world, choice).map(|(session, to_source)| Event::Deliver { session, to_source }),
            750..775 => (world.made.len() < 24).then(|| Event::Create {
                node,
                pinned: usize::from(choice.below(16) == 0),
            }),
            775..800 => (world.issued.len() < 64).then(|| Event::Authorize {
                source: node,
                target: choice.below(world.nodes.len()),
                moves: choice.below(2),
                keys: choice.below(6),
                pick: choice.below(64),
            }),
            800..840 => authorization(world, choice).map(|authorization| Event::Offer {
                authorization,
                node: world.issued[authorization].target,
            }),
            840..880 => authorization(world, choice)
                .filter(|number| world.sessions.values().all(|session| session.authorization != *number))
                .map(|authorization| Event::Dial { authorization }),
            880..890 => Some(Event::Learn { node }),
            890..900 => message(world, choice).map(|(session, to_source)| Event::Duplicate { session, to_source }),
            900..908 => message(world, choice).map(|(session, to_source)| Event::Drop { session, to_source }),
            908..916 => message(world, choice).map(|(session, to_source)| Event::Reorder { session, to_source }),
            916..922 => message(world, choice).map(|(session, _)| Event::Cut { session }),
            922..926 => authorization(world, choice).map(|authorization| Event::Dial { authorization }),
            926..938 => Some(Event::Crash { node }),
            938..943 => Some(Event::Clock {
                node,
                seconds: 100_000 - 400 + choice.below(800),
            }),
            943..946 => Some(Event::Wait {
                seconds: choice.below(100),
            }),
            946..950 => authorization(world, choice).map(|authorization| Event::Revoke { authorization }),
            950..956 => authorization(world, choice).map(|authorization| Event::Revoked { authorization, node }),
            956..960 => Some(Event::Destroy {
                node,
                pick: choice.below(64),
            }),
            960..980 => authorization(world, choice).map(|authorization| Event::Steal {
                authorization,
                source: node,
                thief: choice.below(world.nodes.len()),
            }),
            980..999 => authorization(world, choice).map(|authorization| Event::Offer { authorization, node }),
            // One at most, late, and seldom: with nobody left nothing happens.
            999 => (world.issued.len() > 24 && !world.retired.contains(&true)).then_some(Event::Retire { node }),
            _ => None,
        };
        if let Some(event) = event {
            return event;
        }
    }
}

fn sync_somewhere(world: &World, node: usize) -> Option<Event> {
    (0..world.nodes.len())
        .map(|offset| (node + offset) % world.nodes.len())
        .find(|node| world.nodes[*node].unsynced() > 0)
        .map(|node| Event::Sync { node })
}

fn message(world: &World, choice: &mut SeededRng) -> Option<(usize, usize)> {
    let waiting: Vec<(u64, usize)> = world
        .sessions
        .iter()
        .flat_map(|(number, session)| {
            let to_source = (!session.to_source.is_empty()).then_some((*number, 1));
            let to_target = (!session.to_target.is_empty()).then_some((*number, 0));
            to_source.into_iter().chain(to_target)
        })
        .collect();
    if waiting.is_empty() {
        return None;
    }
    let (session, to_source) = waiting[choice.below(waiting.len())];
    usize::try_from(session).ok().map(|session| (session, to_source))
}

fn authorization(world: &World, choice: &mut SeededRng) -> Option<usize> {
    // The newest are the likeliest to have something left to do.
    let recent = world.issued.len().min(8);
    (recent > 0).then(|| world.issued.len() - 1 - choice.below(recent))
}

/// The faults end. Everybody learns everything, and every target comes again until its transfers have ended.
fn settle(world: &mut World, observer: &mut Observer, faults: Faults) -> Result<u64, Violation> {
    const ROUNDS: usize = 40;
    let mut events = 0;
    let mut happen = |world: &mut World, event: Event| {
        world.apply(event);
        events += 1;
        observer.check(world, event)
    };
    for node in 0..world.nodes.len() {
        happen(world, Event::Clock { node, seconds: 100_000 })?;
        happen(world, Event::Learn { node })?;
    }
    for authorization in 0..world.issued.len() {
        let (source, target) = (world.issued[authorization].source, world.issued[authorization].target);
        if world.issued[authorization].revocation.is_some() {
            for node in [source, target] {
                happen(world, Event::Revoked { authorization, node })?;
            }
        }
        happen(
            world,
            Event::Offer {
                authorization,
                node: target,
            },
        )?;
    }
    for _ in 0..ROUNDS {
        run_dry(world, &mut happen)?;
        let open = open_transfers(world);
        if open.is_empty() {
            return check_ends(world, faults).map(|()| events);
        }
        for authorization in open {
            happen(world, Event::Dial { authorization })?;
            run_dry(world, &mut happen)?;
        }
    }
    Err(Violation {
        invariant: "what-begins-ends",
        evidence: format!("{:?} are still open", open_transfers(world)),
    })
}

/// Delivers and syncs until nothing is left to do.
fn run_dry(
    world: &mut World,
    happen: &mut impl FnMut(&mut World, Event) -> Result<(), Violation>,
) -> Result<(), Violation> {
    loop {
        let mut moved = false;
        while let Some(event) = sync_somewhere(world, 0) {
            happen(world, event)?;
            moved = true;
        }
        let sessions: Vec<u64> = world.sessions.keys().copied().collect();
        for number in sessions {
            for to_source in [1, 0] {
                let waits = world.sessions.get(&number).is_some_and(|session| {
                    let queue = (session.to_source.len(), session.to_target.len());
                    if to_source == 1 { queue.0 > 0 } else { queue.1 > 0 }
                });
                if let (true, Ok(session)) = (waits, usize::try_from(number)) {
                    happen(world, Event::Deliver { session, to_source })?;
                    moved = true;
                }
            }
        }
        if !moved {
            return Ok(());
        }
    }
}

/// Transfers that are open at either end.
fn open_transfers(world: &World) -> Vec<usize> {
    let is_open = |node: usize, id| {
        let status = world.nodes[node].lockbox.transfer_status(id).expect("undamaged");
        status.is_some_and(|status| status.state == TransferState::Open)
    };
    (0..world.issued.len())
        .filter(|number| {
            let issued = &world.issued[*number];
            let id = issued.statement.authorization_id;
            // A retired lockbox may wait for ever for a peer that no longer speaks to it.
            (is_open(issued.source, id) && !world.retired[issued.source])
                || (is_open(issued.target, id) && !world.retired[issued.target] && !world.retired[issued.source])
        })
        .collect()
}

/// With faults off, every permitted transfer that its target knows has completed.
fn check_ends(world: &World, faults: Faults) -> Result<(), Violation> {
    if faults == Faults::On {
        return Ok(());
    }
    for issued in &world.issued {
        let id = issued.statement.authorization_id;
        let at_target = world.nodes[issued.target]
            .lockbox
            .transfer_status(id)
            .expect("undamaged");
        let at_source = world.nodes[issued.source]
            .lockbox
            .transfer_status(id)
            .expect("undamaged");
        let (Some(target), Some(source)) = (at_target, at_source) else {
            continue;
        };
        if target.state == TransferState::Refused {
            return Err(Violation {
                invariant: "refused-means-never-begun",
                evidence: format!(
                    "{id} is {:?} at its source ({}), and refused ({})",
                    source.state, source.detail, target.detail
                ),
            });
        }
        let complete = (target.state, source.state) == (TransferState::Complete, TransferState::Complete);
        // Two lockboxes that move the same key to each other: one of them declines.
        let crossed = target.detail.contains("is being moved away");
        if !complete && !crossed {
            return Err(Violation {
                invariant: "what-is-permitted-completes",
                evidence: format!(
                    "{id} is {:?} at its source ({}) and {:?} at its target ({})",
                    source.state, source.detail, target.state, target.detail
                ),
            });
        }
    }
    Ok(())
}

fn summary(world: &World, events: u64) -> Summary {
    let complete = |issued: &&super::world::Issued| {
        let id = issued.statement.authorization_id;
        let status = world.nodes[issued.source].lockbox.transfer_status(id);
        matches!(status, Ok(Some(status)) if status.state == TransferState::Complete)
    };
    Summary {
        events,
        keys: world.made.len() as u64,
        authorizations: world.issued.len() as u64,
        completed: world.issued.iter().filter(complete).count() as u64,
    }
}
