//! What the broker is told of the keys: ids, lineage, states and consumers. SPEC section 13.6.

use lockbox_authz::envelope::Verified;
use lockbox_authz::id::KeyId;
use lockbox_authz::inventory::{
    Consumer, InventoryEntry, InventoryReport, InventoryState, MAX_INVENTORY_BYTES, MAX_INVENTORY_ENTRIES, Parent,
};
use prost::Message;

use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{KeyInfo, KeyState, Lineage, Tombstone};

impl Lockbox {
    /// The signed report of the range after a key. The range after the one that ends with the last key is empty, and open.
    pub fn inventory_report(
        &self,
        after: Option<KeyId>,
        now_ms: i64,
    ) -> Result<Verified<InventoryReport>, LockboxError> {
        let cluster_id = self.membership.as_ref().ok_or(LockboxError::NoCluster)?.cluster_id;
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for entry in self.entries_after(after, MAX_INVENTORY_ENTRIES + 1)? {
            bytes += entry.to_wire().encoded_len() + 4;
            let full = entries.len() == MAX_INVENTORY_ENTRIES || bytes > MAX_INVENTORY_BYTES;
            if full && !entries.is_empty() {
                last = entries.last().map(|entry: &InventoryEntry| entry.key_id);
                break;
            }
            entries.push(entry);
        }
        let report = InventoryReport {
            cluster_id,
            lockbox_id: self.identity.lockbox_id,
            reported_at_ms: now_ms,
            after,
            last,
            entries,
        };
        Ok(Verified::sign(report, &self.identity.identity_key))
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
