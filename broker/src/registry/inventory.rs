//! What the lockboxes have reported of their keys, and what a stolen one opens. SPEC sections 13.5 and 13.6.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use lockbox_authz::id::MaterialId;
use lockbox_authz::impact::{Finding, Holding, assess};
use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{FieldError, InventoryReport, KeyId, LockboxId};
use lockbox_store::{Batch, Store};
use prost::Message;

use super::{Registry, Turn, joined, keys};
use crate::limits::{MAX_IMPACT_KEYS, MAX_RANGE_KEYS, SCAN_PAGE};
use crate::refusal::Refusal;

/// What is thought to be known to strangers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposed {
    /// A key's material.
    Key(KeyId),
    /// Everything that a lockbox held.
    Lockbox(LockboxId),
}

/// What that opens, of one family of keys: those that are tied by a material or by descent.
#[derive(Clone, Debug, Default)]
pub struct Impact {
    /// The deep ones first.
    pub findings: Vec<Finding>,
    /// When each lockbox last reported.
    pub reported_at_ms: BTreeMap<LockboxId, i64>,
    /// Whether the family is larger than what was looked at.
    pub truncated: bool,
}

impl Turn<'_> {
    /// Stores one range of a lockbox's inventory in place of what was known of it. The report was verified.
    ///
    /// One that is older than what is known is refused: it was held back, and what it says is past. A lockbox whose clock was
    /// put back tells everything again until its clock has caught up.
    pub fn take_inventory(&mut self, report: &InventoryReport, now_ms: i64) -> Result<(), Refusal> {
        let lockbox_id = report.lockbox_id;
        let before = self.get(&keys::inventory_time(lockbox_id))?;
        let before_ms = before.and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes);
        // A time that is still to come was a wrong clock's: it must not keep every report out until then.
        if before_ms.is_some_and(|before_ms| (report.reported_at_ms.saturating_add(1)..=now_ms).contains(&before_ms)) {
            return Err(Refusal::OlderReport);
        }
        let (mut known, more) = self.inventory_between(report)?;
        let mut batch = Batch::new();
        for entry in &report.entries {
            let bytes = entry.to_wire().encode_to_vec();
            if known.remove(&entry.key_id).is_some_and(|before| before == bytes) {
                continue;
            }
            batch.put(keys::inventory_key(lockbox_id, entry.key_id), bytes);
            batch.put(keys::holder(entry.key_id, lockbox_id), Vec::new());
            // A key's material and ancestors never change, whoever holds it.
            batch.put(keys::material(entry.material_id, entry.key_id), Vec::new());
            for ancestor in ancestors(entry) {
                batch.put(keys::child(ancestor, entry.key_id), Vec::new());
            }
        }
        for (key_id, bytes) in known {
            self.forget_holding(lockbox_id, key_id, &bytes, &mut batch)?;
        }
        if more {
            // So much is gone only if a store was lost. What is removed by now is not looked at again.
            self.commit(batch)?;
            return Err(Refusal::MuchIsGone);
        }
        if report.last.is_none() || !batch.is_empty() {
            batch.put(
                keys::inventory_time(lockbox_id),
                report.reported_at_ms.to_be_bytes().to_vec(),
            );
        }
        self.commit(batch)
    }

    /// What is known of the range, and whether that is not all: nobody else has a turn meanwhile.
    fn inventory_between(&self, report: &InventoryReport) -> Result<(BTreeMap<KeyId, Vec<u8>>, bool), Refusal> {
        let prefix = keys::inventory(report.lockbox_id);
        let mut after = report.after.map(|id| keys::inventory_key(report.lockbox_id, id));
        let mut known = BTreeMap::new();
        loop {
            let page = self.scan(&prefix, after.as_deref(), SCAN_PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok((known, false));
            };
            after = Some(last.clone());
            for (place, value) in page {
                let key_id = last_id(&place).map_err(Refusal::Record)?;
                if report.last.is_some_and(|end| key_id > end) {
                    return Ok((known, false));
                }
                if known.len() == MAX_RANGE_KEYS {
                    return Ok((known, true));
                }
                known.insert(key_id, value);
            }
        }
    }

    /// What says that the lockbox has or had a key; and with the last lockbox that says so, what leads to the key.
    fn forget_holding(
        &self,
        lockbox_id: LockboxId,
        key_id: KeyId,
        entry: &[u8],
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        batch.remove(keys::inventory_key(lockbox_id, key_id));
        batch.remove(keys::holder(key_id, lockbox_id));
        let mut holders = self.scan(&keys::holders(key_id), None, 2)?;
        holders.retain(|(place, _)| *place != keys::holder(key_id, lockbox_id));
        if holders.is_empty() {
            let entry = decode(entry)?;
            batch.remove(keys::material(entry.material_id, key_id));
            for ancestor in ancestors(&entry) {
                batch.remove(keys::child(ancestor, key_id));
            }
        }
        Ok(())
    }
}

impl Registry {
    /// What is opened, told family by family until one is not taken. It reads much, and holds up nobody: what it sees may
    /// not be durable yet, which only a power cut could tell.
    pub async fn impact(
        self: &Arc<Self>,
        exposed: Exposed,
        take: impl FnMut(Impact) -> ControlFlow<()> + Send + 'static,
    ) -> Result<(), Refusal> {
        let place = self.readings.begin()?;
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || {
            let _place = place;
            Reader { store }.impact(exposed, take)
        });
        joined(read.await)?
    }
}

pub(super) struct Reader {
    pub(super) store: Arc<dyn Store>,
}

#[derive(Default)]
struct Family {
    holdings: Vec<Holding>,
    truncated: bool,
}

