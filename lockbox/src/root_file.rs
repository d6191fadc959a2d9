//! The effaceable root in a file that is overwritten in place, so that a new image goes where the old one was, as far as the
//! file system and the medium let it.

use std::io;
use std::path::Path;

use lockbox_store::EffaceableRoot;

use crate::files::FileError;
use crate::two_slots::TwoSlots;

/// The file, open for replacing its image.
#[derive(Debug)]
pub struct RootFile {
    slots: TwoSlots,
}

impl RootFile {
    /// Makes the file without an image.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        TwoSlots::create(path).map(|slots| Self { slots })
    }

    pub fn open(path: &Path) -> Result<Self, FileError> {
        TwoSlots::open(path).map(|slots| Self { slots })
    }

    /// The images that are whole: one or two, which differ if the last replacement was cut off. None if the file is gone.
    pub fn read_images(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        TwoSlots::read_images(path)
    }
}

impl EffaceableRoot for RootFile {
    /// From the moment that one slot is whole with the new image, that is the one that counts (its epoch is later), and then
    /// the old one is overwritten in the other.
    fn replace(&mut self, image: &[u8]) -> io::Result<()> {
        self.slots.write_both(image)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::two_slots::testing::{tear, written};
    use crate::two_slots::{MAX_IMAGE_BYTES, Slot};

    fn with_image(image: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        RootFile::create(&path).unwrap().replace(image).unwrap();
        (dir, path)
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
        let written = written(&new);
        for bytes in 0..=written {
            let (_dir, path) = with_image(&old);
            tear(&path, Slot::Second, &new, bytes);
            let images = RootFile::read_images(&path).unwrap();
            assert!(images.contains(&old), "{bytes} bytes of the second slot");
            assert_eq!(images.contains(&new), bytes == written);

            tear(&path, Slot::Second, &new, written);
            tear(&path, Slot::First, &new, bytes);
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
