//! The link to a broker: one task while the lockbox is unsealed and belongs to a cluster, or wants to.
//!
//! | stage | does | then |
//! |---|---|---|
//! | no cluster | waits for a join | connects |
//! | connects | tries the brokers in turn, each pinned to its key | syncs |
//! | syncs | brings both rosters to the same head | asks or streams |
//! | asks | asks for admission, again and again | syncs |
//! | streams | see [`stream`] | connects |

mod inventory;
mod report;
mod stream;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockbox_authz::AuthorizationId;
use lockbox_core::lockbox::{BrokerAddress, LockboxError, Membership, Standing};
use lockbox_core::report::Role;
use lockbox_rpc::api::node::node_service_client::NodeServiceClient;
use lockbox_rpc::api::node::{JoinRequest, JoinStatus, TransferStage};
use lockbox_rpc::tls::raw_key;
use lockbox_rpc::transport::{ClientTimeouts, ConnectError, MAX_MESSAGE_BYTES, connect_raw_key};
use tokio::sync::Notify;
use tonic::Status;
use tonic::transport::Channel;

use crate::backoff::Backoff;
use crate::clock::now_ms;
use crate::engine::{Cluster, Sealed, StepError};
use crate::node::{IdentityError, Node, lock};
use crate::roster_sync::{self, SyncError};

/// A broker that is gone is noticed within this and [`KEEPALIVE_TIMEOUT`], also when the network says nothing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Refusals that wait for a connection. Best effort: the requester would only learn later, by the authorization's expiry.
const MAX_WAITING_REFUSALS: usize = 256;

/// How the link stands, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub(crate) connected: bool,
    /// host:port of the broker that is connected, or was last tried.
    pub(crate) address: String,
}

/// First presentations that this lockbox refused as source, and transfers that do not go on for now.
#[derive(Default)]
pub(crate) struct Refusals {
    waiting: Mutex<VecDeque<Word>>,
    wake: Notify,
}

/// What the requester may know of a transfer, and no ledger has.
pub(crate) struct Word {
    pub(crate) id: AuthorizationId,
    pub(crate) role: Role,
    /// REFUSED or WAITING.
    pub(crate) stage: TransferStage,
    pub(crate) detail: String,
}

/// Why the link broke, or could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the rosters could not be compared")]
    Sync(#[from] SyncError),
    #[error("the broker answered: {}", .0.message())]
    Status(#[from] Status),
    #[error("the broker closed the connection")]
    Closed,
    #[error(
        "another machine connected to the broker with this lockbox's identity; if this machine or its state folder was copied, \
         stop one of the two"
    )]
    Displaced,
    #[error("the broker sent what is not due")]
    Unexpected,
    #[error(transparent)]
    Step(#[from] StepError<LockboxError>),
    #[error("the roster has retired the broker")]
    Retired,
    #[error("the roster has retired this lockbox")]
    SelfRetired,
}

impl From<Sealed> for LinkError {
    fn from(sealed: Sealed) -> Self {
        Self::Step(sealed.into())
    }
}

impl Refusals {
    /// This lockbox, as the source, refused it for good.
    pub(crate) fn refused(&self, id: AuthorizationId, detail: String) {
        self.push(Word {
            id,
            role: Role::Source,
            stage: TransferStage::Refused,
            detail,
        });
    }

    /// It can't go on for now.
    pub(crate) fn waits(&self, id: AuthorizationId, role: Role, detail: impl Into<String>) {
        self.push(Word {
            id,
            role,
            stage: TransferStage::Waiting,
            detail: detail.into(),
        });
    }

    /// A later word replaces an earlier one. Without room a refusal, which is said once, replaces what is said with each attempt.
    fn push(&self, word: Word) {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|other| (other.id, other.role) != (word.id, word.role));
        if waiting.len() == MAX_WAITING_REFUSALS {
            if word.stage == TransferStage::Waiting {
                return;
            }
            let least = waiting.iter().position(|other| other.stage == TransferStage::Waiting);
            waiting.remove(least.unwrap_or(0));
        }
        waiting.push_back(word);
        drop(waiting);
        self.wake.notify_one();
    }

    pub(crate) fn clear(&self) {
        lock(&self.waiting).clear();
    }

    fn pop(&self) -> Option<Word> {
        lock(&self.waiting).pop_front()
    }
}

