//! A backup: every key of a lockbox in one sealed file. SPEC sections 9.6 to 9.8.
//!
//! | part | what it is |
//! |---|---|
//! | `lbxback1` | tells the file's kind and version |
//! | length (4, big-endian) ‖ header | `BackupHeader`: of whom, when, and the slots with the backup key |
//! | length (4, big-endian) ‖ frame, once or more | ChaCha20-Poly1305 under the backup key, in the STREAM construction |
//!
//! STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, 2015):
//! a frame's nonce is prefix (7) ‖ number (4, big-endian) ‖ 1 for the last frame, else 0. The whole header is in the aad. So a
//! frame opens at its own place in its own file and nowhere else, and a file that was cut has no last frame.
//!
//! The entries of all frames are in one order: first the keys, then what remains of keys that were gone, each ascending by
//! id; then, ascending by id, what changed meanwhile, which replaces the entry of the same id that came before.

mod header;
mod jobs;
mod make;
mod reader;
mod restore;
mod writer;

use lockbox_authz::field::FieldError;
use lockbox_authz::id::{AuthorizationId, KeyId, LockboxId};

use crate::lifecycle::job::Job;
use crate::primitives::{NONCE_BYTES, TAG_BYTES};
use crate::record::{Key, Tombstone};
use crate::slots::SlotError;
use crate::wire;

pub use header::{BackupId, Info};
pub use jobs::DroppedJob;
pub use make::{MakeError, Making};
pub use reader::{Backup, Contents, Entries, decode_frame};
pub use restore::{NotRestored, Plan, Selected, Why};
pub use writer::Writer;

/// What a backup file begins with.
pub const MAGIC: &[u8; 8] = b"lbxback1";

/// Bytes of a length in the file.
const LENGTH_BYTES: usize = 4;

/// Bytes of a nonce's random part.
const PREFIX_BYTES: usize = 7;

/// Bytes of one sealed frame, at most.
const MAX_SEALED_BYTES: usize = crate::limits::MAX_BACKUP_FRAME_BYTES + TAG_BYTES;

/// A key in a backup, or what remains of one.
pub struct Entry {
    pub what: Held,
    /// Whether it replaces an earlier entry of the same id.
    pub changed: bool,
    /// The open MOVE that bound the key to be taken away, and where to.
    pub moving: Option<(AuthorizationId, LockboxId)>,
    /// The open job that makes the key.
    pub job: Option<Job>,
}

/// What an entry is about.
pub enum Held {
    Key(Box<Key>),
    Gone(Tombstone),
}

/// Why a backup is refused.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("the backup can't be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("this is no backup of a lockbox, or one of a version that this software does not know")]
    OtherFile,
    #[error("the backup is damaged: its header {0}")]
    Header(FieldError),
    #[error("the backup does not open: {0}")]
    Slot(SlotError),
    #[error("the backup is cut short: it ends in frame {frame}")]
    CutShort { frame: u32 },
    #[error("the backup is damaged, or put together from several: frame {frame} does not open")]
    Frame { frame: u32 },
    #[error("the backup is damaged: something follows its last frame")]
    Trailing,
    #[error("the backup is damaged: frame {frame}: {source}")]
    Content {
        frame: u32,
        #[source]
        source: FieldError,
    },
}

impl Entry {
    pub fn key_id(&self) -> KeyId {
        match &self.what {
            Held::Key(key) => key.info.key_id,
            Held::Gone(tombstone) => tombstone.key_id,
        }
    }

    /// Where it stands among all entries.
    fn place(&self) -> (u8, KeyId) {
        let section = match (&self.what, self.changed) {
            (Held::Key(_), false) => 0,
            (Held::Gone(_), false) => 1,
            (_, true) => 2,
        };
        (section, self.key_id())
    }

    fn from_wire(wire: wire::BackupEntry) -> Result<Self, FieldError> {
        let moving = match (&wire.moving[..], &wire.moving_to[..]) {
            ([], []) => None,
            (id, to) => Some((
                AuthorizationId::from_slice("moving", id)?,
                LockboxId::from_slice("moving_to", to)?,
            )),
        };
        let what = match wire.what {
            Some(wire::backup_entry::What::Key(record)) => Held::Key(Box::new(Key::from_wire(record)?)),
            Some(wire::backup_entry::What::Tombstone(record)) => Held::Gone(Tombstone::from_wire(record)?),
            None => return Err(FieldError::new("entry", "must have a key or a tombstone")),
        };
        if moving.is_some() && matches!(what, Held::Gone(_)) {
            return Err(FieldError::new("moving", "must be empty in a tombstone"));
        }
        let job = match (&what, wire.job) {
            (_, None) => None,
            (Held::Key(key), Some(record)) => Some(jobs::from_wire(record, key.info.key_id)?),
            (Held::Gone(_), Some(_)) => return Err(FieldError::new("job", "must be empty in a tombstone")),
        };
        Ok(Self {
            what,
            changed: wire.changed,
            moving,
            job,
        })
    }

    fn to_wire(&self) -> wire::BackupEntry {
        wire::BackupEntry {
            what: Some(match &self.what {
                Held::Key(key) => wire::backup_entry::What::Key(key.to_wire()),
                Held::Gone(tombstone) => wire::backup_entry::What::Tombstone(tombstone.to_wire()),
            }),
            changed: self.changed,
            moving: self.moving.map(|(id, _)| id.to_vec()).unwrap_or_default(),
            moving_to: self.moving.map(|(_, to)| to.to_vec()).unwrap_or_default(),
            job: self.job.as_ref().map(|job| job.record.clone()),
        }
    }
}

/// The nonce of a frame.
fn nonce(prefix: &[u8; PREFIX_BYTES], frame: u32, is_last: bool) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..PREFIX_BYTES].copy_from_slice(prefix);
    nonce[PREFIX_BYTES..NONCE_BYTES - 1].copy_from_slice(&frame.to_be_bytes());
    nonce[NONCE_BYTES - 1] = u8::from(is_last);
    nonce
}

#[cfg(test)]
mod tests;
