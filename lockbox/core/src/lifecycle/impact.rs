//! Compromise, and what a key's material opens. SPEC section 13.5.

use std::collections::{BTreeMap, BTreeSet};

use lockbox_authz::id::{KeyId, MaterialId};
use lockbox_authz::impact::{Finding, Holding, assess};
use rand_core::CryptoRng;

use super::family::MAX_FAMILY;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Key, KeyInfo, KeyState};
use crate::step::Step;
use crate::vault::Changes;

/// What this lockbox knows of a material's reach.
#[derive(Clone, Debug, PartialEq)]
pub struct Impact {
    pub material_id: MaterialId,
    pub findings: Vec<Finding>,
    /// Whether the family is larger than what was looked at.
    pub truncated: bool,
}

impl Lockbox {
    /// Marks every key here that has the material of this one. It is allowed at any time, also while they travel: that
    /// strangers know a material does not wait.
    ///
    /// Gives the keys that were not marked before.
    pub fn compromise_key(
        &mut self,
        key_id: KeyId,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Vec<KeyInfo>>, LockboxError> {
        let material_id = self.material_of(key_id)?;
        let mut changes = Changes::default();
        let mut marked = Vec::new();
        for key_id in self.keys_of_material(material_id)? {
            // A row may have outlived its key in a power cut; that must not keep the others from being marked.
            let Some(mut key) = self.vault.key(key_id)? else {
                continue;
            };
            if key.info.state != KeyState::Compromised {
                key.info.state = KeyState::Compromised;
                marked.push(key.info.clone());
                changes.put_key(key);
            }
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, marked))
    }

    /// What the material of a key, here or gone, opens, as far as this lockbox knows.
    pub fn impact(&self, key_id: KeyId) -> Result<Impact, LockboxError> {
        let material_id = self.material_of(key_id)?;
        let mut family = BTreeMap::new();
        let mut materials = BTreeSet::from([material_id]);
        let mut waiting = self.keys_of_material(material_id)?;
        waiting.push(key_id);
        while let Some(next) = waiting.pop() {
            if family.len() >= MAX_FAMILY {
                break;
            }
            if family.contains_key(&next) {
                continue;
            }
            let entry = self.inventory_entry(next)?;
            if let Some(entry) = &entry {
                let ancestors = entry
                    .parent
                    .iter()
                    .flat_map(|parent| [Some(parent.key_id), parent.lies_on()]);
                waiting.extend(ancestors.flatten());
                // A material has as many keys as there are snapshots: they are looked up once.
                if materials.insert(entry.material_id) {
                    waiting.extend(self.keys_of_material(entry.material_id)?);
                }
            }
            waiting.extend(self.children(next)?);
            family.insert(next, entry);
        }
        let truncated = !waiting.is_empty() && family.len() >= MAX_FAMILY;
        let lockbox_id = self.identity.lockbox_id;
        let holdings = family.into_values().flatten();
        let holdings = holdings.map(|entry| Holding { lockbox_id, entry });
        Ok(Impact {
            material_id,
            findings: assess(&BTreeSet::from([material_id]), None, holdings),
            truncated,
        })
    }

    /// Marks those that arrive if a notice has named their material, or a key with it is compromised, and gives the keys here
    /// that have to be stored as compromised since one that arrives is. Which of them was first does not matter.
    ///
    /// Of two keys the bytes are compared, too: the id alone is the sender's word. A notice has ids only, and what is said to
    /// have a material that it names is marked.
    pub(crate) fn spread_compromise(&self, arriving: &mut [Key]) -> Result<Vec<Key>, LockboxError> {
        let materials: BTreeSet<MaterialId> = arriving.iter().map(|key| key.info.material_id).collect();
        for material_id in &materials {
            if self.is_noticed(*material_id)? {
                let named = arriving.iter_mut().filter(|key| key.info.material_id == *material_id);
                named.for_each(|key| key.info.state = KeyState::Compromised);
            }
        }
        let mut here = Vec::new();
        for material_id in materials {
            for key_id in self.keys_of_material(material_id)? {
                here.extend(self.vault.key(key_id)?);
            }
        }
        let is_compromised = |key: &&Key| key.info.state == KeyState::Compromised;
        let mut known: BTreeMap<MaterialId, Vec<&Key>> = BTreeMap::new();
        for key in arriving.iter().chain(&here).filter(is_compromised) {
            let others = known.entry(key.info.material_id).or_default();
            if !others.iter().any(|other| other.material.equals(&key.material)) {
                others.push(key);
            }
        }
        let marked = |key: &Key| {
            let mut others = known.get(&key.info.material_id).into_iter().flatten();
            let is_known = others.any(|other| other.material.equals(&key.material));
            (is_known && !is_compromised(&key)).then_some(key.info.key_id)
        };
        let marked_here: BTreeSet<KeyId> = here.iter().filter_map(marked).collect();
        let marked_arriving: BTreeSet<KeyId> = arriving.iter().filter_map(marked).collect();
        let arriving_ids: BTreeSet<KeyId> = arriving.iter().map(|key| key.info.key_id).collect();
        here.retain(|key| marked_here.contains(&key.info.key_id) && !arriving_ids.contains(&key.info.key_id));
        let arriving = arriving
            .iter_mut()
            .filter(|key| marked_arriving.contains(&key.info.key_id));
        for key in arriving.chain(&mut here) {
            key.info.state = KeyState::Compromised;
        }
        Ok(here)
    }

    fn material_of(&self, key_id: KeyId) -> Result<MaterialId, LockboxError> {
        if let Some(key) = self.vault.key(key_id)? {
            return Ok(key.info.material_id);
        }
        let tombstone = self.tombstone(key_id)?.ok_or(LockboxError::NoKey(key_id))?;
        Ok(tombstone.material_id)
    }

    /// The keys here that have a key's material beside it.
    pub(crate) fn other_keys_of_material(&self, info: &KeyInfo) -> Result<Vec<KeyId>, LockboxError> {
        let mut keys = self.keys_of_material(info.material_id)?;
        keys.retain(|other| *other != info.key_id);
        Ok(keys)
    }
}
