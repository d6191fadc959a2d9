//! The source's end of a transfer. SPEC section 7.
//!
//! | state | accepts | does | next |
//! |---|---|---|---|
//! | [`AwaitPresent`] | Present | checks the authorization; records it, the plan and the session | [`AwaitResume`] |
//! | [`AwaitResume`] | Resume | settles the receipts of earlier sessions | [`AwaitResume`], [`AwaitReceipt`], finished or ended |
//! | [`AwaitReceipt`] | Receipt | settles it: COPY notes it, MOVE erases the chunk's keys, those of a family all at once | [`AwaitReceipt`], finished or ended |
//!
//! A state is consumed by its transition, and the next one is locked in the step until the step is durable. So a chunk can
//! only be sent, and an erasure only be reported, after the ledger has it.

use std::collections::BTreeMap;

use lockbox_authz::envelope::{EnvelopeError, Verified};
use lockbox_authz::id::{AuthorizationId, Hash, KeyId, SessionId};
use lockbox_authz::keys::PublicKey;
use lockbox_authz::transfer::SessionOffer;
use prost::Message;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{Chunk, Offer, Present, Resume, Settlement, chunk_aad, session_info};
use crate::keys::random;
use crate::ledger::{Entry, Outgoing, damaged, planned_keys};
use crate::limits::{CHUNK_WINDOW, RECEIPTS_PER_MESSAGE};
use crate::lockbox::{Lockbox, LockboxError};
use crate::permit::{Decision, Permit, Refusal};
use crate::primitives::{SenderContext, hpke_setup_sender};
use crate::report;
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire::{self, TransferState};

use self::settle::{Settling, say_again};

mod settle;

/// Why the source ends a session.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the receipt is refused: {0}")]
    Receipt(#[from] EnvelopeError),
    #[error("the receipt {0}")]
    ReceiptContent(&'static str),
    #[error("the target's wrapping key can't be used")]
    WrappingKey,
    #[error("the session can't seal another chunk")]
    Sealing,
    /// As after a power cut in the midst of a large revocation, which the broker brings again.
    #[error("key {0} was freed by a revocation whose end is not on record yet")]
    Freed(KeyId),
    #[error(transparent)]
    Local(#[from] LockboxError),
}

impl SourceError {
    /// Whether presenting the same authorization again can't help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_final())
    }
}

/// Awaits the authorization.
pub struct AwaitPresent {
    peer: PublicKey,
}

/// Awaits what the target has of earlier sessions.
pub struct AwaitResume {
    session: Session,
    said_again: bool,
}

/// Awaits receipts, and hands out chunks.
pub struct AwaitReceipt {
    session: Session,
}

/// What comes after a step of the source.
pub enum Next {
    Resume(AwaitResume),
    Receipt(AwaitReceipt),
    /// Everything is settled.
    Finished,
    /// The authorization was revoked, or the target declined the rest: what could be settled is.
    Ended,
}

struct Session {
    authorization_id: AuthorizationId,
    session_id: SessionId,
    context: SenderContext,
    chunk_count: u32,
    /// The next chunk to be sent.
    next_to_send: u32,
    /// Chunks below this one may be sent: the ledger says so durably.
    send_limit: u32,
    /// Hashes of the chunks that were sent and not acknowledged.
    sent: BTreeMap<u32, Hash>,
}

impl AwaitPresent {
    /// `peer` is the identity key that the target proved on the wire.
    pub fn new(peer: PublicKey) -> Self {
        Self { peer }
    }

    pub fn present(
        self,
        lockbox: &mut Lockbox,
        message: &Present,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<(Offer, AwaitResume)>, SourceError> {
        let mut changes = Changes::default();
        let (outgoing, wrapping_key) = match lockbox.check_authorization(message, self.peer, now_ms)? {
            Decision::Open(permit) => {
                lockbox.note_spent(now_ms, &mut changes).map_err(Refusal::from)?;
                record_plan(*permit, now_ms, &mut changes)
            }
            Decision::Resume(outgoing, wrapping_key) => (*outgoing, wrapping_key),
        };
        open_session(lockbox, outgoing, &wrapping_key, changes, rng)
    }
}

impl AwaitResume {
    /// Settles the receipts of earlier sessions, and says again what the target missed.
    pub fn resume(
        mut self,
        lockbox: &mut Lockbox,
        message: &Resume,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<(Vec<Settlement>, Next)>, SourceError> {
        let receipts = message.receipts.len();
        if receipts > RECEIPTS_PER_MESSAGE as usize || (receipts == 0 && !message.last) {
            return Err(SourceError::ReceiptContent(
                "stands in a message with too many of them, or with none",
            ));
        }
        let mut outgoing = self.session.outgoing(lockbox)?;
        let mut settling = Settling::default();
        let mut settlements = Vec::new();
        if !std::mem::replace(&mut self.said_again, true) {
            for chunk in message.next_settled_chunk..outgoing.next_unsettled_chunk() {
                settlements.push(say_again(lockbox, &outgoing, chunk)?);
            }
        }
        for receipt in &message.receipts {
            settlements.extend(
                self.session
                    .settle(lockbox, &mut outgoing, receipt, now_ms, &mut settling)?,
            );
        }
        self.session.next_to_send = outgoing.record.next_chunk;
        let next = if !message.last {
            Next::Resume(self)
        } else if message.declines && outgoing.is_open() && outgoing.record.next_chunk < outgoing.record.chunk_count {
            end(
                lockbox,
                &mut outgoing,
                "the target declined the rest",
                now_ms,
                &mut settling.changes,
            )?
        } else {
            self.session
                .next(lockbox, &mut outgoing, now_ms, &mut settling.changes, |session| {
                    Next::Receipt(AwaitReceipt { session })
                })?
        };
        let mut changes = settling.into_changes(outgoing.id());
        outgoing.put(&mut changes);
        let batches = lockbox.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, (settlements, next)))
    }
}

impl AwaitReceipt {
    /// The next chunk, if one may be sent now.
    pub fn next_chunk(&mut self, lockbox: &Lockbox) -> Result<Option<Chunk>, SourceError> {
        let session = &mut self.session;
        if session.next_to_send >= session.send_limit {
            return Ok(None);
        }
        if lockbox.is_stopped() {
            return Err(Refusal::Alarm.into());
        }
        let outgoing = session.outgoing(lockbox)?;
        if outgoing.record.revoked {
            return Ok(None);
        }
        if !outgoing.is_open() {
            return Err(Refusal::Spent.into());
        }
        let chunk = session.next_to_send;
        let ciphertext = session.seal(lockbox, chunk)?;
        session.next_to_send += 1;
        session.sent.insert(chunk, Hash::of(&ciphertext));
        Ok(Some(Chunk { chunk, ciphertext }))
    }

    /// Notes a receipt, and says what that has settled: its chunk; nothing yet, while the rest of a family is to come; or the
    /// chunks of a family that has arrived.
    pub fn receipt(
        mut self,
        lockbox: &mut Lockbox,
        receipt: &[u8],
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<(Vec<Settlement>, Next)>, SourceError> {
        let mut outgoing = self.session.outgoing(lockbox)?;
        if !self.session.sent.contains_key(&outgoing.record.next_chunk) {
            return Err(SourceError::ReceiptContent(
                "is for a chunk that was not sent in this session",
            ));
        }
        let mut settling = Settling::default();
        let settlements = self
            .session
            .settle(lockbox, &mut outgoing, receipt, now_ms, &mut settling)?;
        let next = self
            .session
            .next(lockbox, &mut outgoing, now_ms, &mut settling.changes, |session| {
                Next::Receipt(Self { session })
            })?;
        let mut changes = settling.into_changes(outgoing.id());
        outgoing.put(&mut changes);
        let batches = lockbox.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, (settlements, next)))
    }

    /// Whether chunks are on their way.
    pub fn awaits_receipts(&self) -> bool {
        !self.session.sent.is_empty()
    }
}

