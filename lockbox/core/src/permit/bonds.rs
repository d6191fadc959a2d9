//! Keys that lie on each other travel as one. SPEC section 6.3, step 17.

use std::collections::BTreeMap;

use lockbox_authz::authorization::Operation;
use lockbox_authz::id::KeyId;

use super::Refusal;
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

/// Keys that travel in one chunk.
#[derive(Default)]
pub(super) struct Group {
    pub(super) key_ids: Vec<KeyId>,
    pub(super) bytes: usize,
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
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self.torn() {
            Some((_, refusal)) => Err(refusal),
            None => Ok(()),
        }
    }

    /// Leaves out what would be torn, and gives how many those are.
    pub(super) fn withhold(&mut self) -> u64 {
        let before = self.keys.len();
        while let Some((key, _)) = self.torn() {
            self.keys.remove(&key);
        }
        (before - self.keys.len()) as u64
    }

    /// The keys that lie on each other, the lowest first.
    pub(super) fn groups(&self) -> Vec<Group> {
        let is_lowest = |bond: &Bond| bond.below.is_none_or(|below| !self.keys.contains_key(&below));
        let lowest = self.keys.iter().filter(|(_, bond)| is_lowest(bond));
        lowest.map(|(key, _)| self.group_above(*key)).collect()
    }

    fn group_above(&self, lowest: KeyId) -> Group {
        let mut group = Group::default();
        let mut waiting = vec![lowest];
        while let Some(key) = waiting.pop() {
            // What lies on it and is not selected stays: a COPY leaves it what it lies on.
            let Some(bond) = self.keys.get(&key) else { continue };
            group.key_ids.push(key);
            group.bytes += bond.bytes;
            waiting.extend(&bond.above);
        }
        group
    }

    /// A key that can't leave without another, and why.
    fn torn(&self) -> Option<(KeyId, Refusal)> {
        self.keys.iter().find_map(|(key, bond)| {
            let key = *key;
            let missing = bond.below.filter(|below| !self.keys.contains_key(below));
            if let Some(ancestor) = missing {
                return Some((key, Refusal::MissingAncestor { key, ancestor }));
            }
            if self.operation != Operation::Move {
                return None;
            }
            let left = bond.above.iter().find(|layer| !self.keys.contains_key(layer));
            left.map(|layer| (key, Refusal::LayerLeftBehind { key, layer: *layer }))
        })
    }
}
