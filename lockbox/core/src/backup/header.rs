//! The header of a backup, and the slots that its key is opened with.

use std::fmt;

use lockbox_authz::field::{self, FieldError};
use lockbox_authz::id::{ClusterId, LockboxId};
use lockbox_authz::limits::MAX_NAME_CHARS;
use prost::Message;
use rand_core::CryptoRng;

use super::{BackupError, LENGTH_BYTES, MAGIC, PREFIX_BYTES};
use crate::keys::random;
use crate::labels;
use crate::limits::{MAX_BACKUP_HEADER_BYTES, MAX_SLOTS};
use crate::primitives::{DoesNotOpen, aead_open, aead_seal};
use crate::secrets::BackupKey;
use crate::slots::{PassphraseCost, SlotError, SlotSecret};
use crate::wire;

/// 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupId(pub [u8; 16]);

/// Of whom a backup is, and when it was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    pub backup_id: BackupId,
    pub lockbox_id: LockboxId,
    pub store_id: [u8; 16],
    pub name: String,
    pub cluster_id: Option<ClusterId>,
    pub created_at_ms: i64,
}

pub(super) struct Header {
    wire: wire::BackupHeader,
    pub(super) info: Info,
    pub(super) nonce_prefix: [u8; PREFIX_BYTES],
}

impl Header {
    /// A header with one slot, and the new key that it opens.
    pub(super) fn new(
        info: Info,
        secret: &SlotSecret,
        cost: PassphraseCost,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, BackupKey), SlotError> {
        secret.check_length()?;
        let nonce_prefix = random(rng);
        let mut header = Self {
            wire: wire::BackupHeader {
                version: 1,
                backup_id: info.backup_id.0.to_vec(),
                lockbox_id: info.lockbox_id.to_vec(),
                store_id: info.store_id.to_vec(),
                name: info.name.clone(),
                cluster_id: info.cluster_id.map(ClusterId::to_vec).unwrap_or_default(),
                created_at_ms: info.created_at_ms,
                nonce_prefix: nonce_prefix.to_vec(),
                slots: Vec::new(),
            },
            info,
            nonce_prefix,
        };
        let key = BackupKey::random(rng);
        let mut slot = secret.empty_slot(1, cost, header.info.created_at_ms, rng);
        let slot_key = secret.slot_key(&slot, labels::BACKUP_KEY_FILE)?;
        slot.sealed_root = aead_seal(slot_key.expose(), key.expose(), &header.slot_aad(&slot), rng);
        header.wire.slots.push(slot);
        Ok((header, key))
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, BackupError> {
        Self::decode(bytes).map_err(BackupError::Header)
    }

    fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let damaged = |rule| FieldError::new("header", rule);
        let wire = wire::BackupHeader::decode(bytes).map_err(|_| damaged("is not a protobuf message of its type"))?;
        if wire.encode_to_vec() != bytes {
            return Err(damaged("is not in its canonical encoding"));
        }
        field::version(wire.version)?;
        if wire.slots.is_empty() || wire.slots.len() > MAX_SLOTS {
            return Err(damaged("must have 1 to 8 slots"));
        }
        let sixteen = |field, bytes: &[u8]| {
            bytes
                .try_into()
                .map_err(|_| FieldError::new(field, "must have 16 bytes"))
        };
        let info = Info {
            backup_id: BackupId(sixteen("backup_id", &wire.backup_id)?),
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            store_id: sixteen("store_id", &wire.store_id)?,
            name: wire.name.clone(),
            cluster_id: match &wire.cluster_id[..] {
                [] => None,
                id => Some(ClusterId::from_slice("cluster_id", id)?),
            },
            created_at_ms: field::time_ms("created_at_ms", wire.created_at_ms)?,
        };
        field::text("name", &info.name, 1, MAX_NAME_CHARS)?;
        let nonce_prefix = wire.nonce_prefix[..]
            .try_into()
            .map_err(|_| FieldError::new("nonce_prefix", "must have 7 bytes"))?;
        Ok(Self {
            wire,
            info,
            nonce_prefix,
        })
    }

    /// Magic, length and header: what the file begins with, and what every frame is bound to.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let header = self.wire.encode_to_vec();
        let length = u32::try_from(header.len()).expect("a header is far below 4 GiB");
        debug_assert!(header.len() <= MAX_BACKUP_HEADER_BYTES);
        let mut bytes = Vec::with_capacity(MAGIC.len() + LENGTH_BYTES + header.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&header);
        bytes
    }

    /// Tries each slot of the secret's kind.
    pub(super) fn open(&self, secret: &SlotSecret) -> Result<BackupKey, SlotError> {
        secret.check_length()?;
        let mut refused = SlotError::NoSlotOpens;
        for slot in self.wire.slots.iter().filter(|slot| slot.kind() == secret.kind()) {
            match secret.slot_key(slot, labels::BACKUP_KEY_FILE) {
                Ok(slot_key) => {
                    if let Ok(key) = self.open_slot(slot, slot_key.expose()) {
                        return Ok(key);
                    }
                }
                // A slot whose cost is out of bounds is damaged; it does not shut the ones after it.
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn open_slot(&self, slot: &wire::SealSlot, slot_key: &[u8; 32]) -> Result<BackupKey, DoesNotOpen> {
        let opened = aead_open(slot_key, &slot.sealed_root, &self.slot_aad(slot))?;
        let bytes: &[u8; 32] = opened[..].try_into().map_err(|_| DoesNotOpen)?;
        Ok(BackupKey::init_with(|key| key.copy_from_slice(bytes)))
    }

    /// Label, header without slots, slot without the sealed key: no field of either can be exchanged.
    fn slot_aad(&self, slot: &wire::SealSlot) -> Vec<u8> {
        let header = wire::BackupHeader {
            slots: Vec::new(),
            ..self.wire.clone()
        };
        let slot = wire::SealSlot {
            sealed_root: Vec::new(),
            ..slot.clone()
        };
        let mut aad = labels::BACKUP_SLOT.to_vec();
        aad.extend(header.encode_length_delimited_to_vec());
        aad.extend(slot.encode_length_delimited_to_vec());
        aad
    }
}

/// The aad of every frame: the file's beginning, whole, by its hash.
pub(super) fn frame_aad(beginning: &[u8]) -> Vec<u8> {
    let hash = lockbox_authz::Hash::of(beginning);
    [labels::BACKUP_FRAME, &hash.0].concat()
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
