//! A full scan of the vault, page by page, while it is in use.
//!
//! Each record is opened at its place, and what the digest spans is summed up anew. A record that is changed behind the
//! scan's place changes the scan's sum, too, so at the end the sum is that of all records as they are then.

use std::collections::BTreeSet;
use std::{fmt, mem};

use lockbox_authz::id::KeyId;

use lockbox_store::Batch;
use prost::Message;
use rand_core::CryptoRng;

use super::anchor::{Delta, Extent, is_spanned};
use super::book::describe;
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
        for place in going {
            self.amiss.places.remove(place);
        }
    }
}

/// What a full scan has found amiss of the records that the digest spans.
///
/// The digest is a sum, and a damaged record's part in it is unknown. What the sum of all records lacked at the scan's end is
/// the parts of all that were damaged, and no change of other records alters it. So with the last damaged record that goes,
/// the rest of it is settled: then the digest is that of the records that are there.
#[derive(Default)]
pub(super) struct Amiss {
    /// Where they stand, or stood.
    places: BTreeSet<Vec<u8>>,
    /// Whether there are more than are noted.
    more: bool,
    /// What was committed and not found.
    lacking: Extent,
}

impl Amiss {
    fn note(&mut self, place: Vec<u8>) {
        if self.places.len() < MAX_FINDINGS {
            self.places.insert(place);
        } else {
            self.more = true;
        }
    }

    /// Learns which records go with the batches that are being made.
    pub(super) fn settle(&mut self, going: &[Vec<u8>], extent: &mut Extent) {
        let before = self.places.len();
        for place in going {
            self.places.remove(place);
        }
        if self.places.len() < before && self.places.is_empty() && !self.more {
            *extent = extent.without(mem::take(&mut self.lacking));
        }
    }
}

impl Vault {
    /// Whether the last full scan has found a key's record damaged or lost, or its data-encryption key.
    pub(crate) fn is_known_damaged(&self, key_id: KeyId) -> bool {
        let place = rows::key_record(key_id);
        self.amiss.as_ref().is_some_and(|amiss| amiss.places.contains(&place))
    }

    pub(crate) fn knows_of_damage(&self) -> bool {
        self.amiss
            .as_ref()
            .is_some_and(|amiss| amiss.more || !amiss.places.is_empty())
    }

    /// Whether a key is here that has no record any more, as far as the last full scan has found.
    pub(crate) fn is_lost(&self, key_id: KeyId) -> Result<bool, VaultError> {
        Ok(self.is_known_damaged(key_id) && !self.has_key(key_id)?)
    }

    /// The keys after one, up to and with another, that have no record any more, ascending.
    pub(super) fn lost_keys(&self, after: Option<KeyId>, last: Option<KeyId>) -> Result<Vec<KeyId>, VaultError> {
        let mut lost = Vec::new();
        for place in self.amiss.iter().flat_map(|amiss| &amiss.places) {
            let Some(key_id) = key_record_id(place) else { continue };
            let is_in = Some(key_id) > after && last.is_none_or(|last| key_id <= last);
            if is_in && !self.has_key(key_id)? {
                lost.push(key_id);
            }
        }
        Ok(lost)
    }

    /// Scans the next page. Gives what was found when there is no other, and begins anew after that.
    pub fn verify_page(&mut self, limit: usize) -> Result<Option<Verification>, VaultError> {
        let scanned = self.scan_page(limit)?;
        Ok(scanned.map(|(verification, _)| verification))
    }

