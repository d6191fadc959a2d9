//! What the broker is told of keys that were destroyed outside of any transfer, and of keys that came from a backup. SPEC
//! section 9.8.
//!
//! A destroy leaves a note, in the same step, and so does a restore. The note goes, or is marked, when the broker has
//! acknowledged what says so.

use lockbox_authz::envelope::Verified;
use lockbox_authz::evidence::{DestructionRecord, RestorationRecord};
use lockbox_authz::id::{ClusterId, KeyId, LockboxId};
use prost::Message;
use rand_core::CryptoRng;

use crate::backup::Info;
use crate::ledger::damaged;
use crate::limits::MAX_CHUNK_KEYS;
use crate::lockbox::{Lockbox, LockboxError, Standing};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire;

/// What the broker has to be told, and what of it its acknowledgement needs.
#[derive(Clone, Debug)]
pub struct Untold {
    /// Serialized envelopes: of a `DestructionRecord`, of a `RestorationRecord`, or of both.
    pub records: Vec<Vec<u8>>,
    pub told: Told,
}

/// What the broker knows once it has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Told {
    destroyed: Vec<KeyId>,
    restored: bool,
}

impl Lockbox {
    /// What the broker has to be told next: at most 1,024 destroyed keys, and where the first keys came from. Only a member of
    /// a cluster has somebody to tell.
    pub fn untold_custody(&self, now_ms: i64) -> Result<Option<Untold>, LockboxError> {
        let Some(roster) = self.roster.as_ref().filter(|_| self.standing() == Standing::Admitted) else {
            return Ok(None);
        };
        let cluster_id = roster.cluster_id();
        let mut untold = Untold {
            records: Vec::new(),
            told: Told::default(),
        };
        if let Some(record) = self.untold_restoration(cluster_id, now_ms)? {
            let record = Verified::sign(record, &self.identity.identity_key);
            untold.records.push(record.envelope().to_bytes());
            untold.told.restored = true;
        }
        let key_ids = self.untold_destructions()?;
        if !key_ids.is_empty() {
            let record = DestructionRecord {
                cluster_id,
                lockbox_id: self.identity.lockbox_id,
                key_ids: key_ids.clone(),
                erasure_class: self.erasure_class,
                signed_at_ms: now_ms,
            };
            let record = Verified::sign(record, &self.identity.identity_key);
            untold.records.push(record.envelope().to_bytes());
            untold.told.destroyed = key_ids;
        }
        Ok((!untold.records.is_empty()).then_some(untold))
    }

    /// Notes that the broker has it durably.
    pub fn custody_told(&mut self, told: &Told, rng: &mut dyn CryptoRng) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        for key_id in &told.destroyed {
            changes.remove(Row::Destruction(*key_id));
        }
        if told.restored
            && let Some(record) = self.restored_from()?
        {
            let record = wire::RestoredFrom { told: true, ..record };
            changes.put(Row::RestoredFrom, record.encode_to_vec());
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }

    /// Notes whose backup this new lockbox is made of. A lockbox without a cluster has nobody who would ask.
    pub fn note_restored_from(
        &mut self,
        info: &Info,
        as_of_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<()>, LockboxError> {
        let mut changes = Changes::default();
        if let Some(cluster_id) = info.cluster_id {
            let record = wire::RestoredFrom {
                version: 1,
                cluster_id: cluster_id.to_vec(),
                predecessor_id: info.lockbox_id.to_vec(),
                backup_id: info.backup_id.0.to_vec(),
                as_of_ms,
                told: false,
            };
            changes.put(Row::RestoredFrom, record.encode_to_vec());
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, ()))
    }

    fn untold_restoration(
        &self,
        cluster_id: ClusterId,
        now_ms: i64,
    ) -> Result<Option<RestorationRecord>, LockboxError> {
        const WHAT: &str = "the backup that this lockbox was made of";
        let Some(record) = self.restored_from()?.filter(|record| !record.told) else {
            return Ok(None);
        };
        // In another cluster nobody knows the predecessor.
        if record.cluster_id != cluster_id.to_vec() {
            return Ok(None);
        }
        Ok(Some(RestorationRecord {
            cluster_id,
            lockbox_id: self.identity.lockbox_id,
            predecessor_id: LockboxId::from_slice("predecessor_id", &record.predecessor_id)
                .map_err(|_| damaged(WHAT))?,
            backup_id: record.backup_id[..].try_into().map_err(|_| damaged(WHAT))?,
            as_of_ms: record.as_of_ms,
            signed_at_ms: now_ms,
        }))
    }

    fn untold_destructions(&self) -> Result<Vec<KeyId>, LockboxError> {
        let kind = [Row::Destruction(KeyId([0; 16])).kind()];
        let notes = self.vault.scan(&kind, None, MAX_CHUNK_KEYS)?;
        notes
            .iter()
            .map(|(place, _)| KeyId::from_slice("key_id", &place[1..]).map_err(|_| damaged("a destroyed key")))
            .collect()
    }

    /// The cluster of the backup that this lockbox was made of.
    pub(crate) fn restored_from_cluster(&self) -> Result<Option<ClusterId>, LockboxError> {
        let cluster_id = self
            .restored_from()?
            .map(|record| ClusterId::from_slice("cluster_id", &record.cluster_id));
        cluster_id
            .transpose()
            .map_err(|_| damaged("the backup that this lockbox was made of"))
    }

    fn restored_from(&self) -> Result<Option<wire::RestoredFrom>, LockboxError> {
        let bytes = self.vault.read(Row::RestoredFrom)?;
        bytes
            .map(|bytes| wire::RestoredFrom::decode(&bytes[..]))
            .transpose()
            .map_err(|_| damaged("the backup that this lockbox was made of"))
    }
}

/// Leaves a note that the broker has to be told of a destroyed key.
pub(crate) fn note_destroyed(key_id: KeyId, changes: &mut Changes) {
    changes.put(Row::Destruction(key_id), Vec::new());
}
