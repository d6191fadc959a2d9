//! The only file that names sled: one tree, opened and called behind the guard.

use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::Path;

use lockbox_store_disk::{BackendError, guard};

/// Changes that the tree takes as one.
#[derive(Default)]
pub(crate) struct Changes(sled::Batch);

impl Changes {
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}

/// sled's default tree. Each error is final: the state in memory is not to be relied on afterwards.
pub(crate) struct Tree {
    /// `None` only while it is being dropped.
    db: Option<sled::Db>,
}

impl Tree {
    /// Opens the tree in `folder`, or makes one where there is none.
    pub(crate) fn open(folder: &Path, cache_bytes: u64) -> Result<Self, BackendError> {
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(cache_bytes)
            // Flushing is the committing thread's; a second flusher would only write what nobody waits for.
            .flush_every_ms(None);
        match guard::catch(|| config.open()) {
            Ok(Ok(db)) => Ok(Self { db: Some(db) }),
            Ok(Err(error)) => Err(into_io(error).into()),
            Err(panic) => Err(BackendError::Damaged(panic)),
        }
    }

    /// Calls `read` with the value at `key`, if there is one.
    pub(crate) fn get<T>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        let value = self.guarded(|db| db.get(key))?;
        Ok(value.map(|value| read(&value)))
    }

    /// Calls `visit` with each key from `from` to before `to`, ascending, and its value, until it breaks.
    pub(crate) fn range(
        &self,
        from: Bound<&[u8]>,
        to: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.guarded(|db| {
            for pair in db.range::<&[u8], _>((from, Bound::Excluded(to))) {
                let (key, value) = pair?;
                if visit(&key, &value).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Puts the changes in effect for readers, as one. They are not durable yet.
    pub(crate) fn apply(&self, changes: Changes) -> io::Result<()> {
        self.guarded(|db| db.apply_batch(changes.0))
    }

    /// Hands everything applied to the operating system. This is not durability: sled calls no fsync.
    ///
    /// The asynchronous form of this call is never used; it was seen to hang.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.guarded(|db| db.flush()).map(drop)
    }

    /// Frees what `operations` operations have replaced, once no reader can still be looking at it.
    ///
    /// sled copies a page to change it, and leaves the old ones to crossbeam-epoch, which frees some hundreds whenever
    /// it happens to look. A batch leaves thousands, so memory would grow with all that was ever put: to 2 GB for
    /// 1,000,000 records. The flusher that sled would run by itself hides this.
    pub(crate) fn free_replaced(operations: usize) -> io::Result<()> {
        /// Pages and page entries that an operation replaces.
        const REPLACED: usize = 4;
        /// What one look frees, at most.
        const FREED: usize = 8 * 64;
        guard::catch(|| {
            // Two more, as the epoch must move on twice before anything is free to go.
            for _ in 0..2 + operations * REPLACED / FREED {
                crossbeam_epoch::pin().flush();
            }
        })
        .map_err(|panic| io::Error::other(format!("sled panicked: {panic}")))
    }

    fn guarded<T>(&self, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> io::Result<T> {
        let db = self.db.as_ref().expect("taken by drop only");
        match guard::catch(|| work(db)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(into_io(error)),
            Err(panic) => Err(io::Error::other(format!("sled panicked: {panic}"))),
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // sled flushes once more when dropped, and panics if that fails. Whatever was acknowledged is durable already.
        let db = self.db.take();
        let _ = guard::catch(|| drop(db));
    }
}

/// sled's errors in words of this crate. Whatever speaks of the content of files is `InvalidData`.
fn into_io(error: sled::Error) -> io::Error {
    let what = match error {
        sled::Error::Io(error) => return error,
        sled::Error::Corruption { .. } => "a checksum does not match".to_owned(),
        // The settings are the same at every opening, so settings that don't fit are not what this crate wrote.
        sled::Error::Unsupported(_) => "sled's settings file is not the one that was written".to_owned(),
        other => other.to_string(),
    };
    io::Error::new(io::ErrorKind::InvalidData, what)
}
