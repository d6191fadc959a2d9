//! The messages of `lockbox.peer.v1` and those of the core.

use lockbox_authz::UnverifiedEnvelope;
use lockbox_authz::roster::Head;
use lockbox_core::transfer::{self, Settlement};
use lockbox_rpc::api::peer::{self, transfer_request, transfer_response};

/// A message that breaks the protocol. Says no more: it came from another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message")]
pub(crate) struct Unexpected;

/// What the source hears.
pub(crate) enum FromTarget {
    Present(transfer::Present),
    Resume(transfer::Resume),
    StoredChunk(Vec<u8>),
}

/// What the target hears.
pub(crate) enum FromSource {
    Offer(transfer::Offer),
    Chunk(transfer::Chunk),
    Settlement(Settlement),
    Finished,
}

pub(crate) fn from_target(request: peer::TransferRequest) -> Result<FromTarget, Unexpected> {
    match request.message.ok_or(Unexpected)? {
        transfer_request::Message::Present(present) => {
            let head = present.roster_head.ok_or(Unexpected)?;
            Ok(FromTarget::Present(transfer::Present {
                authorization: present.authorization,
                roster_head: Head::from_wire(&head).map_err(|_| Unexpected)?,
            }))
        }
        transfer_request::Message::Resume(resume) => Ok(FromTarget::Resume(transfer::Resume {
            receipts: resume.receipts,
            last: resume.last,
            next_settled_chunk: resume.next_settled_chunk,
            declines: resume.declines,
        })),
        transfer_request::Message::StoredChunk(stored) => Ok(FromTarget::StoredChunk(stored.receipt)),
    }
}

pub(crate) fn from_source(response: peer::TransferResponse) -> Result<FromSource, Unexpected> {
    let envelope = |bytes: &[u8]| UnverifiedEnvelope::from_bytes(bytes).map_err(|_| Unexpected);
    Ok(match response.message.ok_or(Unexpected)? {
        transfer_response::Message::Offer(offer) => FromSource::Offer(transfer::Offer {
            session_offer: envelope(&offer.session_offer)?,
        }),
        transfer_response::Message::Chunk(chunk) => FromSource::Chunk(transfer::Chunk {
            chunk: chunk.chunk,
            ciphertext: chunk.ciphertext,
        }),
        transfer_response::Message::Confirmed(confirmed) => {
            FromSource::Settlement(Settlement::Confirmed { chunk: confirmed.chunk })
        }
        transfer_response::Message::Erased(erased) => FromSource::Settlement(Settlement::Erased {
            erasure_record: envelope(&erased.erasure_record)?,
        }),
        transfer_response::Message::Finished(peer::Finished {}) => FromSource::Finished,
    })
}

pub(crate) fn present(message: transfer::Present) -> peer::TransferRequest {
    request(transfer_request::Message::Present(peer::Present {
        authorization: message.authorization,
        roster_head: Some(message.roster_head.to_wire()),
    }))
}

pub(crate) fn resume(message: transfer::Resume) -> peer::TransferRequest {
    request(transfer_request::Message::Resume(peer::Resume {
        receipts: message.receipts,
        last: message.last,
        next_settled_chunk: message.next_settled_chunk,
        declines: message.declines,
    }))
}

pub(crate) fn stored_chunk(receipt: Vec<u8>) -> peer::TransferRequest {
    request(transfer_request::Message::StoredChunk(peer::StoredChunk { receipt }))
}

pub(crate) fn offer(message: &transfer::Offer) -> peer::TransferResponse {
    response(transfer_response::Message::Offer(peer::Offer {
        session_offer: message.session_offer.to_bytes(),
    }))
}

pub(crate) fn chunk(message: transfer::Chunk) -> peer::TransferResponse {
    response(transfer_response::Message::Chunk(peer::Chunk {
        chunk: message.chunk,
        ciphertext: message.ciphertext,
    }))
}

pub(crate) fn settlement(message: &Settlement) -> peer::TransferResponse {
    response(match message {
        Settlement::Confirmed { chunk } => transfer_response::Message::Confirmed(peer::Confirmed { chunk: *chunk }),
        Settlement::Erased { erasure_record } => transfer_response::Message::Erased(peer::Erased {
            erasure_record: erasure_record.to_bytes(),
        }),
    })
}

pub(crate) fn finished() -> peer::TransferResponse {
    response(transfer_response::Message::Finished(peer::Finished {}))
}

fn request(message: transfer_request::Message) -> peer::TransferRequest {
    peer::TransferRequest { message: Some(message) }
}

fn response(message: transfer_response::Message) -> peer::TransferResponse {
    peer::TransferResponse { message: Some(message) }
}
