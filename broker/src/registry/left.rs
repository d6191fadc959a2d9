//! What the lockboxes had and no longer report: whoever takes one over could else have its keys reported as gone before it is
//! retired, and nobody would know what it knew. SPEC section 13.6.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockbox_authz::impact::Holding;
use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{FieldError, KeyId, LockboxId, MaterialId};
use lockbox_store::Batch;
use prost::Message;

use super::inventory::{Reader, ancestors, decode};
use super::keys::LeftPlace;
use super::records::{self, LeftRecord};
use super::{Turn, keys};
use crate::limits::{DEFAULT_LEFT_DAYS, ENTRY_BYTES, FORGOTTEN_AT_ONCE, MAX_LOCKBOX_KEYS};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// As it was when the lockbox had it. Its state is what was said when it left, destroyed or moved; a held one if nothing was.
    pub(super) entry: InventoryEntry,
    /// When the broker first heard of it.
    pub(super) left_at_ms: i64,
    /// Nobody knows when it left: it was gone when the broker met the lockbox.
    pub(super) gone_at_first: bool,
}

/// All that a lockbox says of a key, and what is remembered that it had under the key's id: one, unless it says that the key's
/// material has changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) entry: Option<InventoryEntry>,
    pub(super) lefts: Vec<Left>,
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

    pub(super) fn encode(&self) -> Vec<u8> {
        let record = LeftRecord {
            entry: Some(self.entry.to_wire()),
            left_at_ms: self.left_at_ms,
            gone_at_first: self.gone_at_first,
        };
        record.encode_to_vec()
    }
}

impl Said {
    /// What leads to the key by all of this.
    pub(super) fn leads(&self, lockbox_id: LockboxId) -> BTreeSet<Vec<u8>> {
        let lefts = self.lefts.iter().map(|left| &left.entry);
        let entries = self.entry.iter().chain(lefts);
        entries.flat_map(|entry| leads(lockbox_id, entry)).collect()
    }

    /// The materials of what left at this time or later.
    pub(super) fn since(&self, from_ms: i64) -> BTreeSet<MaterialId> {
        let lefts = self.lefts.iter().filter(|left| left.left_at_ms >= from_ms);
        lefts.map(|left| left.entry.material_id).collect()
    }

    /// Told once for each material.
    fn known(self, lockbox_id: LockboxId) -> impl Iterator<Item = Known> {
        let mut lefts = self.lefts;
        let reported = self.entry.map(|entry| {
            let same = |left: &Left| left.entry.material_id == entry.material_id;
            let left = lefts.iter().position(same).map(|place| lefts.swap_remove(place));
            Known {
                holding: Holding { lockbox_id, entry },
                is_reported: true,
                left,
            }
        });
        let lefts = lefts.into_iter().map(move |left| Known {
            holding: Holding {
                lockbox_id,
                entry: left.entry.clone(),
            },
            is_reported: false,
            left: Some(left),
        });
        reported.into_iter().chain(lefts)
    }
}

/// What leads to a key by what a lockbox says, or said, of it.
pub(super) fn leads(lockbox_id: LockboxId, entry: &InventoryEntry) -> impl Iterator<Item = Vec<u8>> {
    let key_id = entry.key_id;
    let here = [
        keys::holder(key_id, lockbox_id),
        keys::material(entry.material_id, key_id),
    ];
    let ancestors = ancestors(entry).map(move |ancestor| keys::child(ancestor, key_id));
    here.into_iter().chain(ancestors)
}

impl Reader {
    /// Every lockbox that has a key or had it. One that says of a key that it has another material now is told twice.
    pub(super) fn known(&self, key_id: KeyId) -> Result<Vec<Known>, Refusal> {
        let mut all = Vec::new();
        for lockbox_id in self.holders(key_id)? {
            all.extend(self.said(lockbox_id, key_id)?.known(lockbox_id));
        }
        Ok(all)
    }

    fn holders(&self, key_id: KeyId) -> Result<impl Iterator<Item = LockboxId>, Refusal> {
        let ids = self.ids(&keys::holders(key_id))?;
        Ok(ids.into_iter().map(|id| LockboxId(id.0)))
    }

