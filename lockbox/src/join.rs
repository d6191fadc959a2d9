//! Joining a cluster: with a token at once, without one after an admin's look. SPEC section 3.

use std::sync::Arc;

use lockbox_authz::{FieldError, JoinToken, Labels, RosterError};
use lockbox_core::lockbox::{BrokerAddress, LockboxError, Membership, Standing};
use lockbox_rpc::api::node::node_service_client::NodeServiceClient;
use lockbox_rpc::api::node::{JoinRequest, JoinStatus};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::broker_link::{self, LinkError};
use crate::clock::now_ms;
use crate::engine::{Sealed, StepError};
use crate::node::Node;
use crate::roster_sync::{self, SyncError};
use crate::status::LocalCode;

/// How often the roster may grow under the entry that the token signs, before the join is given up.
const ATTEMPTS: usize = 8;

/// Why a join came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("{0}")]
    Token(#[from] FieldError),
    #[error(transparent)]
    Step(#[from] StepError<LockboxError>),
    #[error("the broker at {address}: {}", crate::chain(.source))]
    Broker { address: String, source: LinkError },
    #[error("the token admits nobody: {0}; ask for a new one")]
    TokenRefused(RosterError),
    #[error("the broker took the request and its roster does not have this lockbox")]
    NotAdmitted,
}

impl JoinError {
    pub(crate) fn to_status(&self) -> Status {
        let code = match self {
            Self::Token(_) => Code::InvalidArgument,
            Self::Step(error) => error.code(),
            Self::Broker { .. } => Code::Unavailable,
            Self::TokenRefused(_) | Self::NotAdmitted => Code::FailedPrecondition,
        };
        Status::new(code, self.to_string())
    }
}

/// Joins with a token. When this returns, the lockbox is a member.
pub(crate) async fn with_token(node: &Arc<Node>, token: &str) -> Result<Standing, JoinError> {
    let token = Arc::new(JoinToken::decode(token)?);
    // Until this is done the link must not ask for admission without the token.
    let _joining = node.joining.lock().await;
    let broker = BrokerAddress {
        address: token.broker_address.clone(),
        signing_key: token.broker_key,
    };
    let membership = Membership {
        cluster_id: token.cluster_id,
        brokers: vec![broker.clone()],
    };
    set_membership(node, membership).await?;
    let outcome = admit(node, &broker, &token).await;
    outcome.map_err(|error| match error {
        Failure::Join(error) => error,
        Failure::Link(source) => JoinError::Broker {
            address: broker.address,
            source,
        },
    })
}

/// Asks to join without a token. The link goes on asking until an admin has decided.
pub(crate) async fn without_token(
    node: &Arc<Node>,
    membership: Membership,
    labels: Labels,
) -> Result<Standing, StepError<LockboxError>> {
    *node.joining.lock().await = labels;
    set_membership(node, membership).await?;
    Ok(node.engine.cluster()?.standing)
}

enum Failure {
    Join(JoinError),
    Link(LinkError),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        Self::Link(error.into())
    }
}

impl From<Sealed> for Failure {
    fn from(sealed: Sealed) -> Self {
        Self::Link(sealed.into())
    }
}

async fn admit(node: &Arc<Node>, broker: &BrokerAddress, token: &Arc<JoinToken>) -> Result<Standing, Failure> {
    let client = broker_link::connect(node, broker).await?;
    for _ in 0..ATTEMPTS {
        roster_sync::with_broker(node, &client).await?;
        let standing = node.engine.cluster()?.standing;
        if matches!(standing, Standing::Admitted | Standing::Retired) {
            return Ok(standing);
        }
        match ask(node, &client, token).await {
            Ok(JoinStatus::Admitted) => {}
            Ok(JoinStatus::Pending | JoinStatus::Unspecified) => return Err(Failure::Join(JoinError::NotAdmitted)),
            // Another entry was faster: the next one is signed on top of it.
            Err(Failure::Link(LinkError::Status(status))) if status.code() == Code::Aborted => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::Join(JoinError::NotAdmitted))
}

async fn ask(
    node: &Arc<Node>,
    client: &NodeServiceClient<Channel>,
    token: &Arc<JoinToken>,
) -> Result<JoinStatus, Failure> {
    let token = Arc::clone(token);
    let signed = node.engine.read(move |lockbox| {
        let entry = lockbox.admission_by_token(&token, now_ms())?;
        let labels = match &entry.statement().change {
            lockbox_authz::roster::Change::AdmitLockbox(member) => member.labels.clone(),
            _ => Labels::default(),
        };
        let request = lockbox.join_request(labels, now_ms())?;
        Ok(JoinRequest {
            request: request.envelope().to_bytes(),
            roster_entry: entry.envelope().to_bytes(),
        })
    });
    let request = signed.await?.map_err(|error| {
        Failure::Join(match error {
            LockboxError::Roster(error) => JoinError::TokenRefused(error),
            error => JoinError::Step(StepError::Refused(error)),
        })
    })?;
    let answer = client.clone().join(request).await.map_err(LinkError::from)?;
    Ok(answer.into_inner().status())
}

async fn set_membership(node: &Arc<Node>, membership: Membership) -> Result<(), StepError<LockboxError>> {
    let step = node
        .engine
        .step(move |lockbox, _, rng| lockbox.set_membership(membership, rng));
    step.await
}
