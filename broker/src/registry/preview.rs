//! What a compromise notice would mark, from what the lockboxes have reported. SPEC sections 13.5 and 13.8.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockbox_authz::id::MaterialId;
use lockbox_authz::impact::Holding;
use lockbox_authz::inventory::InventoryEntry;
use lockbox_authz::{
    Authorization, AuthorizationId, CompromiseNotice, FieldError, Hash, KeyId, LockboxId, Receipt, Roster, Selection,
    UnverifiedEnvelope,
};
use lockbox_rpc::api::node::TransferStage;
use tokio::sync::mpsc;

use super::inventory::{Reader, decode, last_id};
use super::left::{Known, Left};
use super::{Registry, Theft, Transfer, joined, keys};
use crate::refusal::Refusal;

/// Keys at lockboxes in one page.
const PAGE: usize = 1_000;

/// Whose materials.
#[derive(Clone, Debug)]
pub enum Subject {
    Keys(Vec<KeyId>),
    /// Everything that a lockbox held, also what it received after its last report.
    Lockbox(Theft),
    /// These themselves, whoever has them.
    Materials(BTreeSet<MaterialId>),
}

/// One key that has one of the materials, at a lockbox that has or had it.
#[derive(Clone, Debug)]
pub struct Named {
    pub holding: Holding,
    pub reported_at_ms: i64,
    /// A notice that lockboxes take names the material already.
    pub noticed: bool,
    /// When it was first heard that the lockbox has it no more, if it has not and that is remembered.
    pub held_until_ms: Option<i64>,
}

impl Registry {
    /// Sends what would be marked, in pages, material by material. It reads much, and holds up nobody.
    pub async fn preview(
        self: &Arc<Self>,
        subject: Subject,
        pages: mpsc::Sender<Result<Vec<Named>, Refusal>>,
    ) -> Result<(), Refusal> {
        let (store, roster) = (Arc::clone(&self.store), self.roster());
        let place = match self.readings.begin() {
            Ok(place) => place,
            Err(refusal) => {
                // Whoever asked may be gone.
                let _ = pages.send(Err(refusal)).await;
                return Ok(());
            }
        };
        let asker = pages.clone();
        let registry = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut preview = Preview {
                registry,
                reader: Reader { store },
                roster,
                pages,
                page: Vec::new(),
                reported_at_ms: BTreeMap::new(),
                valid: BTreeMap::new(),
            };
            preview.run(&subject)
        });
        let refusal = match joined(read.await)? {
            Ok(()) => return Ok(()),
            Err(Stop::Refused(refusal)) => refusal,
            Err(Stop::NotTaken) => Refusal::NotTaken,
        };
        // As above. This waits on no thread.
        let _ = asker.send(Err(refusal)).await;
        Ok(())
    }
}

/// Why no more is sent.
enum Stop {
    Refused(Refusal),
    /// Whoever asked is gone, or has stopped reading.
    NotTaken,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn damaged() -> Refusal {
    Refusal::Record(FieldError::new("receipt", "is not what the broker writes"))
}

/// Whether keys may have left the source, as it says itself.
fn has_begun(transfer: &Transfer) -> bool {
    matches!(
        transfer.source.stage,
        TransferStage::Running | TransferStage::Complete | TransferStage::Ended
    )
}

struct Preview {
    registry: Arc<Registry>,
    reader: Reader,
    roster: Arc<Roster>,
    pages: mpsc::Sender<Result<Vec<Named>, Refusal>>,
    page: Vec<Named>,
    reported_at_ms: BTreeMap<LockboxId, i64>,
    /// Whether the present admins have signed a notice.
    valid: BTreeMap<Hash, bool>,
}

impl Preview {
    fn run(&mut self, subject: &Subject) -> Result<(), Stop> {
        let materials = match subject {
            Subject::Keys(ids) => self.materials_of(ids)?,
            Subject::Lockbox(theft) => self.materials_at(*theft)?,
            Subject::Materials(ids) => ids.clone(),
        };
        for material_id in materials {
            let noticed = self.is_noticed(material_id)?;
            for key_id in self.keys_of(material_id)? {
                for known in self.reader.known(key_id)? {
                    // Lockboxes may disagree on what a key has.
                    if known.holding.entry.material_id == material_id {
                        self.add(known, noticed)?;
                    }
                }
            }
        }
        self.flush()
    }

