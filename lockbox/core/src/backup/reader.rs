//! Reads a backup. Everything in the file is a stranger's until its tag was checked, and bounded before that.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};

use lockbox_authz::field::{self, FieldError};
use lockbox_authz::id::KeyId;
use prost::Message;

use super::header::{Header, frame_aad};
use super::{BackupError, Entry, Held, Info, LENGTH_BYTES, MAGIC, MAX_SEALED_BYTES, nonce};
use crate::limits::{MAX_BACKUP_FRAME_BYTES, MAX_BACKUP_HEADER_BYTES, MAX_CHANGED_KEYS};
use crate::primitives::{TAG_BYTES, aead_open_with_nonce};
use crate::secrets::BackupKey;
use crate::slots::SlotSecret;
use crate::wire;

/// A backup whose key is open.
pub struct Backup {
    header: Header,
    key: BackupKey,
    aad: Vec<u8>,
}

/// What a backup holds, without any secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Keys that were held at its end.
    pub keys: u64,
    /// Keys that were gone by its end.
    pub gone: u64,
    /// Keys that an open MOVE bound to be taken away.
    pub moving: u64,
    /// The moment that it shows, in milliseconds since 1970.
    pub as_of_ms: i64,
    /// The keys that changed while it was made: their first entries don't count.
    pub(super) changed: BTreeSet<KeyId>,
}

/// The entries of a backup, in its order.
pub struct Entries<'a, R> {
    backup: &'a Backup,
    source: R,
    frame: u32,
    last: Option<(u8, KeyId)>,
    entries: u64,
    changed: usize,
    end: Option<wire::BackupEnd>,
}

impl Backup {
    /// Reads the beginning of a backup, and opens its key. `source` is left at the first frame.
    pub fn open(source: &mut impl Read, secret: &SlotSecret) -> Result<Self, BackupError> {
        let beginning = read_beginning(source)?;
        let header = Header::from_bytes(&beginning[MAGIC.len() + LENGTH_BYTES..])?;
        let key = header.open(secret).map_err(BackupError::Slot)?;
        let aad = frame_aad(&beginning);
        Ok(Self { header, key, aad })
    }

    /// Reads the beginning of a backup. Nothing of it is proved.
    pub fn unverified_info(source: &mut impl Read) -> Result<Info, BackupError> {
        let beginning = read_beginning(source)?;
        let header = Header::from_bytes(&beginning[MAGIC.len() + LENGTH_BYTES..])?;
        Ok(header.info)
    }

    pub fn info(&self) -> &Info {
        &self.header.info
    }

    /// The entries of this backup in `source`, which is at the first frame.
    pub fn entries<R: Read>(&self, source: R) -> Entries<'_, R> {
        Entries {
            backup: self,
            source,
            frame: 0,
            last: None,
            entries: 0,
            changed: 0,
            end: None,
        }
    }

    /// The same from a source that is at the beginning of the file, which must be this backup's.
    pub fn entries_from_start<R: Read>(&self, mut source: R) -> Result<Entries<'_, R>, BackupError> {
        let beginning = read_beginning(&mut source)?;
        if frame_aad(&beginning) != self.aad {
            return Err(BackupError::OtherFile);
        }
        Ok(self.entries(source))
    }

    /// Reads the whole backup, and checks every frame and record of it. `source` is at the first frame.
    pub fn contents(&self, source: impl Read) -> Result<Contents, BackupError> {
        let mut entries = self.entries(source);
        let mut contents = Contents {
            keys: 0,
            gone: 0,
            moving: 0,
            as_of_ms: 0,
            changed: BTreeSet::new(),
        };
        while let Some(page) = entries.next_frame()? {
            let changed = page.iter().filter(|entry| entry.changed).map(Entry::key_id);
            contents.changed.extend(changed);
        }
        contents.as_of_ms = entries.end.as_ref().map_or(0, |end| end.as_of_ms);
        Ok(contents)
    }

    /// Calls `visit` with each entry that counts; with what [`contents`](Self::contents) found out before. Gives the same with
    /// its counts filled.
    pub fn visit<E: From<BackupError>>(
        &self,
        source: impl Read,
        contents: &Contents,
        mut visit: impl FnMut(Vec<Entry>) -> Result<(), E>,
    ) -> Result<Contents, E> {
        let mut entries = self.entries_from_start(source)?;
        let mut counted = Contents {
            keys: 0,
            gone: 0,
            moving: 0,
            ..contents.clone()
        };
        while let Some(mut page) = entries.next_frame()? {
            page.retain(|entry| entry.changed || !contents.changed.contains(&entry.key_id()));
            for entry in &page {
                match &entry.what {
                    Held::Key(_) => counted.keys += 1,
                    Held::Gone(_) => counted.gone += 1,
                }
                counted.moving += u64::from(entry.moving.is_some());
            }
            visit(page)?;
        }
        Ok(counted)
    }
}

