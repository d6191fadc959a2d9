//! Writes a backup: entries in, sealed frames out.

use prost::Message;
use prost::encoding::message;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::header::{Header, frame_aad};
use super::{Entry, Info, LENGTH_BYTES, PREFIX_BYTES, nonce};
use crate::limits::MAX_BACKUP_FRAME_BYTES;
use crate::primitives::aead_seal_with_nonce;
use crate::secrets::BackupKey;
use crate::slots::{PassphraseCost, SlotError, SlotSecret};
use crate::wire;

/// The number of `BackupFrame.entries`.
const ENTRIES: u32 = 2;

/// Writes one backup. It decides nothing: see [`super::Making`].
pub struct Writer {
    key: BackupKey,
    nonce_prefix: [u8; PREFIX_BYTES],
    aad: Vec<u8>,
    frame: u32,
    /// The plaintext of the frame that is being filled. It never grows beyond what it is made with, so no copy stays behind.
    plaintext: Zeroizing<Vec<u8>>,
    entries: u64,
}

impl Writer {
    /// A new backup key and its slot. The bytes are what the file begins with.
    pub fn begin(
        info: Info,
        secret: &SlotSecret,
        cost: PassphraseCost,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Vec<u8>), SlotError> {
        let (header, key) = Header::new(info, secret, cost, rng)?;
        let beginning = header.to_bytes();
        let writer = Self {
            key,
            nonce_prefix: header.nonce_prefix,
            aad: frame_aad(&beginning),
            frame: 0,
            plaintext: empty_frame(),
            entries: 0,
        };
        Ok((writer, beginning))
    }

    /// Adds an entry. Gives the frame that is full with those before it, if there is one.
    pub(super) fn push(&mut self, entry: &Entry) -> Vec<u8> {
        let entry = entry.to_wire();
        let bytes = message::encoded_len(ENTRIES, &entry);
        let mut full = Vec::new();
        if self.plaintext.len() + bytes > MAX_BACKUP_FRAME_BYTES {
            full = self.seal(false);
        }
        message::encode(ENTRIES, &entry, &mut *self.plaintext);
        self.entries += 1;
        full
    }

    /// Seals what is left and the end: at most two frames.
    pub(super) fn finish(mut self, as_of_ms: i64) -> Vec<u8> {
        let mut rest = if self.plaintext.len() > empty_frame().len() {
            self.seal(false)
        } else {
            Vec::new()
        };
        let end = wire::BackupFrame {
            version: 1,
            entries: Vec::new(),
            end: Some(wire::BackupEnd {
                entries: self.entries,
                as_of_ms,
            }),
        };
        self.plaintext = Zeroizing::new(end.encode_to_vec());
        rest.extend(self.seal(true));
        rest
    }

    fn seal(&mut self, is_last: bool) -> Vec<u8> {
        let nonce = nonce(&self.nonce_prefix, self.frame, is_last);
        let plaintext = std::mem::replace(&mut self.plaintext, empty_frame());
        let sealed = aead_seal_with_nonce(self.key.expose(), &nonce, plaintext, &self.aad);
        self.frame = self.frame.checked_add(1).expect("4 billion frames are 256 TiB");
        let length = u32::try_from(sealed.len()).expect("a frame is far below 4 GiB");
        let mut framed = Vec::with_capacity(LENGTH_BYTES + sealed.len());
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&sealed);
        framed
    }
}

/// A `BackupFrame` with its version and nothing else yet.
fn empty_frame() -> Zeroizing<Vec<u8>> {
    // A store's value is at most 64 KiB with what seals it, so an entry always fits where nothing else stands.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(MAX_BACKUP_FRAME_BYTES + 1));
    prost::encoding::uint32::encode(1, &1, &mut *plaintext);
    plaintext
}
