//! Errors for people: what failed, then what to do; and an exit code for scripts (sysexits).

use std::fmt;

use tonic::{Code, Status};

/// `lockbox status`: the lockbox is sealed.
const SEALED: u8 = 2;
/// `lockbox status`: it is unsealed, and something needs an operator.
const DEGRADED: u8 = 3;
/// The command was used wrongly.
pub(super) const USAGE: u8 = 64;
/// The daemon, or something that it needs, does not answer.
const UNAVAILABLE: u8 = 69;
/// The store failed or is damaged.
const STORE: u8 = 74;
/// This user may not, or the secret was wrong.
const NOT_PERMITTED: u8 = 77;
/// The configuration is wrong.
const CONFIG: u8 = 78;
/// Anything else.
const FAILED: u8 = 1;

#[derive(Debug)]
pub(super) struct CliError {
    text: String,
    pub(super) exit: u8,
}

impl CliError {
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self::new(FAILED, text)
    }

    pub(super) fn sealed(text: impl Into<String>) -> Self {
        Self::new(SEALED, text)
    }

    pub(super) fn degraded(text: impl Into<String>) -> Self {
        Self::new(DEGRADED, text)
    }

    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::new(USAGE, text)
    }

    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(UNAVAILABLE, text)
    }

    pub(super) fn store(text: impl Into<String>) -> Self {
        Self::new(STORE, text)
    }

    pub(super) fn not_permitted(text: impl Into<String>) -> Self {
        Self::new(NOT_PERMITTED, text)
    }

    pub(super) fn config(text: impl Into<String>) -> Self {
        Self::new(CONFIG, text)
    }

    fn new(exit: u8, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { text, exit }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The daemon's answers carry their own text.
impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let text = match status.message() {
            "" => format!("the daemon answered {:?}; its log says more", status.code()),
            message => message.to_owned(),
        };
        let exit = match status.code() {
            Code::InvalidArgument => USAGE,
            Code::Unavailable => UNAVAILABLE,
            Code::PermissionDenied => NOT_PERMITTED,
            Code::DataLoss => STORE,
            _ => FAILED,
        };
        Self::new(exit, text)
    }
}
