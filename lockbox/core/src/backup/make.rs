//! Makes a backup of a lockbox that goes on working.
//!
//! | state | does | next |
//! |---|---|---|
//! | keys | reads the next page of keys | keys, or gone |
//! | gone | reads the next page of what remains of keys that are gone | gone, or changed |
//! | changed | reads once more what changed of all that was read, and ends the backup | |
//!
//! Each call is made under the lock that steps run under, so the last one sees one state of the lockbox: with what it
//! replaces, the backup is the state at that moment.

use std::sync::Arc;

use lockbox_authz::id::{AuthorizationId, KeyId, LockboxId};
use rand_core::CryptoRng;

use super::jobs::open_job;
use super::{BackupId, Entry, Held, Info, Writer};
use crate::keys::random;
use crate::limits::MAX_CHANGED_KEYS;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::Key;
use crate::vault::Watch;

/// Keys of one page: a few milliseconds of other steps' time.
const PAGE: usize = 256;

/// A backup that is being made.
pub struct Making {
    writer: Writer,
    watch: Arc<Watch>,
    state: State,
}

enum State {
    Keys { after: Option<KeyId> },
    Gone { after: Option<KeyId> },
    Changed,
}

/// Why a backup was given up.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error(
        "more than {MAX_CHANGED_KEYS} keys changed while the backup was made; make it again when fewer keys are created, moved \
         or destroyed"
    )]
    TooManyChanges,
    #[error("the lockbox had to read its store anew while the backup was made; make it again")]
    Interrupted,
    #[error(transparent)]
    Lockbox(#[from] LockboxError),
}

impl Lockbox {
    /// What a backup that begins now says of itself.
    ///
    /// Its cluster is the one that the lockbox has joined or asked to join; else that of the backup that it is made of. So
    /// no backup that is made between a restore and the next admission asks for less than the one before it.
    pub fn backup_info(&self, now_ms: i64, rng: &mut dyn CryptoRng) -> Result<Info, LockboxError> {
        let cluster_id = match &self.membership {
            Some(membership) => Some(membership.cluster_id),
            None => self.restored_from_cluster()?,
        };
        Ok(Info {
            backup_id: BackupId(random(rng)),
            lockbox_id: self.identity.lockbox_id,
            store_id: self.vault.store_id(),
            name: self.identity.name.clone(),
            cluster_id,
            created_at_ms: now_ms,
        })
    }
}

impl Making {
    pub fn begin(writer: Writer, lockbox: &Lockbox) -> Self {
        Self {
            writer,
            watch: lockbox.vault.watch(),
            state: State::Keys { after: None },
        }
    }

    /// The next bytes of the file, maybe none; and the backup, unless it is whole.
    pub fn next(mut self, lockbox: &Lockbox, now_ms: i64) -> Result<(Vec<u8>, Option<Self>), MakeError> {
        if !lockbox.vault.tells(&self.watch) {
            return Err(MakeError::Interrupted);
        }
        let bytes = match self.state {
            State::Keys { after } => self.keys(lockbox, after)?,
            State::Gone { after } => self.gone(lockbox, after)?,
            State::Changed => {
                let mut bytes = self.changed(lockbox)?;
                bytes.extend(self.writer.finish(now_ms));
                return Ok((bytes, None));
            }
        };
        Ok((bytes, Some(self)))
    }

    fn keys(&mut self, lockbox: &Lockbox, after: Option<KeyId>) -> Result<Vec<u8>, MakeError> {
        let page = lockbox.vault.keys_after(after, PAGE).map_err(LockboxError::from)?;
        self.state = match page.last() {
            Some(last) => {
                self.watch.read_up_to(last.info.key_id);
                State::Keys {
                    after: Some(last.info.key_id),
                }
            }
            None => {
                self.watch.read_everything();
                State::Gone { after: None }
            }
        };
        let mut bytes = Vec::new();
        for key in page {
            bytes.extend(self.writer.push(&held(lockbox, key, false)?));
        }
        Ok(bytes)
    }

    fn gone(&mut self, lockbox: &Lockbox, after: Option<KeyId>) -> Result<Vec<u8>, MakeError> {
        let page = lockbox.tombstones_after(after, PAGE)?;
        self.state = match page.last() {
            Some(last) => State::Gone {
                after: Some(last.key_id),
            },
            None => State::Changed,
        };
        let mut bytes = Vec::new();
        for tombstone in page {
            bytes.extend(self.writer.push(&Entry {
                what: Held::Gone(tombstone),
                changed: false,
                moving: None,
                job: None,
            }));
        }
        Ok(bytes)
    }

    fn changed(&mut self, lockbox: &Lockbox) -> Result<Vec<u8>, MakeError> {
        let mut bytes = Vec::new();
        for key_id in self.watch.changed().ok_or(MakeError::TooManyChanges)? {
            let entry = if let Some(key) = lockbox.vault.key(key_id).map_err(LockboxError::from)? {
                held(lockbox, key, true)?
            } else if let Some(tombstone) = lockbox.tombstone(key_id)? {
                Entry {
                    what: Held::Gone(tombstone),
                    changed: true,
                    moving: None,
                    job: None,
                }
            } else {
                // A step that was refused touched it: it was never here.
                continue;
            };
            bytes.extend(self.writer.push(&entry));
        }
        Ok(bytes)
    }
}

/// A key that an open MOVE binds is in the backup: it may be the last copy. But the target may hold it by the time that the
/// backup is restored, so it is marked.
fn held(lockbox: &Lockbox, mut key: Key, changed: bool) -> Result<Entry, LockboxError> {
    // The lockbox that it is restored to counts its own run time, from 0.
    if let Some(destruction) = &mut key.info.destruction {
        destruction.due_run_ms = destruction.remaining_ms(lockbox.run_time_ms()?);
    }
    let moving = moving(lockbox, key.info.key_id)?;
    let job = open_job(lockbox, key.info.key_id)?;
    Ok(Entry {
        what: Held::Key(Box::new(key)),
        changed,
        moving,
        job,
    })
}

fn moving(lockbox: &Lockbox, key_id: KeyId) -> Result<Option<(AuthorizationId, LockboxId)>, LockboxError> {
    let Some(id) = lockbox.open_transfer_of(key_id)? else {
        return Ok(None);
    };
    let outgoing = lockbox.outgoing(id)?.filter(|outgoing| outgoing.is_move());
    Ok(outgoing.map(|outgoing| (id, outgoing.authorization.target.lockbox_id)))
}
