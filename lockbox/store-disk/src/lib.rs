//! What every store on disk has in common: its folder, its committing thread, and its room on the file system.
//!
//! A [`Backend`] keeps records in files. [`DiskStore`] makes a store of it that keeps the contract of
//! [`lockbox_store::Store`]: batches take effect in order, one thread commits them in groups, and nothing is
//! acknowledged before it would survive a power cut.
//!
//! | module | knows |
//! |---|---|
//! | `backend` | what a backend has to do, and what is done around it |
//! | `commit` | when a batch is acknowledged |
//! | `folder` | who has the folder, and when its content counts |
//! | `space` | the low-water mark and the ballast |
//! | `convert` | copying into new files, in place: to the other backend, or to give back wasted space |
//! | `guard` | that a panic of a backend is a failure like any other |
//!
//! A folder of a store:
//!
//! | name | content |
//! |---|---|
//! | `READY` | one line: the backend, its format, the folder of the files that count; written when the empty store is durable |
//! | `LOCK` | locked by the process that has the store open, with its process id for people |
//! | `BALLAST` | space that is given back when the disk is full |
//! | `sled/`, or another backend's name | the backend's own files |
//! | `sled-2/` | the same; a conversion or compaction changes from one to the other |

mod backend;
mod commit;
mod convert;
mod folder;
pub mod guard;
mod open;
mod space;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use commit::Committer;
use lockbox_store::{Batch, Completion, Health, Media, Pair, Store, StoreFailure};

pub use backend::{Backend, BackendError, Format, Growth, Scrutiny, wait_for_lock};
pub use convert::{Converted, Copied, Usage, When, compact, convert, once_in};
pub use folder::{BALLAST, disk_bytes, recorded_backend};

/// The largest cache that a backend was measured with. sled's resident memory is several times that.
pub const MAX_CACHE_BYTES: u64 = 64 * MIB;

/// The smallest cache with which a backend does not spend its time on reading pages again.
pub const MIN_CACHE_BYTES: u64 = MIB;

const MIB: u64 = 1024 * 1024;

/// What a machine may want to differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The backend's page cache, from [`MIN_CACHE_BYTES`] to [`MAX_CACHE_BYTES`].
    pub cache_bytes: u64,
    /// With less than this available on the file system, only removals and destroys are taken.
    pub low_water_bytes: u64,
    /// Size of the file that is given up so that a full disk does not prevent opening and destroying. 0 keeps none.
    pub ballast_bytes: u64,
}

impl Options {
    /// What a new store needs of free space: less, and it would take nothing.
    #[must_use]
    pub fn needed_bytes(&self) -> u64 {
        // The last term is what a backend writes when it is made, and its first batches.
        self.low_water_bytes + self.ballast_bytes + 4 * MIB
    }
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
pub struct DiskStore<B: Backend> {
    running: Arc<Running<B>>,
}

struct Running<B: Backend> {
    committer: Arc<Committer<B>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<B: Backend> DiskStore<B> {
    /// Makes a new, empty store in a folder that does not exist (its parent must) or is empty.
    ///
    /// When this returns, the store survives a power cut. If it is interrupted, the folder is left without its mark,
    /// and neither this nor [`open`](DiskStore::open) will use it.
    pub fn create(dir: &Path, options: &Options) -> Result<(), StoreFailure> {
        open::create::<B>(dir, options)
    }

    /// Opens the store in `dir`, for this process alone, with what was acknowledged by the time it was last used.
    ///
    /// Without a root or an anchor among the `media`, batches that carry an image for it are refused.
    ///
    /// # Errors
    ///
    /// [`StoreFailure::Open`] if something outside the files prevents it (another process, permissions, a full disk, no
    /// finished store of this backend in the folder); [`StoreFailure::Damaged`] if the backend can't make sense of its
    /// files.
    pub fn open(dir: &Path, media: Media, options: &Options) -> Result<Self, StoreFailure> {
        let committer = Arc::new(Committer::new(open::open::<B>(dir, options)?, &media));
        let thread = thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn({
                let committer = Arc::clone(&committer);
                move || committer.run(media)
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

impl<B: Backend> Clone for DiskStore<B> {
    fn clone(&self) -> Self {
        Self {
            running: Arc::clone(&self.running),
        }
    }
}

impl<B: Backend> Running<B> {
    fn close(&self) {
        self.committer.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A completion may be what drops the last clone; its thread can't wait for itself, and ends by itself.
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // Nothing on that thread panics: the backend, the root and the completions all run behind guards.
            let _ = thread.join();
        }
    }
}

impl<B: Backend> Drop for Running<B> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<B: Backend> Store for DiskStore<B> {
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
