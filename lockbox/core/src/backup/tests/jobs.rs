//! Open jobs go through a backup: data may lie under either of their keys.

use lockbox_authz::id::AuthorizationId;

use super::*;
use crate::lifecycle::LifecycleError;
use crate::lifecycle::derive::DeriveRequest;
use crate::lifecycle::destruction::Erase;
use crate::lifecycle::family::Relation;
use crate::lifecycle::job::{JobState, opened_proof};
use crate::testing::Cluster;

fn rotate(node: &mut Node, parent: KeyId) -> KeyId {
    let request = DeriveRequest {
        parent,
        relation: Relation::Rotate,
        key_id: None,
        name: None,
        labels: None,
    };
    let made = node.step(|lockbox, now_ms, rng| lockbox.derive_key(request, now_ms, rng));
    made.expect("nothing is wrong with it").key_id
}

fn progress(node: &mut Node, job: KeyId, percent: u32) {
    node.step(|lockbox, now_ms, rng| lockbox.job_progress(job, percent, now_ms, rng))
        .expect("nothing is wrong with it");
}

/// Makes a new lockbox of a file. `change` is given each entry before it is restored.
pub(super) fn restore(file: &[u8], mut change: impl FnMut(&mut Entry)) -> (Node, Vec<DroppedJob>) {
    let mut target = Node::new("b", 2);
    let mut source = file;
    let backup = Backup::open(&mut source, &key_file()).expect("nothing is wrong with it");
    let contents = backup.contents(source).expect("nothing is wrong with it");
    let plan = Plan {
        // What is on its way stays out.
        evidence: Some(evidence(&Cluster::new(), &[])),
        ..Plan::default()
    };
    let mut dropped = Vec::new();
    backup
        .visit(file, &contents, |mut entries| {
            entries.iter_mut().for_each(&mut change);
            // One entry at a time: the keys of a job may come in different steps.
            for entry in entries {
                let selected = plan.select(vec![entry], NOW_MS);
                dropped.extend(selected.dropped_jobs.iter().copied());
                target
                    .step(|lockbox, _, rng| lockbox.restore(selected, rng))
                    .expect("nothing is wrong with it");
            }
            Ok::<_, BackupError>(())
        })
        .expect("nothing is wrong with it");
    let orphaned = target.lockbox().orphaned_jobs().expect("nothing is wrong with it");
    if !orphaned.is_empty() {
        target
            .step(|lockbox, _, rng| lockbox.drop_jobs(&orphaned, rng))
            .expect("nothing is wrong with it");
    }
    dropped.extend(orphaned);
    target.restart();
    (target, dropped)
}

fn destroy_refused(node: &mut Node, key_id: KeyId) -> bool {
    let refused = node.step(|lockbox, now_ms, rng| lockbox.destroy_key(key_id, false, now_ms, rng));
    matches!(refused, Err(LockboxError::Lifecycle(LifecycleError::InJob { .. })))
}

/// A volume that is half under the new key: without the old one, the other half is lost.
#[test]
fn an_open_job_holds_both_keys_after_a_restore_and_can_be_ended_there() {
    let mut node = node_with(1);
    let old = *state(&node).keys().next().expect("one key");
    let new = rotate(&mut node, old);
    progress(&mut node, new, 40);
    let file = make(&mut node, |_, _| {}).expect("nothing is wrong with it");
    let (mut restored, dropped) = restore(&file, |_| {});
    assert_eq!(dropped, []);
    let before = node.lockbox().job(new).expect("it is open");
    assert_eq!(restored.lockbox().job(new).expect("it came along"), before);
    for key_id in [old, new] {
        assert!(
            destroy_refused(&mut restored, key_id),
            "a key of an open job is destroyed"
        );
    }
    let proof = opened_proof(new, "cryptsetup", &restored.reveal(new));
    restored
        .step(|lockbox, now_ms, rng| lockbox.job_progress(new, 100, now_ms, rng))
        .expect("its tool has ended");
    restored
        .step(|lockbox, now_ms, rng| lockbox.job_verified(new, "cryptsetup", &proof, now_ms, rng))
        .expect("the data opens");
    let done = restored
        .step(|lockbox, now_ms, rng| lockbox.job_done(new, Erase::Now, now_ms, rng))
        .expect("it was verified");
    assert_eq!(done.destroyed.expect("a rotation").key_id, old);
}

