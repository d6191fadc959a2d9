//! The life of a key, step by step.

use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::id::KeyId;
use lockbox_authz::impact::{Kinship, Progress, Remedy};

use super::LifecycleError;
use super::change::KeyChange;
use super::derive::{DeriveRequest, Relation};
use super::destruction::Erase;
use super::job::opened_proof;
use super::state::{TABLE, may_follow};
use crate::keys::KeyRequest;
use crate::lockbox::LockboxError;
use crate::record::{ClonePolicy, Consumer, KeyState, TransferPolicy};
use crate::testing::{Cluster, Node};
use crate::transfer::tests::carry;

mod destruction;
mod inventory;
mod jobs;
mod layers;
mod naming;
mod notice;
mod oracle;
mod repairs;

const ANY: ClonePolicy = ClonePolicy {
    share: true,
    rekey: true,
    layer: true,
};

fn node() -> Node {
    Node::new("a", 1)
}

fn make(node: &mut Node, clone_policy: ClonePolicy) -> KeyId {
    let request = KeyRequest {
        name: node.free_name("volume"),
        clone_policy,
        ..KeyRequest::default()
    };
    node.step(|lockbox, now, rng| lockbox.create_key(request, None, now, rng))
        .expect("a good request")
        .key_id
}

fn derive(node: &mut Node, parent: KeyId, relation: Relation) -> Result<KeyId, LockboxError> {
    node.derive(parent, relation)
}

fn set_state(node: &mut Node, key: KeyId, state: KeyState) -> Result<(), LockboxError> {
    let change = KeyChange {
        state: Some(state),
        ..KeyChange::default()
    };
    node.step(|lockbox, _, rng| lockbox.set_key(key, change, rng)).map(drop)
}

/// Says that all data is under the new key, and opens it.
fn finish(node: &mut Node, job: KeyId) {
    node.step(|lockbox, now, rng| lockbox.job_progress(job, 100, now, rng))
        .expect("it is open");
    verify(node, job).expect("all data is under the new key");
}

fn verify(node: &mut Node, job: KeyId) -> Result<(), LockboxError> {
    let proof = opened_proof(job, "cryptsetup", &node.reveal(job));
    node.step(|lockbox, now, rng| lockbox.job_verified(job, "cryptsetup", &proof, now, rng))
        .map(drop)
}

fn done(node: &mut Node, job: KeyId) -> Result<super::job::JobDone, LockboxError> {
    node.step(|lockbox, now, rng| lockbox.job_done(job, Erase::Now, now, rng))
}

/// Ends a job at this run time, and gives the old key this grace time.
fn done_later(node: &mut Node, job: KeyId, run_ms: u64, grace_ms: u64) -> Result<super::job::JobDone, LockboxError> {
    let when = Erase::Later { grace_ms, run_ms };
    node.step(|lockbox, now, rng| lockbox.job_done(job, when, now, rng))
}

fn destroy(node: &mut Node, key: KeyId, force: bool) -> Result<Vec<KeyId>, LockboxError> {
    let gone = node.step(|lockbox, now, rng| lockbox.destroy_key(key, force, now, rng))?;
    Ok(gone.remaining)
}

fn consumer(id: &str) -> Consumer {
    Consumer {
        service: "cinder".to_owned(),
        resource_type: "volume".to_owned(),
        resource_id: id.to_owned(),
    }
}

/// SPEC section 8.1, as a table of all pairs.
#[test]
fn states_follow_each_other_as_the_table_says() {
    use KeyState::{Active, Compromised, Deactivated, Suspended};
    let held = [Active, Suspended, Deactivated, Compromised];
    #[rustfmt::skip]
    let allowed = [
        // to:  active suspended deactivated compromised
        [true,  true,  true,  true],  // from active
        [true,  true,  true,  true],  // from suspended
        [false, false, true,  true],  // from deactivated
        [false, false, false, true],  // from compromised
    ];
    for (from, row) in held.iter().zip(allowed) {
        for (to, allowed) in held.iter().zip(row) {
            assert_eq!(may_follow(*from, *to), allowed, "{from:?} to {to:?}");
        }
    }
    assert_eq!(TABLE.map(|(state, _)| state), held);
}

