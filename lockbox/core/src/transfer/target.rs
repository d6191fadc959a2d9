//! The target's end of a transfer. SPEC section 7.
//!
//! | state | accepts | does | next |
//! |---|---|---|---|
//! | ledger | an authorization, by [`Lockbox::accept_transfer`] | records it | [`AwaitOffer`] |
//! | [`AwaitOffer`] | Offer | verifies the source's signature, opens the HPKE context | [`AwaitChunk`] |
//! | [`AwaitChunk`] | Chunk | opens it, stores its keys, signs a receipt | [`AwaitChunk`] |
//! | [`AwaitChunk`] | Confirmed, Erased | records that the source has settled the chunk | [`AwaitChunk`] |
//! | [`AwaitChunk`] | Finished | records that the transfer is complete | |
//!
//! A receipt is locked in its step until the keys that it speaks of are durable.

use lockbox_authz::envelope::{EnvelopeError, UnverifiedEnvelope, Verified};
use lockbox_authz::field::FieldError;
use lockbox_authz::id::{AuthorizationId, Hash, KeyId, SessionId};
use lockbox_authz::roster::HeadComparison;
use lockbox_authz::transfer::{ErasureRecord, Receipt, SessionOffer};
use prost::Message;
use rand_core::CryptoRng;

use super::{Chunk, Offer, Resume, Settlement, chunk_aad, session_info};
use crate::ledger::{Incoming, damaged};
use crate::lifecycle::family::index;
use crate::limits::{MAX_CHUNK_BYTES, MAX_CHUNK_KEYS, RECEIPTS_PER_MESSAGE};
use crate::lockbox::{AlarmKind, Lockbox, LockboxError};
use crate::primitives::{self, ReceiverContext, hpke_setup_receiver};
use crate::record::Key;
use crate::report;
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire::{self, TransferState};

pub use self::accept::OpenIncoming;
pub(crate) use self::arrivals::check_layers;
use self::arrivals::{check_selection, take_key};

const SHARED_NAME: &str = "a key arrived by transfer with a name that another key here has: `lockbox key list` marks the keys \
                           that only their ids mean";

mod accept;
mod arrivals;

/// What the requester is told of an alarm.
pub const ALARM_AT_TARGET: &str = "an alarm at the target stops its transfers until its operator clears it";

/// Why the target refuses an authorization, or ends a session.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("an alarm stops transfers until an operator clears it")]
    Alarm,
    #[error("this lockbox is not an admitted member of a cluster")]
    NotAdmitted,
    #[error("the authorization is refused: {0}")]
    Authorization(EnvelopeError),
    #[error("the authorization is for another cluster")]
    OtherCluster,
    #[error("the authorization is for another target")]
    OtherTarget,
    #[error("the authorization is for a wrapping key that this lockbox does not have")]
    OtherWrappingKey,
    #[error("the authorization's source is not an admitted member of the cluster")]
    SourceNotAdmitted,
    #[error("the authorization speaks of roster entries that are not known here yet")]
    RosterBehind,
    #[error("the authorization speaks of another roster")]
    RosterForked,
    #[error("another authorization has this id")]
    OtherAuthorization,
    #[error("there is no transfer {0}")]
    NoTransfer(AuthorizationId),
    #[error("the transfer has ended")]
    Ended,
    #[error("{0}")]
    Field(#[from] FieldError),
    #[error("the source's message is refused: {0}")]
    Envelope(EnvelopeError),
    #[error("the source's message {0}")]
    Content(&'static str),
    #[error("chunk {0} does not open")]
    DoesNotOpen(u32),
    #[error("key {0} is here already, with other material")]
    Conflict(KeyId),
    #[error("key {0} is being moved away from here: that transfer has to end first")]
    OnItsWayOut(KeyId),
    #[error("key {0} was destroyed here, and a destroyed key does not come back")]
    WasDestroyed(KeyId),
    #[error("key {key} lies on key {ancestor}, which is not here and did not come with it")]
    MissingAncestor { key: KeyId, ancestor: KeyId },
    #[error(transparent)]
    Local(#[from] LockboxError),
}

impl TargetError {
    /// Whether the keys that came can't be taken, so that the source has to be told to keep the rest: see
    /// [`Lockbox::decline_incoming`].
    pub fn declines(&self) -> bool {
        matches!(
            self,
            Self::Conflict(_)
                | Self::OnItsWayOut(_)
                | Self::WasDestroyed(_)
                | Self::MissingAncestor { .. }
                | Self::Field(_)
        )
    }

    /// Whether trying again with the same authorization can't help.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Alarm
                | Self::RosterBehind
                | Self::Local(_)
                | Self::DoesNotOpen(_)
                | Self::Envelope(_)
                | Self::Content(_)
        )
    }
}

