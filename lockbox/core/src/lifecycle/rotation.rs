//! Which key has a volume's data, as far as rotations say: the old one until the data was opened with the new one.

use lockbox_authz::id::KeyId;

use super::family::{MAX_FAMILY, Relation};
use super::job::{Job, JobState};
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::Lineage;

/// What a key's lineage says of the volume that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descent {
    /// The first key of the volume, as far as is known: the others came by rotation. A key that no rotation made is its own.
    pub first: KeyId,
    /// Whether the first one was made for another volume than its parent: by a snapshot, share, rekey or layer.
    pub is_clone: bool,
    /// Whether it is scheduled for destruction.
    pub is_scheduled: bool,
    pub rotation: Option<Rotation>,
}

/// How a key came by rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub parent: KeyId,
    /// Whether the data was opened with this key: the job is verified or done. `None` if the job was on another lockbox.
    pub took_over: Option<bool>,
}

impl Lockbox {
    /// `None` if the key is not here.
    pub fn descent(&self, key_id: KeyId) -> Result<Option<Descent>, LockboxError> {
        let Some(key) = self.vault.key(key_id)? else {
            return Ok(None);
        };
        let parent = rotated_from(key.info.lineage.as_ref());
        let rotation = parent.map(|parent| self.rotation(key_id, parent)).transpose()?;
        let is_scheduled = key.info.destruction.is_some();
        let (mut first, mut lineage) = (key_id, key.info.lineage);
        for _ in 0..MAX_FAMILY {
            let Some(parent) = rotated_from(lineage.as_ref()) else {
                break;
            };
            first = parent;
            lineage = self.lineage_of(parent)?;
        }
        Ok(Some(Descent {
            first,
            is_clone: lineage.is_some_and(|lineage| lineage.relation != Relation::Rotate.name()),
            is_scheduled,
            rotation,
        }))
    }

    /// The key that has the data of this one's volume now: a rotation's new key from when the data was opened with it, else
    /// the key itself. One that was moved away took its data along, and is not followed.
    pub fn successor(&self, key_id: KeyId) -> Result<KeyId, LockboxError> {
        let mut current = key_id;
        for _ in 0..MAX_FAMILY {
            match self.taken_over_by(current)? {
                Some(next) => current = next,
                None => break,
            }
        }
        Ok(current)
    }

    fn taken_over_by(&self, key_id: KeyId) -> Result<Option<KeyId>, LockboxError> {
        if self
            .tombstone(key_id)?
            .is_some_and(|tombstone| tombstone.moved.is_some())
        {
            return Ok(None);
        }
        for child in self.children(key_id)? {
            let job = self.rotation_job(child, key_id)?;
            if job.is_some_and(|job| took_over(&job)) {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    fn rotation(&self, key_id: KeyId, parent: KeyId) -> Result<Rotation, LockboxError> {
        let job = self.rotation_job(key_id, parent)?;
        let took_over = job.as_ref().map(took_over);
        Ok(Rotation { parent, took_over })
    }

    fn rotation_job(&self, new: KeyId, old: KeyId) -> Result<Option<Job>, LockboxError> {
        let job = self.find_job(new)?;
        Ok(job.filter(|job| job.relation() == Relation::Rotate.name() && job.old_key_id == old))
    }

    /// Of a key that is here, or was.
    fn lineage_of(&self, key_id: KeyId) -> Result<Option<Lineage>, LockboxError> {
        if let Some(key) = self.vault.key(key_id)? {
            return Ok(key.info.lineage);
        }
        Ok(self.tombstone(key_id)?.and_then(|tombstone| tombstone.lineage))
    }
}

fn took_over(job: &Job) -> bool {
    matches!(job.state(), JobState::Verified | JobState::Done)
}

fn rotated_from(lineage: Option<&Lineage>) -> Option<KeyId> {
    let lineage = lineage.filter(|lineage| lineage.relation == Relation::Rotate.name());
    lineage.map(|lineage| lineage.parent_key_id)
}
