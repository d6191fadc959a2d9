//! Keys and the other things that a lockbox keeps sealed.

use lockbox_authz::field::{self, FieldError, Labels};
use lockbox_authz::id::{AuthorizationId, KeyId, LockboxId, MaterialId};
use lockbox_authz::lineage;
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use crate::limits::{MAX_ALGORITHM_CHARS, MAX_CONSUMERS, MAX_CONSUMERS_BYTES, MAX_KEY_NAME_CHARS, MAX_MATERIAL_BYTES};
use crate::secrets::KeyMaterial;
use crate::wire;

pub use crate::wire::{ClonePolicy, Consumer, Departure, KeyOrigin, KeyState};

/// A key: its material and everything that belongs to it.
pub struct Key {
    pub info: KeyInfo,
    pub material: KeyMaterial,
}

/// Everything about a key but its material.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyInfo {
    pub key_id: KeyId,
    pub material_id: MaterialId,
    pub algorithm: String,
    /// Of the material.
    pub length_bytes: usize,
    pub state: KeyState,
    pub origin: KeyOrigin,
    pub name: String,
    pub created_at_ms: i64,
    pub labels: Labels,
    pub consumers: Vec<wire::Consumer>,
    pub clone_policy: ClonePolicy,
    pub transfer_policy: TransferPolicy,
    pub lineage: Option<Lineage>,
    /// Set while the key is scheduled for destruction. The state is then the one that a cancellation gives back.
    pub destruction: Option<Destruction>,
}

/// A key's scheduled destruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destruction {
    pub origin: DestructionOrigin,
    pub scheduled_at_ms: i64,
    /// The lockbox's run time at which the key is erased; in a backup, the run time that remained.
    pub due_run_ms: u64,
}

/// Who or what scheduled a destruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestructionOrigin {
    /// The end of this rotation: the data is under its new key.
    Rotation(KeyId),
}

/// The local veto: what the key's own lockbox lets a broker do with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferPolicy {
    pub pinned: bool,
    pub deny_copy: bool,
    pub deny_move: bool,
    /// The target must have each of these.
    pub required_target_labels: Labels,
    /// Nobody should ever ask for it: an authorization that selects it is refused, and raises an alarm.
    pub canary: bool,
}

/// Where a key stands in its family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    pub parent_key_id: KeyId,
    pub relation: String,
    /// The key that this one lies on, unless the relation says it. [`Lineage::lies_on`] has both.
    pub stated_lies_on: Option<KeyId>,
}

/// What remains of a key that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub key_id: KeyId,
    pub material_id: MaterialId,
    pub name: String,
    pub departure: Departure,
    pub departed_at_ms: i64,
    /// Under which authorization it left, and to whom; `None` unless moved.
    pub moved: Option<(AuthorizationId, LockboxId)>,
    pub lineage: Option<Lineage>,
}

impl Key {
    /// Decodes a key and checks every field. The bytes are a secret, and stay the caller's to zeroize.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let record = wire::KeyRecord::decode(bytes)
            .map_err(|_| FieldError::new("key record", "is not a protobuf message of its type"))?;
        Self::from_wire(record)
    }

    /// The sealed or travelling form. It is a secret.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.to_wire().encode_to_vec())
    }

    pub(crate) fn from_wire(mut record: wire::KeyRecord) -> Result<Self, FieldError> {
        field::version(record.version)?;
        let material = std::mem::take(&mut record.material);
        let length_bytes = material.len();
        let material = KeyMaterial::from_vec(material);
        if length_bytes == 0 || length_bytes > MAX_MATERIAL_BYTES {
            return Err(FieldError::new("material", "must have 1 to 512 bytes"));
        }
        let info = KeyInfo {
            key_id: KeyId::from_slice("key_id", &record.key_id)?,
            material_id: MaterialId::from_slice("material_id", &record.material_id)?,
            algorithm: std::mem::take(&mut record.algorithm),
            length_bytes,
            state: specified("state", record.state(), KeyState::Unspecified)?,
            origin: specified("origin", record.origin(), KeyOrigin::Unspecified)?,
            name: std::mem::take(&mut record.name),
            created_at_ms: record.created_at_ms,
            labels: Labels::from_wire(std::mem::take(&mut record.labels))?,
            consumers: std::mem::take(&mut record.consumers),
            clone_policy: record.clone_policy.unwrap_or_default(),
            transfer_policy: TransferPolicy::from_wire(record.transfer_policy.take().unwrap_or_default())?,
            lineage: record.lineage.take().map(Lineage::from_wire).transpose()?,
            destruction: record.destruction.take().map(Destruction::from_wire).transpose()?,
        };
        info.check()?;
        Ok(Self { info, material })
    }

    pub(crate) fn to_wire(&self) -> wire::KeyRecord {
        let info = &self.info;
        wire::KeyRecord {
            version: 1,
            key_id: info.key_id.to_vec(),
            material_id: info.material_id.to_vec(),
            algorithm: info.algorithm.clone(),
            material: self.material.expose().to_vec(),
            state: info.state.into(),
            origin: info.origin.into(),
            name: info.name.clone(),
            created_at_ms: info.created_at_ms,
            labels: info.labels.to_wire(),
            consumers: info.consumers.clone(),
            clone_policy: Some(info.clone_policy),
            transfer_policy: Some(info.transfer_policy.to_wire()),
            lineage: info.lineage.as_ref().map(Lineage::to_wire),
            destruction: info.destruction.map(Destruction::to_wire),
        }
    }
}

