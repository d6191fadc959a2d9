//! Keys that are scheduled for destruction: of no use at once, erased after the grace time, given back until then.

use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::id::KeyId;

use super::{ANY, consumer, derive, destroy, done, done_later, finish, make, node, set_state};
use crate::keys::{KeyEntry, KeyRequest};
use crate::lifecycle::LifecycleError;
use crate::lifecycle::derive::Relation;
use crate::lifecycle::destruction::Tick;
use crate::lockbox::LockboxError;
use crate::record::{DestructionOrigin, KeyInfo, KeyState};
use crate::rows::Row;
use crate::testing::{Cluster, Node};
use crate::transfer::tests::carry;

const GRACE_MS: u64 = 100_000;

/// A rotation that has ended at this run time: its old key and its new one.
fn rotated(node: &mut Node, run_ms: u64) -> (KeyId, KeyId) {
    let old = make(node, ANY);
    let new = derive(node, old, Relation::Rotate).expect("nothing holds it");
    finish(node, new);
    done_later(node, new, run_ms, GRACE_MS).expect("it is verified");
    (old, new)
}

fn tick(node: &mut Node, run_ms: u64) -> Tick {
    node.step(|lockbox, now, rng| lockbox.tick(run_ms, now, rng))
        .expect("memory does not fail")
}

fn erased(node: &mut Node, run_ms: u64) -> Vec<KeyId> {
    tick(node, run_ms).erased.iter().map(|gone| gone.key_id).collect()
}

fn cancel(node: &mut Node, key: KeyId) -> Result<KeyInfo, LockboxError> {
    node.step(|lockbox, _, rng| lockbox.cancel_destruction(key, rng))
}

fn info(node: &Node, key: KeyId) -> KeyInfo {
    match node.lockbox().key(key) {
        Ok(KeyEntry::Here { info, .. }) => info,
        other => panic!("{key} is not here: {other:?}"),
    }
}

fn is_scheduled<T>(outcome: Result<T, LockboxError>) -> bool {
    matches!(outcome, Err(LockboxError::Lifecycle(LifecycleError::Scheduled(_))))
}

/// The wall clock stands still in these tests: it does not count.
#[test]
fn a_rotated_key_is_erased_when_the_daemon_has_run_for_the_grace_time() {
    let mut node = node();
    let (old, new) = rotated(&mut node, 5_000);
    let destruction = info(&node, old).destruction.expect("it is scheduled");
    assert_eq!(destruction.origin, DestructionOrigin::Rotation(new));
    assert_eq!(destruction.remaining_ms(25_000), 80_000);
    assert_eq!(erased(&mut node, 5_000 + GRACE_MS - 1), []);
    node.restart();
    assert_eq!(erased(&mut node, 5_000 + GRACE_MS), [old]);
    assert!(matches!(
        node.lockbox().reveal_key(old),
        Err(LockboxError::WasDestroyed(_))
    ));
    let note = node.lockbox().vault.read(Row::Destruction(old));
    assert!(note.expect("memory does not fail").is_some(), "the broker is not told");
    assert_eq!(node.lockbox().scheduled().expect("memory does not fail").count, 0);
    node.reveal(new);
}

/// A grace time that began anew with each restart would never end; one that counted what no daemon ran would end too early.
#[test]
fn counting_goes_on_after_a_restart_where_the_last_tick_was() {
    let mut node = node();
    let (old, _) = rotated(&mut node, 7_000);
    node.restart();
    assert_eq!(
        node.lockbox().run_time_ms().expect("it was noted with the schedule"),
        7_000
    );
    for (run_ms, is_needed) in [(7_500, false), (17_000, true)] {
        let needs = node.lockbox().needs_tick(run_ms).expect("memory does not fail");
        assert_eq!(needs, is_needed, "{run_ms}");
    }
    assert_eq!(erased(&mut node, 17_000), []);
    node.restart();
    assert_eq!(node.lockbox().run_time_ms().expect("a tick noted it"), 17_000);
    // A tick that was cut off can't set it back.
    assert_eq!(erased(&mut node, 3_000), []);
    assert_eq!(node.lockbox().run_time_ms().expect("it is noted"), 17_000);
    assert_eq!(
        info(&node, old)
            .destruction
            .expect("it is scheduled")
            .remaining_ms(17_000),
        90_000
    );
}