/// Runs until the lockbox is sealed. Dropping it closes the connection.
pub(crate) async fn run(node: Arc<Node>) {
    let mut cluster = node.engine.watch_cluster();
    let mut backoff = Backoff::default();
    let mut displaced = Backoff::after_displacement();
    for turn in 0_usize.. {
        let Some(membership) = membership(&mut cluster).await else {
            return;
        };
        let Some(broker) = membership.brokers.get(turn % membership.brokers.len().max(1)) else {
            // A cluster without a broker: transfers go by hand.
            if cluster.changed().await.is_err() {
                return;
            }
            continue;
        };
        node.link.send_replace(LinkState {
            connected: false,
            address: broker.address.clone(),
        });
        let began = Instant::now();
        let Err(error) = talk(&node, broker, &mut backoff).await;
        node.link.send_modify(|link| link.connected = false);
        if node.engine.is_sealed() {
            return;
        }
        displaced.lasted(began.elapsed());
        let pause = match error {
            LinkError::Displaced => displaced.next(),
            _ => backoff.next(),
        };
        let (broker, pause_ms, error) = (&broker.address, pause.as_millis(), crate::chain(&error));
        tracing::warn!(
            broker,
            error,
            pause_ms,
            "no connection to the broker; it is tried again"
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // A roster that was brought by hand, or another join, may be what was missing.
            _ = cluster.changed() => {}
        }
    }
}

/// A client of a broker's node port that has proved its key.
pub(crate) async fn connect(node: &Node, broker: &BrokerAddress) -> Result<NodeServiceClient<Channel>, LinkError> {
    Ok(node_client(connect_channel(node, broker).await?))
}

fn node_client(channel: Channel) -> NodeServiceClient<Channel> {
    NodeServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

async fn connect_channel(node: &Node, broker: &BrokerAddress) -> Result<Channel, LinkError> {
    let key = node.identity().await?;
    let tls = raw_key::client_config(&key, *broker.signing_key.as_bytes());
    let timeouts = ClientTimeouts {
        keepalive_interval: KEEPALIVE_INTERVAL,
        keepalive_timeout: KEEPALIVE_TIMEOUT,
        ..ClientTimeouts::default()
    };
    Ok(connect_raw_key(&broker.address, tls, &timeouts).await?)
}

/// Asks for admission without a token. True if the roster has this lockbox already.
pub(crate) async fn ask_for_admission(
    node: &Node,
    client: &NodeServiceClient<Channel>,
    labels: lockbox_authz::Labels,
) -> Result<bool, LinkError> {
    let request = node.engine.read(move |lockbox| {
        lockbox
            .join_request(labels, now_ms())
            .map(|request| request.envelope().to_bytes())
    });
    let request = request.await?.map_err(StepError::Refused)?;
    let request = JoinRequest {
        request,
        roster_entry: Vec::new(),
    };
    let answer = client.clone().join(request).await?.into_inner();
    Ok(answer.status() == JoinStatus::Admitted)
}

/// Waits for a cluster; `None` once the lockbox is sealed.
async fn membership(cluster: &mut tokio::sync::watch::Receiver<Option<Arc<Cluster>>>) -> Option<Membership> {
    let is_settled =
        |cluster: &Option<Arc<Cluster>>| cluster.as_ref().is_none_or(|cluster| cluster.membership.is_some());
    let cluster = cluster.wait_for(is_settled).await.ok()?;
    cluster.as_ref().and_then(|cluster| cluster.membership.clone())
}

/// Talks to one broker for as long as that goes.
async fn talk(node: &Arc<Node>, broker: &BrokerAddress, backoff: &mut Backoff) -> Result<Infallible, LinkError> {
    let channel = connect_channel(node, broker).await?;
    let client = node_client(channel.clone());
    loop {
        roster_sync::with_broker(node, &client).await?;
        let cluster = node.engine.cluster()?;
        let is_known = |roster: &Arc<lockbox_authz::Roster>| roster.broker_keys().contains(&broker.signing_key);
        if !cluster.roster.as_ref().is_none_or(is_known) {
            return Err(LinkError::Retired);
        }
        match cluster.standing {
            Standing::Retired => return Err(LinkError::SelfRetired),
            Standing::Admitted => {
                let mut streaming = pin!(stream::run(node, client, backoff));
                return tokio::select! {
                    ended = &mut streaming => ended,
                    // The stream has to tell the broker that the lockbox is sealed.
                    ended = inventory::run(node, channel) => match node.engine.is_sealed() {
                        true => streaming.await,
                        false => ended,
                    },
                };
            }
            Standing::None | Standing::Pending => {
                if let Ok(labels) = node.joining.try_lock()
                    && !ask_for_admission(node, &client, labels.clone()).await?
                {
                    tracing::info!(broker = broker.address, "waiting for an admin to admit this lockbox");
                }
            }
        }
        let mut changes = node.engine.watch_cluster();
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            _ = changes.changed() => {}
        }
    }
}
