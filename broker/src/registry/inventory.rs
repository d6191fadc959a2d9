//! What the lockboxes have reported of their keys, and what a stolen one opens. SPEC sections 13.5 and 13.6.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use lockbox_authz::id::MaterialId;
use lockbox_authz::impact::{Finding, assess};
use lockbox_authz::inventory::{InventoryEntry, InventoryState};
use lockbox_authz::{FieldError, InventoryReport, KeyId, LockboxId};
use lockbox_store::{Pair, Store};
use prost::Message;

use super::changes::Changes;
use super::keys::LeftPlace;
use super::left::Known;
use super::{Registry, Turn, joined, keys};
use crate::limits::{MAX_IMPACT_KEYS, MAX_RANGE_KEYS, SCAN_PAGE};
use crate::refusal::Refusal;

/// What is thought to be known to strangers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposed {
    /// A key's material.
    Key(KeyId),
    /// Everything that a lockbox held, as [`Theft`] has it.
    Lockbox(Theft),
}

/// A lockbox that was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theft {
    pub lockbox_id: LockboxId,
    /// What it held then or later was known to whoever took it, also what it says since that it has no more.
    pub since_ms: i64,
    /// Whether what was gone when the broker met the lockbox counts as well: nobody knows since when it is.
    pub with_gone_at_first: bool,
}

/// What that opens, of one family of keys: those that are tied by a material or by descent.
#[derive(Clone, Debug, Default)]
pub struct Impact {
    /// The deep ones first.
    pub findings: Vec<Finding>,
    /// When each lockbox last reported.
    pub reported_at_ms: BTreeMap<LockboxId, i64>,
    /// When it was first heard of those that a lockbox has no more, as long as that is remembered.
    pub held_until_ms: BTreeMap<LeftPlace, i64>,
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
        let first_round = before.is_none() || self.get(&keys::inventory_first(lockbox_id))?.is_some();
        let before_ms = before.and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes);
        // A time that is still to come was a wrong clock's: it must not keep every report out until then.
        if before_ms.is_some_and(|before_ms| (report.reported_at_ms.saturating_add(1)..=now_ms).contains(&before_ms)) {
            return Err(Refusal::OlderReport);
        }
        self.count_once(lockbox_id)?;
        let (clock, is_clock_written) = self.clock(now_ms)?;
        self.forget_old(clock.forgets_until_ms(now_ms, self.registry.inventory_bounds.left_kept_ms))?;
        let (mut known, mut more) = self.inventory_between(report)?;
        let mut changes = Changes::begin(self, lockbox_id, first_round, clock.left_at_ms());
        for entry in &report.entries {
            let before = match known.remove(&entry.key_id) {
                None if more => self.get(&keys::inventory_key(lockbox_id, entry.key_id))?,
                before => before,
            };
            // Nearly all of what is told on a new connection is known.
            if before.as_ref() != Some(&entry.to_wire().encode_to_vec()) {
                let before = before.map(|bytes| decode(&bytes)).transpose()?;
                changes.replace(entry.key_id, before, Some(entry))?;
            }
        }
        for (key_id, bytes) in known {
            more |= changes.is_full();
            if changes.is_full() {
                break;
            }
            changes.replace(key_id, Some(decode(&bytes)?), None)?;
        }
        let remembers = changes.remembers();
        let mut batch = changes.finish()?;
        let is_new = !batch.is_empty();
        if is_clock_written || remembers {
            batch.put(keys::CLOCK.to_vec(), clock.encode());
        }
        if more {
            // So much is gone only if a store was lost. What is removed by now is not looked at again.
            self.commit(batch)?;
            return Err(Refusal::MuchIsGone);
        }
        if report.last.is_none() || is_new {
            batch.put(
                keys::inventory_time(lockbox_id),
                report.reported_at_ms.to_be_bytes().to_vec(),
            );
        }
        if first_round {
            match report.last {
                Some(_) => batch.put(keys::inventory_first(lockbox_id), Vec::new()),
                None => batch.remove(keys::inventory_first(lockbox_id)),
            }
        }
        self.begin_to_remember(clock.left_at_ms(), &mut batch)?;
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
    known: Vec<Known>,
    truncated: bool,
}

impl Reader {
    fn impact(&self, exposed: Exposed, mut take: impl FnMut(Impact) -> ControlFlow<()>) -> Result<(), Refusal> {
        match exposed {
            Exposed::Key(key_id) => {
                let family = self.family(key_id, &mut HashSet::new())?;
                let known = family.known.iter().map(|known| &known.holding.entry);
                let materials = known.filter(|entry| entry.key_id == key_id);
                let materials = materials.map(|entry| entry.material_id).collect();
                go_on(take(self.judge(family, &materials, None)?))
            }
            Exposed::Lockbox(theft) => self.impact_of_lockbox(theft, take),
        }
    }