    fn materials_of(&self, key_ids: &[KeyId]) -> Result<BTreeSet<MaterialId>, Refusal> {
        let mut materials = BTreeSet::new();
        for key_id in key_ids {
            let known = self.reader.known(*key_id)?;
            if known.is_empty() {
                return Err(Refusal::UnknownKey(*key_id));
            }
            materials.extend(known.iter().map(|known| known.holding.entry.material_id));
        }
        Ok(materials)
    }

    fn materials_at(&self, theft: Theft) -> Result<BTreeSet<MaterialId>, Refusal> {
        let mut materials = BTreeSet::new();
        let lockbox_id = theft.lockbox_id;
        self.held_at(lockbox_id, &mut materials)?;
        self.reader.each(&keys::lefts(lockbox_id), |(_, bytes)| {
            let left = Left::decode(bytes)?;
            if theft.counts(&left) {
                materials.insert(left.entry.material_id);
            }
            Ok(())
        })?;
        // What left meanwhile is among those, and what came back is here.
        self.held_at(lockbox_id, &mut materials)?;
        self.reader.each(keys::ALL, |(place, _)| {
            let id = place.get(keys::ALL.len() + 8..).unwrap_or_default();
            let id = AuthorizationId::from_slice("place in a list", id).map_err(Refusal::Record)?;
            // It may have been dropped since its place was read.
            let Some(record) = self.reader.store.get(&keys::transfer(id)).map_err(Refusal::Store)? else {
                return Ok(());
            };
            let transfer = Transfer::decode(&record).map_err(Refusal::Record)?;
            match transfer.target_id == lockbox_id {
                true => self.received_since(&transfer, &mut materials),
                false => Ok(()),
            }
        })?;
        Ok(materials)
    }

    fn held_at(&self, lockbox_id: LockboxId, materials: &mut BTreeSet<MaterialId>) -> Result<(), Refusal> {
        self.reader.each(&keys::inventory(lockbox_id), |(_, bytes)| {
            let entry: InventoryEntry = decode(bytes)?;
            if entry.state.is_held() {
                materials.insert(entry.material_id);
            }
            Ok(())
        })
    }

    /// The materials of what a transfer brought to its target that the target has not reported since: its receipts say that it
    /// has the keys, and a target that withholds these has at most what the authorization names and the source has let out.
    fn received_since(&self, transfer: &Transfer, materials: &mut BTreeSet<MaterialId>) -> Result<(), Refusal> {
        let mut take = |key_ids: Vec<KeyId>| -> Result<(), Refusal> {
            for key_id in key_ids {
                materials.extend(self.sent(transfer, key_id)?);
            }
            Ok(())
        };
        if has_begun(transfer) {
            take(self.named_by(transfer.authorization_id)?)?;
        }
        if transfer.keys_received == 0 {
            return Ok(());
        }
        self.reader
            .each(&keys::receipts(transfer.authorization_id), |(_, bytes)| {
                let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(|_| damaged())?;
                let receipt: Receipt = envelope.unverified_statement().map_err(|_| damaged())?;
                take(receipt.key_ids)
            })
    }

