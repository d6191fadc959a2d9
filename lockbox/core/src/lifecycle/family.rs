//! Who shares a material, who descends from whom, what lies on what, and what a job holds.
//!
//! | row | says | stays |
//! |---|---|---|
//! | material ‖ key | the key has the material | while the key is here |
//! | parent ‖ key | the key descends from the parent | for good: it is history |
//! | ancestor ‖ key | the key is a layer on the ancestor | while the key is here |
//! | key ‖ job | the job needs the key | until the job ends |
//!
//! A material that was made here has the id of the key that it was made for, and that key needs no material row: it is
//! looked for by its id. So a key that shares nothing and descends from nobody costs no row.

use lockbox_authz::id::{KeyId, MaterialId};

use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Key, KeyInfo, Lineage, Tombstone};
use crate::rows::Row;
use crate::vault::{Changes, PlacedRecord};

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
            Self::Rekey => "rekey",
            Self::Layer => "layer",
            Self::Rotate => "rotate",
        }
    }

    /// Whether both keys have one material.
    pub fn shares(self) -> bool {
        matches!(self, Self::Snapshot | Self::Share)
    }
}

impl Lineage {
    pub(crate) fn is_layer(&self) -> bool {
        self.relation == Relation::Layer.name()
    }
}

/// Layers in one chain: a chain travels in one chunk.
pub(crate) const MAX_LAYERS: usize = 64;

/// Keys of one family that are looked at.
pub(crate) const MAX_FAMILY: usize = 10_000;

/// The rows of a key that comes to be here.
pub(crate) fn index(info: &KeyInfo, changes: &mut Changes) {
    if info.material_id.0 != info.key_id.0 {
        changes.put(Row::MaterialKey(info.material_id, info.key_id), Vec::new());
    }
    if let Some(lineage) = &info.lineage {
        changes.put(
            Row::Descendant(lineage.parent_key_id, info.key_id),
            lineage.relation.clone().into_bytes(),
        );
        if lineage.is_layer() {
            changes.put(Row::LayerOn(lineage.parent_key_id, info.key_id), Vec::new());
        }
    }
}

/// The row that stays of a key that was here: those that descend from its parent, here or gone, are found by it.
pub(crate) fn index_departed(tombstone: &Tombstone, changes: &mut Changes) {
    if let Some(lineage) = &tombstone.lineage {
        changes.put(
            Row::Descendant(lineage.parent_key_id, tombstone.key_id),
            lineage.relation.clone().into_bytes(),
        );
    }
}

/// The rows of a key that is no longer here.
pub(crate) fn unindex(info: &KeyInfo, changes: &mut Changes) {
    remove_rows(info.key_id, info.material_id, info.lineage.as_ref(), changes);
}

/// The same for a key that is erased already, while its rows may not be: power may have failed between the two.
pub(crate) fn unindex_departed(tombstone: &Tombstone, changes: &mut Changes) {
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
    if let Some(lineage) = lineage.filter(|lineage| lineage.is_layer()) {
        changes.remove(Row::LayerOn(lineage.parent_key_id, key_id));
    }
}

impl Lockbox {
    /// The keys here with this material, ascending.
    pub fn keys_of_material(&self, material_id: MaterialId) -> Result<Vec<KeyId>, LockboxError> {
        let mut keys = self.indexed_keys_of(material_id, None, MAX_FAMILY)?;
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

    /// The keys that descend from this one directly, here or gone.
    pub(crate) fn children(&self, key_id: KeyId) -> Result<Vec<KeyId>, LockboxError> {
        self.second_ids(&Row::Descendant(key_id, key_id).key()[..17])
    }

    /// The layers here that lie on this key directly.
    pub(crate) fn layers_on(&self, key_id: KeyId) -> Result<Vec<KeyId>, LockboxError> {
        self.second_ids(&Row::LayerOn(key_id, key_id).key()[..17])
    }

    /// The first job that needs this key.
    pub(crate) fn job_holding(&self, key_id: KeyId) -> Result<Option<KeyId>, LockboxError> {
        Ok(self.jobs_holding(key_id)?.first().copied())
    }

    pub(crate) fn jobs_holding(&self, key_id: KeyId) -> Result<Vec<KeyId>, LockboxError> {
        self.second_ids(&Row::HeldBy(key_id, key_id).key()[..17])
    }

    /// Whether any key here is a layer, or held by a job: if none is, a transfer of a million keys need not ask of each.
    pub(crate) fn has_bonds(&self) -> Result<bool, LockboxError> {
        let any = |kind| Ok::<_, LockboxError>(!self.vault.scan(&[kind], None, 1)?.is_empty());
        let nobody = KeyId([0; 16]);
        Ok(any(Row::LayerOn(nobody, nobody).kind())? || any(Row::HeldBy(nobody, nobody).kind())?)
    }

    /// The keys that this one lies on, the nearest first. The last may be one that is not here.
    pub(crate) fn layers_below(&self, key: &Key) -> Result<Vec<(KeyId, Option<Key>)>, LockboxError> {
        let mut chain: Vec<(KeyId, Option<Key>)> = Vec::new();
        let mut lineage = key.info.lineage.clone();
        while let Some(below) = lineage.filter(Lineage::is_layer) {
            let ancestor = self.vault.key(below.parent_key_id)?;
            lineage = ancestor.as_ref().and_then(|ancestor| ancestor.info.lineage.clone());
            chain.push((below.parent_key_id, ancestor));
            if chain.len() > MAX_LAYERS {
                break;
            }
        }
        Ok(chain)
    }

    fn second_ids(&self, prefix: &[u8]) -> Result<Vec<KeyId>, LockboxError> {
        let rows = self.vault.scan(prefix, None, MAX_FAMILY)?;
        Ok(rows.iter().filter_map(second_id).collect())
    }
}

fn second_id((place, _): &PlacedRecord) -> Option<KeyId> {
    place.last_chunk::<16>().map(|id| KeyId(*id))
}
