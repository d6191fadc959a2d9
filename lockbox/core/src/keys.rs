//! Making, listing and destroying keys. SPEC section 8.

use lockbox_authz::field::{FieldError, Labels};
use lockbox_authz::id::{AuthorizationId, KeyId};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::damaged::Traces;
use crate::lifecycle::LifecycleError;
use crate::lifecycle::change::consumer_text;
use crate::lifecycle::derive::new_ids;
use crate::lifecycle::destruction::erase;
use crate::lifecycle::family::index;
use crate::limits::{DEFAULT_GENERATED_BYTES, MAX_MATERIAL_BYTES, MIN_GENERATED_BYTES};
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{ClonePolicy, Consumer, Departure, Key, KeyInfo, KeyOrigin, KeyState, Tombstone, TransferPolicy};
use crate::rows::Row;
use crate::secrets::KeyMaterial;
use crate::step::Step;
use crate::vault::{Changes, Each, lost_record};

/// What stands in place of the state of a key that can't be read.
pub const DAMAGED: &str = "damaged";

/// What a new key is to be like.
#[derive(Clone, Debug, Default)]
pub struct KeyRequest {
    /// Given by a caller that may have to repeat its request.
    pub key_id: Option<KeyId>,
    pub name: String,
    /// `None` for "aes-xts-plain64".
    pub algorithm: Option<String>,
    pub labels: Labels,
    pub clone_policy: ClonePolicy,
    pub transfer_policy: TransferPolicy,
    pub consumers: Vec<Consumer>,
}

/// A key that is here, or what remains of one that was.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyEntry {
    Here {
        info: KeyInfo,
        open_transfer: Option<AuthorizationId>,
        /// Why it can't be told whether it is part of one, if that is so. The key itself is whole.
        damage: Option<String>,
    },
    Gone(Tombstone),
    /// A record of it, or of what remains of it, can't be read. Nothing but its id is known.
    Damaged(DamagedKey),
}

/// A key that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedKey {
    pub key_id: KeyId,
    /// Which record is damaged, and how.
    pub why: String,
    /// Whether it is gone, and what can't be read is what remains of it.
    pub departed: bool,
}

impl KeyEntry {
    pub fn key_id(&self) -> KeyId {
        match self {
            Self::Here { info, .. } => info.key_id,
            Self::Gone(tombstone) => tombstone.key_id,
            Self::Damaged(damaged) => damaged.key_id,
        }
    }
}

/// A key that was destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    pub tombstone: Tombstone,
    /// The keys here that still have its material: it dies with the last of them.
    pub remaining: Vec<KeyId>,
    /// Whether its record could not be read any more.
    pub was_damaged: bool,
}

impl Lockbox {
    /// Makes a key of `length_bytes` (16 to 512; `None` for 64).
    ///
    /// With a key id that is taken by a key of the same attributes, the existing key is given: the request was repeated.
    ///
    /// # Errors
    ///
    /// [`LockboxError::NameTaken`] if another key here has the name; [`LockboxError::KeyExists`] if the id is another key's.
    pub fn create_key(
        &mut self,
        request: KeyRequest,
        length_bytes: Option<usize>,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        let length = length_bytes.unwrap_or(DEFAULT_GENERATED_BYTES);
        if !(MIN_GENERATED_BYTES..=MAX_MATERIAL_BYTES).contains(&length) {
            return Err(FieldError::new("length", "must be 16 to 512 bytes").into());
        }
        let material = KeyMaterial::random(length, rng);
        self.add_key(request, KeyOrigin::Generated, material, now_ms, rng)
    }

    /// Takes a key that was made elsewhere, of 1 to 512 bytes.
    pub fn import_key(
        &mut self,
        request: KeyRequest,
        material: KeyMaterial,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        if !(1..=MAX_MATERIAL_BYTES).contains(&material.expose().len()) {
            return Err(FieldError::new("material", "must have 1 to 512 bytes").into());
        }
        self.add_key(request, KeyOrigin::Imported, material, now_ms, rng)
    }

    /// A key with its material, for a consumer on this machine.
    pub fn reveal_key(&self, key_id: KeyId) -> Result<Key, LockboxError> {
        let key = self.held_key(key_id)?;
        key.info.check_not_scheduled()?;
        let rules = key.info.rules();
        if !rules.reads {
            let what = "is given to nobody until it is active again";
            let state = rules.name;
            return Err(LifecycleError::State {
                key: key_id,
                state,
                what,
            }
            .into());
        }
        Ok(key)
    }

    /// A key that is here, or why it is not.
    pub(crate) fn held_key(&self, key_id: KeyId) -> Result<Key, LockboxError> {
        if let Some(key) = self.vault.key(key_id)? {
            return Ok(key);
        }
        Err(match self.tombstone(key_id)? {
            None => LockboxError::NoKey(key_id),
            Some(tombstone) => match tombstone.moved {
                Some((_, target)) => LockboxError::WasMoved { key: key_id, target },
                None => LockboxError::WasDestroyed(key_id),
            },
        })
    }