impl Reader {
    fn impact(&self, exposed: Exposed, mut take: impl FnMut(Impact) -> ControlFlow<()>) -> Result<(), Refusal> {
        match exposed {
            Exposed::Key(key_id) => {
                let family = self.family(key_id, &mut HashSet::new())?;
                let held = family.holdings.iter().filter(|held| held.entry.key_id == key_id);
                let materials = held.map(|held| held.entry.material_id).collect();
                go_on(take(self.judge(family, &materials, None)?))
            }
            Exposed::Lockbox(lockbox_id) => self.impact_of_lockbox(lockbox_id, take),
        }
    }

    /// A server may hold a million keys, and a family is seldom larger than ten.
    fn impact_of_lockbox(
        &self,
        stolen: LockboxId,
        mut take: impl FnMut(Impact) -> ControlFlow<()>,
    ) -> Result<(), Refusal> {
        let prefix = keys::inventory(stolen);
        let mut after: Option<Vec<u8>> = None;
        let mut seen = HashSet::new();
        loop {
            let page = self.store.scan(&prefix, after.as_deref(), SCAN_PAGE);
            let page = page.map_err(Refusal::Store)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (place, _) in &page {
                let key_id = last_id(place).map_err(Refusal::Record)?;
                if seen.contains(&key_id) {
                    continue;
                }
                let family = self.family(key_id, &mut seen)?;
                let held = |held: &&Holding| held.lockbox_id == stolen && held.entry.state.is_held();
                let held = family.holdings.iter().filter(held);
                let materials = held.map(|held| held.entry.material_id).collect();
                go_on(take(self.judge(family, &materials, Some(stolen))?))?;
            }
        }
    }

    /// Everything that is tied to a key and was not seen before.
    fn family(&self, key_id: KeyId, seen: &mut HashSet<KeyId>) -> Result<Family, Refusal> {
        let mut family = Family::default();
        let mut size = 0;
        let mut waiting = vec![key_id];
        let mut materials = BTreeSet::new();
        while let Some(key_id) = waiting.pop() {
            if seen.contains(&key_id) {
                continue;
            }
            if size == MAX_IMPACT_KEYS {
                family.truncated = true;
                break;
            }
            size += 1;
            seen.insert(key_id);
            let holdings = self.holdings(key_id)?;
            for entry in holdings.iter().map(|held| &held.entry) {
                waiting.extend(ancestors(entry));
                if materials.insert(entry.material_id) {
                    waiting.extend(self.ids(&keys::materials(entry.material_id))?);
                }
            }
            waiting.extend(self.ids(&keys::children(key_id))?);
            family.holdings.extend(holdings);
        }
        Ok(family)
    }

    fn judge(
        &self,
        family: Family,
        materials: &BTreeSet<MaterialId>,
        stolen: Option<LockboxId>,
    ) -> Result<Impact, Refusal> {
        let mut reported_at_ms = BTreeMap::new();
        let holders: BTreeSet<_> = family.holdings.iter().map(|held| held.lockbox_id).collect();
        for lockbox_id in holders {
            reported_at_ms.insert(lockbox_id, self.reported_at_ms(lockbox_id)?);
        }
        Ok(Impact {
            findings: assess(materials, stolen, family.holdings),
            reported_at_ms,
            truncated: family.truncated,
        })
    }

    pub(super) fn holdings(&self, key_id: KeyId) -> Result<Vec<Holding>, Refusal> {
        let mut holdings = Vec::new();
        for id in self.ids(&keys::holders(key_id))? {
            let lockbox_id = LockboxId(id.0);
            let bytes = self.store.get(&keys::inventory_key(lockbox_id, key_id));
            if let Some(bytes) = bytes.map_err(Refusal::Store)? {
                let entry = decode(&bytes)?;
                holdings.push(Holding { lockbox_id, entry });
            }
        }
        Ok(holdings)
    }

    /// The ids that end the places under a prefix.
    fn ids(&self, prefix: &[u8]) -> Result<Vec<KeyId>, Refusal> {
        let rows = self.store.scan(prefix, None, MAX_IMPACT_KEYS).map_err(Refusal::Store)?;
        let ids = rows.iter().map(|(place, _)| last_id(place).map_err(Refusal::Record));
        ids.collect()
    }

    pub(super) fn reported_at_ms(&self, lockbox_id: LockboxId) -> Result<i64, Refusal> {
        let bytes = self
            .store
            .get(&keys::inventory_time(lockbox_id))
            .map_err(Refusal::Store)?;
        let number = bytes.and_then(|bytes| bytes.try_into().ok());
        Ok(number.map_or(0, i64::from_be_bytes))
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), Refusal> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Refusal::NotTaken),
    }
}

/// A key's parent, and what it lies on: nobody may have reported the keys between the two.
fn ancestors(entry: &InventoryEntry) -> impl Iterator<Item = KeyId> {
    let named = entry
        .parent
        .iter()
        .flat_map(|parent| [Some(parent.key_id), parent.lies_on()]);
    named.flatten()
}

pub(super) fn last_id(place: &[u8]) -> Result<KeyId, FieldError> {
    let id = place.last_chunk::<16>();
    id.map(|id| KeyId(*id))
        .ok_or(FieldError::new("inventory", "has a place that is too short"))
}

pub(super) fn decode(bytes: &[u8]) -> Result<InventoryEntry, Refusal> {
    let malformed = |_| Refusal::Record(FieldError::new("inventory", "is not what the broker writes"));
    let wire = lockbox_authz::wire::InventoryEntry::decode(bytes).map_err(malformed)?;
    InventoryEntry::from_wire(wire).map_err(Refusal::Record)
}
