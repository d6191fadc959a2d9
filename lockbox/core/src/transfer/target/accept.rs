//! What the target has been authorized to fetch: it is accepted, begun, declined and ended here. SPEC section 6.4.

use lockbox_authz::authorization::Authorization;
use lockbox_authz::envelope::{UnverifiedEnvelope, Verified};
use lockbox_authz::id::AuthorizationId;
use lockbox_authz::keys::PublicKey;
use lockbox_authz::limits::MAX_ADDRESS_CHARS;
use lockbox_authz::roster::HeadComparison;
use prost::Message;
use rand_core::CryptoRng;

use super::{AwaitOffer, TargetError};
use crate::ledger::{Entry, Incoming};
use crate::lockbox::{Lockbox, LockboxError, Standing};
use crate::report;
use crate::step::Step;
use crate::transfer::Present;
use crate::vault::Changes;
use crate::wire::{self, TransferState};

/// An authorization that the target has, and where its source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenIncoming {
    pub authorization_id: AuthorizationId,
    /// host:port.
    pub source_address: String,
    pub source_key: PublicKey,
}

impl Lockbox {
    /// Takes an authorization whose target this lockbox is. One that it has already is no error.
    pub fn accept_transfer(
        &mut self,
        bytes: &[u8],
        source_address: &str,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<AuthorizationId>, TargetError> {
        lockbox_authz::field::text("source_address", source_address, 1, MAX_ADDRESS_CHARS)?;
        let envelope = UnverifiedEnvelope::from_bytes(bytes).map_err(TargetError::Authorization)?;
        let authorization = self.verify_as_target(&envelope)?;
        let statement = authorization.statement();
        let id = statement.authorization_id;
        let mut changes = Changes::default();
        match self.incoming(id)? {
            Some(incoming) if incoming.hash != authorization.hash() => return Err(TargetError::OtherAuthorization),
            // The source may have moved to another address since.
            Some(mut incoming) if incoming.is_open() => {
                if incoming.record.source_address != source_address {
                    incoming.record.source_address = source_address.to_owned();
                    incoming.put(&mut changes);
                }
            }
            Some(_) => {}
            None => {
                let record = wire::IncomingRecord {
                    version: 1,
                    authorization: Some(envelope.to_wire()),
                    source_address: source_address.to_owned(),
                    state: TransferState::Open.into(),
                    accepted_at_ms: now_ms,
                    ..Default::default()
                };
                let entry = Entry {
                    authorization: statement.clone(),
                    hash: authorization.hash(),
                    record,
                };
                entry.put(&mut changes);
            }
        }
        report::note_incoming(self, id, &mut changes)?;
        let batches = self.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, id))
    }

    /// The incoming transfers that are open, to be carried on.
    pub fn open_incoming(&self) -> Result<Vec<OpenIncoming>, LockboxError> {
        const PAGE: usize = 1_000;
        let mut open = Vec::new();
        let mut after = None;
        loop {
            let page = self.incoming_after(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(open) };
            after = Some(last.id());
            let still_open = page.into_iter().filter(Incoming::is_open);
            open.extend(still_open.map(OpenIncoming::of));
        }
    }

    /// One incoming transfer, if it is open.
    pub fn open_incoming_transfer(&self, id: AuthorizationId) -> Result<Option<OpenIncoming>, LockboxError> {
        let incoming = self.incoming(id)?.filter(Incoming::is_open);
        Ok(incoming.map(OpenIncoming::of))
    }

    /// Begins a session of an open incoming transfer.
    pub fn begin_session(&self, id: AuthorizationId) -> Result<(Present, AwaitOffer), TargetError> {
        if self.is_stopped() {
            return Err(TargetError::Alarm);
        }
        let incoming = self.incoming(id)?.ok_or(TargetError::NoTransfer(id))?;
        if !incoming.is_open() {
            return Err(TargetError::Ended);
        }
        let roster = self.roster.as_ref().ok_or(TargetError::NotAdmitted)?;
        if roster.admitted(&incoming.authorization.source.lockbox_id).is_none() {
            return Err(TargetError::SourceNotAdmitted);
        }
        let envelope = incoming.record.authorization.clone().unwrap_or_default();
        let present = Present {
            authorization: envelope.encode_to_vec(),
            roster_head: roster.head(),
        };
        let state = AwaitOffer { authorization_id: id };
        Ok((present, state))
    }

    /// Takes no further chunk of an incoming transfer. It stays open until the source has heard of it, in the next session,
    /// and has freed the keys that did not arrive.
    pub fn decline_incoming(
        &mut self,
        id: AuthorizationId,
        because: &str,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<()>, TargetError> {
        let mut incoming = self.incoming(id)?.ok_or(TargetError::NoTransfer(id))?;
        let mut changes = Changes::default();
        if incoming.is_open() {
            incoming.decline(because);
            incoming.put(&mut changes);
        }
        let batches = self.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, ()))
    }

    /// Ends an incoming transfer that can't go on: the source refused it, or is no longer a member.
    pub fn end_incoming(
        &mut self,
        id: AuthorizationId,
        refused: bool,
        because: &str,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<()>, TargetError> {
        let mut incoming = self.incoming(id)?.ok_or(TargetError::NoTransfer(id))?;
        let mut changes = Changes::default();
        if incoming.is_open() {
            // Refused is what never began.
            let began = incoming.record.declined || incoming.record.chunk_count != 0;
            let state = if refused && !began {
                TransferState::Refused
            } else {
                TransferState::Ended
            };
            // A transfer that was declined says why, whatever the source answered to that.
            let reason = incoming.record.ended_because.clone();
            let because = if incoming.record.declined { &reason } else { because };
            incoming.end(state, because, now_ms);
            incoming.put(&mut changes);
            report::note_incoming(self, id, &mut changes)?;
        }
        let batches = self.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, ()))
    }

    fn verify_as_target(&self, envelope: &UnverifiedEnvelope) -> Result<Verified<Authorization>, TargetError> {
        let roster = self.roster.as_ref().ok_or(TargetError::NotAdmitted)?;
        if self.standing() != Standing::Admitted {
            return Err(TargetError::NotAdmitted);
        }
        let authorization = Authorization::verify(envelope, roster).map_err(TargetError::Authorization)?;
        let statement = authorization.statement();
        if statement.cluster_id != roster.cluster_id() {
            return Err(TargetError::OtherCluster);
        }
        match roster.compare(statement.roster_head) {
            HeadComparison::Same | HeadComparison::TheyAreBehind => {}
            HeadComparison::TheyAreAhead => return Err(TargetError::RosterBehind),
            HeadComparison::Forked => return Err(TargetError::RosterForked),
        }
        let me = &self.identity;
        if statement.target.lockbox_id != me.lockbox_id || statement.target.identity_key != me.public_key() {
            return Err(TargetError::OtherTarget);
        }
        let mine = self.wrapping_certificate()?;
        if statement.target_wrapping_certificate.hash() != mine.hash() {
            return Err(TargetError::OtherWrappingKey);
        }
        let source = roster.admitted(&statement.source.lockbox_id);
        if source.is_none_or(|source| source.identity_key != statement.source.identity_key) {
            return Err(TargetError::SourceNotAdmitted);
        }
        Ok(authorization)
    }
}

impl OpenIncoming {
    fn of(incoming: Incoming) -> Self {
        Self {
            authorization_id: incoming.id(),
            source_address: incoming.record.source_address,
            source_key: incoming.authorization.source.identity_key,
        }
    }
}
