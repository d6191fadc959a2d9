//! What the lockboxes had and no longer report: whoever takes one over could else have its keys reported as gone before it is
//! retired, and nobody would know what it knew. SPEC section 13.6.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockbox_authz::impact::Holding;
use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{FieldError, KeyId, LockboxId};
use lockbox_store::Batch;
use prost::Message;

use super::inventory::{Reader, ancestors, decode};
use super::keys::LeftPlace;
use super::records::{self, LeftRecord};
use super::{Turn, keys};
use crate::limits::{
    DEFAULT_LEFT_DAYS, ENTRY_BYTES, FORGOTTEN_AT_ONCE, MAX_LEFT_BYTES, MAX_LOCKBOX_KEYS, MAX_MATERIALS_OF_KEY,
    SCAN_PAGE,
};
use crate::refusal::Refusal;

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// How much is kept of what the lockboxes report.
#[derive(Clone, Copy, Debug)]
pub struct InventoryBounds {
    /// For how long it is remembered what a lockbox had.
    pub left_kept_ms: i64,
    /// Keys of one lockbox: those that it reports, and those that it had.
    pub keys_of_one: u64,
}

/// A key that a lockbox had, and has no more.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// As it was when the lockbox had it. Its state is what was said when it left, destroyed or moved; a held one if nothing was.
    pub(super) entry: InventoryEntry,
    /// When the broker first heard of it.
    pub(super) left_at_ms: i64,
    /// Nobody knows when it left: it was gone when the broker met the lockbox.
    pub(super) gone_at_first: bool,
}

/// A key at a lockbox that has it or had it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// As the lockbox reports it; if it does not, as it did last.
    pub(super) holding: Holding,
    /// Whether the lockbox reports it, with this material.
    pub(super) is_reported: bool,
    pub(super) left: Option<Left>,
}

impl InventoryBounds {
    /// As a configuration has it.
    pub fn with_left_days(days: u32) -> Self {
        Self {
            left_kept_ms: i64::from(days) * DAY_MS,
            keys_of_one: MAX_LOCKBOX_KEYS,
        }
    }
}

impl Default for InventoryBounds {
    fn default() -> Self {
        Self::with_left_days(DEFAULT_LEFT_DAYS)
    }
}

impl Left {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let record: LeftRecord = records::decode("left record", bytes).map_err(Refusal::Record)?;
        Ok(Self {
            entry: InventoryEntry::from_wire(record.entry.unwrap_or_default()).map_err(Refusal::Record)?,
            left_at_ms: record.left_at_ms,
            gone_at_first: record.gone_at_first,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let record = LeftRecord {
            entry: Some(self.entry.to_wire()),
            left_at_ms: self.left_at_ms,
            gone_at_first: self.gone_at_first,
        };
        record.encode_to_vec()
    }
}

impl Reader {
    /// Every lockbox that has a key or had it. One that says of a key that it has another material now is told twice.
    pub(super) fn known(&self, key_id: KeyId) -> Result<Vec<Known>, Refusal> {
        let mut all = Vec::new();
        for id in self.ids(&keys::holders(key_id))? {
            let lockbox_id = LockboxId(id.0);
            let mut lefts = self.lefts(lockbox_id, key_id)?;
            if let Some(entry) = self.reported(lockbox_id, key_id)? {
                let same = |left: &Left| left.entry.material_id == entry.material_id;
                let left = lefts.iter().position(same).map(|place| lefts.swap_remove(place));
                all.push(Known {
                    holding: Holding { lockbox_id, entry },
                    is_reported: true,
                    left,
                });
            }
            all.extend(lefts.into_iter().map(|left| Known {
                holding: Holding {
                    lockbox_id,
                    entry: left.entry.clone(),
                },
                is_reported: false,
                left: Some(left),
            }));
        }
        Ok(all)
    }

