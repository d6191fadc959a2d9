//! What the broker is told of changes is what it would be told of everything.

use std::collections::BTreeMap;

use lockbox_authz::InventoryReport;
use lockbox_authz::id::KeyId;
use lockbox_authz::inventory::InventoryEntry;

use super::{ANY, derive, destroy, make, set_state};
use crate::lifecycle::derive::Relation;
use crate::lifecycle::inventory::InventoryWatch;
use crate::record::KeyState;
use crate::testing::{Cluster, Node};

/// What a broker knows of one lockbox: a report replaces its range.
#[derive(Debug, Default, PartialEq)]
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
        let mut after = None;
        loop {
            let report = node.lockbox().inventory_report(after, node.now_ms);
            let report = report.expect("it has a cluster").statement().clone();
            known.take(&report);
            after = report.last;
            if after.is_none() {
                return known;
            }
        }
    }

    /// Gives the number of reports.
    fn take_changes(&mut self, node: &Node, watch: &InventoryWatch) -> usize {
        let mut changed = node.lockbox().changed_keys(watch).expect("there are few");
        let mut count = 0;
        loop {
            let report = node.lockbox().inventory_report_of(&changed, node.now_ms);
            let Some(report) = report.expect("it has a cluster") else {
                return count;
            };
            let report = report.statement();
            self.take(report);
            let last = report.last.expect("it ends with a key that has changed");
            changed.retain(|key_id| *key_id > last);
            count += 1;
        }
    }
}

#[test]
fn changes_are_told_as_everything_would_be() {
    let mut cluster = Cluster::new();
    let node = &mut cluster.a;
    let keys: Vec<KeyId> = (0..500).map(|_| make(node, ANY)).collect();
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
