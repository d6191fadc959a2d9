//! Every bound of the transport, with its reason.

use std::time::Duration;

/// Bytes in one gRPC message, at most, in either direction. A chunk of a transfer is at most 1 MiB of records; the rest
/// is room for their envelope. To be set on each generated client and server, for encoding and for decoding.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// HTTP/2 flow control (RFC 9113, section 5.2): bytes of one stream that may be under way, or received and not yet
/// read by a handler. Two chunks of a transfer, so that one travels while the other is stored.
pub(super) const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// The same for all streams of a connection together: what one peer can make this process hold in memory.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

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

/// What one listener allows. On a Unix socket there is no handshake and no keepalive: those fields are unused.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Handshakes under way at once. When they are, further connections wait in the kernel: an unproved peer costs
    /// this process no more than this.
    pub handshakes: usize,
    /// Connections open at once. One more is closed at once, and logged. Each takes a file descriptor.
    pub connections: usize,
    /// Requests under way at once on one connection.
    pub streams_per_connection: u32,
    /// From the accepted connection to the proved peer.
    pub handshake_timeout: Duration,
    /// How often a silent peer is asked whether it is still there, and how long it may take to say so.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// After the order to stop, how long the requests under way may take before they are dropped.
    pub shutdown_grace: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            connections: 4096,
            streams_per_connection: 256,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
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