    /// A key, as a lockbox reports it.
    pub(super) fn reported(&self, lockbox_id: LockboxId, key_id: KeyId) -> Result<Option<InventoryEntry>, Refusal> {
        let bytes = self.store.get(&keys::inventory_key(lockbox_id, key_id));
        bytes.map_err(Refusal::Store)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// What a lockbox had under a key's id: one, unless it says that the key's material has changed.
    pub(super) fn lefts(&self, lockbox_id: LockboxId, key_id: KeyId) -> Result<Vec<Left>, Refusal> {
        let prefix = keys::lefts_of_key(lockbox_id, key_id);
        let rows = self.store.scan(&prefix, None, MAX_MATERIALS_OF_KEY);
        let rows = rows.map_err(Refusal::Store)?;
        rows.iter().map(|(_, bytes)| Left::decode(bytes)).collect()
    }
}

impl Turn<'_> {
    /// Forgets what left longer ago than is remembered, a part of it with each report.
    pub(super) fn forget_old(&mut self, now_ms: i64) -> Result<(), Refusal> {
        let until_ms = self.registry.left_kept_from_ms(now_ms);
        let is_old = |by_time: &[u8]| LeftPlace::from_time(by_time).is_some_and(|(at_ms, _)| at_ms < until_ms);
        // Most reports find nothing to forget.
        let first = self.scan(keys::LEFT_AT, None, 1)?;
        if !first.iter().any(|(by_time, _)| is_old(by_time)) {
            return Ok(());
        }
        let oldest = self.scan(keys::LEFT_AT, None, FORGOTTEN_AT_ONCE)?;
        let mut batch = Batch::new();
        let mut forgotten: BTreeSet<LeftPlace> = BTreeSet::new();
        let mut weights: BTreeMap<LockboxId, u64> = BTreeMap::new();
        for (by_time, _) in oldest {
            let (left_at_ms, place) = LeftPlace::from_time(&by_time).ok_or_else(damaged)?;
            if left_at_ms >= until_ms {
                break;
            }
            batch.remove(by_time);
            batch.remove(place.record());
            forgotten.insert(place);
            self.note_forgotten(left_at_ms, &mut batch)?;
            if let Some(bytes) = self.get(&place.record())? {
                *weights.entry(place.lockbox_id).or_default() += weight(bytes.len());
                let gone = Left::decode(&bytes)?.entry;
                let rest = self.said_of(place.key_id, |known| forgotten.contains(&known))?;
                unlink(place.lockbox_id, &gone, &rest, &mut batch);
            }
        }
        for (lockbox_id, weight) in weights {
            let rest = self.weight_of(lockbox_id)?.saturating_sub(weight);
            batch.put(keys::inventory_weight(lockbox_id), rest.to_be_bytes().to_vec());
        }
        self.commit(batch)
    }

    /// What the lockboxes say of a key and have said, but for some that left.
    fn said_of(
        &self,
        key_id: KeyId,
        is_forgotten: impl Fn(LeftPlace) -> bool,
    ) -> Result<Vec<(LockboxId, InventoryEntry)>, Refusal> {
        let all = self.reader().known(key_id)?.into_iter();
        let kept = all.filter(|known| {
            let place = LeftPlace {
                lockbox_id: known.holding.lockbox_id,
                key_id,
                material_id: known.holding.entry.material_id,
            };
            known.is_reported || !is_forgotten(place)
        });
        Ok(kept
            .map(|known| (known.holding.lockbox_id, known.holding.entry))
            .collect())
    }

    /// How many keys of a lockbox are kept, with those that left. A large one counts as several.
    fn weight_of(&self, lockbox_id: LockboxId) -> Result<u64, Refusal> {
        if let Some(bytes) = self.get(&keys::inventory_weight(lockbox_id))? {
            return bytes.try_into().map(u64::from_be_bytes).map_err(|_| damaged());
        }
        // Once, for a lockbox that reported before its keys were counted.
        let mut sum = 0;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.scan(&keys::inventory(lockbox_id), after.as_deref(), SCAN_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(sum) };
            after = Some(last.clone());
            sum += page.iter().map(|(_, bytes)| weight(bytes.len())).sum::<u64>();
        }
    }

