//! Seal slots, as in LUKS: each wraps the same root key under something else that an operator holds. SPEC section 9.

use lockbox_authz::field::FieldError;
use lockbox_authz::id::LockboxId;
use prost::Message;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::limits::{
    MAX_ARGON2_MEMORY_KIB, MAX_ARGON2_PASSES, MAX_KEY_FILE_BYTES, MAX_PASSPHRASE_BYTES, MAX_SLOTS, MIN_KEY_FILE_BYTES,
    MIN_PASSPHRASE_BYTES,
};
use crate::primitives::{DoesNotOpen, aead_open, aead_seal, argon2id, hkdf_sha256};
use crate::secrets::{RootKey, SlotKey};
use crate::{labels, wire};

/// What an operator unseals with. It holds the bytes and zeroizes them.
pub enum SlotSecret {
    Passphrase(Zeroizing<Vec<u8>>),
    KeyFile(Zeroizing<Vec<u8>>),
}

/// Argon2id's cost: memory in KiB, passes, lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassphraseCost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl PassphraseCost {
    /// RFC 9106, section 4, second recommended option: 64 MiB, 3 passes, 4 lanes.
    pub const RECOMMENDED: Self = Self {
        memory_kib: 64 * 1024,
        passes: 3,
        lanes: 4,
    };
}

/// The header of a lockbox's folder: who it is, and its slots.
#[derive(Clone, Debug)]
pub struct Header {
    wire: wire::Header,
    lockbox_id: LockboxId,
    store_id: [u8; 16],
}

/// Why a header or a slot did not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("the header is damaged: {0}")]
    Header(FieldError),
    #[error("the passphrase must have 12 to 1,024 bytes")]
    PassphraseLength,
    #[error("the key file must have 32 to 65,536 bytes")]
    KeyFileLength,
    #[error("all {MAX_SLOTS} slots are taken")]
    NoFreeSlot,
    #[error("the passphrase's cost is out of bounds")]
    Cost,
    #[error("no slot opens with it")]
    NoSlotOpens,
}

