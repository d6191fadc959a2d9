//! Authorizing, finding and revoking transfers.

use lockbox_authz::{
    Authorization, AuthorizationId, Hash, LockboxId, Revocation, SecretKey, Selection, Signer, UnverifiedEnvelope,
    Verified, field, limits::MAX_REASON_CHARS,
};
use lockbox_rpc::api::control::{self, TransferState};
use lockbox_rpc::api::node::TransferStage;
use lockbox_store::Batch;
use prost::Message;

use super::records::{RequestRecord, decode};
use super::transfer::{EndReport, Place, Revoked, Transfer, is_ended};
use super::{Turn, keys};
use crate::decide::{self, TransferRequest, View, decide};
use crate::limits::{DEFAULT_TTL_SECONDS, MAX_PAGE_BYTES, SCAN_PAGE};
use crate::refusal::Refusal;
use crate::requesters::Requesters;

/// Chunks whose evidence fits in one message: twice this many envelopes of about 20 KiB.
const EVIDENCE_CHUNKS: u32 = 64;

/// How long after its expiry a transfer that came to nothing or was revoked, is still told to its ends. Clocks differ by less.
const TOLD_AFTER_EXPIRY_MS: i64 = 24 * 60 * 60 * 1_000;

/// An authorized transfer.
#[derive(Clone, Debug)]
pub struct Authorized {
    pub transfer: control::Transfer,
    /// Serialized envelope.
    pub authorization: Vec<u8>,
    pub target_id: LockboxId,
    /// False if the same request was answered before.
    pub is_new: bool,
}

/// Serialized envelopes of what the ends signed about one transfer, ascending by chunk.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub receipts: Vec<Vec<u8>>,
    pub erasure_records: Vec<Vec<u8>>,
    /// Where there is more.
    pub next_chunk: Option<u32>,
}

/// Transfers, the newest first.
#[derive(Clone, Debug)]
pub struct Page {
    pub transfers: Vec<control::Transfer>,
    /// The place after which the next page begins.
    pub next: Option<Vec<u8>>,
}

/// What a lockbox has to hear of a transfer.
#[derive(Clone, Debug)]
pub enum ToHear {
    /// To be offered when it is the requester's turn.
    Offer(OpenOffer),
    /// Serialized envelope.
    Revocation(Vec<u8>),
}

/// An open transfer, as far as its target's turns need it.
#[derive(Clone, Debug)]
pub struct OpenOffer {
    pub id: AuthorizationId,
    pub requester: String,
    pub source_id: LockboxId,
    pub created_at_ms: i64,
    /// The target has accepted it.
    pub is_accepted: bool,
    pub place: Place,
}

/// What a target is offered.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Serialized envelope.
    pub authorization: Vec<u8>,
    pub source_address: String,
}

