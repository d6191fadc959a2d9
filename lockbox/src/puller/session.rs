//! One session of the target, from dialing the source to Finished. SPEC section 7; the states are those of
//! [`lockbox_core::transfer::target`].
//!
//! Each line of the log with target "transfer" stands between a durable step and the message that it allows.

use std::sync::Arc;
use std::time::Duration;

use lockbox_authz::AuthorizationId;
use lockbox_core::transfer::target::{ALARM_AT_TARGET, AwaitChunk, AwaitOffer, OpenIncoming, TargetError};
use lockbox_core::transfer::{Chunk, Present, Settlement};
use lockbox_rpc::api::peer::peer_service_client::PeerServiceClient;
use lockbox_rpc::api::peer::{TransferRequest, TransferResponse};
use lockbox_rpc::tls::raw_key;
use lockbox_rpc::transport::{ClientTimeouts, ConnectError, MAX_MESSAGE_BYTES, connect_raw_key};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::engine::StepError;
use crate::node::{IdentityError, Node};
use crate::peer_wire::{self, FromSource, Unexpected};
use crate::roster_sync::{self, SyncError};

/// How long a source may take for its next message. It plans a transfer of all its keys meanwhile; its connection is
/// watched by keepalive.
const SILENCE: Duration = Duration::from_secs(300);

/// Why a session ended before its transfer did.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error(transparent)]
    Target(#[from] StepError<TargetError>),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the source can't be reached")]
    Connect(#[from] ConnectError),
    #[error("the source's roster and this one's could not be compared")]
    Roster(#[from] SyncError),
    #[error("the source refused it")]
    Refused,
    #[error("the source ended the session: {}", .0.message())]
    Status(Status),
    #[error("the source closed the session")]
    Closed,
    #[error("the source was silent for too long")]
    Silent,
    #[error("the source sent what is not due")]
    Unexpected(#[from] Unexpected),
}

/// What follows from a session that ended before its transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The next session may go on.
    TryAgain,
    /// The keys that came can't be taken: the source is told in the next session.
    Decline,
    /// The source has refused, or will never be dialed again.
    End,
}

impl PullError {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Refused => Verdict::End,
            Self::Target(StepError::Refused(error)) if error.declines() => Verdict::Decline,
            Self::Target(StepError::Refused(error)) if error.is_final() => Verdict::End,
            _ => Verdict::TryAgain,
        }
    }
}

impl PullError {
    /// What the requester may know of a session that is tried again: nothing of cryptographic checks.
    pub(super) fn requester_text(&self) -> &'static str {
        match self {
            Self::Connect(_) => "the target can't reach the source",
            Self::Target(StepError::Refused(TargetError::Alarm)) => ALARM_AT_TARGET,
            _ => "a session has failed, and the target tries again",
        }
    }
}

/// `Ok` once the transfer's record is no longer open.
pub(super) async fn run(node: &Arc<Node>, id: AuthorizationId) -> Result<(), PullError> {
    let found = node.engine.read(move |lockbox| {
        let open = lockbox.open_incoming_transfer(id).map_err(TargetError::from)?;
        open.map(|open| Ok((open, lockbox.begin_session(id)?))).transpose()
    });
    let found = found.await.map_err(StepError::from)?;
    let Some((open, (present, state))) = found.map_err(StepError::Refused)? else {
        return Ok(());
    };
    let mut client = dial(node, &open).await?;
    roster_sync::with_peer(node, &client).await?;
    // The head that is presented is the one of now.
    let present = match node.engine.cluster().map_err(StepError::from)?.roster.as_ref() {
        Some(roster) => Present {
            roster_head: roster.head(),
            ..present
        },
        None => present,
    };
    tracing::info!(target: "transfer", authorization = %id, step = "presented", role = "target");
    let (outbound, messages) = mpsc::unbounded_channel();
    // It can't be closed: its other end is the stream below.
    let _ = outbound.send(peer_wire::present(present));
    let answer = client.transfer(UnboundedReceiverStream::new(messages)).await;
    let inbound = answer.map_err(explain)?.into_inner();
    Talk {
        node,
        id,
        inbound,
        outbound,
    }
    .run(state)
    .await
}

