//! Keys that lie on each other: which of them may leave, and with which others. SPEC section 6.3, step 17.
//!
//! A MOVE erases a chunk at the source when it is stored at the target, so a family that a chunk boundary parted would for a
//! while be whole nowhere: it takes a family as one, in one chunk or in chunks that are erased in one step. A COPY erases
//! nothing, and a key needs no more than what it lies on. A target stores chunks in their order, so that may have come in an
//! earlier one.

use std::collections::BTreeMap;

use lockbox_authz::authorization::Operation;
use lockbox_authz::id::KeyId;
use lockbox_authz::limits::MAX_SELECTED_KEYS;

use super::Refusal;
use super::plan::Withheld;
use crate::lifecycle::family::MAX_LAYERS;
use crate::limits::{MAX_CHUNK_BYTES, MAX_FAMILY_CHUNKS};
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::Key;

/// The selected keys that lie on others, or others on them.
pub(super) struct Bonds {
    /// Whether this lockbox has any key that lies on another, or any job.
    pub(super) any: bool,
    operation: Operation,
    keys: BTreeMap<KeyId, Bond>,
}

struct Bond {
    /// Of the record in a chunk.
    bytes: usize,
    /// What it lies on.
    below: Option<KeyId>,
    /// What lies on it.
    above: Vec<KeyId>,
}

/// Keys that travel as one, each after what it lies on.
pub(super) struct Group {
    keys: Vec<Member>,
}

#[derive(Clone, Copy)]
struct Member {
    key_id: KeyId,
    /// Of the record in a chunk.
    bytes: usize,
}

/// Of a key's record in a chunk: the field's tag and length take at most 4 bytes.
pub(super) fn bytes_of(key: &Key) -> usize {
    key.encode().len() + 4
}

impl Bonds {
    pub(super) fn new(any: bool, operation: Operation) -> Self {
        Self {
            any,
            operation,
            keys: BTreeMap::new(),
        }
    }

    /// Takes a key that may leave, if it is bound to another.
    pub(super) fn take(&mut self, lockbox: &Lockbox, key: &Key) -> Result<bool, LockboxError> {
        let info = &key.info;
        let below = info.lies_on();
        let above = match self.any {
            true => lockbox.keys_on(info.key_id)?,
            false => Vec::new(),
        };
        if below.is_none() && above.is_empty() {
            return Ok(false);
        }
        let bytes = bytes_of(key);
        self.keys.insert(info.key_id, Bond { bytes, below, above });
        Ok(true)
    }

    /// Refuses a chain that would be torn.
    pub(super) fn check(&self, lockbox: &Lockbox) -> Result<(), Refusal> {
        let refusal = self.keys.iter().find_map(|(key, bond)| self.torn(*key, bond));
        match refusal {
            None => Ok(()),
            // To be told of one layer after the other would not help: they can't all be named.
            Some(Refusal::LayerLeftBehind { key, layer }) => Err(match self.too_wide(lockbox, key)? {
                Some(lowest) => Refusal::TooManyToName(lowest),
                None => Refusal::LayerLeftBehind { key, layer },
            }),
            Some(refusal) => Err(refusal),
        }
    }

    /// Leaves out what would be torn, and notes it. Each key is left out once, and looks then at what it is bound to: the work
    /// grows with the keys and their bonds.
    pub(super) fn withhold(&mut self, withheld: &mut Withheld) {
        let torn = self.keys.iter().filter(|(key, bond)| self.torn(**key, bond).is_some());
        let mut waiting: Vec<KeyId> = torn.map(|(key, _)| *key).collect();
        while let Some(key) = waiting.pop() {
            let why = self.keys.get(&key).and_then(|bond| self.torn(key, bond));
            let (Some(why), Some(bond)) = (why, self.keys.remove(&key)) else {
                continue;
            };
            withheld.add(key, &why);
            // What lies on it lacks it now; and a MOVE of what it lies on would leave it behind.
            waiting.extend(bond.above);
            if self.operation == Operation::Move {
                waiting.extend(bond.below);
            }
        }
    }

