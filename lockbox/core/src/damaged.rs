//! Destroying a key that can't be read. SPEC section 8.2.
//!
//! Its wrapping path can be effaced all the same, and what it was is told by the rows that others are found by: who has its
//! material, what it descends from, what lies on it, what needs it. Its name and its consumers are lost with its record.

use lockbox_authz::id::{KeyId, MaterialId};
use lockbox_authz::lineage::LAYER;
use rand_core::CryptoRng;

use crate::custody;
use crate::keys::Destroyed;
use crate::ledger::damaged;
use crate::lifecycle::family::unindex_departed;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Departure, Lineage, Tombstone};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;

const NOBODY: KeyId = KeyId([0; 16]);

impl Lockbox {
    /// Erases a key whose record can't be read, for the reason that is given.
    ///
    /// Only once a scan of the whole store has found it: what the scan has found amiss is what the digest of all records is
    /// set right by.
    pub(crate) fn destroy_damaged(
        &mut self,
        key: KeyId,
        why: &LockboxError,
        force: bool,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Destroyed>, LockboxError> {
        if !force {
            let why = why.to_string();
            return Err(LockboxError::DamagedKey { key, why });
        }
        if !self.vault.is_known_damaged(key) {
            return Err(LockboxError::NotScanned(key));
        }
        self.check_destroy(key, None)?;
        let tombstone = self.tombstone_of_damaged(key, now_ms)?;
        let mut changes = Changes::default();
        unindex_departed(&tombstone, &mut changes);
        changes.erase_key(tombstone.clone());
        custody::note_destroyed(key, &mut changes);
        let remaining = self.others_of_material(&tombstone)?;
        changes.settle();
        let settles = self.vault.is_settled_with(key);
        let alarm = settles.then(|| self.note_alarm(settled(key), &[], now_ms, &mut changes));
        let batches = self.vault.stage(changes, rng)?;
        self.alarms.extend(alarm.flatten());
        Ok(Step::new(
            batches,
            Destroyed {
                tombstone,
                remaining,
                was_damaged: true,
            },
        ))
    }

    fn tombstone_of_damaged(&self, key_id: KeyId, now_ms: i64) -> Result<Tombstone, LockboxError> {
        // A key without a row has the material that was made for it.
        let material = self.first_ids(Row::MaterialKey(MaterialId(NOBODY.0), key_id), key_id)?;
        Ok(Tombstone {
            key_id,
            material_id: MaterialId(material.first().unwrap_or(&key_id).0),
            name: String::new(),
            departure: Departure::Destroyed,
            departed_at_ms: now_ms,
            moved: None,
            lineage: self.lineage_of_damaged(key_id)?,
        })
    }

    /// A key has a row for its parent, and one for what it lies on unless that is its parent.
    fn lineage_of_damaged(&self, key_id: KeyId) -> Result<Option<Lineage>, LockboxError> {
        let lies_on = self.first_ids(Row::LiesOn(NOBODY, key_id), key_id)?.pop();
        let mut ancestors = self.first_ids(Row::Descendant(NOBODY, key_id), key_id)?;
        if ancestors.len() > 1 {
            ancestors.retain(|ancestor| Some(*ancestor) != lies_on);
        }
        let [parent_key_id] = ancestors[..] else {
            return Ok(None);
        };
        let relation = self.vault.read(Row::Descendant(parent_key_id, key_id))?;
        let relation = relation.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        let relation = relation.ok_or_else(|| damaged("what a key descends from"))?;
        Ok(Some(Lineage {
            parent_key_id,
            stated_lies_on: lies_on.filter(|_| relation != LAYER),
            relation,
        }))
    }

    /// The first ids of the rows of this kind that end with a key. Nothing leads to them from there, so all are looked at.
    fn first_ids(&self, kind: Row, key_id: KeyId) -> Result<Vec<KeyId>, LockboxError> {
        const PAGE: usize = 10_000;
        let mut ids = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let places = self.vault.places(&[kind.kind()], after.as_deref(), PAGE)?;
            let Some(last) = places.last() else {
                return Ok(ids);
            };
            let ends_with_it = |place: &&Vec<u8>| place.len() == 33 && place.ends_with(&key_id.0);
            let first_id = |place: &Vec<u8>| place[1..].first_chunk::<16>().map(|id| KeyId(*id));
            ids.extend(places.iter().filter(ends_with_it).filter_map(first_id));
            after = Some(last.clone());
        }
    }

    /// The other keys here that have its material. The one that the material was made for counts also if it can't be read.
    fn others_of_material(&self, tombstone: &Tombstone) -> Result<Vec<KeyId>, LockboxError> {
        let material_id = tombstone.material_id;
        let mut others = self.indexed_keys_of(material_id, None, usize::MAX)?;
        let namesake = KeyId(material_id.0);
        if namesake != tombstone.key_id {
            match self.namesake(material_id) {
                Ok(key) => others.extend(key.map(|key| key.info.key_id)),
                Err(error) if error.is_of_one_record() => others.push(namesake),
                Err(error) => return Err(error),
            }
        }
        others.retain(|other| *other != tombstone.key_id);
        others.sort();
        Ok(others)
    }
}

/// A record that was exchanged for an older one, or removed while an older one was put back, is in the difference that a
/// damaged record makes, and nothing tells the two apart.
fn settled(key: KeyId) -> String {
    format!(
        "the store was taken as it was found when key {key}, which was damaged, was destroyed: if somebody may have written to \
         the store, other records may have been exchanged for older ones beside it, or removed with older ones put back, and \
         authorizations that were spent may pass for new; then restore a backup, else clear this alarm"
    )
}

#[cfg(test)]
mod tests;
