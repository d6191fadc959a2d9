//! Copying a store into new files, in place and offline: from one backend to the other, or to give back wasted space.
//!
//! The new files are built beside the old ones, in the same folder and under its lock. READY names the folder of the files that
//! count, and is replaced in one step. An interruption at any point leaves a whole store, in the old files or in the new ones.
//! The other files are removed when the store is next opened, converted or compacted.
//!
//! Records are copied as they are stored, so the layer above finds the commit that its anchor names.

use std::fmt::Arguments;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use lockbox_store::{Batch, Pair, StoreFailure};
use rustix::fs::fstatvfs;

use crate::Options;
use crate::backend::{Backend, Scrutiny};
use crate::folder::{Folder, tree_bytes};
use crate::open::{build, check, open_files};

/// What a conversion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Converted {
    Copied(Copied),
    /// The store had this backend already. What an interrupted conversion left was removed.
    Already,
}

/// What was copied into new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    pub records: u64,
    /// Disk space of the old files, in bytes.
    pub bytes_before: u64,
    /// Disk space of the new files, in bytes.
    pub bytes_after: u64,
}

/// When a store is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// If the waste [is worth it](Usage::is_wasteful).
    IfWasteful,
}

/// Disk space of a store, and how much of it holds records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Disk space of the files, in bytes.
    pub disk_bytes: u64,
    /// Keys and values of all records, in bytes.
    pub record_bytes: u64,
}

/// Waste below this is left alone: a compaction is not worth the wait.
const MIN_WASTE_BYTES: u64 = 256 * 1024 * 1024;

/// Waste is left alone up to this many times the records.
const WASTE_FACTOR: u64 = 4;

/// Records that are copied at a time, and then synced.
const PAGE: usize = 1_000;

impl Usage {
    pub fn waste_bytes(&self) -> u64 {
        self.disk_bytes.saturating_sub(self.record_bytes)
    }

    /// True if a daemon should compact the store when it starts.
    pub fn is_wasteful(&self) -> bool {
        let bound = self.record_bytes.saturating_mul(WASTE_FACTOR);
        self.waste_bytes() > bound.max(MIN_WASTE_BYTES)
    }
}

