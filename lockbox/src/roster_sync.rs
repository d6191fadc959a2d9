//! Bringing two rosters to the same head, whoever is behind. SPEC section 2.

use std::sync::Arc;

use lockbox_authz::envelope::EnvelopeError;
use lockbox_authz::limits::MAX_ROSTER_PAGE;
use lockbox_authz::roster::{Head, HeadComparison, Roster};
use lockbox_authz::{FieldError, RosterError, UnverifiedEnvelope};
use lockbox_core::lockbox::LockboxError;
use lockbox_rpc::api::node::node_service_client::NodeServiceClient;
use lockbox_rpc::api::peer::peer_service_client::PeerServiceClient;
use lockbox_rpc::api::{node as node_api, peer as peer_api};
use tonic::Status;
use tonic::transport::Channel;

use crate::engine::{Sealed, StepError};
use crate::node::Node;

/// Bytes of entries in one message. The last entry may go beyond, by an envelope's 48 KiB. A broker that does not know this
/// lockbox yet, which is what the entries may change, takes 128 KiB.
const MAX_PAGE_BYTES: usize = 64 * 1024;

/// Pages in one exchange: more would be more entries than a cluster makes in its life, or an endless answer.
const MAX_ROUNDS: usize = 4_096;

/// A head, and entries that the other side lacks. `None`: no roster yet.
struct Exchange {
    head: Option<Head>,
    entries: Vec<Vec<u8>>,
}

/// Why two rosters are not the same now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error("the other side did not answer as it should: {}", .0.message())]
    Call(#[from] Status),
    #[error("the other side's answer is malformed: {0}")]
    Field(#[from] FieldError),
    #[error("a roster entry is malformed: {0}")]
    Entry(#[from] EnvelopeError),
    #[error("the other side has another roster than this lockbox")]
    Forked,
    #[error("the other side claims entries and does not give them")]
    NoProgress,
    #[error(transparent)]
    Roster(#[from] RosterError),
    #[error(transparent)]
    Step(#[from] StepError<LockboxError>),
}

impl From<Sealed> for SyncError {
    fn from(sealed: Sealed) -> Self {
        Self::Step(sealed.into())
    }
}

/// The other side: its client can be cloned cheaply, and a call takes a client of its own.
enum Other {
    Broker(NodeServiceClient<Channel>),
    Peer(PeerServiceClient<Channel>),
}

/// With the broker that is connected.
pub(crate) async fn with_broker(node: &Arc<Node>, client: &NodeServiceClient<Channel>) -> Result<(), SyncError> {
    sync(node, &mut Other::Broker(client.clone())).await
}

/// With another lockbox.
pub(crate) async fn with_peer(node: &Arc<Node>, client: &PeerServiceClient<Channel>) -> Result<(), SyncError> {
    sync(node, &mut Other::Peer(client.clone())).await
}

impl Other {
    async fn exchange(&mut self, node: &Node, ours: Exchange) -> Result<Exchange, SyncError> {
        let (head, entries) = (ours.head.map(Head::to_wire), ours.entries);
        let (head, entries) = match self {
            Self::Broker(client) => {
                let request = node_api::SyncRosterRequest { head, entries };
                let answer = client.sync_roster(request).await?.into_inner();
                if answer.time_ms != 0 {
                    node.broker_clock.set(answer.time_ms);
                }
                (answer.head, answer.entries)
            }
            Self::Peer(client) => {
                let request = peer_api::SyncRosterRequest { head, entries };
                let answer = client.sync_roster(request).await?.into_inner();
                (answer.head, answer.entries)
            }
        };
        let head = head.as_ref().map(Head::from_wire).transpose()?;
        Ok(Exchange { head, entries })
    }
}

/// Applies serialized entries, and does what follows from new ones. Gives their number.
pub(crate) async fn apply(node: &Arc<Node>, entries: &[Vec<u8>]) -> Result<u32, SyncError> {
    let envelopes: Vec<_> = entries
        .iter()
        .map(|bytes| UnverifiedEnvelope::from_bytes(bytes))
        .collect::<Result<_, _>>()?;
    let applied = node
        .engine
        .step(move |lockbox, now_ms, rng| lockbox.apply_roster(&envelopes, now_ms, rng))
        .await?
        .inspect_err(|error| match error {
            RosterError::Fork { .. } => tracing::error!(%error, "ALARM: transfers are stopped until it is cleared"),
            _ => tracing::warn!(%error, "roster entries were refused"),
        })?;
    if applied > 0 {
        tracing::info!(applied, "the roster has grown");
        let ended = node
            .engine
            .step(|lockbox, now_ms, rng| lockbox.end_with_retired(now_ms, rng));
        ended.await?;
        // A source that was unknown may be known now, and a retired one need not be dialed any more.
        node.pulls.ask_for_all();
    }
    Ok(applied)
}

/// One page of entries from an index on, serialized.
pub(crate) fn page(roster: &Roster, from_index: u64) -> Vec<Vec<u8>> {
    let mut bytes = 0;
    roster
        .entries_from(from_index, MAX_ROSTER_PAGE)
        .map(UnverifiedEnvelope::to_bytes)
        .take_while(|entry| {
            let fits = bytes < MAX_PAGE_BYTES;
            bytes += entry.len();
            fits
        })
        .collect()
}

/// The first entry that a party with this head lacks. To one with another roster, the entry is given that shows it.
pub(crate) fn first_lacking(roster: &Roster, their_head: Head) -> u64 {
    match roster.compare(their_head) {
        HeadComparison::Forked => their_head.index,
        HeadComparison::Same | HeadComparison::TheyAreBehind | HeadComparison::TheyAreAhead => {
            their_head.index.saturating_add(1)
        }
    }
}

async fn sync(node: &Arc<Node>, other: &mut Other) -> Result<(), SyncError> {
    let mut entries = Vec::new();
    let mut fork_was_shown = false;
    for _ in 0..MAX_ROUNDS {
        let ours = node.engine.cluster()?.roster.as_ref().map(|roster| roster.head());
        let answer = other.exchange(node, Exchange { head: ours, entries }).await?;
        let applied = match answer.entries.is_empty() {
            true => 0,
            false => apply(node, &answer.entries).await?,
        };
        let (Some(roster), Some(theirs)) = (&node.engine.cluster()?.roster, answer.head) else {
            return Ok(());
        };
        match roster.compare(theirs) {
            HeadComparison::Same => return Ok(()),
            HeadComparison::TheyAreAhead if applied == 0 => return Err(SyncError::NoProgress),
            HeadComparison::Forked if fork_was_shown => return Err(SyncError::Forked),
            HeadComparison::TheyAreAhead => entries = Vec::new(),
            HeadComparison::TheyAreBehind => entries = page(roster, first_lacking(roster, theirs)),
            HeadComparison::Forked => {
                fork_was_shown = true;
                entries = page(roster, first_lacking(roster, theirs));
            }
        }
    }
    Err(SyncError::NoProgress)
}