/// Awaits the source's answer to Present.
pub struct AwaitOffer {
    authorization_id: AuthorizationId,
}

/// Awaits chunks and settlements.
pub struct AwaitChunk {
    authorization_id: AuthorizationId,
    session_id: SessionId,
    context: ReceiverContext,
    chunk_count: u32,
}

impl AwaitOffer {
    /// Verifies the offer and opens the session. The messages are to be sent in order.
    pub fn offer(
        self,
        lockbox: &mut Lockbox,
        message: &Offer,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<(Vec<Resume>, AwaitChunk)>, TargetError> {
        let mut incoming = open_incoming(lockbox, self.authorization_id)?;
        let source = incoming.authorization.source;
        let offer = message
            .session_offer
            .verify::<SessionOffer>(&[source.identity_key], 1)
            .map_err(TargetError::Envelope)?;
        let offer = offer.statement();
        check_offer(lockbox, &incoming, offer)?;
        let info = session_info(
            incoming.hash,
            offer.session_id,
            source.lockbox_id,
            lockbox.identity.lockbox_id,
        );
        let context = hpke_setup_receiver(&lockbox.identity.wrapping_seed, &offer.encapsulated_key, &info)
            .map_err(|primitives::DoesNotOpen| TargetError::Content("has an encapsulated key that does not open"))?;
        let resume = receipts_from(lockbox, &incoming, offer.first_chunk)?;
        incoming.record.chunk_count = offer.chunk_count;
        incoming.record.key_count = offer.key_count;
        incoming.record.withheld_count = offer.withheld_count;
        let mut changes = Changes::default();
        incoming.put(&mut changes);
        report::note_incoming(lockbox, incoming.id(), &mut changes)?;
        let batches = lockbox.vault.stage(changes, rng).map_err(LockboxError::from)?;
        let next = AwaitChunk {
            authorization_id: self.authorization_id,
            session_id: offer.session_id,
            context,
            chunk_count: offer.chunk_count,
        };
        Ok(Step::new(batches, (resume, next)))
    }
}

impl AwaitChunk {
    /// Opens a chunk and stores its keys. The message is the receipt, a serialized envelope.
    pub fn chunk(
        mut self,
        lockbox: &mut Lockbox,
        message: &Chunk,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<(Vec<u8>, Self)>, TargetError> {
        let mut incoming = open_incoming(lockbox, self.authorization_id)?;
        if incoming.record.declined {
            return Err(TargetError::Content("has a chunk after the rest was declined"));
        }
        if message.chunk != incoming.record.next_chunk || message.chunk >= self.chunk_count {
            return Err(TargetError::Content("has a chunk that is not due"));
        }
        let mut keys = self.open_chunk(message)?;
        check_selection(&incoming, &keys)?;
        check_layers(lockbox, &keys)?;
        let key_ids: Vec<KeyId> = keys.iter().map(|key| key.info.key_id).collect();
        let mut changes = Changes::default();
        for compromised in lockbox.spread_compromise(&mut keys)? {
            changes.put_key(compromised);
        }
        let mut shares_name = false;
        for key in keys {
            if let Some(key) = take_key(lockbox, key)? {
                changes.remove(Row::Tombstone(key.info.key_id));
                shares_name |= lockbox.other_key_named(&key.info.name, key.info.key_id)?.is_some();
                index(&key.info, &lockbox.vault, &mut changes);
                #[cfg(not(lockbox_mutant = "keys-not-written"))]
                changes.put_key(key);
            }
        }
        let warning = shares_name.then(|| {
            let what = SHARED_NAME.to_owned();
            lockbox.note_alarm(AlarmKind::Warn, what, &[], now_ms, &mut changes)
        });
        incoming.record.keys_done += key_ids.len() as u64;
        let receipt = Receipt {
            cluster_id: incoming.authorization.cluster_id,
            authorization_hash: incoming.hash,
            session_id: self.session_id,
            chunk: message.chunk,
            chunk_hash: Hash::of(&message.ciphertext),
            key_ids,
            stored_at_ms: now_ms,
        };
        let receipt = Verified::sign(receipt, &lockbox.identity.identity_key);
        let record = wire::IncomingChunk {
            version: 1,
            receipt: Some(receipt.envelope().to_wire()),
            erasure_record: None,
        };
        changes.put(
            Row::IncomingChunk(self.authorization_id, message.chunk),
            record.encode_to_vec(),
        );
        incoming.record.next_chunk += 1;
        incoming.put(&mut changes);
        report::note_incoming(lockbox, self.authorization_id, &mut changes)?;
        let batches = lockbox.vault.stage(changes, rng).map_err(LockboxError::from)?;
        lockbox.alarms.extend(warning.flatten());
        Ok(Step::new(batches, (receipt.envelope().to_bytes(), self)))
    }

    /// Records what the source did about a receipt. One that is known already is passed over.
    pub fn settled(
        self,
        lockbox: &mut Lockbox,
        message: &Settlement,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<Self>, TargetError> {
        let mut incoming = open_incoming(lockbox, self.authorization_id)?;
        let chunk = incoming.record.next_settled_chunk;
        if chunk >= incoming.record.next_chunk {
            return Err(TargetError::Content("settles a chunk that is not stored here"));
        }
        let mut record = lockbox.incoming_chunk(self.authorization_id, chunk)?;
        let mut changes = Changes::default();
        match message {
            Settlement::Confirmed { chunk: confirmed } if !incoming.is_move() && *confirmed == chunk => {}
            Settlement::Erased { erasure_record } if incoming.is_move() => {
                check_erasure(&incoming, &record, erasure_record, chunk)?;
                record.erasure_record = Some(erasure_record.to_wire());
                changes.put(Row::IncomingChunk(self.authorization_id, chunk), record.encode_to_vec());
            }
            Settlement::Confirmed { .. } | Settlement::Erased { .. } => {
                return Err(TargetError::Content("settles a chunk that is not due"));
            }
        }
        incoming.record.next_settled_chunk += 1;
        incoming.put(&mut changes);
        report::note_incoming(lockbox, self.authorization_id, &mut changes)?;
        let batches = lockbox.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, self))
    }

