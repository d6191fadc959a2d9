//! A sealed lockbox for the volume keys of one storage server: the daemon and its command line.
//!
//! | module | knows |
//! |---|---|
//! | [`engine`] | the unsealed lockbox behind one lock, and when a step is durable |
//! | [`folder`], [`root_file`], [`anchor_file`], [`two_slots`], [`backend`] | what is on disk |
//! | [`offline`] | what is done while no daemon runs |
//! | [`node`] | the engine together with the daemon's parts; unsealing and sealing |
//! | `local_service` | the Unix socket: this machine's programs |
//! | [`key_socket`] | the Unix socket where systemd and crypttab(5) fetch keys |
//! | `peer_port`, `peer_service` | the peer port: other lockboxes, and the source's end of transfers |
//! | `puller` | the target's end of transfers |
//! | `broker_link`, `join` | the broker |
//! | `notices` | what admins say of keys that strangers know |
//! | `destruction` | keys that are erased after a grace time |
//! | `reload` | what changes while the daemon runs |
//! | [`serve`] | the daemon from start to stop |
//! | [`cli`] | the command line |
//! | [`alloc`], [`memory`] | that no secret is left lying in memory |
//!
//! No rule about keys lives here: handlers parse, ask `lockbox_core`, and answer.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when their reader is gone; use lockbox_host::say!, ask! and console::answer"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod alloc;
pub mod anchor_file;
pub mod backend;
mod backoff;
mod broker_link;
pub mod cli;
pub mod clock;
pub mod config;
mod destruction;
pub mod engine;
pub mod entropy;
mod expired;
pub mod files;
pub mod folder;
mod join;
pub mod key_socket;
mod local_service;
pub mod memory;
pub mod node;
mod notices;
pub mod offline;
mod peer_port;
mod peer_service;
mod peer_wire;
mod ports;
mod puller;
mod reload;
pub mod root_file;
mod roster_sync;
mod scan;
pub mod serve;
mod status;
pub mod two_slots;

/// Version of this software.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // The message alone: the code is for programs, and whoever passes a status on has said it already.
        let next = match error.downcast_ref::<tonic::Status>() {
            Some(status) => status.message().to_owned(),
            None => error.to_string(),
        };
        // An error that is passed on as it is says the same as its source.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker_link::LinkError;

    #[test]
    fn what_a_broker_answered_is_said_once_and_without_its_code() {
        let refused = LinkError::from(tonic::Status::permission_denied("the lockbox is retired"));
        assert_eq!(chain(&refused), "the broker answered: the lockbox is retired");
    }
}
