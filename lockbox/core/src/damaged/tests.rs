//! Destroying keys that can't be read.

use super::*;
use crate::keys::{KeyEntry, KeyRequest};
use crate::lifecycle::LifecycleError;
use crate::lifecycle::derive::Relation;
use crate::record::TransferPolicy;
use crate::testing::Node;
use crate::vault::Verification;

fn make(node: &mut Node) -> KeyId {
    node.create_base("volume")
}

fn derive(node: &mut Node, parent: KeyId, relation: Relation) -> KeyId {
    node.derive(parent, relation).expect("the policy allows it")
}

fn scan(node: &mut Node) -> Verification {
    loop {
        if let Some(found) = node.lockbox_mut().verify_page(100).expect("memory does not fail") {
            return found;
        }
    }
}

fn destroy(node: &mut Node, key_id: KeyId, force: bool) -> Result<Destroyed, LockboxError> {
    node.step(|lockbox, now_ms, rng| lockbox.destroy_key(key_id, force, now_ms, rng))
}

/// As when the job that made it was given up.
fn cancel(node: &mut Node, job: KeyId) {
    node.step(|lockbox, now_ms, rng| lockbox.job_cancel(job, true, now_ms, rng))
        .expect("it is open");
}

#[test]
fn what_a_damaged_key_was_is_told_by_the_rows_that_lead_to_it() {
    for relation in [
        None,
        Some(Relation::Snapshot),
        Some(Relation::Share),
        Some(Relation::Rekey),
        Some(Relation::Layer),
        Some(Relation::Rotate),
    ] {
        for on_layer in [false, true] {
            let mut node = Node::new("a", 1);
            let mut parent = make(&mut node);
            if on_layer {
                let below = parent;
                parent = derive(&mut node, below, Relation::Layer);
                cancel(&mut node, parent);
            }
            let key = match relation {
                None => parent,
                Some(relation) => derive(&mut node, parent, relation),
            };
            if !matches!(relation, None | Some(Relation::Snapshot | Relation::Share)) {
                cancel(&mut node, key);
            }
            let KeyEntry::Here { info, .. } = node.lockbox().key(key).expect("it is here") else {
                panic!("it is here");
            };
            node.damage(key);
            scan(&mut node);
            let destroyed = destroy(&mut node, key, true).expect("nothing needs it");
            let whole = Tombstone::destroyed(&info, node.now_ms);
            let expected = Tombstone {
                name: String::new(),
                ..whole
            };
            assert_eq!(destroyed.tombstone, expected, "{relation:?} {on_layer}");
            let shares = relation.is_some_and(Relation::shares);
            assert_eq!(destroyed.remaining, if shares { vec![parent] } else { Vec::new() });
            assert!(scan(&mut node).is_clean());
            node.restart();
            assert!(scan(&mut node).is_clean());
        }
    }
}

/// The digest is set right when all that it could not be followed for is gone, and not before.
#[test]
fn the_digest_is_right_again_with_the_last_damaged_key() {
    let mut node = Node::new("a", 1);
    let keys: Vec<KeyId> = (0..20).map(|_| make(&mut node)).collect();
    node.damage(keys[3]);
    node.damage(keys[11]);
    assert_eq!(scan(&mut node).damaged_count, 2);
    destroy(&mut node, keys[3], true).expect("nothing needs it");
    let found = scan(&mut node);
    assert_eq!((found.damaged_count, found.mismatch.is_some()), (1, true));
    // What else goes meanwhile is nothing that was amiss.
    destroy(&mut node, keys[4], false).expect("nothing needs it");
    make(&mut node);
    assert!(scan(&mut node).mismatch.is_some());
    destroy(&mut node, keys[11], true).expect("nothing needs it");
    assert!(scan(&mut node).is_clean());
    assert_eq!(node.lockbox().key_count(), 18);
}

/// A scan that is under way has come by a key that goes then, and must not wait for it to go.
#[test]
fn a_damaged_key_may_go_while_a_scan_is_under_way() {
    let mut node = Node::new("a", 1);
    let mut keys: Vec<KeyId> = (0..20).map(|_| make(&mut node)).collect();
    keys.sort();
    node.damage(keys[0]);
    node.damage(keys[19]);
    scan(&mut node);
    for _ in 0..12 {
        let found = node.lockbox_mut().verify_page(1).expect("memory does not fail");
        assert!(found.is_none(), "over too soon");
    }
    destroy(&mut node, keys[0], true).expect("nothing needs it");
    scan(&mut node);
    destroy(&mut node, keys[19], true).expect("nothing needs it");
    assert!(scan(&mut node).is_clean());
}

/// What was exchanged beside them is not settled with whole keys.
#[test]
fn destroying_whole_keys_hides_no_damage() {
    let mut node = Node::new("a", 1);
    let keys: Vec<KeyId> = (0..5).map(|_| make(&mut node)).collect();
    node.damage(keys[0]);
    scan(&mut node);
    destroy(&mut node, keys[1], true).expect("nothing needs it");
    let found = scan(&mut node);
    assert_eq!((found.damaged_count, found.mismatch.is_some()), (1, true));
}

