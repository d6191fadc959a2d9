//! What a caller on this machine is told: its own errors exactly.
//!
//! What another machine is told stands in [`crate::peer_service`]: that is coarse.

use lockbox_authz::{FieldError, RosterError};
use lockbox_core::lifecycle::LifecycleError;
use lockbox_core::lifecycle::notice::NoticeError;
use lockbox_core::lockbox::LockboxError;
use lockbox_core::slots::SlotError;
use lockbox_core::transfer::target::TargetError;
use lockbox_core::vault::VaultError;
use lockbox_store::StoreFailure;
use tonic::{Code, Status};

use crate::engine::{Sealed, StepError};

/// The gRPC code under which a caller on this machine hears of an error. The text is the error's own.
pub(crate) trait LocalCode: std::fmt::Display {
    fn code(&self) -> Code;
}

/// The one way from an error to an answer on the local socket.
pub(crate) fn local<E: LocalCode>(error: E) -> Status {
    let code = error.code();
    if matches!(code, Code::Internal | Code::DataLoss) {
        tracing::error!(%error, "a local request failed");
    }
    Status::new(code, error.to_string())
}

impl LocalCode for Sealed {
    fn code(&self) -> Code {
        Code::FailedPrecondition
    }
}

impl<E: LocalCode> LocalCode for StepError<E> {
    fn code(&self) -> Code {
        match self {
            Self::Sealed => Code::FailedPrecondition,
            Self::Refused(error) => error.code(),
            Self::NoRoom(failure) => failure.code(),
            Self::Stopping => Code::Unavailable,
        }
    }
}

impl LocalCode for StoreFailure {
    fn code(&self) -> Code {
        match self {
            Self::NearlyFull => Code::ResourceExhausted,
            Self::Damaged { .. } => Code::DataLoss,
            Self::Open { .. } | Self::ReadOnly => Code::FailedPrecondition,
            Self::Io { .. }
            | Self::Stopped { .. }
            | Self::BatchTooLarge { .. }
            | Self::KeyTooLarge { .. }
            | Self::ValueTooLarge { .. } => Code::Internal,
        }
    }
}

impl LocalCode for FieldError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl LocalCode for RosterError {
    fn code(&self) -> Code {
        match self {
            Self::Fork { .. } | Self::Gap { .. } => Code::FailedPrecondition,
            _ => Code::InvalidArgument,
        }
    }
}

impl LocalCode for LockboxError {
    fn code(&self) -> Code {
        match self {
            Self::Vault(VaultError::Store(failure)) => failure.code(),
            Self::Vault(_) | Self::Record { .. } | Self::DamagedKey { .. } => Code::DataLoss,
            Self::NotScanned(_) => Code::FailedPrecondition,
            Self::Field(error) => error.code(),
            Self::Roster(error) => error.code(),
            // SPEC section 11.6: the text says which.
            Self::NoKey(_) | Self::NoKeyNamed(_) | Self::NoAlarm(_) | Self::WasDestroyed(_) | Self::WasMoved { .. } => {
                Code::NotFound
            }
            Self::KeyExists(_) | Self::NameTaken { .. } => Code::AlreadyExists,
            Self::Lifecycle(error) => error.code(),
            Self::OtherCluster { .. }
            | Self::NoCluster
            | Self::SeveralNamed { .. }
            | Self::KeyInTransfer { .. }
            | Self::KeyInUse { .. } => Code::FailedPrecondition,
        }
    }
}

impl LocalCode for LifecycleError {
    fn code(&self) -> Code {
        match self {
            Self::NoJob(_) | Self::NoConsumer { .. } => Code::NotFound,
            Self::Proof(_) | Self::Field(_) => Code::InvalidArgument,
            Self::ClonePolicy { .. } => Code::PermissionDenied,
            Self::Transition { .. }
            | Self::State { .. }
            | Self::Scheduled(_)
            | Self::NotScheduled(_)
            | Self::Layered { .. }
            | Self::InJob { .. }
            | Self::JobState { .. }
            | Self::Unfinished { .. }
            | Self::HasRun(_)
            | Self::TooManyLayers(_) => Code::FailedPrecondition,
        }
    }
}

impl LocalCode for NoticeError {
    fn code(&self) -> Code {
        match self {
            Self::Refused(_) => Code::InvalidArgument,
            Self::Local(error) => error.code(),
        }
    }
}

impl LocalCode for TargetError {
    fn code(&self) -> Code {
        match self {
            Self::Local(error) => error.code(),
            Self::Field(error) => error.code(),
            Self::Authorization(_) | Self::OtherCluster | Self::OtherTarget | Self::OtherWrappingKey => {
                Code::InvalidArgument
            }
            Self::NoTransfer(_) => Code::NotFound,
            Self::OtherAuthorization => Code::AlreadyExists,
            _ => Code::FailedPrecondition,
        }
    }
}

impl LocalCode for SlotError {
    fn code(&self) -> Code {
        match self {
            Self::NoSlotOpens => Code::PermissionDenied,
            Self::PassphraseLength | Self::KeyFileLength => Code::InvalidArgument,
            Self::Header(_) | Self::Cost => Code::DataLoss,
            Self::NoFreeSlot => Code::ResourceExhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use lockbox_authz::{KeyId, LockboxId};

    use super::*;

    /// A program that looks for a key must not take one that is gone for a lockbox that is not ready.
    #[test]
    fn a_key_that_is_gone_is_not_found() {
        let key = KeyId::from_random([1; 16]);
        let target = LockboxId::from_random([2; 16]);
        for gone in [LockboxError::WasDestroyed(key), LockboxError::WasMoved { key, target }] {
            let text = gone.to_string();
            let answer = local(gone);
            assert_eq!((answer.code(), answer.message()), (Code::NotFound, text.as_str()));
        }
    }
}
