//! What one report changes of what is known of a lockbox: of its keys, of what it had and what leads to these. SPEC section 13.6.

use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{KeyId, LockboxId};
use lockbox_store::Batch;
use prost::Message;

use super::inventory::{Reader, ancestors};
use super::keys::LeftPlace;
use super::left::{Left, Said, leads, weight};
use super::{Turn, keys};
use crate::limits::{MAX_LEFT_BYTES, MAX_MATERIALS_OF_KEY};
use crate::refusal::Refusal;

pub(super) struct Changes<'a> {
    turn: &'a Turn<'a>,
    reader: Reader,
    lockbox_id: LockboxId,
    /// The broker does not know the lockbox yet.
    first_round: bool,
    left_at_ms: i64,
    batch: Batch,
    /// What is kept after it and was not before, as [`weight`] counts.
    added: u64,
    /// What was kept before and is not after it.
    removed: u64,
    left_bytes: usize,
}

impl<'a> Changes<'a> {
    pub(super) fn begin(turn: &'a Turn<'a>, lockbox_id: LockboxId, first_round: bool, left_at_ms: i64) -> Self {
        Self {
            turn,
            reader: turn.reader(),
            lockbox_id,
            first_round,
            left_at_ms,
            batch: Batch::new(),
            added: 0,
            removed: 0,
            left_bytes: 0,
        }
    }

    /// Whether the rest has to wait for another batch.
    pub(super) fn is_full(&self) -> bool {
        self.left_bytes >= MAX_LEFT_BYTES
    }

    /// Whether something left, or it was said why.
    pub(super) fn remembers(&self) -> bool {
        self.left_bytes > 0
    }

    /// Puts what is reported of a key in place of what was; `None`: the lockbox does not report it. Once for each key.
    pub(super) fn replace(
        &mut self,
        key_id: KeyId,
        before: Option<InventoryEntry>,
        entry: Option<&InventoryEntry>,
    ) -> Result<(), Refusal> {
        let place = keys::inventory_key(self.lockbox_id, key_id);
        self.removed += before
            .as_ref()
            .map_or(0, |before| weight(before.to_wire().encoded_len()));
        match entry {
            Some(entry) => {
                let bytes = entry.to_wire().encode_to_vec();
                self.added += weight(bytes.len());
                self.batch.put(place, bytes);
                for row in leads(self.lockbox_id, entry) {
                    self.batch.put(row, Vec::new());
                }
            }
            None => self.batch.remove(place),
        }
        let name = |entry: &InventoryEntry| keys::name(self.lockbox_id, entry);
        let (was_named, is_named) = (before.as_ref().and_then(name), entry.and_then(name));
        if was_named != is_named {
            if let Some(row) = was_named {
                self.batch.remove(row);
            }
            if let Some(row) = is_named {
                self.batch.put(row, Vec::new());
            }
        }
        if let (Some(before), Some(entry)) = (&before, entry)
            && before.material_id == entry.material_id
            && before.state.is_held() == entry.state.is_held()
            && ancestors(before).eq(ancestors(entry))
        {
            return Ok(());
        }
        let was = Said {
            entry: before,
            lefts: self.reader.lefts(self.lockbox_id, key_id)?,
        };
        let is = was.clone().followed_by(entry, self.left_at_ms, self.first_round);
        self.remember(key_id, &was, &is)?;
        self.unlink(key_id, &was, &is)
    }

    /// The batch, with the number of keys that are known after it.
    pub(super) fn finish(mut self) -> Result<Batch, Refusal> {
        if self.added == self.removed {
            return Ok(self.batch);
        }
        let before = self.turn.weight_of(self.lockbox_id)?;
        let after = (before + self.added).saturating_sub(self.removed);
        let at_most = self.turn.registry.inventory_bounds.keys_of_one;
        if after > at_most && after > before {
            return Err(Refusal::TooManyKeys { at_most });
        }
        self.batch
            .put(keys::inventory_weight(self.lockbox_id), after.to_be_bytes().to_vec());
        Ok(self.batch)
    }

    /// Stores what left, and takes away what came back.
    fn remember(&mut self, key_id: KeyId, was: &Said, is: &Said) -> Result<(), Refusal> {
        if is.lefts.len() > MAX_MATERIALS_OF_KEY.max(was.lefts.len()) {
            return Err(Refusal::TooManyMaterials(key_id));
        }
        for before in was.lefts.iter().filter(|before| !is.lefts.contains(before)) {
            self.removed += weight(before.encode().len());
            let place = LeftPlace::new(self.lockbox_id, &before.entry);
            let stays = |left: &Left| left.entry.material_id == before.entry.material_id;
            if !is.lefts.iter().any(stays) {
                self.batch.remove(place.by_time(before.left_at_ms));
                self.batch.remove(place.record());
            }
        }
        for left in is.lefts.iter().filter(|left| !was.lefts.contains(left)) {
            let place = LeftPlace::new(self.lockbox_id, &left.entry);
            let bytes = left.encode();
            self.added += weight(bytes.len());
            self.left_bytes += bytes.len();
            // One that was remembered keeps its time.
            self.batch.put(place.by_time(left.left_at_ms), Vec::new());
            self.batch.put(place.record(), bytes);
        }
        Ok(())
    }

    /// Takes away what led to a key, but for where this lockbox or another one leads to it as well.
    fn unlink(&mut self, key_id: KeyId, was: &Said, is: &Said) -> Result<(), Refusal> {
        let kept = is.leads(self.lockbox_id);
        let mut rows = was.leads(self.lockbox_id);
        rows.retain(|row| !kept.contains(row));
        let others = |lockbox_id, said| match lockbox_id == self.lockbox_id {
            true => Said::default(),
            false => said,
        };
        for row in self.reader.leading_nowhere(key_id, rows, others)? {
            self.batch.remove(row);
        }
        Ok(())
    }
}

impl Said {
    /// After a report that has this of the key. In a lockbox's first round what was never heard of may have been gone for years.
    fn followed_by(mut self, entry: Option<&InventoryEntry>, left_at_ms: i64, first_round: bool) -> Self {
        let gone_at_first = first_round && self.entry.is_none();
        let before = std::mem::replace(&mut self.entry, entry.cloned());
        let is_same = |other: &InventoryEntry| entry.is_some_and(|entry| entry.material_id == other.material_id);
        let knew_it = before.as_ref().is_some_and(is_same);
        if let Some(before) = before.filter(|before| before.state.is_held()) {
            let said = entry.filter(|_| knew_it).map_or(before.state, |entry| entry.state);
            if !(knew_it && said.is_held()) {
                self.leave(InventoryEntry { state: said, ..before }, left_at_ms, false);
            }
        }
        match entry {
            Some(entry) if entry.state.is_held() => self.lefts.retain(|left| !is_same(&left.entry)),
            // It came and left between two reports, or before the first one.
            Some(entry) if !knew_it => self.leave(entry.clone(), left_at_ms, gone_at_first),
            Some(_) | None => {}
        }
        self
    }

    /// If it was remembered before, it left then.
    fn leave(&mut self, entry: InventoryEntry, left_at_ms: i64, gone_at_first: bool) {
        let same = |left: &&mut Left| left.entry.material_id == entry.material_id;
        match self.lefts.iter_mut().find(same) {
            // Why it left may be said later.
            Some(left) => left.entry.state = entry.state,
            None => self.lefts.push(Left {
                entry,
                left_at_ms,
                gone_at_first,
            }),
        }
    }
}
