//! Who shares a material, who descends from whom, what lies on what, and what a job holds.
//!
//! | row | says | stays |
//! |---|---|---|
//! | material ‖ key | the key has the material | while the key is here |
//! | ancestor ‖ key | the ancestor is the key's parent, or the key lies on it | for good: it is history |
//! | ancestor ‖ key | the key lies on the ancestor | while the key is here |
//! | key ‖ job | the job needs the key | until the job ends |
//! | due ‖ key | the key is scheduled for destruction | until it is erased, or that is cancelled |
//! | name's digest ‖ key | the key has the name | while the key is here |
//!
//! A material that was made here has the id of the key that it was made for, and that key needs no material row: it is
//! looked for by its id. So a key without a name that shares nothing and descends from nobody costs no row.

use lockbox_authz::id::{KeyId, MaterialId};
use lockbox_authz::lineage;

use super::LifecycleError;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Key, KeyInfo, Lineage, Tombstone};
use crate::rows::Row;
use crate::vault::{Changes, PlacedRecord, Vault};

/// How a key descends from its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Snapshot,
    Share,
    Rekey,
    Layer,
    Rotate,
}

impl Relation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Share => "share",
            Self::Rekey => lineage::REKEY,
            Self::Layer => lineage::LAYER,
            Self::Rotate => "rotate",
        }
    }

    /// Whether both keys have one material.
    pub fn shares(self) -> bool {
        matches!(self, Self::Snapshot | Self::Share)
    }
}

/// Keys that lie on each other in one chain. A chain that has no end is a ring.
pub(crate) const MAX_LAYERS: usize = 64;

/// Keys of one family that are looked at.
pub(crate) const MAX_FAMILY: usize = 10_000;

/// The rows of a key that comes to be here.
pub(crate) fn index(info: &KeyInfo, vault: &Vault, changes: &mut Changes) {
    if !info.name.is_empty() {
        changes.put(Row::Named(vault.name_digest(&info.name), info.key_id), Vec::new());
    }
    if info.material_id.0 != info.key_id.0 {
        changes.put(Row::MaterialKey(info.material_id, info.key_id), Vec::new());
    }
    if let Some(lineage) = &info.lineage {
        index_descendant(lineage, info.key_id, changes);
    }
    if let Some(ancestor) = info.lies_on() {
        changes.put(Row::LiesOn(ancestor, info.key_id), Vec::new());
    }
    if let Some(destruction) = &info.destruction {
        changes.put(Row::Due(destruction.due_run_ms, info.key_id), Vec::new());
    }
}

/// The row that stays of a key that was here: those that descend from its parent, here or gone, are found by it.
pub(crate) fn index_departed(tombstone: &Tombstone, changes: &mut Changes) {
    if let Some(lineage) = &tombstone.lineage {
        index_descendant(lineage, tombstone.key_id, changes);
    }
}

/// What a key lies on leads to it even if its parent was never here.
fn index_descendant(lineage: &Lineage, key_id: KeyId, changes: &mut Changes) {
    for ancestor in [Some(lineage.parent_key_id), lineage.lies_on()].into_iter().flatten() {
        changes.put(Row::Descendant(ancestor, key_id), lineage.relation.clone().into_bytes());
    }
}

/// The rows of a key that is no longer here.
pub(crate) fn unindex(info: &KeyInfo, vault: &Vault, changes: &mut Changes) {
    remove_name(&info.name, info.key_id, vault, changes);
    remove_rows(info.key_id, info.material_id, info.lineage.as_ref(), changes);
    if let Some(destruction) = &info.destruction {
        changes.remove(Row::Due(destruction.due_run_ms, info.key_id));
    }
}

/// The row of a name that a key no longer has.
pub(crate) fn remove_name(name: &str, key_id: KeyId, vault: &Vault, changes: &mut Changes) {
    if !name.is_empty() {
        changes.remove(Row::Named(vault.name_digest(name), key_id));
    }
}

/// The same for a key that is erased already, while its rows may not be: power may have failed between the two.
pub(crate) fn unindex_departed(tombstone: &Tombstone, vault: &Vault, changes: &mut Changes) {
    remove_name(&tombstone.name, tombstone.key_id, vault, changes);
    remove_rows(
        tombstone.key_id,
        tombstone.material_id,
        tombstone.lineage.as_ref(),
        changes,
    );
}

