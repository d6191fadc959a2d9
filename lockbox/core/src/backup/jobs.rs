//! The open jobs of a backup. While one is open, data may lie under either of its keys: a lockbox that was made of the
//! backup has to hold both as the first one did.

use lockbox_authz::field::{self, FieldError};
use lockbox_authz::id::KeyId;
use rand_core::CryptoRng;

use crate::lifecycle::family::Relation;
use crate::lifecycle::job::{Job, JobState, MAX_COMMAND_CHARS};
use crate::lockbox::{Lockbox, LockboxError};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire;

/// Jobs of one step.
const PAGE: usize = 256;

/// A job of the backup that did not come back: one of its keys stays out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedJob {
    /// The key that it makes, which names it.
    pub key_id: KeyId,
    pub old_key_id: KeyId,
}

impl DroppedJob {
    pub(super) fn of(job: &Job) -> Self {
        Self {
            key_id: job.key_id,
            old_key_id: job.old_key_id,
        }
    }
}

/// The open job that makes a key.
pub(super) fn open_job(lockbox: &Lockbox, key_id: KeyId) -> Result<Option<Job>, LockboxError> {
    Ok(lockbox.find_job(key_id)?.filter(Job::is_open))
}

/// The job in the entry of the key that it makes. Who has the backup's secret may have written it.
pub(super) fn from_wire(record: wire::JobRecord, key_id: KeyId) -> Result<Job, FieldError> {
    field::version(record.version)?;
    if KeyId::from_slice("job.key_id", &record.key_id)? != key_id {
        return Err(FieldError::new("job.key_id", "must be the key of the entry"));
    }
    let old_key_id = KeyId::from_slice("job.old_key_id", &record.old_key_id)?;
    if old_key_id == key_id {
        return Err(FieldError::new("job.old_key_id", "must be another key"));
    }
    let relations = [Relation::Rekey, Relation::Layer, Relation::Rotate];
    if !relations.iter().any(|relation| relation.name() == record.relation) {
        return Err(FieldError::new("job.relation", "must be rekey, layer or rotate"));
    }
    let state = record.state();
    if !matches!(state, JobState::Pending | JobState::Running | JobState::Verified) {
        return Err(FieldError::new("job.state", "must be that of an open job"));
    }
    if record.percent > 100 {
        return Err(FieldError::new("job.percent", "must be 0 to 100"));
    }
    field::time_ms("job.began_at_ms", record.began_at_ms)?;
    field::time_ms("job.changed_at_ms", record.changed_at_ms)?;
    if state == JobState::Verified {
        field::time_ms("job.verified_at_ms", record.verified_at_ms)?;
        field::text("job.verified_by", &record.verified_by, 1, MAX_COMMAND_CHARS)?;
    } else if record.verified_at_ms != 0 || !record.verified_by.is_empty() {
        return Err(FieldError::new(
            "job.verified_at_ms",
            "must be 0 in a job that is not verified",
        ));
    }
    Ok(Job {
        record,
        key_id,
        old_key_id,
    })
}

impl Lockbox {
    /// The restored jobs whose old key stays out. A job is put with its new key, as its old key may follow in any later
    /// page of the backup; so this is asked after the last page.
    pub fn orphaned_jobs(&self) -> Result<Vec<DroppedJob>, LockboxError> {
        let (mut orphaned, mut after) = (Vec::new(), None);
        loop {
            let jobs = self.jobs_after(after, PAGE)?;
            let Some(last) = jobs.last() else {
                return Ok(orphaned);
            };
            after = Some(last.key_id);
            for job in &jobs {
                if !self.vault.has_key(job.old_key_id)? {
                    orphaned.push(DroppedJob::of(job));
                }
            }
        }
    }

    /// Forgets jobs, so that they hold their new keys no longer.
    pub fn drop_jobs(&mut self, jobs: &[DroppedJob], rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        for job in jobs {
            changes.remove(Row::Job(job.key_id));
            changes.remove(Row::HeldBy(job.key_id, job.key_id));
            changes.remove(Row::HeldBy(job.old_key_id, job.key_id));
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }
}