/// Each tick costs a sync of the disk.
#[test]
fn nothing_is_counted_while_no_key_is_scheduled() {
    let mut node = node();
    make(&mut node, ANY);
    assert!(!node.lockbox().needs_tick(u64::MAX).expect("memory does not fail"));
}

#[test]
fn rejects_every_use_of_a_scheduled_key() {
    let mut node = node();
    let (old, _) = rotated(&mut node, 0);
    assert!(is_scheduled(node.lockbox().reveal_key(old)));
    for relation in [
        Relation::Snapshot,
        Relation::Share,
        Relation::Rekey,
        Relation::Layer,
        Relation::Rotate,
    ] {
        assert!(is_scheduled(derive(&mut node, old, relation)), "{relation:?}");
    }
    assert!(is_scheduled(set_state(&mut node, old, KeyState::Suspended)));
    assert!(is_scheduled(node.step(|lockbox, _, rng| lockbox.add_consumer(
        old,
        consumer("late"),
        rng
    ))));
    let again = KeyRequest {
        key_id: Some(old),
        ..KeyRequest::default()
    };
    assert!(is_scheduled(
        node.step(|lockbox, now, rng| lockbox.create_key(again, None, now, rng))
    ));
}

#[test]
fn a_cancelled_key_has_the_state_that_it_had() {
    let mut node = node();
    let old = make(&mut node, ANY);
    let bytes = node.reveal(old);
    let new = derive(&mut node, old, Relation::Rotate).expect("nothing holds it");
    finish(&mut node, new);
    set_state(&mut node, old, KeyState::Deactivated).expect("it is active");
    done_later(&mut node, new, 0, GRACE_MS).expect("it is verified");
    assert_eq!(info(&node, old).rules().name, "scheduled");
    let cancelled = cancel(&mut node, old).expect("it is scheduled");
    assert_eq!(cancelled.state, KeyState::Deactivated);
    assert_eq!(node.reveal(old), bytes);
    assert_eq!(erased(&mut node, GRACE_MS), [], "it was cancelled");
    assert_eq!(node.reveal(old), bytes);
}

#[test]
fn rejects_to_cancel_what_is_not_scheduled() {
    let mut node = node();
    let key = make(&mut node, ANY);
    assert!(matches!(
        cancel(&mut node, key),
        Err(LockboxError::Lifecycle(LifecycleError::NotScheduled(_)))
    ));
    let (old, _) = rotated(&mut node, 0);
    erased(&mut node, GRACE_MS);
    assert!(matches!(cancel(&mut node, old), Err(LockboxError::WasDestroyed(_))));
}

/// It may be cancelled, and strangers know it then as well.
#[test]
fn a_scheduled_key_is_marked_as_compromised_with_the_others_of_its_material() {
    let mut node = node();
    let old = make(&mut node, ANY);
    let snapshot = derive(&mut node, old, Relation::Snapshot).expect("the policy allows it");
    let new = derive(&mut node, old, Relation::Rotate).expect("nothing holds it");
    finish(&mut node, new);
    let end = done_later(&mut node, new, 0, GRACE_MS).expect("it is verified");
    assert_eq!(end.remaining, [snapshot]);
    let marked = node.step(|lockbox, _, rng| lockbox.compromise_key(snapshot, rng));
    assert_eq!(marked.expect("it is known").len(), 2);
    assert!(is_scheduled(node.lockbox().reveal_key(old)));
    assert_eq!(
        cancel(&mut node, old).expect("it is scheduled").state,
        KeyState::Compromised
    );
}