/// Passes progress on at most once in `period`, from the first one on.
pub fn once_in(period: Duration, mut tell: impl FnMut(Arguments<'_>)) -> impl FnMut(Arguments<'_>) {
    let mut told: Option<Instant> = None;
    move |progress| {
        if told.is_none_or(|told| told.elapsed() >= period) {
            told = Some(Instant::now());
            tell(progress);
        }
    }
}

/// Moves the store in `dir` from backend `A` to backend `B`: copies every record, reads all of the copy again and compares,
/// switches, and only then removes the old files.
///
/// # Errors
///
/// As when opening either. Refuses without enough room for the copy. On an error the store has all its records. `progress` is
/// called for each page of records.
pub fn convert<A: Backend, B: Backend>(
    dir: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Arguments<'_>),
) -> Result<Converted, StoreFailure> {
    let folder = Folder::new(dir);
    check(options, &folder)?;
    let _lock = folder.lock()?;
    if let Ok(files) = folder.require_ready(B::FORMAT) {
        remove_leftovers::<A, B>(&folder, &files)?;
        return Ok(Converted::Already);
    }
    let files = folder.require_ready(A::FORMAT)?;
    renew::<A, B>(&folder, &files, options, progress).map(Converted::Copied)
}

/// Copies the store in `dir` into new files of the same backend, which hold no waste. Gives `None` if that is not to be done now.
///
/// # Errors
///
/// As for [`convert`].
pub fn compact<B: Backend>(
    dir: &Path,
    options: &Options,
    when: When,
    progress: &mut dyn FnMut(Arguments<'_>),
) -> Result<Option<Copied>, StoreFailure> {
    let folder = Folder::new(dir);
    check(options, &folder)?;
    let _lock = folder.lock()?;
    let files = folder.require_ready(B::FORMAT)?;
    if when == When::IfWasteful && !is_wasteful::<B>(&folder, &files, options, progress)? {
        return Ok(None);
    }
    renew::<B, B>(&folder, &files, options, progress).map(Some)
}

/// Reads the records only if the files are large enough to be wasteful.
fn is_wasteful<B: Backend>(
    folder: &Folder,
    files: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Arguments<'_>),
) -> Result<bool, StoreFailure> {
    let failed = |error: io::Error| folder.refused("measured", &error);
    let disk_bytes = tree_bytes(files).map_err(failed)?;
    if disk_bytes <= MIN_WASTE_BYTES {
        return Ok(false);
    }
    let (source, _) = open_files::<B>(folder, files, options, Scrutiny::Usual)?;
    let (_, record_bytes) = measure(&source, progress).map_err(failed)?;
    let usage = Usage {
        disk_bytes,
        record_bytes,
    };
    Ok(usage.is_wasteful())
}

/// Copies the files in `from` into new ones and switches to these. The caller holds the folder's lock.
fn renew<A: Backend, B: Backend>(
    folder: &Folder,
    from: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Arguments<'_>),
) -> Result<Copied, StoreFailure> {
    let failed = |error: io::Error| folder.refused("copied", &error);
    remove_leftovers::<A, B>(folder, from)?;
    let [first, second] = folder.places(B::FORMAT);
    let to = if first == from { second } else { first };
    let bytes_before = tree_bytes(from).map_err(failed)?;
    let (source, _) = open_files::<A>(folder, from, options, Scrutiny::Whole)?;
    let (total, record_bytes) = measure(&source, progress).map_err(failed)?;
    require_room::<B>(folder, record_bytes)?;
    let copied = copy_and_compare::<A, B>(folder, &to, options, &source, total, progress);
    drop(source);
    if let Err(failure) = copied {
        // The disk may be full. The failure to report is the one above.
        let _ = folder.remove_files(&to);
        return Err(failure);
    }
    let bytes_after = tree_bytes(&to).map_err(failed)?;
    folder.mark_ready(B::FORMAT, &to).map_err(failed)?;
    folder.remove_files(from).map_err(failed)?;
    Ok(Copied {
        records: total,
        bytes_before,
        bytes_after,
    })
}

/// Removes all files but those in `kept`, which are the ones that count.
fn remove_leftovers<A: Backend, B: Backend>(folder: &Folder, kept: &Path) -> Result<(), StoreFailure> {
    folder
        .remove_leftovers(A::FORMAT, kept)
        .and_then(|()| folder.remove_leftovers(B::FORMAT, kept))
        .map_err(|error| folder.refused("tidied up", &error))
}

/// Refuses to begin a copy that would fill the disk. The low-water mark is no bound here: a store that reached it by its waste
/// is to be compacted, too.
fn require_room<B: Backend>(folder: &Folder, record_bytes: u64) -> Result<(), StoreFailure> {
    // sled's new files were measured with 2.1 times the records of whole keys, and 2.4 times those of destroyed ones.
    let needed = record_bytes.saturating_mul(3).saturating_add(B::GROWTH.batch_bytes);
    let disk = folder.handle().and_then(|handle| Ok(fstatvfs(handle)?));
    let disk = disk.map_err(|error| folder.refused("copied", &error))?;
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    if available >= needed {
        return Ok(());
    }
    Err(folder.open_failure(
        format!("there is no room to copy it: that takes {needed} bytes, and {available} are available"),
        "free space on its file system, then try again",
    ))
}

fn copy_and_compare<A: Backend, B: Backend>(
    folder: &Folder,
    to: &Path,
    options: &Options,
    source: &A,
    total: u64,
    progress: &mut dyn FnMut(Arguments<'_>),
) -> Result<(), StoreFailure> {
    let failed = |error: io::Error| folder.refused("copied", &error);
    build::<B>(folder, to, options)?;
    let (target, _) = open_files::<B>(folder, to, options, Scrutiny::Usual)?;
    copy(source, &target, total, progress).map_err(failed)?;
    drop(target);
    // From the files, as the next start will see them; opening syncs them, too.
    let (target, _) = open_files::<B>(folder, to, options, Scrutiny::Whole)?;
    if is_same(source, &target, total, progress).map_err(failed)? {
        return Ok(());
    }
    Err(folder.damaged(format!(
        "what {} wrote is not what {} has, so nothing was changed",
        B::FORMAT.name,
        A::FORMAT.name
    )))
}

/// Counts the records, and the bytes of their keys and values.
fn measure(source: &impl Backend, progress: &mut dyn FnMut(Arguments<'_>)) -> io::Result<(u64, u64)> {
    let (mut records, mut bytes) = (0, 0);
    for page in pages(source) {
        let page = page?;
        records += page.len() as u64;
        bytes += page
            .iter()
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum::<u64>();
        progress(format_args!("counted {records} records"));
    }
    Ok((records, bytes))
}

fn copy(
    source: &impl Backend,
    target: &impl Backend,
    total: u64,
    progress: &mut dyn FnMut(Arguments<'_>),
) -> io::Result<()> {
    let mut records = 0;
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
        records += operations as u64;
        progress(format_args!("copied {records} of {total} records"));
    }
    Ok(())
}

fn is_same(
    left: &impl Backend,
    right: &impl Backend,
    total: u64,
    progress: &mut dyn FnMut(Arguments<'_>),
) -> io::Result<bool> {
    let mut records = 0;
    let (mut left, mut right) = (pages(left), pages(right));
    loop {
        match (left.next().transpose()?, right.next().transpose()?) {
            (None, None) => return Ok(records == total),
            (Some(left), Some(right)) if left == right => records += left.len() as u64,
            _ => return Ok(false),
        }
        progress(format_args!("compared {records} of {total} records"));
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// A busy store is not compacted at every start, nor is a small one.
    #[test]
    fn waste_counts_beyond_256_mib_and_four_times_the_records() {
        let is_wasteful = |disk: u64, records: u64| {
            Usage {
                disk_bytes: disk * MIB,
                record_bytes: records * MIB,
            }
            .is_wasteful()
        };
        assert!(!is_wasteful(256, 0) && is_wasteful(257, 0));
        assert!(!is_wasteful(500, 100) && is_wasteful(501, 100));
    }
}
