//! Each field's rule of a roster entry.

mod support;

use lockbox_authz::envelope::Statement;
use lockbox_authz::limits::{MAX_ADMINS, MAX_BROKER_THRESHOLD, MAX_NAME_CHARS, MAX_REASON_CHARS};
use lockbox_authz::roster::{Admins, Change, Genesis, RosterEntry};
use lockbox_authz::wire;
use lockbox_authz::wire::roster_entry::Change as WireChange;
use support::{ADMIN, NOW_MS, accepted, genesis, lockbox, public, refused_field, wire_label};

/// An entry with a good frame around a change.
fn entry(change: WireChange) -> wire::RosterEntry {
    wire::RosterEntry {
        version: 1,
        cluster_id: vec![1; 32],
        index: 1,
        previous: vec![2; 32],
        signed_at_ms: NOW_MS,
        change: Some(change),
    }
}

fn refused(spoil: impl FnOnce(&mut wire::RosterEntry)) -> &'static str {
    let mut wire = entry(WireChange::RevokeJoin(wire::RevokeJoin {
        join_key: public(50).to_vec(),
    }));
    spoil(&mut wire);
    refused_field::<RosterEntry>(wire)
}

fn refused_change(change: WireChange) -> &'static str {
    refused_field::<RosterEntry>(entry(change))
}

fn refused_genesis(spoil: impl FnOnce(&mut wire::RosterEntry)) -> &'static str {
    let mut wire = genesis(&[ADMIN], 1).to_wire();
    spoil(&mut wire);
    refused_field::<RosterEntry>(wire)
}

fn refused_founding(spoil: impl FnOnce(&mut wire::Genesis)) -> &'static str {
    refused_genesis(|wire| match &mut wire.change {
        Some(WireChange::Genesis(genesis)) => spoil(genesis),
        _ => panic!("it is a genesis entry"),
    })
}

fn admins() -> wire::Admins {
    let mut keys = vec![public(1).to_vec(), public(2).to_vec(), public(3).to_vec()];
    keys.sort();
    wire::Admins {
        keys,
        threshold: 2,
        broker_threshold: 1,
    }
}

fn refused_admins(spoil: impl FnOnce(&mut wire::Admins)) -> &'static str {
    let mut admins = admins();
    spoil(&mut admins);
    refused_change(WireChange::ChangeAdmins(wire::ChangeAdmins { admins: Some(admins) }))
}

fn refused_lockbox(spoil: impl FnOnce(&mut wire::Lockbox)) -> &'static str {
    let mut lockbox = lockbox(40, "a").to_wire();
    spoil(&mut lockbox);
    refused_change(WireChange::AdmitLockbox(wire::AdmitLockbox { lockbox: Some(lockbox) }))
}

fn refused_allowance(spoil: impl FnOnce(&mut wire::AllowJoin)) -> &'static str {
    let mut allow = wire::AllowJoin {
        join_key: public(50).to_vec(),
        expires_at_ms: NOW_MS,
        labels: Vec::new(),
        name: String::new(),
    };
    spoil(&mut allow);
    refused_change(WireChange::AllowJoin(allow))
}

const CONTROL: &str = "a\u{1b}b";

#[test]
fn rejects_a_version_that_is_not_known() {
    assert_eq!(refused(|wire| wire.version = 0), "version");
    assert_eq!(refused(|wire| wire.version = 2), "version");
}

#[test]
fn rejects_a_cluster_id_of_another_length() {
    assert_eq!(refused(|wire| wire.cluster_id.clear()), "cluster_id");
    assert_eq!(refused(|wire| wire.cluster_id.truncate(31)), "cluster_id");
}

#[test]
fn rejects_a_previous_hash_of_another_length() {
    assert_eq!(refused(|wire| wire.previous.clear()), "previous");
    assert_eq!(refused(|wire| wire.previous.push(0)), "previous");
}

#[test]
fn rejects_a_time_before_1970() {
    assert_eq!(refused(|wire| wire.signed_at_ms = 0), "signed_at_ms");
    assert_eq!(refused(|wire| wire.signed_at_ms = -1), "signed_at_ms");
}

#[test]
fn rejects_an_entry_that_changes_nothing() {
    assert_eq!(refused(|wire| wire.change = None), "change");
}

#[test]
fn rejects_an_index_of_0_for_another_entry_than_genesis() {
    assert_eq!(refused(|wire| wire.index = 0), "index");
}