/// A backup that forgot it would bring back as active what an operator has let go, and one that was never erased is a leak.
#[test]
fn a_scheduled_key_comes_back_scheduled_with_what_remained_of_its_grace_time() {
    let mut node = node_with(1);
    let old = *state(&node).keys().next().expect("one key");
    let new = rotate(&mut node, old);
    progress(&mut node, new, 100);
    let proof = opened_proof(new, "cryptsetup", &node.reveal(new));
    node.step(|lockbox, now_ms, rng| lockbox.job_verified(new, "cryptsetup", &proof, now_ms, rng))
        .expect("the data opens");
    let when = Erase::Later {
        grace_ms: 100_000,
        run_ms: 1_000_000,
    };
    node.step(|lockbox, now_ms, rng| lockbox.job_done(new, when, now_ms, rng))
        .expect("it was verified");
    node.step(|lockbox, now_ms, rng| lockbox.tick(1_030_000, now_ms, rng))
        .expect("memory does not fail");
    let file = make(&mut node, |_, _| {}).expect("nothing is wrong with it");
    let (mut restored, _) = restore(&file, |_| {});
    let refused = restored.lockbox().reveal_key(old);
    assert!(matches!(
        refused,
        Err(LockboxError::Lifecycle(LifecycleError::Scheduled(_)))
    ));
    let mut erased = |run_ms| {
        let tick = restored.step(|lockbox, now_ms, rng| lockbox.tick(run_ms, now_ms, rng));
        tick.expect("memory does not fail").erased.len()
    };
    assert_eq!((erased(69_999), erased(70_000)), (0, 1));
}

#[test]
fn a_job_whose_old_key_stays_out_is_dropped_and_frees_its_new_key() {
    let mut node = node_with(1);
    let old = *state(&node).keys().next().expect("one key");
    let new = rotate(&mut node, old);
    let file = make(&mut node, |_, _| {}).expect("nothing is wrong with it");
    for out in [old, new] {
        let (mut restored, dropped) = restore(&file, |entry| {
            if entry.key_id() == out {
                entry.moving = Some((AuthorizationId([1; 16]), LockboxId([2; 16])));
            }
        });
        let expected = DroppedJob {
            key_id: new,
            old_key_id: old,
        };
        assert_eq!(dropped, [expected]);
        assert!(restored.lockbox().job(new).is_err());
        let stays = if out == old { new } else { old };
        destroy(&mut restored, stays);
    }
}

/// The backup shows one moment: a job that began, went on or ended while it was made is as it is then.
#[test]
fn a_job_that_changes_while_the_backup_is_made_is_as_at_its_end() {
    let mut node = node_with(600);
    let keys: Vec<KeyId> = state(&node).into_keys().collect();
    let (ended, went_on) = (rotate(&mut node, keys[0]), rotate(&mut node, keys[1]));
    let mut began = None;
    let file = make(&mut node, |node, page| {
        if page == 2 {
            node.step(|lockbox, now_ms, rng| lockbox.job_cancel(ended, true, now_ms, rng))
                .expect("it is open");
            progress(node, went_on, 70);
            began = Some(rotate(node, keys[2]));
        }
    });
    let (restored, dropped) = restore(&file.expect("nothing is wrong with it"), |_| {});
    assert_eq!(dropped, []);
    assert!(restored.lockbox().job(ended).is_err(), "an ended job holds its keys");
    assert_eq!(restored.lockbox().job(went_on).expect("it is open").percent(), 70);
    let began = began.expect("page 2 came");
    assert_eq!(
        restored.lockbox().job(began).expect("it is open").state(),
        JobState::Pending
    );
}

#[test]
fn rejects_a_job_that_breaks_a_rule() {
    let mut node = node_with(1);
    let old = *state(&node).keys().next().expect("one key");
    let new = rotate(&mut node, old);
    let good = node.lockbox().job(new).expect("it is open").record;
    let of = |change: &dyn Fn(&mut wire::JobRecord)| {
        let mut record = good.clone();
        change(&mut record);
        crate::backup::jobs::from_wire(record, new).map_err(|error| error.field)
    };
    assert!(of(&|_| ()).is_ok());
    let refused = |change: &dyn Fn(&mut wire::JobRecord)| of(change).expect_err("it is refused");
    assert_eq!(refused(&|record| record.version = 2), "version");
    assert_eq!(refused(&|record| record.key_id = old.to_vec()), "job.key_id");
    assert_eq!(refused(&|record| record.old_key_id = new.to_vec()), "job.old_key_id");
    assert_eq!(refused(&|record| record.old_key_id.clear()), "job.old_key_id");
    assert_eq!(refused(&|record| record.relation = "share".to_owned()), "job.relation");
    for state in [JobState::Unspecified, JobState::Done, JobState::Cancelled] {
        assert_eq!(refused(&|record| record.set_state(state)), "job.state");
    }
    assert_eq!(refused(&|record| record.percent = 101), "job.percent");
    assert_eq!(refused(&|record| record.began_at_ms = 0), "job.began_at_ms");
    assert_eq!(refused(&|record| record.changed_at_ms = -1), "job.changed_at_ms");
    assert_eq!(refused(&|record| record.verified_at_ms = 1), "job.verified_at_ms");
    assert_eq!(
        refused(&|record| record.set_state(JobState::Verified)),
        "job.verified_at_ms"
    );
    let long = |record: &mut wire::JobRecord| {
        record.set_state(JobState::Verified);
        record.verified_at_ms = 1;
        record.verified_by = "x".repeat(129);
    };
    assert_eq!(refused(&long), "job.verified_by");
}
