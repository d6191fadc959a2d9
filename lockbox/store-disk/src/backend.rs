//! What a backend has to do for a store on disk.
//!
//! A group of batches takes this way: each is [applied](Backend::apply) by whoever submits it, then the committing thread
//! [flushes](Backend::flush) with batches held off, [syncs](Backend::sync) while new ones are already applied, and
//! [settles](Backend::settle) when everything is answered.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lockbox_store::{Batch, Pair};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::Options;

/// Keeps records in the files of one folder.
///
/// Every error is final: the store is poisoned and the backend is asked for nothing more. A backend that may panic runs
/// behind [`guard::catch`](crate::guard::catch), also when it is dropped.
pub trait Backend: Sized + Send + Sync + 'static {
    const FORMAT: Format;

    /// How much of the disk a batch may take.
    const GROWTH: Growth;

    /// A batch is let in while no more than this is unsynced, or if nothing is: then it may be of any size.
    const MAX_UNSYNCED_BYTES: u64;

    /// Makes an empty set of files in `files`, an empty folder. What makes them durable comes later.
    fn create(files: &Path, options: &Options) -> Result<(), BackendError>;

    /// Looks at a finished store's files before they are opened: refuses what must not be opened, as new files would
    /// quietly be made, and removes what was left over. Must work on a full disk.
    fn prepare(files: &Path) -> Result<(), BackendError>;

    /// Opens the files. What this writes need not be durable.
    fn open(files: &Path, options: &Options, scrutiny: Scrutiny) -> Result<Self, BackendError>;

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// See [`Store::scan`](lockbox_store::Store::scan).
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> io::Result<Vec<Pair>>;

    /// Puts the batch in effect for readers, as a whole. Called by one thread at a time.
    fn apply(&self, batch: &Batch) -> io::Result<()>;

    /// Sets apart what was applied, to be synced next. No batch is applied meanwhile, and readers wait behind those that
    /// are to be applied.
    fn flush(&self) -> io::Result<()>;

    /// Makes what was flushed survive a power cut, as a whole. Batches may be applied meanwhile.
    fn sync(&self) -> io::Result<()>;

    /// Tidies up after a group of `operations` operations, when it has been answered.
    fn settle(&self, operations: usize) -> io::Result<()>;
}

/// How a backend is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The name that people know. The folder with its files has this name, or this name with `-2`.
    pub name: &'static str,
    /// Version of the files' layout.
    pub version: u32,
}

/// Bounds of how much of the disk is taken by a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// For each byte of [`batch_bytes`].
    pub factor: u64,
    /// For each operation, beside that.
    pub operation_bytes: u64,
    /// For a batch, however small.
    pub batch_bytes: u64,
}

/// How closely files are looked at when they are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrutiny {
    /// As far as opening needs it.
    Usual,
    /// Every checksum that there is. Reads all of it.
    Whole,
}

/// Why a backend can't be made or opened.
#[derive(Debug)]
pub enum BackendError {
    /// The system refused a file; its content is not in doubt.
    System(io::Error),
    /// What was read makes no sense.
    Damaged(String),
    /// Somebody else uses the files.
    Busy,
}

impl From<io::Error> for BackendError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            _ => Self::System(error),
        }
    }
}

impl Growth {
    /// The most that a batch takes that is this large.
    pub(crate) fn bytes(&self, operations: usize, batch_bytes: u64) -> u64 {
        let operations = operations as u64;
        batch_bytes
            .saturating_mul(self.factor)
            .saturating_add(operations.saturating_mul(self.operation_bytes))
            .saturating_add(self.batch_bytes)
    }
}

/// The size of a batch, with a share for each operation in rewriting its page, which depends on its neighbours more than
/// on itself.
pub(crate) fn batch_bytes(batch: &Batch) -> u64 {
    use lockbox_store::Operation;
    const PAGE_SHARE: usize = 256;
    batch
        .operations()
        .iter()
        .map(|operation| match operation {
            Operation::Put { key, value } => PAGE_SHARE + key.len() + value.len(),
            Operation::Remove { key } => PAGE_SHARE + key.len(),
        })
        .sum::<usize>() as u64
}

/// Waits until the last user of a file that a backend locks has let go of it.
///
/// Within this process that may be a thread of the backend, for a moment after it was dropped; and a process that is being
/// started shares the lock until it executes its own program. Other stores are kept out by the folder's lock, so this does
/// not take long unless something else entirely has the file.
pub fn wait_for_lock(file: &File) -> Result<(), BackendError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let start = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return flock(file, FlockOperation::Unlock).map_err(|errno| BackendError::System(errno.into())),
            Err(Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
            Err(Errno::WOULDBLOCK) => return Err(BackendError::Busy),
            Err(errno) => return Err(BackendError::System(errno.into())),
        }
    }
}
