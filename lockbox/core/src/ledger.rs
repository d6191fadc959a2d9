//! The ledger: what this lockbox did, or is doing, under each authorization. SPEC section 7.
//!
//! A record at the source means that the authorization is spent. It is written before anything leaves, and removed long after the
//! authorization has expired: see [`crate::expired`].

use lockbox_authz::authorization::{Authorization, Operation};
use lockbox_authz::envelope::UnverifiedEnvelope;
use lockbox_authz::field::FieldError;
use lockbox_authz::id::{AuthorizationId, Hash, KeyId};
use prost::Message;

use crate::lockbox::{Lockbox, LockboxError};
use crate::rows::Row;
use crate::vault::Changes;
use crate::wire::{self, TransferState};

/// An authorization that this lockbox acts on, with its record.
#[derive(Clone)]
pub(crate) struct Entry<R> {
    pub(crate) authorization: Authorization,
    pub(crate) hash: Hash,
    pub(crate) record: R,
}

pub(crate) type Outgoing = Entry<wire::OutgoingRecord>;
pub(crate) type Incoming = Entry<wire::IncomingRecord>;

impl<R> Entry<R> {
    pub(crate) fn id(&self) -> AuthorizationId {
        self.authorization.authorization_id
    }

    pub(crate) fn is_move(&self) -> bool {
        self.authorization.operation == Operation::Move
    }
}

impl Outgoing {
    /// Notes that every chunk below `sent_limit` may be sent.
    pub(crate) fn allow_sending(&mut self, sent_limit: u32) {
        let limit = sent_limit.min(self.record.chunk_count);
        self.record.next_unsent_chunk = self.record.next_unsent_chunk.max(limit);
    }

    /// The first chunk that is not settled. Those from it to the first chunk without a receipt wait for the rest of their
    /// family, and their keys are here.
    pub(crate) fn next_unsettled_chunk(&self) -> u32 {
        self.record.next_chunk.saturating_sub(self.record.waiting_chunks)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.record.state() == TransferState::Open
    }

    pub(crate) fn complete(&mut self, now_ms: i64) {
        self.close(TransferState::Complete, String::new(), now_ms);
    }

    /// Ends the transfer before its time.
    pub(crate) fn end(&mut self, because: &str, now_ms: i64) {
        let because = match self.record.waiting_chunks {
            0 => because.to_owned(),
            _ => {
                format!("{because}, in the midst of a family: all of it stays here, and what arrived stays there, too")
            }
        };
        self.close(TransferState::Ended, because, now_ms);
    }

    fn close(&mut self, state: TransferState, because: String, now_ms: i64) {
        self.record.set_state(state);
        self.record.ended_because = because;
        self.record.ended_at_ms = now_ms;
    }

    pub(crate) fn put(&self, changes: &mut Changes) {
        changes.put(Row::Outgoing(self.id()), self.record.encode_to_vec());
    }
}

impl Incoming {
    pub(crate) fn decline(&mut self, because: &str) {
        self.record.declined = true;
        self.record.ended_because = because.to_owned();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.record.state() == TransferState::Open
    }

    pub(crate) fn end(&mut self, state: TransferState, because: &str, now_ms: i64) {
        self.record.set_state(state);
        self.record.ended_because = because.to_owned();
        self.record.ended_at_ms = now_ms;
    }

    pub(crate) fn put(&self, changes: &mut Changes) {
        changes.put(Row::Incoming(self.id()), self.record.encode_to_vec());
    }
}

impl Lockbox {
    pub(crate) fn outgoing(&self, id: AuthorizationId) -> Result<Option<Outgoing>, LockboxError> {
        let bytes = self.vault.read(Row::Outgoing(id))?;
        bytes.map(|bytes| decode_outgoing(&bytes)).transpose()
    }

    pub(crate) fn incoming(&self, id: AuthorizationId) -> Result<Option<Incoming>, LockboxError> {
        let bytes = self.vault.read(Row::Incoming(id))?;
        bytes.map(|bytes| decode_incoming(&bytes)).transpose()
    }

    /// Outgoing transfers in the order of their ids.
    pub(crate) fn outgoing_after(
        &self,
        after: Option<AuthorizationId>,
        limit: usize,
    ) -> Result<Vec<Outgoing>, LockboxError> {
        let after = after.map(|id| Row::Outgoing(id).key());
        let rows = self.vault.scan(b"o", after.as_deref(), limit)?;
        rows.iter().map(|(_, bytes)| decode_outgoing(bytes)).collect()
    }

