//! The store's folder: who has it, what is left over in it, and making it durable.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lockbox_store::StoreFailure;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::backend::Format;

/// The name of the file that is given up when the disk is full. A copy of a store needs none.
pub const BALLAST: &str = "BALLAST";

/// What every READY begins with. The backend's name, the number of its format and the name of the files' folder follow.
const READY_START: &str = "lockbox-store-";

/// The name of the backend whose store is in `dir`, as the folder records it; `None` if no store was finished there.
pub fn recorded_backend(dir: &Path) -> Result<Option<String>, StoreFailure> {
    let folder = Folder::new(dir);
    let line = folder.read_ready()?;
    Ok(line.and_then(|line| Ready::parse(&line).map(|ready| ready.backend.to_owned())))
}

/// Disk space that the files of the finished store in `dir` take, in bytes. Ballast is not counted.
pub fn disk_bytes(dir: &Path) -> Result<u64, StoreFailure> {
    let folder = Folder::new(dir);
    let line = folder.read_ready()?;
    let files = line.and_then(|line| Ready::parse(&line).map(|ready| dir.join(ready.files)));
    let files = files.ok_or_else(|| folder.open_failure(UNFINISHED, "create the store first"))?;
    tree_bytes(&files).map_err(|error| folder.refused("measured", &error))
}

const UNFINISHED: &str =
    "the folder has no READY file, so the store in it was never finished and nothing in it was promised";

/// The paths in one store's folder.
pub(crate) struct Folder {
    dir: PathBuf,
}

/// Held by whoever has the store open, and released by the operating system if it dies.
pub(crate) struct FolderLock {
    file: File,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing would not do: a child of this process has the same lock until it executes its own program.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Folder {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn place(&self) -> String {
        self.dir.display().to_string()
    }

    /// The two folders that a backend's own files can be in. READY names the one that counts.
    pub(crate) fn places(&self, format: Format) -> [PathBuf; 2] {
        [format.name.to_owned(), format!("{}-2", format.name)].map(|name| self.dir.join(name))
    }

    pub(crate) fn ballast(&self) -> PathBuf {
        self.dir.join(BALLAST)
    }

    pub(crate) fn handle(&self) -> io::Result<File> {
        File::open(&self.dir)
    }

    /// Makes the folder, if there is none. Refuses one that holds anything but a lock.
    pub(crate) fn claim_empty(&self) -> Result<(), StoreFailure> {
        match private_folder(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(self.refused("made", &error)),
            _ => {}
        }
        if self.ready_path().exists() {
            return Err(self.open_failure("there is a store in it already", "open it, or choose another folder"));
        }
        let entries = fs::read_dir(&self.dir).map_err(|error| self.refused("read", &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.refused("read", &error))?;
            if entry.file_name() != OsStr::new("LOCK") {
                return Err(self.open_failure(
                    "a new store needs an empty folder",
                    "choose another folder, or remove what an interrupted attempt left in this one",
                ));
            }
        }
        Ok(())
    }

    /// Removes what a conversion or compaction left of a backend's files: all but those in `kept`.
    pub(crate) fn remove_leftovers(&self, format: Format, kept: &Path) -> io::Result<()> {
        for place in self.places(format) {
            if place != kept {
                self.remove_files(&place)?;
            }
        }
        Ok(())
    }

    /// Removes a folder of files, if it is there, for good.
    pub(crate) fn remove_files(&self, files: &Path) -> io::Result<()> {
        match fs::remove_dir_all(files) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.handle()?.sync_all(),
        }
    }

