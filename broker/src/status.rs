//! What an asker learns of a refusal. SPEC section 11.5.

use lockbox_store::StoreFailure;
use tonic::{Code, Status};

use crate::decide::Denied;
use crate::refusal::Refusal;

/// For clients of the control plane's port: they are the broker's own callers, so their errors are exact. What is wrong
/// with this machine is for its log.
pub(crate) fn for_requester(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Store(_) | Refusal::Record(_) => for_machine(refusal),
        _ => Status::new(code(refusal), refusal.to_string()),
    }
}

/// For lockboxes, and for whoever says to be one: which cryptographic check failed is for the log.
pub(crate) fn for_node(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Store(_) | Refusal::Record(_) => for_machine(refusal),
        Refusal::Envelope(_) | Refusal::Certificate(_) | Refusal::Inventory(_) => Status::new(
            code(refusal),
            "what was sent is not properly signed for this; the broker's log says why",
        ),
        _ => Status::new(code(refusal), refusal.to_string()),
    }
}

fn for_machine(refusal: &Refusal) -> Status {
    tracing::error!(%refusal, "a request failed for a reason of this machine");
    match refusal {
        Refusal::Store(StoreFailure::NearlyFull) => {
            Status::resource_exhausted("the broker's disk is nearly full, and it takes nothing new until there is room")
        }
        Refusal::Store(_) => Status::unavailable("the broker's store has failed; its log says why"),
        _ => Status::data_loss("a record in the broker's store is damaged; its log says which"),
    }
}

fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Denied(denied) => code_of_denial(denied),
        Refusal::Field(_) => Code::InvalidArgument,
        Refusal::Envelope(_)
        | Refusal::Certificate(_)
        | Refusal::Inventory(_)
        | Refusal::Roster(_)
        | Refusal::Notice(_) => Code::PermissionDenied,
        Refusal::RequestIdTaken => Code::AlreadyExists,
        Refusal::UnknownTransfer
        | Refusal::UnknownLockbox(_)
        | Refusal::UnknownNotice
        | Refusal::UnknownKey(_)
        | Refusal::NoKeyNamed { .. } => Code::NotFound,
        Refusal::NotNext { .. } => Code::Aborted,
        Refusal::AlreadyComplete
        | Refusal::OtherCluster
        | Refusal::OtherAuthorization
        | Refusal::IdTaken
        | Refusal::OlderReport
        | Refusal::MuchIsGone
        | Refusal::NoKeyNames { .. }
        | Refusal::SeveralKeysNamed { .. }
        | Refusal::FromTheFuture { .. } => Code::FailedPrecondition,
        Refusal::Name(_) | Refusal::NotAnEnd | Refusal::NotAdmitted | Refusal::Retired | Refusal::JoinRejected => {
            Code::PermissionDenied
        }
        Refusal::TooManyPending
        | Refusal::TooManyOpenTransfers { .. }
        | Refusal::Busy
        | Refusal::TooManyKeys { .. }
        | Refusal::TooManyMaterials(_) => Code::ResourceExhausted,
        Refusal::NotTaken => Code::DeadlineExceeded,
        Refusal::Store(_) | Refusal::Record(_) => Code::Internal,
    }
}

fn code_of_denial(denied: &Denied) -> Code {
    match denied {
        Denied::UnknownRequester { .. }
        | Denied::NotPermitted { .. }
        | Denied::SelectionNotAllowed { .. }
        | Denied::TooManyKeys { .. }
        | Denied::LabelsNotAllowed { .. } => Code::PermissionDenied,
        Denied::Field(_) | Denied::TtlTooLong { .. } | Denied::SameLockbox => Code::InvalidArgument,
        Denied::UnknownLockbox { .. } | Denied::Retired { .. } => Code::NotFound,
        Denied::TargetNeverConnected { .. } | Denied::BrokerThreshold { .. } | Denied::BrokerNotAdmitted => {
            Code::FailedPrecondition
        }
    }
}
