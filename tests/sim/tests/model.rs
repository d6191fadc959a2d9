//! Every run of the protocol within small bounds, on the real state machines. `lockbox_sim::explore` says what a state is.
//!
//! Safety: the simulation's invariants hold in each state. Liveness: from each state, the transfers end if nothing goes wrong any
//! more.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use lockbox_sim::Event;
use lockbox_sim::explore::{Budget, Scope, State};
use stateright::{Checker, Model, Property};

/// A scope, and the states that were seen in it.
struct Explored {
    scope: Scope,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    states: HashMap<u64, State>,
    /// From each state to those before it, by events that are no fault.
    before: HashMap<u64, Vec<u64>>,
    transitions: u64,
}

impl Model for Explored {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        vec![self.scope.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Event>) {
        actions.extend(state.possible());
    }

    fn next_state(&self, last: &State, event: Event) -> Option<State> {
        let next = self.scope.after(last, event);
        let mut seen = self.seen.lock().expect("no other worker failed");
        seen.transitions += 1;
        if self.scope.is_ordinary(event) {
            seen.before.entry(next.digest()).or_default().push(last.digest());
        }
        seen.states.entry(next.digest()).or_insert_with(|| next.clone());
        (next.digest() != last.digest()).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no invariant is violated", |_, state: &State| state.violation.is_none()),
            Property::sometimes("a transfer ends", |_, state: &State| state.is_settled),
        ]
    }
}

fn explore(name: &str, scope: Scope) {
    let model = Explored {
        scope,
        seen: Mutex::default(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = std::time::Instant::now();
    let checker = model.checker().threads(threads).spawn_dfs().join();
    let model = checker.model();
    let seen = model.seen.lock().expect("no worker failed");
    println!(
        "{name}: {} states, {} transitions, {} deep, {:?}",
        checker.unique_state_count(),
        seen.transitions,
        checker.max_depth(),
        began.elapsed()
    );
    if let Some(path) = checker.discovery("no invariant is violated") {
        fail(name, &model.scope, path.last_state());
    }
    assert!(
        checker.discovery("a transfer ends").is_some(),
        "{name}: no transfer ends"
    );
    if let Some(stuck) = seen.stuck() {
        fail(name, &model.scope, stuck);
    }
}

impl Seen {
    /// A state from which the transfers can't end, though nothing goes wrong any more.
    fn stuck(&self) -> Option<&State> {
        let mut ends: HashSet<u64> = HashSet::new();
        let settled = self.states.values().filter(|state| state.is_settled);
        let mut found: Vec<u64> = settled.map(State::digest).collect();
        while let Some(digest) = found.pop() {
            if ends.insert(digest) {
                found.extend(self.before.get(&digest).into_iter().flatten());
            }
        }
        self.states.values().find(|state| !ends.contains(&state.digest()))
    }
}

fn fail(name: &str, scope: &Scope, state: &State) -> ! {
    let file = std::env::temp_dir().join(format!("lockbox-model-{}.events", name.replace(' ', "-")));
    std::fs::write(&file, scope.event_file(state)).expect("the folder for temporary files can be written");
    panic!("{name}: {:?}; the events are in {}", state.violation, file.display());
}

/// Keys at node 0, each in a chunk of its own, and what the broker has authorized.
fn scope(lockboxes: usize, keys: usize, authorized: &[Event], budget: Budget) -> Scope {
    let mut opening = vec![Event::Chunks { keys: 1 }];
    for _ in 0..keys {
        opening.extend([Event::Create { node: 0, pinned: 0 }, Event::Sync { node: 0 }]);
    }
    opening.extend(authorized);
    Scope {
        seed: 1,
        lockboxes,
        opening,
        budget,
    }
}

fn moves(source: usize, target: usize, keys: usize) -> Event {
    Event::Authorize {
        source,
        target,
        moves: 1,
        keys,
        pick: 0,
    }
}

#[test]
fn a_move_of_one_key() {
    let budget = Budget {
        crashes: 1,
        duplicates: 1,
        ..Budget::default()
    };
    explore("a move of one key", scope(2, 1, &[moves(0, 1, 1)], budget));
}
