//! Compromise that meets other keys later, rows that outlived their key, and a clock that jumps.

use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::id::{KeyId, MaterialId};

use super::{ANY, derive, make, node};
use crate::lifecycle::caps::{Caps, HOUR_MS, MAX_TRANSFERS_PER_HOUR};
use crate::lifecycle::derive::Relation;
use crate::lifecycle::family::MAX_FAMILY;
use crate::lockbox::LockboxError;
use crate::record::KeyState;
use crate::rows::Row;
use crate::step::Step;
use crate::testing::{Cluster, Node};
use crate::transfer::tests::carry;
use crate::vault::Changes;

fn state(node: &Node, key: KeyId) -> KeyState {
    node.lockbox().reveal_key(key).expect("it is here").info.state
}

fn compromise(node: &mut Node, key: KeyId) -> usize {
    let marked = node.step(|lockbox, _, rng| lockbox.compromise_key(key, rng));
    marked.expect("it may be known at any time").len()
}

fn write(node: &mut Node, row: Row) {
    node.step(|lockbox, _, rng| {
        let mut changes = Changes::default();
        changes.put(row, Vec::new());
        Ok::<_, LockboxError>(Step::new(lockbox.vault.stage(changes, rng)?, ()))
    })
    .expect("memory does not fail");
}

/// A snapshot each hour makes so many in a year and two months. One that is overlooked goes on being copied.
#[test]
fn a_compromise_reaches_every_snapshot_however_many_there_are() {
    const SNAPSHOTS: usize = 10_001;
    let mut node = node();
    let volume = make(&mut node, ANY);
    let snapshots: Vec<KeyId> = (0..SNAPSHOTS)
        .map(|_| derive(&mut node, volume, Relation::Snapshot).expect("the policy allows it"))
        .collect();
    assert_eq!(compromise(&mut node, volume), 1 + SNAPSHOTS);
    let impact = node.lockbox().impact(volume).expect("it is here");
    assert!(impact.truncated && impact.findings.len() == MAX_FAMILY);
    for snapshot in snapshots {
        assert_eq!(state(&node, snapshot), KeyState::Compromised);
    }
}

/// The snapshot is at the other lockbox when its material is found to be known; the volume comes after that, or before.
#[test]
fn keys_that_meet_are_compromised_if_one_of_their_material_is() {
    for arriving_is_known in [false, true] {
        let mut cluster = Cluster::new();
        let volume = make(&mut cluster.a, ANY);
        let snapshot = derive(&mut cluster.a, volume, Relation::Snapshot).expect("it may");
        let stranger = make(&mut cluster.b, ANY);
        let first = cluster.authorize(Operation::Move, Selection::Ids(vec![snapshot]));
        carry(&mut cluster.a, &mut cluster.b, &first).expect("it is moved");
        if arriving_is_known {
            compromise(&mut cluster.a, volume);
        } else {
            compromise(&mut cluster.b, snapshot);
        }
        let second = cluster.authorize(Operation::Move, Selection::Ids(vec![volume]));
        carry(&mut cluster.a, &mut cluster.b, &second).expect("it is moved");
        cluster.b.restart();
        assert_eq!(state(&cluster.b, volume), KeyState::Compromised);
        assert_eq!(state(&cluster.b, snapshot), KeyState::Compromised);
        assert_eq!(state(&cluster.b, stranger), KeyState::Active);
    }
}

#[test]
fn a_row_without_its_key_does_not_keep_the_others_from_being_marked() {
    let mut node = node();
    let key = make(&mut node, ANY);
    write(&mut node, Row::MaterialKey(MaterialId(key.0), KeyId([9; 16])));
    assert_eq!(compromise(&mut node, key), 1);
    assert_eq!(state(&node, key), KeyState::Compromised);
}

fn spend(node: &mut Node, at_ms: i64) {
    node.step(|lockbox, _, rng| {
        let mut changes = Changes::default();
        lockbox.note_spent(at_ms, &mut changes)?;
        Ok::<_, LockboxError>(Step::new(lockbox.vault.stage(changes, rng)?, ()))
    })
    .expect("memory does not fail");
}

fn spent(node: &Node, now_ms: i64) -> usize {
    node.lockbox().spent_in_last_hour(now_ms).expect("undamaged").len()
}

#[test]
fn what_a_clock_years_ahead_spent_does_not_block_for_years() {
    let mut node = node();
    let now_ms = node.now_ms;
    spend(&mut node, now_ms + 10_000 * HOUR_MS);
    assert_eq!(spent(&node, now_ms), 0);
    spend(&mut node, now_ms + HOUR_MS / 2);
    assert_eq!(spent(&node, now_ms), 1, "a small step back frees nothing");
}

#[test]
fn a_cap_that_is_set_later_counts_what_was_spent_before() {
    let mut node = node();
    node.lockbox_mut().set_caps(Caps::default());
    let now_ms = node.now_ms;
    spend(&mut node, now_ms);
    assert_eq!(spent(&node, now_ms + 1), 1);
}

#[test]
fn the_record_of_what_was_spent_stays_bounded() {
    let mut node = node();
    let now_ms = node.now_ms;
    let newest = now_ms + i64::from(MAX_TRANSFERS_PER_HOUR);
    for at_ms in now_ms..=newest {
        spend(&mut node, at_ms);
    }
    let kept = node.lockbox().spent_in_last_hour(newest).expect("undamaged");
    assert_eq!(kept.len(), MAX_TRANSFERS_PER_HOUR as usize);
    assert_eq!(kept.last(), Some(&newest));
}
