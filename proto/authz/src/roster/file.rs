//! Roster entries in a file: how they travel where there is no network, and how they wait for further signatures.
//!
//! A file is a sequence of frames, each the length of an envelope (4 bytes, big-endian) and the envelope. There is no
//! header: the envelopes name their own type and version, and two files can be joined by `cat`.

use crate::envelope::{EnvelopeError, UnverifiedEnvelope};
use crate::limits::MAX_ENVELOPE_BYTES;

/// Entries in one file, at most. More than a cluster makes in its life; it bounds what a wrong file can cost.
pub const MAX_FILE_ENTRIES: usize = 1_000_000;

const LENGTH_BYTES: usize = 4;

/// Why a file is not a file of roster entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterFileError {
    #[error("the file ends in the middle of entry {number}")]
    Truncated { number: usize },
    #[error("entry {number} claims {bytes} bytes, more than {MAX_ENVELOPE_BYTES}; this is no file of roster entries")]
    TooLarge { number: usize, bytes: usize },
    #[error("the file has more than {MAX_FILE_ENTRIES} entries")]
    TooMany,
    #[error("entry {number} of the file is refused: {source}")]
    Entry {
        number: usize,
        #[source]
        source: EnvelopeError,
    },
}

/// The bytes of a file with these entries.
pub fn encode_entries<'a>(entries: impl IntoIterator<Item = &'a UnverifiedEnvelope>) -> Vec<u8> {
    let mut file = Vec::new();
    for entry in entries {
        append_frame(&mut file, &entry.to_bytes());
    }
    file
}

/// The entries of a file, in its order. Nothing is verified but their form.
pub fn decode_entries(file: &[u8]) -> Result<Vec<UnverifiedEnvelope>, RosterFileError> {
    frames(file)?
        .into_iter()
        .enumerate()
        .map(|(number, frame)| {
            UnverifiedEnvelope::from_bytes(frame).map_err(|source| RosterFileError::Entry { number, source })
        })
        .collect()
}

/// Appends one frame. The envelope may be one that nobody has signed yet, which is no [`UnverifiedEnvelope`].
pub fn append_frame(file: &mut Vec<u8>, envelope: &[u8]) {
    let length = u32::try_from(envelope.len()).expect("an envelope is smaller than 48 KiB");
    file.extend_from_slice(&length.to_be_bytes());
    file.extend_from_slice(envelope);
}

/// How much of a file one frame takes.
pub fn frame_bytes(frame: &[u8]) -> usize {
    LENGTH_BYTES + frame.len()
}

/// The frames of a file, undecoded.
pub fn frames(file: &[u8]) -> Result<Vec<&[u8]>, RosterFileError> {
    let mut frames = Vec::new();
    let mut rest = file;
    while !rest.is_empty() {
        let number = frames.len();
        if number == MAX_FILE_ENTRIES {
            return Err(RosterFileError::TooMany);
        }
        let (length, after) = rest
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or(RosterFileError::Truncated { number })?;
        let bytes = u32::from_be_bytes(*length) as usize;
        if bytes > MAX_ENVELOPE_BYTES {
            return Err(RosterFileError::TooLarge { number, bytes });
        }
        let (frame, after) = after
            .split_at_checked(bytes)
            .ok_or(RosterFileError::Truncated { number })?;
        frames.push(frame);
        rest = after;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_order() {
        let mut file = Vec::new();
        append_frame(&mut file, b"one");
        append_frame(&mut file, b"");
        append_frame(&mut file, b"three");
        assert_eq!(frames(&file), Ok(vec![&b"one"[..], b"", b"three"]));
    }

    #[test]
    fn rejects_a_file_that_was_cut_short() {
        let mut file = Vec::new();
        append_frame(&mut file, b"one");
        for length in 1..file.len() {
            assert_eq!(frames(&file[..length]), Err(RosterFileError::Truncated { number: 0 }));
        }
    }

    /// A text file's first four characters are a length of about a gigabyte.
    #[test]
    fn rejects_a_file_of_another_kind_before_reading_on() {
        let outcome = frames(b"lbxjoin1.AAAA");
        assert!(matches!(outcome, Err(RosterFileError::TooLarge { number: 0, .. })));
    }
}
