//! Every bound of the transport, with its reason.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::connection::Caller;
use super::crowd::AddressLimits;
use super::{LocalPeer, PeerIdentity};

/// Bytes in one gRPC message, at most, in either direction. A chunk of a transfer is at most 1 MiB of records; the rest
/// is room for their envelope. To be set on each generated client and server, for encoding and for decoding.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// HTTP/2 flow control (RFC 9113, section 5.2): bytes of one stream that may be under way, or received and not yet
/// read by a handler. Two chunks of a transfer, so that one travels while the other is stored.
pub(super) const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// The same for all streams of a connection together. It bounds only what is not read yet: what a handler reads, to decode a
/// message, is held besides, and its window is open again. That is bounded by [`RECEIVING_AT_ONCE`] and
/// [`ServerLimits::request_timeout`].
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Requests of one message that are received at once on one connection; the others wait in its window. So a connection
/// holds 8 messages at most, of [`MAX_MESSAGE_BYTES`] each.
pub(super) const RECEIVING_AT_ONCE: usize = 8;

/// The windows of a stranger's connection, whose requests are small.
pub(super) const STRANGER_WINDOW_BYTES: u32 = 64 * 1024;

/// The calls whose requests are streams: they last as long as the connection, and are read message by message.
pub(super) const STREAMING_REQUESTS: [&str; 2] = [
    "/lockbox.node.v1.NodeService/Connect",
    "/lockbox.peer.v1.PeerService/Transfer",
];

/// Bytes in the headers of one request. gRPC's are a few hundred.
pub(super) const HEADER_LIST_BYTES: u32 = 16 * 1024;

/// After a refused handshake, how long the peer may take to read the alert, and how much it may still send meanwhile.
pub(super) const LINGER: Duration = Duration::from_secs(1);
pub(super) const LINGER_BYTES: usize = 64 * 1024;

/// Pause after `accept` failed for a reason of this machine (no descriptors, no memory), which retrying won't mend.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Connections that the kernel keeps waiting on a Unix socket, more than a burst of commands on one machine.
pub(super) const UNIX_BACKLOG: u32 = 1024;

/// For a connection within this machine, until its first answer. Only a stopped daemon takes longer.
pub(super) const LOCAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection within this machine that carries no request for so long is ended: its buffers still hold what passed through
/// them last, which may be a key, and are cleared when it is gone. Making another one costs less than a millisecond.
pub(super) const LOCAL_IDLE_LIMIT: Duration = Duration::from_secs(2);

/// Addresses of authenticated peers that one listener remembers, more than a cluster has lockboxes.
pub(super) const MAX_RECENT_ADDRESSES: usize = 4_096;

/// For how long: a peer that is away for longer may have another address by then, and its former one another owner.
pub(super) const RECENT_ADDRESS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Between two warnings that strangers hold many connections.
pub(super) const PRESSURE_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// What one listener allows. On a Unix socket there is no handshake and no keepalive: those fields are unused.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Handshakes under way at once. With one more, another is closed ([`AddressLimits::giving_way`]): an unproved peer
    /// costs this process no more than this.
    pub handshakes: AddressLimits,
    /// Connections open at once, besides those of strangers. One more is closed at once, and logged. Each takes a file
    /// descriptor.
    pub connections: usize,
    /// Of these, with one key, certificate or user. A lockbox has one for each session, up to 16, and those of them that
    /// broke stay until the keepalive has found out.
    pub connections_per_peer: usize,
    /// On a Unix socket, users to whom `connections_per_peer` does not apply.
    pub exempt_uids: Vec<u32>,
    /// Requests under way at once on one connection.
    pub streams_per_connection: u32,
    /// From the accepted connection to the proved peer.
    pub handshake_timeout: Duration,
    /// The same, while more than half of the places for handshakes are taken.
    pub pressed_handshake_timeout: Duration,
    /// From the head of a request that is one message to its last byte.
    pub request_timeout: Duration,
    /// How often a silent peer is asked whether it is still there, and how long it may take to say so.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// After the order to stop, how long the requests under way may take before they are dropped.
    pub shutdown_grace: Duration,
    /// What applies to callers that are not known. `None`: whoever gets in is known.
    pub strangers: Option<Strangers>,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Peer<'a> {
    Remote(&'a PeerIdentity),
    Local(LocalPeer),
}

/// What a listener allows to those that it has to listen to without knowing them.
#[derive(Clone)]
pub struct Strangers {
    /// Who is none. Asked when a connection begins, and until it says yes, with each request.
    pub is_known: Arc<dyn Fn(Peer<'_>) -> bool + Send + Sync>,
    /// Connections of all strangers together, which take no place of those that are known. With one more, another
    /// stranger's is closed ([`AddressLimits::giving_way`]).
    pub connections: AddressLimits,
    /// Requests under way at once on one connection.
    pub streams_per_connection: u32,
    /// Bytes in a request, at most.
    pub message_bytes: usize,
    /// After this time a connection is ended, unless its peer has become known.
    pub lifetime: Duration,
}

impl Strangers {
    /// For callers who may say one thing, which takes a roster entry and a request to join, 48 KiB each.
    pub fn unless(is_known: impl Fn(Peer<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self {
            is_known: Arc::new(is_known),
            connections: AddressLimits {
                total: 512,
                per_address: 64,
                per_network: 128,
            },
            streams_per_connection: 8,
            message_bytes: 128 * 1024,
            lifetime: Duration::from_secs(60),
        }
    }

    pub(super) fn knows(&self, caller: &Caller) -> bool {
        (self.is_known)(match caller {
            Caller::Remote { identity, .. } => Peer::Remote(identity),
            Caller::Local(peer) => Peer::Local(*peer),
        })
    }
}

impl fmt::Debug for Strangers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Strangers")
            .field("connections", &self.connections)
            .field("streams_per_connection", &self.streams_per_connection)
            .field("message_bytes", &self.message_bytes)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            handshakes: AddressLimits {
                total: 256,
                per_address: 64,
                per_network: 128,
            },
            connections: 4096,
            connections_per_peer: 64,
            exempt_uids: Vec::new(),
            streams_per_connection: 256,
            handshake_timeout: Duration::from_secs(10),
            pressed_handshake_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(20),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
            strangers: None,
        }
    }
}

/// How long a client waits for a server on another machine.
#[derive(Clone, Debug)]
pub struct ClientTimeouts {
    /// From the look-up of the name to the server's first answer.
    pub connect: Duration,
    /// How often a silent server is asked whether it is still there, and how long it may take to say so.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}
