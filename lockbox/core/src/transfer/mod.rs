//! The two ends of a transfer. SPEC section 7.
//!
//! The messages are those of `lockbox.peer.v1`, without their transport.

pub mod source;
pub mod target;

use lockbox_authz::envelope::UnverifiedEnvelope;
use lockbox_authz::id::{Hash, LockboxId, SessionId};
use lockbox_authz::roster::Head;

use crate::labels;

/// Target to source, first.
#[derive(Clone, Debug)]
pub struct Present {
    /// A serialized envelope of an authorization.
    pub authorization: Vec<u8>,
    /// The target's roster.
    pub roster_head: Head,
}

/// Source to target, first.
#[derive(Clone, Debug)]
pub struct Offer {
    pub session_offer: UnverifiedEnvelope,
}

/// Target to source, second: the receipts that it holds from the offer's first chunk on.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// Serialized envelopes.
    pub receipts: Vec<Vec<u8>>,
    pub last: bool,
    pub next_settled_chunk: u32,
    /// The target takes no further chunk.
    pub declines: bool,
}

/// Source to target: wrapped keys.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub chunk: u32,
    pub ciphertext: Vec<u8>,
}

/// Source to target: what the source did about a receipt.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// It has noted it. COPY only.
    Confirmed { chunk: u32 },
    /// It has erased the chunk's keys. MOVE only.
    Erased { erasure_record: UnverifiedEnvelope },
}

/// HPKE `info` of a session: it ties the context to the authorization, the session and both ends.
fn session_info(authorization: Hash, session_id: SessionId, source: LockboxId, target: LockboxId) -> Vec<u8> {
    [
        labels::TRANSFER_SESSION,
        &authorization.0,
        &session_id.0,
        &source.0,
        &target.0,
    ]
    .concat()
}

/// aad of a chunk: it ties the ciphertext to its place. The order within a session is tied by HPKE's sequence number.
fn chunk_aad(chunk: u32, chunk_count: u32) -> Vec<u8> {
    [labels::TRANSFER_CHUNK, &chunk.to_be_bytes(), &chunk_count.to_be_bytes()].concat()
}

#[cfg(test)]
pub(crate) mod tests;
