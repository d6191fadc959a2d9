//! sled's snapshot files: what must be out of the way before sled opens its files.
//!
//! A snapshot (`snap.` and the number of a log position) saves sled reading its log from the beginning; it holds nothing that
//! the log lacks. sled ends at a damaged one, and takes one that it was writing when it was killed for a finished one.

use std::fs;
use std::io;
use std::path::Path;

const PREFIX: &str = "snap.";

/// What sled appends to a snapshot's name while it writes it.
const UNFINISHED: &str = ".generating";

/// A snapshot ends with the length of its content (8 bytes) and the content's CRC-32 (4 bytes, little-endian).
const LENGTH_BYTES: usize = 8;
const TRAILER_BYTES: usize = LENGTH_BYTES + 4;

/// Removes unfinished snapshots, and renames damaged ones to `damaged-` and their name. sled then reads its whole log. Whether
/// the log has everything is for the layer above to tell: its anchor says how far the store had come.
pub(crate) fn tidy_up(files: &Path) -> io::Result<()> {
    for entry in fs::read_dir(files)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        if name.ends_with(UNFINISHED) {
            fs::remove_file(&path)?;
        } else if !is_whole(&fs::read(&path)?) {
            let aside = path.with_file_name(format!("damaged-{name}"));
            tracing::warn!(
                path = %path.display(),
                set_aside = %aside.display(),
                "a snapshot of sled was damaged; the store is read from its log instead"
            );
            fs::rename(&path, aside)?;
        }
    }
    Ok(())
}

fn is_whole(snapshot: &[u8]) -> bool {
    let Some(end) = snapshot.len().checked_sub(TRAILER_BYTES).filter(|end| *end > 0) else {
        return false;
    };
    crc32fast::hash(&snapshot[..end]).to_le_bytes() == snapshot[end + LENGTH_BYTES..]
}
