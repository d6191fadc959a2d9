//! The store wall ([`lockbox_store::Store`]) on sled 0.34.7.
//!
//! As published, sled 0.34.7 does not keep what it acknowledged: its `flush` never calls fsync, the files it makes
//! beside its log are never synced, it can't open after being killed while it wrote a snapshot, and damaged files make
//! it panic. This crate is the discipline under which it does keep it, and nothing else may touch sled.
//!
//! | what goes wrong in sled alone | what is done here | where |
//! |---|---|---|
//! | an acknowledged write is lost in a power cut | every group is synced on a descriptor of our own, then acknowledged | `backend`, [`lockbox_store_disk`] |
//! | a new store's files vanish in a power cut | a store counts only once it was built, synced and marked | [`lockbox_store_disk`] |
//! | a half-written snapshot prevents opening | it is removed first | `snapshots` |
//! | a damaged snapshot prevents opening, though the log has everything | it is set aside | `snapshots` |
//! | a damaged file panics | sled runs behind a guard; a panic is a failure like any other | `tree` |
//! | large pages go to files of their own, unsynced | large values are cut so that no page is ever large | `records` |
//! | segments are reused before their successors are synced | little is written between two syncs | `backend` |
//! | pages that were replaced stay in memory | they are freed after each group | `tree` |
//! | a failed write may leave the flush waiting for ever | whoever waits for long is woken | `watch` |
//! | it can't open on a full disk | ballast is kept, and inserts stop early | [`lockbox_store_disk`] |

mod backend;
mod records;
mod snapshots;
mod tree;
mod watch;

use std::fmt::Arguments;
use std::path::Path;

use lockbox_store::{Batch, Completion, Health, Media, Pair, Store, StoreFailure};
use lockbox_store_disk::{Copied, DiskStore, compact};

pub use backend::Sled;
pub use lockbox_store_disk::{MAX_CACHE_BYTES, MIN_CACHE_BYTES, Options, When, once_in};

/// A store in one folder, on sled. Clones share it; it is closed when the last one is dropped.
///
/// [`Store::submit`] may wait for a flush that is under way, and for the next sync when much is unsynced. It is to be
/// called where blocking for a few milliseconds is allowed.
#[derive(Clone)]
pub struct SledStore(DiskStore<Sled>);

impl SledStore {
    /// See [`DiskStore::create`].
    pub fn create(dir: &Path, options: &Options) -> Result<(), StoreFailure> {
        DiskStore::<Sled>::create(dir, options)
    }

    /// See [`DiskStore::open`].
    pub fn open(dir: &Path, media: Media, options: &Options) -> Result<Self, StoreFailure> {
        DiskStore::open(dir, media, options).map(Self)
    }

    /// See [`compact`](lockbox_store_disk::compact).
    pub fn compact(
        dir: &Path,
        options: &Options,
        when: When,
        progress: &mut dyn FnMut(Arguments<'_>),
    ) -> Result<Option<Copied>, StoreFailure> {
        compact::<Sled>(dir, options, when, progress)
    }

    /// See [`DiskStore::close`].
    pub fn close(&self) {
        self.0.close();
    }
}

impl Store for SledStore {
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