#[test]
fn a_scheduled_key_is_destroyed_at_once_where_that_is_asked_for() {
    let mut node = node();
    let (old, new) = rotated(&mut node, 0);
    let end = done(&mut node, new).expect("a repetition, but at once");
    assert_eq!(end.destroyed.expect("the old key").key_id, old);
    let (old, new) = rotated(&mut node, 0);
    destroy(&mut node, old, false).expect("nothing needs it");
    assert_eq!(done(&mut node, new).expect("a repetition").destroyed, None);
    assert_eq!(erased(&mut node, GRACE_MS), []);
}

/// Its operator wanted it back: no repeated request may take it.
#[test]
fn the_end_of_a_job_does_not_take_a_key_again_that_was_cancelled() {
    let mut node = node();
    let (old, new) = rotated(&mut node, 0);
    cancel(&mut node, old).expect("it is scheduled");
    assert_eq!(done(&mut node, new).expect("a repetition").destroyed, None);
    assert_eq!(done_later(&mut node, new, 0, 0).expect("a repetition").scheduled, None);
    node.reveal(old);
}

/// Until it is erased it may be wanted again, and then what it lies on as well.
#[test]
fn a_scheduled_layer_keeps_what_it_lies_on() {
    let mut node = node();
    let base = make(&mut node, ANY);
    let layer = derive(&mut node, base, Relation::Layer).expect("the policy allows it");
    finish(&mut node, layer);
    done(&mut node, layer).expect("it is verified");
    let new = derive(&mut node, layer, Relation::Rotate).expect("nothing holds it");
    finish(&mut node, new);
    done_later(&mut node, new, 0, GRACE_MS).expect("it is verified");
    destroy(&mut node, new, true).expect("nothing lies on it");
    let refused = destroy(&mut node, base, true).expect_err("the layer may be wanted again");
    assert!(refused.to_string().contains(&layer.to_string()), "{refused}");
    assert_eq!(erased(&mut node, GRACE_MS), [layer]);
    destroy(&mut node, base, true).expect("nothing lies on it any more");
}

#[test]
fn a_key_that_comes_again_by_a_transfer_is_not_scheduled_any_more() {
    let mut cluster = Cluster::new();
    let (old, _) = {
        let old = make(&mut cluster.a, ANY);
        let copy = cluster.authorize(Operation::Copy, Selection::Ids(vec![old]));
        carry(&mut cluster.a, &mut cluster.b, &copy).expect("it may be copied");
        let new = derive(&mut cluster.a, old, Relation::Rotate).expect("nothing holds it");
        finish(&mut cluster.a, new);
        done_later(&mut cluster.a, new, 0, GRACE_MS).expect("it is verified");
        (old, new)
    };
    let back = cluster.authorize_back(Operation::Copy, Selection::Ids(vec![old]));
    carry(&mut cluster.b, &mut cluster.a, &back).expect("it may be copied");
    cluster.a.reveal(old);
    // What was left of the schedule does not shorten the next one.
    let new = derive(&mut cluster.a, old, Relation::Rotate).expect("nothing holds it");
    finish(&mut cluster.a, new);
    done_later(&mut cluster.a, new, GRACE_MS / 2, GRACE_MS).expect("it is verified");
    assert_eq!(erased(&mut cluster.a, GRACE_MS), []);
    assert_eq!(erased(&mut cluster.a, GRACE_MS / 2 + GRACE_MS), [old]);
}

/// One record that can't be read must not keep the others from being erased, and is not forgotten.
#[test]
fn a_damaged_key_does_not_keep_the_others_from_being_erased() {
    let mut node = node();
    let (first, second) = (rotated(&mut node, 0).0, rotated(&mut node, 0).0);
    node.damage(first);
    let ticked = tick(&mut node, GRACE_MS);
    assert_eq!(
        ticked.erased.iter().map(|gone| gone.key_id).collect::<Vec<_>>(),
        [second]
    );
    assert_eq!(
        ticked.postponed.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
        [first]
    );
    assert!(
        tick(&mut node, GRACE_MS + 1).postponed.is_empty(),
        "it is tried all the time"
    );
    let later = tick(&mut node, GRACE_MS + 3_600_000);
    assert_eq!(later.postponed.len(), 1);
}
