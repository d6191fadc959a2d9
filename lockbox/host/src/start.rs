//! What a daemon looks at before it starts, and `init` before it makes anything.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::statvfs;
use rustix::process::geteuid;

const MIB: u64 = 1024 * 1024;

/// Bytes of a Unix socket's path at most: `sun_path` of unix(7), less the NUL at its end.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Refuses whatever is no regular file: reading a FIFO or a terminal could wait without end.
///
/// # Errors
///
/// Says what it is; or why it can't be looked at.
pub fn require_regular(path: &Path) -> io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::other(format!("it is {what}, and must be a regular file")))
}

/// Reads a text file, which must be a regular one.
///
/// # Errors
///
/// See [`require_regular`]; also if it can't be read or is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    require_regular(path)?;
    fs::read_to_string(path)
}

/// Says what is wrong with the path of a Unix socket, if the kernel would not take it.
#[must_use]
pub fn socket_path_problem(path: &Path) -> Option<String> {
    let bytes = path.as_os_str().len();
    let problem = || format!("the path has {bytes} bytes, and a Unix socket's has at most {MAX_SOCKET_PATH_BYTES}");
    (bytes > MAX_SOCKET_PATH_BYTES).then(problem)
}

/// Warns of a daemon that runs as root, and of a folder that belongs to another user than the daemon's.
pub fn warn_of_user(folder: &Path) {
    let user = geteuid();
    if user.is_root() {
        tracing::warn!(
            "the daemon runs as root; run it as a user of its own, as the units in deploy/systemd do, so that a fault in it \
             can't change the rest of the machine"
        );
    }
    if let Some(owner) = other_owner(folder) {
        tracing::warn!(
            folder = %folder.display(),
            owner,
            "the folder belongs to another user than the daemon's; that user may be unable to use files that are made in it \
             now; start the daemon as its owner"
        );
    }
}

/// The owner of a file, if that is not the user of this process.
#[must_use]
pub fn other_owner(path: &Path) -> Option<u32> {
    let owner = fs::metadata(path).ok()?.uid();
    (owner != geteuid().as_raw()).then_some(owner)
}

/// Says what is missing, if the file system of `folder` has less room than a new store needs.
#[must_use]
pub fn missing_room(folder: &Path, needed_bytes: u64) -> Option<String> {
    // Where it can't be asked, making the store says what is wrong.
    let disk = statvfs(folder).ok()?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    let missing = || {
        format!(
            "{}: a new store needs {} of free disk space, and {} are left; free some, or choose a folder on another disk",
            folder.display(),
            mebibytes(needed_bytes),
            mebibytes(free_bytes)
        )
    };
    (free_bytes < needed_bytes).then(missing)
}

/// A size for people.
#[must_use]
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / MIB)
}
