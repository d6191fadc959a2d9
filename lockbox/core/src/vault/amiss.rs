//! What a full scan has found amiss, and when the digest is right again. SPEC section 9.9.
//!
//! The digest is a sum, and a damaged record's part in it is unknown. What the sum of all records lacked at the scan's end is
//! the parts of all that were damaged, and no change of other records alters it. So with the last damaged record that goes,
//! the rest of it is settled: then the digest is that of the records that are there.
//!
//! The counts are known, and nothing is settled that they contradict: whoever took other records away, or put some in, is
//! not to have that settled with a damaged key.

use std::collections::BTreeMap;

use lockbox_authz::id::KeyId;

use super::anchor::Extent;
use super::{Vault, VaultError};
use crate::limits::MAX_FINDINGS;
use crate::rows;

/// What is amiss at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A record that the digest spans does not open: what it contributed is unknown.
    Record,
    /// A key record is gone, and the data-encryption key that opened it is there: what it contributed is unknown.
    Lost,
    /// A key's data-encryption key is lost or damaged. Its record contributes what it did.
    DataKey,
    /// A data-encryption key stands where none belongs, or does not open and has no key. Anybody can put one there.
    Stray,
}

impl Fault {
    fn is_unknown(self) -> bool {
        matches!(self, Self::Record | Self::Lost)
    }
}

#[derive(Default)]
pub(super) struct Amiss {
    /// Where they stand, or stood; of a key, always its record's place.
    places: BTreeMap<Vec<u8>, Fault>,
    /// Whether something is amiss that is not noted, or went without being settled.
    more: bool,
    /// What was committed and not found.
    lacking: Extent,
    /// Whether the scan has found nothing amiss. Nothing that happens later changes what is known then.
    was_clean: bool,
}

impl Amiss {
    pub(super) fn note(&mut self, place: Vec<u8>, fault: Fault) {
        if self.places.len() < MAX_FINDINGS {
            self.places.insert(place, fault);
        } else {
            self.more = true;
        }
    }

    pub(super) fn end(&mut self, lacking: Extent) {
        self.lacking = lacking;
        self.was_clean = !self.more && self.places.is_empty() && lacking.has_same_records(&Extent::default());
    }

    /// Learns that records go while the scan is under way.
    pub(super) fn forget(&mut self, going: &[Vec<u8>]) {
        for place in going {
            self.places.remove(place);
        }
    }

    /// Whether the digest is settled when this record goes.
    fn is_settled_with(&self, place: &[u8]) -> bool {
        let is_last = self.unknown().all(|other| other == place) && self.unknown().next().is_some();
        is_last && self.is_explained() && !self.lacking.has_same_records(&Extent::default())
    }

    /// Learns which records go with the batches that are being made. What goes on purpose is settled, as far as it can be.
    pub(super) fn settle(&mut self, going: &[Vec<u8>], on_purpose: bool, extent: &mut Extent) {
        for place in going {
            let settles = on_purpose && self.is_settled_with(place);
            let explains = on_purpose && self.is_explained();
            let Some(fault) = self.places.remove(place) else {
                continue;
            };
            if settles {
                *extent = extent.without(self.lacking);
                self.lacking = Extent::default();
            } else if explains && fault == Fault::Lost {
                // That it was there is certain, so the counts can do without it; the digest waits for the others.
                *extent = extent.without(Extent::ONE_KEY);
                self.lacking = self.lacking.without(Extent::ONE_KEY);
            } else if !on_purpose && fault.is_unknown() {
                self.more = true;
            }
        }
    }

    /// Learns that a key is put where one was lost: it was counted before, and is not to be counted twice. The digest does not
    /// come right by that, as what the lost record contributed stays unknown.
    pub(super) fn replace(&mut self, place: &[u8], extent: &mut Extent) {
        if self.places.get(place) == Some(&Fault::Lost) && self.is_explained() {
            self.places.remove(place);
            *extent = extent.without(Extent::ONE_KEY);
            self.lacking = self.lacking.without(Extent::ONE_KEY);
        }
    }