    /// What travels as one each, in the order in which it is to be planned: for a MOVE whole families, for a COPY each
    /// key by itself, after what it lies on.
    pub(super) fn groups(&self) -> Vec<Group> {
        let is_lowest = |bond: &Bond| bond.below.is_none_or(|below| !self.keys.contains_key(&below));
        let lowest = self.keys.iter().filter(|(_, bond)| is_lowest(bond));
        let families = lowest.map(|(key, _)| self.family_on(*key));
        match self.operation {
            Operation::Move => families.collect(),
            Operation::Copy => families.flat_map(Group::one_by_one).collect(),
        }
    }

    fn family_on(&self, lowest: KeyId) -> Group {
        let mut keys = Vec::new();
        let mut waiting = vec![lowest];
        while let Some(key_id) = waiting.pop() {
            // What lies on it and is not selected stays: a COPY leaves it what it lies on.
            let Some(bond) = self.keys.get(&key_id) else { continue };
            let bytes = bond.bytes;
            keys.push(Member { key_id, bytes });
            waiting.extend(&bond.above);
        }
        Group { keys }
    }

    /// Why a key can't leave without another.
    fn torn(&self, key: KeyId, bond: &Bond) -> Option<Refusal> {
        let missing = bond.below.filter(|below| !self.keys.contains_key(below));
        if let Some(ancestor) = missing {
            return Some(Refusal::MissingAncestor { key, ancestor });
        }
        if self.operation != Operation::Move {
            return None;
        }
        let left = bond.above.iter().find(|layer| !self.keys.contains_key(layer));
        left.map(|layer| Refusal::LayerLeftBehind { key, layer: *layer })
    }

    /// The lowest key of a family, if the family has more keys here than can be named, selected or not.
    fn too_wide(&self, lockbox: &Lockbox, key: KeyId) -> Result<Option<KeyId>, LockboxError> {
        let mut lowest = key;
        for _ in 0..MAX_LAYERS {
            let below = self.keys.get(&lowest).and_then(|bond| bond.below);
            lowest = below.unwrap_or(lowest);
        }
        let (mut count, mut waiting) = (0, vec![lowest]);
        while let Some(next) = waiting.pop() {
            count += 1;
            waiting.extend(lockbox.keys_on(next)?);
            if count + waiting.len() > MAX_SELECTED_KEYS {
                return Ok(Some(lowest));
            }
        }
        Ok(None)
    }
}

impl Group {
    pub(super) fn key_ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.key_id).collect()
    }

    /// How many they are.
    pub(super) fn count(&self) -> usize {
        self.keys.len()
    }

    /// Of their records in a chunk.
    pub(super) fn bytes(&self) -> usize {
        self.keys.iter().map(|key| key.bytes).sum()
    }

    /// What of them travels in one chunk each, in their order. `None` if the chunks would be too many to be erased in one step.
    pub(super) fn parts(self, most_keys: usize) -> Option<Vec<Self>> {
        let mut parts: Vec<Self> = Vec::new();
        let mut bytes = 0;
        for key in self.keys {
            bytes += key.bytes;
            let fits = |part: &Self| part.count() < most_keys && bytes <= MAX_CHUNK_BYTES - 8;
            if !parts.last().is_some_and(fits) {
                bytes = key.bytes;
                parts.push(Self { keys: Vec::new() });
            }
            let part = parts.last_mut().expect("one was pushed if there was none");
            part.keys.push(key);
        }
        (parts.len() <= MAX_FAMILY_CHUNKS).then_some(parts)
    }

    /// The key that all the others lie on, if they were not taken apart.
    pub(super) fn lowest(&self) -> KeyId {
        self.keys[0].key_id
    }

    fn one_by_one(self) -> impl Iterator<Item = Self> {
        self.keys.into_iter().map(|key| Self { keys: vec![key] })
    }
}

#[cfg(test)]
mod tests;