impl KeyInfo {
    /// The key that this one lies on: the nearest ancestor whose material old blocks are under.
    pub fn lies_on(&self) -> Option<KeyId> {
        self.lineage.as_ref().and_then(Lineage::lies_on)
    }

    /// Checks the texts and counts, for a key that is made here or arrives.
    pub(crate) fn check(&self) -> Result<(), FieldError> {
        field::text("algorithm", &self.algorithm, 1, MAX_ALGORITHM_CHARS)?;
        field::text("name", &self.name, 0, MAX_KEY_NAME_CHARS)?;
        field::time_ms("created_at_ms", self.created_at_ms)?;
        if self.consumers.len() > MAX_CONSUMERS {
            return Err(FieldError::new("consumers", "must be at most 64"));
        }
        let lineage = self.lineage.as_ref();
        if lineage.is_some_and(|lineage| lineage.parent_key_id == self.key_id) {
            return Err(FieldError::new("lineage", "names the key as its own parent"));
        }
        lineage::check_stated(self.key_id, lineage.and_then(|lineage| lineage.stated_lies_on))?;
        for consumer in &self.consumers {
            field::text("service", &consumer.service, 1, 64)?;
            field::text("resource_type", &consumer.resource_type, 1, 64)?;
            field::text("resource_id", &consumer.resource_id, 1, 128)?;
        }
        let bytes = |one: &Consumer| one.service.len() + one.resource_type.len() + one.resource_id.len();
        if self.consumers.iter().map(bytes).sum::<usize>() > MAX_CONSUMERS_BYTES {
            return Err(FieldError::new("consumers", "must take at most 32 KiB together"));
        }
        Ok(())
    }
}

impl TransferPolicy {
    fn from_wire(wire: wire::TransferPolicy) -> Result<Self, FieldError> {
        Ok(Self {
            pinned: wire.pinned,
            deny_copy: wire.deny_copy,
            deny_move: wire.deny_move,
            required_target_labels: Labels::from_wire(wire.required_target_labels)?,
            canary: wire.canary,
        })
    }

    fn to_wire(&self) -> wire::TransferPolicy {
        wire::TransferPolicy {
            pinned: self.pinned,
            deny_copy: self.deny_copy,
            deny_move: self.deny_move,
            required_target_labels: self.required_target_labels.to_wire(),
            canary: self.canary,
        }
    }
}

impl Destruction {
    fn from_wire(wire: wire::ScheduledDestruction) -> Result<Self, FieldError> {
        let origin = match wire.origin {
            Some(wire::scheduled_destruction::Origin::Rotation(job)) => {
                DestructionOrigin::Rotation(KeyId::from_slice("rotation", &job)?)
            }
            None => return Err(FieldError::new("origin", "must be one that this software knows")),
        };
        Ok(Self {
            origin,
            scheduled_at_ms: field::time_ms("scheduled_at_ms", wire.scheduled_at_ms)?,
            due_run_ms: wire.due_run_ms,
        })
    }