    /// A key without its material, or what remains of it.
    pub fn key(&self, key_id: KeyId) -> Result<KeyEntry, LockboxError> {
        if let Some(key) = self.vault.key(key_id)? {
            return self.entry_of_key(key.info);
        }
        match self.tombstone(key_id)? {
            Some(tombstone) => Ok(KeyEntry::Gone(tombstone)),
            None => Err(LockboxError::NoKey(key_id)),
        }
    }

    /// Keys in the order of their ids. One that is damaged takes no other with it.
    pub fn keys_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyEntry>, LockboxError> {
        let keys = self.vault.each_key_after(after, limit)?;
        let entry = |Each { key_id, read }: Each<Key>| {
            let entry = read
                .map_err(LockboxError::from)
                .and_then(|key| self.entry_of_key(key.info));
            or_damaged(key_id, false, entry)
        };
        keys.into_iter().map(entry).collect()
    }

    /// A key whose mark of a transfer is damaged is served all the same, so it is no damaged key.
    fn entry_of_key(&self, info: KeyInfo) -> Result<KeyEntry, LockboxError> {
        let (open_transfer, damage) = match self.open_transfer_of(info.key_id) {
            Err(error) if error.is_of_one_record() => (None, Some(error.to_string())),
            open_transfer => (open_transfer?, None),
        };
        Ok(KeyEntry::Here {
            info,
            open_transfer,
            damage,
        })
    }

    /// What remains of keys that are gone, in the order of their ids, as [`Lockbox::tombstones_after`] has it; but one that is
    /// damaged takes no other with it.
    pub fn departed_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyEntry>, LockboxError> {
        let after = after.map(|id| Row::Tombstone(id).key());
        let kind = Row::Tombstone(KeyId([0; 16])).kind();
        let records = self.vault.each_record_of_keys(kind, after.as_deref(), limit)?;
        let entry = |Each { key_id, read }: Each<Zeroizing<Vec<u8>>>| {
            let tombstone = read
                .map_err(LockboxError::from)
                .and_then(|bytes| decode_tombstone(&bytes));
            or_damaged(key_id, true, tombstone.map(KeyEntry::Gone))
        };
        records.into_iter().map(entry).collect()
    }

    /// What remains of keys that are gone, in the order of their ids. A key that was moved away and came back is here, and
    /// not among them.
    pub fn tombstones_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<Tombstone>, LockboxError> {
        let after = after.map(|id| Row::Tombstone(id).key());
        let rows = self
            .vault
            .scan(&[Row::Tombstone(KeyId([0; 16])).kind()], after.as_deref(), limit)?;
        rows.iter().map(|(_, bytes)| decode_tombstone(bytes)).collect()
    }

    pub fn key_count(&self) -> u64 {
        self.vault.key_count()
    }

