//! Everything that a lockbox keeps, sealed. SPEC section 9.
//!
//! Volume keys hang on a tree that can be effaced (`tree.rs`): each record has a data-encryption key of its own, which is
//! sealed under the key of its leaf; leaf keys are sealed under the nodes above them, up to the epoch key; the epoch key is in
//! the effaceable root and nowhere else. Everything else (the book: ledger, roster, identity) is sealed under keys derived from the root
//! key, one for each version of each record. Each batch carries the anchor (`anchor.rs`), which tells a store that lost
//! something from one that did not.
//!
//! The vault stages changes as batches and assumes that they are submitted in order. If one is not, the caller must drop
//! the vault: what it has in memory runs ahead of the store.

mod amiss;
mod anchor;
mod book;
mod readable;
mod tree;
mod verify;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;

use lockbox_authz::field::FieldError;
use lockbox_authz::id::KeyId;
use lockbox_store::{Batch, Durable, Store, StoreFailure};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use self::amiss::Amiss;
use self::anchor::{Anchor, Before};
use self::book::Book;
use self::readable::key_id_of;
pub(crate) use self::readable::{Each, lost_record};
use self::tree::KeyTree;
use self::verify::Scan;
pub use self::verify::{Finding, Mismatch, Verification};
pub(crate) use self::watch::Watch;
use self::watch::Watches;
use crate::record::{Key, Tombstone};
use crate::rows::{self, Row};
use crate::secrets::RootKey;

/// Why the vault could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error(transparent)]
    Store(#[from] StoreFailure),
    #[error("the record of {what} is damaged: {why}")]
    Damaged { what: String, why: &'static str },
    #[error("the record of {what} is damaged: {source}")]
    Field { what: String, source: FieldError },
    #[error("the root of erasure does not open the store: {0}")]
    Root(&'static str),
    #[error(
        "no key can be stored at the place of key {0}, as the key tree is damaged above it: bring back the newest copy of the \
         whole folder, restore a backup, or give the place up with `lockbox store accept`"
    )]
    NoPlace(KeyId),
    #[error("the anchor beside the store is missing, empty or damaged")]
    NoAnchor,
    #[error("the store was rolled back: it ends at commit {store}, and commit {anchor} was acknowledged")]
    RolledBack { store: u64, anchor: u64 },
    #[error("the store is not the one that was committed: it has another commit {commit}")]
    Diverged { commit: u64 },
}

/// A record of the book, and the key that it stands at.
pub(crate) type PlacedRecord = (Vec<u8>, Zeroizing<Vec<u8>>);

/// What was read from the media beside a store: of each, the images that are whole.
#[derive(Clone, Debug, Default)]
pub struct Images {
    pub root: Vec<Vec<u8>>,
    pub anchor: Vec<Vec<u8>>,
}

/// Changes to be made durable together.
#[derive(Default)]
pub(crate) struct Changes {
    puts: Vec<(Row, Vec<u8>)>,
    removes: Vec<Row>,
    put_keys: Vec<Key>,
    erase_keys: Vec<Tombstone>,
    settles: bool,
}

impl Changes {
    /// The keys that change, that a transfer binds or frees, or whose job changes.
    fn touched(&self) -> impl Iterator<Item = KeyId> {
        let bound = |row: &Row| match row {
            Row::OutgoingKey(key_id) | Row::Job(key_id) => Some(*key_id),
            _ => None,
        };
        let put = self.puts.iter().filter_map(move |(row, _)| bound(row));
        let removed = self.removes.iter().filter_map(bound);
        let keys = self.put_keys.iter().map(|key| key.info.key_id);
        let erased = self.erase_keys.iter().map(|tombstone| tombstone.key_id);
        put.chain(removed).chain(keys).chain(erased)
    }

    pub(crate) fn put(&mut self, row: Row, record: Vec<u8>) {
        self.puts.push((row, record));
    }

    pub(crate) fn remove(&mut self, row: Row) {
        self.removes.push(row);
    }

