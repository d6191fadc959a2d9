//! The only file that names redb: one table of records, opened and called behind the guard.

use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::Path;

use lockbox_store_disk::guard;
use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use crate::overlay::Changes;

const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");

/// One row, there since the store was made: a file without it is not one of ours.
const FORMATS: TableDefinition<&str, &str> = TableDefinition::new("format");
const FORMAT_KEY: &str = "format";
const FORMAT: &str = "lockbox-store-redb 1";

/// The database in one file. Each error is final: the state in memory is not to be relied on afterwards.
pub(crate) struct Tree {
    /// `None` only while it is being dropped.
    database: Option<Database>,
}

/// The records as of one commit. It stays as it is whatever is committed later.
pub(crate) struct Snapshot(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl Tree {
    /// Makes a database without records in a new file.
    pub(crate) fn create(file: &Path, cache_bytes: u64) -> io::Result<()> {
        guarded(|| {
            let database = builder(cache_bytes).create(file)?;
            let writing = database.begin_write()?;
            writing.open_table(RECORDS)?;
            writing.open_table(FORMATS)?.insert(FORMAT_KEY, FORMAT)?;
            writing.commit()?;
            Ok(())
        })
    }

    /// Opens the database in a file; with `check`, reads all of it and compares every checksum.
    pub(crate) fn open(file: &Path, cache_bytes: u64, check: bool) -> io::Result<Self> {
        let database = guarded(|| Ok(builder(cache_bytes).set_check_integrity_on_open(check).open(file)?))?;
        // From here on whatever fails is dropped behind the guard.
        let tree = Self {
            database: Some(database),
        };
        let format = guarded(|| {
            let formats = tree.database().begin_read()?.open_table(FORMATS)?;
            Ok(formats.get(FORMAT_KEY)?.map(|format| format.value().to_owned()))
        })?;
        match format.as_deref() {
            Some(FORMAT) => Ok(tree),
            _ => Err(invalid("it does not have the mark that every store has")),
        }
    }

    /// Makes the changes durable, as one.
    pub(crate) fn commit(&self, changes: &Changes) -> io::Result<()> {
        guarded(|| {
            let writing = self.database().begin_write()?;
            let mut records = writing.open_table(RECORDS)?;
            for (key, value) in changes {
                match value {
                    Some(value) => drop(records.insert(&key[..], &value[..])?),
                    None => drop(records.remove(&key[..])?),
                }
            }
            drop(records);
            // Durable when it returns: that is redb's default, and what was measured.
            writing.commit()?;
            Ok(())
        })
    }

    pub(crate) fn snapshot(&self) -> io::Result<Snapshot> {
        guarded(|| Ok(Snapshot(self.database().begin_read()?.open_table(RECORDS)?)))
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("taken by drop only")
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // redb notes that it was closed in peace. Whatever was acknowledged is durable already.
        let database = self.database.take();
        let _ = guard::catch(|| drop(database));
    }
}

impl Snapshot {
    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        guarded(|| Ok(self.0.get(key)?.map(|value| value.value().to_vec())))
    }

    /// Calls `visit` with each key from `from` on, ascending, and its value, until it breaks.
    pub(crate) fn range(
        &self,
        from: Bound<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> io::Result<()> {
        guarded(|| {
            for pair in self.0.range::<&[u8]>((from, Bound::Unbounded))? {
                let (key, value) = pair?;
                if visit(key.value(), value.value()).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }
}

fn builder(cache_bytes: u64) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX));
    builder
}

fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> io::Result<T> {
    match guard::catch(work) {
        Ok(outcome) => outcome.map_err(into_io),
        // redb does not panic unless a file is not what it wrote.
        Err(panic) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("redb panicked: {panic}"),
        )),
    }
}

/// redb's errors in words of this crate. Whatever speaks of the content of the file is `InvalidData`.
fn into_io(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            io::Error::new(io::ErrorKind::ResourceBusy, error.to_string())
        }
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => io::Error::other(error.to_string()),
        redb::Error::Corrupted(what) => invalid(&format!("redb finds it corrupted: {what}")),
        other => invalid(&other.to_string()),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