async fn dial(node: &Arc<Node>, open: &OpenIncoming) -> Result<PeerServiceClient<Channel>, PullError> {
    let key = node.identity().await?;
    let tls = raw_key::client_config(&key, *open.source_key.as_bytes());
    let channel = connect_raw_key(&open.source_address, tls, &ClientTimeouts::default()).await?;
    Ok(PeerServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// What a session talks through.
///
/// Messages to the source wait without a bound, or both ends could wait for each other while many receipts are resumed.
/// They were in memory before, and in the rest of the session the source's window bounds them.
struct Talk<'a> {
    node: &'a Arc<Node>,
    id: AuthorizationId,
    inbound: Streaming<TransferResponse>,
    outbound: mpsc::UnboundedSender<TransferRequest>,
}

impl Talk<'_> {
    async fn run(mut self, state: AwaitOffer) -> Result<(), PullError> {
        let FromSource::Offer(offer) = self.next().await? else {
            return Err(Unexpected.into());
        };
        let step = self
            .node
            .engine
            .step(move |lockbox, _, rng| state.offer(lockbox, &offer, rng));
        let (resume, mut state) = step.await?;
        self.log("offer-verified");
        for message in resume {
            self.send(peer_wire::resume(message))?;
        }
        loop {
            state = match self.next().await? {
                FromSource::Chunk(chunk) => self.chunk(state, chunk).await?,
                FromSource::Settlement(settlement) => self.settlement(state, settlement).await?,
                FromSource::Finished => return self.finished(state).await,
                FromSource::Offer(_) => return Err(Unexpected.into()),
            }
        }
    }

    async fn chunk(&mut self, state: AwaitChunk, chunk: Chunk) -> Result<AwaitChunk, PullError> {
        let (id, number) = (self.id, chunk.chunk);
        tracing::info!(target: "transfer", authorization = %id, step = "chunk-received", role = "target", chunk = number);
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| state.chunk(lockbox, &chunk, now_ms, rng));
        let (receipt, state) = step.await?;
        tracing::info!(target: "transfer", authorization = %id, step = "chunk-stored", role = "target", chunk = number);
        self.send(peer_wire::stored_chunk(receipt))?;
        Ok(state)
    }

    async fn settlement(&mut self, state: AwaitChunk, settlement: Settlement) -> Result<AwaitChunk, PullError> {
        let step = self
            .node
            .engine
            .step(move |lockbox, _, rng| state.settled(lockbox, &settlement, rng));
        let state = step.await?;
        self.log("settlement-recorded");
        Ok(state)
    }

    async fn finished(&mut self, state: AwaitChunk) -> Result<(), PullError> {
        let step = self
            .node
            .engine
            .step(move |lockbox, now_ms, rng| state.finished(lockbox, now_ms, rng));
        step.await?;
        self.log("complete");
        Ok(())
    }

    async fn next(&mut self) -> Result<FromSource, PullError> {
        let message = tokio::time::timeout(SILENCE, self.inbound.message()).await;
        let message = message.map_err(|_| PullError::Silent)?.map_err(explain)?;
        Ok(peer_wire::from_source(message.ok_or(PullError::Closed)?)?)
    }

    fn send(&self, message: TransferRequest) -> Result<(), PullError> {
        self.outbound.send(message).map_err(|_| PullError::Closed)
    }

    fn log(&self, step: &'static str) {
        tracing::info!(target: "transfer", authorization = %self.id, step, role = "target");
    }
}

fn explain(status: Status) -> PullError {
    match status.code() {
        Code::PermissionDenied => PullError::Refused,
        _ => PullError::Status(status),
    }
}
