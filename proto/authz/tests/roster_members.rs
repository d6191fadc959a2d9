//! Each rule by which membership changes: SPEC section 2.3. Those of join keys stand in `join.rs`.

mod support;

use lockbox_authz::id::LockboxId;
use lockbox_authz::roster::{Change, Lockbox};
use support::{
    ADMIN, BROKER, Cluster, admit_broker, allow_join, change_admins, lockbox, public, retire_broker, retire_lockbox,
};

const A: u8 = 40;
const B: u8 = 41;
const JOIN: u8 = 50;

const ONE_ROLE: &str = "a key is admitted once, in one role";

fn admit(number: u8, name: &str) -> Change {
    Change::AdmitLockbox(lockbox(number, name))
}

/// A lockbox with an id of its own and somebody's key.
fn admit_key(number: u8) -> Change {
    Change::AdmitLockbox(Lockbox {
        lockbox_id: LockboxId([0xee; 16]),
        ..lockbox(number, "new")
    })
}

/// One admin, one broker, one lockbox, and a join key that is allowed.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.apply(admit_broker(BROKER, "broker"));
    cluster.apply(admit(A, "a"));
    cluster.apply(allow_join(JOIN, None));
    cluster
}

#[test]
fn members_are_those_that_were_admitted_and_not_retired() {
    let mut cluster = cluster();
    cluster.apply(admit(B, "b"));
    cluster.apply(retire_lockbox(A));
    let roster = &cluster.roster;
    assert!(roster.admitted(&LockboxId([A; 16])).is_none());
    assert!(roster.admitted_by_key(&public(A)).is_none());
    assert!(roster.lockbox(&LockboxId([A; 16])).is_some_and(|member| member.retired));
    assert_eq!(roster.admitted(&LockboxId([B; 16])), Some(&lockbox(B, "b")));
    assert_eq!(roster.lockboxes().count(), 2);
    cluster.apply(retire_broker(BROKER));
    assert!(cluster.roster.broker_keys().is_empty());
    assert!(cluster.roster.brokers()[0].retired);
}

#[test]
fn rejects_a_lockbox_id_twice() {
    let again = Change::AdmitLockbox(Lockbox {
        lockbox_id: LockboxId([A; 16]),
        ..lockbox(B, "b")
    });
    assert_eq!(cluster().refused_rule(again), "a lockbox id is admitted once");
}

#[test]
fn rejects_a_retired_lockbox_that_comes_back() {
    let mut cluster = cluster();
    cluster.apply(retire_lockbox(A));
    assert_eq!(cluster.refused_rule(admit(A, "a")), "a lockbox id is admitted once");
    assert_eq!(cluster.refused_rule(admit_key(A)), ONE_ROLE);
}

#[test]
fn rejects_a_lockbox_with_a_key_that_has_a_role() {
    for number in [ADMIN, BROKER, A, JOIN] {
        assert_eq!(cluster().refused_rule(admit_key(number)), ONE_ROLE, "key {number}");
    }
}

#[test]
fn rejects_a_broker_with_a_key_that_has_a_role() {
    for number in [ADMIN, BROKER, A, JOIN] {
        let change = admit_broker(number, "second");
        assert_eq!(cluster().refused_rule(change), ONE_ROLE, "key {number}");
    }
}

#[test]
fn rejects_a_retired_broker_that_comes_back() {
    let mut cluster = cluster();
    cluster.apply(retire_broker(BROKER));
    assert_eq!(cluster.refused_rule(admit_broker(BROKER, "broker")), ONE_ROLE);
}

#[test]
fn rejects_a_join_key_that_has_a_role() {
    for number in [ADMIN, BROKER, A, JOIN] {
        assert_eq!(
            cluster().refused_rule(allow_join(number, None)),
            ONE_ROLE,
            "key {number}"
        );
    }
}

#[test]
fn rejects_an_admin_with_a_key_that_has_a_role() {
    const RULE: &str = "an admin's key has another role already";
    let mut cluster = cluster();
    for number in [BROKER, A, JOIN] {
        let change = change_admins(&[ADMIN, number], 1);
        assert_eq!(cluster.refused_rule(change), RULE, "key {number}");
    }
    // Retirement does not free a key for another role.
    cluster.apply(retire_lockbox(A));
    assert_eq!(cluster.refused_rule(change_admins(&[A], 1)), RULE);
}

/// A key that was taken from its admin, because it leaked perhaps, must not come back as anything.
#[test]
fn rejects_a_former_admin_in_any_role() {
    let mut cluster = cluster();
    cluster.apply(change_admins(&[ADMIN, 2], 1));
    cluster.apply(change_admins(&[ADMIN, 3], 1));
    assert_eq!(cluster.refused_rule(admit_key(2)), ONE_ROLE);
    assert_eq!(cluster.refused_rule(admit_broker(2, "second")), ONE_ROLE);
    assert_eq!(cluster.refused_rule(allow_join(2, None)), ONE_ROLE);
    assert_eq!(
        cluster.refused_rule(change_admins(&[ADMIN, 2], 1)),
        "a former admin's key does not come back"
    );
}

#[test]
fn an_admin_may_stay_one() {
    let mut cluster = cluster();
    cluster.apply(change_admins(&[ADMIN, 2], 1));
    assert_eq!(cluster.roster.admins().keys.len(), 2);
}

#[test]
fn rejects_a_lockbox_name_that_is_taken() {
    let mut cluster = cluster();
    assert_eq!(cluster.refused_rule(admit(B, "a")), "another lockbox has this name");
    // The machine's successor may have its name.
    cluster.apply(retire_lockbox(A));
    cluster.apply(admit(B, "a"));
}

#[test]
fn rejects_a_broker_name_that_is_taken() {
    let mut cluster = cluster();
    assert_eq!(
        cluster.refused_rule(admit_broker(21, "broker")),
        "another broker has this name"
    );
    cluster.apply(retire_broker(BROKER));
    cluster.apply(admit_broker(21, "broker"));
}

#[test]
fn rejects_retiring_a_lockbox_that_is_unknown_or_retired() {
    const RULE: &str = "only an admitted lockbox can be retired";
    let mut cluster = cluster();
    assert_eq!(cluster.refused_rule(retire_lockbox(B)), RULE);
    cluster.apply(retire_lockbox(A));
    assert_eq!(cluster.refused_rule(retire_lockbox(A)), RULE);
}

#[test]
fn rejects_retiring_a_broker_that_is_unknown_or_retired() {
    const RULE: &str = "only an admitted broker can be retired";
    let mut cluster = cluster();
    assert_eq!(cluster.refused_rule(retire_broker(21)), RULE);
    assert_eq!(cluster.refused_rule(retire_broker(A)), RULE, "a lockbox is no broker");
    cluster.apply(retire_broker(BROKER));
    assert_eq!(cluster.refused_rule(retire_broker(BROKER)), RULE);
}
