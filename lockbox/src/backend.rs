//! What keeps the store's records: chosen when a lockbox is made, recorded in its folder, named in its configuration.

use std::fmt::{self, Arguments};
use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use lockbox_store::{Batch, Completion, Health, Media, Pair, Store, StoreFailure};
use lockbox_store_disk::{Converted, Copied, Options, When, compact, convert, recorded_backend};
use lockbox_store_redb::{Redb, RedbStore};
use lockbox_store_sled::{Sled, SledStore};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// A backend of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    #[default]
    Sled,
    Redb,
}

/// A store that is open, on either backend. Clones share it.
#[derive(Clone)]
pub enum OpenStore {
    Sled(SledStore),
    Redb(RedbStore),
    /// A copy of a store that can't be written.
    ReadOnly(Arc<ReadOnly>),
}

/// A store whose batches are all refused. The field order closes the store before its files are removed.
pub struct ReadOnly {
    store: OpenStore,
    _files: TempDir,
}

impl Backend {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Redb => "redb",
        }
    }

    /// The backend of the store in this folder; `None` if there is no finished store of a backend that is known here.
    pub fn of(store: &Path) -> Result<Option<Self>, StoreFailure> {
        let recorded = recorded_backend(store)?;
        Ok([Self::Sled, Self::Redb]
            .into_iter()
            .find(|backend| recorded.as_deref() == Some(backend.as_str())))
    }

    pub(crate) fn create(self, store: &Path, options: &Options) -> Result<(), StoreFailure> {
        match self {
            Self::Sled => SledStore::create(store, options),
            Self::Redb => RedbStore::create(store, options),
        }
    }

    pub(crate) fn open(self, store: &Path, media: Media, options: &Options) -> Result<OpenStore, StoreFailure> {
        match self {
            Self::Sled => SledStore::open(store, media, options).map(OpenStore::Sled),
            Self::Redb => RedbStore::open(store, media, options).map(OpenStore::Redb),
        }
    }

    /// Gives the store in this folder, which no process has open, this backend.
    pub(crate) fn take_over(
        self,
        store: &Path,
        options: &Options,
        progress: &mut dyn FnMut(Arguments<'_>),
    ) -> Result<Converted, StoreFailure> {
        match self {
            Self::Sled => convert::<Redb, Sled>(store, options, progress),
            Self::Redb => convert::<Sled, Redb>(store, options, progress),
        }
    }

    /// Copies the store in this folder, which no process has open, into new files.
    pub(crate) fn compact(
        self,
        store: &Path,
        options: &Options,
        when: When,
        progress: &mut dyn FnMut(Arguments<'_>),
    ) -> Result<Option<Copied>, StoreFailure> {
        match self {
            Self::Sled => compact::<Sled>(store, options, when, progress),
            Self::Redb => compact::<Redb>(store, options, when, progress),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl OpenStore {
    /// Refuses every batch from now on, and removes its files when it is closed.
    pub(crate) fn read_only(self, files: TempDir) -> Self {
        Self::ReadOnly(Arc::new(ReadOnly {
            store: self,
            _files: files,
        }))
    }

    /// Stops once everything submitted was answered. Later batches are refused; reads go on.
    pub fn close(&self) {
        match self {
            Self::Sled(store) => store.close(),
            Self::Redb(store) => store.close(),
            Self::ReadOnly(read_only) => read_only.store.close(),
        }
    }

    fn store(&self) -> &dyn Store {
        match self {
            Self::Sled(store) => store,
            Self::Redb(store) => store,
            Self::ReadOnly(read_only) => &read_only.store,
        }
    }
}

impl Store for OpenStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure> {
        self.store().get(key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure> {
        self.store().scan(prefix, after, limit)
    }

    fn submit(&self, batch: Batch, done: Completion) {
        match self {
            Self::ReadOnly(_) => done(Err(StoreFailure::ReadOnly)),
            Self::Sled(_) | Self::Redb(_) => self.store().submit(batch, done),
        }
    }

    fn health(&self) -> Health {
        match self {
            Self::ReadOnly(_) => Health::ReadOnly,
            Self::Sled(_) | Self::Redb(_) => self.store().health(),
        }
    }
}