impl Turn<'_> {
    /// Decides, signs and stores; or finds what was answered to the same request before.
    pub fn authorize(
        &mut self,
        request: &TransferRequest,
        requesters: &Requesters,
        broker_key: &SecretKey,
        authorization_id: AuthorizationId,
        now_ms: i64,
    ) -> Result<Authorized, Refusal> {
        decide::known(requesters, &request.requester)?;
        let request_hash = canonical_hash(request);
        if let Some(known) = self.answered_before(request, request_hash)? {
            return self.authorized(&known, false, now_ms);
        }
        let view = View {
            roster: &self.state.roster,
            requesters,
            wrapping_certificates: &self.state.wrapping_certificates,
            broker_key: broker_key.public_key(),
            authorization_id,
        };
        let signed = Verified::sign(decide(request, &view, now_ms)?, broker_key);
        let transfer = transfer_of(&signed);
        let mut batch = authorized_batch(&signed, &transfer, request_hash);
        let limit = decide::known(requesters, &request.requester)?.max_open_transfers;
        if self.open_count(&request.requester, now_ms, &mut batch) >= limit {
            return Err(Refusal::TooManyOpenTransfers { limit });
        }
        Self::put_open(&mut batch, &transfer, now_ms);
        self.commit(batch)?;
        self.note_open(&transfer, now_ms);
        tracing::info!(
            transfer = %transfer.authorization_id,
            requester = transfer.requester,
            source = request.source,
            target = request.target,
            operation = transfer.operation.as_str(),
            "authorized"
        );
        self.authorized(&transfer, true, now_ms)
    }

    /// One transfer, if it is there.
    pub fn transfer(&self, id: AuthorizationId) -> Result<Option<Transfer>, Refusal> {
        let value = self.get(&keys::transfer(id))?;
        value
            .map(|value| Transfer::decode(&value).map_err(Refusal::Record))
            .transpose()
    }

    /// The authorization of a transfer, serialized; `None` if it was dropped.
    pub fn authorization(&self, id: AuthorizationId) -> Result<Option<Vec<u8>>, Refusal> {
        self.get(&keys::authorization(id))
    }

    /// What the ends signed, from a chunk on.
    pub fn evidence(&self, id: AuthorizationId, from_chunk: u32) -> Result<Evidence, Refusal> {
        let before = from_chunk.checked_sub(1);
        let receipts = self.chunks(&keys::receipts(id), before.map(|chunk| keys::receipt(id, chunk)))?;
        let erasures = self.chunks(&keys::erasures(id), before.map(|chunk| keys::erasure(id, chunk)))?;
        let end = from_chunk.saturating_add(EVIDENCE_CHUNKS);
        let beyond = |list: &[(u32, Vec<u8>)]| list.iter().map(|(chunk, _)| *chunk).find(|chunk| *chunk >= end);
        let next_chunk = match (beyond(&receipts), beyond(&erasures)) {
            (Some(receipt), Some(erasure)) => Some(receipt.min(erasure)),
            (receipt, erasure) => receipt.or(erasure),
        };
        let within = |list: Vec<(u32, Vec<u8>)>| {
            let within = list.into_iter().filter(|(chunk, _)| *chunk < end);
            within.map(|(_, envelope)| envelope).collect()
        };
        Ok(Evidence {
            receipts: within(receipts),
            erasure_records: within(erasures),
            next_chunk,
        })
    }

    /// The transfers of one requester, or of all, after a place.
    pub fn list(
        &self,
        requester: Option<&str>,
        after: Option<&[u8]>,
        limit: usize,
        now_ms: i64,
    ) -> Result<Page, Refusal> {
        let prefix = requester.map_or_else(|| keys::ALL.to_vec(), keys::own);
        let start = after.map(|place| [&prefix[..], place].concat());
        let pairs = self.scan(&prefix, start.as_deref(), limit.saturating_add(1))?;
        let (mut transfers, mut bytes) = (Vec::new(), 0);
        let mut last = None;
        for (key, _) in &pairs {
            if transfers.len() == limit || bytes > MAX_PAGE_BYTES {
                return Ok(Page { transfers, next: last });
            }
            let place = &key[prefix.len()..];
            let id = place.get(8..).unwrap_or_default();
            let id = AuthorizationId::from_slice("place in a list", id).map_err(Refusal::Record)?;
            let transfer = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
            let shown = self.view(&transfer, now_ms)?;
            bytes += shown.encoded_len();
            transfers.push(shown);
            last = Some(place.to_vec());
        }
        Ok(Page { transfers, next: None })
    }

    /// Revokes a transfer that is not complete. Revoking twice is the same as once.
    pub fn revoke(
        &mut self,
        id: AuthorizationId,
        reason: &str,
        broker_key: &SecretKey,
        now_ms: i64,
    ) -> Result<Transfer, Refusal> {
        field::text("reason", reason, 0, MAX_REASON_CHARS)?;
        let mut transfer = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
        match transfer.state(now_ms) {
            TransferState::Revoked => return Ok(transfer),
            TransferState::Complete => return Err(Refusal::AlreadyComplete),
            _ => {}
        }
        let revocation = Revocation {
            cluster_id: self.state.roster.cluster_id(),
            authorization_id: id,
            reason: reason.to_owned(),
            expires_at_ms: transfer.expires_at_ms,
        };
        let signed = Verified::sign(revocation, broker_key);
        transfer.revoked = Some(Revoked {
            at_ms: now_ms,
            reason: reason.to_owned(),
        });
        transfer.changed_at_ms = now_ms;
        let mut batch = Batch::new();
        batch.put(keys::transfer(id), transfer.encode());
        batch.put(keys::revocation(id), signed.envelope().to_bytes());
        Self::put_open(&mut batch, &transfer, now_ms);
        self.commit(batch)?;
        self.note_open(&transfer, now_ms);
        tracing::info!(transfer = %id, reason, "revoked");
        Ok(transfer)
    }

    /// What a lockbox has to hear of one transfer; nothing if it is over for it.
    pub fn to_hear(&self, lockbox_id: LockboxId, id: AuthorizationId, now_ms: i64) -> Result<Option<ToHear>, Refusal> {
        let transfer = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
        self.to_hear_of(lockbox_id, &transfer, now_ms)
    }

    /// What a lockbox has to hear when it connects, in pages: call again with the answer's second part.
    pub fn all_to_hear(
        &mut self,
        lockbox_id: LockboxId,
        after: Option<AuthorizationId>,
        now_ms: i64,
    ) -> Result<(Vec<ToHear>, Option<AuthorizationId>), Refusal> {
        let prefix = keys::end(lockbox_id);
        let start = after.map(|id| keys::end_transfer(lockbox_id, id));
        let pairs = self.scan(&prefix, start.as_deref(), SCAN_PAGE)?;
        let (mut heard, mut over) = (Vec::new(), Batch::new());
        let mut last = None;
        for (key, _) in pairs {
            let id = AuthorizationId::from_slice("end record", &key[prefix.len()..]).map_err(Refusal::Record)?;
            last = Some(id);
            let transfer = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
            heard.extend(self.to_hear_of(lockbox_id, &transfer, now_ms)?);
            let is_under_way = transfer.revoked.is_some() && transfer.is_under_way_at(lockbox_id);
            if is_past(&transfer, now_ms) && is_ended(transfer.state(now_ms)) && !is_under_way {
                over.remove(key);
            }
        }
        self.commit(over)?;
        Ok((heard, last))
    }

    /// The targets that still have to fetch keys from this lockbox, each with its transfer.
    pub fn waiting_for(&self, source_id: LockboxId, now_ms: i64) -> Result<Vec<(LockboxId, AuthorizationId)>, Refusal> {
        let prefix = keys::end(source_id);
        let mut waiting = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.scan(&prefix, after.as_deref(), SCAN_PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(waiting);
            };
            after = Some(last.clone());
            for (key, _) in &page {
                let id = AuthorizationId::from_slice("end record", &key[prefix.len()..]).map_err(Refusal::Record)?;
                let transfer = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
                if transfer.source_id == source_id && transfer.is_offered(now_ms) {
                    waiting.push((transfer.target_id, id));
                }
            }
        }
    }

    /// A transfer as the control plane sees it.
    pub fn view(&self, transfer: &Transfer, now_ms: i64) -> Result<control::Transfer, Refusal> {
        let authorization = self.authorization(transfer.authorization_id)?.map(|bytes| {
            let envelope = UnverifiedEnvelope::from_bytes(&bytes)?;
            envelope.unverified_statement::<Authorization>()
        });
        let authorization = authorization.transpose().map_err(Refusal::Envelope)?;
        let state = transfer.state(now_ms);
        let changed_at_ms = match state {
            TransferState::Expired => transfer.lapses_at_ms(),
            _ => transfer.changed_at_ms,
        };
        Ok(control::Transfer {
            authorization_id: transfer.authorization_id.to_vec(),
            request_id: transfer.request_id.clone(),
            requester: transfer.requester.clone(),
            source: Some(self.name(transfer.source_id)),
            target: Some(self.name(transfer.target_id)),
            operation: transfer.operation.to_wire().into(),
            selection: authorization.map(|authorization| authorization.selection.to_wire()),
            state: state.into(),
            key_count: transfer.key_count(),
            keys_received: transfer.keys_received,
            keys_erased: transfer.keys_erased,
            withheld_count: transfer.withheld_count(),
            created_at_ms: transfer.created_at_ms,
            expires_at_ms: transfer.expires_at_ms,
            changed_at_ms,
            detail: transfer.detail(now_ms),
            reason: transfer.reason.clone(),
            withheld: transfer.source.withheld.clone(),
        })
    }

    fn to_hear_of(&self, lockbox_id: LockboxId, transfer: &Transfer, now_ms: i64) -> Result<Option<ToHear>, Refusal> {
        let id = transfer.authorization_id;
        if transfer.revoked.is_some() {
            if is_past(transfer, now_ms) && !transfer.is_under_way_at(lockbox_id) {
                return Ok(None);
            }
            return Ok(self.get(&keys::revocation(id))?.map(ToHear::Revocation));
        }
        if transfer.target_id != lockbox_id || !transfer.is_offered(now_ms) {
            return Ok(None);
        }
        Ok(Some(ToHear::Offer(OpenOffer {
            id,
            requester: transfer.requester.clone(),
            source_id: transfer.source_id,
            created_at_ms: transfer.created_at_ms,
            is_accepted: transfer.target.stage != TransferStage::Unspecified,
            place: transfer.place(now_ms),
        })))
    }

    /// The offer of a transfer, if it is still to be offered.
    pub fn offer(&self, id: AuthorizationId, now_ms: i64) -> Result<Option<Offer>, Refusal> {
        let Some(transfer) = self.transfer(id)?.filter(|transfer| transfer.is_offered(now_ms)) else {
            return Ok(None);
        };
        let Some(authorization) = self.authorization(id)? else {
            return Ok(None);
        };
        let source = self.lockbox_facts(transfer.source_id);
        Ok(Some(Offer {
            authorization,
            source_address: source.map(|facts| facts.peer_address.clone()).unwrap_or_default(),
        }))
    }

    fn answered_before(&self, request: &TransferRequest, request_hash: Hash) -> Result<Option<Transfer>, Refusal> {
        let Some(value) = self.get(&keys::request(&request.requester, &request.request_id))? else {
            return Ok(None);
        };
        let record: RequestRecord = decode("request record", &value).map_err(Refusal::Record)?;
        if record.request_hash != request_hash.0 {
            return Err(Refusal::RequestIdTaken);
        }
        let id = AuthorizationId::from_slice("request record", &record.authorization_id).map_err(Refusal::Record)?;
        self.transfer(id)
    }

    fn authorized(&self, transfer: &Transfer, is_new: bool, now_ms: i64) -> Result<Authorized, Refusal> {
        Ok(Authorized {
            transfer: self.view(transfer, now_ms)?,
            authorization: self.authorization(transfer.authorization_id)?.unwrap_or_default(),
            target_id: transfer.target_id,
            is_new,
        })
    }

    fn name(&self, lockbox_id: LockboxId) -> control::LockboxName {
        let member = self.state.roster.lockbox(&lockbox_id);
        control::LockboxName {
            lockbox_id: lockbox_id.to_vec(),
            name: member.map(|member| member.lockbox.name.clone()).unwrap_or_default(),
        }
    }

    fn chunks(&self, prefix: &[u8], after: Option<Vec<u8>>) -> Result<Vec<(u32, Vec<u8>)>, Refusal> {
        let pairs = self.scan(prefix, after.as_deref(), EVIDENCE_CHUNKS as usize + 1)?;
        pairs
            .into_iter()
            .map(|(key, value)| {
                let chunk = key[prefix.len()..].try_into().map(u32::from_be_bytes);
                let chunk = chunk.map_err(|_| {
                    Refusal::Record(lockbox_authz::FieldError::new(
                        "chunk record",
                        "is not what the broker writes",
                    ))
                })?;
                Ok((chunk, value))
            })
            .collect()
    }
}

