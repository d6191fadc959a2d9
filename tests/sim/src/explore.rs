//! Every run within small bounds, for a model checker: the events that are possible in a world, and the world that follows.
//!
//! The state machines hold secrets and contexts that can't be copied. So a state is its history, and its world is made anew
//! from the seed for each step; states whose worlds come down to the same digest are one.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lockbox_core::rows::Row;
use lockbox_core::wire::TransferState;

use crate::digest::{self, Digest};
use crate::event::Event;
use crate::invariants::{Observer, Violation};
use crate::run::{Failure, open_transfers};
use crate::world::World;

/// How often each thing may happen that is no part of an ordinary run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub crashes: u8,
    /// A message is delivered twice.
    pub duplicates: u8,
    /// A message is lost, and with it, sooner or later, its connection.
    pub drops: u8,
    /// Two messages change places.
    pub reorders: u8,
    /// A connection is cut.
    pub cuts: u8,
    /// The authorizations expire.
    pub expiries: u8,
    pub revocations: u8,
    pub destroys: u8,
    /// A target is retired.
    pub retirements: u8,
    /// A key is to be moved on from where it is by then, to the next node.
    pub returns: u8,
}

/// What is explored: where it begins, and what can go wrong.
#[derive(Clone, Debug)]
pub struct Scope {
    pub seed: u64,
    pub lockboxes: usize,
    /// Keys and authorizations that there are to begin with.
    pub opening: Vec<Event>,
    pub budget: Budget,
}

/// A state: how it came about, and all that need be known of it.
#[derive(Clone, Debug)]
pub struct State {
    history: Option<Arc<Step>>,
    digest: Digest,
    budget: Budget,
    possible: Vec<Event>,
    /// What does not hold in it.
    pub violation: Option<Violation>,
    /// Whether everything that was begun has ended, and nothing is on its way.
    pub is_settled: bool,
}

#[derive(Debug)]
struct Step {
    event: Event,
    before: Option<Arc<Step>>,
}

