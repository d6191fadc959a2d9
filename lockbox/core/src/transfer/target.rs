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

use std::collections::{HashMap, HashSet};

use lockbox_authz::authorization::{Authorization, Selection};
use lockbox_authz::envelope::{EnvelopeError, UnverifiedEnvelope, Verified};
use lockbox_authz::field::FieldError;
use lockbox_authz::id::{AuthorizationId, Hash, KeyId, SessionId};
use lockbox_authz::keys::PublicKey;
use lockbox_authz::limits::MAX_ADDRESS_CHARS;
use lockbox_authz::roster::HeadComparison;
use lockbox_authz::transfer::{ErasureRecord, Receipt, SessionOffer};
use prost::Message;
use rand_core::CryptoRng;

use super::{Chunk, Offer, Present, Resume, Settlement, chunk_aad, session_info};
use crate::ledger::{Entry, Incoming, damaged};
use crate::lifecycle::family::{MAX_LAYERS, index};
use crate::limits::{MAX_CHUNK_BYTES, MAX_CHUNK_KEYS, RECEIPTS_PER_MESSAGE};
use crate::lockbox::{Lockbox, LockboxError, Standing};
use crate::primitives::{self, ReceiverContext, hpke_setup_receiver};
use crate::record::{Departure, Key, KeyState};
use crate::report;
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire::{self, TransferState};

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

/// An authorization that the target has, and where its source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenIncoming {
    pub authorization_id: AuthorizationId,
    /// host:port.
    pub source_address: String,
    pub source_key: PublicKey,
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
        if !self.alarms.is_empty() {
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
        for key in keys {
            if let Some(key) = take_key(lockbox, key)? {
                changes.remove(Row::Tombstone(key.info.key_id));
                index(&key.info, &mut changes);
                #[cfg(not(lockbox_mutant = "keys-not-written"))]
                changes.put_key(key);
            }
        }
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
    if !lockbox.alarms.is_empty() {
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

/// A chunk may hold no key twice, and none that the authorization does not select.
fn check_selection(incoming: &Incoming, keys: &[Key]) -> Result<(), TargetError> {
    let mut seen = HashSet::with_capacity(keys.len());
    for key in keys {
        let selected = match &incoming.authorization.selection {
            Selection::Ids(ids) => ids.binary_search(&key.info.key_id).is_ok(),
            Selection::Labels(labels) => key.info.labels.contain(labels),
            Selection::All => true,
        };
        if !selected || !seen.insert(key.info.key_id) {
            return Err(TargetError::Content("has a key that is not due"));
        }
    }
    Ok(())
}

/// What is to be stored of a key that arrived. One that is here already, with the same material, stays as it is; but what is
/// known to be compromised never counts as less again.
///
/// A key that is being moved away is not taken: this lockbox would give a receipt for a copy that the receipt of the other
/// transfer makes it erase, and the last copy could be lost between the two. It is declined rather than awaited, or two
/// lockboxes that move the same keys to each other would wait for ever.
fn take_key(lockbox: &Lockbox, key: Key) -> Result<Option<Key>, TargetError> {
    let key_id = key.info.key_id;
    if is_on_its_way_out(lockbox, key_id)? {
        return Err(TargetError::OnItsWayOut(key_id));
    }
    if let Some(mut existing) = lockbox.vault.key(key_id).map_err(LockboxError::from)? {
        let same = existing.info.material_id == key.info.material_id && existing.material.equals(&key.material);
        if !same {
            return Err(TargetError::Conflict(key_id));
        }
        let is_news = key.info.state == KeyState::Compromised && existing.info.state != KeyState::Compromised;
        existing.info.state = KeyState::Compromised;
        return Ok(is_news.then_some(existing));
    }
    match lockbox.tombstone(key_id)? {
        Some(tombstone) if tombstone.departure == Departure::Destroyed => Err(TargetError::WasDestroyed(key_id)),
        _ => Ok(Some(key)),
    }
}

/// Whether a key that is here is part of an open MOVE to another lockbox.
fn is_on_its_way_out(lockbox: &Lockbox, key_id: KeyId) -> Result<bool, LockboxError> {
    let Some(id) = lockbox.open_transfer_of(key_id)? else {
        return Ok(false);
    };
    Ok(lockbox.outgoing(id)?.is_some_and(|outgoing| outgoing.is_move()))
}

/// A key is worth little without what it lies on: that comes in the same chunk, or is here and stays. Keys that lie on each
/// other in a ring could never be destroyed or moved again.
pub(crate) fn check_layers(lockbox: &Lockbox, keys: &[Key]) -> Result<(), TargetError> {
    let arriving: HashMap<KeyId, Option<KeyId>> =
        keys.iter().map(|key| (key.info.key_id, key.info.lies_on())).collect();
    // The keys of a chain from an ancestor that is here downward.
    let mut here: HashMap<KeyId, usize> = HashMap::new();
    for key in keys {
        if let Some(ancestor) = key.info.lies_on()
            && !arriving.contains_key(&ancestor)
            && !here.contains_key(&ancestor)
        {
            here.insert(ancestor, chain_here(lockbox, key.info.key_id, ancestor)?);
        }
    }
    for key in keys {
        let (mut chain, mut next) = (1, key.info.lies_on());
        while let Some(ancestor) = next {
            chain += here.get(&ancestor).copied().unwrap_or(1);
            if chain > MAX_LAYERS {
                return Err(
                    FieldError::new("lineage", "must lead to a key that lies on none, over 64 keys at most").into(),
                );
            }
            next = arriving.get(&ancestor).copied().flatten();
        }
    }
    Ok(())
}

/// How many keys the chain of an ancestor has that did not come with the key. An ancestor that is being moved away was to
/// take what lies on it along, and this key was not here when that was planned.
fn chain_here(lockbox: &Lockbox, key: KeyId, ancestor: KeyId) -> Result<usize, TargetError> {
    let found = lockbox.vault.key(ancestor).map_err(LockboxError::from)?;
    let found = found.ok_or(TargetError::MissingAncestor { key, ancestor })?;
    if is_on_its_way_out(lockbox, ancestor)? {
        return Err(TargetError::OnItsWayOut(ancestor));
    }
    Ok(lockbox.depth(&found.info)? + 1)
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
