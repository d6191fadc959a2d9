//! What the broker is told of changes is what it would be told of everything.

use std::collections::BTreeMap;

use lockbox_authz::InventoryReport;
use lockbox_authz::id::KeyId;
use lockbox_authz::inventory::{InventoryEntry, InventoryState};

use super::{ANY, KeyRequest, derive, destroy, make, set_state};
use crate::lifecycle::derive::Relation;
use crate::lifecycle::inventory::InventoryWatch;
use crate::record::KeyState;
use crate::testing::{Cluster, Node};

/// What a broker knows of one lockbox: a report replaces its range.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known(BTreeMap<KeyId, InventoryEntry>);

impl Known {
    fn take(&mut self, report: &InventoryReport) {
        let is_in = |key_id: &KeyId| {
            report.after.is_none_or(|after| *key_id > after) && report.last.is_none_or(|last| *key_id <= last)
        };
        assert!(report.entries.iter().all(|entry| is_in(&entry.key_id)));
        self.0.retain(|key_id, _| !is_in(key_id));
        let entries = report.entries.iter().cloned();
        self.0.extend(entries.map(|entry| (entry.key_id, entry)));
    }

    fn everything(node: &Node) -> Self {
        let mut known = Self::default();
        known.take_everything(node);
        known
    }

    fn take_everything(&mut self, node: &Node) {
        let mut after = None;
        loop {
            let range = node.lockbox().inventory_report(after, true, node.now_ms);
            let range = range.expect("it has a cluster");
            if let Some(report) = &range.report {
                self.take(report.statement());
            }
            after = range.next;
            if after.is_none() {
                return;
            }
        }
    }

    /// Gives the number of reports.
    fn take_changes(&mut self, node: &Node, watch: &InventoryWatch) -> usize {
        let mut changed = node.lockbox().changed_keys(watch).expect("there are few");
        let mut count = 0;
        loop {
            let report = node.lockbox().inventory_report_of(&changed, true, node.now_ms);
            let Some(range) = report.expect("it has a cluster") else {
                return count;
            };
            if let Some(report) = &range.report {
                self.take(report.statement());
                count += 1;
            }
            let next = range.next.expect("it ends with a key that has changed");
            changed.retain(|key_id| *key_id > next);
        }
    }
}

#[test]
fn changes_are_told_as_everything_would_be() {
    let mut cluster = Cluster::new();
    let node = &mut cluster.a;
    let keys: Vec<KeyId> = (0..500).map(|_| make(node, ANY)).collect();
    scan(node);
    let watch = node.lockbox().watch_inventory();
    let mut known = Known::everything(node);
    assert_eq!(known.take_changes(node, &watch), 0, "nothing has changed");

    set_state(node, keys[3], KeyState::Suspended).expect("it is active");
    destroy(node, keys[400], false).expect("nothing needs it");
    let snapshot = derive(node, keys[7], Relation::Snapshot).expect("the policy allows it");
    let job = derive(node, keys[8], Relation::Rekey).expect("the policy allows it");
    let told = known.take_changes(node, &watch);
    assert_eq!(known, Known::everything(node));
    assert!(told <= 4, "{told} reports of four keys");

    node.step(|lockbox, now, rng| lockbox.job_progress(job, 50, now, rng))
        .expect("it is open");
    node.step(|lockbox, _, rng| lockbox.compromise_key(snapshot, rng))
        .expect("it is here");
    known.take_changes(node, &watch);
    assert_eq!(known, Known::everything(node));

    // Many at once: those that are near each other go together.
    for key in &keys[100..400] {
        set_state(node, *key, KeyState::Suspended).expect("it is active");
    }
    let told = known.take_changes(node, &watch);
    assert_eq!(known, Known::everything(node));
    assert!(told < 50, "{told} reports of 300 keys among 500");
}

