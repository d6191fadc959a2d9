//! The transports that carry gRPC: TLS between machines, a Unix socket within one.
//!
//! A server learns who is calling from the transport, never from a message: each request's extensions hold a
//! [`PeerIdentity`] (with tonic's `TcpConnectInfo` beside it), or on a Unix socket a [`LocalPeer`].

mod authority;
mod connect;
mod connection;
mod crowd;
mod error;
mod first_answer;
mod idle;
mod limits;
mod local;
mod local_channel;
mod places;
mod receive;
mod serve;
mod services;

use std::sync::Arc;

pub use connect::{connect_raw_key, connect_x509};
pub use connection::RequestService;
pub use crowd::{AddressLimits, Holder};
pub use error::{BindError, ConnectError, LocalConnectError};
pub use limits::{ClientTimeouts, MAX_MESSAGE_BYTES, Peer, ServerLimits, Strangers};
pub use local::{LocalListener, connect_unix, serve_unix};
pub use local_channel::LocalChannel;
pub use serve::{SharedTls, serve_tls};
pub use services::Services;

/// Who is at the other end of a TLS connection, as proved in its handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// The Ed25519 public key (32 bytes) that the peer holds the private half of.
    RawKey([u8; 32]),
    /// The peer's own certificate in DER, whose chain ends at a trusted CA.
    Certificate(Arc<[u8]>),
}

/// The process at the other end of a Unix socket, as the kernel saw it when it connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPeer {
    /// The effective user and group, which decide.
    pub uid: u32,
    pub gid: u32,
    /// For the log only: the process may be gone and its number taken. 0 for a process that this one's PID namespace
    /// doesn't show.
    pub pid: i32,
}
