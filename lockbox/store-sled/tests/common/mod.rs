//! What the tests of this crate share.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::path::{Path, PathBuf};

use lockbox_store::{Batch, Durable, Media, Pair, Store, StoreFailure};
use lockbox_store_sled::{MIN_CACHE_BYTES, Options, SledStore};
use tempfile::TempDir;

/// Small, and at peace with however full the disk of the test machine is.
pub fn options() -> Options {
    Options {
        cache_bytes: MIN_CACHE_BYTES,
        low_water_bytes: 0,
        ballast_bytes: 0,
    }
}

/// A folder for one store, removed in the end.
pub struct Scratch {
    _root: TempDir,
    pub store: PathBuf,
}

impl Scratch {
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let store = root.path().join("store");
        Self { _root: root, store }
    }

    /// With an empty store in it.
    pub fn created() -> Self {
        let scratch = Self::new();
        SledStore::create(&scratch.store, &options()).expect("creates");
        scratch
    }

    pub fn open(&self) -> SledStore {
        open(&self.store).expect("opens")
    }

    pub fn sled(&self, name: &str) -> PathBuf {
        self.store.join("sled").join(name)
    }
}

pub fn open(dir: &Path) -> Result<SledStore, StoreFailure> {
    SledStore::open(dir, Media::default(), &options())
}

/// Why opening failed.
pub fn refusal(dir: &Path) -> StoreFailure {
    match open(dir) {
        Ok(_) => panic!("{} was opened", dir.display()),
        Err(failure) => failure,
    }
}

pub fn put(key: &str, value: impl AsRef<[u8]>) -> Batch {
    let mut batch = Batch::new();
    batch.put(key.into(), value.as_ref().to_vec());
    batch
}

pub fn remove(key: &str) -> Batch {
    let mut batch = Batch::new();
    batch.remove(key.into());
    batch
}

pub fn get(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    store.get(key.as_bytes()).expect("reads")
}

pub fn commit(store: &dyn Store, batch: Batch) -> Durable {
    store.commit(batch).expect("commits")
}

pub fn everything(store: &dyn Store) -> Vec<Pair> {
    store.scan(b"", None, usize::MAX).expect("scans")
}
