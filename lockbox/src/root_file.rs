//! The effaceable root in a file that is overwritten in place.
//!
//! The file has two slots of one block each and keeps its size for good: it is never truncated, renamed or grown, so that
//! a new image goes where the old one was, as far as the file system and the medium let it. A slot is
//! `length (4 bytes, big-endian) ‖ image ‖ SHA-256 of both`, padded with zeros: one that was torn by a power cut is told
//! apart from a whole one. While one slot is written the other is whole, so there is always an image to open with.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use lockbox_store::EffaceableRoot;
use sha2::{Digest, Sha256};

use crate::files::{FileError, PRIVATE, failed};

/// One block of every common file system, so that writing one slot never rewrites the other.
const SLOT_BYTES: usize = 4_096;
const LENGTH_BYTES: usize = 4;
const HASH_BYTES: usize = 32;
const MAX_IMAGE_BYTES: usize = SLOT_BYTES - LENGTH_BYTES - HASH_BYTES;

/// Bytes of the file.
pub const FILE_BYTES: usize = 2 * SLOT_BYTES;

const SLOT_A: u64 = 0;
const SLOT_B: u64 = SLOT_BYTES as u64;

/// The file, open for replacing its image.
#[derive(Debug)]
pub struct RootFile {
    file: File,
}

impl RootFile {
    /// Makes the file with both slots empty.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(path)
            .and_then(|file| {
                file.write_all_at(&[0; FILE_BYTES], SLOT_A)?;
                file.sync_all()?;
                Ok(Self { file })
            })
            .map_err(failed("make", path))
    }

    pub fn open(path: &Path) -> Result<Self, FileError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(|file| Self { file })
            .map_err(failed("open", path))
    }

    /// The images of the slots that are whole: one or two, which differ if the last replacement was cut off.
    pub fn read_images(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
        let read = |file: File| {
            let mut slots = [0; FILE_BYTES];
            file.read_exact_at(&mut slots, SLOT_A)?;
            Ok(images_in(&slots))
        };
        File::open(path).and_then(read).map_err(failed("read", path))
    }

    fn write_slot(&self, slot: &[u8; SLOT_BYTES], offset: u64) -> io::Result<()> {
        self.file.write_all_at(slot, offset)?;
        self.file.sync_data()
    }
}

impl EffaceableRoot for RootFile {
    /// The second slot first. From the moment it is whole the new image is the one that counts (its epoch is later), and
    /// then the old one is overwritten in the first.
    fn replace(&mut self, image: &[u8]) -> io::Result<()> {
        let slot = encode(image).ok_or_else(|| io::Error::other("the root's image is too large for its slot"))?;
        self.write_slot(&slot, SLOT_B)?;
        self.write_slot(&slot, SLOT_A)
    }
}

/// The images of the slots of a file that are whole: none, one, or two that differ, the one that counts first.
pub fn images_in(slots: &[u8; FILE_BYTES]) -> Vec<Vec<u8>> {
    let mut images = Vec::new();
    for slot in slots.as_chunks::<SLOT_BYTES>().0.iter().rev() {
        images.extend(decode(slot).filter(|image| !images.contains(image)));
    }
    images
}

/// `None` if the image is empty or too large.
fn encode(image: &[u8]) -> Option<[u8; SLOT_BYTES]> {
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
mod tests {
    use std::fs;

    use super::*;

    fn with_image(image: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        RootFile::create(&path).unwrap().replace(image).unwrap();
        (dir, path)
    }

    /// What a power cut leaves of a write: the first `bytes` of it.
    fn tear(path: &Path, offset: usize, image: &[u8], bytes: usize) {
        let mut content = fs::read(path).unwrap();
        content[offset..offset + bytes].copy_from_slice(&encode(image).unwrap()[..bytes]);
        fs::write(path, content).unwrap();
    }

    #[test]
    fn a_new_file_has_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        RootFile::create(&path).unwrap();
        assert!(RootFile::read_images(&path).unwrap().is_empty());
    }

    /// Otherwise a destroyed key could be opened with what is left of the old root.
    #[test]
    fn nothing_of_the_old_image_stays() {
        let (_dir, path) = with_image(&[0xA5; 68]);
        RootFile::open(&path).unwrap().replace(&[0x3C; 20]).unwrap();
        assert_eq!(RootFile::read_images(&path).unwrap(), [vec![0x3C; 20]]);
        assert!(!fs::read(&path).unwrap().contains(&0xA5));
    }

    /// At every byte where a write can be cut off, in either slot, one image is whole.
    #[test]
    fn a_torn_slot_leaves_the_other() {
        let (old, new) = (vec![1; 68], vec![2; 68]);
        let written = LENGTH_BYTES + new.len() + HASH_BYTES;
        for bytes in 0..=written {
            let (_dir, path) = with_image(&old);
            tear(&path, SLOT_BYTES, &new, bytes);
            let images = RootFile::read_images(&path).unwrap();
            assert!(images.contains(&old), "{bytes} bytes of the second slot");
            assert_eq!(images.contains(&new), bytes == written);

            tear(&path, SLOT_BYTES, &new, written);
            tear(&path, 0, &new, bytes);
            let images = RootFile::read_images(&path).unwrap();
            assert!(images.contains(&new), "{bytes} bytes of the first slot");
        }
    }

    #[test]
    fn the_file_stays_where_it_is_and_as_large_as_it_is() {
        use std::os::unix::fs::MetadataExt;
        let (_dir, path) = with_image(&[1; 68]);
        let before = fs::metadata(&path).unwrap();
        RootFile::open(&path).unwrap().replace(&[2; 100]).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
    }

    #[test]
    fn rejects_an_image_that_does_not_fit() {
        let (_dir, path) = with_image(&[1; 68]);
        let outcome = RootFile::open(&path).unwrap().replace(&[2; MAX_IMAGE_BYTES + 1]);
        assert!(outcome.is_err());
        assert_eq!(RootFile::read_images(&path).unwrap(), [vec![1; 68]]);
    }
}
