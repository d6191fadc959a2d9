//! The store's folder: who has it, what is left over in it, and making it durable.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lockbox_store::StoreFailure;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// What READY says. Another version would be another layout.
const READY_LINE: &str = "lockbox-store-sled 1\n";

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

    pub(crate) fn sled(&self) -> PathBuf {
        self.dir.join("sled")
    }

    /// sled's log. It is never replaced by another file, so a descriptor of it stays good.
    pub(crate) fn log(&self) -> PathBuf {
        self.sled().join("db")
    }

    pub(crate) fn ballast(&self) -> PathBuf {
        self.dir.join("BALLAST")
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

    pub(crate) fn make_sled_folder(&self) -> io::Result<()> {
        private_folder(&self.sled())
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

    /// Refuses a folder whose store was not finished, or is not of this format.
    pub(crate) fn require_ready(&self) -> Result<(), StoreFailure> {
        match fs::read(self.ready_path()) {
            Ok(line) if line == READY_LINE.as_bytes() => Ok(()),
            Ok(_) => Err(self.open_failure(
                "its READY file names a format that this version does not know",
                "use the version that wrote it",
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.open_failure(
                "the folder has no READY file, so the store in it was never finished and nothing in it was promised",
                "remove the folder and create the store again",
            )),
            Err(error) => Err(self.refused("read", &error)),
        }
    }

    /// Refuses a finished store without its files: sled would quietly make new ones.
    pub(crate) fn require_sled_files(&self) -> Result<(), StoreFailure> {
        for name in ["db", "conf"] {
            let path = self.sled().join(name);
            match fs::metadata(&path) {
                Ok(file) if file.len() > 0 => {}
                Ok(_) => return Err(self.damaged(format!("{} is empty", path.display()))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(self.damaged(format!("{} is missing", path.display())));
                }
                Err(error) => return Err(self.refused("read", &error)),
            }
        }
        Ok(())
    }

    /// Removes snapshots that sled was writing when it was killed: it would take one for a finished snapshot, and fail.
    pub(crate) fn remove_unfinished_snapshots(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.sled())? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && name.ends_with(".generating") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Waits until the last user of sled's log in this process has let go of it.
    ///
    /// sled locks its log as well, and its threads may hold on to it for a moment after the tree was dropped. Other
    /// processes are kept out by [`FolderLock`], so this does not take long unless something else entirely has the file.
    pub(crate) fn wait_for_log(&self, log: &File) -> Result<(), StoreFailure> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let start = Instant::now();
        loop {
            match flock(log, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return flock(log, FlockOperation::Unlock).map_err(|errno| self.refused("unlocked", &errno.into()));
                }
                Err(Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
                Err(Errno::WOULDBLOCK) => {
                    return Err(self.open_failure(
                        "another program has sled's files open",
                        "stop that program; sled's files are not to be opened by anything but this store",
                    ));
                }
                Err(errno) => return Err(self.refused("locked", &errno.into())),
            }
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

    /// Marks the store as finished. The mark appears whole or not at all.
    pub(crate) fn mark_ready(&self) -> io::Result<()> {
        let unfinished = self.dir.join("READY.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(READY_LINE.as_bytes())?;
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

fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
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