    /// A server may hold a million keys, and a family is seldom larger than ten.
    fn impact_of_lockbox(&self, theft: Theft, mut take: impl FnMut(Impact) -> ControlFlow<()>) -> Result<(), Refusal> {
        let mut seen = HashSet::new();
        let reported = keys::inventory(theft.lockbox_id);
        // What leaves meanwhile is in the second, and what comes back in the third.
        for prefix in [reported.clone(), keys::lefts(theft.lockbox_id), reported] {
            self.each(&prefix, |(place, _)| {
                let key_id = id_behind(&prefix, place).map_err(Refusal::Record)?;
                if seen.contains(&key_id) {
                    return Ok(());
                }
                let family = self.family(key_id, &mut seen)?;
                let held = family.known.iter().filter(|known| theft.exposes(known));
                let materials = held.map(|known| known.holding.entry.material_id).collect();
                go_on(take(self.judge(family, &materials, Some(theft))?))
            })?;
        }
        Ok(())
    }

    /// Every pair under a prefix, page by page: nobody waits for it.
    pub(super) fn each(
        &self,
        prefix: &[u8],
        mut take: impl FnMut(&Pair) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.store.scan(prefix, after.as_deref(), SCAN_PAGE);
            let page = page.map_err(Refusal::Store)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            page.iter().try_for_each(&mut take)?;
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
            let known = self.known(key_id)?;
            // What a lockbox said of a key when it had it may be more than it says now.
            let lefts = known.iter().filter_map(|known| known.left.as_ref());
            let said = known.iter().map(|known| &known.holding.entry);
            for entry in said.chain(lefts.map(|left| &left.entry)) {
                waiting.extend(ancestors(entry));
                if materials.insert(entry.material_id) {
                    waiting.extend(self.ids(&keys::materials(entry.material_id))?);
                }
            }
            waiting.extend(self.ids(&keys::children(key_id))?);
            family.known.extend(known);
        }
        Ok(family)
    }

    fn judge(&self, family: Family, materials: &BTreeSet<MaterialId>, theft: Option<Theft>) -> Result<Impact, Refusal> {
        let mut impact = Impact {
            truncated: family.truncated,
            ..Impact::default()
        };
        let mut shown = BTreeMap::new();
        let mut judged = Vec::new();
        for known in family.known {
            let lockbox_id = known.holding.lockbox_id;
            if let Entry::Vacant(reported) = impact.reported_at_ms.entry(lockbox_id) {
                reported.insert(self.reported_at_ms(lockbox_id)?);
            }
            let place = LeftPlace::of(&known.holding);
            if let Some(left) = &known.left {
                impact.held_until_ms.insert(place, left.left_at_ms);
            }
            let mut holding = known.holding.clone();
            if let (Some(entry), Some(left)) = (as_judged(&known, theft), known.left) {
                // As it was, and as it is said to be.
                let state = match known.is_reported {
                    true => known.holding.entry.state,
                    false => left.entry.state,
                };
                shown.insert(place, InventoryEntry { state, ..left.entry });
                holding.entry = entry;
            }
            judged.push(holding);
        }
        impact.findings = assess(materials, theft.map(|theft| theft.lockbox_id), judged);
        for finding in &mut impact.findings {
            if let Some(entry) = shown.remove(&LeftPlace::of(&finding.holding)) {
                finding.holding.entry = entry;
            }
        }
        Ok(impact)
    }

    /// The ids that end the places under a prefix.
    pub(super) fn ids(&self, prefix: &[u8]) -> Result<Vec<KeyId>, Refusal> {
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

impl Theft {
    /// Whether whoever took the lockbox over knows this key.
    fn exposes(self, known: &Known) -> bool {
        let is_here = known.holding.lockbox_id == self.lockbox_id;
        is_here && (known.is_reported && known.holding.entry.state.is_held() || self.left_since(known))
    }

    /// Whether the lockbox had the key at the time of the theft, or later, and says that it has it no more.
    fn left_since(self, known: &Known) -> bool {
        let left = known.left.as_ref();
        known.holding.lockbox_id == self.lockbox_id && left.is_some_and(|left| self.counts(left))
    }
}

/// What a key is judged as that a lockbox has no more, by what it said of it when it had it; `None`: as it is reported.
///
/// What a lockbox that was taken over says since then does not count, neither that it destroyed a key nor that it moved it away.
/// At any other there is nothing left to do about a key that it reports no more.
fn as_judged(known: &Known, theft: Option<Theft>) -> Option<InventoryEntry> {
    let left = known.left.as_ref()?;
    let state = match theft.is_some_and(|theft| theft.left_since(known)) {
        true if left.entry.state.is_held() => left.entry.state,
        true => InventoryState::Active,
        false if known.is_reported => known.holding.entry.state,
        false => InventoryState::Destroyed,
    };
    Some(InventoryEntry {
        state,
        ..left.entry.clone()
    })
}

fn go_on(flow: ControlFlow<()>) -> Result<(), Refusal> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Refusal::NotTaken),
    }
}

/// A key's parent, and what it lies on: nobody may have reported the keys between the two.
pub(super) fn ancestors(entry: &InventoryEntry) -> impl Iterator<Item = KeyId> {
    let named = entry
        .parent
        .iter()
        .flat_map(|parent| [Some(parent.key_id), parent.lies_on()]);
    named.flatten()
}

/// The id of the key whose place this is, below a prefix that ends with a lockbox's.
fn id_behind(prefix: &[u8], place: &[u8]) -> Result<KeyId, FieldError> {
    let id = place.get(prefix.len()..).and_then(<[u8]>::first_chunk::<16>);
    id.map(|id| KeyId(*id))
        .ok_or(FieldError::new("inventory", "has a place that is too short"))
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
