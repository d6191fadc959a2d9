//! Files that must be whole, private, and still there after a power cut.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use tempfile::TempDir;
use zeroize::Zeroizing;

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
    #[error("{} has more than {limit} bytes; check that it is the right file", .path.display())]
    TooLarge { path: PathBuf, limit: usize },
    #[error("{} can be read by others than its owner (mode {mode:03o}); run: chmod 600 {}", .path.display(), .path.display())]
    NotPrivate { path: PathBuf, mode: u32 },
    #[error("{} exists and is not empty; choose another folder, or remove it if nothing in it is needed", .path.display())]
    NotEmpty { path: PathBuf },
    #[error("the folder {} does not exist; create it first: mkdir -p {}", .folder.display(), .folder.display())]
    NoParent { folder: PathBuf },
}

/// Writes a file that must not exist, and syncs it.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(failed("write", path))
}

/// A private file that comes to its place when it is whole, or not at all.
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
    fresh: PathBuf,
}

impl NewFile {
    /// Nothing may be at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        if path.symlink_metadata().is_ok() {
            return Err(failed("write", path)(io::ErrorKind::AlreadyExists.into()));
        }
        let fresh = beside(path, "unfinished");
        // What an earlier process with this number left behind.
        let _ = fs::remove_file(&fresh);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&fresh);
        Ok(Self {
            file: file.map_err(failed("write", path))?,
            path: path.to_owned(),
            fresh,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }

    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(failed("sync", &self.path))
    }

    /// Where it is until it is finished.
    pub(crate) fn unfinished(&self) -> &Path {
        &self.fresh
    }

    /// Syncs it, and moves it to its place. What somebody else put there meanwhile stays.
    pub(crate) fn finish(self) -> Result<(), FileError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        self.sync()?;
        let moved = match renameat_with(CWD, &self.fresh, CWD, &self.path, RenameFlags::NOREPLACE) {
            // Not every file system knows this flag.
            Err(Errno::INVAL | Errno::NOSYS) if !self.path.exists() => fs::rename(&self.fresh, &self.path),
            outcome => outcome.map_err(io::Error::from),
        };
        moved.map_err(failed("write", &self.path))?;
        sync_folder(parent(&self.path))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // If it is at its place by now, there is nothing here.
        let _ = fs::remove_file(&self.fresh);
    }
}

/// Writes a file so that a reader sees the old content or the new, and never a part.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let fresh = beside(path, "new");
    // What an earlier process with this number left behind.
    let _ = fs::remove_file(&fresh);
    write_new(&fresh, bytes, mode)?;
    if let Err(error) = fs::rename(&fresh, path) {
        let _ = fs::remove_file(&fresh);
        return Err(failed("write", path)(error));
    }
    sync_folder(parent(path))
}

/// Reads a file of at most `limit` bytes. The buffer never grows, so that no copy of a secret stays behind.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    File::open(path)
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes))
        .map_err(failed("read", path))?;
    if bytes.len() > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

/// Reads a file with a secret; refuses one that its group or others can read.
pub(crate) fn read_private(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let metadata = fs::metadata(path).map_err(failed("read", path))?;
    let mode = metadata.mode() & 0o777;
    let of_others = match is_credential(path, &metadata) {
        true => 0o037,
        false => 0o077,
    };
    // A pipe or a terminal has no content that others could read later.
    if metadata.is_file() && mode & of_others != 0 {
        return Err(FileError::NotPrivate {
            path: path.to_owned(),
            mode,
        });
    }
    read_bounded(path, limit)
}

/// Whether systemd has put a file there for this service alone (`LoadCredential=` in systemd.exec(5)). Where its file system
/// has access control lists, it is root's and lets the service's user in by the list, whose mask stands where the group's
/// mode would.
fn is_credential(path: &Path, metadata: &Metadata) -> bool {
    let given = std::env::var_os("CREDENTIALS_DIRECTORY");
    let is_given = given.is_some_and(|directory| path.parent() == Some(Path::new(&directory)));
    is_given && metadata.uid() == 0
}

/// Makes a folder by `fill`, or nothing: it is filled beside its place and moved there when it is whole.
///
/// # Errors
///
/// A place that holds something is refused. Whatever `fill` returns.
pub(crate) fn make_folder<T, E: From<FileError>>(dir: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    refuse_used(dir)?;
    require_parent(dir)?;
    let unfinished = beside(dir, "unfinished");
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
    DirBuilder::new().mode(0o700).create(path).map_err(failed("make", path))
}

pub(crate) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync", path))
}

/// True if the file system that holds a folder can't be written.
pub(crate) fn is_read_only(dir: &Path) -> bool {
    // What else is wrong with the folder shows when it is read.
    statvfs(dir).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Copies a folder into a private temporary one, without what is named `except`.
pub(crate) fn copy_to_temporary(from: &Path, except: &str) -> Result<TempDir, FileError> {
    let private = Permissions::from_mode(0o700);
    let copy = tempfile::Builder::new()
        .prefix("lockbox-")
        .permissions(private)
        .tempdir();
    let copy = copy.map_err(failed("make a folder in", &std::env::temp_dir()))?;
    copy_tree(from, copy.path(), except).map_err(failed("copy to a temporary folder", from))?;
    Ok(copy)
}

fn copy_tree(from: &Path, to: &Path, except: &str) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_name() == except {
            continue;
        }
        if entry.file_type()?.is_dir() {
            DirBuilder::new().mode(0o700).create(&place)?;
            copy_tree(&entry.path(), &place, except)?;
        } else {
            fs::copy(entry.path(), &place)?;
        }
    }
    Ok(())
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { action, path, source }
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
            Some(_) => Err(FileError::NotEmpty { path: dir.to_owned() }),
            None => Ok(()),
        },
    }
}

/// A name in the same folder that nobody else uses.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{what}-{}", std::process::id()));
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
