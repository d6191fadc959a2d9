//! Every run of the protocol within small bounds, on the real state machines. `lockbox_sim::explore` says what a state is.
//!
//! Safety: the simulation's invariants hold in each state. Liveness: from each state, the transfers end if nothing goes wrong any
//! more. A stream loses no message and goes on, so a lost message leaves a connection that can still be cut.
//!
//! `LOCKBOX_MODEL=long` adds a crash at any point to the scopes that have none without it, and a MOVE onward to that of a family;
//! it takes minutes.

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
        if self.scope.is_ordinary(last, &next) {
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
    // A path to a state is found by taking its steps again, which are seen once more.
    let violated = checker.discovery("no invariant is violated");
    let ended = checker.discovery("a transfer ends");
    let seen = model.seen.lock().expect("no worker failed");
    println!(
        "{name}: {} states, {} transitions, {} deep, {:?}",
        checker.unique_state_count(),
        seen.transitions,
        checker.max_depth(),
        began.elapsed()
    );
    if let Some(path) = violated {
        fail(name, &model.scope, path.last_state());
    }
    assert!(ended.is_some(), "{name}: no transfer ends");
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

/// The same, with a family of so many keys that lie on each other.
fn family_scope(keys: usize, budget: Budget) -> Scope {
    let mut scope = scope(2, 1, &[], budget);
    for pick in 1..keys {
        // One batch makes the layer, one gives up its job.
        let sync = Event::Sync { node: 0 };
        scope.opening.extend([
            Event::Layer {
                node: 0,
                pick: pick - 1,
            },
            sync,
            sync,
        ]);
    }
    scope.opening.push(transfer(1, 1, 0));
    scope
}

/// A transfer of so many keys from node 0.
fn transfer(moves: usize, target: usize, keys: usize) -> Event {
    Event::Authorize {
        source: 0,
        target,
        moves,
        keys,
        pick: 0,
    }
}

/// A crash, or what else there may be one of, in the scopes that are large with it.
fn crashes() -> u8 {
    u8::from(std::env::var("LOCKBOX_MODEL").is_ok_and(|scopes| scopes == "long"))
}

const NONE: Budget = Budget {
    crashes: 0,
    duplicates: 0,
    drops: 0,
    reorders: 0,
    cuts: 0,
    expiries: 0,
    revocations: 0,
    destroys: 0,
    retirements: 0,
    returns: 0,
};

#[test]
fn a_move_with_crashes() {
    let budget = Budget { crashes: 2, ..NONE };
    explore("a move with crashes", scope(2, 1, &[transfer(1, 1, 1)], budget));
}

#[test]
fn a_move_of_two_chunks_on_a_bad_connection() {
    let budget = Budget {
        crashes: 1,
        duplicates: 1,
        ..NONE
    };
    explore("a move of two chunks", scope(2, 2, &[transfer(1, 1, 2)], budget));
}

#[test]
fn a_copy_of_two_chunks_on_a_bad_connection() {
    let budget = Budget {
        drops: 1,
        reorders: 1,
        ..NONE
    };
    explore("a copy of two chunks", scope(2, 2, &[transfer(0, 1, 2)], budget));
}

#[test]
fn a_move_that_expires_while_its_connection_is_cut() {
    let budget = Budget {
        cuts: 1,
        expiries: 1,
        ..NONE
    };
    explore("a move that expires", scope(2, 2, &[transfer(1, 1, 2)], budget));
}

#[test]
fn a_move_that_is_revoked() {
    let budget = Budget {
        crashes: crashes(),
        revocations: 1,
        ..NONE
    };
    explore("a move that is revoked", scope(2, 1, &[transfer(1, 1, 1)], budget));
}

#[test]
fn a_move_to_a_lockbox_that_is_retired() {
    let budget = Budget {
        crashes: crashes(),
        retirements: 1,
        ..NONE
    };
    explore("a move to a retired lockbox", scope(2, 1, &[transfer(1, 1, 1)], budget));
}

#[test]
fn a_move_of_a_key_that_is_destroyed() {
    let budget = Budget {
        crashes: 1,
        destroys: 1,
        ..NONE
    };
    explore("a move of a destroyed key", scope(2, 1, &[transfer(1, 1, 1)], budget));
}

#[test]
fn a_key_that_comes_back() {
    let budget = Budget {
        crashes: crashes(),
        returns: 1,
        ..NONE
    };
    explore("a key that comes back", scope(2, 1, &[transfer(1, 1, 1)], budget));
}

#[test]
fn a_move_of_a_family_with_a_crash() {
    let budget = Budget { crashes: 1, ..NONE };
    explore("a move of a family", family_scope(2, budget));
}

#[test]
fn a_move_of_a_family_that_is_revoked() {
    let budget = Budget {
        crashes: crashes(),
        revocations: 1,
        ..NONE
    };
    explore("a move of a family that is revoked", family_scope(2, budget));
}

#[test]
fn a_move_of_a_family_to_a_lockbox_that_is_retired() {
    let budget = Budget {
        crashes: crashes(),
        retirements: 1,
        ..NONE
    };
    explore("a move of a family to a retired lockbox", family_scope(2, budget));
}

#[test]
fn a_family_of_which_a_part_is_moved_on() {
    let budget = Budget {
        returns: crashes(),
        ..NONE
    };
    explore("a family of which a part is moved on", family_scope(2, budget));
}

#[test]
fn two_targets_for_one_key() {
    let budget = Budget {
        crashes: crashes(),
        ..NONE
    };
    let both = [transfer(1, 1, 1), transfer(1, 2, 1)];
    explore("two targets for one key", scope(3, 1, &both, budget));
}