/// Whether a transfer expired so long ago that it can be begun nowhere any more.
fn is_past(transfer: &Transfer, now_ms: i64) -> bool {
    now_ms > transfer.expires_at_ms.saturating_add(TOLD_AFTER_EXPIRY_MS)
}

/// Over everything that the requester asked for, in a form in which the same request is always the same bytes.
fn canonical_hash(request: &TransferRequest) -> Hash {
    let ttl_seconds = match request.ttl_seconds {
        0 => DEFAULT_TTL_SECONDS,
        seconds => seconds,
    };
    let canonical = control::AuthorizeTransferRequest {
        request_id: request.request_id.clone(),
        source: request.source.clone(),
        target: request.target.clone(),
        operation: request.operation.to_wire().into(),
        selection: Some(request.selection.to_wire()),
        ttl_seconds,
        reason: request.reason.clone(),
    };
    Hash::of(&canonical.encode_to_vec())
}

fn transfer_of(signed: &Verified<Authorization>) -> Transfer {
    let authorization = signed.statement();
    Transfer {
        authorization_id: authorization.authorization_id,
        authorization_hash: signed.hash(),
        request_id: authorization.request_id.clone(),
        requester: authorization.requester.clone(),
        source_id: authorization.source.lockbox_id,
        target_id: authorization.target.lockbox_id,
        operation: authorization.operation,
        created_at_ms: authorization.not_before_ms,
        expires_at_ms: authorization.expires_at_ms,
        changed_at_ms: authorization.not_before_ms,
        revoked: None,
        source: EndReport::default(),
        target: EndReport::default(),
        keys_received: 0,
        keys_erased: 0,
        reason: authorization.reason.clone(),
        named_keys: match &authorization.selection {
            Selection::Ids(ids) => ids.len() as u64,
            Selection::Labels(_) | Selection::All => 0,
        },
    }
}

fn authorized_batch(signed: &Verified<Authorization>, transfer: &Transfer, request_hash: Hash) -> Batch {
    let id = transfer.authorization_id;
    let place = keys::place(transfer.created_at_ms, id);
    let request = RequestRecord {
        authorization_id: id.to_vec(),
        request_hash: request_hash.0.to_vec(),
    };
    let mut batch = Batch::new();
    batch.put(keys::transfer(id), transfer.encode());
    batch.put(keys::authorization(id), signed.envelope().to_bytes());
    batch.put(
        keys::request(&transfer.requester, &transfer.request_id),
        request.encode_to_vec(),
    );
    batch.put([keys::ALL, &place].concat(), Vec::new());
    batch.put([&keys::own(&transfer.requester)[..], &place].concat(), Vec::new());
    batch.put(keys::expired_at(transfer.expires_at_ms, id), Vec::new());
    batch.put(keys::end_transfer(transfer.source_id, id), Vec::new());
    batch.put(keys::end_transfer(transfer.target_id, id), Vec::new());
    batch
}
