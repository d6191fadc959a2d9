//! Jobs that bring data under a new key, in two phases. SPEC section 13.4.
//!
//! | state | accepts | does | next |
//! |---|---|---|---|
//! | pending | progress | notes it | running |
//! | running | progress | notes it | running |
//! | running at 100 %, verified; of a layer pending, too | verify, with a proof made with the new key | notes the command and the time | verified |
//! | verified | done | frees both keys; a rotation schedules the old one for destruction, or destroys it | done |
//! | pending; running, verified, if nothing is under the new key | cancel | frees both keys | cancelled |
//!
//! While a job is open, neither of its keys is destroyed or moved away: the old material stays until the data was opened
//! with the new one.

use lockbox_authz::field::{self, FieldError};
use lockbox_authz::id::KeyId;
use lockbox_authz::inventory::{self, JobProgress};
use prost::Message;
use rand_core::CryptoRng;

use super::LifecycleError;
use super::change::consumer_text;
use super::destruction::{Erase, erase};
use super::family::Relation;
use crate::labels;
use crate::ledger::damaged;
use crate::lockbox::{Lockbox, LockboxError};
use crate::primitives::hkdf_sha256;
use crate::record::{DestructionOrigin, KeyInfo, Tombstone};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire;

pub use crate::wire::JobState;

pub(crate) const MAX_COMMAND_CHARS: usize = 128;

/// A job. It is named by the key that it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub(crate) record: wire::JobRecord,
    pub key_id: KeyId,
    pub old_key_id: KeyId,
}

/// A job that was done, and what became of the old key.
#[derive(Clone, Debug, PartialEq)]
pub struct JobDone {
    pub job: Job,
    /// The old key of a rotation, if it was destroyed at once.
    pub destroyed: Option<Tombstone>,
    /// The old key of a rotation, if it was scheduled for destruction.
    pub scheduled: Option<KeyInfo>,
    /// The keys here that still have the old material.
    pub remaining: Vec<KeyId>,
}

/// What only a holder of the new key can make: HKDF-SHA256 of its material, with the job as salt, and the command that
/// opened the data in the info.
///
/// It proves that the command could be given the new key. That the data opened with it is the word of the command's exit
/// status, and of whoever ran it: a lockbox sees no volume.
pub fn opened_proof(job: KeyId, command: &str, material: &[u8]) -> [u8; 32] {
    let mut proof = [0; 32];
    hkdf_sha256(&job.0, material, &[labels::JOB_OPENED, command.as_bytes()], &mut proof);
    proof
}

impl Job {
    pub(super) fn begin(new: &KeyInfo, old_key_id: KeyId, relation: Relation, now_ms: i64) -> Self {
        let record = wire::JobRecord {
            version: 1,
            key_id: new.key_id.to_vec(),
            old_key_id: old_key_id.to_vec(),
            relation: relation.name().to_owned(),
            state: JobState::Pending.into(),
            began_at_ms: now_ms,
            changed_at_ms: now_ms,
            ..Default::default()
        };
        Self {
            record,
            key_id: new.key_id,
            old_key_id,
        }
    }

    pub fn state(&self) -> JobState {
        self.record.state()
    }