    /// Erases a key for good. A key that was destroyed already is no error: the request was repeated.
    pub fn destroy_key(
        &mut self,
        key_id: KeyId,
        force: bool,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Destroyed>, LockboxError> {
        self.destroy_traced_key(key_id, force, None, now_ms, rng)
    }

    /// The same. If the key can't be read, what tells what it was need not be looked for in this step.
    pub fn destroy_traced_key(
        &mut self,
        key_id: KeyId,
        force: bool,
        traces: Option<Traces>,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Destroyed>, LockboxError> {
        let key = match self.key_or_lost(key_id) {
            Ok(Some(key)) => key,
            Ok(None) => return self.destroyed_before(key_id),
            Err(error) if error.is_of_one_record() => {
                return self.destroy_damaged(key_id, &error, force, traces, now_ms, rng);
            }
            Err(error) => return Err(error),
        };
        self.check_destroy(key_id, None)?;
        if !force && !key.info.consumers.is_empty() {
            let names: Vec<_> = key.info.consumers.iter().map(consumer_text).collect();
            return Err(LockboxError::KeyInUse {
                key: key_id,
                consumers: names.join(", "),
            });
        }
        let mut changes = Changes::default();
        let tombstone = erase(&key.info, now_ms, &self.vault, &mut changes);
        let remaining = self.other_keys_of_material(&key.info)?;
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(
            batches,
            Destroyed {
                tombstone,
                remaining,
                was_damaged: false,
            },
        ))
    }

    /// A key; an error also if its record is lost, as far as that was found, while its data-encryption key is there.
    pub(crate) fn key_or_lost(&self, key_id: KeyId) -> Result<Option<Key>, LockboxError> {
        match self.vault.key(key_id)? {
            None if self.vault.is_lost(key_id)? => Err(lost_record(key_id).into()),
            key => Ok(key),
        }
    }

    fn destroyed_before(&self, key_id: KeyId) -> Result<Step<Destroyed>, LockboxError> {
        let tombstone = self.tombstone(key_id)?;
        let destroyed = tombstone.filter(|tombstone| tombstone.departure == Departure::Destroyed);
        let tombstone = destroyed.ok_or(LockboxError::NoKey(key_id))?;
        let remaining = self.keys_of_material(tombstone.material_id)?;
        let was_damaged = false;
        Ok(Step::new(
            Vec::new(),
            Destroyed {
                tombstone,
                remaining,
                was_damaged,
            },
        ))
    }

    /// Whether a key may be destroyed, its consumers aside. The one job that may need it is the one that destroys it.
    pub(crate) fn check_destroy(&self, key: KeyId, by_job: Option<KeyId>) -> Result<(), LockboxError> {
        if let Some(transfer) = self.open_transfer_of(key)? {
            return Err(LockboxError::KeyInTransfer { key, transfer });
        }
        self.check_bears_none(key)?;
        let jobs = self.jobs_holding(key)?;
        match jobs.into_iter().find(|job| Some(*job) != by_job) {
            Some(job) => Err(LifecycleError::InJob { key, job }.into()),
            None => Ok(()),
        }
    }

    /// Whether a new key may have this id: none here or lost, none destroyed, none on its way.
    pub(crate) fn check_new_id(&self, key_id: KeyId) -> Result<(), LockboxError> {
        // Another key in its place would take away the last that opens its record, should that be found again.
        if self.vault.is_lost(key_id)? {
            return Err(lost_record(key_id).into());
        }
        if let Some(tombstone) = self.tombstone(key_id)? {
            return Err(match tombstone.moved {
                Some((_, target)) => LockboxError::WasMoved { key: key_id, target },
                None => LockboxError::WasDestroyed(key_id),
            });
        }
        match self.open_transfer_of(key_id)? {
            Some(transfer) => Err(LockboxError::KeyInTransfer { key: key_id, transfer }),
            None => Ok(()),
        }
    }

    pub(crate) fn tombstone(&self, key_id: KeyId) -> Result<Option<Tombstone>, LockboxError> {
        let bytes = self.vault.read(Row::Tombstone(key_id))?;
        bytes.map(|bytes| decode_tombstone(&bytes)).transpose()
    }

    /// The open outgoing transfer that a key is part of. A mark whose transfer has ended, or whose plan was cut off before
    /// it was complete, counts for nothing.
    pub(crate) fn open_transfer_of(&self, key_id: KeyId) -> Result<Option<AuthorizationId>, LockboxError> {
        let Some(bytes) = self.vault.read(Row::OutgoingKey(key_id))? else {
            return Ok(None);
        };
        let id = AuthorizationId::from_slice("authorization_id", &bytes).map_err(|source| LockboxError::Record {
            what: "a key's transfer",
            source,
        })?;
        let is_open = self.outgoing(id)?.is_some_and(|outgoing| outgoing.is_open());
        Ok(is_open.then_some(id))
    }

    fn add_key(
        &mut self,
        request: KeyRequest,
        origin: KeyOrigin,
        material: KeyMaterial,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        let (key_id, material_id) = new_ids(request.key_id, rng);
        let info = KeyInfo {
            key_id,
            material_id,
            algorithm: request.algorithm.unwrap_or_else(|| "aes-xts-plain64".to_owned()),
            length_bytes: material.expose().len(),
            state: KeyState::Active,
            origin,
            name: request.name,
            created_at_ms: now_ms,
            labels: request.labels,
            consumers: request.consumers,
            clone_policy: request.clone_policy,
            transfer_policy: request.transfer_policy,
            lineage: None,
            destruction: None,
        };
        info.check()?;
        if let Some(existing) = self.vault.key(key_id)? {
            existing.info.check_not_scheduled()?;
            let same_secret = origin == KeyOrigin::Generated || existing.material.equals(&material);
            return if same_secret && is_repetition(&existing.info, &info) {
                Ok(Step::new(Vec::new(), existing.info))
            } else {
                Err(LockboxError::KeyExists(key_id))
            };
        }
        self.check_new_id(key_id)?;
        self.check_new_name(&info.name, key_id)?;
        let mut changes = Changes::default();
        index(&info, &self.vault, &mut changes);
        changes.put_key(Key {
            info: info.clone(),
            material,
        });
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, info))
    }
}

/// A key that can't be read is an entry, too. What the store itself refuses is an error.
fn or_damaged(key_id: KeyId, departed: bool, entry: Result<KeyEntry, LockboxError>) -> Result<KeyEntry, LockboxError> {
    match entry {
        Err(error) if error.is_of_one_record() => {
            let why = error.to_string();
            Ok(KeyEntry::Damaged(DamagedKey { key_id, why, departed }))
        }
        entry => entry,
    }
}

/// Whether a request would have made this very key, but for what differs each time.
fn is_repetition(existing: &KeyInfo, wanted: &KeyInfo) -> bool {
    let wanted = KeyInfo {
        material_id: existing.material_id,
        created_at_ms: existing.created_at_ms,
        ..wanted.clone()
    };
    *existing == wanted
}

fn decode_tombstone(bytes: &[u8]) -> Result<Tombstone, LockboxError> {
    Tombstone::decode(bytes).map_err(|source| LockboxError::Record {
        what: "a key that is gone",
        source,
    })
}

pub(crate) fn random<const N: usize>(rng: &mut dyn CryptoRng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}
