//! Making a store and opening one, step by step.

use std::fs::File;
use std::path::Path;

use lockbox_store::StoreFailure;

use crate::folder::{Folder, FolderLock};
use crate::records::Records;
use crate::space::Space;
use crate::tree::{Tree, TreeOpenError};
use crate::{MAX_CACHE_BYTES, MIN_CACHE_BYTES, Options};

/// A store that is open but has no committing thread yet. The order of the fields is the order of closing.
pub(crate) struct Opened {
    pub(crate) records: Records,
    /// A descriptor of sled's log that is ours: fsync acts on the file, whichever descriptor wrote to it.
    pub(crate) log: File,
    pub(crate) space: Space,
    _lock: FolderLock,
}

/// See [`SledStore::create`](crate::SledStore::create).
pub(crate) fn create(dir: &Path, options: &Options) -> Result<(), StoreFailure> {
    let folder = Folder::new(dir);
    check(options, &folder)?;
    folder.claim_empty()?;
    let _lock = folder.lock()?;
    // Once more, as another process may have been faster.
    folder.claim_empty()?;
    let built = |error: std::io::Error| folder.refused("built", &error);

    folder.make_sled_folder().map_err(built)?;
    let tree = open_tree(&folder, options)?;
    Records::initialize(&tree).map_err(built)?;
    drop(tree);
    Space::new(folder.handle().map_err(built)?, folder.ballast(), options).restore_ballast();
    // Nothing has been promised yet, so the order among these syncs does not matter. The mark comes after them all.
    folder.sync_all().map_err(built)?;
    folder.mark_ready().map_err(built)
}

/// See [`SledStore::open`](crate::SledStore::open).
pub(crate) fn open(dir: &Path, options: &Options) -> Result<Opened, StoreFailure> {
    let folder = Folder::new(dir);
    check(options, &folder)?;
    let lock = folder.lock()?;
    folder.require_ready()?;
    folder.require_sled_files()?;
    let opened = |error: std::io::Error| folder.refused("opened", &error);

    folder.remove_unfinished_snapshots().map_err(opened)?;
    let space = Space::new(folder.handle().map_err(opened)?, folder.ballast(), options);
    space.give_way().map_err(opened)?;
    // Opened before sled writes anything, so that no failed write-back can go unseen by this descriptor.
    let log = File::open(folder.log()).map_err(opened)?;
    folder.wait_for_log(&log)?;

    let tree = open_tree(&folder, options)?;
    let records = Records::load(tree)
        .map_err(|error| folder.damaged(error.to_string()))?
        .ok_or_else(|| folder.damaged("sled opened it without the records that every store has".to_owned()))?;
    // sled repairs as it opens: what it wrote, made and removed must last before anything is built on it.
    folder.sync_all().map_err(opened)?;
    space.restore_ballast();
    Ok(Opened {
        records,
        log,
        space,
        _lock: lock,
    })
}

fn open_tree(folder: &Folder, options: &Options) -> Result<Tree, StoreFailure> {
    Tree::open(&folder.sled(), options.cache_bytes).map_err(|error| match error {
        TreeOpenError::System(error) => folder.refused("opened", &error),
        TreeOpenError::Damaged(reason) => folder.damaged(reason),
    })
}

fn check(options: &Options, folder: &Folder) -> Result<(), StoreFailure> {
    if (MIN_CACHE_BYTES..=MAX_CACHE_BYTES).contains(&options.cache_bytes) {
        return Ok(());
    }
    Err(folder.open_failure(
        format!("a cache of {} bytes was asked for", options.cache_bytes),
        "choose a cache of 1 MiB to 64 MiB",
    ))
}