/// Another process may have changed the store in between.
#[test]
fn a_watch_of_before_a_sealing_tells_nothing() {
    let mut cluster = Cluster::new();
    let key = make(&mut cluster.a, ANY);
    let watch = cluster.a.lockbox().watch_inventory();
    cluster.a.restart();
    set_state(&mut cluster.a, key, KeyState::Suspended).expect("it is active");
    assert!(cluster.a.lockbox().changed_keys(&watch).is_none());
}

/// The broker must not take a key that can't be read for one that is gone, nor may others go untold for it.
#[test]
fn a_damaged_key_stays_what_the_broker_knew_of_it() {
    let mut cluster = Cluster::new();
    let node = &mut cluster.a;
    let mut keys: Vec<KeyId> = (0..600).map(|_| make(node, ANY)).collect();
    keys.sort();
    let neighbours = [neighbour(node, keys[300], 1), neighbour(node, keys[300], 2)];
    let gone = keys.remove(400);
    destroy(node, gone, false).expect("nothing needs it");
    let watch = node.lockbox().watch_inventory();
    let mut known = Known::everything(node);
    let before = known.clone();

    // The first, the last, three in a row, and what remains of one that is gone.
    let damaged = [keys[0], keys[300], neighbours[0], neighbours[1], keys[598]];
    damaged.iter().for_each(|key_id| node.damage(*key_id));
    node.damage_tombstone(gone);
    known.take_everything(node);
    assert_eq!(known, before);
    // Of a broker that knew nothing, these are all that is missing.
    let anew = Known::everything(node);
    assert_eq!(anew.0.len() + damaged.len() + 1, before.0.len());

    let changed = [keys[1], keys[299], keys[301], keys[597]];
    for key_id in changed {
        set_state(node, key_id, KeyState::Suspended).expect("it is active");
    }
    known.take_changes(node, &watch);
    for key_id in changed {
        assert_eq!(known.0[&key_id].state, InventoryState::Suspended);
    }
    assert_eq!(known.0.len(), before.0.len());
    for key_id in damaged {
        assert_eq!(known.0[&key_id], before.0[&key_id]);
    }
}

/// A lost record is no key that is gone, before a scan has found it either; and of a key that is lost altogether nothing is
/// known but that one is missing.
#[test]
fn a_lost_key_is_never_told_as_gone() {
    for altogether in [false, true] {
        let mut cluster = Cluster::new();
        let node = &mut cluster.a;
        let mut keys: Vec<KeyId> = (0..20).map(|_| make(node, ANY)).collect();
        keys.sort();
        let mut known = Known::everything(node);
        let lost = keys[10];
        node.restart();
        node.lose(lost);
        if altogether {
            node.lose_data_key(lost);
        }
        assert!(!node.lockbox().knows_every_key(), "no scan has shown it");
        for is_scanned in [false, true] {
            if is_scanned {
                scan(node);
                assert_eq!(node.lockbox().knows_every_key(), !altogether);
            }
            // One on either side: what is between them is not told.
            let watch = node.lockbox().watch_inventory();
            let state = if is_scanned {
                KeyState::Active
            } else {
                KeyState::Suspended
            };
            for key in [keys[9], keys[11]] {
                set_state(node, key, state).expect("it may");
            }
            known.take_changes(node, &watch);
            assert_ne!(known.0[&keys[11]].state == InventoryState::Active, !is_scanned);
            if node.lockbox().knows_every_key() {
                known.take_everything(node);
            }
            assert!(known.0.contains_key(&lost));
        }
    }
}

fn scan(node: &mut Node) {
    while node
        .lockbox_mut()
        .verify_page(1_000)
        .expect("memory does not fail")
        .is_none()
    {}
}

/// A key whose id is so much greater.
fn neighbour(node: &mut Node, key_id: KeyId, by: u128) -> KeyId {
    let key_id = KeyId((u128::from_be_bytes(key_id.0) + by).to_be_bytes());
    let request = KeyRequest {
        key_id: Some(key_id),
        ..KeyRequest::default()
    };
    node.step(|lockbox, now_ms, rng| lockbox.create_key(request, None, now_ms, rng))
        .expect("the id is free");
    key_id
}
