//! Jobs that bring data under a new key, and what they keep from being done.

use super::{ANY, consumer, derive, destroy, done, finish, make, node, verify};
use crate::lifecycle::LifecycleError;
use crate::lifecycle::derive::Relation;
use crate::lifecycle::job::{JobState, opened_proof};
use crate::lockbox::LockboxError;
use crate::record::ClonePolicy;
use crate::testing::Node;

/// The mail thread's "the key is compromised, then what do you do?", in steps.
#[test]
fn a_rotation_destroys_the_old_key_only_after_the_data_opened_with_the_new() {
    let mut node = node();
    let old = make(&mut node, ClonePolicy::default());
    node.step(|lockbox, _, rng| lockbox.add_consumer(old, consumer("vol-1"), rng))
        .expect("it is registered");
    node.step(|lockbox, _, rng| lockbox.compromise_key(old, rng))
        .expect("it is known");
    let new = derive(&mut node, old, Relation::Rotate).expect("a compromised key can be rotated");
    let info = node.lockbox().reveal_key(new).expect("it is here").info;
    assert_eq!(info.consumers, [consumer("vol-1")]);

    let refused = destroy(&mut node, old, true).expect_err("the data is under it");
    assert!(matches!(refused, LockboxError::Lifecycle(LifecycleError::InJob { .. })));
    let early = done(&mut node, new).expect_err("nothing has opened the data");
    assert!(matches!(
        early,
        LockboxError::Lifecycle(LifecycleError::JobState { .. })
    ));
    node.step(|lockbox, now, rng| lockbox.job_progress(new, 40, now, rng))
        .expect("it runs");
    let wrong = opened_proof(new, "cryptsetup", &node.reveal(old));
    let refused = node.step(|lockbox, now, rng| lockbox.job_verified(new, "cryptsetup", &wrong, now, rng));
    assert!(matches!(
        refused,
        Err(LockboxError::Lifecycle(LifecycleError::Proof(_)))
    ));
    node.restart();
    finish(&mut node, new);
    assert!(node.lockbox().reveal_key(old).is_ok(), "it stays until the job is done");
    let end = done(&mut node, new).expect("it is verified");
    assert_eq!(end.destroyed.expect("the old key").key_id, old);
    assert!(matches!(
        node.lockbox().reveal_key(old),
        Err(LockboxError::WasDestroyed(_))
    ));
    assert_eq!(
        node.lockbox().job(new).expect("it is remembered").state(),
        JobState::Done
    );
    done(&mut node, new).expect("a repetition is no error");
}

#[test]
fn a_cancelled_job_leaves_both_keys_as_they_are() {
    let mut node = node();
    let old = make(&mut node, ANY);
    let new = derive(&mut node, old, Relation::Rekey).expect("it may");
    node.step(|lockbox, now, rng| lockbox.job_cancel(new, true, now, rng))
        .expect("it may be");
    node.reveal(old);
    destroy(&mut node, new, false).expect("nothing holds it");
    destroy(&mut node, old, false).expect("nothing holds it");
}

#[test]
fn rejects_a_second_rotation_while_one_is_open() {
    let mut node = node();
    let old = make(&mut node, ANY);
    derive(&mut node, old, Relation::Rotate).expect("the first");
    let refused = derive(&mut node, old, Relation::Rotate).expect_err("the second");
    assert!(matches!(refused, LockboxError::Lifecycle(LifecycleError::InJob { .. })));
}

/// A tool that was killed half way has left data that opens with the new key, as far as it goes.
#[test]
fn rejects_a_verification_while_some_data_may_be_under_the_old_key() {
    for relation in [Relation::Rekey, Relation::Rotate] {
        let mut node = node();
        let old = make(&mut node, ANY);
        let new = derive(&mut node, old, relation).expect("the policy allows it");
        for percent in [None, Some(0), Some(99)] {
            if let Some(percent) = percent {
                node.step(|lockbox, now, rng| lockbox.job_progress(new, percent, now, rng))
                    .expect("it is open");
            }
            let refused = verify(&mut node, new).expect_err("it is not all of it");
            assert!(matches!(
                refused,
                LockboxError::Lifecycle(LifecycleError::Unfinished { .. })
            ));
        }
        finish(&mut node, new);
    }
}