    pub fn state_name(&self) -> &'static str {
        name(self.state())
    }

    /// "rekey", "layer" or "rotate".
    pub fn relation(&self) -> &str {
        &self.record.relation
    }

    /// 0 to 100.
    pub fn percent(&self) -> u32 {
        self.record.percent
    }

    pub fn began_at_ms(&self) -> i64 {
        self.record.began_at_ms
    }

    pub fn changed_at_ms(&self) -> i64 {
        self.record.changed_at_ms
    }

    /// When the data was opened with the new key, and by which command.
    pub fn verified(&self) -> Option<(i64, &str)> {
        let at_ms = self.record.verified_at_ms;
        (at_ms != 0).then_some((at_ms, &self.record.verified_by))
    }

    pub(crate) fn progress(&self) -> JobProgress {
        let state = match self.state() {
            JobState::Pending | JobState::Unspecified => inventory::JobState::Pending,
            JobState::Running => inventory::JobState::Running,
            JobState::Verified => inventory::JobState::Verified,
            JobState::Done => inventory::JobState::Done,
            JobState::Cancelled => inventory::JobState::Cancelled,
        };
        let percent = self.record.percent;
        JobProgress { state, percent }
    }

    /// Whether data comes under the new key that was under the old one.
    fn rewrites(&self) -> bool {
        self.relation() != Relation::Layer.name()
    }

    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state(), JobState::Done | JobState::Cancelled)
    }

    /// Writes the record, and holds both keys for as long as the job is open.
    pub(crate) fn put(&self, changes: &mut Changes) {
        changes.put(Row::Job(self.key_id), self.record.encode_to_vec());
        for key_id in [self.key_id, self.old_key_id] {
            let hold = Row::HeldBy(key_id, self.key_id);
            if self.is_open() {
                changes.put(hold, Vec::new());
            } else {
                changes.remove(hold);
            }
        }
    }

    fn become_state(&mut self, to: JobState, from: &[JobState], now_ms: i64) -> Result<(), LifecycleError> {
        if !from.contains(&self.state()) {
            return Err(LifecycleError::JobState {
                job: self.key_id,
                from: self.state_name(),
                to: name(to),
            });
        }
        self.record.set_state(to);
        self.record.changed_at_ms = now_ms;
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, LockboxError> {
        let record = wire::JobRecord::decode(bytes).map_err(|_| damaged("a job"))?;
        Ok(Self {
            key_id: KeyId::from_slice("key_id", &record.key_id).map_err(|_| damaged("a job"))?,
            old_key_id: KeyId::from_slice("old_key_id", &record.old_key_id).map_err(|_| damaged("a job"))?,
            record,
        })
    }
}

impl Lockbox {
    pub fn job(&self, job: KeyId) -> Result<Job, LockboxError> {
        self.find_job(job)?.ok_or_else(|| LifecycleError::NoJob(job).into())
    }

    pub(crate) fn find_job(&self, job: KeyId) -> Result<Option<Job>, LockboxError> {
        let bytes = self.vault.read(Row::Job(job))?;
        bytes.map(|bytes| Job::decode(&bytes)).transpose()
    }

    /// Jobs in the order of their keys' ids.
    pub fn jobs_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<Job>, LockboxError> {
        let after = after.map(|id| Row::Job(id).key());
        let rows = self
            .vault
            .scan(&[Row::Job(KeyId([0; 16])).kind()], after.as_deref(), limit)?;
        rows.iter().map(|(_, bytes)| Job::decode(bytes)).collect()
    }

