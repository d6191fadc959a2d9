//! redb as the backend of a store on disk.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lockbox_store::{Batch, Pair};
use lockbox_store_disk::{Backend, BackendError, Format, Growth, Options, Scrutiny, wait_for_lock};

use crate::overlay::Overlay;
use crate::tree::Tree;

/// An open database of records. The order of the fields is the order of closing.
pub struct Redb {
    overlay: RwLock<Overlay>,
    tree: Tree,
}

impl Backend for Redb {
    const FORMAT: Format = Format {
        name: "redb",
        version: 1,
    };

    const GROWTH: Growth = Growth {
        // A large value has a page of its own, of a power of two.
        factor: 2,
        // Each operation may be in a page of its own that is written anew, and the old one is free only two commits later.
        operation_bytes: 8 * 1024,
        // redb's own tables, and the branches on the way.
        batch_bytes: 1024 * 1024,
    };

    /// What waits for a commit is in memory, twice: in its batch and in the overlay.
    const MAX_UNSYNCED_BYTES: u64 = 4 * 1024 * 1024;

    fn create(files: &Path, options: &Options) -> Result<(), BackendError> {
        Ok(Tree::create(&database(files), options.cache_bytes)?)
    }

    /// Refuses a finished store without its file: redb would make an empty one.
    fn prepare(files: &Path) -> Result<(), BackendError> {
        let path = database(files);
        match fs::metadata(&path) {
            Ok(file) if file.len() > 0 => Ok(()),
            Ok(_) => Err(BackendError::Damaged(format!("{} is empty", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(BackendError::Damaged(format!("{} is missing", path.display())))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn open(files: &Path, options: &Options, scrutiny: Scrutiny) -> Result<Self, BackendError> {
        let path = database(files);
        wait_for_lock(&File::open(&path)?)?;
        let name = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                BackendError::Damaged(format!("{}: {error}", path.display()))
            }
            io::ErrorKind::ResourceBusy => BackendError::Busy,
            _ => BackendError::System(error),
        };
        let tree = Tree::open(&path, options.cache_bytes, scrutiny == Scrutiny::Whole).map_err(name)?;
        let snapshot = tree.snapshot().map_err(name)?;
        Ok(Self {
            overlay: RwLock::new(Overlay::new(snapshot)),
            tree,
        })
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let found = self.read().find(key);
        found.map_or_else(|snapshot| snapshot.get(key), Ok)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> io::Result<Vec<Pair>> {
        self.read().scan(prefix, after, limit)
    }

    fn apply(&self, batch: &Batch) -> io::Result<()> {
        self.write().apply(batch);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.write().flush();
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let flushed = self.read().flushed();
        // A batch may have nothing but a root image.
        if !flushed.is_empty() {
            self.tree.commit(&flushed)?;
            let snapshot = self.tree.snapshot()?;
            self.write().committed(snapshot);
        }
        Ok(())
    }

    fn settle(&self, _operations: usize) -> io::Result<()> {
        Ok(())
    }
}

impl Redb {
    fn read(&self) -> RwLockReadGuard<'_, Overlay> {
        // Nothing under this lock panics half way through a change; reading redb runs behind a guard.
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one file that holds everything.
fn database(files: &Path) -> PathBuf {
    files.join("db")
}
