//! Compromise notices: what is here is marked, what comes later is marked, and nobody but the admins can make one.

use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::envelope::EnvelopeError;
use lockbox_authz::id::{ClusterId, Hash, KeyId, MaterialId, NoticeId};
use lockbox_authz::keys::{SecretKey, Signer};
use lockbox_authz::notice::{self, CompromiseNotice};
use lockbox_authz::roster::{Admins, Change};
use lockbox_authz::{UnverifiedEnvelope, Verified};

use super::{ANY, derive, make};
use crate::lifecycle::derive::Relation;
use crate::lifecycle::notice::NoticeError;
use crate::lockbox::LockboxError;
use crate::permit::Refusal;
use crate::record::KeyState;
use crate::rows::Row;
use crate::step::Step;
use crate::testing::{Cluster, Node};
use crate::transfer::source::SourceError;
use crate::transfer::tests::carry;
use crate::vault::Changes;

fn statement(cluster: &Cluster, materials: &[MaterialId]) -> CompromiseNotice {
    let mut material_ids = materials.to_vec();
    material_ids.sort_unstable();
    CompromiseNotice {
        cluster_id: cluster.roster.cluster_id(),
        notice_id: NoticeId([7; 16]),
        issued_at_ms: crate::testing::NOW_MS,
        material_ids,
        reason: "a test".to_owned(),
    }
}

fn signed(cluster: &Cluster, materials: &[MaterialId]) -> UnverifiedEnvelope {
    Verified::sign(statement(cluster, materials), &cluster.admin)
        .envelope()
        .clone()
}

fn material_of(node: &Node, key: KeyId) -> MaterialId {
    node.lockbox().reveal_key(key).expect("it is here").info.material_id
}

fn state(node: &Node, key: KeyId) -> KeyState {
    node.lockbox().reveal_key(key).expect("it is here").info.state
}

/// Applies it to its end. Gives how many keys it names here, how many were marked, and in how many steps.
fn apply(node: &mut Node, notice: &UnverifiedEnvelope) -> Result<(u64, usize, usize), NoticeError> {
    let (mut keys, mut marked, mut steps, mut after) = (0, 0, 0, None);
    loop {
        let applied = node.step(|lockbox, now, rng| lockbox.apply_notice(notice, after, now, rng))?;
        keys += applied.key_count;
        marked += applied.marked.len();
        steps += 1;
        after = applied.next;
        if after.is_none() {
            return Ok((keys, marked, steps));
        }
    }
}

/// That a notice is refused, and that not one byte has changed.
fn refused(node: &mut Node, notice: &UnverifiedEnvelope) -> NoticeError {
    let before = node.stored();
    let refused = apply(node, notice).expect_err("the notice was taken");
    assert_eq!(node.stored(), before, "a refused notice changed something");
    refused
}

#[test]
fn every_key_of_the_named_materials_is_marked_and_no_other() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let snapshot = derive(&mut cluster.a, volume, Relation::Snapshot).expect("it may");
    let rekeyed = derive(&mut cluster.a, volume, Relation::Rekey).expect("it may");
    let other = make(&mut cluster.a, ANY);
    let stranger = make(&mut cluster.a, ANY);
    let materials = [material_of(&cluster.a, volume), material_of(&cluster.a, other)];
    let notice = signed(&cluster, &materials);
    assert_eq!(apply(&mut cluster.a, &notice).expect("it is the admins'"), (3, 3, 2));
    cluster.a.restart();
    for key in [volume, snapshot, other] {
        assert_eq!(state(&cluster.a, key), KeyState::Compromised);
    }
    for key in [rekeyed, stranger] {
        assert_eq!(state(&cluster.a, key), KeyState::Active, "it has material of its own");
    }
}

#[test]
fn a_notice_that_comes_again_changes_nothing() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let notice = signed(&cluster, &[material_of(&cluster.a, volume)]);
    apply(&mut cluster.a, &notice).expect("it is the admins'");
    let before = cluster.a.stored();
    assert_eq!(apply(&mut cluster.a, &notice).expect("it is no error"), (1, 0, 1));
    assert_eq!(cluster.a.stored(), before);
}

