//! The control plane's port.

use std::sync::Arc;
use std::time::Duration;

use lockbox_authz::limits::{MAX_NAME_CHARS, MAX_REQUEST_ID_CHARS, MAX_ROSTER_PAGE};
use lockbox_authz::{
    AuthorizationId, FieldError, KeyId, Operation, PublicKey, Selection, UnverifiedEnvelope, field, wire,
};
use lockbox_rpc::api::control::control_service_server::{ControlService, ControlServiceServer};
use lockbox_rpc::api::control::{
    AuthorizeTransferRequest, AuthorizeTransferResponse, ExportEvidenceRequest, FindKeyRequest, FindKeyResponse,
    GetTransferRequest, GetTransferResponse, ListLockboxesRequest, ListLockboxesResponse, ListRosterEntriesRequest,
    ListRosterEntriesResponse, ListTransfersRequest, ListTransfersResponse, RejectJoinsRequest, RejectJoinsResponse,
    RevokeTransferRequest, RevokeTransferResponse, SubmitRosterEntryRequest, SubmitRosterEntryResponse, Transfer,
    TransferState, WatchTransferRequest, WatchTransferResponse,
};
use lockbox_rpc::transport::{MAX_MESSAGE_BYTES, PeerIdentity};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::decide::{self, TransferRequest};
use crate::evidence;
use crate::limits::{DEFAULT_PAGE, MAX_PAGE, PENDING_JOINS};
use crate::refusal::Refusal;
use crate::registry::{Authorized, is_ended, lapses_at_ms};
use crate::requester_name::requester_name;
use crate::status;

/// Bytes of a place in a list, as page tokens carry it.
const PLACE_BYTES: usize = 24;

/// Changes of one transfer that wait for a slow watcher. It misses what lies between, never the last.
const WAITING_CHANGES: usize = 4;

/// Answers on the control plane's port.
pub struct ControlPort {
    broker: Arc<Broker>,
}

