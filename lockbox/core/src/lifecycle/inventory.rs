//! What the broker is told of the keys: ids, lineage, states and consumers, and names and labels unless the lockbox is
//! configured not to tell them. SPEC section 13.6.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockbox_authz::Labels;
use lockbox_authz::envelope::Verified;
use lockbox_authz::id::KeyId;
use lockbox_authz::inventory::{
    Consumer, InventoryEntry, InventoryReport, InventoryState, MAX_INVENTORY_BYTES, MAX_INVENTORY_ENTRIES, Parent,
};
use prost::Message;

use crate::keys::KeyEntry;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{KeyInfo, KeyState, Lineage, Tombstone};
use crate::vault::{Each, Watch};

/// Entries of a report of changed keys: it tells those between them, too, which costs less than a report for each.
const NEAREST_ENTRIES: usize = 64;

/// Notes which keys change, for as long as it is kept.
pub struct InventoryWatch(Arc<Watch>);

/// One range of the inventory, up to the next key that can't be read. Such a key is in no range, so the broker keeps what
/// it knew of it: it is neither here for certain nor gone.
pub struct InventoryRange {
    /// `None` if nothing can be told of the range.
    pub report: Option<Verified<InventoryReport>>,
    /// The next range is the one after this key; `None` after the last one.
    pub next: Option<KeyId>,
    /// How many keys were passed over, as they can't be read.
    pub damaged_count: u64,
}

/// What is told of the keys after `after`, up to and with `last`; of all if there is none.
struct Range {
    after: Option<KeyId>,
    last: Option<KeyId>,
    entries: Vec<InventoryEntry>,
    next: Option<KeyId>,
    damaged_count: u64,
}

impl Lockbox {
    /// The signed report of the range after a key, with names and labels if the broker may know them. The range after the one
    /// that ends with the last key is empty, and open.
    pub fn inventory_report(
        &self,
        after: Option<KeyId>,
        with_names: bool,
        now_ms: i64,
    ) -> Result<InventoryRange, LockboxError> {
        let range = self.range_after(after, MAX_INVENTORY_ENTRIES, with_names)?;
        self.report_range(range, now_ms)
    }

    /// Whether a report may tell that keys are gone: a range that names a key not tells this of it. Else a lost record would be
    /// told as a key that is nowhere.
    pub fn knows_every_key(&self) -> bool {
        self.vault.knows_every_key()
    }

    /// Begins to note which keys change.
    pub fn watch_inventory(&self) -> InventoryWatch {
        let watch = self.vault.watch();
        watch.read_everything();
        InventoryWatch(watch)
    }

    /// The keys that have changed since this was asked last. `None` if they are too many, or if the lockbox was sealed in the
    /// meantime: then everything is to be told again.
    pub fn changed_keys(&self, watch: &InventoryWatch) -> Option<BTreeSet<KeyId>> {
        let changed = watch.0.take_changed()?;
        self.vault.tells(&watch.0).then_some(changed)
    }

    /// The signed report of a range that begins with the first of these keys and ends with one of them: the nearest are told
    /// together. `None` if there are none. The next one is of those of them that are after `next`.
    pub fn inventory_report_of(
        &self,
        changed: &BTreeSet<KeyId>,
        with_names: bool,
        now_ms: i64,
    ) -> Result<Option<InventoryRange>, LockboxError> {
        let (Some(first), Some(last)) = (changed.first(), changed.last()) else {
            return Ok(None);
        };
        if !self.vault.knows_every_key() {
            let range = self.range_of_one(*first, with_names)?;
            return self.report_range(range, now_ms).map(Some);
        }
        let mut range = self.range_after(before(*first), NEAREST_ENTRIES, with_names)?;
        // Otherwise the first can't be read itself, and the range begins after it.
        if range.after < Some(*first) {
            let end = range.last.unwrap_or(*last);
            let last = *changed.range(..=end).next_back().unwrap_or(first);
            range.entries.retain(|entry| entry.key_id <= last);
            range.last = Some(last);
            range.next = Some(last);
        } else {
            range.entries.clear();
            range.last = range.after;
            range.next = range.after;
        }
        self.report_range(range, now_ms).map(Some)
    }

    fn report_range(&self, range: Range, now_ms: i64) -> Result<InventoryRange, LockboxError> {
        let report = InventoryReport {
            cluster_id: self.membership.as_ref().ok_or(LockboxError::NoCluster)?.cluster_id,
            lockbox_id: self.identity.lockbox_id,
            reported_at_ms: now_ms,
            after: range.after,
            last: range.last,
            entries: range.entries,
        };
        let is_empty = range.last.is_some() && range.last <= range.after;
        Ok(InventoryRange {
            report: (!is_empty).then(|| Verified::sign(report, &self.identity.identity_key)),
            next: range.next,
            damaged_count: range.damaged_count,
        })
    }

    /// A key by itself; nothing of it if it is not found.
    fn range_of_one(&self, key_id: KeyId, with_names: bool) -> Result<Range, LockboxError> {
        let (found, entry) = match self.entries_after(before(key_id), 1, with_names)?.pop() {
            Some((found, entry)) if found == key_id => (true, entry),
            _ => (false, None),
        };
        Ok(Range {
            after: if entry.is_some() { before(key_id) } else { Some(key_id) },
            last: Some(key_id),
            next: Some(key_id),
            damaged_count: u64::from(found && entry.is_none()),
            entries: entry.into_iter().collect(),
        })
    }

