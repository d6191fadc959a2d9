//! Inventory reports: each field's rule, and whom they speak for.

mod support;

use lockbox_authz::envelope::Statement;
use lockbox_authz::id::{ClusterId, Hash, KeyId, MaterialId};
use lockbox_authz::inventory::{
    Consumer, InventoryEntry, InventoryError, InventoryReport, InventoryState, JobProgress, JobState, Parent,
};
use lockbox_authz::limits::MAX_ENVELOPE_BYTES;
use lockbox_authz::{Label, Labels, SecretKey, Signer, Verified, wire};
use support::{CLUSTER, SOURCE, TARGET, refused_field};

fn entry(number: u8) -> InventoryEntry {
    InventoryEntry {
        key_id: KeyId([number; 16]),
        material_id: MaterialId([number; 16]),
        state: InventoryState::Moved { to: TARGET },
        parent: Some(Parent {
            key_id: KeyId([1; 16]),
            relation: "rekey".to_owned(),
            stated_lies_on: None,
        }),
        consumers: vec![Consumer {
            service: "cinder".to_owned(),
            resource_type: "volume".to_owned(),
            resource_id: "vol-1".to_owned(),
        }],
        job: Some(JobProgress {
            state: JobState::Running,
            percent: 40,
        }),
        name: String::new(),
        labels: Labels::default(),
    }
}

/// The largest that a lockbox tells of a key: 32 KiB of consumers, a name and labels in characters of four bytes.
fn largest() -> InventoryEntry {
    let consumer = |number: usize| Consumer {
        service: format!("{number:x}").repeat(32),
        resource_type: "\u{1f511}".repeat(64),
        resource_id: "\u{1f511}".repeat(56),
    };
    let label = |number: usize| Label {
        key: format!("{number:063}"),
        value: "\u{1f511}".repeat(63),
    };
    InventoryEntry {
        state: InventoryState::Active,
        consumers: (0..64).map(|number| consumer(number % 16)).collect(),
        name: "\u{1f511}".repeat(128),
        labels: Labels::from_unsorted((0..32).map(label).collect()).expect("good labels"),
        ..entry(3)
    }
}

fn report() -> InventoryReport {
    InventoryReport {
        cluster_id: CLUSTER,
        lockbox_id: SOURCE,
        reported_at_ms: 1,
        after: Some(KeyId([2; 16])),
        last: Some(KeyId([5; 16])),
        entries: vec![entry(3), entry(4)],
    }
}

fn refused(change: impl FnOnce(&mut wire::InventoryReport)) -> &'static str {
    let mut wire = report().to_wire();
    change(&mut wire);
    refused_field::<InventoryReport>(wire)
}

#[test]
fn what_is_reported_is_read_as_it_was() {
    assert_eq!(InventoryReport::from_wire(report().to_wire()), Ok(report()));
    let mut named = report();
    named.entries[0] = largest();
    assert_eq!(InventoryReport::from_wire(named.to_wire()), Ok(named));
}

/// It is told alone, and the broker must take it.
#[test]
fn the_largest_entry_fits_into_an_envelope() {
    let report = InventoryReport {
        entries: vec![largest()],
        ..report()
    };
    let key = SecretKey::from_seed(&[7; 32]);
    let envelope = Verified::sign(report, &key).envelope().to_bytes();
    assert!(
        (40 * 1024..MAX_ENVELOPE_BYTES).contains(&envelope.len()),
        "{}",
        envelope.len()
    );
}

