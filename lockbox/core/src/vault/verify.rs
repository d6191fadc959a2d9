//! A full scan of the vault, page by page, while it is in use.
//!
//! Each record is opened at its place, and what the digest spans is summed up anew. A record that is changed behind the
//! scan's place changes the scan's sum, too, so at the end the sum is that of all records as they are then.

use std::{fmt, mem};

use lockbox_authz::id::KeyId;

use lockbox_store::Batch;
use prost::Message;
use rand_core::CryptoRng;

use super::amiss::{Amiss, Fault};
use super::anchor::{Delta, Extent, is_spanned};
use super::book::describe;
use super::readable::key_id_of;
use super::{Changes, Vault, VaultError};
use crate::limits::MAX_FINDINGS;
use crate::rows::{self, Row};
use crate::wire;

/// Records that a scan reads at a time.
const PAGE: usize = 1_000;

/// What a full scan has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Volume keys that opened, with everything that they need, when the scan came to them.
    pub keys: u64,
    /// Other records that opened.
    pub records: u64,
    /// Keys and values of everything in the store, in bytes.
    pub bytes: u64,
    /// The damaged records, by name; at most 1,000 of them.
    pub damaged: Vec<Finding>,
    /// How many are damaged.
    pub damaged_count: u64,
    /// Set if the records, each whole or not, are not those that were last committed.
    pub mismatch: Option<Mismatch>,
}

/// A record that does not open, or is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub why: String,
}

/// How the records differ from what the anchor says. With equal counts, a record was exchanged for an older version of
/// itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub found: u64,
    pub committed: u64,
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.damaged_count, self.mismatch) {
            (0, None) => write!(
                f,
                "all of {} keys and {} other records are whole",
                self.keys, self.records
            ),
            (0, Some(mismatch)) => write!(f, "{mismatch}"),
            (count, None) => write!(f, "{count} records are damaged"),
            (count, Some(mismatch)) => write!(f, "{count} records are damaged, and {mismatch}"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, committed } = self;
        if found == committed {
            f.write_str("the records are not those that were committed, though as many")
        } else {
            write!(f, "{found} records are there where {committed} were committed")
        }
    }
}

impl Verification {
    pub fn is_clean(&self) -> bool {
        self.damaged_count == 0 && self.mismatch.is_none()
    }

    fn note(&mut self, what: String, why: impl Into<String>) {
        self.damaged_count += 1;
        if self.damaged.len() < MAX_FINDINGS {
            self.damaged.push(Finding { what, why: why.into() });
        }
    }

    fn note_error(&mut self, error: VaultError) -> Result<(), VaultError> {
        match error {
            VaultError::Damaged { what, why } => self.note(what, why),
            VaultError::Field { what, source } => self.note(what, source.to_string()),
            // The store itself, which says nothing about one record.
            error => return Err(error),
        }
        Ok(())
    }
}

/// How far a scan has come.
#[derive(Default)]
pub(super) struct Scan {
    /// Everything up to here is summed up.
    place: Option<Vec<u8>>,
    found: Extent,
    amiss: Amiss,
    verification: Verification,
}

impl Scan {
    /// Learns of a change; one that is ahead will be seen when the scan comes there.
    pub(super) fn learn(&mut self, delta: &Delta) {
        if self.place.as_ref().is_some_and(|place| delta.place <= *place) {
            self.found.apply(delta);
        }
    }

    /// Learns which records go: what it has found amiss of them is no more.
    pub(super) fn forget(&mut self, going: &[Vec<u8>]) {
        self.amiss.forget(going);
    }
}

impl Vault {
    /// Scans the next page. Gives what was found when there is no other, and begins anew after that.
    pub fn verify_page(&mut self, limit: usize) -> Result<Option<Verification>, VaultError> {
        let scanned = self.scan_page(limit)?;
        Ok(scanned.map(|(verification, _)| verification))
    }

    /// Takes the store as it is: from now on, the records that are there are those that were committed. Gives what a full scan
    /// found, and the batches to commit.
    ///
    /// An alarm is raised with it: the ledger may have forgotten which authorizations were spent, and an operator is to clear
    /// it who knows that. A damaged node of the key tree is replaced: the keys below it stay damaged, and new ones can be put
    /// there.
    ///
    /// # Errors
    ///
    /// [`VaultError::Root`] if the root of the key tree is damaged. No key can be read then, and there may be a copy of the
    /// store whose root opens.
    pub fn accept(&mut self, now_ms: i64, rng: &mut dyn CryptoRng) -> Result<(Verification, Vec<Batch>), VaultError> {
        self.tree.check_root()?;
        self.scan = None;
        let (verification, found) = loop {
            if let Some(scanned) = self.scan_page(PAGE)? {
                break scanned;
            }
        };
        let commit = self.anchor.extent.commit;
        self.anchor.extent = Extent { commit, ..found };
        let amiss = self.amiss.take().unwrap_or_default();
        let of_lost = amiss.lost().map(|key_id| self.data_key_place(key_id));
        let useless: Vec<_> = amiss.strays().chain(of_lost).collect();
        let alarms = self.places(&[Row::Alarm(0).kind()], None, usize::MAX)?;
        let numbers = alarms.iter().filter_map(|place| place.last_chunk::<8>());
        let number = numbers.map(|number| u64::from_be_bytes(*number)).max().unwrap_or(0);
        let alarm = wire::AlarmRecord {
            version: 1,
            what: format!("the store was accepted as it was found: {verification}"),
            raised_at_ms: now_ms,
            ..wire::AlarmRecord::default()
        };
        let mut changes = Changes::default();
        changes.put(Row::Alarm(number.saturating_add(1)), alarm.encode_to_vec());
        let mut batches = self.stage(changes, rng)?;
        // One batch with one alarm, and few of these: what opens nothing need not be reported for ever.
        if let Some(batch) = batches.last_mut() {
            useless.into_iter().for_each(|place| batch.remove(place));
        }
        batches.extend(self.tree.replace_damaged(rng));
        Ok((verification, batches))
    }