#[test]
fn a_key_goes_where_its_state_lets_it_go_and_nowhere_else() {
    let held = [KeyState::Active, KeyState::Suspended, KeyState::Deactivated];
    for from in held {
        for to in held {
            let mut node = node();
            let key = make(&mut node, ANY);
            set_state(&mut node, key, from).expect("from active everything follows");
            let outcome = set_state(&mut node, key, to);
            assert_eq!(outcome.is_ok(), may_follow(from, to), "{from:?} to {to:?}");
        }
    }
    let mut node = node();
    let key = make(&mut node, ANY);
    let refused = set_state(&mut node, key, KeyState::Compromised).expect_err("that is not set, but found");
    assert!(matches!(
        refused,
        LockboxError::Lifecycle(LifecycleError::Transition { .. })
    ));
}

#[test]
fn a_suspended_key_is_given_to_nobody() {
    let mut node = node();
    let key = make(&mut node, ANY);
    set_state(&mut node, key, KeyState::Suspended).expect("it may be");
    assert!(node.lockbox().reveal_key(key).is_err());
    set_state(&mut node, key, KeyState::Active).expect("it may be again");
    node.reveal(key);
}

#[test]
fn a_key_with_consumers_is_destroyed_only_with_force_and_the_refusal_lists_them() {
    let mut node = node();
    let key = make(&mut node, ANY);
    for id in ["vol-1", "vol-2", "vol-1"] {
        node.step(|lockbox, _, rng| lockbox.add_consumer(key, consumer(id), rng))
            .expect("it is registered");
    }
    let refused = destroy(&mut node, key, false).expect_err("it is in use").to_string();
    assert!(
        refused.contains("cinder/volume/vol-1, cinder/volume/vol-2"),
        "{refused}"
    );
    node.step(|lockbox, _, rng| lockbox.remove_consumer(key, &consumer("vol-1"), rng))
        .expect("it was registered");
    let unknown = node.step(|lockbox, _, rng| lockbox.remove_consumer(key, &consumer("vol-1"), rng));
    assert!(matches!(
        unknown,
        Err(LockboxError::Lifecycle(LifecycleError::NoConsumer { .. }))
    ));
    destroy(&mut node, key, true).expect("force is force");
}

#[test]
fn a_clone_is_what_the_policy_allows_and_nothing_else() {
    for (policy, relation, allowed) in [
        (ClonePolicy::default(), Relation::Snapshot, false),
        (ClonePolicy::default(), Relation::Share, false),
        (ClonePolicy::default(), Relation::Rekey, false),
        (ClonePolicy::default(), Relation::Layer, false),
        (ClonePolicy::default(), Relation::Rotate, true),
        (only(true, false, false), Relation::Snapshot, true),
        (only(true, false, false), Relation::Share, true),
        (only(true, false, false), Relation::Rekey, false),
        (only(false, true, false), Relation::Rekey, true),
        (only(false, true, false), Relation::Layer, false),
        (only(false, false, true), Relation::Layer, true),
        (only(false, false, true), Relation::Share, false),
    ] {
        let mut node = node();
        let parent = make(&mut node, policy);
        let outcome = derive(&mut node, parent, relation);
        assert_eq!(outcome.is_ok(), allowed, "{relation:?} under {policy:?}");
        let Ok(child) = outcome else { continue };
        let same = node.reveal(child) == node.reveal(parent);
        assert_eq!(same, relation.shares(), "{relation:?}");
        let info = node.lockbox().reveal_key(child).expect("it is here").info;
        assert_eq!(info.clone_policy, policy, "a clone is no freer than its parent");
    }
}

fn only(share: bool, rekey: bool, layer: bool) -> ClonePolicy {
    ClonePolicy { share, rekey, layer }
}

#[test]
fn a_repeated_request_makes_no_second_clone() {
    let mut node = node();
    let parent = make(&mut node, ANY);
    let request = DeriveRequest {
        parent,
        relation: Relation::Share,
        key_id: Some(KeyId([7; 16])),
        name: None,
        labels: None,
    };
    for _ in 0..2 {
        let again = request.clone();
        node.step(|lockbox, now, rng| lockbox.derive_key(again, now, rng))
            .expect("it is the same");
    }
    let other = DeriveRequest {
        relation: Relation::Rekey,
        ..request
    };
    let refused = node.step(|lockbox, now, rng| lockbox.derive_key(other, now, rng));
    assert!(matches!(refused, Err(LockboxError::KeyExists(_))));
}