    fn reader(&self) -> Reader {
        Reader {
            store: Arc::clone(&self.registry.store),
        }
    }
}

/// What one report changes of what is known of a lockbox.
pub(super) struct Changes<'a> {
    turn: &'a Turn<'a>,
    reader: Reader,
    lockbox_id: LockboxId,
    now_ms: i64,
    batch: Batch,
    /// What is kept after it and was not before, as [`weight`] counts.
    added: u64,
    /// What was kept before and is not after it.
    removed: u64,
    left_bytes: usize,
    /// The broker does not know the lockbox yet.
    first_round: bool,
}

impl<'a> Changes<'a> {
    pub(super) fn begin(turn: &'a Turn<'a>, lockbox_id: LockboxId, first_round: bool, now_ms: i64) -> Self {
        Self {
            first_round,
            turn,
            reader: turn.reader(),
            lockbox_id,
            now_ms,
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

    /// Puts what is reported of a key in place of what was.
    pub(super) fn replace(&mut self, before: Option<InventoryEntry>, entry: &InventoryEntry) -> Result<(), Refusal> {
        let bytes = entry.to_wire().encode_to_vec();
        self.added += weight(bytes.len());
        self.removed += before.as_ref().map_or(0, weight_of_entry);
        self.batch
            .put(keys::inventory_key(self.lockbox_id, entry.key_id), bytes);
        self.link(entry);
        let Some(before) = before else {
            return match entry.state.is_held() {
                true => self.came_back(entry),
                // It came and left between two reports, or before the first one.
                false => self.remember(entry.clone(), self.first_round),
            };
        };
        if before.material_id != entry.material_id {
            self.drop_entry(before, Some(entry))?;
            return match entry.state.is_held() {
                true => self.came_back(entry),
                false => self.leave(entry.clone()),
            };
        }
        if !ancestors(&before).eq(ancestors(entry)) {
            self.unlink_reported(&before, Some(entry))?;
        }
        match (before.state.is_held(), entry.state.is_held()) {
            (true, false) => self.leave(InventoryEntry {
                state: entry.state,
                ..before
            }),
            (false, true) => self.came_back(entry),
            (true, true) | (false, false) => Ok(()),
        }
    }

    /// The lockbox reports a key no more.
    pub(super) fn remove(&mut self, before: InventoryEntry) -> Result<(), Refusal> {
        self.batch.remove(keys::inventory_key(self.lockbox_id, before.key_id));
        self.removed += weight_of_entry(&before);
        self.drop_entry(before, None)
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

    /// What leads to a key. It is kept for as long as the key's entry is, and what is remembered of it.
    fn link(&mut self, entry: &InventoryEntry) {
        self.batch.put(keys::holder(entry.key_id, self.lockbox_id), Vec::new());
        // A key's material and ancestors never change, whoever holds it.
        self.batch
            .put(keys::material(entry.material_id, entry.key_id), Vec::new());
        for ancestor in ancestors(entry) {
            self.batch.put(keys::child(ancestor, entry.key_id), Vec::new());
        }
    }

    /// An entry is no more, and another one may be in its place.
    fn drop_entry(&mut self, before: InventoryEntry, instead: Option<&InventoryEntry>) -> Result<(), Refusal> {
        match before.state.is_held() {
            true => self.leave(before),
            false => self.unlink_reported(&before, instead),
        }
    }

    fn unlink_reported(&mut self, gone: &InventoryEntry, instead: Option<&InventoryEntry>) -> Result<(), Refusal> {
        let all = self.reader.known(gone.key_id)?.into_iter();
        let others = all.filter_map(|known| {
            let is_gone = known.is_reported && known.holding.lockbox_id == self.lockbox_id;
            // What is remembered of it has its material and its ancestors, too.
            let entry = match (is_gone, known.left) {
                (true, left) => left?.entry,
                (false, _) => known.holding.entry,
            };
            Some((known.holding.lockbox_id, entry))
        });
        let mut rest: Vec<_> = others.collect();
        rest.extend(instead.map(|entry| (self.lockbox_id, entry.clone())));
        unlink(self.lockbox_id, gone, &rest, &mut self.batch);
        Ok(())
    }

    /// Remembers a key that the lockbox had. If it was remembered before, it left then.
    fn leave(&mut self, entry: InventoryEntry) -> Result<(), Refusal> {
        self.remember(entry, false)
    }

    fn remember(&mut self, entry: InventoryEntry, gone_at_first: bool) -> Result<(), Refusal> {
        let place = self.place(&entry);
        let before = self.turn.get(&place.record())?;
        let before = before.map(|bytes| Left::decode(&bytes)).transpose()?;
        let left = match before {
            // Why it left may be said later.
            Some(before) => {
                self.removed += weight(before.encode().len());
                Left {
                    entry: InventoryEntry {
                        state: entry.state,
                        ..before.entry
                    },
                    ..before
                }
            }
            None => {
                let others = self.turn.scan(
                    &keys::lefts_of_key(self.lockbox_id, entry.key_id),
                    None,
                    MAX_MATERIALS_OF_KEY,
                )?;
                if others.len() == MAX_MATERIALS_OF_KEY {
                    return Err(Refusal::TooManyMaterials(entry.key_id));
                }
                self.batch.put(place.by_time(self.now_ms), Vec::new());
                Left {
                    entry,
                    left_at_ms: self.now_ms.max(0),
                    gone_at_first,
                }
            }
        };
        let bytes = left.encode();
        self.added += weight(bytes.len());
        self.left_bytes += bytes.len();
        self.batch.put(place.record(), bytes);
        Ok(())
    }

    /// The lockbox has a key again that it had.
    fn came_back(&mut self, entry: &InventoryEntry) -> Result<(), Refusal> {
        let place = self.place(entry);
        if let Some(bytes) = self.turn.get(&place.record())? {
            self.batch.remove(place.by_time(Left::decode(&bytes)?.left_at_ms));
            self.batch.remove(place.record());
            self.removed += weight(bytes.len());
        }
        Ok(())
    }

    fn place(&self, entry: &InventoryEntry) -> LeftPlace {
        LeftPlace {
            lockbox_id: self.lockbox_id,
            key_id: entry.key_id,
            material_id: entry.material_id,
        }
    }
}

/// Takes away what led to a key by an entry of a lockbox that is no more, but for where the rest leads to it as well.
fn unlink(lockbox_id: LockboxId, gone: &InventoryEntry, rest: &[(LockboxId, InventoryEntry)], batch: &mut Batch) {
    let key_id = gone.key_id;
    if rest.iter().all(|(holder, _)| *holder != lockbox_id) {
        batch.remove(keys::holder(key_id, lockbox_id));
    }
    if rest.iter().all(|(_, entry)| entry.material_id != gone.material_id) {
        batch.remove(keys::material(gone.material_id, key_id));
    }
    for ancestor in ancestors(gone) {
        if rest
            .iter()
            .all(|(_, entry)| ancestors(entry).all(|other| other != ancestor))
        {
            batch.remove(keys::child(ancestor, key_id));
        }
    }
}

/// What an entry counts as: a key with very many consumers takes the room of several.
fn weight(bytes: usize) -> u64 {
    1 + (bytes / ENTRY_BYTES) as u64
}

fn weight_of_entry(entry: &InventoryEntry) -> u64 {
    weight(entry.to_wire().encoded_len())
}

fn damaged() -> Refusal {
    Refusal::Record(FieldError::new("inventory", "is not what the broker writes"))
}