    /// Takes the store as it is: from now on, the records that are there are those that were committed. Gives what a full scan
    /// found, and the batches to commit.
    ///
    /// An alarm is raised with it: the ledger may have forgotten which authorizations were spent, and an operator is to clear
    /// it who knows that.
    pub fn accept(&mut self, now_ms: i64, rng: &mut dyn CryptoRng) -> Result<(Verification, Vec<Batch>), VaultError> {
        self.scan = None;
        let (verification, found) = loop {
            if let Some(scanned) = self.scan_page(PAGE)? {
                break scanned;
            }
        };
        let commit = self.anchor.extent.commit;
        self.anchor.extent = Extent { commit, ..found };
        self.amiss = None;
        let alarms = self.places(&[Row::Alarm(0).kind()], None, usize::MAX)?;
        let numbers = alarms.iter().filter_map(|place| place.last_chunk::<8>());
        let number = numbers.map(|number| u64::from_be_bytes(*number)).max().unwrap_or(0);
        let alarm = wire::AlarmRecord {
            version: 1,
            what: format!("the store was accepted as it was found: {verification}"),
            raised_at_ms: now_ms,
            evidence: Vec::new(),
        };
        let mut changes = Changes::default();
        changes.put(Row::Alarm(number.saturating_add(1)), alarm.encode_to_vec());
        let batches = self.stage(changes, rng)?;
        Ok((verification, batches))
    }

    fn scan_page(&mut self, limit: usize) -> Result<Option<(Verification, Extent)>, VaultError> {
        let mut scan = self.scan.take().unwrap_or_default();
        let page = self.store.scan(&[], scan.place.as_deref(), limit)?;
        let Some((last, _)) = page.last() else {
            let mut verification = mem::take(&mut scan.verification);
            let (found, committed) = (scan.found, self.anchor.extent);
            scan.amiss.lacking = committed.without(found);
            self.amiss = Some(mem::take(&mut scan.amiss));
            if (found.records, found.digest) != (committed.records, committed.digest) {
                verification.mismatch = Some(Mismatch {
                    found: found.records,
                    committed: committed.records,
                });
            }
            return Ok(Some((verification, found)));
        };
        scan.place = Some(last.clone());
        for (place, stored) in page {
            if let Some(damaged) = self.verify_record(&mut scan.verification, &place, &stored)? {
                scan.amiss.note(damaged);
            }
            if is_spanned(&place) {
                let contribution = self.anchor.contribution(&place, &stored);
                scan.found.add(place, contribution);
            }
        }
        self.scan = Some(scan);
        Ok(None)
    }

    /// Gives where a record stands that is damaged or lost, of those that the digest spans.
    fn verify_record(
        &self,
        seen: &mut Verification,
        place: &[u8],
        stored: &[u8],
    ) -> Result<Option<Vec<u8>>, VaultError> {
        let key_id = || place.last_chunk::<16>().map(|id| KeyId(*id));
        let before = seen.damaged_count;
        let mut stands_at = place.to_vec();
        match place.first() {
            Some(&rows::KEY_RECORD_KIND) => {
                let Some(key_id) = key_id() else {
                    seen.note(describe(place), "its place is too short");
                    return Ok(Some(stands_at));
                };
                match self.open_key(key_id, stored) {
                    Ok(_) => seen.keys += 1,
                    Err(error) => seen.note_error(error)?,
                }
            }
            Some(&rows::DATA_KEY_KIND) => match key_id() {
                Some(key_id) if self.has_key(key_id)? => {}
                Some(key_id) => {
                    seen.note(format!("key {key_id}"), "its record is missing");
                    stands_at = rows::key_record(key_id);
                }
                None => {
                    seen.note(describe(place), "its place is too short");
                    return Ok(None);
                }
            },
            // The table and the steps between epochs were opened with the vault; so was the anchor.
            _ if !is_spanned(place) => {}
            _ => match self.book.open(place, stored) {
                Ok(_) => seen.records += 1,
                Err(error) => seen.note_error(error)?,
            },
        }
        Ok((seen.damaged_count > before).then_some(stands_at))
    }
}

fn key_record_id(place: &[u8]) -> Option<KeyId> {
    match place.split_first() {
        Some((&rows::KEY_RECORD_KIND, id)) => id.try_into().ok().map(KeyId),
        _ => None,
    }
}
