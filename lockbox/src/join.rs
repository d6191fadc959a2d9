//! Joining a cluster: with a token at once, without one after an admin's look. SPEC section 3.

use std::sync::Arc;

use lockbox_authz::{FieldError, JoinToken, Labels, RosterError};
use lockbox_core::lockbox::{BrokerAddress, LockboxError, Membership, Standing};
use lockbox_rpc::api::node::{JoinRequest, JoinStatus};
use tonic::{Code, Status};

use crate::broker_link::{self, LinkError};
use crate::clock::{CLOCK_WARNING_MS, now_ms};
use crate::engine::{Sealed, StepError};
use crate::node::Node;
use crate::roster_sync::{self, SyncError};
use crate::status::LocalCode;

/// How often the roster may grow under the entry that the token signs, before the join is given up.
const ATTEMPTS: usize = 8;

/// How often one entry is sent while its place in the roster is free.
const SUBMISSIONS: u32 = 2;

/// Why a join came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("{0}")]
    Token(#[from] FieldError),
    #[error(transparent)]
    Step(#[from] StepError<LockboxError>),
    #[error("the broker at {address}: {}", crate::chain(.source))]
    Broker { address: String, source: LinkError },
    #[error(
        "the broker at {address} did not take the request to join: {}; this lockbox goes on asking",
        crate::chain(.source)
    )]
    NotAsked { address: String, source: LinkError },
    #[error("the token admits nobody: {0}; ask for a new one")]
    TokenRefused(RosterError),
    #[error("the broker took the request and its roster does not have this lockbox")]
    NotAdmitted,
    #[error(
        "the broker did not admit by the entry that the token signed, and its roster has no other entry {index}: it may be \
         withholding entries; the token signed nothing else"
    )]
    Withheld { index: u64 },
}

impl JoinError {
    pub(crate) fn to_status(&self) -> Status {
        let code = match self {
            Self::Token(_) => Code::InvalidArgument,
            Self::Step(error) => error.code(),
            Self::NotAsked {
                source: LinkError::Status(status),
                ..
            } if status.code() == Code::PermissionDenied => Code::PermissionDenied,
            Self::Broker { .. } | Self::NotAsked { .. } => Code::Unavailable,
            Self::TokenRefused(_) | Self::NotAdmitted | Self::Withheld { .. } => Code::FailedPrecondition,
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

/// Asks to join without a token. The link goes on asking until an admin has decided, also after an error.
pub(crate) async fn without_token(
    node: &Arc<Node>,
    membership: Membership,
    labels: Labels,
) -> Result<Standing, JoinError> {
    // Until this is done the link must not ask at the same time.
    let mut joining = node.joining.lock().await;
    joining.clone_from(&labels);
    let broker = membership.brokers.first().cloned();
    set_membership(node, membership).await?;
    if let Some(broker) = broker {
        let asked = ask(node, &broker, labels).await;
        asked.map_err(|source| JoinError::NotAsked {
            address: broker.address,
            source,
        })?;
    }
    Ok(standing(node).map_err(StepError::from)?)
}

async fn ask(node: &Arc<Node>, broker: &BrokerAddress, labels: Labels) -> Result<(), LinkError> {
    let client = broker_link::connect(node, broker).await?;
    roster_sync::with_broker(node, &client).await?;
    if standing(node)? != Standing::Pending {
        return Ok(());
    }
    if broker_link::ask_for_admission(node, &client, labels).await? {
        roster_sync::with_broker(node, &client).await?;
    }
    Ok(())
}

fn standing(node: &Arc<Node>) -> Result<Standing, Sealed> {
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
    let mut last: Option<Admission> = None;
    for _ in 0..ATTEMPTS {
        roster_sync::with_broker(node, &client).await?;
        let standing = node.engine.cluster()?.standing;
        if matches!(standing, Standing::Admitted | Standing::Retired) {
            return Ok(standing);
        }
        // The entry is not applied here: it lacks the broker's signature, and comes back with it in the roster.
        let admission = match last.take() {
            Some(last) if !is_taken(node, last.index)? => {
                let index = last.index;
                let withheld = || Failure::Join(JoinError::Withheld { index });
                last.once_more().ok_or_else(withheld)?
            }
            _ => sign(node, token).await?,
        };
        let answer = client.clone().join(admission.request.clone()).await;
        last = Some(admission);
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(JoinStatus::Admitted) => {}
            Ok(JoinStatus::Pending | JoinStatus::Unspecified) => return Err(Failure::Join(JoinError::NotAdmitted)),
            // Another entry was faster, says the broker. If its roster shows one, the next is signed on top of it.
            Err(status) if status.code() == Code::Aborted => {}
            Err(status) => return Err(LinkError::from(status).into()),
        }
    }
    Err(Failure::Join(JoinError::NotAdmitted))
}

/// What the token has signed for one place of the roster. As long as the place is free, the same bytes are sent: a stolen
/// broker would get one more entry for each lie, and two of them are a fork.
struct Admission {
    request: JoinRequest,
    index: u64,
    sent: u32,
}

impl Admission {
    /// `None` if it was sent often enough.
    fn once_more(self) -> Option<Self> {
        (self.sent < SUBMISSIONS).then(|| Self {
            sent: self.sent + 1,
            ..self
        })
    }
}

/// Whether the roster has an entry at a place.
fn is_taken(node: &Arc<Node>, index: u64) -> Result<bool, Sealed> {
    let roster = &node.engine.cluster()?.roster;
    Ok(roster.as_ref().is_some_and(|roster| roster.head().index >= index))
}

async fn sign(node: &Arc<Node>, token: &Arc<JoinToken>) -> Result<Admission, Failure> {
    // The entry is dated by this machine's clock, and can't be taken back.
    let broker_ms = node.broker_clock.now_ms().unwrap_or_else(now_ms);
    let ahead_ms = now_ms().saturating_sub(broker_ms);
    if ahead_ms.abs() > CLOCK_WARNING_MS {
        tracing::warn!(
            ahead_ms,
            "this machine's clock differs from the broker's; find out which of the two is wrong"
        );
    }
    let token = Arc::clone(token);
    let signed = node.engine.read(move |lockbox| {
        let entry = lockbox.admission_by_token(&token, now_ms())?;
        let labels = match &entry.statement().change {
            lockbox_authz::roster::Change::AdmitLockbox(member) => member.labels.clone(),
            _ => Labels::default(),
        };
        let request = lockbox.join_request(labels, now_ms())?;
        Ok(Admission {
            request: JoinRequest {
                request: request.envelope().to_bytes(),
                roster_entry: entry.envelope().to_bytes(),
            },
            index: entry.statement().index,
            sent: 1,
        })
    });
    signed.await?.map_err(|error| {
        Failure::Join(match error {
            LockboxError::Roster(error) => JoinError::TokenRefused(error),
            error => JoinError::Step(StepError::Refused(error)),
        })
    })
}

async fn set_membership(node: &Arc<Node>, membership: Membership) -> Result<(), StepError<LockboxError>> {
    let step = node
        .engine
        .step(move |lockbox, _, rng| lockbox.set_membership(membership, rng));
    step.await
}