#[test]
fn a_material_dies_with_its_last_key() {
    let mut node = node();
    let parent = make(&mut node, ANY);
    let secret = node.reveal(parent);
    let snapshot = derive(&mut node, parent, Relation::Snapshot).expect("it may");
    let clone = derive(&mut node, snapshot, Relation::Share).expect("it may");
    let mut both = vec![snapshot, clone];
    both.sort();
    assert_eq!(destroy(&mut node, parent, false).expect("it may go"), both);
    assert_eq!(destroy(&mut node, snapshot, false).expect("it may go"), [clone]);
    assert_eq!(node.reveal(clone), secret);
    assert_eq!(destroy(&mut node, clone, false).expect("it may go"), []);
}

#[test]
fn rejects_destroying_what_a_layer_lies_on() {
    let mut node = node();
    let base = make(&mut node, ANY);
    let layer = derive(&mut node, base, Relation::Layer).expect("it may");
    verify(&mut node, layer).expect("it opened");
    done(&mut node, layer).expect("it is verified");
    let refused = destroy(&mut node, base, true)
        .expect_err("old blocks need it")
        .to_string();
    assert!(refused.contains(&layer.to_string()), "{refused}");
    destroy(&mut node, layer, false).expect("nothing lies on it");
    destroy(&mut node, base, false).expect("nothing lies on it any more");
}

#[test]
fn rejects_a_clone_of_what_is_compromised() {
    let mut node = node();
    let key = make(&mut node, ANY);
    node.step(|lockbox, _, rng| lockbox.compromise_key(key, rng))
        .expect("it is known");
    for relation in [Relation::Snapshot, Relation::Share, Relation::Layer] {
        let refused = derive(&mut node, key, relation).expect_err("it would spread");
        assert!(matches!(refused, LockboxError::Lifecycle(LifecycleError::State { .. })));
    }
}

#[test]
fn rejects_a_change_of_a_key_on_its_way() {
    let mut cluster = Cluster::new();
    let key = make(&mut cluster.a, ANY);
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key]));
    let head = cluster.roster.head();
    let peer = cluster.b.lockbox().identity().public_key();
    let message = crate::transfer::Present {
        authorization: authorization.envelope().to_bytes(),
        roster_head: head,
    };
    cluster
        .a
        .step(|lockbox, now, rng| crate::transfer::source::AwaitPresent::new(peer).present(lockbox, &message, now, rng))
        .map(drop)
        .expect("it is permitted");
    for refused in [
        set_state(&mut cluster.a, key, KeyState::Suspended),
        derive(&mut cluster.a, key, Relation::Share).map(drop),
        destroy(&mut cluster.a, key, true).map(drop),
    ] {
        assert!(matches!(refused, Err(LockboxError::KeyInTransfer { .. })));
    }
}

#[test]
fn compromise_marks_every_key_of_the_material_and_impact_tells_deep_from_shallow() {
    let mut node = node();
    let volume = make(&mut node, ANY);
    let snapshot = derive(&mut node, volume, Relation::Snapshot).expect("it may");
    let layer = derive(&mut node, snapshot, Relation::Layer).expect("it may");
    let rekeyed = derive(&mut node, volume, Relation::Rekey).expect("it may");
    let under_way = derive(&mut node, volume, Relation::Rekey).expect("it may");
    let stranger = make(&mut node, ANY);
    finish(&mut node, rekeyed);
    done(&mut node, rekeyed).expect("it is verified");
    node.step(|lockbox, now, rng| lockbox.job_progress(under_way, 30, now, rng))
        .expect("it runs");

    let marked = node
        .step(|lockbox, _, rng| lockbox.compromise_key(snapshot, rng))
        .expect("it is known");
    assert_eq!(marked.len(), 2);
    let impact = node.lockbox().impact(snapshot).expect("undamaged");
    let of = |key: KeyId| {
        let found = impact.findings.iter().find(|found| found.holding.entry.key_id == key);
        found.map(|found| (found.kinship, found.remedy, found.progress))
    };
    assert_eq!(of(volume), Some((Kinship::Material, Remedy::Deep, Progress::Open)));
    assert_eq!(of(snapshot), Some((Kinship::Material, Remedy::Deep, Progress::Open)));
    assert_eq!(of(layer), Some((Kinship::Layer, Remedy::Deep, Progress::Open)));
    assert_eq!(
        of(under_way),
        Some((Kinship::Rekeying, Remedy::Deep, Progress::Running(30)))
    );
    assert_eq!(
        of(rekeyed),
        Some((Kinship::Descendant, Remedy::Shallow, Progress::Done))
    );
    assert_eq!(of(stranger), None);
}

