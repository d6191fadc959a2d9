//! Which keys of a backup may come back, and how they do.

use std::collections::BTreeSet;

use lockbox_authz::evidence::{Evidence, Gone};
use lockbox_authz::id::{AuthorizationId, KeyId, LockboxId};
use rand_core::CryptoRng;

use super::jobs::DroppedJob;
use super::{Entry, Held};
use crate::lifecycle::family;
use crate::lifecycle::job::Job;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Departure, Key, KeyState, Tombstone};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;

/// How a backup is restored.
#[derive(Debug, Default)]
pub struct Plan {
    /// What became of the keys since. Without it, every key comes back.
    pub evidence: Option<Evidence>,
    /// Keys that come back although they were moved away, or were to be: an operator knows that the other copy is no more.
    /// Or although a lockbox that claims to be made of a backup says that it destroyed them: an operator knows better.
    pub admitted: BTreeSet<KeyId>,
}

/// Why a key stays out, or would have to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was destroyed.
    Destroyed {
        /// Who says so, if it is not the backup's own lockbox.
        successor: Option<LockboxId>,
    },
    /// It was moved to another lockbox, and did not come back.
    Moved {
        authorization_id: AuthorizationId,
        target_id: LockboxId,
    },
    /// A MOVE to another lockbox was open when the backup was made, and nothing says how it ended.
    Moving {
        authorization_id: AuthorizationId,
        target_id: LockboxId,
    },
}

/// A key of the backup that an operator has to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRestored {
    pub key_id: KeyId,
    pub name: String,
    pub why: Why,
    /// It came back all the same: it was admitted, or there is no evidence.
    pub admitted: bool,
}

/// What becomes of a page of entries.
#[derive(Default)]
pub struct Selected {
    keys: Vec<Key>,
    tombstones: Vec<Tombstone>,
    jobs: Vec<Job>,
    pub findings: Vec<NotRestored>,
    /// Jobs whose new key stays out.
    pub dropped_jobs: Vec<DroppedJob>,
    /// Keys that come back as compromised, as the evidence has a notice of their material.
    pub marked: u64,
}

impl Plan {
    pub fn select(&self, entries: Vec<Entry>, now_ms: i64) -> Selected {
        let mut selected = Selected::default();
        for entry in entries {
            let moving = entry.moving;
            let mut key = match entry.what {
                Held::Key(key) => key,
                Held::Gone(tombstone) => {
                    selected.tombstones.push(tombstone);
                    continue;
                }
            };
            let marked = self.mark(&mut key);
            let Some(why) = self.objection(key.info.key_id, moving) else {
                selected.marked += u64::from(marked);
                selected.keys.push(*key);
                selected.jobs.extend(entry.job);
                continue;
            };
            let is_admitted = self.admits(key.info.key_id, why);
            selected.findings.push(NotRestored {
                key_id: key.info.key_id,
                name: key.info.name.clone(),
                why,
                admitted: is_admitted,
            });
            if is_admitted {
                selected.marked += u64::from(marked);
                selected.keys.push(*key);
                selected.jobs.extend(entry.job);
            } else {
                selected.dropped_jobs.extend(entry.job.as_ref().map(DroppedJob::of));
                selected.tombstones.push(why.tombstone(&key, now_ms));
            }
        }
        selected
    }

    /// What the admins gave notice of is not served as if nobody knew it until the new lockbox connects. Gives whether the key
    /// was not marked before.
    fn mark(&self, key: &mut Key) -> bool {
        let is_noticed = |evidence: &Evidence| evidence.is_noticed(key.info.material_id);
        if key.info.state == KeyState::Compromised || !self.evidence.as_ref().is_some_and(is_noticed) {
            return false;
        }
        key.info.state = KeyState::Compromised;
        true
    }

    fn objection(&self, key_id: KeyId, moving: Option<(AuthorizationId, LockboxId)>) -> Option<Why> {
        let evidence = self.evidence.as_ref();
        match evidence.and_then(|evidence| evidence.gone(key_id)) {
            Some(Gone::Destroyed { successor }) => return Some(Why::Destroyed { successor }),
            Some(Gone::Moved {
                authorization_id,
                target_id,
            }) => {
                return Some(Why::Moved {
                    authorization_id,
                    target_id,
                });
            }
            None => {}
        }
        let (authorization_id, target_id) = moving?;
        let has_returned = evidence.is_some_and(|evidence| evidence.has_returned(key_id, authorization_id));
        (!has_returned).then_some(Why::Moving {
            authorization_id,
            target_id,
        })
    }

    fn admits(&self, key_id: KeyId, why: Why) -> bool {
        let is_final = why == Why::Destroyed { successor: None };
        self.evidence.is_none() || (!is_final && self.admitted.contains(&key_id))
    }
}

impl Why {
    /// What keeps the key from being brought in by another way unnoticed.
    fn tombstone(self, key: &Key, now_ms: i64) -> Tombstone {
        let (departure, moved) = match self {
            Self::Destroyed { .. } => (Departure::Destroyed, None),
            Self::Moved {
                authorization_id,
                target_id,
            }
            | Self::Moving {
                authorization_id,
                target_id,
            } => (Departure::Moved, Some((authorization_id, target_id))),
        };
        Tombstone {
            key_id: key.info.key_id,
            material_id: key.info.material_id,
            name: key.info.name.clone(),
            departure,
            departed_at_ms: now_ms,
            moved,
            lineage: key.info.lineage.clone(),
        }
    }
}

impl Selected {
    pub fn key_count(&self) -> u64 {
        self.keys.len() as u64
    }
}

impl Lockbox {
    /// Takes what was selected into a lockbox that has none of it. After the last page, [`Lockbox::orphaned_jobs`].
    pub fn restore(&mut self, selected: Selected, rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        for key in selected.keys {
            self.refuse_known(key.info.key_id)?;
            family::index(&key.info, &self.vault, &mut changes);
            changes.put_key(key);
        }
        for job in selected.jobs {
            job.put(&mut changes);
        }
        for tombstone in selected.tombstones {
            self.refuse_known(tombstone.key_id)?;
            family::index_departed(&tombstone, &mut changes);
            changes.put(Row::Tombstone(tombstone.key_id), tombstone.encode());
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }

    fn refuse_known(&self, key_id: KeyId) -> Result<(), LockboxError> {
        if self.vault.has_key(key_id)? || self.tombstone(key_id)?.is_some() {
            return Err(LockboxError::KeyExists(key_id));
        }
        Ok(())
    }
}
