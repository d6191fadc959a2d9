//! What other lockboxes may ask on the peer port. SPEC sections 2 and 7.
//!
//! Every call looks the caller up in the roster again: a connection outlives the roster that let it in.

mod session;
mod sessions;

use std::sync::{Arc, Mutex};

use lockbox_authz::limits::MAX_ROSTER_PAGE;
use lockbox_authz::roster::Head;
use lockbox_authz::{PublicKey, Roster};
use lockbox_core::permit::Refusal;
use lockbox_core::transfer::source::SourceError;
use lockbox_rpc::api::peer::peer_service_server::{PeerService, PeerServiceServer};
use lockbox_rpc::api::peer::{SyncRosterRequest, SyncRosterResponse, TransferRequest, TransferResponse};
use lockbox_rpc::transport::{MAX_MESSAGE_BYTES, PeerIdentity};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::StepError;
use crate::node::{Node, lock};
use crate::peer_wire::Unexpected;
use crate::roster_sync::{self, SyncError};
use sessions::Sessions;

/// Messages to one target that wait for the network: two windows of chunks.
const OUTBOUND_MESSAGES: usize = 8;

/// Answers on the peer port. Dropping it ends its sessions.
pub(crate) struct PeerPort {
    node: Arc<Node>,
    sessions: Arc<Sessions>,
    tasks: Mutex<JoinSet<()>>,
}

/// The service for [`lockbox_rpc::transport::serve_tls`].
pub(crate) fn service(node: Arc<Node>) -> PeerServiceServer<PeerPort> {
    let port = PeerPort {
        node,
        sessions: Arc::default(),
        tasks: Mutex::default(),
    };
    PeerServiceServer::new(port)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Why a session ends before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Source(#[from] StepError<SourceError>),
    #[error("the target sent what is not due")]
    Unexpected(#[from] Unexpected),
    #[error("{0}; by the broker's clock it has not, so find out which of the two clocks is wrong and set it")]
    ClockDiffers(Refusal),
    #[error("the target is gone")]
    Gone,
    #[error("the target was silent for too long")]
    Silent,
    #[error("a newer session of the target took its place")]
    Replaced,
    #[error("it was revoked, or the target declined the rest; what the target acknowledged is settled")]
    Ended,
    #[error("it was revoked: the target is to come again and say what it holds")]
    ComeAgain,
}

/// What a target learns of why its session ended: the one way from a source's error to an answer. Coarse; the reason is
/// in this machine's log.
pub(crate) fn peer_status(error: &SessionError) -> Status {
    let refused = || Status::permission_denied("refused");
    let not_now = || Status::failed_precondition("not now");
    match error {
        SessionError::Unexpected(unexpected) => Status::invalid_argument(unexpected.to_string()),
        SessionError::Source(StepError::Refused(error)) if error.is_final() => refused(),
        SessionError::Ended => refused(),
        SessionError::Source(_)
        | SessionError::ClockDiffers(_)
        | SessionError::Gone
        | SessionError::Silent
        | SessionError::Replaced
        | SessionError::ComeAgain => not_now(),
    }
}

#[tonic::async_trait]
impl PeerService for PeerPort {
    async fn sync_roster(&self, request: Request<SyncRosterRequest>) -> Result<Response<SyncRosterResponse>, Status> {
        self.admitted(&request)?;
        let unexpected = || Status::invalid_argument(Unexpected.to_string());
        let request = request.into_inner();
        if request.entries.len() > MAX_ROSTER_PAGE {
            return Err(unexpected());
        }
        let theirs = request.head.as_ref().map(Head::from_wire).transpose();
        let theirs = theirs.map_err(|_| unexpected())?;
        if !request.entries.is_empty() {
            roster_sync::apply(&self.node, &request.entries)
                .await
                .map_err(|error| match error {
                    SyncError::Entry(_) => unexpected(),
                    _ => Status::failed_precondition("not now"),
                })?;
        }
        let roster = self.roster()?;
        let from = theirs.map_or(0, |theirs| roster_sync::first_lacking(&roster, theirs));
        Ok(Response::new(SyncRosterResponse {
            head: Some(roster.head().to_wire()),
            entries: roster_sync::page(&roster, from),
        }))
    }

    type TransferStream = ReceiverStream<Result<TransferResponse, Status>>;

    async fn transfer(
        &self,
        request: Request<Streaming<TransferRequest>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let peer = self.admitted(&request)?;
        let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES);
        let session = session::run(
            Arc::clone(&self.node),
            Arc::clone(&self.sessions),
            peer,
            request.into_inner(),
            outbound,
        );
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(session);
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl PeerPort {
    fn roster(&self) -> Result<Arc<Roster>, Status> {
        let cluster = self.node.engine.cluster();
        cluster
            .ok()
            .and_then(|cluster| cluster.roster.clone())
            .ok_or_else(|| Status::failed_precondition("not now"))
    }

    /// The caller, if the roster has it now.
    fn admitted<T>(&self, request: &Request<T>) -> Result<PublicKey, Status> {
        let refused = || Status::permission_denied(Refusal::NotAdmitted.peer_text());
        let Some(PeerIdentity::RawKey(key)) = request.extensions().get() else {
            return Err(refused());
        };
        let peer = PublicKey::from_slice("peer key", key).map_err(|_| refused())?;
        if self.roster()?.admitted_by_key(&peer).is_none() {
            tracing::warn!(fingerprint = %peer.fingerprint(), "a peer was refused: the roster does not have it any more");
            return Err(refused());
        }
        Ok(peer)
    }
}