#[test]
fn rejects_destroying_a_damaged_key_without_force() {
    let mut node = Node::new("a", 1);
    let key = make(&mut node);
    node.damage(key);
    scan(&mut node);
    let refused = destroy(&mut node, key, false).expect_err("who uses it can't be read");
    assert!(matches!(refused, LockboxError::DamagedKey { .. }), "{refused}");
}

#[test]
fn rejects_destroying_a_damaged_key_that_no_scan_has_found() {
    let mut node = Node::new("a", 1);
    let key = make(&mut node);
    scan(&mut node);
    node.damage(key);
    let refused = destroy(&mut node, key, true).expect_err("the digest would be wrong for good");
    assert!(matches!(refused, LockboxError::NotScanned(_)), "{refused}");
    scan(&mut node);
    destroy(&mut node, key, true).expect("it is known by now");
}

#[test]
fn rejects_destroying_a_damaged_key_that_a_layer_lies_on() {
    let mut node = Node::new("a", 1);
    let below = make(&mut node);
    let layer = derive(&mut node, below, Relation::Layer);
    cancel(&mut node, layer);
    node.damage(below);
    scan(&mut node);
    let refused = destroy(&mut node, below, true).expect_err("a layer lies on it");
    assert!(
        matches!(refused, LockboxError::Lifecycle(LifecycleError::Layered { .. })),
        "{refused}"
    );
    destroy(&mut node, layer, false).expect("nothing lies on it");
    destroy(&mut node, below, true).expect("nothing lies on it any more");
}

#[test]
fn rejects_destroying_a_damaged_key_that_a_job_needs() {
    let mut node = Node::new("a", 1);
    let old = node.create("volume", TransferPolicy::default());
    let new = derive(&mut node, old, Relation::Rotate);
    node.damage(new);
    scan(&mut node);
    let refused = destroy(&mut node, new, true).expect_err("a job needs it");
    assert!(
        matches!(refused, LockboxError::Lifecycle(LifecycleError::InJob { .. })),
        "{refused}"
    );
    cancel(&mut node, new);
    destroy(&mut node, new, true).expect("nothing needs it any more");
}

/// What is wrong with the digest stays, whatever is destroyed.
fn stays_amiss(node: &mut Node) {
    assert!(
        scan(node).mismatch.is_some(),
        "somebody's changes pass for what was committed"
    );
    node.restart();
    assert!(scan(node).mismatch.is_some(), "it is over with the next start");
}

/// Takes the record of a tombstone away, as if nothing had been destroyed.
fn remove_tombstone(node: &Node, key_id: KeyId) {
    node.change_store(|_, batch| batch.remove(Row::Tombstone(key_id).key()));
}

/// Anybody can put a row that does not open into the store; it is not to make a deletion pass for damage.
#[test]
fn rejects_a_lost_key_that_nobody_had() {
    for leaf in [0, 1, 513] {
        let mut node = Node::new("a", 1);
        let [kept, gone] = [make(&mut node), make(&mut node)];
        destroy(&mut node, gone, false).expect("nothing needs it");
        remove_tombstone(&node, gone);
        let planted = KeyId([9; 16]);
        node.change_store(|rows, batch| {
            // Another key's, at a place of its own; and a row of nothing.
            let other = rows
                .iter()
                .find(|(place, _)| place[0] == b'W' && place.ends_with(&kept.0));
            let (_, wrapped) = other.expect("it is here");
            batch.put(crate::rows::data_key(leaf, planted), wrapped.clone());
        });
        let found = scan(&mut node);
        assert_eq!((found.damaged_count, found.mismatch.is_some()), (1, true));
        let refused = destroy(&mut node, planted, true).expect_err("nobody had it");
        assert!(matches!(refused, LockboxError::NoKey(_)), "{refused}");
        assert_eq!(
            node.lockbox().keys_after(None, 10).expect("memory does not fail").len(),
            1
        );
        stays_amiss(&mut node);
    }
}

/// A lost key accounts for one record, and not for others that went as well.
#[test]
fn a_deletion_is_not_settled_with_a_damaged_key() {
    type Damage = fn(&Node, KeyId);
    let damages: [Damage; 3] = [Node::damage, Node::lose, Node::damage_data_key];
    for damage in damages {
        let mut node = Node::new("a", 1);
        let [key, gone] = [make(&mut node), make(&mut node)];
        destroy(&mut node, gone, false).expect("nothing needs it");
        remove_tombstone(&node, gone);
        damage(&node, key);
        scan(&mut node);
        destroy(&mut node, key, true).expect("nothing needs it");
        stays_amiss(&mut node);
    }
}