/// Writes the first record of a transfer: from here on the authorization is spent.
fn record_plan(permit: Permit, now_ms: i64, changes: &mut Changes) -> (Outgoing, Box<[u8]>) {
    let statement = permit.authorization.statement().clone();
    let id = statement.authorization_id;
    let chunk_count = u32::try_from(permit.plan.chunks.len()).expect("a plan has at most 65,536 chunks");
    for (chunk, planned) in (0..).zip(&permit.plan.chunks) {
        let record = wire::OutgoingChunk {
            version: 1,
            key_ids: planned.key_ids.iter().map(|id| id.to_vec()).collect(),
            receipt: None,
            erasure_record: None,
            erased_with_next: planned.erased_with_next,
        };
        changes.put(Row::OutgoingChunk(id, chunk), record.encode_to_vec());
        for key_id in &planned.key_ids {
            changes.put(Row::OutgoingKey(*key_id), id.to_vec());
        }
    }
    let record = wire::OutgoingRecord {
        version: 1,
        authorization: Some(permit.authorization.envelope().to_wire()),
        state: TransferState::Open.into(),
        chunk_count,
        key_count: permit.plan.key_count,
        withheld_count: permit.plan.withheld.count,
        withheld: permit.plan.withheld.first,
        opened_at_ms: now_ms,
        ..Default::default()
    };
    let outgoing = Entry {
        hash: permit.authorization.hash(),
        authorization: statement,
        record,
    };
    (outgoing, permit.wrapping_key)
}

