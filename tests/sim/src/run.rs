//! Runs: events chosen by weight from a seed, or read from a file; then the faults end, and what was begun must end, too.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use lockbox_core::wire::TransferState;

use crate::event::Event;
use crate::invariants::{Observer, Violation};
use crate::rng::SeededRng;
use crate::world::World;

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

/// Events of one run among many.
const EVENTS_IN_A_RUN: usize = 4_000;

/// Runs of successive seeds on every core, with two to four lockboxes, until there were so many events. Of several failures
/// the one with the lowest seed is given, so that the outcome does not depend on the cores.
pub fn run_many(events: u64, first_seed: u64, faults: Faults) -> Result<Summary, Box<Failure>> {
    let seeds = AtomicU64::new(first_seed);
    let total = Mutex::new(Ok(Summary::default()));
    let lock = || total.lock().unwrap_or_else(PoisonError::into_inner);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while matches!(&*lock(), Ok(total) if total.events < events) {
                    let seed = seeds.fetch_add(1, Ordering::Relaxed);
                    let outcome = run(seed, [2, 3, 4][(seed % 3) as usize], EVENTS_IN_A_RUN, faults);
                    let mut total = lock();
                    match (outcome, total.as_mut()) {
                        (Ok(summary), Ok(total)) => total.add(summary),
                        (Err(failure), Ok(_)) => *total = Err(failure),
                        (Err(failure), Err(first)) if failure.seed < first.seed => *total = Err(failure),
                        (_, Err(_)) => {}
                    }
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One run of so many events from a seed.
pub fn run(seed: u64, lockboxes: usize, length: usize, faults: Faults) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(seed, lockboxes);
    let mut choice = SeededRng::new(!seed);
    let mut events = Vec::with_capacity(length);
    let mut observer = Observer::default();
    let outcome = (|| {
        for _ in 0..length {
            let Some(event) = choose(&world, &mut choice, faults) else {
                break;
            };
            events.push(event);
            world.apply(event);
            observer.check(&world, event)?;
        }
        let settling = settle(&mut world, &mut observer, faults)?;
        Ok(summary(&world, events.len() as u64 + settling))
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
/// None when nothing is left to happen: without faults, a run that has made all its keys and authorizations falls silent.
fn choose(world: &World, choice: &mut SeededRng, faults: Faults) -> Option<Event> {
    const QUIET: usize = 890;
    /// Enough to find the only event that is left, should its weight be the least of all.
    const ATTEMPTS: usize = 5_000;
    for _ in 0..ATTEMPTS {
        let node = choice.below(world.nodes.len());
        let roll = choice.below(1_000);
        let event = match roll {
            0..400 => sync_somewhere(world, node),
            400..750 => message(world, choice).map(|(session, to_source)| Event::Deliver { session, to_source }),
            750..762 => (world.made.len() < MOST_KEYS).then(|| Event::Create {
                node,
                pinned: usize::from(choice.below(16) == 0),
            }),
            762..770 => (world.made.len() < MOST_KEYS).then(|| Event::Layer {
                node,
                pick: choice.below(64),
            }),
            770..800 => wants_work(world).then(|| Event::Authorize {
                source: node,
                target: choice.below(world.nodes.len()),
                moves: choice.below(2),
                keys: KEYS[choice.below(KEYS.len())],
                pick: choice.below(64),
            }),
            800..840 => some(choice, recent(world).filter(|number| !is_known(world, *number))).map(|authorization| {
                Event::Offer {
                    authorization,
                    node: world.issued[authorization].target,
                }
            }),
            840..880 => some(choice, recent(world).filter(|number| is_idle(world, *number)))
                .map(|authorization| Event::Dial { authorization }),
            880..QUIET => {
                (world.nodes[node].roster_index() < world.roster.head().index).then_some(Event::Learn { node })
            }
            _ if faults == Faults::Off => None,
            _ => disturb(world, choice, node, roll - QUIET),
        };
        if event.is_some() {
            return event;
        }
    }
    None
}

/// What goes wrong, or should not have been tried. `roll` is below 110.
fn disturb(world: &World, choice: &mut SeededRng, node: usize, roll: usize) -> Option<Event> {
    match roll {
        0..10 => message(world, choice).map(|(session, to_source)| Event::Duplicate { session, to_source }),
        10..18 => message(world, choice).map(|(session, to_source)| Event::Drop { session, to_source }),
        18..26 => message(world, choice).map(|(session, to_source)| Event::Reorder { session, to_source }),
        26..32 => message(world, choice).map(|(session, _)| Event::Cut { session }),
        32..36 => some(choice, recent(world)).map(|authorization| Event::Dial { authorization }),
        36..48 => Some(Event::Crash { node }),
        48..53 => {
            // Most clocks are nearly right; one that is minutes off has everything refused.
            let most = if choice.below(8) == 0 { 400 } else { 50 };
            let seconds = 100_000 - most + choice.below(2 * most);
            Some(Event::Clock { node, seconds })
        }
        53..56 => Some(Event::Wait {
            seconds: choice.below(100),
        }),
        56..60 => some(choice, recent(world)).map(|authorization| Event::Revoke { authorization }),
        60..70 => some(
            choice,
            recent(world).filter(|number| world.issued[*number].revocation.is_some()),
        )
        .map(|authorization| Event::Revoked { authorization, node }),
        70..74 => Some(Event::Destroy {
            node,
            pick: choice.below(64),
        }),
        74..79 => Some(Event::Intrude {
            source: node,
            moves: choice.below(2),
        }),
        79..94 => some(choice, recent(world)).map(|authorization| Event::Steal {
            authorization,
            source: node,
            thief: choice.below(world.nodes.len()),
        }),
        94..100 => some(choice, recent(world)).map(|authorization| Event::Offer { authorization, node }),
        // One at most, and late: with nobody left nothing happens.
        100..104 => (world.issued.len() > RETIRED_AFTER && world.retired.iter().all(Option::is_none))
            .then_some(Event::Retire { node }),
        104..110 => some(choice, world.sessions.keys().copied()).map(|number| Event::Replay {
            session: number as usize,
            pick: choice.below(64),
        }),
        _ => None,
    }
}

/// Keys of one run. Each event looks at all of them.
const MOST_KEYS: usize = 24;
/// Keys of an authorization, 0 for all. More of them would mostly be in each other's way.
const KEYS: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 5, 6];
/// Authorizations of one run.
const MOST_AUTHORIZATIONS: usize = 128;
/// Authorizations before a lockbox is retired.
const RETIRED_AFTER: usize = 60;
/// Authorizations that are on their way at a time.
const WANTED_AT_WORK: usize = 4;
/// How many authorizations back something may still happen.
const RECENT: usize = 12;

fn recent(world: &World) -> impl Iterator<Item = usize> {
    let end = world.issued.len();
    end.saturating_sub(RECENT)..end
}

fn some<T: Copy>(choice: &mut SeededRng, all: impl Iterator<Item = T>) -> Option<T> {
    let all: Vec<T> = all.collect();
    (!all.is_empty()).then(|| all[choice.below(all.len())])
}

fn state_at_target(world: &World, number: usize) -> Option<TransferState> {
    let issued = &world.issued[number];
    world.nodes[issued.target].incoming_state(issued.statement.authorization_id)
}

/// Whether the target has heard of it.
fn is_known(world: &World, number: usize) -> bool {
    state_at_target(world, number).is_some()
}

/// Whether the target has to begin a session.
fn is_idle(world: &World, number: usize) -> bool {
    world.sessions.values().all(|session| session.authorization != number)
        && state_at_target(world, number) == Some(TransferState::Open)
}

fn wants_work(world: &World) -> bool {
    let at_work = |number: &usize| matches!(state_at_target(world, *number), None | Some(TransferState::Open));
    world.issued.len() < MOST_AUTHORIZATIONS && recent(world).filter(at_work).count() < WANTED_AT_WORK
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
        happen(world, Event::Cancel { node })?;
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
pub(crate) fn open_transfers(world: &World) -> Vec<usize> {
    let is_open = |number: &usize| {
        let issued = &world.issued[*number];
        let id = issued.statement.authorization_id;
        let open = Some(TransferState::Open);
        // A retired lockbox may wait for ever for a peer that no longer speaks to it.
        let source_remains = world.retired[issued.source].is_none();
        let target_remains = world.retired[issued.target].is_none();
        source_remains
            && (world.nodes[issued.source].outgoing_state(id) == open
                || target_remains && world.nodes[issued.target].incoming_state(id) == open)
    };
    (0..world.issued.len()).filter(is_open).collect()
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
        // Two lockboxes that move the same key to each other: one of them declines. And a target that moves the keys on, which a
        // family has at its bottom, takes nothing more of it.
        let crossed = ["is being moved away", "is not here and did not come with it"]
            .iter()
            .any(|why| target.detail.contains(why));
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
    let complete = |issued: &&crate::world::Issued| {
        let state = world.nodes[issued.source].outgoing_state(issued.statement.authorization_id);
        state == Some(TransferState::Complete)
    };
    Summary {
        events,
        keys: world.made.len() as u64,
        authorizations: world.issued.len() as u64,
        completed: world.issued.iter().filter(complete).count() as u64,
    }
}