/// With more keys than a step looks at, each is marked once, and a power cut between two steps loses none.
#[test]
fn a_notice_of_many_keys_takes_many_steps_and_may_be_cut_off_between_them() {
    let mut cluster = Cluster::new();
    let mut keys = Vec::new();
    for _ in 0..3 {
        let volume = make(&mut cluster.a, ANY);
        keys.push(volume);
        for _ in 0..5 {
            keys.push(derive(&mut cluster.a, volume, Relation::Snapshot).expect("it may"));
        }
    }
    let materials: Vec<_> = [0, 6, 12]
        .iter()
        .map(|index| material_of(&cluster.a, keys[*index]))
        .collect();
    let notice = signed(&cluster, &materials);
    let mut after = None;
    // The first step remembers the materials.
    for _ in 0..2 {
        let step = cluster
            .a
            .step(|lockbox, now, rng| lockbox.apply_notice(&notice, after, now, rng));
        after = step.expect("it is the admins'").next;
        assert!(after.is_some());
    }
    cluster.a.restart();
    let unmarked = keys.iter().filter(|key| state(&cluster.a, **key) == KeyState::Active);
    let unmarked = unmarked.count();
    assert!(unmarked > 0 && unmarked < keys.len());
    let (named, marked, steps) = apply(&mut cluster.a, &notice).expect("it goes on");
    assert_eq!((named, marked), (18, unmarked), "each is counted once");
    assert!(steps > 3, "{steps}");
    assert!(keys.iter().all(|key| state(&cluster.a, *key) == KeyState::Compromised));
}

/// Rows that came after the keys of the same step could be missing after a power cut, when the keys of a transfer arrive.
#[test]
fn every_material_is_remembered_before_the_first_key_is_marked() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let materials = [material_of(&cluster.a, volume), MaterialId([0xff; 16])];
    let notice = signed(&cluster, &materials);
    let first = cluster
        .a
        .step(|lockbox, now, rng| lockbox.apply_notice(&notice, None, now, rng))
        .expect("it is the admins'");
    assert!(first.marked.is_empty() && first.next.is_some());
    cluster.a.restart();
    assert_eq!(state(&cluster.a, volume), KeyState::Active);
    for material in materials {
        assert!(cluster.a.lockbox().is_noticed(material).expect("undamaged"));
    }
    assert_eq!(apply(&mut cluster.a, &notice).expect("it goes on"), (1, 1, 1));
}

/// Whoever can damage one record could otherwise keep every other key from being marked.
#[test]
fn a_damaged_record_keeps_no_other_key_from_being_marked() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let snapshots: Vec<_> = (0..6)
        .map(|_| derive(&mut cluster.a, volume, Relation::Snapshot).expect("it may"))
        .collect();
    let other = make(&mut cluster.a, ANY);
    let notice = signed(
        &cluster,
        &[material_of(&cluster.a, volume), material_of(&cluster.a, other)],
    );
    let damaged = [volume, snapshots[2]];
    for key in damaged {
        cluster.a.damage(key);
    }
    assert_eq!(apply(&mut cluster.a, &notice).expect("it is no reason to refuse").1, 6);
    for key in snapshots.iter().chain([&other]).filter(|key| !damaged.contains(key)) {
        assert_eq!(state(&cluster.a, *key), KeyState::Compromised);
    }
}

/// Otherwise a snapshot that is made between two steps would stay unmarked for ever.
#[test]
fn rejects_a_snapshot_of_what_a_notice_named_and_has_not_marked_yet() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let row = Row::Noticed(material_of(&cluster.a, volume));
    cluster
        .a
        .step(|lockbox, _, rng| {
            let mut changes = Changes::default();
            changes.put(row, Vec::new());
            Ok::<_, LockboxError>(Step::new(lockbox.vault.stage(changes, rng)?, ()))
        })
        .expect("memory does not fail");
    let before = cluster.a.stored();
    for relation in [Relation::Snapshot, Relation::Share, Relation::Layer] {
        derive(&mut cluster.a, volume, relation).expect_err("its turn comes");
    }
    assert_eq!(cluster.a.stored(), before);
}