    /// Incoming transfers in the order of their ids.
    pub(crate) fn incoming_after(
        &self,
        after: Option<AuthorizationId>,
        limit: usize,
    ) -> Result<Vec<Incoming>, LockboxError> {
        let after = after.map(|id| Row::Incoming(id).key());
        let rows = self.vault.scan(b"t", after.as_deref(), limit)?;
        rows.iter().map(|(_, bytes)| decode_incoming(bytes)).collect()
    }

    pub(crate) fn outgoing_chunk(&self, id: AuthorizationId, chunk: u32) -> Result<wire::OutgoingChunk, LockboxError> {
        let bytes = self.vault.read(Row::OutgoingChunk(id, chunk))?;
        bytes
            .and_then(|bytes| wire::OutgoingChunk::decode(&bytes[..]).ok())
            .ok_or_else(|| damaged("a planned chunk"))
    }

    pub(crate) fn incoming_chunk(&self, id: AuthorizationId, chunk: u32) -> Result<wire::IncomingChunk, LockboxError> {
        let bytes = self.vault.read(Row::IncomingChunk(id, chunk))?;
        bytes
            .and_then(|bytes| wire::IncomingChunk::decode(&bytes[..]).ok())
            .ok_or_else(|| damaged("a stored chunk"))
    }

    /// Frees the keys of the chunks from `first` on: they are no longer part of an open transfer.
    pub(crate) fn release(&self, outgoing: &Outgoing, first: u32, changes: &mut Changes) -> Result<(), LockboxError> {
        for chunk in first..outgoing.record.chunk_count {
            let key_ids = planned_keys(&self.outgoing_chunk(outgoing.id(), chunk)?)?;
            self.unbind(outgoing.id(), &key_ids, changes)?;
        }
        Ok(())
    }

    /// Frees keys of one transfer. A key that was freed before may be bound by another by now, and stays so.
    pub(crate) fn unbind(
        &self,
        id: AuthorizationId,
        key_ids: &[KeyId],
        changes: &mut Changes,
    ) -> Result<(), LockboxError> {
        for key_id in key_ids {
            if self.is_bound(*key_id, id)? {
                changes.remove(Row::OutgoingKey(*key_id));
            }
        }
        Ok(())
    }

    /// Whether it is this transfer that a key is to leave by.
    pub(crate) fn is_bound(&self, key_id: KeyId, id: AuthorizationId) -> Result<bool, LockboxError> {
        let bound_by = self.vault.read(Row::OutgoingKey(key_id))?;
        Ok(bound_by.is_some_and(|mark| mark[..] == id.0))
    }
}

/// The keys of a planned chunk.
pub(crate) fn planned_keys(chunk: &wire::OutgoingChunk) -> Result<Vec<KeyId>, LockboxError> {
    chunk
        .key_ids
        .iter()
        .map(|id| KeyId::from_slice("key_ids", id).map_err(|_| damaged("a planned chunk")))
        .collect()
}

pub(crate) fn damaged(what: &'static str) -> LockboxError {
    LockboxError::Record {
        what,
        source: FieldError::new("record", "is missing or malformed"),
    }
}

pub(crate) fn decode_outgoing(bytes: &[u8]) -> Result<Outgoing, LockboxError> {
    let record = wire::OutgoingRecord::decode(bytes).map_err(|_| damaged("an outgoing transfer"))?;
    let (authorization, hash) = decode_authorization(record.authorization.clone())?;
    Ok(Entry {
        authorization,
        hash,
        record,
    })
}

pub(crate) fn decode_incoming(bytes: &[u8]) -> Result<Incoming, LockboxError> {
    let record = wire::IncomingRecord::decode(bytes).map_err(|_| damaged("an incoming transfer"))?;
    let (authorization, hash) = decode_authorization(record.authorization.clone())?;
    Ok(Entry {
        authorization,
        hash,
        record,
    })
}

/// It was verified before it was stored, and the record that it stands in is authenticated.
fn decode_authorization(
    envelope: Option<lockbox_authz::wire::Envelope>,
) -> Result<(Authorization, Hash), LockboxError> {
    let envelope = envelope.ok_or_else(|| damaged("a transfer's authorization"))?;
    let envelope = UnverifiedEnvelope::from_wire(envelope).map_err(|_| damaged("a transfer's authorization"))?;
    let authorization = envelope
        .unverified_statement()
        .map_err(|_| damaged("a transfer's authorization"))?;
    Ok((authorization, envelope.hash()))
}
