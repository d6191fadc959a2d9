//! The anchor in a file beside the store.

use std::io;
use std::path::Path;

use lockbox_store::Anchor;

use crate::files::FileError;
use crate::two_slots::{Slot, TwoSlots};

/// The file, open for moving the anchor.
#[derive(Debug)]
pub struct AnchorFile {
    slots: TwoSlots,
    /// The slot whose image is the older one; `None` until this process knows, as an image does not show its age.
    older: Option<Slot>,
}

impl AnchorFile {
    /// Makes the file without an image.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        TwoSlots::create(path).map(|slots| Self { slots, older: None })
    }

    pub fn open(path: &Path) -> Result<Self, FileError> {
        TwoSlots::open(path).map(|slots| Self { slots, older: None })
    }

    /// The images that are whole, none if the file is gone. The vault knows which of them is the later one.
    pub fn read_images(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        TwoSlots::read_images(path)
    }
}

impl Anchor for AnchorFile {
    /// One write and one sync; the first time both slots, as either may be the newer one, and it must not be lost while it is
    /// the only one.
    fn replace(&mut self, image: &[u8]) -> io::Result<()> {
        match self.older {
            Some(slot) => self.slots.write(slot, image)?,
            None => self.slots.write_both(image)?,
        }
        self.older = Some(self.older.map_or(Slot::First, Slot::other));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::two_slots::testing::{tear, written};

    /// At every byte where a write can be cut off, the anchor before it is whole: without it the store would not open.
    #[test]
    fn a_torn_slot_leaves_the_anchor_before() {
        for bytes in 0..written(&[3; 120]) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("anchor");
            AnchorFile::create(&path).unwrap();
            let mut file = AnchorFile::open(&path).unwrap();
            file.replace(&[1; 120]).unwrap();
            file.replace(&[2; 120]).unwrap();
            let third = file.older.unwrap();
            tear(&path, third, &[3; 120], bytes);
            assert!(
                AnchorFile::read_images(&path).unwrap().contains(&vec![2; 120]),
                "{bytes} bytes"
            );
        }
    }

    /// The newest image may be in either slot when the file is opened again.
    #[test]
    fn a_file_that_was_opened_again_does_not_risk_its_newest_image() {
        for moves in [1, 2, 3] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("anchor");
            let mut file = AnchorFile::create(&path).unwrap();
            for number in 1..=moves {
                file.replace(&[number; 120]).unwrap();
            }
            let mut file = AnchorFile::open(&path).unwrap();
            file.replace(&[9; 120]).unwrap();
            assert_eq!(AnchorFile::read_images(&path).unwrap(), [vec![9; 120]]);
        }
    }
}
