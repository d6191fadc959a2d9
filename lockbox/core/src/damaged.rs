//! Destroying a key that can't be read. SPEC section 8.2.
//!
//! Its wrapping path can be effaced all the same, and what it was is told by the rows that others are found by: who has its
//! material, what it descends from, what lies on it, what needs it. Its name and its consumers are lost with its record.

use lockbox_authz::id::{KeyId, MaterialId};
use lockbox_authz::lineage::LAYER;
use rand_core::CryptoRng;

use crate::custody;
use crate::keys::Destroyed;
use crate::lockbox::{AlarmKind, Lockbox, LockboxError};
use crate::record::{Departure, Lineage, Tombstone};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;

const NOBODY: KeyId = KeyId([0; 16]);

/// The rows that tell what a key that can't be read was, as far as they were looked for.
pub struct Traces {
    key_id: KeyId,
    rows: Vec<Row>,
    kind: usize,
    after: Option<Vec<u8>>,
}

impl Traces {
    pub fn of(key_id: KeyId) -> Self {
        Self {
            key_id,
            rows: Vec::new(),
            kind: 0,
            after: None,
        }
    }
}

impl Lockbox {
    /// Whether the last full scan has found a key damaged or lost.
    pub fn is_known_damaged(&self, key_id: KeyId) -> bool {
        self.vault.is_known_damaged(key_id)
    }

    /// Erases a key whose record can't be read, for the reason that is given.
    ///
    /// Only once a scan of the whole store has found it: what the scan has found amiss is what the digest of all records is
    /// set right by.
    pub(crate) fn destroy_damaged(
        &mut self,
        key: KeyId,
        why: &LockboxError,
        force: bool,
        traces: Option<Traces>,
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
        let mut traces = traces.unwrap_or_else(|| Traces::of(key));
        while !self.trace(&mut traces)? {}
        let tombstone = self.tombstone_of_damaged(&traces, now_ms)?;
        let mut changes = Changes::default();
        for row in traces.rows {
            // What it descended from stays to be asked for, as of any key that is gone.
            if !matches!(row, Row::Descendant(..)) {
                changes.remove(row);
            }
        }
        changes.erase_key(tombstone.clone());
        custody::note_destroyed(key, &mut changes);
        let remaining = self.others_of_material(&tombstone)?;
        changes.settle();
        let settles = self.vault.is_settled_with(key);
        let alarm = settles.then(|| self.note_alarm(AlarmKind::Stop, settled(key), &[], now_ms, &mut changes));
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

    /// Looks at one more page of the rows that others are found by, for those of a key. Gives whether there are no others.
    ///
    /// Nothing leads to them from the key, so all are looked at: it takes long with many keys, and can be done while the lockbox
    /// goes on, as no such row of a damaged key is made any more.
    pub fn trace(&self, traces: &mut Traces) -> Result<bool, LockboxError> {
        const PAGE: usize = if cfg!(test) { 3 } else { 4_096 };
        const KINDS: [fn(KeyId, KeyId) -> Row; 4] = [
            |first, key_id| Row::MaterialKey(MaterialId(first.0), key_id),
            Row::Descendant,
            Row::LiesOn,
            |first, key_id| Row::Named(first.0, key_id),
        ];
        let Some(row) = KINDS.get(traces.kind) else {
            return Ok(true);
        };
        let kind = row(NOBODY, NOBODY).kind();
        let places = self.vault.places(&[kind], traces.after.as_deref(), PAGE)?;
        for place in &places {
            if let Some(first) = first_id(place, traces.key_id) {
                traces.rows.push(row(first, traces.key_id));
            }
        }
        traces.after = places.last().cloned();
        if places.is_empty() {
            traces.kind += 1;
        }
        Ok(traces.kind == KINDS.len())
    }

    fn tombstone_of_damaged(&self, traces: &Traces, now_ms: i64) -> Result<Tombstone, LockboxError> {
        let key_id = traces.key_id;
        let (mut material_id, mut ancestors, mut lies_on) = (None, Vec::new(), None);
        for row in &traces.rows {
            match *row {
                _ if !self.vault.has(*row)? => {}
                Row::MaterialKey(material, _) => material_id = material_id.or(Some(material)),
                Row::Descendant(ancestor, _) => ancestors.push(ancestor),
                Row::LiesOn(ancestor, _) => lies_on = Some(ancestor),
                _ => {}
            }
        }
        Ok(Tombstone {
            key_id,
            // A key without a row has the material that was made for it.
            material_id: material_id.unwrap_or(MaterialId(key_id.0)),
            name: String::new(),
            departure: Departure::Destroyed,
            departed_at_ms: now_ms,
            moved: None,
            lineage: self.lineage_of_damaged(key_id, ancestors, lies_on)?,
        })
    }

    /// A key has a row for its parent, and one for what it lies on unless that is its parent. If what the first says can't be
    /// read, it is not told: nobody would be served by a key that can't be destroyed.
    fn lineage_of_damaged(
        &self,
        key_id: KeyId,
        mut ancestors: Vec<KeyId>,
        lies_on: Option<KeyId>,
    ) -> Result<Option<Lineage>, LockboxError> {
        if ancestors.len() > 1 {
            ancestors.retain(|ancestor| Some(*ancestor) != lies_on);
        }
        let [parent_key_id] = ancestors[..] else {
            return Ok(None);
        };
        let relation = match self.vault.read(Row::Descendant(parent_key_id, key_id)) {
            Err(error) if error.is_of_one_record() => None,
            relation => relation?,
        };
        let relation = relation.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        Ok(relation.map(|relation| Lineage {
            parent_key_id,
            stated_lies_on: lies_on.filter(|_| relation != LAYER),
            relation,
        }))
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

/// The first id of a row of two, if the second is this key's.
fn first_id(place: &[u8], key_id: KeyId) -> Option<KeyId> {
    let (first, second) = place.get(1..)?.split_last_chunk::<16>()?;
    (*second == key_id.0).then_some(())?;
    first.try_into().ok().map(KeyId)
}

#[cfg(test)]
mod tests;