/// Names are shown to operators, who act on them.
#[test]
fn rejects_a_name_or_labels_that_break_their_rules() {
    let with = |state: i32, name: &str, labels: &[(&str, &str)]| {
        let mut wire = report().to_wire();
        let entry = &mut wire.entries[0];
        (entry.state, entry.name) = (state, name.to_owned());
        if state != wire::InventoryState::Moved as i32 {
            entry.moved_to.clear();
        }
        let label = |(key, value): &(&str, &str)| wire::Label {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        entry.labels = labels.iter().map(label).collect();
        wire
    };
    let held = wire::InventoryState::Active as i32;
    assert!(InventoryReport::from_wire(with(held, &"n".repeat(128), &[("a", ""), ("b", "1")])).is_ok());
    let too_long = "n".repeat(129);
    for name in [
        "\u{1b}[2J",
        "a\nb",
        "\u{202e}2-lov",
        "\u{61c}",
        "\u{200f}",
        "\u{9b}",
        &too_long,
    ] {
        assert_eq!(
            refused_field::<InventoryReport>(with(held, name, &[])),
            "name",
            "{name:?}"
        );
    }
    for (labels, field) in [
        (&[("b", "1"), ("a", "1")][..], "labels"),
        (&[("a", "1"), ("a", "2")], "labels"),
        (&[("A", "1")], "label key"),
        (&[("a", "\u{202e}")], "label value"),
    ] {
        assert_eq!(
            refused_field::<InventoryReport>(with(held, "", labels)),
            field,
            "{labels:?}"
        );
    }
    for gone in [wire::InventoryState::Destroyed, wire::InventoryState::Moved] {
        assert_eq!(
            refused_field::<InventoryReport>(with(gone as i32, "vol-2", &[])),
            "name"
        );
        assert_eq!(
            refused_field::<InventoryReport>(with(gone as i32, "", &[("a", "1")])),
            "name"
        );
    }
}

#[test]
fn rejects_a_report_whose_fields_break_their_rules() {
    assert_eq!(refused(|wire| wire.version = 0), "version");
    assert_eq!(refused(|wire| wire.cluster_id.clear()), "cluster_id");
    assert_eq!(refused(|wire| wire.lockbox_id.clear()), "lockbox_id");
    assert_eq!(refused(|wire| wire.reported_at_ms = 0), "reported_at_ms");
    assert_eq!(refused(|wire| wire.entries[0].state = 99), "state");
    assert_eq!(refused(|wire| wire.entries[0].job = 99), "job_percent");
    assert_eq!(refused(|wire| wire.entries[0].job_percent = 101), "job_percent");
    assert_eq!(refused(|wire| wire.entries[0].moved_to.clear()), "moved_to");
    assert_eq!(refused(|wire| wire.entries[0].relation.clear()), "relation");
    assert_eq!(
        refused(|wire| wire.entries[0].consumers[0].resource_id.clear()),
        "resource_id"
    );
    assert_eq!(refused(|wire| wire.entries = vec![entry(3).to_wire(); 257]), "entries");
}

/// Two spellings of one lineage would be two truths, and a wrong one would hide what a stolen lockbox opens.
#[test]
fn rejects_an_entry_whose_relation_says_otherwise_what_it_lies_on() {
    let (parent, other) = ([1; 16], [9; 16]);
    let entry = |relation: &str, lies_on: &[u8]| {
        let mut wire = report().to_wire();
        relation.clone_into(&mut wire.entries[0].relation);
        wire.entries[0].lies_on_key_id = lies_on.to_vec();
        wire
    };
    for relation in ["snapshot", "share", "rotate", "of a later version"] {
        let wire = entry(relation, &other);
        let read = InventoryReport::from_wire(wire.clone()).expect("it is stated once");
        let parent = read.entries[0].parent.clone().expect("it has one");
        assert_eq!(parent.lies_on(), Some(KeyId(other)));
        assert_eq!(read.to_wire(), wire);
    }
    let implied = InventoryReport::from_wire(entry("layer", &[])).expect("it is not stated");
    let implied = implied.entries[0].parent.as_ref().and_then(Parent::lies_on);
    assert_eq!(implied, Some(KeyId(parent)));
    for (relation, lies_on) in [
        ("layer", &parent[..]),
        ("layer", &other),
        ("rekey", &other),
        ("snapshot", &parent),
        ("snapshot", &[3; 16]),
        ("snapshot", &other[1..]),
    ] {
        let refused = refused_field::<InventoryReport>(entry(relation, lies_on));
        assert_eq!(refused, "lies_on_key_id", "{relation} on {lies_on:?}");
    }
    let without_parent = |wire: &mut wire::InventoryReport| {
        let first = &mut wire.entries[0];
        (first.parent_key_id, first.relation) = (Vec::new(), String::new());
        first.lies_on_key_id = other.to_vec();
    };
    assert_eq!(refused(without_parent), "relation");
}

/// A report replaces what was known of its range: a key outside of it would overwrite another range.
#[test]
fn rejects_entries_that_are_not_ascending_in_the_range() {
    assert_eq!(refused(|wire| wire.entries.reverse()), "entries");
    assert_eq!(refused(|wire| wire.entries[0].key_id = vec![2; 16]), "entries");
    assert_eq!(refused(|wire| wire.entries[1].key_id = vec![6; 16]), "entries");
    assert_eq!(refused(|wire| wire.last_key_id = vec![2; 16]), "entries");
}

#[test]
fn a_report_speaks_for_the_lockbox_that_signed_it_and_no_other() {
    let key = SecretKey::from_seed(&[7; 32]);
    let stranger = SecretKey::from_seed(&[8; 32]);
    let envelope = Verified::sign(report(), &key).envelope().clone();
    assert!(InventoryReport::verify(&envelope, key.public_key(), CLUSTER, SOURCE).is_ok());
    assert!(matches!(
        InventoryReport::verify(&envelope, stranger.public_key(), CLUSTER, SOURCE),
        Err(InventoryError::Envelope(_))
    ));
    assert!(matches!(
        InventoryReport::verify(&envelope, key.public_key(), CLUSTER, TARGET),
        Err(InventoryError::OtherLockbox { .. })
    ));
    assert!(matches!(
        InventoryReport::verify(&envelope, key.public_key(), ClusterId(Hash([9; 32])), SOURCE),
        Err(InventoryError::OtherCluster { .. })
    ));
}