    /// As many as fit into a report, and no further than the next key that can't be read.
    fn range_after(&self, after: Option<KeyId>, at_most: usize, with_names: bool) -> Result<Range, LockboxError> {
        let mut range = Range {
            after,
            last: None,
            entries: Vec::new(),
            next: None,
            damaged_count: 0,
        };
        let mut bytes = 0;
        let entries = self.entries_after(after, at_most + 1, with_names)?;
        let (count, end) = (entries.len(), entries.last().map(|(key_id, _)| *key_id));
        for (key_id, entry) in entries {
            let Some(entry) = entry else {
                range.damaged_count += 1;
                if range.after < before(key_id) {
                    range.last = before(key_id);
                    range.next = Some(key_id);
                    return Ok(range);
                }
                range.after = Some(key_id);
                continue;
            };
            bytes += entry.to_wire().encoded_len() + 4;
            let is_full = range.entries.len() == at_most || bytes > MAX_INVENTORY_BYTES;
            if is_full && let Some(last) = range.entries.last().map(|entry| entry.key_id) {
                range.last = Some(last);
                range.next = Some(last);
                return Ok(range);
            }
            range.entries.push(entry);
        }
        if count > at_most {
            // There may be more: among these were some that can't be read.
            range.last = end;
            range.next = end;
        }
        Ok(range)
    }

    /// One key that is here, or what remains of one that was.
    pub(crate) fn inventory_entry(&self, key_id: KeyId) -> Result<Option<InventoryEntry>, LockboxError> {
        if let Some(key) = self.vault.key(key_id)? {
            return self.entry_of(&key.info).map(Some);
        }
        let tombstone = self.tombstone(key_id)?;
        tombstone.map(|tombstone| self.entry_of_gone(tombstone)).transpose()
    }

    /// Ascending by key id; without an entry if it can't be read.
    fn entries_after(
        &self,
        after: Option<KeyId>,
        limit: usize,
        with_names: bool,
    ) -> Result<Vec<(KeyId, Option<InventoryEntry>)>, LockboxError> {
        let mut entries = Vec::new();
        for Each { key_id, read } in self.vault.each_key_after(after, limit)? {
            let entry = read.map_err(LockboxError::from);
            let mut entry = readable(entry.and_then(|key| self.entry_of(&key.info)))?;
            if !with_names && let Some(entry) = &mut entry {
                (entry.name, entry.labels) = (String::new(), Labels::default());
            }
            entries.push((key_id, entry));
        }
        for departed in self.departed_after(after, limit)? {
            let key_id = departed.key_id();
            let entry = match departed {
                KeyEntry::Gone(tombstone) => readable(self.entry_of_gone(tombstone))?,
                _ => None,
            };
            entries.push((key_id, entry));
        }
        entries.sort_by_key(|(key_id, _)| *key_id);
        // A key that came back is here; its tombstone went when it came.
        entries.dedup_by_key(|(key_id, _)| *key_id);
        entries.truncate(limit);
        Ok(entries)
    }

    fn entry_of(&self, info: &KeyInfo) -> Result<InventoryEntry, LockboxError> {
        let consumer = |consumer: &crate::wire::Consumer| Consumer {
            service: consumer.service.clone(),
            resource_type: consumer.resource_type.clone(),
            resource_id: consumer.resource_id.clone(),
        };
        Ok(InventoryEntry {
            key_id: info.key_id,
            material_id: info.material_id,
            state: match info.state {
                state if info.destruction.is_some() => InventoryState::Scheduled {
                    is_compromised: state == KeyState::Compromised,
                },
                KeyState::Active => InventoryState::Active,
                KeyState::Suspended => InventoryState::Suspended,
                KeyState::Deactivated => InventoryState::Deactivated,
                KeyState::Compromised | KeyState::Unspecified => InventoryState::Compromised,
            },
            parent: info.lineage.as_ref().map(parent),
            consumers: info.consumers.iter().map(consumer).collect(),
            // Only a key that descends from another can have a job.
            job: match info.lineage {
                Some(_) => self.find_job(info.key_id)?.map(|job| job.progress()),
                None => None,
            },
            name: info.name.clone(),
            labels: info.labels.clone(),
        })
    }

    fn entry_of_gone(&self, tombstone: Tombstone) -> Result<InventoryEntry, LockboxError> {
        Ok(InventoryEntry {
            key_id: tombstone.key_id,
            material_id: tombstone.material_id,
            state: match tombstone.moved {
                Some((_, to)) => InventoryState::Moved { to },
                None => InventoryState::Destroyed,
            },
            parent: tombstone.lineage.as_ref().map(parent),
            consumers: Vec::new(),
            job: match tombstone.lineage {
                Some(_) => self.find_job(tombstone.key_id)?.map(|job| job.progress()),
                None => None,
            },
            name: String::new(),
            labels: Labels::default(),
        })
    }
}

fn parent(lineage: &Lineage) -> Parent {
    Parent {
        key_id: lineage.parent_key_id,
        relation: lineage.relation.clone(),
        stated_lies_on: lineage.stated_lies_on,
    }
}

/// Nothing, if a record of it is damaged. What the store itself refuses is an error.
fn readable(entry: Result<InventoryEntry, LockboxError>) -> Result<Option<InventoryEntry>, LockboxError> {
    match entry {
        Err(error) if error.is_of_one_record() => Ok(None),
        entry => entry.map(Some),
    }
}

/// The id before this one, if there is one.
fn before(key_id: KeyId) -> Option<KeyId> {
    let before = u128::from_be_bytes(key_id.0).checked_sub(1)?;
    Some(KeyId(before.to_be_bytes()))
}