#[test]
fn rejects_a_genesis_at_another_index() {
    let field = refused_genesis(|wire| {
        wire.index = 1;
        wire.cluster_id = vec![1; 32];
        wire.previous = vec![2; 32];
    });
    assert_eq!(field, "index");
}

#[test]
fn rejects_a_genesis_that_names_a_cluster_or_a_previous_entry() {
    assert_eq!(refused_genesis(|wire| wire.cluster_id = vec![1; 32]), "genesis");
    assert_eq!(refused_genesis(|wire| wire.previous = vec![2; 32]), "genesis");
}

#[test]
fn rejects_a_cluster_name_that_is_empty_too_long_or_can_not_be_printed() {
    for name in [String::new(), "x".repeat(MAX_NAME_CHARS + 1), CONTROL.to_owned()] {
        assert_eq!(refused_founding(|genesis| genesis.cluster_name = name), "cluster_name");
    }
}

#[test]
fn rejects_a_nonce_of_another_length() {
    assert_eq!(refused_founding(|genesis| genesis.nonce.clear()), "nonce");
    assert_eq!(refused_founding(|genesis| genesis.nonce.truncate(31)), "nonce");
}

#[test]
fn rejects_a_genesis_without_admins() {
    assert_eq!(refused_founding(|genesis| genesis.admins = None), "admins");
}

#[test]
fn rejects_a_change_to_no_admins() {
    assert_eq!(
        refused_change(WireChange::ChangeAdmins(wire::ChangeAdmins { admins: None })),
        "admins"
    );
    assert_eq!(refused_admins(|admins| admins.keys.clear()), "admins");
}

#[test]
fn rejects_too_many_admins() {
    let mut keys: Vec<_> = (1..=17).map(|number| public(number).to_vec()).collect();
    keys.sort();
    assert_eq!(keys.len(), MAX_ADMINS + 1);
    assert_eq!(refused_admins(|admins| admins.keys = keys), "admins");
}

#[test]
fn rejects_admins_that_are_not_ascending_or_repeated() {
    assert_eq!(refused_admins(|admins| admins.keys.reverse()), "admins");
    assert_eq!(
        refused_admins(|admins| admins.keys[1] = admins.keys[0].clone()),
        "admins"
    );
}

#[test]
fn rejects_an_admin_that_is_no_key() {
    assert_eq!(refused_admins(|admins| admins.keys[0] = vec![0; 32]), "admins");
    assert_eq!(refused_admins(|admins| admins.keys[0].truncate(31)), "admins");
}

/// A threshold of 0 would let nobody decide, and one above the number of admins would lock all of them out.
#[test]
fn rejects_an_admin_threshold_that_is_out_of_bounds() {
    assert_eq!(refused_admins(|admins| admins.threshold = 0), "admin threshold");
    assert_eq!(refused_admins(|admins| admins.threshold = 4), "admin threshold");
}

#[test]
fn rejects_a_broker_threshold_that_is_out_of_bounds() {
    assert_eq!(refused_admins(|admins| admins.broker_threshold = 0), "broker threshold");
    assert_eq!(
        refused_admins(|admins| admins.broker_threshold = MAX_BROKER_THRESHOLD + 1),
        "broker threshold"
    );
}

#[test]
fn admins_are_put_in_their_order() {
    let admins = Admins::new(vec![public(3), public(1), public(2)], 1, 1).expect("three admins");
    assert!(admins.keys.is_sorted());
    assert!(Admins::new(vec![public(1), public(1)], 1, 1).is_err());
}

#[test]
fn rejects_an_admission_of_nobody() {
    let nobody = wire::AdmitLockbox { lockbox: None };
    assert_eq!(refused_change(WireChange::AdmitLockbox(nobody)), "lockbox");
}

#[test]
fn rejects_a_lockbox_id_of_another_length() {
    assert_eq!(refused_lockbox(|lockbox| lockbox.lockbox_id.truncate(15)), "lockbox_id");
    let retire = wire::RetireLockbox {
        lockbox_id: Vec::new(),
        reason: String::new(),
    };
    assert_eq!(refused_change(WireChange::RetireLockbox(retire)), "lockbox_id");
}

#[test]
fn rejects_a_lockbox_name_that_is_empty_too_long_or_can_not_be_printed() {
    for name in [String::new(), "x".repeat(MAX_NAME_CHARS + 1), CONTROL.to_owned()] {
        assert_eq!(refused_lockbox(|lockbox| lockbox.name = name), "name");
    }
}

