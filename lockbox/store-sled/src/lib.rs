//! The store wall ([`lockbox_store::Store`]) on sled 0.34.7.
//!
//! As published, sled 0.34.7 does not keep what it acknowledged: its `flush` never calls fsync, the files it makes
//! beside its log are never synced, it can't open after being killed while it wrote a snapshot, and damaged files make
//! it panic. This crate is the discipline under which it does keep it, and nothing else may touch sled.
//!
//! | what goes wrong in sled alone | what is done here | where |
//! |---|---|---|
//! | an acknowledged write is lost in a power cut | every group is synced on a descriptor of our own, then acknowledged | `commit` |
//! | a new store's files vanish in a power cut | a store counts only once it was built, synced and marked | `folder`, `open` |
//! | a half-written snapshot prevents opening | it is removed first | `folder` |
//! | a damaged file panics | sled runs behind a guard; a panic is a failure like any other | `guard`, `tree` |
//! | large pages go to files of their own, unsynced | large values are cut so that no page is ever large | `records` |
//! | segments are reused before their successors are synced | little is written between two syncs | `commit` |
//! | pages that were replaced stay in memory | they are freed after each group | `tree` |
//! | it can't open on a full disk | ballast is kept, and inserts stop early | `space` |
//!
//! A folder of this store:
//!
//! | name | content |
//! |---|---|
//! | `READY` | one line that names the format; there from the moment the empty store was durable |
//! | `LOCK` | locked by the process that has the store open, with its process id for people |
//! | `BALLAST` | space that is given back when the disk is full |
//! | `sled/` | sled's own files |

mod commit;
mod folder;
mod guard;
mod open;
mod records;
mod space;
mod tree;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use commit::Committer;
use lockbox_store::{Batch, Completion, EffaceableRoot, Health, Pair, Store, StoreFailure};

/// The largest cache that sled was measured with. Its resident memory is several times that.
pub const MAX_CACHE_BYTES: u64 = 64 * MIB;

/// The smallest cache with which sled does not spend its time on reading pages again.
pub const MIN_CACHE_BYTES: u64 = MIB;

const MIB: u64 = 1024 * 1024;

/// What a machine may want to differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// sled's page cache, from [`MIN_CACHE_BYTES`] to [`MAX_CACHE_BYTES`].
    pub cache_bytes: u64,
    /// With less than this available on the file system, only removals and destroys are taken.
    pub low_water_bytes: u64,
    /// Size of the file that is given up so that a full disk does not prevent opening and destroying. 0 keeps none.
    pub ballast_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: MAX_CACHE_BYTES,
            low_water_bytes: 64 * MIB,
            ballast_bytes: 32 * MIB,
        }
    }
}

/// A store in one folder. Clones share it; it is closed when the last one is dropped.
///
/// [`Store::submit`] may wait for a flush that is under way, and for the next sync when much is unsynced. It is to be
/// called where blocking for a few milliseconds is allowed.
#[derive(Clone)]
pub struct SledStore {
    running: Arc<Running>,
}

struct Running {
    committer: Arc<Committer>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl SledStore {
    /// Makes a new, empty store in a folder that does not exist (its parent must) or is empty.
    ///
    /// When this returns, the store survives a power cut. If it is interrupted, the folder is left without its mark,
    /// and neither this nor [`open`](SledStore::open) will use it.
    pub fn create(dir: &Path, options: &Options) -> Result<(), StoreFailure> {
        open::create(dir, options)
    }

    /// Opens the store in `dir`, for this process alone, with what was acknowledged by the time it was last used.
    ///
    /// Without a `root`, batches that carry a root image are refused.
    ///
    /// # Errors
    ///
    /// [`StoreFailure::Open`] if something outside the files prevents it (another process, permissions, a full disk, no
    /// finished store in the folder); [`StoreFailure::Damaged`] if sled can't make sense of its files.
    pub fn open(
        dir: &Path,
        root: Option<Box<dyn EffaceableRoot>>,
        options: &Options,
    ) -> Result<SledStore, StoreFailure> {
        let committer = Arc::new(Committer::new(open::open(dir, options)?, root.is_some()));
        let thread = thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn({
                let committer = Arc::clone(&committer);
                move || committer.run(root)
            })
            .map_err(|error| StoreFailure::Open {
                place: dir.display().to_string(),
                reason: format!("its thread can't be started: {error}"),
                remedy: "raise the limit on threads",
            })?;
        Ok(Self {
            running: Arc::new(Running {
                committer,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Stops the committing thread once everything submitted was answered. Later batches are refused; reads go on.
    ///
    /// The folder is free for another process when the last clone of the store is gone.
    pub fn close(&self) {
        self.running.close();
    }
}

impl Running {
    fn close(&self) {
        self.committer.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A completion may be what drops the last clone; its thread can't wait for itself, and ends by itself.
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // Nothing on that thread panics: sled, the root and the completions all run behind guards.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure> {
        self.running.committer.get(key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure> {
        self.running.committer.scan(prefix, after, limit)
    }

    fn submit(&self, batch: Batch, done: Completion) {
        self.running.committer.submit(batch, done);
    }

    fn health(&self) -> Health {
        self.running.committer.health()
    }
}
