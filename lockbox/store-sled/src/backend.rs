//! sled as the backend of a store on disk, with what has to be done around its files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockbox_store::{Batch, Pair};
use lockbox_store_disk::{Backend, BackendError, Format, Growth, Options, Scrutiny, wait_for_lock};

use crate::records::Records;
use crate::snapshots;
use crate::tree::Tree;
use crate::watch::Watch;

/// An open tree of records. The order of the fields is the order of closing.
pub struct Sled {
    watch: Watch,
    records: Arc<Records>,
    /// A descriptor of sled's log that is ours: fsync acts on the file, whichever descriptor wrote to it.
    log: File,
}

impl Backend for Sled {
    const FORMAT: Format = Format {
        name: "sled",
        version: 1,
    };

    const GROWTH: Growth = Growth {
        // sled's log grows by more than what is put, as pages are written again when they change or move: by 3 to 4 times
        // in mixed workloads. This leaves as much again.
        factor: 8,
        operation_bytes: 0,
        // It grows by segments of 512 KiB; one may be begun and one padded.
        batch_bytes: 1024 * 1024,
    };

    /// sled overwrites a segment of its log (512 KiB) once the segments that replace it were written, which it takes for
    /// durable. It does wait for two segments more, and for the end of a batch that is being applied; so if less than two
    /// segments are unsynced when a batch begins, whatever is overwritten was replaced by something synced. With 8 writers
    /// of batches of up to 1,200 operations, 12 of 400 simulated power cuts that drop unsynced writes left a store that
    /// could not be opened or held half a batch without this bound, and none of 400 with it.
    const MAX_UNSYNCED_BYTES: u64 = 128 * 1024;

    fn create(files: &Path, options: &Options) -> Result<(), BackendError> {
        let tree = Tree::open(files, options.cache_bytes)?;
        Ok(Records::initialize(&tree)?)
    }

    fn prepare(files: &Path) -> Result<(), BackendError> {
        require_files(files)?;
        Ok(snapshots::tidy_up(files)?)
    }

    /// sled checks whatever it reads, so every scrutiny is the same.
    fn open(files: &Path, options: &Options, _scrutiny: Scrutiny) -> Result<Self, BackendError> {
        // Opened before sled writes anything, so that no failed write-back can go unseen by this descriptor.
        let log = File::open(log(files))?;
        wait_for_lock(&log)?;
        let tree = Tree::open(files, options.cache_bytes)?;
        let records = Records::load(tree)
            .map_err(|error| BackendError::Damaged(error.to_string()))?
            .ok_or_else(|| {
                BackendError::Damaged("sled opened it without the records that every store has".to_owned())
            })?;
        let records = Arc::new(records);
        let woken = Arc::clone(&records);
        // Whether this fails as well is of no interest: whoever waits is told.
        let watch = Watch::new(move || drop(woken.flush()))?;
        Ok(Self { watch, records, log })
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.records.get(key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> io::Result<Vec<Pair>> {
        self.records.scan(prefix, after, limit)
    }

    fn apply(&self, batch: &Batch) -> io::Result<()> {
        self.watch.over(|| self.records.apply(batch))
    }

    /// sled hands its log to the operating system, and says no more of it.
    fn flush(&self) -> io::Result<()> {
        self.watch.over(|| self.records.flush())
    }

    fn sync(&self) -> io::Result<()> {
        self.log.sync_data()
    }

    fn settle(&self, operations: usize) -> io::Result<()> {
        self.records.free_replaced(operations)
    }
}

/// sled's log. It is never replaced by another file, so a descriptor of it stays good.
fn log(files: &Path) -> PathBuf {
    files.join("db")
}

/// Refuses a finished store without its files: sled would quietly make new ones.
fn require_files(files: &Path) -> Result<(), BackendError> {
    for name in ["db", "conf"] {
        let path = files.join(name);
        match fs::metadata(&path) {
            Ok(file) if file.len() > 0 => {}
            Ok(_) => return Err(BackendError::Damaged(format!("{} is empty", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BackendError::Damaged(format!("{} is missing", path.display())));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
