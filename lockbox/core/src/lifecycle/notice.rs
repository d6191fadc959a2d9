//! Compromise notices: what admins say of materials that strangers know. SPEC section 13.8.
//!
//! | what of a noticed material | becomes compromised |
//! |---|---|
//! | a key that is here | when the notice is applied |
//! | a key that arrives by transfer | in the step that takes its chunk |
//! | a snapshot or share of a key here | is refused, as of any compromised key |
//! | a key of a restored backup | when it is restored, if the evidence has the notice; else when the new lockbox is told, as it has applied none yet |

use lockbox_authz::envelope::{UnverifiedEnvelope, Verified};
use lockbox_authz::id::{Hash, KeyId, MaterialId, NoticeId};
use lockbox_authz::notice::{self, CompromiseNotice};
use prost::Message;
use rand_core::CryptoRng;

use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Key, KeyState};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::{Changes, VaultError};
use crate::wire;

/// Keys that one step looks at: some megabytes, and a tenth of a second. Few in a test, so that a few keys take many steps.
const KEYS_PER_STEP: usize = if cfg!(test) { 4 } else { 4_096 };

/// Why a notice was refused.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    #[error(transparent)]
    Refused(#[from] notice::NoticeError),
    #[error(transparent)]
    Local(#[from] LockboxError),
}

/// What one step of applying a notice did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeApplied {
    pub notice_id: NoticeId,
    pub hash: Hash,
    /// The keys here that the notice names, of those that this step looked at.
    pub key_count: u64,
    /// Those of them that were not marked before.
    pub marked: Vec<KeyId>,
    /// Keys that it names and whose records can't be read: the others are marked all the same.
    pub damaged: Vec<KeyId>,
    /// Where the next step goes on; `None` when the notice is applied.
    pub next: Option<NoticePlace>,
}

/// The keys that one step looked at.
#[derive(Default)]
struct Looked {
    keys: Vec<Key>,
    damaged: Vec<KeyId>,
}

/// How far a notice is applied: everything up to this key of this material.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoticePlace {
    material_id: MaterialId,
    key_id: Option<KeyId>,
}

impl Lockbox {
    /// Marks every key here that has a material of the notice, and remembers the materials, so that a key that comes later is
    /// marked when it comes. It is allowed at any time, also while keys travel or an alarm stands.
    ///
    /// The first step goes on after `None`; it remembers the materials that no notice has named before, and marks nothing
    /// unless there are none: from then on no key comes by that the steps after it would miss. A notice that was applied
    /// before changes nothing. Verified anew by each step: admins who were replaced meanwhile count no more.
    pub fn apply_notice(
        &mut self,
        envelope: &UnverifiedEnvelope,
        after: Option<NoticePlace>,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<NoticeApplied>, NoticeError> {
        let roster = self.roster.as_ref().ok_or(LockboxError::NoCluster)?;
        // Steps 1 to 3.
        let notice = CompromiseNotice::verify(envelope, roster)?;
        let mut changes = Changes::default();
        // Step 4. Among other changes the vault may put rows last.
        let is_news = after.is_none() && self.note_materials(notice.statement(), now_ms, &mut changes)?;
        // Step 5.
        let (looked, next) = match is_news {
            true => (Looked::default(), first_place(notice.statement())),
            false => self.keys_noticed(notice.statement(), after)?,
        };
        let applied = mark(&notice, looked, next, &mut changes);
        let batches = self.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, applied))
    }

    /// Whether a notice has named a material.
    pub(crate) fn is_noticed(&self, material_id: MaterialId) -> Result<bool, LockboxError> {
        Ok(self.vault.read(Row::Noticed(material_id))?.is_some())
    }

    /// Gives whether there are any that were not noted before.
    fn note_materials(
        &self,
        notice: &CompromiseNotice,
        now_ms: i64,
        changes: &mut Changes,
    ) -> Result<bool, LockboxError> {
        let mut is_news = false;
        let record = wire::NoticedRecord {
            version: 1,
            notice_id: notice.notice_id.to_vec(),
            noticed_at_ms: now_ms,
        };
        for material_id in &notice.material_ids {
            if !self.is_noticed(*material_id)? {
                changes.put(Row::Noticed(*material_id), record.encode_to_vec());
                is_news = true;
            }
        }
        Ok(is_news)
    }

    /// The next keys here that a notice names, and where to go on after them.
    fn keys_noticed(
        &self,
        notice: &CompromiseNotice,
        after: Option<NoticePlace>,
    ) -> Result<(Looked, Option<NoticePlace>), LockboxError> {
        let mut looked = Looked::default();
        let first = after.map_or(0, |place| {
            notice.material_ids.partition_point(|id| *id < place.material_id)
        });
        let mut after_key = after.and_then(|place| place.key_id);
        for material_id in notice.material_ids.iter().skip(first).copied() {
            let here = |key_id| Some(NoticePlace { material_id, key_id });
            if after_key.is_none() {
                if looked.len() >= KEYS_PER_STEP {
                    return Ok((looked, here(None)));
                }
                let namesake = KeyId(material_id.0);
                let found = match self.namesake(material_id) {
                    Ok(None) if self.vault.is_lost(namesake)? => self.key_or_lost(namesake),
                    found => found,
                };
                looked.take(namesake, found)?;
            }
            loop {
                // At least one, so that a step never ends between the namesake and the first of the others.
                let room = KEYS_PER_STEP.saturating_sub(looked.len()).max(1);
                let ids = self.indexed_keys_of(material_id, after_key, room)?;
                let Some(last) = ids.last() else { break };
                after_key = Some(*last);
                for key_id in ids {
                    // A row may have outlived its key in a power cut.
                    looked.take(key_id, self.key_or_lost(key_id))?;
                }
                if looked.len() >= KEYS_PER_STEP {
                    return Ok((looked, here(after_key)));
                }
            }
            after_key = None;
        }
        Ok((looked, None))
    }
}

impl Looked {
    fn len(&self) -> usize {
        self.keys.len() + self.damaged.len()
    }

    /// One record that can't be read must not keep the others from being marked.
    fn take(&mut self, key_id: KeyId, read: Result<Option<Key>, LockboxError>) -> Result<(), LockboxError> {
        match read {
            Ok(key) => self.keys.extend(key),
            Err(LockboxError::Vault(VaultError::Damaged { .. } | VaultError::Field { .. })) => {
                self.damaged.push(key_id);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Where the first step that marks begins.
fn first_place(notice: &CompromiseNotice) -> Option<NoticePlace> {
    let material_id = *notice.material_ids.first()?;
    Some(NoticePlace {
        material_id,
        key_id: None,
    })
}

fn mark(
    notice: &Verified<CompromiseNotice>,
    looked: Looked,
    next: Option<NoticePlace>,
    changes: &mut Changes,
) -> NoticeApplied {
    let mut applied = NoticeApplied {
        notice_id: notice.statement().notice_id,
        hash: notice.hash(),
        key_count: looked.len() as u64,
        marked: Vec::new(),
        damaged: looked.damaged,
        next,
    };
    for mut key in looked.keys {
        if key.info.state != KeyState::Compromised {
            key.info.state = KeyState::Compromised;
            applied.marked.push(key.info.key_id);
            changes.put_key(key);
        }
    }
    applied
}