/// The service for [`lockbox_rpc::transport::serve_tls`].
pub fn service(broker: Arc<Broker>) -> ControlServiceServer<ControlPort> {
    ControlServiceServer::new(ControlPort { broker })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl ControlService for ControlPort {
    async fn authorize_transfer(
        &self,
        request: Request<AuthorizeTransferRequest>,
    ) -> Result<Response<AuthorizeTransferResponse>, Status> {
        let requester = self.requester(&request)?;
        let request = request.into_inner();
        let asked = Asked::of(&requester, &request);
        let authorized = self.authorize(requester, request).await;
        let authorized = authorized.map_err(|refusal| asked.refused(refusal))?;
        Ok(Response::new(AuthorizeTransferResponse {
            transfer: Some(authorized.transfer),
            authorization: authorized.authorization,
        }))
    }

    async fn get_transfer(
        &self,
        request: Request<GetTransferRequest>,
    ) -> Result<Response<GetTransferResponse>, Status> {
        let requester = self.requester(&request)?;
        let request = request.into_inner();
        let id = authorization_id(&request.authorization_id)?;
        let detail = self
            .broker
            .transfer(requester, id, request.from_chunk)
            .await
            .map_err(refused)?;
        Ok(Response::new(GetTransferResponse {
            transfer: Some(detail.transfer),
            authorization: detail.authorization,
            receipts: detail.evidence.receipts,
            erasure_records: detail.evidence.erasure_records,
            next_chunk: detail.evidence.next_chunk.unwrap_or_default(),
            key_names: detail.key_names,
        }))
    }

    async fn list_transfers(
        &self,
        request: Request<ListTransfersRequest>,
    ) -> Result<Response<ListTransfersResponse>, Status> {
        let requester = self.requester(&request)?;
        let request = request.into_inner();
        let limit = match request.page_size as usize {
            0 => DEFAULT_PAGE,
            size => size.min(MAX_PAGE),
        };
        let after = place(&request.page_token)?;
        let page = self.broker.list(requester, after, limit).await.map_err(refused)?;
        Ok(Response::new(ListTransfersResponse {
            transfers: page.transfers,
            next_page_token: page.next.map(|place| page_token(&place)).unwrap_or_default(),
        }))
    }

    type WatchTransferStream = ReceiverStream<Result<WatchTransferResponse, Status>>;

    async fn watch_transfer(
        &self,
        request: Request<WatchTransferRequest>,
    ) -> Result<Response<Self::WatchTransferStream>, Status> {
        let requester = self.requester(&request)?;
        let id = authorization_id(&request.into_inner().authorization_id)?;
        // Refused here rather than in the stream, where some clients would look for it last.
        self.broker.transfer_now(requester.clone(), id).await.map_err(refused)?;
        let (sender, changes) = mpsc::channel(WAITING_CHANGES);
        tokio::spawn(watch(Arc::clone(&self.broker), requester, id, sender));
        Ok(Response::new(ReceiverStream::new(changes)))
    }

    async fn revoke_transfer(
        &self,
        request: Request<RevokeTransferRequest>,
    ) -> Result<Response<RevokeTransferResponse>, Status> {
        let requester = self.requester(&request)?;
        let request = request.into_inner();
        let id = authorization_id(&request.authorization_id)?;
        let transfer = self
            .broker
            .revoke(requester.clone(), id, request.reason)
            .await
            .map_err(|refusal| {
                tracing::warn!(requester, transfer = %id, %refusal, "a transfer was not revoked");
                refused(refusal)
            })?;
        Ok(Response::new(RevokeTransferResponse {
            transfer: Some(transfer),
        }))
    }

    async fn find_key(&self, request: Request<FindKeyRequest>) -> Result<Response<FindKeyResponse>, Status> {
        let requester = self.requester(&request)?;
        let found = self.broker.find_key(requester, request.into_inner()).await;
        Ok(Response::new(found.map_err(refused)?))
    }

    async fn list_lockboxes(
        &self,
        request: Request<ListLockboxesRequest>,
    ) -> Result<Response<ListLockboxesResponse>, Status> {
        let requester = self.requester(&request)?;
        let lockboxes = self.broker.lockboxes(requester).await.map_err(refused)?;
        Ok(Response::new(ListLockboxesResponse { lockboxes }))
    }

    async fn reject_joins(
        &self,
        request: Request<RejectJoinsRequest>,
    ) -> Result<Response<RejectJoinsResponse>, Status> {
        let requester = self.requester(&request)?;
        let keys = request.into_inner().identity_keys;
        if keys.len() > PENDING_JOINS.total {
            return Err(invalid(FieldError::new("identity_keys", "must be at most 256")));
        }
        let keys = keys.iter().map(|key| PublicKey::from_slice("identity_keys", key));
        let keys = keys.collect::<Result<_, _>>().map_err(invalid)?;
        let rejected = self.broker.reject_joins(requester, keys).await.map_err(refused)?;
        Ok(Response::new(RejectJoinsResponse { rejected }))
    }

    async fn list_roster_entries(
        &self,
        request: Request<ListRosterEntriesRequest>,
    ) -> Result<Response<ListRosterEntriesResponse>, Status> {
        let requester = self.requester(&request)?;
        let from_index = request.into_inner().from_index;
        let (entries, head) = self
            .broker
            .roster_entries(requester, from_index, MAX_ROSTER_PAGE)
            .await
            .map_err(refused)?;
        Ok(Response::new(ListRosterEntriesResponse {
            entries: entries.iter().map(UnverifiedEnvelope::to_bytes).collect(),
            head: Some(head.to_wire()),
            time_ms: now_ms(),
        }))
    }

    async fn submit_roster_entry(
        &self,
        request: Request<SubmitRosterEntryRequest>,
    ) -> Result<Response<SubmitRosterEntryResponse>, Status> {
        let requester = self.requester(&request)?;
        let not_taken = |refusal: Refusal| {
            tracing::warn!(requester, %refusal, "a roster entry was not taken");
            refused(refusal)
        };
        let entry = UnverifiedEnvelope::from_bytes(&request.into_inner().entry)
            .map_err(|error| not_taken(Refusal::Envelope(error)))?;
        let head = self
            .broker
            .submit_entry(requester.clone(), entry)
            .await
            .map_err(not_taken)?;
        Ok(Response::new(SubmitRosterEntryResponse {
            head: Some(head.to_wire()),
        }))
    }

    type ExportEvidenceStream = ReceiverStream<evidence::Part>;

    async fn export_evidence(
        &self,
        request: Request<ExportEvidenceRequest>,
    ) -> Result<Response<Self::ExportEvidenceStream>, Status> {
        let requester = self.requester(&request)?;
        let lockbox = request.into_inner().lockbox;
        let lockbox_id = self.broker.evidence_about(&requester, &lockbox).map_err(refused)?;
        let (parts, stream) = mpsc::channel(WAITING_CHANGES);
        tokio::spawn(evidence::export(Arc::clone(&self.broker), lockbox_id, parts));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl ControlPort {
    fn requester<T>(&self, request: &Request<T>) -> Result<String, Status> {
        requester(&self.broker, request)
    }

    async fn authorize(&self, requester: String, request: AuthorizeTransferRequest) -> Result<Authorized, Refusal> {
        let request = transfer_request(requester, request)?;
        self.broker.authorize(request).await
    }
}

/// Who asks. A client that no row of the table names gets no further than this.
pub(crate) fn requester<T>(broker: &Broker, request: &Request<T>) -> Result<String, Status> {
    let Some(PeerIdentity::Certificate(certificate)) = request.extensions().get() else {
        return Err(Status::unauthenticated("the connection has no client certificate"));
    };
    let name = requester_name(certificate).map_err(|error| refused(error.into()))?;
    decide::known(&broker.requesters(), &name).map_err(|denied| {
        tracing::warn!(requester = name, refusal = %denied, "a client was turned away");
        refused(denied.into())
    })?;
    Ok(name)
}

/// What the log says of a request for a transfer that is refused.
struct Asked {
    requester: String,
    source: String,
    target: String,
    request_id: String,
}

impl Asked {
    /// Nothing of the request was checked yet, so no more of it is taken than is ever right.
    fn of(requester: &str, request: &AuthorizeTransferRequest) -> Self {
        let start = |text: &str, chars: usize| text.chars().take(chars).collect();
        Self {
            requester: requester.to_owned(),
            source: start(&request.source, MAX_NAME_CHARS),
            target: start(&request.target, MAX_NAME_CHARS),
            request_id: start(&request.request_id, MAX_REQUEST_ID_CHARS),
        }
    }

    fn refused(&self, refusal: Refusal) -> Status {
        let Self {
            requester,
            source,
            target,
            request_id,
        } = self;
        tracing::warn!(requester, source, target, request_id, %refusal, "a transfer was not authorized");
        refused(refusal)
    }
}

/// Sends a transfer as it is, then each change, until it has ended.
async fn watch(
    broker: Arc<Broker>,
    requester: String,
    id: AuthorizationId,
    sender: mpsc::Sender<Result<WatchTransferResponse, Status>>,
) {
    let mut changes = broker.watchers.subscribe(id);
    let mut last: Option<Transfer> = None;
    loop {
        let transfer = match broker.transfer_now(requester.clone(), id).await {
            Ok(transfer) => transfer,
            Err(refusal) => return drop(sender.send(Err(refused(refusal))).await),
        };
        let ended = is_ended(transfer.state());
        let expires_in = expires_in(&transfer);
        if last.as_ref() != Some(&transfer) {
            let response = WatchTransferResponse {
                transfer: Some(transfer.clone()),
            };
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
            last = Some(transfer);
        }
        if ended {
            return;
        }
        tokio::select! {
            // The sender is in the broker's list for as long as this subscription is.
            _ = changes.changed() => {}
            // Nobody reports that time has run out.
            () = sleep(expires_in) => {}
            () = sender.closed() => return,
            () = broker.stopping() => {
                let stopping = Status::unavailable("the broker stops; watch again when it is back");
                return drop(sender.send(Err(stopping)).await);
            }
        }
    }
}

/// How long the transfer can still wait for a lockbox; `None` if it waits no more.
fn expires_in(transfer: &Transfer) -> Option<Duration> {
    if transfer.state() != TransferState::Authorized {
        return None;
    }
    let left_ms = lapses_at_ms(transfer.expires_at_ms)
        .saturating_sub(now_ms())
        .saturating_add(1);
    Some(Duration::from_millis(u64::try_from(left_ms).unwrap_or(1).max(1)))
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

fn transfer_request(requester: String, request: AuthorizeTransferRequest) -> Result<TransferRequest, FieldError> {
    Ok(TransferRequest {
        requester,
        operation: Operation::from_wire(request.operation)?,
        selection: selection(field::required("selection", request.selection)?)?,
        request_id: request.request_id,
        source: request.source,
        target: request.target,
        ttl_seconds: request.ttl_seconds,
        reason: request.reason,
    })
}

/// Puts ids and labels in their one order; a requester may have them in its own.
fn selection(selection: wire::Selection) -> Result<Selection, FieldError> {
    match selection.keys {
        Some(wire::selection::Keys::Ids(ids)) => {
            let ids = ids.ids.iter().map(|id| KeyId::from_slice("selection", id));
            Selection::from_unsorted_ids(ids.collect::<Result<_, _>>()?)
        }
        Some(wire::selection::Keys::Labels(mut selector)) => {
            selector.labels.sort_by(|a, b| a.key.cmp(&b.key));
            Selection::from_wire(wire::Selection {
                keys: Some(wire::selection::Keys::Labels(selector)),
            })
        }
        keys => Selection::from_wire(wire::Selection { keys }),
    }
}

fn authorization_id(bytes: &[u8]) -> Result<AuthorizationId, Status> {
    AuthorizationId::from_slice("authorization_id", bytes).map_err(invalid)
}

fn page_token(place: &[u8]) -> String {
    place.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn place(page_token: &str) -> Result<Option<Vec<u8>>, Status> {
    if page_token.is_empty() {
        return Ok(None);
    }
    let refused = || invalid(FieldError::new("page_token", "must be one from an earlier answer"));
    if page_token.len() != 2 * PLACE_BYTES || !page_token.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(refused());
    }
    let pairs = (0..PLACE_BYTES).map(|at| u8::from_str_radix(&page_token[2 * at..2 * at + 2], 16));
    pairs.collect::<Result<_, _>>().map(Some).map_err(|_| refused())
}

fn invalid(error: FieldError) -> Status {
    refused(Refusal::Field(error))
}

fn refused(refusal: Refusal) -> Status {
    status::for_requester(&refusal)
}