/// An older record in the place of another is as one bit to a digest: whoever settles it is told so.
#[test]
fn what_is_settled_with_a_damaged_key_stops_transfers_until_somebody_has_looked() {
    type Damage = fn(&Node, KeyId);
    let damages: [(Damage, bool); 3] = [(Node::damage, true), (Node::lose, true), (Node::damage_data_key, false)];
    for (damage, settles) in damages {
        let mut node = Node::new("a", 1);
        let key = make(&mut node);
        damage(&node, key);
        scan(&mut node);
        destroy(&mut node, key, true).expect("nothing needs it");
        for _ in 0..2 {
            let alarms = node.lockbox().alarms();
            assert_eq!(alarms.len(), usize::from(settles));
            assert!(alarms.values().all(|alarm| alarm.what.contains("exchanged")));
            node.restart();
        }
        assert!(scan(&mut node).is_clean());
    }
}

/// Each restart begins a new scan, which knows nothing of the keys that are destroyed already.
#[test]
fn damaged_keys_may_go_one_by_one_with_a_restart_after_each() {
    let mut node = Node::new("a", 1);
    let keys: Vec<KeyId> = (0..7).map(|_| make(&mut node)).collect();
    node.lose(keys[0]);
    node.lose(keys[1]);
    node.damage(keys[2]);
    node.damage_data_key(keys[3]);
    node.lose(keys[4]);
    for key in &keys[..5] {
        assert!(!scan(&mut node).is_clean());
        destroy(&mut node, *key, true).expect("nothing needs it");
        node.restart();
    }
    assert!(scan(&mut node).is_clean());
    assert_eq!(node.lockbox().key_count(), 2);
}

/// Rows at places that no key has are passed over, wherever keys are looked for, and found by a scan.
#[test]
fn a_row_that_stands_where_no_key_does_keeps_no_key_from_anything() {
    let mut node = Node::new("a", 1);
    let mut keys: Vec<KeyId> = (0..20).map(|_| make(&mut node)).collect();
    keys.sort();
    let gone = keys.pop().expect("there are 20");
    destroy(&mut node, gone, false).expect("nothing needs it");
    node.change_store(|rows, batch| {
        for place in rows.keys().filter(|place| matches!(place[0], b'R' | b'W' | b'x')) {
            batch.put([place, &b"junk"[..]].concat(), vec![0; 60]);
            batch.put(place[..place.len() - 1].to_vec(), vec![0; 60]);
        }
    });
    let list = |node: &Node| {
        let mut ids: Vec<KeyId> = Vec::new();
        loop {
            let page = node
                .lockbox()
                .keys_after(ids.last().copied(), 3)
                .expect("keys are listed");
            ids.extend(page.iter().map(KeyEntry::key_id));
            if page.len() < 3 {
                return ids;
            }
        }
    };
    assert_eq!(list(&node), keys);
    let departed = node.lockbox().departed_after(None, 3).expect("they are listed");
    assert_eq!(departed.len(), 1);
    let found = scan(&mut node);
    assert_eq!(found.damaged_count, 2 * (19 + 19 + 1));
    destroy(&mut node, keys[7], false).expect("nothing needs it");
    assert_eq!(list(&node).len(), 18);
    assert_eq!(node.lockbox().key_count(), 18);
}

/// How the key came to be is not worth keeping it for.
#[test]
fn what_a_damaged_key_descends_from_may_be_damaged_too() {
    let mut node = Node::new("a", 1);
    let parent = make(&mut node);
    let key = derive(&mut node, parent, Relation::Layer);
    cancel(&mut node, key);
    node.damage(key);
    node.damage_at(Row::Descendant(parent, key).key());
    scan(&mut node);
    let destroyed = destroy(&mut node, key, true).expect("nothing needs it");
    assert_eq!(destroyed.tombstone.lineage, None);
    // It lies on its parent no more.
    destroy(&mut node, parent, false).expect("nothing lies on it");
}

/// It is served, and nobody should be told to destroy it.
#[test]
fn a_key_whose_mark_of_a_transfer_is_damaged_is_listed_as_it_is() {
    let mut node = Node::new("a", 1);
    let key = make(&mut node);
    let mark = Row::OutgoingKey(key).key();
    node.change_store(|_, batch| batch.put(mark, vec![0; 60]));
    let listed = node.lockbox().keys_after(None, 1).expect("memory does not fail");
    let KeyEntry::Here { info, damage, .. } = &listed[0] else {
        panic!("it is served: {listed:?}");
    };
    assert!(info.key_id == key && damage.is_some());
    let gone = make(&mut node);
    destroy(&mut node, gone, false).expect("nothing needs it");
    node.damage_tombstone(gone);
    let departed = node.lockbox().departed_after(None, 1).expect("memory does not fail");
    assert!(matches!(&departed[0], KeyEntry::Damaged(damaged) if damaged.departed));
}

/// Whoever repeats a request for a key of that id would be given another one, over the last that opens the record.
#[test]
fn rejects_a_new_key_in_the_place_of_a_lost_one() {
    let mut node = Node::new("a", 1);
    let key = make(&mut node);
    node.lose(key);
    scan(&mut node);
    let refused = node.step(|lockbox, now_ms, rng| {
        lockbox.create_key(
            KeyRequest {
                key_id: Some(key),
                ..KeyRequest::default()
            },
            None,
            now_ms,
            rng,
        )
    });
    let refused = refused.expect_err("what opens its record is still here");
    assert!(refused.is_of_one_record(), "{refused}");
}