    /// A report may be taken meanwhile, and what leaves or comes back by it be in neither when that is read.
    pub(super) fn said(&self, lockbox_id: LockboxId, key_id: KeyId) -> Result<Said, Refusal> {
        let mut entry = self.reported(lockbox_id, key_id)?;
        loop {
            let lefts = self.lefts(lockbox_id, key_id)?;
            let again = self.reported(lockbox_id, key_id)?;
            if again == entry {
                return Ok(Said { entry, lefts });
            }
            entry = again;
        }
    }

    /// Those of the rows that lead to a key which lead to nothing that is kept, of what each lockbox has said of it.
    pub(super) fn leading_nowhere(
        &self,
        key_id: KeyId,
        mut rows: BTreeSet<Vec<u8>>,
        kept: impl Fn(LockboxId, Said) -> Said,
    ) -> Result<BTreeSet<Vec<u8>>, Refusal> {
        for lockbox_id in self.holders(key_id)? {
            // A large part of what is said may have to be read for nothing else.
            if rows.is_empty() {
                break;
            }
            let others = kept(lockbox_id, self.said(lockbox_id, key_id)?).leads(lockbox_id);
            rows.retain(|row| !others.contains(row));
        }
        Ok(rows)
    }

    /// A key, as a lockbox reports it.
    pub(super) fn reported(&self, lockbox_id: LockboxId, key_id: KeyId) -> Result<Option<InventoryEntry>, Refusal> {
        let bytes = self.store.get(&keys::inventory_key(lockbox_id, key_id));
        bytes.map_err(Refusal::Store)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// What a lockbox had under a key's id: all of it, of which there is no more than was taken.
    pub(super) fn lefts(&self, lockbox_id: LockboxId, key_id: KeyId) -> Result<Vec<Left>, Refusal> {
        let prefix = keys::lefts_of_key(lockbox_id, key_id);
        let rows = self.store.scan(&prefix, None, usize::MAX);
        let rows = rows.map_err(Refusal::Store)?;
        rows.iter().map(|(_, bytes)| Left::decode(bytes)).collect()
    }
}

impl Turn<'_> {
    /// Forgets what left before a time, a part of it with each report.
    pub(super) fn forget_old(&mut self, until_ms: i64) -> Result<(), Refusal> {
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
                let kept = |lockbox_id, mut said: Said| {
                    said.lefts
                        .retain(|left| !forgotten.contains(&LeftPlace::new(lockbox_id, &left.entry)));
                    said
                };
                let rows = leads(place.lockbox_id, &gone).collect();
                for row in self.reader().leading_nowhere(place.key_id, rows, kept)? {
                    batch.remove(row);
                }
            }
        }
        for (lockbox_id, weight) in weights {
            let rest = self.weight_of(lockbox_id)?.saturating_sub(weight);
            batch.put(keys::inventory_weight(lockbox_id), rest.to_be_bytes().to_vec());
        }
        self.commit(batch)
    }

    /// Counts the keys of a lockbox that reported before they were counted. It takes long, and is done once, whether or not its
    /// report is taken then.
    pub(super) fn count_once(&mut self, lockbox_id: LockboxId) -> Result<(), Refusal> {
        let place = keys::inventory_weight(lockbox_id);
        if self.get(&place)?.is_some() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.put(place, self.weight_of(lockbox_id)?.to_be_bytes().to_vec());
        self.commit(batch)
    }

    /// How many keys of a lockbox are kept, with those that left. A large one counts as several.
    pub(super) fn weight_of(&self, lockbox_id: LockboxId) -> Result<u64, Refusal> {
        if let Some(bytes) = self.get(&keys::inventory_weight(lockbox_id))? {
            return bytes.try_into().map(u64::from_be_bytes).map_err(|_| damaged());
        }
        let mut sum = 0;
        self.reader().each(&keys::inventory(lockbox_id), |(_, bytes)| {
            sum += weight(bytes.len());
            Ok(())
        })?;
        Ok(sum)
    }

    pub(super) fn reader(&self) -> Reader {
        Reader {
            store: Arc::clone(&self.registry.store),
        }
    }
}

/// What an entry counts as: a key with very many consumers takes the room of several.
pub(super) fn weight(bytes: usize) -> u64 {
    1 + (bytes / ENTRY_BYTES) as u64
}

fn damaged() -> Refusal {
    Refusal::Record(FieldError::new("inventory", "is not what the broker writes"))
}
