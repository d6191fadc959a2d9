//! The anchor: how far the vault has come, sealed with every batch, in the store and on a medium beside it.
//!
//! A store can lose what it acknowledged and be consistent all the same: its log ends earlier, its folder was put back, a
//! record was exchanged for an older one that opens at its place, too. Nothing within the store can notice that. The anchor
//! has a number that each batch counts up, and a digest of all records; beside the store there is its last image.
//!
//! The digest is MSet-Add-Hash (Clarke et al., "Incremental Multiset Hash Functions and Their Application to Memory Integrity
//! Checking", ASIACRYPT 2003) with a secret key: the sum, modulo 2^256, of HMAC-SHA256 over each record at its place. It
//! moves with the records that a batch changes, whatever the number of the others.
//!
//! It spans the key records and the book. What else is in the store (data-encryption keys, tree nodes, steps between epochs)
//! is of no use in an older version: none of it opens any more.

use std::collections::HashMap;

use lockbox_store::{Batch, Operation};
use prost::Message;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::VaultError;
use super::book::{Book, next_version};
use crate::labels;
use crate::primitives::{hkdf_sha256, hmac_sha256};
use crate::rows;
use crate::secrets::{DigestKey, RootKey};
use crate::wire;

/// Where the vault stands after a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Batches that changed a record since the store was made.
    pub(super) commit: u64,
    /// Records that the digest spans.
    pub(super) records: u64,
    /// Volume keys among them.
    pub(super) keys: u64,
    pub(super) digest: Sum,
}

/// A sum of contributions, modulo 2^256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

/// What one record contributes to the digest.
pub(super) type Contribution = Sum;

/// What stands in the store before a change, by place; read before anything is changed.
pub(super) type Before = HashMap<Vec<u8>, Option<Contribution>>;

/// The anchor of an open vault.
pub(super) struct Anchor {
    key: DigestKey,
    pub(super) extent: Extent,
    /// The record of the last batch, whose version the next one counts up.
    sealed: Vec<u8>,
}

impl Anchor {
    /// That of a store with no record yet.
    pub(super) fn new(store_id: [u8; 16], root: &RootKey) -> Self {
        Self {
            key: DigestKey::init_with(|key| hkdf_sha256(&store_id, root.expose(), &[labels::DIGEST], key)),
            extent: Extent::default(),
            sealed: Vec::new(),
        }
    }

    /// Takes up the record that the store has, if it is not older than the images beside the store.
    ///
    /// The store may be ahead: an image is written after its batches, and a crash may come between the two.
    pub(super) fn resume(
        mut self,
        book: &Book,
        record: Option<Vec<u8>>,
        images: &[Vec<u8>],
    ) -> Result<Self, VaultError> {
        let beside = newest(book, images).ok_or(VaultError::NoAnchor)?;
        let sealed = record.ok_or(VaultError::RolledBack {
            store: 0,
            anchor: beside.commit,
        })?;
        let extent = open(book, &sealed).ok_or_else(|| VaultError::Damaged {
            what: "the anchor".to_owned(),
            why: "it does not open at its place",
        })?;
        if extent.commit < beside.commit {
            return Err(VaultError::RolledBack {
                store: extent.commit,
                anchor: beside.commit,
            });
        }
        if extent.commit == beside.commit && extent != beside {
            return Err(VaultError::Diverged { commit: extent.commit });
        }
        self.extent = extent;
        self.sealed = sealed;
        Ok(self)
    }

    /// Begins where nothing is older than: for a store that is taken as it is found.
    pub(super) fn overrule(mut self, book: &Book, record: Option<Vec<u8>>, images: &[Vec<u8>]) -> Self {
        let all: Vec<Vec<u8>> = record.into_iter().chain(images.iter().cloned()).collect();
        let commit = newest(book, &all).map_or(0, |extent| extent.commit);
        self.sealed = all
            .into_iter()
            .max_by_key(|sealed| next_version(Some(sealed)))
            .unwrap_or_default();
        self.extent.commit = commit;
        self
    }

    pub(super) fn contribution(&self, place: &[u8], stored: &[u8]) -> Contribution {
        let length = u16::try_from(place.len())
            .expect("a place is at most 320 bytes")
            .to_be_bytes();
        Sum::from_bytes(&hmac_sha256(self.key.expose(), &[&length, place, stored]))
    }

    /// Seals where the vault stands after this batch into it. `before` has each place that the batch changes, and is brought
    /// up to date.
    pub(super) fn advance(
        &mut self,
        batch: &mut Batch,
        before: &mut Before,
        book: &Book,
        rng: &mut dyn CryptoRng,
    ) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for operation in batch.operations() {
            let (place, stored) = match operation {
                Operation::Put { key, value } => (key, Some(value)),
                Operation::Remove { key } => (key, None),
            };
            if !is_spanned(place) {
                continue;
            }
            let new = stored.map(|stored| self.contribution(place, stored));
            let known = before
                .get_mut(place)
                .expect("every place that a batch changes was read");
            let delta = Delta {
                place: place.clone(),
                old: std::mem::replace(known, new),
                new,
            };
            self.extent.apply(&delta);
            deltas.push(delta);
        }
        self.extent.commit += 1;
        self.seal_into(batch, book, rng);
        deltas
    }

    /// Seals the extent as it is into a batch.
    pub(super) fn seal_into(&mut self, batch: &mut Batch, book: &Book, rng: &mut dyn CryptoRng) {
        let record = wire::AnchorRecord {
            version: 1,
            commit: self.extent.commit,
            records: self.extent.records,
            keys: self.extent.keys,
            digest: self.extent.digest.to_bytes().to_vec(),
        };
        let record = Zeroizing::new(record.encode_to_vec());
        self.sealed = book.seal(rows::ANCHOR, Some(&self.sealed), &record, rng);
        batch.move_anchor(rows::ANCHOR.to_vec(), self.sealed.clone());
    }
}

