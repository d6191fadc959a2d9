//! What a command says when it fails, and its exit code (sysexits).

use std::error::Error;
use std::fmt;

use lockbox_rpc::transport::ConnectError;
use lockbox_store::StoreFailure;
use tonic::{Code, Status};

use super::output::printable;
use crate::admin::AdminError;
use crate::config::ConfigError;
use crate::files::FileError;
use crate::init::InitError;
use crate::keyfile::KeyFileError;
use crate::pki::PkiError;
use crate::serve::ServeError;

pub(super) const OTHER: u8 = 1;
/// The transfer is complete, and some of the selected keys stay at the source.
pub(super) const WITHHELD: u8 = 3;
pub(super) const USAGE: u8 = 64;
pub(super) const UNAVAILABLE: u8 = 69;
pub(super) const STORE: u8 = 74;
pub(super) const PERMISSION: u8 = 77;
pub(super) const CONFIG: u8 = 78;

/// One line: what failed, then what to do.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) message: String,
    pub(super) code: u8,
}

impl CliError {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code,
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    pub(super) fn other(message: impl Into<String>) -> Self {
        Self::new(OTHER, message)
    }

    /// What the broker answered to a request for something.
    pub(super) fn from_status(what: &str, status: &Status) -> Self {
        let (code, mend) = match status.code() {
            Code::Unavailable => (UNAVAILABLE, "; check that the broker is running"),
            // The connection broke under the request.
            Code::Unknown if status.source().is_some() => (UNAVAILABLE, "; check that the broker is running"),
            Code::PermissionDenied | Code::Unauthenticated => (PERMISSION, ""),
            _ => (OTHER, ""),
        };
        let answer = printable(status.message().to_owned());
        Self::new(code, format!("{what}: {answer}{mend}"))
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        let code = match error {
            ConnectError::Refused { .. } => PERMISSION,
            ConnectError::Address { .. } | ConnectError::ServerName { .. } => CONFIG,
            _ => UNAVAILABLE,
        };
        let mend = certificate_mend(&error).map(|mend| format!("; {mend}"));
        let cause = error.source().map(|cause| format!(" ({cause})"));
        Self::new(
            code,
            format!("{error}{}{}", cause.unwrap_or_default(), mend.unwrap_or_default()),
        )
    }
}

/// What to do about a certificate that one side does not take.
fn certificate_mend(error: &ConnectError) -> Option<&'static str> {
    use rustls::{AlertDescription as Alert, CertificateError as Problem, Error};
    match error {
        ConnectError::Refused {
            alert: Alert::CertificateExpired,
            ..
        } => Some(
            "this client's certificate has expired: make a new one with `lockbox-broker client create` on the broker's \
             machine",
        ),
        ConnectError::Refused {
            alert: Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate,
            ..
        } => Some(
            "if the broker's CA was replaced, make a new certificate with `lockbox-broker client create` on the broker's \
             machine",
        ),
        ConnectError::Handshake {
            source: Error::InvalidCertificate(Problem::Expired | Problem::ExpiredContext { .. }),
            ..
        } => Some(
            "the broker's certificate has expired: run `lockbox-broker certificate renew --dir DIR` on the broker's machine",
        ),
        ConnectError::Handshake {
            source: Error::InvalidCertificate(Problem::UnknownIssuer | Problem::BadSignature),
            ..
        } => Some(
            "if the broker's CA was replaced, make a new client folder with `lockbox-broker client create` on the broker's \
             machine",
        ),
        _ => None,
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(CONFIG, error.to_string())
    }
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        let code = match error {
            ServeError::Config(_) | ServeError::Open(crate::registry::OpenError::NoRoster) => CONFIG,
            ServeError::Open(_) | ServeError::Store(_) => STORE,
            ServeError::Bind { .. } => UNAVAILABLE,
            ServeError::File(_) | ServeError::Io { .. } => OTHER,
        };
        Self::new(code, error.to_string())
    }
}

impl From<StoreFailure> for CliError {
    fn from(failure: StoreFailure) -> Self {
        Self::new(STORE, failure.to_string())
    }
}

impl From<AdminError> for CliError {
    fn from(error: AdminError) -> Self {
        let code = match error {
            AdminError::NotAnAdmin { .. } | AdminError::TooFewSigners { .. } => PERMISSION,
            AdminError::NoKey => USAGE,
            _ => OTHER,
        };
        Self::new(code, error.to_string())
    }
}

impl From<FileError> for CliError {
    fn from(error: FileError) -> Self {
        let code = match error {
            FileError::NotPrivate { .. } => PERMISSION,
            FileError::Io { .. } | FileError::NotEmpty { .. } | FileError::NoParent { .. } => OTHER,
        };
        Self::new(code, error.to_string())
    }
}

impl From<KeyFileError> for CliError {
    fn from(error: KeyFileError) -> Self {
        match error {
            KeyFileError::File(error) => error.into(),
            KeyFileError::NotAKey { .. } => Self::other(error.to_string()),
        }
    }
}

macro_rules! other {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::other(error.to_string())
            }
        })*
    };
}

other!(PkiError, InitError, lockbox_authz::RosterError);
