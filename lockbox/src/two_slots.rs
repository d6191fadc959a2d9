//! A small file of two slots, which is overwritten in place.
//!
//! The file has two slots of one block each and keeps its size for good: it is never truncated, renamed or grown. A slot is
//! `length (4 bytes, big-endian) ‖ image ‖ SHA-256 of both`, padded with zeros: one that was torn by a power cut is told
//! apart from a whole one. While one slot is written the other is whole, so there is always an image to read.
//!
//! A file that something else cut short is read as if zeros followed: the slot that is whole counts. The next write of both
//! slots makes the file whole again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::files::{FileError, PRIVATE, failed};

/// One block of every common file system, so that writing one slot never rewrites the other.
pub(crate) const SLOT_BYTES: usize = 4_096;
const LENGTH_BYTES: usize = 4;
const HASH_BYTES: usize = 32;
pub(crate) const MAX_IMAGE_BYTES: usize = SLOT_BYTES - LENGTH_BYTES - HASH_BYTES;

/// Bytes of the file.
pub const FILE_BYTES: usize = 2 * SLOT_BYTES;

/// Which half of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    First,
    Second,
}

/// The file, open for replacing its images.
#[derive(Debug)]
pub(crate) struct TwoSlots {
    file: File,
}

impl TwoSlots {
    /// Makes the file with both slots empty.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(path)
            .and_then(|file| {
                file.write_all_at(&[0; FILE_BYTES], 0)?;
                file.sync_all()?;
                Ok(Self { file })
            })
            .map_err(failed("make", path))
    }

    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(|file| Self { file })
            .map_err(failed("open", path))
    }

    /// The images of the slots that are whole, at most two.
    pub(crate) fn read_images(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
        let read = |file: File| Ok(images_in(&read_slots(&file)?));
        File::open(path).and_then(read).map_err(failed("read", path))
    }

    /// Overwrites both slots, one after the other, and first the one that is not whole, if one is not: the other's image is
    /// the only one then.
    pub(crate) fn write_both(&self, image: &[u8]) -> io::Result<()> {
        let first = safe_to_write(&read_slots(&self.file)?);
        self.write(first, image)?;
        self.write(first.other(), image)
    }

    /// Overwrites one slot, durably.
    pub(crate) fn write(&self, slot: Slot, image: &[u8]) -> io::Result<()> {
        let bytes = encode(image).ok_or_else(|| io::Error::other("the image is too large for its slot"))?;
        self.file.write_all_at(&bytes, slot.offset())?;
        self.file.sync_data()
    }
}

impl Slot {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    fn offset(self) -> u64 {
        match self {
            Self::First => 0,
            Self::Second => SLOT_BYTES as u64,
        }
    }
}

fn read_slots(file: &File) -> io::Result<[u8; FILE_BYTES]> {
    let mut slots = [0; FILE_BYTES];
    let mut end = 0;
    while end < FILE_BYTES {
        match file.read_at(&mut slots[end..], end as u64)? {
            0 => break,
            bytes => end += bytes,
        }
    }
    Ok(slots)
}

/// The images of the slots of a file that are whole: none, one, or two that differ, the second slot's first.
pub fn images_in(slots: &[u8; FILE_BYTES]) -> Vec<Vec<u8>> {
    let mut images = Vec::new();
    for slot in slots.as_chunks::<SLOT_BYTES>().0.iter().rev() {
        images.extend(decode(slot).filter(|image| !images.contains(image)));
    }
    images
}

/// A slot without which there is still an image, if there is any.
fn safe_to_write(slots: &[u8; FILE_BYTES]) -> Slot {
    let (slots, _) = slots.as_chunks::<SLOT_BYTES>();
    match (decode(&slots[0]), decode(&slots[1])) {
        (None, Some(_)) => Slot::First,
        _ => Slot::Second,
    }
}

/// `None` if the image is empty or too large.
pub(crate) fn encode(image: &[u8]) -> Option<[u8; SLOT_BYTES]> {
    if image.is_empty() || image.len() > MAX_IMAGE_BYTES {
        return None;
    }
    let mut slot = [0; SLOT_BYTES];
    let end = LENGTH_BYTES + image.len();
    slot[..LENGTH_BYTES].copy_from_slice(&u32::try_from(image.len()).ok()?.to_be_bytes());
    slot[LENGTH_BYTES..end].copy_from_slice(image);
    let hash = Sha256::digest(&slot[..end]);
    slot[end..end + HASH_BYTES].copy_from_slice(&hash);
    Some(slot)
}

/// `None` if the slot is empty or torn.
fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Vec<u8>> {
    let (length, _) = slot.split_first_chunk::<LENGTH_BYTES>()?;
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > MAX_IMAGE_BYTES {
        return None;
    }
    let (hashed, rest) = slot.split_at(LENGTH_BYTES + length);
    let whole = rest[..HASH_BYTES] == Sha256::digest(hashed)[..];
    whole.then(|| hashed[LENGTH_BYTES..].to_vec())
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// What a power cut leaves of writing a slot: the first `bytes` of it.
    pub(crate) fn tear(path: &Path, slot: Slot, image: &[u8], bytes: usize) {
        let mut content = std::fs::read(path).unwrap();
        let offset = usize::try_from(slot.offset()).unwrap();
        content[offset..offset + bytes].copy_from_slice(&encode(image).unwrap()[..bytes]);
        std::fs::write(path, content).unwrap();
    }

    /// Bytes of a slot that are not padding.
    pub(crate) fn written(image: &[u8]) -> usize {
        LENGTH_BYTES + image.len() + HASH_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::testing::tear;
    use super::*;

    /// With one slot torn by a power cut, the other has the only image: a second cut must not take that, too.
    #[test]
    fn the_slot_with_the_only_image_is_written_last() {
        for torn in [Slot::First, Slot::Second] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("slots");
            TwoSlots::create(&path).unwrap().write_both(&[1; 120]).unwrap();
            tear(&path, torn, &[2; 120], 60);
            let file = std::fs::read(&path).unwrap();
            assert_eq!(safe_to_write(file[..].try_into().unwrap()), torn);
        }
    }
}