    fn lost_count(&self) -> u64 {
        self.at_fault(Fault::Lost).count() as u64
    }

    /// Where records stand, or stood, whose part in the digest is unknown.
    fn unknown(&self) -> impl Iterator<Item = &[u8]> {
        let unknown = self.places.iter().filter(|(_, fault)| fault.is_unknown());
        unknown.map(|(place, _)| &place[..])
    }

    /// Where data-encryption keys stand that are of no use.
    pub(super) fn strays(&self) -> impl Iterator<Item = Vec<u8>> {
        self.at_fault(Fault::Stray).cloned()
    }

    /// The keys of which nothing is left but what opened them.
    pub(super) fn lost(&self) -> impl Iterator<Item = KeyId> {
        self.at_fault(Fault::Lost).filter_map(|place| key_record_id(place))
    }

    fn at_fault(&self, fault: Fault) -> impl Iterator<Item = &Vec<u8>> {
        let here = self.places.iter().filter(move |(_, found)| **found == fault);
        here.map(|(place, _)| place)
    }

    /// Whether the records that are lost are those that the counts lack.
    fn is_explained(&self) -> bool {
        let lost = self.lost_count();
        !self.more && (self.lacking.records, self.lacking.keys) == (lost, lost)
    }
}

impl Vault {
    /// Whether the last full scan has found a key's record damaged or lost, or its data-encryption key.
    pub(crate) fn is_known_damaged(&self, key_id: KeyId) -> bool {
        let place = rows::key_record(key_id);
        self.amiss
            .as_ref()
            .is_some_and(|amiss| amiss.places.contains_key(&place))
    }

    /// Whether a key that is not found here, and not among the lost ones either, is gone. Not before a scan has ended, and not
    /// while fewer keys are here than were committed, or more.
    pub(crate) fn knows_every_key(&self) -> bool {
        self.amiss
            .as_ref()
            .is_some_and(|amiss| !amiss.more && amiss.lacking.keys == amiss.lost_count())
    }

    /// Takes over what a scan has found from the vault that was open before, on the same store. Gives whether another scan is
    /// needed, as something was amiss, and changes that were refused may have made it look settled.
    pub(crate) fn take_over_scan(&mut self, before: &mut Self) -> bool {
        match before.amiss.take() {
            Some(amiss) if amiss.was_clean => {
                self.amiss = Some(amiss);
                false
            }
            // One that is under way begins anew.
            amiss => amiss.is_some() && before.scan.is_none(),
        }
    }

    /// Whether the digest is taken as it is found when this key is destroyed.
    pub(crate) fn is_settled_with(&self, key_id: KeyId) -> bool {
        let place = rows::key_record(key_id);
        self.amiss.as_ref().is_some_and(|amiss| amiss.is_settled_with(&place))
    }

    /// Whether a key is here that has no record any more, as far as the last full scan has found.
    pub(crate) fn is_lost(&self, key_id: KeyId) -> Result<bool, VaultError> {
        Ok(self.is_known_damaged(key_id) && !self.has_key(key_id)?)
    }

    /// The keys after one, up to and with another, that have no record any more, ascending.
    pub(super) fn lost_keys(&self, after: Option<KeyId>, last: Option<KeyId>) -> Result<Vec<KeyId>, VaultError> {
        let mut lost = Vec::new();
        for place in self.amiss.iter().flat_map(|amiss| amiss.places.keys()) {
            let Some(key_id) = key_record_id(place) else { continue };
            let is_in = Some(key_id) > after && last.is_none_or(|last| key_id <= last);
            if is_in && !self.has_key(key_id)? {
                lost.push(key_id);
            }
        }
        Ok(lost)
    }
}

fn key_record_id(place: &[u8]) -> Option<KeyId> {
    match place.split_first() {
        Some((&rows::KEY_RECORD_KIND, id)) => id.try_into().ok().map(KeyId),
        _ => None,
    }
}
