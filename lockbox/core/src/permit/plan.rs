//! In which chunks keys travel. SPEC section 7.4.

use lockbox_authz::id::KeyId;

use super::Refusal;
use super::bonds::{Group, bytes_of};
use crate::limits::{MAX_CHUNK_BYTES, MAX_CHUNKS, MAX_WITHHELD_TOLD};
use crate::record::Key;
use crate::wire;

/// Which keys travel in which chunk.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) chunks: Vec<PlannedChunk>,
    pub(crate) key_count: u64,
    pub(crate) withheld: Withheld,
    bytes_in_last: usize,
}

/// The selected keys that stay here.
#[derive(Default)]
pub(crate) struct Withheld {
    pub(crate) count: u64,
    /// The first [`MAX_WITHHELD_TOLD`] of them, with the reason of each.
    pub(crate) first: Vec<wire::WithheldKey>,
}

impl Withheld {
    pub(super) fn add(&mut self, key_id: KeyId, why: &Refusal) {
        self.count += 1;
        if self.first.len() < MAX_WITHHELD_TOLD {
            let key_id = key_id.to_vec();
            let reason = why.requester_text();
            self.first.push(wire::WithheldKey { key_id, reason });
        }
    }
}

/// The keys of one chunk.
#[derive(Default)]
pub(crate) struct PlannedChunk {
    pub(crate) key_ids: Vec<KeyId>,
    /// Whether a family goes on in the next chunk: a MOVE erases the keys of both in one step.
    pub(crate) erased_with_next: bool,
}

impl Plan {
    /// Puts a key into the last chunk, or into a new one if it does not fit.
    pub(super) fn add(&mut self, key: &Key, most_keys: usize) -> Result<(), Refusal> {
        self.put(&[key.info.key_id], bytes_of(key), most_keys)
    }

    /// Puts keys that travel as one. What does not fit into one chunk begins in a new one, so that nothing else waits for it.
    pub(super) fn put_family(&mut self, parts: &[Group], most_keys: usize) -> Result<(), Refusal> {
        if parts.len() > 1 {
            self.bytes_in_last = MAX_CHUNK_BYTES;
        }
        for (number, part) in (1..).zip(parts) {
            self.put(&part.key_ids(), part.bytes(), most_keys)?;
            let chunk = self.chunks.last_mut().expect("it was put there");
            chunk.erased_with_next = number < parts.len();
        }
        Ok(())
    }

    /// Puts keys into one chunk.
    fn put(&mut self, key_ids: &[KeyId], bytes: usize, most_keys: usize) -> Result<(), Refusal> {
        let fits = self.chunks.last().is_some_and(|chunk| {
            chunk.key_ids.len() + key_ids.len() <= most_keys && self.bytes_in_last + bytes <= MAX_CHUNK_BYTES - 8
        });
        if !fits {
            if self.chunks.len() == MAX_CHUNKS as usize {
                return Err(Refusal::TooManyChunks);
            }
            self.chunks.push(PlannedChunk::default());
            self.bytes_in_last = 0;
        }
        let chunk = self.chunks.last_mut().expect("one was pushed if there was none");
        chunk.key_ids.extend(key_ids);
        self.bytes_in_last += bytes;
        self.key_count += key_ids.len() as u64;
        Ok(())
    }
}