    fn scan_page(&mut self, limit: usize) -> Result<Option<(Verification, Extent)>, VaultError> {
        let mut scan = self.scan.take().unwrap_or_default();
        let page = self.store.scan(&[], scan.place.as_deref(), limit)?;
        let Some((last, _)) = page.last() else {
            let mut verification = mem::take(&mut scan.verification);
            for node in self.tree.damaged_nodes() {
                verification.note(node, "its row does not open or is lost, so no key below it opens");
            }
            let (found, committed) = (scan.found, self.anchor.extent);
            scan.amiss.end(committed.without(found));
            self.amiss = Some(mem::take(&mut scan.amiss));
            if !found.has_same_records(&committed) {
                verification.mismatch = Some(Mismatch {
                    found: found.records,
                    committed: committed.records,
                });
            }
            return Ok(Some((verification, found)));
        };
        scan.place = Some(last.clone());
        for (place, stored) in page {
            scan.verification.bytes += (place.len() + stored.len()) as u64;
            if let Some((damaged, fault)) = self.verify_record(&mut scan.verification, &place, &stored)? {
                scan.amiss.note(damaged, fault);
            }
            if is_spanned(&place) {
                let contribution = self.anchor.contribution(&place, &stored);
                scan.found.add(place, contribution);
            }
        }
        self.scan = Some(scan);
        Ok(None)
    }

    /// Gives where a record stands that is damaged or lost, of those that the digest spans or that open one of them.
    fn verify_record(
        &self,
        seen: &mut Verification,
        place: &[u8],
        stored: &[u8],
    ) -> Result<Option<(Vec<u8>, Fault)>, VaultError> {
        let opened = match place.first() {
            Some(&rows::KEY_RECORD_KIND) => {
                let Ok(key_id) = key_id_of(place) else {
                    seen.note(describe(place), "its place is not that of a key");
                    return Ok(Some((place.to_vec(), Fault::Record)));
                };
                match self.open_key(key_id, stored) {
                    Ok(_) => seen.keys += 1,
                    Err(error) => {
                        seen.note_error(error)?;
                        let data_key = self.data_key_opens(key_id)?;
                        let fault = if data_key { Fault::Record } else { Fault::DataKey };
                        return Ok(Some((place.to_vec(), fault)));
                    }
                }
                return Ok(None);
            }
            Some(&rows::DATA_KEY_KIND) => return self.verify_data_key(seen, place),
            // The tree's nodes and the steps between epochs were opened with the vault; so was the anchor.
            _ if !is_spanned(place) => return Ok(None),
            _ => self.book.open(place, stored),
        };
        match opened {
            Ok(_) => seen.records += 1,
            Err(error) => {
                seen.note_error(error)?;
                return Ok(Some((place.to_vec(), Fault::Record)));
            }
        }
        Ok(None)
    }

    /// A data-encryption key that opens shows that its key is here: an older one is sealed under a leaf's key that is gone. Of
    /// one that does not open, and has no key record, nothing is known: anybody can put it there.
    fn verify_data_key(&self, seen: &mut Verification, place: &[u8]) -> Result<Option<(Vec<u8>, Fault)>, VaultError> {
        let Some(key_id) = rows::data_key_id(place).filter(|key_id| place == self.data_key_place(*key_id)) else {
            seen.note(describe(place), "its place is not that of a data-encryption key");
            return Ok(Some((place.to_vec(), Fault::Stray)));
        };
        if self.has_key(key_id)? {
            return Ok(None);
        }
        if self.data_key_opens(key_id)? {
            seen.note(format!("key {key_id}"), "its record is missing");
            return Ok(Some((rows::key_record(key_id), Fault::Lost)));
        }
        seen.note(describe(place), "it does not open at its place, and no key has it");
        Ok(Some((place.to_vec(), Fault::Stray)))
    }

    pub(super) fn data_key_place(&self, key_id: KeyId) -> Vec<u8> {
        rows::data_key(self.tree.leaf_of(key_id), key_id)
    }

    fn data_key_opens(&self, key_id: KeyId) -> Result<bool, VaultError> {
        let wrapped = self.store.get(&self.data_key_place(key_id))?;
        Ok(wrapped.is_some_and(|wrapped| self.tree.has_data_key(key_id, &wrapped)))
    }
}
