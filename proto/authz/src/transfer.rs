//! What the two ends of a transfer sign: the source's offer and erasure records, the target's receipts. SPEC section 7.

use crate::envelope::Statement;
use crate::field::{self, FieldError};
use crate::id::{ClusterId, Hash, KeyId, SessionId};
use crate::limits::{ENCAPSULATED_KEY_BYTES, MAX_CHUNK_KEYS, MAX_CHUNKS, VERSION};
use crate::roster::Head;
use crate::{labels, wire};

/// How thoroughly erased keys are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErasureClass {
    /// The root of erasure is in a file: best effort where the medium or file system keeps old blocks.
    Software,
    /// The root of erasure is in hardware that replaced it.
    Hardware,
}

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOffer {
    pub cluster_id: ClusterId,
    pub authorization_hash: Hash,
    pub session_id: SessionId,
    /// 1,120 bytes.
    pub encapsulated_key: Box<[u8]>,
    pub chunk_count: u32,
    pub first_chunk: u32,
    pub key_count: u64,
    pub withheld_count: u64,
    pub roster_head: Head,
}

/// Says that the target holds the keys of one chunk durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub cluster_id: ClusterId,
    pub authorization_hash: Hash,
    pub session_id: SessionId,
    pub chunk: u32,
    pub chunk_hash: Hash,
    pub key_ids: Vec<KeyId>,
    pub stored_at_ms: i64,
}

/// Says that the source has erased the keys of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErasureRecord {
    pub cluster_id: ClusterId,
    pub authorization_hash: Hash,
    pub chunk: u32,
    pub receipt_hash: Hash,
    pub key_ids: Vec<KeyId>,
    pub erasure_class: ErasureClass,
    pub erased_at_ms: i64,
}

impl ErasureClass {
    pub(crate) fn from_wire(value: i32) -> Result<Self, FieldError> {
        match wire::ErasureClass::try_from(value) {
            Ok(wire::ErasureClass::Software) => Ok(Self::Software),
            Ok(wire::ErasureClass::Hardware) => Ok(Self::Hardware),
            Ok(wire::ErasureClass::Unspecified) | Err(_) => {
                Err(FieldError::new("erasure_class", "must be SOFTWARE or HARDWARE"))
            }
        }
    }

    pub(crate) fn to_wire(self) -> wire::ErasureClass {
        match self {
            Self::Software => wire::ErasureClass::Software,
            Self::Hardware => wire::ErasureClass::Hardware,
        }
    }
}

impl Statement for SessionOffer {
    const PAYLOAD_TYPE: &'static str = labels::SESSION_OFFER;
    type Wire = wire::SessionOffer;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        if wire.encapsulated_key.len() != ENCAPSULATED_KEY_BYTES {
            return Err(FieldError::new("encapsulated_key", "must have 1,120 bytes"));
        }
        if wire.chunk_count == 0 || wire.chunk_count > MAX_CHUNKS {
            return Err(FieldError::new("chunk_count", "must be 1 to 65,536"));
        }
        if wire.first_chunk > wire.chunk_count {
            return Err(FieldError::new("first_chunk", "must be at most chunk_count"));
        }
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            authorization_hash: Hash::from_slice("authorization_hash", &wire.authorization_hash)?,
            session_id: SessionId::from_slice("session_id", &wire.session_id)?,
            encapsulated_key: wire.encapsulated_key.into_boxed_slice(),
            chunk_count: wire.chunk_count,
            first_chunk: wire.first_chunk,
            key_count: wire.key_count,
            withheld_count: wire.withheld_count,
            roster_head: Head::from_wire(&field::required("roster_head", wire.roster_head)?)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::SessionOffer {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            authorization_hash: self.authorization_hash.0.to_vec(),
            session_id: self.session_id.to_vec(),
            encapsulated_key: self.encapsulated_key.to_vec(),
            chunk_count: self.chunk_count,
            first_chunk: self.first_chunk,
            key_count: self.key_count,
            withheld_count: self.withheld_count,
            roster_head: Some(self.roster_head.to_wire()),
        }
    }
}

impl Statement for Receipt {
    const PAYLOAD_TYPE: &'static str = labels::RECEIPT;
    type Wire = wire::Receipt;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            authorization_hash: Hash::from_slice("authorization_hash", &wire.authorization_hash)?,
            session_id: SessionId::from_slice("session_id", &wire.session_id)?,
            chunk: chunk_number(wire.chunk)?,
            chunk_hash: Hash::from_slice("chunk_hash", &wire.chunk_hash)?,
            key_ids: key_ids(&wire.key_ids)?,
            stored_at_ms: field::time_ms("stored_at_ms", wire.stored_at_ms)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::Receipt {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            authorization_hash: self.authorization_hash.0.to_vec(),
            session_id: self.session_id.to_vec(),
            chunk: self.chunk,
            chunk_hash: self.chunk_hash.0.to_vec(),
            key_ids: self.key_ids.iter().map(|id| id.to_vec()).collect(),
            stored_at_ms: self.stored_at_ms,
        }
    }
}

impl Statement for ErasureRecord {
    const PAYLOAD_TYPE: &'static str = labels::ERASURE_RECORD;
    type Wire = wire::ErasureRecord;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            authorization_hash: Hash::from_slice("authorization_hash", &wire.authorization_hash)?,
            chunk: chunk_number(wire.chunk)?,
            receipt_hash: Hash::from_slice("receipt_hash", &wire.receipt_hash)?,
            key_ids: key_ids(&wire.key_ids)?,
            erasure_class: ErasureClass::from_wire(wire.erasure_class)?,
            erased_at_ms: field::time_ms("erased_at_ms", wire.erased_at_ms)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::ErasureRecord {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            authorization_hash: self.authorization_hash.0.to_vec(),
            chunk: self.chunk,
            receipt_hash: self.receipt_hash.0.to_vec(),
            key_ids: self.key_ids.iter().map(|id| id.to_vec()).collect(),
            erasure_class: self.erasure_class.to_wire().into(),
            erased_at_ms: self.erased_at_ms,
        }
    }
}

fn chunk_number(chunk: u32) -> Result<u32, FieldError> {
    if chunk < MAX_CHUNKS {
        Ok(chunk)
    } else {
        Err(FieldError::new("chunk", "must be below 65,536"))
    }
}

fn key_ids(ids: &[Vec<u8>]) -> Result<Vec<KeyId>, FieldError> {
    if ids.is_empty() || ids.len() > MAX_CHUNK_KEYS {
        return Err(FieldError::new("key_ids", "must be 1 to 1,024"));
    }
    ids.iter().map(|id| KeyId::from_slice("key_ids", id)).collect()
}