    fn to_wire(self) -> wire::ScheduledDestruction {
        let origin = match self.origin {
            DestructionOrigin::Rotation(job) => wire::scheduled_destruction::Origin::Rotation(job.to_vec()),
        };
        wire::ScheduledDestruction {
            origin: Some(origin),
            scheduled_at_ms: self.scheduled_at_ms,
            due_run_ms: self.due_run_ms,
        }
    }
}

impl Lineage {
    /// What the key lies on: the nearest ancestor whose material old blocks are under.
    pub fn lies_on(&self) -> Option<KeyId> {
        lineage::lies_on(self.parent_key_id, &self.relation, self.stated_lies_on)
    }

    fn from_wire(wire: wire::Lineage) -> Result<Self, FieldError> {
        field::text("relation", &wire.relation, 1, 32)?;
        let parent_key_id = KeyId::from_slice("parent_key_id", &wire.parent_key_id)?;
        Ok(Self {
            parent_key_id,
            stated_lies_on: lineage::stated_from_wire(parent_key_id, &wire.relation, &wire.lies_on_key_id)?,
            relation: wire.relation,
        })
    }

    fn to_wire(&self) -> wire::Lineage {
        wire::Lineage {
            parent_key_id: self.parent_key_id.to_vec(),
            relation: self.relation.clone(),
            lies_on_key_id: self.stated_lies_on.map(KeyId::to_vec).unwrap_or_default(),
        }
    }
}

impl Tombstone {
    /// Of a key that is destroyed now.
    pub(crate) fn destroyed(info: &KeyInfo, now_ms: i64) -> Self {
        Self {
            key_id: info.key_id,
            material_id: info.material_id,
            name: info.name.clone(),
            departure: Departure::Destroyed,
            departed_at_ms: now_ms,
            moved: None,
            lineage: info.lineage.clone(),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let wire = wire::Tombstone::decode(bytes)
            .map_err(|_| FieldError::new("tombstone", "is not a protobuf message of its type"))?;
        Self::from_wire(wire)
    }

    pub(crate) fn from_wire(wire: wire::Tombstone) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        let departure = specified("departure", wire.departure(), Departure::Unspecified)?;
        let moved = (departure == Departure::Moved)
            .then(|| {
                Ok::<_, FieldError>((
                    AuthorizationId::from_slice("authorization_id", &wire.authorization_id)?,
                    LockboxId::from_slice("target_id", &wire.target_id)?,
                ))
            })
            .transpose()?;
        let key_id = KeyId::from_slice("key_id", &wire.key_id)?;
        let lineage = wire.lineage.map(Lineage::from_wire).transpose()?;
        lineage::check_stated(key_id, lineage.as_ref().and_then(|lineage| lineage.stated_lies_on))?;
        Ok(Self {
            key_id,
            material_id: MaterialId::from_slice("material_id", &wire.material_id)?,
            name: wire.name,
            departure,
            departed_at_ms: wire.departed_at_ms,
            moved,
            lineage,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        self.to_wire().encode_to_vec()
    }

    pub(crate) fn to_wire(&self) -> wire::Tombstone {
        wire::Tombstone {
            version: 1,
            key_id: self.key_id.to_vec(),
            material_id: self.material_id.to_vec(),
            name: self.name.clone(),
            departure: self.departure.into(),
            departed_at_ms: self.departed_at_ms,
            authorization_id: self.moved.map(|(id, _)| id.to_vec()).unwrap_or_default(),
            target_id: self.moved.map(|(_, id)| id.to_vec()).unwrap_or_default(),
            lineage: self.lineage.as_ref().map(Lineage::to_wire),
        }
    }
}

fn specified<T: PartialEq>(field: &'static str, value: T, unspecified: T) -> Result<T, FieldError> {
    if value == unspecified {
        Err(FieldError::new(field, "must be one that this software knows"))
    } else {
        Ok(value)
    }
}

impl Drop for wire::KeyRecord {
    fn drop(&mut self) {
        self.material.zeroize();
    }
}

impl Drop for wire::SelfRecord {
    fn drop(&mut self) {
        self.identity_seed.zeroize();
        self.wrapping_seed.zeroize();
    }
}
