//! What the broker is told of the keys: ids, lineage, states and consumers. SPEC section 13.6.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockbox_authz::envelope::Verified;
use lockbox_authz::id::KeyId;
use lockbox_authz::inventory::{
    Consumer, InventoryEntry, InventoryReport, InventoryState, MAX_INVENTORY_BYTES, MAX_INVENTORY_ENTRIES, Parent,
};
use prost::Message;

use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{KeyInfo, KeyState, Lineage, Tombstone};
use crate::vault::Watch;

/// Entries of a report of changed keys: it tells those between them, too, which costs less than a report for each.
const NEAREST_ENTRIES: usize = 64;

/// Notes which keys change, for as long as it is kept.
pub struct InventoryWatch(Arc<Watch>);

impl Lockbox {
    /// The signed report of the range after a key. The range after the one that ends with the last key is empty, and open.
    pub fn inventory_report(
        &self,
        after: Option<KeyId>,
        now_ms: i64,
    ) -> Result<Verified<InventoryReport>, LockboxError> {
        let (entries, last) = self.range_after(after, MAX_INVENTORY_ENTRIES)?;
        self.report_range(after, last, entries, now_ms)
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
    /// together. `None` if there are none.
    pub fn inventory_report_of(
        &self,
        changed: &BTreeSet<KeyId>,
        now_ms: i64,
    ) -> Result<Option<Verified<InventoryReport>>, LockboxError> {
        let (Some(first), Some(mut last)) = (changed.first(), changed.last()) else {
            return Ok(None);
        };
        let after = u128::from_be_bytes(first.0).checked_sub(1);
        let after = after.map(|before| KeyId(before.to_be_bytes()));
        let (mut entries, end) = self.range_after(after, NEAREST_ENTRIES)?;
        if let Some(end) = end {
            last = changed.range(..=end).next_back().unwrap_or(first);
        }
        entries.retain(|entry| entry.key_id <= *last);
        self.report_range(after, Some(*last), entries, now_ms).map(Some)
    }

    fn report_range(
        &self,
        after: Option<KeyId>,
        last: Option<KeyId>,
        entries: Vec<InventoryEntry>,
        now_ms: i64,
    ) -> Result<Verified<InventoryReport>, LockboxError> {
        let report = InventoryReport {
            cluster_id: self.membership.as_ref().ok_or(LockboxError::NoCluster)?.cluster_id,
            lockbox_id: self.identity.lockbox_id,
            reported_at_ms: now_ms,
            after,
            last,
            entries,
        };
        Ok(Verified::sign(report, &self.identity.identity_key))
    }

    /// As many as fit into a report, and where they end; `None` if they are all.
    fn range_after(
        &self,
        after: Option<KeyId>,
        at_most: usize,
    ) -> Result<(Vec<InventoryEntry>, Option<KeyId>), LockboxError> {
        let mut entries: Vec<InventoryEntry> = Vec::new();
        let mut bytes = 0;
        for entry in self.entries_after(after, at_most + 1)? {
            bytes += entry.to_wire().encoded_len() + 4;
            let is_full = entries.len() == at_most || bytes > MAX_INVENTORY_BYTES;
            if is_full && let Some(last) = entries.last().map(|entry| entry.key_id) {
                return Ok((entries, Some(last)));
            }
            entries.push(entry);
        }
        Ok((entries, None))
    }

    /// One key that is here, or what remains of one that was.
    pub(crate) fn inventory_entry(&self, key_id: KeyId) -> Result<Option<InventoryEntry>, LockboxError> {
        if let Some(key) = self.vault.key(key_id)? {
            return self.entry_of(&key.info).map(Some);
        }
        let tombstone = self.tombstone(key_id)?;
        tombstone.map(|tombstone| self.entry_of_gone(tombstone)).transpose()
    }

    /// Ascending by key id.
    fn entries_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<InventoryEntry>, LockboxError> {
        let mut entries = Vec::new();
        for key in self.vault.keys_after(after, limit)? {
            entries.push(self.entry_of(&key.info)?);
        }
        for tombstone in self.tombstones_after(after, limit)? {
            entries.push(self.entry_of_gone(tombstone)?);
        }
        entries.sort_by_key(|entry| entry.key_id);
        // A key that came back is here; its tombstone went when it came.
        entries.dedup_by_key(|entry| entry.key_id);
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