#[test]
fn rejects_an_identity_key_that_is_no_key() {
    assert_eq!(
        refused_lockbox(|lockbox| lockbox.identity_key = vec![0; 32]),
        "identity_key"
    );
    assert_eq!(refused_lockbox(|lockbox| lockbox.identity_key.push(0)), "identity_key");
}

#[test]
fn rejects_a_lockbox_with_labels_that_break_their_rule() {
    let field = refused_lockbox(|lockbox| {
        lockbox.labels = vec![wire_label("zone", "a"), wire_label("env", "prod")];
    });
    assert_eq!(field, "labels");
    assert_eq!(
        refused_lockbox(|lockbox| lockbox.labels = vec![wire_label("Zone", "a")]),
        "label key"
    );
}

#[test]
fn rejects_a_broker_name_that_is_empty_too_long_or_can_not_be_printed() {
    for name in [String::new(), "x".repeat(MAX_NAME_CHARS + 1), CONTROL.to_owned()] {
        let admit = wire::AdmitBroker {
            name,
            signing_key: public(20).to_vec(),
        };
        assert_eq!(refused_change(WireChange::AdmitBroker(admit)), "name");
    }
}

#[test]
fn rejects_a_signing_key_that_is_no_key() {
    let admit = wire::AdmitBroker {
        name: "broker".to_owned(),
        signing_key: vec![0; 32],
    };
    assert_eq!(refused_change(WireChange::AdmitBroker(admit)), "signing_key");
    let retire = wire::RetireBroker {
        signing_key: vec![1; 31],
        reason: String::new(),
    };
    assert_eq!(refused_change(WireChange::RetireBroker(retire)), "signing_key");
}

#[test]
fn rejects_a_reason_that_is_too_long_or_can_not_be_printed() {
    for reason in ["x".repeat(MAX_REASON_CHARS + 1), CONTROL.to_owned()] {
        let lockbox = wire::RetireLockbox {
            lockbox_id: vec![1; 16],
            reason: reason.clone(),
        };
        assert_eq!(refused_change(WireChange::RetireLockbox(lockbox)), "reason");
        let broker = wire::RetireBroker {
            signing_key: public(20).to_vec(),
            reason,
        };
        assert_eq!(refused_change(WireChange::RetireBroker(broker)), "reason");
    }
}

#[test]
fn rejects_a_join_key_that_is_no_key() {
    assert_eq!(refused_allowance(|allow| allow.join_key = vec![0; 32]), "join_key");
    assert_eq!(refused_allowance(|allow| allow.join_key.clear()), "join_key");
    let revoke = wire::RevokeJoin { join_key: vec![1; 33] };
    assert_eq!(refused_change(WireChange::RevokeJoin(revoke)), "join_key");
}

#[test]
fn rejects_an_allowance_without_a_date() {
    assert_eq!(refused_allowance(|allow| allow.expires_at_ms = 0), "expires_at_ms");
}

#[test]
fn rejects_an_allowance_whose_name_or_labels_break_their_rule() {
    assert_eq!(
        refused_allowance(|allow| allow.name = "x".repeat(MAX_NAME_CHARS + 1)),
        "name"
    );
    assert_eq!(refused_allowance(|allow| allow.name = CONTROL.to_owned()), "name");
    assert_eq!(
        refused_allowance(|allow| allow.labels = vec![wire_label("", "a")]),
        "label key"
    );
}

#[test]
fn names_of_the_greatest_length_are_read() {
    let mut lockbox = lockbox(40, "a").to_wire();
    lockbox.name = "ж".repeat(MAX_NAME_CHARS);
    accepted::<RosterEntry>(entry(WireChange::AdmitLockbox(wire::AdmitLockbox {
        lockbox: Some(lockbox),
    })));
    accepted::<RosterEntry>(entry(WireChange::ChangeAdmins(wire::ChangeAdmins {
        admins: Some(admins()),
    })));
}

#[test]
fn each_change_has_a_name_of_its_own() {
    let admins = Admins::new(vec![public(1)], 1, 1).expect("one admin");
    let founding = Change::Genesis(Genesis {
        cluster_name: "test".to_owned(),
        admins: admins.clone(),
        nonce: [0; 32],
    });
    let mut names = vec![
        founding.describe(),
        Change::AdmitLockbox(lockbox(40, "a")).describe(),
        support::retire_lockbox(40).describe(),
        support::admit_broker(20, "broker").describe(),
        support::retire_broker(20).describe(),
        Change::ChangeAdmins(admins).describe(),
        support::allow_join(50, None).describe(),
        Change::RevokeJoin { join_key: public(50) }.describe(),
    ];
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 8);
}