    pub(crate) fn put_key(&mut self, key: Key) {
        self.put_keys.push(key);
    }

    /// Effaces the key that the tombstone names: once the changes are durable, nothing opens it any more. A key that is not
    /// here leaves no tombstone.
    pub(crate) fn erase_key(&mut self, tombstone: Tombstone) {
        self.erase_keys.push(tombstone);
    }

    /// Says that what goes may be damaged, and that the digest is to be [settled](Vault::is_settled_with) with it.
    pub(crate) fn settle(&mut self) {
        self.settles = true;
    }
}

/// The sealed records of one lockbox.
pub struct Vault {
    store: Arc<dyn Store>,
    book: Book,
    tree: KeyTree,
    anchor: Anchor,
    /// A full scan that is under way.
    scan: Option<Scan>,
    /// What the last one has found amiss; `None` before its end.
    amiss: Option<Amiss>,
    watches: Watches,
}

impl Vault {
    /// The first batch of a new store. It carries the first root image and the first anchor image.
    pub fn format(store_id: [u8; 16], root: &RootKey, rng: &mut dyn CryptoRng) -> Batch {
        let mut batch = KeyTree::format(store_id, root, rng);
        let book = Book::new(store_id, root);
        Anchor::new(store_id, root).advance(&mut batch, &mut Before::new(), &book, rng);
        batch
    }

    /// Opens a store with the root key and the images beside it.
    ///
    /// The batch completes a destroy that was interrupted before its old root was effaced, if one was; nothing shows whether.
    ///
    /// # Errors
    ///
    /// [`VaultError::RolledBack`], [`VaultError::Diverged`] or [`VaultError::NoAnchor`] if the store is not known to be what was
    /// last committed; [`VaultError::Root`] if nothing of it opens.
    pub fn open(
        store: Arc<dyn Store>,
        store_id: [u8; 16],
        root: &RootKey,
        images: &Images,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Batch), VaultError> {
        Self::open_with(store, store_id, root, images, rng, |anchor, book, record| {
            anchor.resume(book, record, &images.anchor)
        })
    }

    /// Opens a store whatever the anchor says, to be looked at, or to be [accepted](Vault::accept) as it is.
    pub fn open_as_found(
        store: Arc<dyn Store>,
        store_id: [u8; 16],
        root: &RootKey,
        images: &Images,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Batch), VaultError> {
        Self::open_with(store, store_id, root, images, rng, |anchor, book, record| {
            Ok(anchor.overrule(book, record, &images.anchor))
        })
    }

    fn open_with(
        store: Arc<dyn Store>,
        store_id: [u8; 16],
        root: &RootKey,
        images: &Images,
        rng: &mut dyn CryptoRng,
        anchored: impl FnOnce(Anchor, &Book, Option<Vec<u8>>) -> Result<Anchor, VaultError>,
    ) -> Result<(Self, Batch), VaultError> {
        let book = Book::new(store_id, root);
        // Before the tree: of a store that was rolled back beyond a destroy, the tree's root does not open, and this says why.
        let anchor = anchored(Anchor::new(store_id, root), &book, store.get(rows::ANCHOR)?)?;
        let (tree, completing) = KeyTree::open(store.as_ref(), store_id, root, &images.root, rng)?;
        let vault = Self {
            store,
            book,
            tree,
            anchor,
            scan: None,
            amiss: None,
            watches: Watches::default(),
        };
        Ok((vault, completing))
    }