    /// Records that the transfer is complete.
    pub fn finished(
        self,
        lockbox: &mut Lockbox,
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<()>, TargetError> {
        let mut incoming = open_incoming(lockbox, self.authorization_id)?;
        if incoming.record.next_settled_chunk != self.chunk_count {
            return Err(TargetError::Content("ends the transfer before every chunk is settled"));
        }
        incoming.end(TransferState::Complete, "", now_ms);
        let mut changes = Changes::default();
        incoming.put(&mut changes);
        report::note_incoming(lockbox, self.authorization_id, &mut changes)?;
        let batches = lockbox.vault.stage(changes, rng).map_err(LockboxError::from)?;
        Ok(Step::new(batches, ()))
    }

    fn open_chunk(&mut self, message: &Chunk) -> Result<Vec<Key>, TargetError> {
        if message.ciphertext.len() > MAX_CHUNK_BYTES + primitives::TAG_BYTES {
            return Err(TargetError::Content("has a chunk that is too large"));
        }
        let plaintext = self
            .context
            .open(&message.ciphertext, &chunk_aad(message.chunk, self.chunk_count))
            .map_err(|_| TargetError::DoesNotOpen(message.chunk))?;
        let payload = wire::ChunkPayload::decode(&plaintext[..])
            .map_err(|_| TargetError::Content("has a chunk that is not a protobuf message of its type"))?;
        lockbox_authz::field::version(payload.version)?;
        if payload.keys.is_empty() || payload.keys.len() > MAX_CHUNK_KEYS {
            return Err(TargetError::Content("has a chunk with too few or too many keys"));
        }
        let keys = payload.keys.into_iter().map(Key::from_wire);
        Ok(keys.collect::<Result<_, _>>()?)
    }
}

fn open_incoming(lockbox: &Lockbox, id: AuthorizationId) -> Result<Incoming, TargetError> {
    if lockbox.is_stopped() {
        return Err(TargetError::Alarm);
    }
    let incoming = lockbox.incoming(id)?.ok_or(TargetError::NoTransfer(id))?;
    if incoming.is_open() {
        Ok(incoming)
    } else {
        Err(TargetError::Ended)
    }
}

fn check_offer(lockbox: &Lockbox, incoming: &Incoming, offer: &SessionOffer) -> Result<(), TargetError> {
    let refuse = |why| Err(TargetError::Content(why));
    let roster = lockbox.roster.as_ref().ok_or(TargetError::NotAdmitted)?;
    if roster.compare(offer.roster_head) == HeadComparison::Forked {
        return Err(TargetError::RosterForked);
    }
    if offer.cluster_id != roster.cluster_id() {
        return refuse("is for another cluster");
    }
    if offer.authorization_hash != incoming.hash {
        return refuse("is for another authorization");
    }
    let known = incoming.record.chunk_count;
    if known != 0 && known != offer.chunk_count {
        return refuse("counts other chunks than before");
    }
    if offer.first_chunk > incoming.record.next_chunk {
        return refuse("claims receipts that were never given");
    }
    Ok(())
}

/// The receipts from a chunk on, in messages of bounded size.
fn receipts_from(lockbox: &Lockbox, incoming: &Incoming, first: u32) -> Result<Vec<Resume>, TargetError> {
    let next_settled_chunk = incoming.record.next_settled_chunk;
    let declines = incoming.record.declined;
    let mut messages = vec![Resume {
        next_settled_chunk,
        declines,
        ..Resume::default()
    }];
    for chunk in first..incoming.record.next_chunk {
        let receipt = lockbox.incoming_chunk(incoming.id(), chunk)?.receipt;
        let receipt = receipt.ok_or_else(|| damaged("a receipt"))?.encode_to_vec();
        match messages.last_mut() {
            Some(message) if message.receipts.len() < RECEIPTS_PER_MESSAGE as usize => message.receipts.push(receipt),
            _ => messages.push(Resume {
                receipts: vec![receipt],
                next_settled_chunk,
                declines,
                last: false,
            }),
        }
    }
    if let Some(message) = messages.last_mut() {
        message.last = true;
    }
    Ok(messages)
}

fn check_erasure(
    incoming: &Incoming,
    record: &wire::IncomingChunk,
    envelope: &UnverifiedEnvelope,
    chunk: u32,
) -> Result<(), TargetError> {
    let source = incoming.authorization.source.identity_key;
    let erasure = envelope
        .verify::<ErasureRecord>(&[source], 1)
        .map_err(TargetError::Envelope)?;
    let erasure = erasure.statement();
    let receipt = record.receipt.clone().ok_or_else(|| damaged("a receipt"))?;
    let receipt = UnverifiedEnvelope::from_wire(receipt).map_err(|_| damaged("a receipt"))?;
    let stored: Receipt = receipt.unverified_statement().map_err(|_| damaged("a receipt"))?;
    let matches = erasure.cluster_id == incoming.authorization.cluster_id
        && erasure.authorization_hash == incoming.hash
        && erasure.chunk == chunk
        && erasure.receipt_hash == receipt.hash()
        && erasure.key_ids == stored.key_ids;
    if matches {
        Ok(())
    } else {
        Err(TargetError::Content("has an erasure record for something else"))
    }
}