impl Header {
    pub fn new(lockbox_id: LockboxId, rng: &mut dyn CryptoRng) -> Self {
        let mut store_id = [0; 16];
        rng.fill_bytes(&mut store_id);
        Self {
            wire: wire::Header {
                version: 1,
                store_id: store_id.to_vec(),
                lockbox_id: lockbox_id.to_vec(),
                slots: Vec::new(),
            },
            lockbox_id,
            store_id,
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SlotError> {
        let damaged = |rule| SlotError::Header(FieldError::new("header", rule));
        let wire = wire::Header::decode(bytes).map_err(|_| damaged("is not a protobuf message of its type"))?;
        if wire.encode_to_vec() != bytes {
            return Err(damaged("is not in its canonical encoding"));
        }
        if wire.version != 1 {
            return Err(damaged("has a version that this software does not know"));
        }
        if wire.slots.is_empty() || wire.slots.len() > MAX_SLOTS {
            return Err(damaged("must have 1 to 8 slots"));
        }
        let store_id = wire.store_id[..]
            .try_into()
            .map_err(|_| damaged("must have a store id of 16 bytes"))?;
        let lockbox_id = LockboxId::from_slice("lockbox_id", &wire.lockbox_id).map_err(SlotError::Header)?;
        Ok(Self {
            wire,
            lockbox_id,
            store_id,
        })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.wire.encode_to_vec()
    }

    pub fn lockbox_id(&self) -> LockboxId {
        self.lockbox_id
    }

    pub fn store_id(&self) -> [u8; 16] {
        self.store_id
    }

    /// Number and kind of each slot.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &'static str)> {
        self.wire.slots.iter().map(|slot| {
            let kind = match slot.kind() {
                wire::SlotKind::Passphrase => "passphrase",
                wire::SlotKind::KeyFile => "key-file",
                wire::SlotKind::Unspecified => "unknown",
            };
            (slot.slot_id, kind)
        })
    }

    /// Adds a slot that opens with `secret`, and gives its number.
    pub fn add_slot(
        &mut self,
        secret: &SlotSecret,
        cost: PassphraseCost,
        root: &RootKey,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<u32, SlotError> {
        secret.check_length()?;
        if self.wire.slots.len() == MAX_SLOTS {
            return Err(SlotError::NoFreeSlot);
        }
        let slot_id = self.wire.slots.iter().map(|slot| slot.slot_id).max().unwrap_or(0) + 1;
        let mut slot = secret.empty_slot(slot_id, cost, now_ms, rng);
        let key = secret.slot_key(&slot, labels::SLOT_KEY_FILE)?;
        slot.sealed_root = aead_seal(key.expose(), root.expose(), &self.slot_aad(&slot), rng);
        self.wire.slots.push(slot);
        Ok(slot_id)
    }

    /// Tries each slot of the secret's kind, and gives the root key with the number of the slot that opened.
    pub fn open(&self, secret: &SlotSecret) -> Result<(u32, RootKey), SlotError> {
        secret.check_length()?;
        let mut refused = SlotError::NoSlotOpens;
        for slot in self.wire.slots.iter().filter(|slot| slot.kind() == secret.kind()) {
            match secret.slot_key(slot, labels::SLOT_KEY_FILE) {
                Ok(key) => {
                    if let Ok(root) = self.open_slot(slot, &key) {
                        return Ok((slot.slot_id, root));
                    }
                }
                // A slot whose cost is out of bounds is damaged; it does not shut the ones after it.
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn open_slot(&self, slot: &wire::SealSlot, key: &SlotKey) -> Result<RootKey, DoesNotOpen> {
        let opened = aead_open(key.expose(), &slot.sealed_root, &self.slot_aad(slot))?;
        let bytes: &[u8; 32] = opened[..].try_into().map_err(|_| DoesNotOpen)?;
        Ok(RootKey::init_with(|root| root.copy_from_slice(bytes)))
    }

    /// Label, header without slots, slot without the sealed root: no field of either can be exchanged.
    fn slot_aad(&self, slot: &wire::SealSlot) -> Vec<u8> {
        let header = wire::Header {
            slots: Vec::new(),
            ..self.wire.clone()
        };
        let slot = wire::SealSlot {
            sealed_root: Vec::new(),
            ..slot.clone()
        };
        let mut aad = labels::SLOT_ROOT.to_vec();
        aad.extend(header.encode_length_delimited_to_vec());
        aad.extend(slot.encode_length_delimited_to_vec());
        aad
    }
}

impl SlotSecret {
    pub(crate) fn kind(&self) -> wire::SlotKind {
        match self {
            Self::Passphrase(_) => wire::SlotKind::Passphrase,
            Self::KeyFile(_) => wire::SlotKind::KeyFile,
        }
    }

    /// A slot for this secret that seals nothing yet, with a new salt.
    pub(crate) fn empty_slot(
        &self,
        slot_id: u32,
        cost: PassphraseCost,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> wire::SealSlot {
        let mut salt = [0; 32];
        rng.fill_bytes(&mut salt);
        let mut slot = wire::SealSlot {
            slot_id,
            kind: self.kind().into(),
            salt: salt.to_vec(),
            created_at_ms: now_ms,
            ..Default::default()
        };
        if matches!(self, Self::Passphrase(_)) {
            slot.memory_kib = cost.memory_kib;
            slot.passes = cost.passes;
            slot.lanes = cost.lanes;
        }
        slot
    }

    pub(crate) fn check_length(&self) -> Result<(), SlotError> {
        match self {
            Self::Passphrase(bytes) if !(MIN_PASSPHRASE_BYTES..=MAX_PASSPHRASE_BYTES).contains(&bytes.len()) => {
                Err(SlotError::PassphraseLength)
            }
            Self::KeyFile(bytes) if !(MIN_KEY_FILE_BYTES..=MAX_KEY_FILE_BYTES).contains(&bytes.len()) => {
                Err(SlotError::KeyFileLength)
            }
            Self::Passphrase(_) | Self::KeyFile(_) => Ok(()),
        }
    }

    /// The key that seals a slot. `label` is the HKDF info for a key file.
    pub(crate) fn slot_key(&self, slot: &wire::SealSlot, label: &[u8]) -> Result<SlotKey, SlotError> {
        let mut outcome = Ok(());
        let key = SlotKey::init_with(|key| match self {
            Self::Passphrase(passphrase) => {
                outcome = if slot.memory_kib > MAX_ARGON2_MEMORY_KIB || slot.passes > MAX_ARGON2_PASSES {
                    Err(SlotError::Cost)
                } else {
                    argon2id(passphrase, &slot.salt, slot.memory_kib, slot.passes, slot.lanes, key)
                        .map_err(|_| SlotError::Cost)
                };
            }
            Self::KeyFile(bytes) => hkdf_sha256(&slot.salt, bytes, &[label], key),
        });
        outcome.map(|()| key)
    }
}

#[cfg(test)]
mod tests;