/// A key whose material was noticed where it was not comes there later, from a lockbox that was never told.
#[test]
fn a_key_that_arrives_after_the_notice_is_marked_in_the_step_that_takes_it() {
    for operation in [Operation::Copy, Operation::Move] {
        let mut cluster = Cluster::new();
        let volume = make(&mut cluster.a, ANY);
        let stranger = make(&mut cluster.a, ANY);
        let notice = signed(&cluster, &[material_of(&cluster.a, volume)]);
        assert_eq!(apply(&mut cluster.b, &notice).expect("it is the admins'"), (0, 0, 2));
        cluster.b.restart();
        let mut ids = vec![volume, stranger];
        ids.sort_unstable();
        let authorization = cluster.authorize(operation, Selection::Ids(ids));
        carry(&mut cluster.a, &mut cluster.b, &authorization).expect("the source was not told");
        assert_eq!(state(&cluster.b, volume), KeyState::Compromised);
        assert_eq!(state(&cluster.b, stranger), KeyState::Active);
    }
}

#[test]
fn a_key_that_is_on_its_way_is_marked_too_and_copied_no_more() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![volume]));
    crate::transfer::tests::begin(&mut cluster.a, &mut cluster.b, &authorization);
    let notice = signed(&cluster, &[material_of(&cluster.a, volume)]);
    apply(&mut cluster.a, &notice).expect("that strangers know it does not wait");
    assert_eq!(state(&cluster.a, volume), KeyState::Compromised);
    carry(&mut cluster.a, &mut cluster.b, &authorization).expect("the move goes on");
    assert_eq!(state(&cluster.b, volume), KeyState::Compromised);
    let copy = cluster.authorize_back(Operation::Copy, Selection::Ids(vec![volume]));
    let refused = carry(&mut cluster.b, &mut cluster.a, &copy).expect_err("step 12");
    assert!(matches!(
        refused,
        SourceError::Refused(Refusal::State { key, state: "compromised" }) if key == volume
    ));
}

#[test]
fn rejects_a_notice_that_the_broker_signed() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let statement = statement(&cluster, &[material_of(&cluster.a, volume)]);
    let by_broker = Verified::sign(statement, &cluster.broker);
    let refused = refused(&mut cluster.a, by_broker.envelope());
    assert!(matches!(refused, NoticeError::Refused(error) if error.is_about_signers()));
}

#[test]
fn rejects_a_notice_that_too_few_admins_signed() {
    let mut cluster = Cluster::new();
    let second = SecretKey::generate(&mut cluster.rng);
    let keys = vec![cluster.admin.public_key(), second.public_key()];
    cluster.change(Change::ChangeAdmins(Admins::new(keys, 2, 1).expect("two admins")));
    cluster.sync();
    let volume = make(&mut cluster.a, ANY);
    let mut notice = signed(&cluster, &[material_of(&cluster.a, volume)]);
    let too_few = refused(&mut cluster.a, &notice);
    assert!(matches!(
        too_few,
        NoticeError::Refused(notice::NoticeError::Envelope(EnvelopeError::TooFewSigners {
            needed: 2,
            found: 1
        }))
    ));
    notice.add_signature(&second).expect("it has not signed");
    apply(&mut cluster.a, &notice).expect("two of two");
}

#[test]
fn rejects_a_notice_of_an_admin_who_was_replaced() {
    let mut cluster = Cluster::new();
    let next = SecretKey::generate(&mut cluster.rng);
    let admins = Admins::new(vec![next.public_key()], 1, 1).expect("one admin");
    let volume = make(&mut cluster.a, ANY);
    let before = signed(&cluster, &[material_of(&cluster.a, volume)]);
    cluster.change(Change::ChangeAdmins(admins));
    cluster.sync();
    assert!(matches!(
        refused(&mut cluster.a, &before),
        NoticeError::Refused(error) if error.is_about_signers()
    ));
}

#[test]
fn rejects_a_notice_for_another_cluster() {
    let mut cluster = Cluster::new();
    let volume = make(&mut cluster.a, ANY);
    let statement = CompromiseNotice {
        cluster_id: ClusterId(Hash([9; 32])),
        ..statement(&cluster, &[material_of(&cluster.a, volume)])
    };
    let elsewhere = Verified::sign(statement, &cluster.admin);
    assert!(matches!(
        refused(&mut cluster.a, elsewhere.envelope()),
        NoticeError::Refused(notice::NoticeError::OtherCluster { .. })
    ));
}

#[test]
fn rejects_a_notice_while_there_is_no_roster() {
    let cluster = Cluster::new();
    let mut alone = Node::new("alone", 9);
    let notice = signed(&cluster, &[MaterialId([1; 16])]);
    assert!(matches!(
        refused(&mut alone, &notice),
        NoticeError::Local(LockboxError::NoCluster)
    ));
}