#[test]
fn lineage_and_policy_travel_byte_for_byte() {
    for operation in [Operation::Copy, Operation::Move] {
        let mut cluster = Cluster::new();
        let base = make(&mut cluster.a, ANY);
        let layer = derive(&mut cluster.a, base, Relation::Layer).expect("it may");
        verify(&mut cluster.a, layer).expect("it opened");
        done(&mut cluster.a, layer).expect("it is verified");
        let change = KeyChange {
            transfer_policy: Some(TransferPolicy {
                required_target_labels: lockbox_authz::Labels::parse(["zone=b"]).expect("a label"),
                ..TransferPolicy::default()
            }),
            ..KeyChange::default()
        };
        cluster
            .a
            .step(|lockbox, _, rng| lockbox.set_key(layer, change, rng))
            .expect("it may");
        cluster
            .a
            .step(|lockbox, _, rng| lockbox.add_consumer(layer, consumer("vol-1"), rng))
            .expect("it may");
        let mut ids = vec![base, layer];
        ids.sort();
        let sent: Vec<_> = ids.iter().map(|id| encoded(&cluster.a, *id)).collect();
        let authorization = cluster.authorize(operation, Selection::Ids(ids.clone()));
        carry(&mut cluster.a, &mut cluster.b, &authorization).expect("the chain travels as one");
        let arrived: Vec<_> = ids.iter().map(|id| encoded(&cluster.b, *id)).collect();
        assert_eq!(sent, arrived);
        let refused = destroy(&mut cluster.b, base, true).expect_err("the layer came, too");
        assert!(matches!(
            refused,
            LockboxError::Lifecycle(LifecycleError::Layered { .. })
        ));
    }
}

fn encoded(node: &Node, key: KeyId) -> Vec<u8> {
    node.lockbox().reveal_key(key).expect("it is here").encode().to_vec()
}

/// A thief of one node must not be helped by a copy that does not know of it.
#[test]
fn a_copy_learns_of_the_compromise_when_the_key_comes_again() {
    let mut cluster = Cluster::new();
    let key = make(&mut cluster.a, ANY);
    let copy = cluster.authorize(Operation::Copy, Selection::Ids(vec![key]));
    carry(&mut cluster.a, &mut cluster.b, &copy).expect("it is copied");
    cluster
        .a
        .step(|lockbox, _, rng| lockbox.compromise_key(key, rng))
        .expect("it is known");
    let moved = cluster.authorize(Operation::Move, Selection::Ids(vec![key]));
    carry(&mut cluster.a, &mut cluster.b, &moved).expect("it is moved");
    let info = cluster.b.lockbox().reveal_key(key).expect("it is here").info;
    assert_eq!(info.state, KeyState::Compromised);
}

#[test]
fn an_inventory_in_pages_has_every_key_once() {
    let mut cluster = Cluster::new();
    for _ in 0..300 {
        make(&mut cluster.a, ANY);
    }
    let gone = make(&mut cluster.a, ANY);
    destroy(&mut cluster.a, gone, false).expect("it may go");
    let mut after = None;
    let mut seen = Vec::new();
    loop {
        let now_ms = cluster.a.now_ms;
        let report = cluster
            .a
            .lockbox()
            .inventory_report(after, true, now_ms)
            .expect("it has a cluster")
            .report
            .expect("every key can be read");
        let identity = cluster.a.lockbox().identity();
        let bytes = report.envelope().to_bytes();
        let envelope = lockbox_authz::UnverifiedEnvelope::from_bytes(&bytes).expect("within bounds");
        let verified = lockbox_authz::InventoryReport::verify(
            &envelope,
            identity.public_key(),
            cluster.roster.cluster_id(),
            identity.lockbox_id,
        );
        let report = verified.expect("it is canonical").statement().clone();
        seen.extend(report.entries.iter().map(|entry| entry.key_id));
        after = report.last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 301);
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]) && seen.contains(&gone));
}