fn remove_rows(key_id: KeyId, material_id: MaterialId, lineage: Option<&Lineage>, changes: &mut Changes) {
    if material_id.0 != key_id.0 {
        changes.remove(Row::MaterialKey(material_id, key_id));
    }
    if let Some(ancestor) = lineage.and_then(Lineage::lies_on) {
        changes.remove(Row::LiesOn(ancestor, key_id));
    }
}

impl Lockbox {
    /// The keys here with this material, ascending.
    pub fn keys_of_material(&self, material_id: MaterialId) -> Result<Vec<KeyId>, LockboxError> {
        let mut keys = self.second_ids(&Row::MaterialKey(material_id, KeyId([0; 16])).key()[..17])?;
        keys.extend(self.namesake(material_id)?.map(|key| key.info.key_id));
        keys.sort();
        Ok(keys)
    }

    /// The key that a material was made for, if it is here.
    pub(crate) fn namesake(&self, material_id: MaterialId) -> Result<Option<Key>, LockboxError> {
        let key = self.vault.key(KeyId(material_id.0))?;
        Ok(key.filter(|key| key.info.material_id == material_id))
    }

    /// The other keys of a material, ascending.
    pub(crate) fn indexed_keys_of(
        &self,
        material_id: MaterialId,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<Vec<KeyId>, LockboxError> {
        let after = after.map(|key_id| Row::MaterialKey(material_id, key_id).key());
        let prefix = &Row::MaterialKey(material_id, KeyId([0; 16])).key()[..17];
        let rows = self.vault.scan(prefix, after.as_deref(), limit)?;
        Ok(rows.iter().filter_map(second_id).collect())
    }

    /// The keys whose parent this one is, or that lie on it, here or gone.
    pub(crate) fn children(&self, key_id: KeyId) -> Result<Vec<KeyId>, LockboxError> {
        self.second_ids(&Row::Descendant(key_id, key_id).key()[..17])
    }

    /// The keys here that lie on this one, with none between them.
    pub(crate) fn keys_on(&self, key_id: KeyId) -> Result<Vec<KeyId>, LockboxError> {
        self.second_ids(&Row::LiesOn(key_id, key_id).key()[..17])
    }

    /// Refuses what would take this key from those that lie on it.
    pub(crate) fn check_bears_none(&self, key: KeyId) -> Result<(), LockboxError> {
        let bears = self.keys_on(key)?;
        if bears.is_empty() {
            return Ok(());
        }
        let layers = bears.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ");
        Err(LifecycleError::Layered { key, layers }.into())
    }

    /// The first job that needs this key.
    pub(crate) fn job_holding(&self, key_id: KeyId) -> Result<Option<KeyId>, LockboxError> {
        Ok(self.jobs_holding(key_id)?.first().copied())
    }

    pub(crate) fn jobs_holding(&self, key_id: KeyId) -> Result<Vec<KeyId>, LockboxError> {
        self.second_ids(&Row::HeldBy(key_id, key_id).key()[..17])
    }

    /// Whether any key here lies on another, or is held by a job: if none is, a transfer of a million keys need not ask of each.
    pub(crate) fn has_bonds(&self) -> Result<bool, LockboxError> {
        let any = |kind| Ok::<_, LockboxError>(!self.vault.scan(&[kind], None, 1)?.is_empty());
        let nobody = KeyId([0; 16]);
        Ok(any(Row::LiesOn(nobody, nobody).kind())? || any(Row::HeldBy(nobody, nobody).kind())?)
    }

    /// How many keys this one lies on, down to the first that is not here, and no more than [`MAX_LAYERS`].
    pub(crate) fn depth(&self, info: &KeyInfo) -> Result<usize, LockboxError> {
        let (mut depth, mut next) = (0, info.lies_on());
        while let Some(below) = next.filter(|_| depth < MAX_LAYERS) {
            depth += 1;
            next = self.vault.key(below)?.and_then(|ancestor| ancestor.info.lies_on());
        }
        Ok(depth)
    }

    /// All of them, however many: none may be overlooked when a material is known to strangers, or an ancestor is destroyed.
    pub(super) fn second_ids(&self, prefix: &[u8]) -> Result<Vec<KeyId>, LockboxError> {
        const PAGE: usize = 10_000;
        let mut ids = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.vault.scan(prefix, after.as_deref(), PAGE)?;
            let Some((last, _)) = rows.last() else {
                return Ok(ids);
            };
            after = Some(last.clone());
            ids.extend(rows.iter().filter_map(second_id));
        }
    }
}

fn second_id((place, _): &PlacedRecord) -> Option<KeyId> {
    place.last_chunk::<16>().map(|id| KeyId(*id))
}
