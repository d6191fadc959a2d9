//! What must hold after each event, by name.

use std::collections::{HashMap, HashSet};

use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::{AuthorizationId, KeyId};
use lockbox_core::wire::TransferState;

use crate::digest::{self, Digest};
use crate::event::Event;
use crate::node::Node;
use crate::world::World;

/// A named invariant that does not hold, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub evidence: String,
}

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Observer {
    /// Where each key was after the last event, for readers and after a power cut.
    here: HashMap<(usize, KeyId), Presence>,
    /// Where each key was durable at some time.
    ever_durable: HashSet<(usize, KeyId)>,
    completed: HashSet<AuthorizationId>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Presence {
    current: bool,
    durable: bool,
}

impl Observer {
    /// What it remembers that the world does not show.
    pub(crate) fn digest(&self, world: &World) -> Digest {
        let mut ever_durable: Vec<_> = self.ever_durable.iter().collect();
        let mut completed: Vec<_> = self.completed.iter().map(|id| digest::number(world, &id.0)).collect();
        ever_durable.sort_unstable();
        completed.sort_unstable();
        digest::of(&(ever_durable, completed))
    }

    /// Looks at the world after an event.
    pub(crate) fn check(&mut self, world: &World, event: Event) -> Result<(), Violation> {
        if let Some(breach) = &world.breach {
            return Err(breach.clone());
        }
        for made in &world.made {
            let mut holders_before = 0;
            let mut holders_now = 0;
            for node in 0..world.nodes.len() {
                let place = (node, made.key_id);
                let before = self.here.get(&place).copied().unwrap_or_default();
                let now = Presence {
                    current: world.nodes[node].holds(made.key_id),
                    durable: world.nodes[node].holds_durably(made.key_id),
                };
                holders_before += usize::from(before.durable);
                holders_now += usize::from(now.durable);
                if now.durable {
                    self.ever_durable.insert(place);
                }
                if now.current && !before.current {
                    check_arrival(world, node, made.key_id)?;
                }
                if before.current && !now.current && before.durable {
                    self.check_departure(world, node, made.key_id)?;
                }
                self.here.insert(place, now);
            }
            let was_destroyed = world.destroyed.iter().any(|(_, key_id)| *key_id == made.key_id);
            if holders_before > 0 && holders_now == 0 && !was_destroyed {
                return violation("no-key-is-lost", format!("key {} is durable nowhere", made.key_id));
            }
        }
        check_chains(world)?;
        // A transfer completes durably when its source syncs.
        match event {
            Event::Sync { node } => self.check_completed(world, node),
            _ => Ok(()),
        }
    }

    /// The source has dropped a key only if an operator destroyed it there, or a target of a MOVE has had it durably.
    fn check_departure(&self, world: &World, node: usize, key_id: KeyId) -> Result<(), Violation> {
        if world.destroyed.contains(&(node, key_id)) {
            return Ok(());
        }
        let handed_over = world.issued.iter().any(|issued| {
            issued.source == node
                && issued.statement.operation == Operation::Move
                && selects(&issued.statement.selection, key_id)
                && self.ever_durable.contains(&(issued.target, key_id))
        });
        if handed_over {
            Ok(())
        } else {
            violation(
                "erased-only-after-the-target-has-it",
                format!("key {key_id} left node {node}, and no target of a MOVE ever had it durably"),
            )
        }
    }

    /// Once a MOVE is complete at its source, the source has none of its keys.
    fn check_completed(&mut self, world: &World, node: usize) -> Result<(), Violation> {
        for issued in world.issued.iter().filter(|issued| issued.source == node) {
            let id = issued.statement.authorization_id;
            if issued.statement.operation != Operation::Move || self.completed.contains(&id) {
                continue;
            }
            let Selection::Ids(ids) = &issued.statement.selection else {
                continue;
            };
            if world.nodes[issued.source].outgoing_state(id) != Some(TransferState::Complete) {
                continue;
            }
            self.completed.insert(id);
            // A key may have come back by another transfer while the rest of this one was still on its way.
            let came_back = |key_id: KeyId| {
                world
                    .issued
                    .iter()
                    .any(|other| other.target == issued.source && selects(&other.statement.selection, key_id))
            };
            for key_id in ids {
                if world.nodes[issued.source].holds(*key_id) && !came_back(*key_id) {
                    return violation(
                        "one-holder-after-a-move",
                        format!("the move {id} is complete, and its source still has key {key_id}"),
                    );
                }
            }
        }
        Ok(())
    }
}

/// A key appears only where it was made, or where an authorization that names it sends it; never where it was destroyed.
fn check_arrival(world: &World, node: usize, key_id: KeyId) -> Result<(), Violation> {
    let made_here = world.made.iter().any(|made| made.key_id == key_id && made.node == node);
    let sent_here = world
        .issued
        .iter()
        .any(|issued| issued.target == node && selects(&issued.statement.selection, key_id));
    if !made_here && !sent_here {
        return violation(
            "no-key-without-authorization",
            format!("key {key_id} is at node {node}, and nothing sent it there"),
        );
    }
    // A destroy that was lost with the power was never acknowledged, and may be undone by it.
    Ok(())
}

/// Each key that is somewhere is in some place with all that it lies on: a volume's key is worth nothing without.
fn check_chains(world: &World) -> Result<(), Violation> {
    let holders = |keys: &[KeyId]| {
        let holds_all = |node: &&Node| keys.iter().all(|key_id| node.holds_durably(*key_id));
        world.nodes.iter().filter(holds_all).count()
    };
    for made in world.made.iter().filter(|made| made.lies_on.is_some()) {
        let chain: Vec<KeyId> = world.chain(made.key_id).collect();
        let was_destroyed = world.destroyed.iter().any(|(_, key_id)| chain.contains(key_id));
        if !was_destroyed && holders(&chain[..1]) > 0 && holders(&chain) == 0 {
            return violation(
                "every-chain-is-whole-somewhere",
                format!("key {} is nowhere with all that it lies on", made.key_id),
            );
        }
    }
    Ok(())
}

fn selects(selection: &Selection, key_id: KeyId) -> bool {
    match selection {
        Selection::Ids(ids) => ids.contains(&key_id),
        Selection::Labels(_) => false,
        Selection::All => true,
    }
}

fn violation(invariant: &'static str, evidence: String) -> Result<(), Violation> {
    Err(Violation { invariant, evidence })
}
