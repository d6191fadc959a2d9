//! The node port: lockboxes, and those that want to be admitted.

use std::sync::Arc;

use lockbox_authz::limits::MAX_ROSTER_PAGE;
use lockbox_authz::roster::Head;
use lockbox_authz::{PublicKey, UnverifiedEnvelope};
use lockbox_rpc::api::node::node_service_server::{NodeService, NodeServiceServer};
use lockbox_rpc::api::node::{
    ConnectRequest, ConnectResponse, JoinRequest, JoinResponse, JoinStatus, SyncRosterRequest, SyncRosterResponse,
};
use lockbox_rpc::tls::raw_key::PeerPolicy;
use lockbox_rpc::transport::{MAX_MESSAGE_BYTES, Peer, PeerIdentity, ServerLimits, Strangers};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::connection::Connection;
use crate::limits::OUTBOUND_MESSAGES;
use crate::refusal::Refusal;
use crate::registry::JoinOutcome;
use crate::status;

/// Connections with one key.
const CONNECTIONS_PER_KEY: usize = 8;

/// Answers on the node port.
pub struct NodePort {
    broker: Arc<Broker>,
}

/// Lets in every Ed25519 key: who wants to join is not known yet. Each call then checks what it needs.
#[derive(Debug)]
pub struct AnyKey;

impl PeerPolicy for AnyKey {
    fn admits(&self, _key: &[u8; 32]) -> bool {
        true
    }
}

/// The service for [`lockbox_rpc::transport::serve_tls`].
pub fn service(broker: Arc<Broker>) -> NodeServiceServer<NodePort> {
    NodeServiceServer::new(NodePort { broker })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Lockboxes of the roster have one connection each, and the one that a reconnection replaces. Whoever else may connect can
/// ask for admission and for the roster.
pub fn limits(broker: &Arc<Broker>) -> ServerLimits {
    let broker = Arc::clone(broker);
    let is_member = move |peer: Peer<'_>| match peer {
        Peer::Remote(PeerIdentity::RawKey(key)) => {
            PublicKey::from_slice("peer key", key).is_ok_and(|key| broker.roster().admitted_by_key(&key).is_some())
        }
        Peer::Remote(PeerIdentity::Certificate(_)) | Peer::Local(_) => false,
    };
    ServerLimits {
        connections_per_peer: CONNECTIONS_PER_KEY,
        strangers: Some(Strangers::unless(is_member)),
        ..ServerLimits::default()
    }
}

#[tonic::async_trait]
impl NodeService for NodePort {
    async fn sync_roster(&self, request: Request<SyncRosterRequest>) -> Result<Response<SyncRosterResponse>, Status> {
        let peer = peer_key(&request)?;
        let request = request.into_inner();
        if request.entries.len() > MAX_ROSTER_PAGE {
            return Err(Status::invalid_argument("entries must be at most 256"));
        }
        let head = request.head.as_ref().map(Head::from_wire).transpose();
        let head = head.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let entries = request
            .entries
            .iter()
            .map(|bytes| envelope(bytes))
            .collect::<Result<_, _>>()?;
        let outcome = self
            .broker
            .sync_roster(peer, head, entries)
            .await
            .map_err(|refusal| status::for_node(&refusal))?;
        Ok(Response::new(SyncRosterResponse {
            head: Some(outcome.head.to_wire()),
            entries: outcome.entries.iter().map(UnverifiedEnvelope::to_bytes).collect(),
            time_ms: now_ms(),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let from = request.remote_addr().map(|address| address.ip());
        let request = request.into_inner();
        let wanted = envelope(&request.request)?;
        let entry = match request.roster_entry.is_empty() {
            true => None,
            false => Some(envelope(&request.roster_entry)?),
        };
        let outcome = self
            .broker
            .join(wanted, entry, from)
            .await
            .map_err(|refusal| status::for_node(&refusal))?;
        let status = match outcome {
            JoinOutcome::Pending => JoinStatus::Pending,
            JoinOutcome::Admitted | JoinOutcome::NewlyAdmitted => JoinStatus::Admitted,
        };
        Ok(Response::new(JoinResponse { status: status.into() }))
    }

    type ConnectStream = ReceiverStream<Result<ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let peer = peer_key(&request)?;
        let address = request.remote_addr();
        let roster = self.broker.roster();
        if roster.admitted_by_key(&peer).is_none() {
            let retired = roster.lockboxes().any(|member| member.lockbox.identity_key == peer);
            let refusal = if retired {
                Refusal::Retired
            } else {
                Refusal::NotAdmitted
            };
            return Err(status::for_node(&refusal));
        }
        let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES);
        let connection = Connection::new(Arc::clone(&self.broker), peer, address, request.into_inner(), outbound);
        tokio::spawn(connection.run());
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

pub(crate) fn peer_key<T>(request: &Request<T>) -> Result<PublicKey, Status> {
    let refused = || Status::permission_denied("the connection proves no Ed25519 key that can be used");
    match request.extensions().get() {
        Some(PeerIdentity::RawKey(key)) => PublicKey::from_slice("peer key", key).map_err(|_| refused()),
        Some(PeerIdentity::Certificate(_)) | None => Err(refused()),
    }
}

pub(crate) fn envelope(bytes: &[u8]) -> Result<UnverifiedEnvelope, Status> {
    UnverifiedEnvelope::from_bytes(bytes).map_err(|_| Status::invalid_argument("an envelope is not well-formed"))
}
