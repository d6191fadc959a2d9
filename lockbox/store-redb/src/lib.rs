//! The store wall ([`lockbox_store::Store`]) on redb 4.
//!
//! redb keeps its promises as it is published: a commit is one fsync of a file in which nothing that counts is overwritten.
//! What is added here is what the contract of the wall asks beyond that.
//!
//! | the contract | redb alone | what is done here | where |
//! |---|---|---|---|
//! | a batch is in effect for readers at once | one writer, whose changes show when they are durable | batches wait in memory, over the last commit | `overlay` |
//! | waiting batches share a sync | a commit is a sync | a group is one transaction | `backend` |
//! | a damaged file is an answer | some damages panic | redb runs behind a guard | `tree` |
//! | a finished store is not made anew | a missing file is made | it is looked for first | `backend` |
//! | a full disk can be opened | opening after a crash writes | ballast is kept, and inserts stop early | [`lockbox_store_disk`] |
//!
//! redb checks the checksums of its pages when it opens after a crash, and not when it reads a record. A bit that rotted in
//! a record is found by the layer above, which seals every record with its place, and costs that record alone.

mod backend;
mod overlay;
mod tree;

use std::path::Path;

use lockbox_store::{Batch, Completion, Health, Media, Pair, Store, StoreFailure};
use lockbox_store_disk::DiskStore;

pub use backend::Redb;
pub use lockbox_store_disk::{MAX_CACHE_BYTES, MIN_CACHE_BYTES, Options};

/// A store in one folder, on redb. Clones share it; it is closed when the last one is dropped.
///
/// [`Store::submit`] may wait for the next sync when much is unsynced. It is to be called where blocking for a few
/// milliseconds is allowed.
#[derive(Clone)]
pub struct RedbStore(DiskStore<Redb>);

impl RedbStore {
    /// See [`DiskStore::create`].
    pub fn create(dir: &Path, options: &Options) -> Result<(), StoreFailure> {
        DiskStore::<Redb>::create(dir, options)
    }

    /// See [`DiskStore::open`].
    pub fn open(dir: &Path, media: Media, options: &Options) -> Result<Self, StoreFailure> {
        DiskStore::open(dir, media, options).map(Self)
    }

    /// See [`DiskStore::close`].
    pub fn close(&self) {
        self.0.close();
    }
}

impl Store for RedbStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure> {
        self.0.get(key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure> {
        self.0.scan(prefix, after, limit)
    }

    fn submit(&self, batch: Batch, done: Completion) {
        self.0.submit(batch, done);
    }

    fn health(&self) -> Health {
        self.0.health()
    }
}