    /// The material of a key that a source sent, unless its target has spoken of it.
    ///
    /// Where the two contradict each other, the source's word counts, too, if it has been the same since the transfer: one that was
    /// taken over later could have the notice name another's material. Whether it has, is known for as long as what left is.
    fn sent(&self, transfer: &Transfer, key_id: KeyId) -> Result<Option<MaterialId>, Refusal> {
        let (sent_ms, target) = (transfer.created_at_ms, self.reader.said(transfer.target_id, key_id)?);
        let is_remembered = sent_ms >= self.registry.forgotten_until_ms()?;
        let mut answered = target.since(sent_ms);
        if let Some(entry) = &target.entry
            && (entry.state.is_held() || !is_remembered)
        {
            answered.insert(entry.material_id);
        }
        let source = self.reader.said(transfer.source_id, key_id)?;
        let mut sent = source.since(sent_ms);
        sent.extend(source.entry.as_ref().map(|entry| entry.material_id));
        if answered.is_empty() {
            let last = source.lefts.iter().max_by_key(|left| left.left_at_ms);
            let entry = source.entry.as_ref().or(last.map(|left| &left.entry));
            return Ok(entry.map(|entry| entry.material_id));
        }
        let is_one = is_remembered && sent.len() == 1;
        Ok(sent.into_iter().find(|sent| is_one && !answered.contains(sent)))
    }

    /// The keys that an authorization names; none if it selects them otherwise.
    fn named_by(&self, id: AuthorizationId) -> Result<Vec<KeyId>, Refusal> {
        let damaged = || Refusal::Record(FieldError::new("authorization", "is not what the broker writes"));
        let bytes = self
            .reader
            .store
            .get(&keys::authorization(id))
            .map_err(Refusal::Store)?;
        let Some(bytes) = bytes else { return Ok(Vec::new()) };
        let envelope = UnverifiedEnvelope::from_bytes(&bytes).map_err(|_| damaged())?;
        let authorization: Authorization = envelope.unverified_statement().map_err(|_| damaged())?;
        Ok(match authorization.selection {
            Selection::Ids(ids) => ids,
            Selection::Labels(_) | Selection::All => Vec::new(),
        })
    }

    fn keys_of(&self, material_id: MaterialId) -> Result<Vec<KeyId>, Refusal> {
        let mut ids = Vec::new();
        self.reader.each(&keys::materials(material_id), |(place, _)| {
            ids.push(last_id(place).map_err(Refusal::Record)?);
            Ok(())
        })?;
        Ok(ids)
    }

    fn is_noticed(&mut self, material_id: MaterialId) -> Result<bool, Refusal> {
        let store = &self.reader.store;
        let Some(hash) = store.get(&keys::noticed(material_id)).map_err(Refusal::Store)? else {
            return Ok(false);
        };
        let hash = Hash::from_slice("notice hash", &hash).map_err(Refusal::Record)?;
        if let Some(valid) = self.valid.get(&hash) {
            return Ok(*valid);
        }
        let bytes = store.get(&keys::notice_envelope(hash)).map_err(Refusal::Store)?;
        let envelope = bytes.and_then(|bytes| UnverifiedEnvelope::from_bytes(&bytes).ok());
        let valid = envelope.is_some_and(|envelope| CompromiseNotice::verify(&envelope, &self.roster).is_ok());
        self.valid.insert(hash, valid);
        Ok(valid)
    }

    fn add(&mut self, known: Known, noticed: bool) -> Result<(), Stop> {
        let Known { holding, left, .. } = known;
        let lockbox_id = holding.lockbox_id;
        let reported_at_ms = match self.reported_at_ms.get(&lockbox_id) {
            Some(known) => *known,
            None => self.reader.reported_at_ms(lockbox_id)?,
        };
        self.reported_at_ms.insert(lockbox_id, reported_at_ms);
        self.page.push(Named {
            holding,
            reported_at_ms,
            noticed,
            held_until_ms: left.map(|left| left.left_at_ms),
        });
        match self.page.len() < PAGE {
            true => Ok(()),
            false => self.flush(),
        }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let page = std::mem::take(&mut self.page);
        match self.registry.hand_over(&self.pages, Ok(page)) {
            true => Ok(()),
            false => Err(Stop::NotTaken),
        }
    }
}
