//! What the tests of this crate share. Each test is run on both backends.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use lockbox_store::{Batch, Durable, EffaceableRoot, Media, Pair, Store, StoreFailure};
use lockbox_store_disk::{Backend, DiskStore, MIN_CACHE_BYTES, Options};
use tempfile::TempDir;

/// Makes a test of each of these functions, for each backend.
#[macro_export]
macro_rules! on_each_backend {
    ($($test:ident),+ $(,)?) => {
        mod sled {
            $(#[test] fn $test() { super::$test::<lockbox_store_sled::Sled>(); })+
        }
        mod redb {
            $(#[test] fn $test() { super::$test::<lockbox_store_redb::Redb>(); })+
        }
    };
}

/// Small, and at peace with however full the disk of the test machine is.
pub fn options() -> Options {
    Options {
        cache_bytes: MIN_CACHE_BYTES,
        low_water_bytes: 0,
        ballast_bytes: 0,
    }
}

/// A folder for one store, removed in the end.
pub struct Scratch<B> {
    _root: TempDir,
    pub store: PathBuf,
    _backend: PhantomData<B>,
}

impl<B: Backend> Scratch<B> {
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let store = root.path().join("store");
        Self {
            _root: root,
            store,
            _backend: PhantomData,
        }
    }

    /// With an empty store in it.
    pub fn created() -> Self {
        let scratch = Self::new();
        DiskStore::<B>::create(&scratch.store, &options()).expect("creates");
        scratch
    }

    pub fn open(&self) -> DiskStore<B> {
        open(&self.store).expect("opens")
    }

    pub fn open_with(&self, root: impl EffaceableRoot) -> DiskStore<B> {
        let media = Media {
            root: Some(Box::new(root)),
            ..Media::default()
        };
        DiskStore::open(&self.store, media, &options()).expect("opens")
    }
}

pub fn open<B: Backend>(dir: &Path) -> Result<DiskStore<B>, StoreFailure> {
    DiskStore::open(dir, Media::default(), &options())
}

/// Why opening failed.
pub fn refusal<B: Backend>(dir: &Path) -> StoreFailure {
    match open::<B>(dir) {
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

pub fn with_image(mut batch: Batch, image: &str) -> Batch {
    batch.replace_root(image.into());
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

/// Set for the processes that a test starts, to the folder of their store.
pub const CHILD_STORE: &str = "LOCKBOX_TEST_CHILD_STORE";

/// The arguments with which this test program runs the one test that is the child's part.
pub fn child_arguments<B: Backend>(part: &str) -> [String; 4] {
    let part = format!("{}::{part}", B::FORMAT.name);
    ["--exact", &part, "--nocapture", "--test-threads=1"].map(str::to_owned)
}

/// The store's folder if this process is a child. A child's part does nothing otherwise.
pub fn child_store() -> Option<PathBuf> {
    std::env::var_os(CHILD_STORE).map(PathBuf::from)
}

/// Writes a line past the test harness, so that it has left this process when it returns.
pub fn tell(line: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(format!("\n{line}\n").as_bytes())
        .expect("the parent listens");
    stdout.flush().expect("the parent listens");
}