    /// One record of the book.
    pub(crate) fn read(&self, row: Row) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let key = row.key();
        let sealed = self.store.get(&key)?;
        sealed.map(|sealed| self.book.open(&key, &sealed)).transpose()
    }

    /// Whether something stands at a place, be it whole or not.
    pub(crate) fn has(&self, row: Row) -> Result<bool, VaultError> {
        Ok(self.store.get(&row.key())?.is_some())
    }

    /// Records of the book of one kind, after `after`, with the keys that they stand at.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<PlacedRecord>, VaultError> {
        let pairs = self.store.scan(prefix, after, limit)?;
        let open = |(key, sealed): (Vec<u8>, Vec<u8>)| {
            let record = self.book.open(&key, &sealed)?;
            Ok((key, record))
        };
        pairs.into_iter().map(open).collect()
    }

    /// Where records of one kind stand.
    pub(crate) fn places(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Vec<u8>>, VaultError> {
        let pairs = self.store.scan(prefix, after, limit)?;
        Ok(pairs.into_iter().map(|(place, _)| place).collect())
    }

    /// A volume key.
    pub(crate) fn key(&self, key_id: KeyId) -> Result<Option<Key>, VaultError> {
        let place = rows::key_record(key_id);
        let sealed = self.store.get(&place)?;
        sealed.map(|sealed| self.open_key(key_id, &sealed)).transpose()
    }

    pub(crate) fn has_key(&self, key_id: KeyId) -> Result<bool, VaultError> {
        Ok(self.store.get(&rows::key_record(key_id))?.is_some())
    }

    /// Volume keys in the order of their ids.
    pub(crate) fn keys_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<Key>, VaultError> {
        let after = after.map(rows::key_record);
        let pairs = self.store.scan(&[rows::KEY_RECORD_KIND], after.as_deref(), limit)?;
        let open = |(place, sealed): (Vec<u8>, Vec<u8>)| self.open_key(key_id_of(&place)?, &sealed);
        pairs.into_iter().map(open).collect()
    }

    /// The ids of volume keys in the order of the tree, leaf by leaf, each with the place that a scan goes on after. Keys that
    /// are erased in this order touch few leaves at a time.
    pub(crate) fn key_ids_by_leaf(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, KeyId)>, VaultError> {
        let mut ids = Vec::new();
        let mut after = after.map(<[u8]>::to_vec);
        loop {
            let page = self.store.scan(&[rows::DATA_KEY_KIND], after.as_deref(), limit)?;
            let is_last = page.len() < limit;
            after = page.last().map(|(place, _)| place.clone());
            // What stands where no key has one is passed over: a scan finds it.
            let with_id = |(place, _): (Vec<u8>, _)| {
                let key_id = rows::data_key_id(&place)?;
                (place == self.data_key_place(key_id)).then_some((place, key_id))
            };
            ids.extend(page.into_iter().filter_map(with_id));
            if is_last || !ids.is_empty() {
                return Ok(ids);
            }
        }
    }

    /// How many volume keys there are.
    /// A digest of a key's name under a key of this store, by which [`Row::Named`] finds the key.
    pub(crate) fn name_digest(&self, name: &str) -> rows::NameDigest {
        self.tree.name_digest(name)
    }

    pub(crate) fn key_count(&self) -> u64 {
        self.anchor.extent.keys
    }

    /// Seals the changes into batches. One batch, so all or nothing, unless there are more operations than a batch may
    /// have; then erasures come first, and each batch leaves the vault in order.
    ///
    /// Everything that can fail is done before anything changes in memory.
    pub(crate) fn stage(&mut self, changes: Changes, rng: &mut dyn CryptoRng) -> Result<Vec<Batch>, VaultError> {
        self.watches.note(&changes);
        let doomed: Vec<KeyId> = changes.erase_keys.iter().map(|tombstone| tombstone.key_id).collect();
        let erasure = self.tree.plan_erasure(self.store.as_ref(), &doomed)?;
        let taken: Vec<_> = erasure.takes().map(rows::key_record).collect();
        let mut before = Before::new();
        let mut previous = |place: &[u8]| -> Result<Option<Vec<u8>>, VaultError> {
            let stored = self.store.get(place)?;
            let contribution = stored.as_ref().map(|stored| self.anchor.contribution(place, stored));
            before.insert(place.to_vec(), contribution);
            Ok(stored)
        };
        let doomed: Vec<_> = doomed.into_iter().map(rows::key_record).collect();
        for place in &doomed {
            previous(place)?;
        }
        let mut put_keys = Vec::with_capacity(changes.put_keys.len());
        for key in changes.put_keys {
            self.tree.check_place(key.info.key_id)?;
            let stored = previous(&rows::key_record(key.info.key_id))?;
            put_keys.push((key, stored));
        }
        let mut removes = Vec::with_capacity(changes.removes.len());
        for row in changes.removes {
            let place = row.key();
            previous(&place)?;
            removes.push(place);
        }
        let mut puts = Vec::with_capacity(changes.puts.len());
        for (row, record) in changes.puts {
            let place = row.key();
            let stored = previous(&place)?;
            puts.push((place, Zeroizing::new(record), stored));
        }
        let mut tombstones = HashMap::with_capacity(changes.erase_keys.len());
        for tombstone in changes.erase_keys {
            let place = Row::Tombstone(tombstone.key_id).key();
            let stored = previous(&place)?;
            let record = Zeroizing::new(tombstone.encode());
            let sealed = self.book.seal(&place, stored.as_deref(), &record, rng);
            tombstones.insert(tombstone.key_id, (place, sealed));
        }

        let mut batches = self.tree.erase(erasure, &mut tombstones, rng);
        for (key, stored) in put_keys {
            if stored.is_none()
                && let Some(amiss) = &mut self.amiss
            {
                amiss.replace(&rows::key_record(key.info.key_id), &mut self.anchor.extent);
            }
            append(&mut batches, self.tree.seal(&key, stored.as_deref(), rng));
        }
        for place in removes {
            append(&mut batches, [Write::Remove(place)]);
        }
        for (place, record, stored) in puts {
            let sealed = self.book.seal(&place, stored.as_deref(), &record, rng);
            append(&mut batches, [Write::Put(place, sealed)]);
        }
        if let Some(amiss) = &mut self.amiss {
            amiss.settle(&taken, changes.settles, &mut self.anchor.extent);
        }
        if let Some(scan) = &mut self.scan {
            scan.forget(&taken);
        }
        for batch in &mut batches {
            for delta in self.anchor.advance(batch, &mut before, &self.book, rng) {
                if let Some(scan) = &mut self.scan {
                    scan.learn(&delta);
                }
            }
        }
        Ok(batches)
    }

    /// Watches which keys change from now on.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        self.watches.begin()
    }

    /// Whether this vault still tells the watch of what changes: a vault that was opened anew does not.
    pub(crate) fn tells(&self, watch: &Arc<Watch>) -> bool {
        self.watches.have(watch)
    }

    pub(crate) fn store_id(&self) -> [u8; 16] {
        self.book.store_id()
    }

    /// Learns that a batch is durable. Only housekeeping rests on it.
    pub(crate) fn note_durable(&mut self, proof: &Durable) {
        self.tree.note_durable(proof);
    }

    fn open_key(&self, key_id: KeyId, sealed: &[u8]) -> Result<Key, VaultError> {
        let data_key = self.store.get(&self.data_key_place(key_id))?;
        let record = self.tree.open_record(key_id, sealed, data_key.as_deref())?;
        let key = Key::decode(&record).map_err(|source| VaultError::Field {
            what: format!("key {key_id}"),
            source,
        })?;
        if key.info.key_id == key_id {
            Ok(key)
        } else {
            Err(VaultError::Damaged {
                what: format!("key {key_id}"),
                why: "it names another key",
            })
        }
    }
}

enum Write {
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
}

/// Adds operations that belong together to the last batch, or to a new one if it is full.
fn append<const N: usize>(batches: &mut Vec<Batch>, writes: [Write; N]) {
    // Room for the anchor.
    let full = |batch: &Batch| batch.operations().len() + N + 1 > lockbox_store::MAX_BATCH_OPERATIONS;
    if batches.last().is_none_or(full) {
        batches.push(Batch::new());
    }
    let batch = batches.last_mut().expect("one was pushed if there was none");
    for write in writes {
        match write {
            Write::Put(key, value) => batch.put(key, value),
            Write::Remove(key) => batch.remove(key),
        }
    }
}

#[cfg(test)]
mod tests;