impl<R: Read> Entries<'_, R> {
    /// The entries of the next frame. `None` after the last one, when the file has ended where it must.
    pub fn next_frame(&mut self) -> Result<Option<Vec<Entry>>, BackupError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let frame = self.frame;
        let sealed = self.read_sealed()?;
        let opened = |is_last| {
            let nonce = nonce(&self.backup.header.nonce_prefix, frame, is_last);
            aead_open_with_nonce(self.backup.key.expose(), &nonce, &sealed, &self.backup.aad)
        };
        let (plaintext, is_last) = match opened(false) {
            Ok(plaintext) => (plaintext, false),
            Err(_) => (opened(true).map_err(|_| BackupError::Frame { frame })?, true),
        };
        let damaged = |source| BackupError::Content { frame, source };
        let (entries, end) = decode_frame(&plaintext).map_err(damaged)?;
        self.check_order(&entries).map_err(damaged)?;
        if end.is_some() != is_last {
            let rule = FieldError::new("end", "must be in the last frame and in no other");
            return Err(damaged(rule));
        }
        if let Some(end) = end {
            if end.entries != self.entries {
                return Err(damaged(FieldError::new("entries", "must be as many as were written")));
            }
            if self.source.read(&mut [0])? != 0 {
                return Err(BackupError::Trailing);
            }
            self.end = Some(end);
        }
        self.frame = frame.checked_add(1).ok_or(BackupError::Frame { frame })?;
        Ok(Some(entries))
    }

    fn read_sealed(&mut self) -> Result<Vec<u8>, BackupError> {
        let frame = self.frame;
        let cut = |error: std::io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => BackupError::CutShort { frame },
            _ => BackupError::Io(error),
        };
        let mut length = [0; LENGTH_BYTES];
        self.source.read_exact(&mut length).map_err(cut)?;
        let length = u32::from_be_bytes(length) as usize;
        if !(TAG_BYTES..=MAX_SEALED_BYTES).contains(&length) {
            return Err(BackupError::Frame { frame });
        }
        let mut sealed = vec![0; length];
        self.source.read_exact(&mut sealed).map_err(cut)?;
        Ok(sealed)
    }

    fn check_order(&mut self, entries: &[Entry]) -> Result<(), FieldError> {
        for entry in entries {
            let place = entry.place();
            if self.last.is_some_and(|last| last >= place) {
                return Err(FieldError::new("entries", "must be in their order, each once"));
            }
            self.last = Some(place);
            self.changed += usize::from(entry.changed);
        }
        if self.changed > MAX_CHANGED_KEYS {
            return Err(FieldError::new("entries", "must have at most 65,536 that changed"));
        }
        self.entries += entries.len() as u64;
        Ok(())
    }
}

/// Decodes and checks the plaintext of one frame: the parser behind the cipher.
pub fn decode_frame(plaintext: &[u8]) -> Result<(Vec<Entry>, Option<wire::BackupEnd>), FieldError> {
    if plaintext.len() > MAX_BACKUP_FRAME_BYTES {
        return Err(FieldError::new("frame", "must have at most 64 KiB"));
    }
    let frame = wire::BackupFrame::decode(plaintext)
        .map_err(|_| FieldError::new("frame", "is not a protobuf message of its type"))?;
    field::version(frame.version)?;
    if let Some(end) = &frame.end {
        field::time_ms("as_of_ms", end.as_of_ms)?;
    }
    let entries = frame.entries.into_iter().map(Entry::from_wire);
    Ok((entries.collect::<Result<_, _>>()?, frame.end))
}

/// Magic, length and header.
fn read_beginning(source: &mut impl Read) -> Result<Vec<u8>, BackupError> {
    let other = |error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => BackupError::OtherFile,
        _ => BackupError::Io(error),
    };
    let mut beginning = vec![0; MAGIC.len() + LENGTH_BYTES];
    source.read_exact(&mut beginning).map_err(other)?;
    let (magic, length) = beginning.split_at(MAGIC.len());
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if magic != MAGIC || length > MAX_BACKUP_HEADER_BYTES {
        return Err(BackupError::OtherFile);
    }
    let start = beginning.len();
    beginning.resize(start + length, 0);
    source.read_exact(&mut beginning[start..]).map_err(other)?;
    Ok(beginning)
}
