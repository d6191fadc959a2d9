//! Why there is no connection, or no socket. Each says what to look at next.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::PeerKey;

/// A server on another machine was not reached, or was not the right one, or did not want this node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("the address {address:?} is not of the form host:port, like 10.0.0.1:7401 or [fd00::1]:7401")]
    Address { address: String },

    #[error("{name:?} is neither a DNS name nor an IP address that a server's certificate could be issued for")]
    ServerName { name: String },

    #[error("{address} can't be reached; check that it is running and that no firewall is between")]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },

    #[error(
        "{address} did not answer within {} ms; check that it is running and that no firewall is between",
        .timeout.as_millis()
    )]
    Timeout { address: String, timeout: Duration },

    #[error(
        "the peer at {address} presented another identity key than the roster's (expected fingerprint {expected}, got \
         {got}); another node answers at this address, or someone is in between"
    )]
    WrongKey {
        address: String,
        expected: PeerKey,
        got: PeerKey,
    },

    #[error("the TLS handshake with {address} failed; check that the address and port are the right ones")]
    Handshake {
        address: String,
        #[source]
        source: rustls::Error,
    },

    #[error(
        "the server at {address} refused this side's identity with the TLS alert {alert:?}; its log says why: most \
         often it does not know the key or certificate yet, or no longer"
    )]
    Refused {
        address: String,
        alert: rustls::AlertDescription,
    },

    #[error("the server at {address} does not speak HTTP/2; check that the port is the right one")]
    NotHttp2 { address: String },

    #[error("{address} closed the connection before its first answer; its log says why")]
    Closed {
        address: String,
        #[source]
        source: io::Error,
    },

    #[error("gRPC over the connection to {address} could not be set up")]
    Channel {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
}

/// The daemon of this machine was not reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalConnectError {
    #[error("nothing serves the socket {path:?}; start the daemon, or check the path")]
    NotServed {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("this user may not use the socket {path:?}; its group and mode decide who may")]
    NotAllowed {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("the socket {path:?} can't be used")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("the daemon at the socket {path:?} closed the connection before its first answer; its log says why")]
    Closed {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("the daemon at the socket {path:?} did not answer within {} ms; it may hang", .timeout.as_millis())]
    Timeout { path: PathBuf, timeout: Duration },

    #[error("gRPC over the socket {path:?} could not be set up")]
    Channel {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
}

/// A Unix socket could not be opened for serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    #[error("the socket {path:?} is already served; stop the other daemon, or choose another path")]
    InUse { path: PathBuf },

    #[error("{path:?} exists and is not a socket; choose another path, or move it away")]
    NotASocket { path: PathBuf },

    #[error("can't {action} {path:?}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}
