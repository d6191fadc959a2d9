//! What is signed of keys outside of transfers, and of a file of evidence.

use crate::envelope::Statement;
use crate::field::{self, FieldError};
use crate::id::{ClusterId, Hash, KeyId, LockboxId};
use crate::limits::{MAX_CHUNK_KEYS, MAX_HELD_KEYS, MAX_KEY_NAME_CHARS, VERSION};
use crate::transfer::ErasureClass;
use crate::{labels, wire};

/// Says that a lockbox has destroyed keys on its operator's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestructionRecord {
    pub cluster_id: ClusterId,
    pub lockbox_id: LockboxId,
    /// 1 to 1,024.
    pub key_ids: Vec<KeyId>,
    pub erasure_class: ErasureClass,
    /// The keys were destroyed before.
    pub signed_at_ms: i64,
}

/// Says that a lockbox was made of another one's backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorationRecord {
    pub cluster_id: ClusterId,
    /// The new one.
    pub lockbox_id: LockboxId,
    /// The one that the backup is of.
    pub predecessor_id: LockboxId,
    pub backup_id: [u8; 16],
    /// The moment that the backup shows.
    pub as_of_ms: i64,
    pub signed_at_ms: i64,
}

/// Keys that a lockbox held when a broker last heard of them. It proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKeys {
    pub cluster_id: ClusterId,
    pub lockbox_id: LockboxId,
    /// 1 to 64, each with its name, or an empty one.
    pub keys: Vec<(KeyId, String)>,
}

/// The last statement of a file of evidence: a broker says that the file is all that it has about one lockbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvidenceSummary {
    pub cluster_id: ClusterId,
    pub lockbox_id: LockboxId,
    /// How many statements stand before it.
    pub statement_count: u64,
    /// SHA-256 of the file up to its frame.
    pub digest: Hash,
    /// When the broker began to gather it.
    pub made_at_ms: i64,
}

impl Statement for DestructionRecord {
    const PAYLOAD_TYPE: &'static str = labels::DESTRUCTION_RECORD;
    type Wire = wire::DestructionRecord;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        if wire.key_ids.is_empty() || wire.key_ids.len() > MAX_CHUNK_KEYS {
            return Err(FieldError::new("key_ids", "must be 1 to 1,024"));
        }
        let key_ids = wire.key_ids.iter().map(|id| KeyId::from_slice("key_ids", id));
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            key_ids: key_ids.collect::<Result<_, _>>()?,
            erasure_class: ErasureClass::from_wire(wire.erasure_class)?,
            signed_at_ms: field::time_ms("signed_at_ms", wire.signed_at_ms)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::DestructionRecord {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            lockbox_id: self.lockbox_id.to_vec(),
            key_ids: self.key_ids.iter().map(|id| id.to_vec()).collect(),
            erasure_class: self.erasure_class.to_wire().into(),
            signed_at_ms: self.signed_at_ms,
        }
    }
}

impl Statement for RestorationRecord {
    const PAYLOAD_TYPE: &'static str = labels::RESTORATION_RECORD;
    type Wire = wire::RestorationRecord;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        let backup_id = wire.backup_id[..].try_into();
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            predecessor_id: LockboxId::from_slice("predecessor_id", &wire.predecessor_id)?,
            backup_id: backup_id.map_err(|_| FieldError::new("backup_id", "must have 16 bytes"))?,
            as_of_ms: field::time_ms("as_of_ms", wire.as_of_ms)?,
            signed_at_ms: field::time_ms("signed_at_ms", wire.signed_at_ms)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::RestorationRecord {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            lockbox_id: self.lockbox_id.to_vec(),
            predecessor_id: self.predecessor_id.to_vec(),
            backup_id: self.backup_id.to_vec(),
            as_of_ms: self.as_of_ms,
            signed_at_ms: self.signed_at_ms,
        }
    }
}

impl Statement for HeldKeys {
    const PAYLOAD_TYPE: &'static str = labels::HELD_KEYS;
    type Wire = wire::HeldKeys;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        if wire.keys.is_empty() || wire.keys.len() > MAX_HELD_KEYS {
            return Err(FieldError::new("keys", "must be 1 to 64"));
        }
        let key = |key: wire::HeldKey| {
            field::text("name", &key.name, 0, MAX_KEY_NAME_CHARS)?;
            Ok((KeyId::from_slice("key_id", &key.key_id)?, key.name))
        };
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            keys: wire.keys.into_iter().map(key).collect::<Result<_, _>>()?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let keys = self.keys.iter().map(|(key_id, name)| wire::HeldKey {
            key_id: key_id.to_vec(),
            name: name.clone(),
        });
        wire::HeldKeys {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            lockbox_id: self.lockbox_id.to_vec(),
            keys: keys.collect(),
        }
    }
}

impl Statement for EvidenceSummary {
    const PAYLOAD_TYPE: &'static str = labels::EVIDENCE_SUMMARY;
    type Wire = wire::EvidenceSummary;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            statement_count: wire.statement_count,
            digest: Hash::from_slice("digest", &wire.digest)?,
            made_at_ms: field::time_ms("made_at_ms", wire.made_at_ms)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::EvidenceSummary {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            lockbox_id: self.lockbox_id.to_vec(),
            statement_count: self.statement_count,
            digest: self.digest.0.to_vec(),
            made_at_ms: self.made_at_ms,
        }
    }
}
