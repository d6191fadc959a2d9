//! Backups, and what is said of the keys in them.

use std::sync::LazyLock;

use lockbox_authz::LockboxId;
use lockbox_authz::evidence::Evidence;
use lockbox_core::backup::{Backup, Making, Writer, decode_frame};
use lockbox_core::slots::{PassphraseCost, SlotSecret};
use lockbox_core::wire::BackupFrame;
use lockbox_store::Batch;
use prost::Message;

use super::stable;
use crate::vectors::{FixedRng, open_changed, read_all};

const MADE_AT_MS: i64 = 1_800_000_000_000;

fn secret() -> SlotSecret {
    SlotSecret::KeyFile(vec![7; 32].into())
}

/// A backup of the lockbox whose store is a vector.
pub(super) static BACKUP: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let vectors = read_all().expect("the folder can be read");
    let image = vectors["store"].bytes("root-image");
    let lockbox = open_changed(&vectors, Batch::new(), image).expect("it is a good store");
    let mut rng = FixedRng::new("backup");
    let info = lockbox.backup_info(MADE_AT_MS, &mut rng).expect("it is a good store");
    let begun = Writer::begin(info, &secret(), PassphraseCost::RECOMMENDED, &mut rng);
    let (writer, mut bytes) = begun.expect("a good key file");
    let mut making = Some(Making::begin(writer, &lockbox));
    while let Some(next) = making {
        let (more, rest) = next.next(&lockbox, MADE_AT_MS).expect("nothing changes meanwhile");
        bytes.extend(more);
        making = rest;
    }
    bytes
});

/// No other bytes are the backup that this key file opens.
pub fn backup_file(bytes: &[u8]) {
    let good = &BACKUP[..];
    let _ = Backup::unverified_info(&mut &bytes[..]);
    let mut source = bytes;
    if let Ok(backup) = Backup::open(&mut source, &secret())
        && backup.contents(source).is_ok()
    {
        assert_eq!(bytes, good, "another backup opens");
    }
}

/// The parser behind the cipher: what holds the key of a backup may write anything.
pub fn backup_frame(bytes: &[u8]) {
    if decode_frame(bytes).is_ok() {
        let frame = BackupFrame::decode(bytes).expect("it was decoded");
        stable(&frame);
    }
}

/// Nobody signed that a file of evidence is whole.
pub fn evidence(bytes: &[u8]) {
    let read = Evidence::read(bytes, None, LockboxId([1; 16]));
    assert!(read.is_err(), "nobody has summed it up");
}
