//! Files that must be whole, private, and still there after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

/// The mode of a file with a secret: nobody but its owner.
pub(crate) const PRIVATE: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("can't {action} {}: {source}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} can be read by others than its owner (mode {mode:03o}); run: chmod 600 {}", .path.display(), .path.display())]
    NotPrivate { path: PathBuf, mode: u32 },
    #[error("{} exists and is not empty; choose another folder, or remove it if nothing in it is needed", .path.display())]
    NotEmpty { path: PathBuf },
    #[error("the folder {} does not exist; create it first: mkdir -p {}", .folder.display(), .folder.display())]
    NoParent { folder: PathBuf },
}

/// Writes a file that must not exist, and syncs it.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.map_err(failed("write", path))
}

/// Writes a file so that a reader sees the old content or the new, and never a part.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let fresh = path.with_file_name(name);
    write_new(&fresh, bytes, mode)?;
    let renamed = keep_owner(&fresh, path).and_then(|()| fs::rename(&fresh, path));
    let renamed = renamed.map_err(failed("write", path));
    if renamed.is_err() {
        // The error to report is the one above.
        let _ = fs::remove_file(&fresh);
    }
    renamed?;
    sync_folder(parent(path))
}

/// A file that root replaces stays the daemon's.
fn keep_owner(fresh: &Path, old: &Path) -> io::Result<()> {
    let Ok(old) = fs::metadata(old) else { return Ok(()) };
    match fs::metadata(fresh)?.uid() == old.uid() {
        true => Ok(()),
        false => chown(fresh, Some(old.uid()), Some(old.gid())),
    }
}

/// Moves a file onto another one, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(failed("write", to))?;
    sync_folder(parent(to))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(failed("read", path))
}

/// Reads a file with a secret; refuses one that its group or others can read.
pub(crate) fn read_private(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, FileError> {
    let mut file = File::open(path).map_err(failed("read", path))?;
    let metadata = file.metadata().map_err(failed("read", path))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::NotPrivate {
            path: path.to_owned(),
            mode,
        });
    }
    // Room for the whole file, so that growing leaves no copies behind.
    let size = usize::try_from(metadata.len()).unwrap_or(0).min(1024 * 1024);
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(size + 1));
    file.read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(bytes)
}

/// Makes a folder by `fill`, or nothing: it is filled beside its place and moved there when it is whole.
///
/// # Errors
///
/// Refuses a place that holds something. Whatever `fill` returns.
pub(crate) fn make_folder<T, E: From<FileError>>(dir: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    refuse_used(dir)?;
    require_parent(dir)?;
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".unfinished-{}", std::process::id()));
    let unfinished = dir.with_file_name(name);
    private_folder(&unfinished)?;
    let outcome = fill(&unfinished).and_then(|made| {
        sync_folder(&unfinished)?;
        // Renaming onto an empty folder replaces it; onto a used one it fails.
        fs::rename(&unfinished, dir).map_err(failed("make", dir))?;
        sync_folder(parent(dir))?;
        Ok(made)
    });
    if outcome.is_err() {
        // The error to report is the one above.
        let _ = fs::remove_dir_all(&unfinished);
    }
    outcome
}

pub(crate) fn private_folder(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(failed("make", path))
}

pub(crate) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync", path))
}

/// Refuses a place in a folder that does not exist.
pub(crate) fn require_parent(path: &Path) -> Result<(), FileError> {
    let folder = parent(path);
    match folder.is_dir() {
        true => Ok(()),
        false => Err(FileError::NoParent {
            folder: folder.to_owned(),
        }),
    }
}

fn refuse_used(dir: &Path) -> Result<(), FileError> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("make", dir)(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(FileError::NotEmpty { path: dir.to_owned() }),
        },
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { action, path, source }
}