impl State {
    /// The same for states that behave alike.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// What can happen next. Nothing after a violation.
    pub fn possible(&self) -> &[Event] {
        &self.possible
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// A world and what was seen of it.
struct Watched {
    world: World,
    observer: Observer,
    violation: Option<Violation>,
}

thread_local! {
    /// The world of the state that this thread made last: depth-first, the next step often begins there.
    static LAST: RefCell<Option<(Arc<Step>, Watched)>> = const { RefCell::new(None) };
}

impl Scope {
    pub fn start(&self) -> State {
        self.state(&self.begin(), None, self.budget)
    }

    /// The state that follows.
    pub fn after(&self, state: &State, event: Event) -> State {
        let mut watched = self.world_of(state);
        let budget = spend(&watched.world, state.budget, event);
        watched.world.apply(event);
        watched.tempt();
        watched.check(event);
        let history = Arc::new(Step {
            event,
            before: state.history.clone(),
        });
        let next = self.state(&watched, Some(Arc::clone(&history)), budget);
        LAST.with_borrow_mut(|last| *last = Some((history, watched)));
        next
    }

    /// Whether the step between two states is part of an ordinary run: what is left when the faults end.
    pub fn is_ordinary(&self, before: &State, after: &State) -> bool {
        before.budget == after.budget
    }

    /// The event file of a state: what [`crate::replay`] reads.
    pub fn event_file(&self, state: &State) -> String {
        let stuck = || Violation {
            invariant: "what-begins-ends",
            evidence: "from here nothing ends".to_owned(),
        };
        let failure = Failure {
            seed: self.seed,
            lockboxes: self.lockboxes,
            events: self.opening.iter().copied().chain(events(state)).collect(),
            violation: state.violation.clone().unwrap_or_else(stuck),
        };
        failure.to_text()
    }

    fn begin(&self) -> Watched {
        let mut world = World::new(self.seed, self.lockboxes);
        world.takes_note = true;
        let mut watched = Watched {
            world,
            observer: Observer::default(),
            violation: None,
        };
        for event in &self.opening {
            watched.happen(*event);
        }
        watched
    }

    fn world_of(&self, state: &State) -> Watched {
        let last = LAST.with_borrow_mut(|last| {
            let is_it =
                matches!((&*last, &state.history), (Some((made, _)), Some(wanted)) if Arc::ptr_eq(made, wanted));
            if is_it { last.take() } else { None }
        });
        if let Some((_, watched)) = last {
            return watched;
        }
        let mut watched = self.begin();
        for event in events(state) {
            watched.happen(event);
        }
        watched
    }

    fn state(&self, watched: &Watched, history: Option<Arc<Step>>, budget: Budget) -> State {
        let Watched {
            world,
            observer,
            violation,
        } = watched;
        let is_quiet = world.sessions.is_empty() && world.nodes.iter().all(|node| node.unsynced() == 0);
        State {
            history,
            digest: digest::of(&(
                digest::of_world(world),
                observer.digest(world),
                violation.is_some(),
                budget,
            )),
            budget,
            possible: if violation.is_some() {
                Vec::new()
            } else {
                possible(world, budget)
            },
            violation: violation.clone(),
            is_settled: is_quiet && open_transfers(world).is_empty(),
        }
    }
}

impl Watched {
    fn happen(&mut self, event: Event) {
        self.world.apply(event);
        self.check(event);
    }

    /// Everybody presents each authorization to its source, and an outsider presents its own.
    fn tempt(&mut self) {
        for authorization in 0..self.world.issued.len() {
            let source = self.world.issued[authorization].source;
            for thief in 0..self.world.nodes.len() {
                self.world.steal(authorization, source, thief);
            }
            self.world.intrude(source, true);
        }
    }

    fn check(&mut self, event: Event) {
        if self.violation.is_none() {
            self.violation = self.observer.check(&self.world, event).err();
        }
    }
}

fn events(state: &State) -> Vec<Event> {
    let mut events = Vec::new();
    let mut step = state.history.as_ref();
    while let Some(Step { event, before }) = step.map(Arc::as_ref) {
        events.push(*event);
        step = before.as_ref();
    }
    events.reverse();
    events
}

fn spend(world: &World, mut budget: Budget, event: Event) -> Budget {
    let spent = match event {
        Event::Crash { .. } => &mut budget.crashes,
        Event::Duplicate { .. } => &mut budget.duplicates,
        Event::Drop { .. } => &mut budget.drops,
        Event::Reorder { .. } => &mut budget.reorders,
        Event::Cut { session } if is_broken(world, session as u64) => return budget,
        Event::Cut { .. } => &mut budget.cuts,
        Event::Wait { .. } => &mut budget.expiries,
        Event::Revoke { .. } => &mut budget.revocations,
        Event::Destroy { .. } => &mut budget.destroys,
        Event::Retire { .. } => &mut budget.retirements,
        Event::Authorize { .. } => &mut budget.returns,
        _ => return budget,
    };
    *spent = spent.saturating_sub(1);
    budget
}

/// What can happen and would change something.
fn possible(world: &World, budget: Budget) -> Vec<Event> {
    let mut events = Vec::new();
    for node in 0..world.nodes.len() {
        of_node(world, budget, node, &mut events);
    }
    for authorization in 0..world.issued.len() {
        of_authorization(world, budget, authorization, &mut events);
    }
    for number in world.sessions.keys() {
        of_session(world, budget, *number, &mut events);
    }
    if budget.expiries > 0 {
        events.push(Event::Wait { seconds: 1_000 });
    }
    events
}

fn of_node(world: &World, budget: Budget, node: usize, events: &mut Vec<Event>) {
    let in_session = world.sessions.values().any(|session| {
        let issued = &world.issued[session.authorization];
        [issued.source, issued.target].contains(&node)
    });
    let unsynced = world.nodes[node].unsynced() > 0;
    if unsynced {
        events.push(Event::Sync { node });
    }
    if budget.crashes > 0 && (unsynced || in_session) {
        events.push(Event::Crash { node });
    }
    if budget.destroys > 0 && !world.keys_at(node).is_empty() {
        events.push(Event::Destroy { node, pick: 0 });
    }
    if budget.returns > 0 && !world.keys_at(node).is_empty() {
        events.push(Event::Authorize {
            source: node,
            target: (node + 1) % world.nodes.len(),
            moves: 1,
            keys: 1,
            pick: 0,
        });
    }
    if world.nodes[node].roster_index() < world.roster.head().index {
        events.push(Event::Learn { node });
    }
    if budget.retirements > 0 && world.issued.iter().any(|issued| issued.target == node) {
        events.push(Event::Retire { node });
    }
}

fn of_authorization(world: &World, budget: Budget, authorization: usize, events: &mut Vec<Event>) {
    let issued = &world.issued[authorization];
    let id = issued.statement.authorization_id;
    let target = &world.nodes[issued.target];
    if target.row(Row::Incoming(id)).is_none() {
        events.push(Event::Offer {
            authorization,
            node: issued.target,
        });
    } else if target.incoming_state(id) == Some(TransferState::Open)
        && world
            .sessions
            .values()
            .all(|session| session.authorization != authorization)
    {
        events.push(Event::Dial { authorization });
    }
    if issued.revocation.is_none() {
        if budget.revocations > 0 {
            events.push(Event::Revoke { authorization });
        }
        return;
    }
    for node in [issued.source, issued.target] {
        if world.nodes[node].row(Row::Revoked(id)).is_none() {
            events.push(Event::Revoked { authorization, node });
        }
    }
}

fn of_session(world: &World, budget: Budget, number: u64, events: &mut Vec<Event>) {
    let session = number as usize;
    for (to_source, waiting) in world.sessions[&number].waiting().into_iter().enumerate() {
        if waiting > 0 {
            events.push(Event::Deliver { session, to_source });
            if budget.duplicates > 0 {
                events.push(Event::Duplicate { session, to_source });
            }
        }
        let queued = world.sessions[&number].queued()[to_source];
        if queued > 0 && budget.drops > 0 {
            events.push(Event::Drop { session, to_source });
        }
        if queued > 1 && budget.reorders > 0 {
            events.push(Event::Reorder { session, to_source });
        }
    }
    if budget.cuts > 0 || is_broken(world, number) {
        events.push(Event::Cut { session });
    }
}

/// Whether the end of a session follows from what happened to it, and is no further fault.
fn is_broken(world: &World, number: u64) -> bool {
    world.sessions.get(&number).is_some_and(|session| session.is_broken)
}