/// A change of one record.
pub(super) struct Delta {
    pub(super) place: Vec<u8>,
    old: Option<Contribution>,
    new: Option<Contribution>,
}

impl Extent {
    /// One key record, its part in the digest aside.
    pub(super) const ONE_KEY: Self = Self {
        commit: 0,
        records: 1,
        keys: 1,
        digest: Sum([0; 4]),
    };

    pub(super) fn has_same_records(&self, other: &Self) -> bool {
        (self.records, self.digest) == (other.records, other.digest)
    }

    /// The counts wrap around as the digest does: a record that somebody has put into the store was never counted, and may be
    /// the one that goes.
    pub(super) fn apply(&mut self, delta: &Delta) {
        let is_key = rows::is_key_record(&delta.place);
        if let Some(old) = delta.old {
            self.digest = self.digest.minus(old);
            self.records = self.records.wrapping_sub(1);
            self.keys = self.keys.wrapping_sub(u64::from(is_key));
        }
        if let Some(new) = delta.new {
            self.digest = self.digest.plus(new);
            self.records = self.records.wrapping_add(1);
            self.keys = self.keys.wrapping_add(u64::from(is_key));
        }
    }

    /// What it spans and the other does not.
    pub(super) fn without(self, other: Self) -> Self {
        Self {
            commit: self.commit,
            records: self.records.wrapping_sub(other.records),
            keys: self.keys.wrapping_sub(other.keys),
            digest: self.digest.minus(other.digest),
        }
    }

    /// Counts in a record that was found.
    pub(super) fn add(&mut self, place: Vec<u8>, contribution: Contribution) {
        self.apply(&Delta {
            place,
            old: None,
            new: Some(contribution),
        });
    }
}

impl Sum {
    fn plus(self, other: Self) -> Self {
        self.fold(other, u64::overflowing_add)
    }

    fn minus(self, other: Self) -> Self {
        self.fold(other, u64::overflowing_sub)
    }

    fn fold(self, other: Self, step: fn(u64, u64) -> (u64, bool)) -> Self {
        let mut carry = false;
        Self(std::array::from_fn(|limb| {
            let (value, over) = step(self.0[limb], other.0[limb]);
            let (value, over_again) = step(value, u64::from(carry));
            carry = over | over_again;
            value
        }))
    }

    /// The least significant limb first, each little-endian.
    fn from_bytes(bytes: &[u8; 32]) -> Self {
        let (limbs, _) = bytes.as_chunks::<8>();
        Self(std::array::from_fn(|limb| u64::from_le_bytes(limbs[limb])))
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, limb) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *to = limb.to_le_bytes();
        }
        bytes
    }
}

/// Whether the digest spans what stands here.
pub(super) fn is_spanned(place: &[u8]) -> bool {
    !matches!(place.first(), None | Some(&rows::DATA_KEY_KIND)) && !rows::is_of_tree(place) && place != rows::ANCHOR
}

fn newest(book: &Book, images: &[Vec<u8>]) -> Option<Extent> {
    let opened = images.iter().filter_map(|image| open(book, image));
    opened.max_by_key(|extent| extent.commit)
}

fn open(book: &Book, sealed: &[u8]) -> Option<Extent> {
    let record = book.open(rows::ANCHOR, sealed).ok()?;
    let record = wire::AnchorRecord::decode(&record[..]).ok()?;
    let digest: &[u8; 32] = record.digest[..].try_into().ok()?;
    (record.version == 1).then(|| Extent {
        commit: record.commit,
        records: record.records,
        keys: record.keys,
        digest: Sum::from_bytes(digest),
    })
}

#[cfg(test)]
mod tests {
    use super::Sum;

    #[test]
    fn what_was_added_can_be_taken_out_in_any_order() {
        let [a, b, c] = [[0xFF; 32], [0x80; 32], [0x13; 32]].map(|bytes| Sum::from_bytes(&bytes));
        let all = Sum::default().plus(a).plus(b).plus(c);
        assert_eq!(all.minus(b).minus(a), c);
        assert_eq!(all, c.plus(b).plus(a));
        assert_eq!(Sum::from_bytes(&all.to_bytes()), all);
        assert_ne!(all, c.plus(b));
    }

    #[test]
    fn the_sum_carries_from_limb_to_limb() {
        let ones = Sum::from_bytes(&[0xFF; 32]);
        let one = Sum([1, 0, 0, 0]);
        assert_eq!(ones.plus(one), Sum::default());
        assert_eq!(Sum::default().minus(one), ones);
    }
}