    /// The open job that has some of a key's data under another key.
    pub(crate) fn job_rewriting(&self, key: KeyId) -> Result<Option<KeyId>, LockboxError> {
        for id in self.jobs_holding(key)? {
            let job = self.job(id)?;
            // A rotation may rewrite the volume in its place. Of a rekeyed clone the source stays as it is.
            let is_source = job.old_key_id == key && job.relation() == Relation::Rekey.name();
            if job.rewrites() && !is_source {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Notes how much is done, 0 to 100.
    pub fn job_progress(
        &mut self,
        job: KeyId,
        percent: u32,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Job>, LockboxError> {
        if percent > 100 {
            return Err(FieldError::new("percent", "must be 0 to 100").into());
        }
        let mut job = self.job(job)?;
        job.become_state(JobState::Running, &[JobState::Pending, JobState::Running], now_ms)?;
        job.record.percent = percent;
        self.put_job(job, rng)
    }

    /// Notes that a command opened the data with the new key. See [`opened_proof`].
    pub fn job_verified(
        &mut self,
        job: KeyId,
        command: &str,
        proof: &[u8],
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Job>, LockboxError> {
        field::text("command", command, 1, MAX_COMMAND_CHARS)?;
        let mut job = self.job(job)?;
        let key = self.held_key(job.key_id)?;
        let wanted = opened_proof(job.key_id, command, key.material.expose());
        let differs = wanted
            .iter()
            .zip(proof)
            .fold(0, |difference, (a, b)| difference | (a ^ b));
        if proof.len() != wanted.len() || differs != 0 {
            return Err(LifecycleError::Proof(job.key_id).into());
        }
        // A layer's data is not rewritten. Of any other, a part that is under the new key opens before the rest is.
        if job.rewrites() && job.is_open() && job.percent() < 100 {
            let percent = job.percent();
            let job = job.key_id;
            return Err(LifecycleError::Unfinished { job, percent }.into());
        }
        let from = [JobState::Pending, JobState::Running, JobState::Verified];
        job.become_state(JobState::Verified, &from, now_ms)?;
        job.record.percent = 100;
        job.record.verified_at_ms = now_ms;
        command.clone_into(&mut job.record.verified_by);
        self.put_job(job, rng)
    }

    /// Ends a job whose data was opened with the new key. The old key of a rotation is erased, now or later.
    ///
    /// A job that is done already is no error: the request was repeated. If the old key is to be erased now and was scheduled by
    /// this job, it is erased now.
    pub fn job_done(
        &mut self,
        job: KeyId,
        when: Erase,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<JobDone>, LockboxError> {
        let mut job = self.job(job)?;
        let mut changes = Changes::default();
        let origin = DestructionOrigin::Rotation(job.key_id);
        let is_repeated = job.state() == JobState::Done;
        let is_hastened =
            |info: &KeyInfo| when == Erase::Now && info.destruction.is_some_and(|own| own.origin == origin);
        let old = match job.relation() == Relation::Rotate.name() {
            true => self.vault.key(job.old_key_id)?,
            false => None,
        };
        let old = old.filter(|old| !is_repeated || is_hastened(&old.info));
        if !is_repeated {
            job.become_state(JobState::Done, &[JobState::Verified], now_ms)?;
            job.put(&mut changes);
        }
        let mut done = JobDone {
            job,
            destroyed: None,
            scheduled: None,
            remaining: Vec::new(),
        };
        if let Some(old) = old {
            self.check_heir(&done.job, &old.info)?;
            self.check_destroy(old.info.key_id, Some(done.job.key_id))?;
            done.remaining = self.other_keys_of_material(&old.info)?;
            match when {
                Erase::Now => done.destroyed = Some(erase(&old.info, now_ms, &self.vault, &mut changes)),
                Erase::Later { grace_ms, run_ms } => {
                    let info = self.schedule(old, origin, (grace_ms, run_ms), now_ms, &mut changes)?;
                    done.scheduled = Some(info);
                }
            }
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, done))
    }

    /// Refuses to take a rotation's old key from a consumer that the new one has not. Its consumers went over to the new key
    /// when that was made. One that came later would lose its data.
    fn check_heir(&self, job: &Job, old: &KeyInfo) -> Result<(), LockboxError> {
        let new = self.vault.key(job.key_id)?;
        let heirs = new.map_or_else(Vec::new, |new| new.info.consumers);
        let left: Vec<_> = old.consumers.iter().filter(|one| !heirs.contains(one)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let consumers = left.into_iter().map(consumer_text).collect::<Vec<_>>().join(", ");
        let key = job.old_key_id;
        Err(LockboxError::KeyInUse { key, consumers })
    }

    /// Gives a job up. One that has run is given up only if nothing is under the new key any more, which is the operator's word:
    /// nothing would keep the other key from being destroyed.
    pub fn job_cancel(
        &mut self,
        job: KeyId,
        nothing_under_new_key: bool,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Job>, LockboxError> {
        let mut job = self.job(job)?;
        let has_run = matches!(job.state(), JobState::Running | JobState::Verified);
        if has_run && job.rewrites() && !nothing_under_new_key {
            return Err(LifecycleError::HasRun(job.key_id).into());
        }
        let from = [JobState::Pending, JobState::Running, JobState::Verified];
        job.become_state(JobState::Cancelled, &from, now_ms)?;
        self.put_job(job, rng)
    }

    fn put_job(&mut self, job: Job, rng: &mut dyn CryptoRng) -> Result<Step<Job>, LockboxError> {
        let mut changes = Changes::default();
        job.put(&mut changes);
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, job))
    }
}

fn name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Pending => "pending",
        JobState::Running => "running",
        JobState::Verified => "verified",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
    }
}
