//! From one backend to another, in place and offline.
//!
//! The new files are built beside the old ones, in the same folder and under its lock; READY is what says which of them
//! count, and it is replaced in one step. So whatever interrupts this, the store is whole, as the one backend's or the
//! other's, and what is left over beside it is removed the next time.

use std::io;
use std::path::Path;

use lockbox_store::{Batch, Pair, StoreFailure};

use crate::Options;
use crate::backend::{Backend, Scrutiny};
use crate::folder::Folder;
use crate::open::{build, check, open_files};

/// What a conversion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Converted {
    /// So many records were copied and compared.
    Records(u64),
    /// The store had this backend already; what an interrupted conversion left was removed.
    Already,
}

/// Records that are copied at a time, and then synced.
const PAGE: usize = 1_000;

/// Moves the store in `dir` from backend `A` to backend `B`: copies every record, reads all of the copy again and compares,
/// switches, and only then removes the old files.
///
/// # Errors
///
/// As when opening either. On an error the store is as it was.
pub fn convert<A: Backend, B: Backend>(dir: &Path, options: &Options) -> Result<Converted, StoreFailure> {
    let folder = Folder::new(dir);
    check(options, &folder)?;
    let _lock = folder.lock()?;
    let converted = |error: io::Error| folder.refused("converted", &error);
    if folder.require_ready(B::FORMAT).is_ok() {
        folder.remove_files(A::FORMAT).map_err(converted)?;
        return Ok(Converted::Already);
    }
    folder.require_ready(A::FORMAT)?;
    // Nobody was ever told of what an interrupted conversion left here.
    folder.remove_files(B::FORMAT).map_err(converted)?;
    let (source, _) = open_files::<A>(&folder, options, Scrutiny::Whole)?;
    let copied = copy_and_compare::<A, B>(&folder, options, &source);
    drop(source);
    match copied {
        Ok(records) => {
            folder.mark_ready(B::FORMAT).map_err(converted)?;
            folder.remove_files(A::FORMAT).map_err(converted)?;
            Ok(Converted::Records(records))
        }
        Err(failure) => {
            // It may be the disk that is full. The failure to report is the one above.
            let _ = folder.remove_files(B::FORMAT);
            Err(failure)
        }
    }
}

fn copy_and_compare<A: Backend, B: Backend>(
    folder: &Folder,
    options: &Options,
    source: &A,
) -> Result<u64, StoreFailure> {
    let converted = |error: io::Error| folder.refused("converted", &error);
    build::<B>(folder, options)?;
    let (target, _) = open_files::<B>(folder, options, Scrutiny::Usual)?;
    copy(source, &target).map_err(converted)?;
    drop(target);
    // From the files, as the next start will see them; opening syncs them, too.
    let (target, _) = open_files::<B>(folder, options, Scrutiny::Whole)?;
    compare(source, &target).map_err(converted)?.ok_or_else(|| {
        folder.damaged(format!(
            "what {} wrote is not what {} has, so nothing was changed",
            B::FORMAT.name,
            A::FORMAT.name
        ))
    })
}

fn copy(source: &impl Backend, target: &impl Backend) -> io::Result<()> {
    for page in pages(source) {
        let page = page?;
        let operations = page.len();
        let mut batch = Batch::new();
        for (key, value) in page {
            batch.put(key, value);
        }
        target.apply(&batch)?;
        target.flush()?;
        target.sync()?;
        target.settle(operations)?;
    }
    Ok(())
}

/// How many records both have; `None` if they differ.
fn compare(left: &impl Backend, right: &impl Backend) -> io::Result<Option<u64>> {
    let mut records = 0;
    let (mut left, mut right) = (pages(left), pages(right));
    loop {
        match (left.next().transpose()?, right.next().transpose()?) {
            (None, None) => return Ok(Some(records)),
            (Some(left), Some(right)) if left == right => records += left.len() as u64,
            _ => return Ok(None),
        }
    }
}

/// All records, in order.
fn pages<B: Backend>(backend: &B) -> impl Iterator<Item = io::Result<Vec<Pair>>> {
    let mut after: Option<Vec<u8>> = None;
    std::iter::from_fn(move || {
        let page = backend.scan(b"", after.as_deref(), PAGE);
        if let Ok(page) = &page {
            after = Some(page.last()?.0.clone());
        }
        Some(page)
    })
}