/// Nothing would keep the key from being destroyed that the data is under.
#[test]
fn rejects_giving_up_a_job_that_has_run_unless_nothing_is_under_the_new_key() {
    let mut node = node();
    let old = make(&mut node, ANY);
    let new = derive(&mut node, old, Relation::Rotate).expect("nothing holds it");
    node.step(|lockbox, now, rng| lockbox.job_progress(new, 0, now, rng))
        .expect("it is open");
    let refused = node.step(|lockbox, now, rng| lockbox.job_cancel(new, false, now, rng));
    assert!(matches!(
        refused,
        Err(LockboxError::Lifecycle(LifecycleError::HasRun(job))) if job == new
    ));
    destroy(&mut node, new, true).expect_err("data may be under it");
    node.step(|lockbox, now, rng| lockbox.job_cancel(new, true, now, rng))
        .expect("the operator says so");
    destroy(&mut node, new, true).expect("nothing is under it");

    let pending = derive(&mut node, old, Relation::Rotate).expect("nothing holds it");
    node.step(|lockbox, now, rng| lockbox.job_cancel(pending, false, now, rng))
        .expect("it has written nothing");
}

/// A snapshot of a volume in the middle of its re-encryption has blocks under both keys, and would open with one.
#[test]
fn rejects_descendants_of_a_key_whose_data_is_being_rewritten() {
    let mut node = node();
    let old = make(&mut node, ANY);
    let in_job = |node: &mut Node, key, relation| {
        let refused = derive(node, key, relation).expect_err("some of its data is under another key");
        assert!(matches!(refused, LockboxError::Lifecycle(LifecycleError::InJob { .. })));
    };
    let new = derive(&mut node, old, Relation::Rotate).expect("nothing holds it");
    for key in [old, new] {
        for relation in [Relation::Snapshot, Relation::Share, Relation::Rekey, Relation::Layer] {
            in_job(&mut node, key, relation);
        }
    }
    finish(&mut node, new);
    done(&mut node, new).expect("it is verified");
    derive(&mut node, new, Relation::Snapshot).expect("all of it is under the new key");

    let clone = derive(&mut node, new, Relation::Rekey).expect("the policy allows it");
    in_job(&mut node, clone, Relation::Snapshot);
    derive(&mut node, new, Relation::Snapshot).expect("the clone's source is not rewritten");
    let layer = derive(&mut node, new, Relation::Layer).expect("the policy allows it");
    derive(&mut node, layer, Relation::Snapshot).expect("a layer rewrites nothing");
}

/// It would be found out when the data is encrypted anew already, and the old key can't go.
#[test]
fn rejects_a_rotation_of_what_layers_lie_on() {
    let mut node = node();
    let base = make(&mut node, ANY);
    let layer = derive(&mut node, base, Relation::Layer).expect("the policy allows it");
    let refused = derive(&mut node, base, Relation::Rotate).expect_err("a layer lies on it");
    assert!(refused.to_string().contains(&layer.to_string()), "{refused}");
}

#[test]
fn rejects_the_end_of_a_rotation_while_somebody_new_uses_the_old_key() {
    let mut node = node();
    let old = make(&mut node, ANY);
    let new = derive(&mut node, old, Relation::Rotate).expect("a rotation asks no policy");
    finish(&mut node, new);
    node.step(|lockbox, _, rng| lockbox.add_consumer(old, consumer("late"), rng))
        .expect("a good consumer");
    let refused = done(&mut node, new).expect_err("its data is under the old key");
    assert!(refused.to_string().contains("late"), "{refused}");
    assert_eq!(node.reveal(old).len(), 64, "the key is gone");
    node.step(|lockbox, _, rng| lockbox.add_consumer(new, consumer("late"), rng))
        .expect("a good consumer");
    done(&mut node, new).expect("everybody has the new key");
}

/// What the broker is not told of comes back with the next restored backup.
#[test]
fn the_key_that_a_rotation_destroys_is_to_be_told_to_the_broker() {
    let mut node = node();
    let old = make(&mut node, ANY);
    let new = derive(&mut node, old, Relation::Rotate).expect("a rotation asks no policy");
    finish(&mut node, new);
    done(&mut node, new).expect("it was verified");
    let note = node.lockbox().vault.read(crate::rows::Row::Destruction(old));
    assert!(note.expect("memory does not fail").is_some());
}