    /// Keeps every other process out, for as long as the result lives.
    pub(crate) fn lock(&self) -> Result<FolderLock, StoreFailure> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join("LOCK"))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => self.open_failure("there is no such folder", "create the store first"),
                _ => self.refused("locked", &error),
            })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The number is for people only; the lock itself is what counts.
                let _ = file.take(20).read_to_string(&mut holder);
                let reason = match holder.trim().parse::<u32>() {
                    Ok(process) => format!("process {process} has it open"),
                    Err(_) => "another process has it open".to_owned(),
                };
                return Err(self.open_failure(reason, "stop that process first, or use the store through it"));
            }
            Err(errno) => return Err(self.refused("locked", &errno.into())),
        }
        // On a full disk the number stays out, and the store must open all the same.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(FolderLock { file })
    }

    /// Returns the folder of the finished store's files. Refuses a store that was not finished, or is not of this format.
    pub(crate) fn require_ready(&self, format: Format) -> Result<PathBuf, StoreFailure> {
        let Some(line) = self.read_ready()? else {
            return Err(self.open_failure(UNFINISHED, "remove the folder and create the store again"));
        };
        let ready = Ready::parse(&line);
        if let Some(ready) = &ready {
            let files = self.dir.join(ready.files);
            if ready.backend == format.name && ready.version == format.version && self.places(format).contains(&files) {
                return Ok(files);
            }
        }
        Err(match ready {
            Some(ready) if ready.backend != format.name => self.open_failure(
                format!(
                    "its records are kept by {}, and {} was asked for",
                    ready.backend, format.name
                ),
                "ask for the backend that it has, or convert it to the other with `lockbox store convert`",
            ),
            _ => self.open_failure(
                "its READY file names a format that this version does not know",
                "use the version that wrote it",
            ),
        })
    }

    fn read_ready(&self) -> Result<Option<Vec<u8>>, StoreFailure> {
        match fs::read(self.ready_path()) {
            Ok(line) => Ok(Some(line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.refused("read", &error)),
        }
    }

    /// Makes durable: every file, every folder that names one, and the name of the folder itself.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        sync_tree(&self.dir)?;
        match fs::canonicalize(&self.dir)?.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Marks the store in `files` as finished, and as the one that counts. The mark changes whole or not at all.
    pub(crate) fn mark_ready(&self, format: Format, files: &Path) -> io::Result<()> {
        let unfinished = self.dir.join("READY.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        let name = files.file_name().unwrap_or_default().to_string_lossy();
        writeln!(file, "{READY_START}{} {} {name}", format.name, format.version)?;
        file.sync_all()?;
        fs::rename(&unfinished, self.ready_path())?;
        self.handle()?.sync_all()
    }

    pub(crate) fn open_failure(&self, reason: impl Into<String>, remedy: &'static str) -> StoreFailure {
        StoreFailure::Open {
            place: self.place(),
            reason: reason.into(),
            remedy,
        }
    }

    /// For what the operating system refuses: `done` completes "it can't be".
    pub(crate) fn refused(&self, done: &str, error: &io::Error) -> StoreFailure {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space on its file system, then start again"
            }
            io::ErrorKind::PermissionDenied => "give the folder to the user that runs this program",
            io::ErrorKind::NotFound => "make the missing folder first",
            _ => "look for its cause in the system's log",
        };
        self.open_failure(format!("it can't be {done}: {error}"), remedy)
    }

    pub(crate) fn damaged(&self, reason: String) -> StoreFailure {
        StoreFailure::Damaged {
            place: self.place(),
            reason,
        }
    }

    fn ready_path(&self) -> PathBuf {
        self.dir.join("READY")
    }
}

/// What READY says.
struct Ready<'a> {
    backend: &'a str,
    version: u32,
    /// The name of the folder with the backend's files.
    files: &'a str,
}

impl<'a> Ready<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.trim_end().strip_prefix(READY_START)?;
        let (backend, rest) = line.split_once(' ')?;
        let (version, files) = rest.split_once(' ')?;
        let version = version.parse().ok()?;
        Some(Self {
            backend,
            version,
            files,
        })
    }
}

pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Disk space that a folder takes with all that is in it, in bytes.
pub(crate) fn tree_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => tree_bytes(&entry.path())?,
            // st_blocks counts 512 bytes on every file system.
            false => entry.metadata()?.blocks() * 512,
        };
    }
    Ok(bytes)
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}
