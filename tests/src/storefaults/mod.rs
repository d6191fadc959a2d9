//! Stores under faults: processes that are killed, power that fails, disks that fill up, fail or rot.
//!
//! A child process (`store-victim`) opens a store, writes numbered batches and says what was acknowledged. What becomes of it
//! is decided here; what its files hold afterwards is judged by another child, as damaged files may hang or kill whoever
//! reads them.
//!
//! | module | knows |
//! |---|---|
//! | [`workload`] | what batch `n` of a writer is, and what a store holds after it |
//! | [`victim`] | the child's part: to write, to convert, to compact, to judge |
//! | [`child`] | starting the child, under the shim or without, and what it said |
//! | [`recording`] | what the shim recorded |
//! | [`disk`] | the folder as it may be after a power cut at any point of a recording |
//! | [`random`] | numbers from a seed |
//!
//! A folder of a run holds `store/`, `root` and `anchor` (the images beside it) and `acks` (a line for each acknowledgement).

pub mod child;
pub mod disk;
pub mod random;
pub mod recording;
pub mod victim;
pub mod workload;

use std::path::Path;

use lockbox_store::{Media, Store, StoreFailure};
use lockbox_store_disk::{MIN_CACHE_BYTES, Options, When, compact, convert};
use lockbox_store_redb::{Redb, RedbStore};
use lockbox_store_sled::{Sled, SledStore};

/// A backend under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sled,
    Redb,
}

/// Whatever is on the test machine's disk, and with as little in memory as the store may be given.
pub const OPTIONS: Options = Options {
    cache_bytes: MIN_CACHE_BYTES,
    low_water_bytes: 0,
    ballast_bytes: 0,
};

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Redb => "redb",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Sled, Self::Redb].into_iter().find(|kind| kind.name() == name)
    }

    pub fn other(self) -> Self {
        match self {
            Self::Sled => Self::Redb,
            Self::Redb => Self::Sled,
        }
    }

    pub fn create(self, dir: &Path, options: &Options) -> Result<(), StoreFailure> {
        match self {
            Self::Sled => SledStore::create(dir, options),
            Self::Redb => RedbStore::create(dir, options),
        }
    }

    /// The store is closed when the last reference to it goes.
    pub fn open(self, dir: &Path, media: Media, options: &Options) -> Result<Box<dyn Store>, StoreFailure> {
        Ok(match self {
            Self::Sled => Box::new(SledStore::open(dir, media, options)?),
            Self::Redb => Box::new(RedbStore::open(dir, media, options)?),
        })
    }

    /// Converts a store to this backend.
    pub fn take_over(self, dir: &Path) -> Result<(), StoreFailure> {
        match self {
            Self::Sled => convert::<Redb, Sled>(dir, &OPTIONS, &mut |_| ()),
            Self::Redb => convert::<Sled, Redb>(dir, &OPTIONS, &mut |_| ()),
        }
        .map(drop)
    }

    /// Compacts a store of this backend.
    pub fn compact(self, dir: &Path) -> Result<(), StoreFailure> {
        match self {
            Self::Sled => compact::<Sled>(dir, &OPTIONS, When::Always, &mut |_| ()),
            Self::Redb => compact::<Redb>(dir, &OPTIONS, When::Always, &mut |_| ()),
        }
        .map(drop)
    }
}
