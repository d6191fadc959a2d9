//! Making a store and opening one, step by step.

use std::path::Path;

use lockbox_store::StoreFailure;

use crate::backend::{Backend, BackendError, Scrutiny};
use crate::folder::{Folder, FolderLock, private_folder};
use crate::space::Space;
use crate::{MAX_CACHE_BYTES, MIN_CACHE_BYTES, Options};

/// A store that is open but has no committing thread yet. The order of the fields is the order of closing.
pub(crate) struct Opened<B> {
    pub(crate) backend: B,
    pub(crate) space: Space,
    _lock: FolderLock,
}

/// See [`DiskStore::create`](crate::DiskStore::create).
pub(crate) fn create<B: Backend>(dir: &Path, options: &Options) -> Result<(), StoreFailure> {
    let folder = Folder::new(dir);
    check(options, &folder)?;
    folder.claim_empty()?;
    let _lock = folder.lock()?;
    // Once more, as another process may have been faster.
    folder.claim_empty()?;
    let built = |error: std::io::Error| folder.refused("built", &error);

    let [files, _] = folder.places(B::FORMAT);
    build::<B>(&folder, &files, options)?;
    let space = Space::new(folder.handle().map_err(built)?, folder.ballast(), options, B::GROWTH);
    space.restore_ballast();
    // Nothing has been promised yet, so the order among these syncs does not matter. The mark comes after them all.
    folder.sync_all().map_err(built)?;
    folder.mark_ready(B::FORMAT, &files).map_err(built)
}

/// See [`DiskStore::open`](crate::DiskStore::open).
pub(crate) fn open<B: Backend>(dir: &Path, options: &Options) -> Result<Opened<B>, StoreFailure> {
    let folder = Folder::new(dir);
    check(options, &folder)?;
    let lock = folder.lock()?;
    let files = folder.require_ready(B::FORMAT)?;
    folder
        .remove_leftovers(B::FORMAT, &files)
        .map_err(|error| folder.refused("opened", &error))?;
    let (backend, space) = open_files(&folder, &files, options, Scrutiny::Usual)?;
    space.restore_ballast();
    Ok(Opened {
        backend,
        space,
        _lock: lock,
    })
}

/// Makes the backend's folder and its files, which are not durable yet.
pub(crate) fn build<B: Backend>(folder: &Folder, files: &Path, options: &Options) -> Result<(), StoreFailure> {
    private_folder(files).map_err(|error| folder.refused("built", &error))?;
    B::create(files, options).map_err(|error| explain(folder, "built", error))
}

/// Opens the backend's files. The caller holds the folder's lock.
pub(crate) fn open_files<B: Backend>(
    folder: &Folder,
    files: &Path,
    options: &Options,
    scrutiny: Scrutiny,
) -> Result<(B, Space), StoreFailure> {
    let opened = |error: std::io::Error| folder.refused("opened", &error);
    B::prepare(files).map_err(|error| explain(folder, "opened", error))?;
    let space = Space::new(folder.handle().map_err(opened)?, folder.ballast(), options, B::GROWTH);
    space.give_way().map_err(opened)?;
    let backend = B::open(files, options, scrutiny).map_err(|error| explain(folder, "opened", error))?;
    // A backend repairs as it opens: what it wrote, made and removed must last before anything is built on it.
    folder.sync_all().map_err(opened)?;
    Ok((backend, space))
}

pub(crate) fn check(options: &Options, folder: &Folder) -> Result<(), StoreFailure> {
    if (MIN_CACHE_BYTES..=MAX_CACHE_BYTES).contains(&options.cache_bytes) {
        return Ok(());
    }
    Err(folder.open_failure(
        format!("a cache of {} bytes was asked for", options.cache_bytes),
        "choose a cache of 1 MiB to 64 MiB",
    ))
}

fn explain(folder: &Folder, done: &str, error: BackendError) -> StoreFailure {
    match error {
        BackendError::System(error) => folder.refused(done, &error),
        BackendError::Damaged(reason) => folder.damaged(reason),
        BackendError::Busy => folder.open_failure(
            "another program has its files open",
            "stop that program; the files are not to be opened by anything but this store",
        ),
    }
}