fn open_session(
    lockbox: &mut Lockbox,
    mut outgoing: Outgoing,
    wrapping_key: &[u8],
    mut changes: Changes,
    rng: &mut dyn CryptoRng,
) -> Result<Step<(Offer, AwaitResume)>, SourceError> {
    let roster = lockbox.roster.as_ref().ok_or(Refusal::NotAdmitted)?;
    let statement = &outgoing.authorization;
    let session_id = SessionId(random(rng));
    let (source, target) = (statement.source.lockbox_id, statement.target.lockbox_id);
    let info = session_info(outgoing.hash, session_id, source, target);
    let (encapsulated_key, context) =
        hpke_setup_sender(wrapping_key, &info, rng).map_err(|_| SourceError::WrappingKey)?;
    let first_chunk = outgoing.record.next_chunk;
    let offer = SessionOffer {
        cluster_id: statement.cluster_id,
        authorization_hash: outgoing.hash,
        session_id,
        encapsulated_key,
        chunk_count: outgoing.record.chunk_count,
        first_chunk,
        key_count: outgoing.record.key_count,
        withheld_count: outgoing.record.withheld_count,
        roster_head: roster.head(),
    };
    let offer = Verified::sign(offer, &lockbox.identity.identity_key);
    if !outgoing.record.revoked {
        outgoing.allow_sending(first_chunk.saturating_add(CHUNK_WINDOW));
    }
    #[cfg(not(lockbox_mutant = "ledger-not-written"))]
    outgoing.put(&mut changes);
    report::note_outgoing(lockbox, outgoing.id(), &mut changes)?;
    let session = Session {
        authorization_id: outgoing.id(),
        session_id,
        context,
        chunk_count: outgoing.record.chunk_count,
        next_to_send: first_chunk,
        send_limit: outgoing.record.next_unsent_chunk,
        sent: BTreeMap::new(),
    };
    let batches = lockbox.vault.stage(changes, rng).map_err(LockboxError::from)?;
    let offer = Offer {
        session_offer: offer.envelope().clone(),
    };
    let next = AwaitResume {
        session,
        said_again: false,
    };
    Ok(Step::new(batches, (offer, next)))
}

impl Session {
    fn outgoing(&self, lockbox: &Lockbox) -> Result<Outgoing, LockboxError> {
        lockbox
            .outgoing(self.authorization_id)?
            .ok_or_else(|| damaged("an outgoing transfer"))
    }

    /// Wraps the keys of one chunk, in their order.
    fn seal(&mut self, lockbox: &Lockbox, chunk: u32) -> Result<Vec<u8>, SourceError> {
        let planned = planned_keys(&lockbox.outgoing_chunk(self.authorization_id, chunk)?)?;
        let mut payload = wire::ChunkPayload {
            version: 1,
            keys: Vec::with_capacity(planned.len()),
        };
        for key_id in planned {
            // What would be done with a key that is free could part it from what lies on it.
            if !lockbox.is_bound(key_id, self.authorization_id)? {
                return Err(SourceError::Freed(key_id));
            }
            // A key that is part of an open transfer can't be destroyed, so only damage takes it away.
            let key = lockbox.vault.key(key_id).map_err(LockboxError::from)?;
            payload.keys.push(key.ok_or(LockboxError::NoKey(key_id))?.to_wire());
        }
        let plaintext = Zeroizing::new(payload.encode_to_vec());
        self.context
            .seal(plaintext, &chunk_aad(chunk, self.chunk_count))
            .map_err(|_| SourceError::Sealing)
    }

    /// What comes next, once the receipts at hand are settled.
    fn next(
        mut self,
        lockbox: &Lockbox,
        outgoing: &mut Outgoing,
        now_ms: i64,
        changes: &mut Changes,
        go_on: impl FnOnce(Self) -> Next,
    ) -> Result<Next, SourceError> {
        report::note_outgoing(lockbox, self.authorization_id, changes)?;
        let received = outgoing.record.next_chunk;
        if received == outgoing.record.chunk_count {
            if outgoing.is_open() {
                outgoing.complete(now_ms);
            }
            return Ok(Next::Finished);
        }
        if outgoing.record.revoked && self.sent.is_empty() {
            return Ok(end(lockbox, outgoing, "it was revoked", now_ms, changes)?);
        }
        if !outgoing.record.revoked {
            outgoing.allow_sending(received.saturating_add(CHUNK_WINDOW));
        }
        self.send_limit = outgoing.record.next_unsent_chunk;
        Ok(go_on(self))
    }
}

/// Ends a transfer before its time. The target has said what it holds: the rest stays here, and is free.
fn end(
    lockbox: &Lockbox,
    outgoing: &mut Outgoing,
    because: &str,
    now_ms: i64,
    changes: &mut Changes,
) -> Result<Next, LockboxError> {
    lockbox.release(outgoing, outgoing.next_unsettled_chunk(), changes)?;
    outgoing.end(because, now_ms);
    report::note_outgoing(lockbox, outgoing.id(), changes)?;
    Ok(Next::Ended)
}
