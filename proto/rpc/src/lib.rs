//! The gRPC services, the TLS that carries them, and what else the daemons have in common as servers.

#[allow(missing_docs, clippy::all)]
pub mod api;
pub mod notify;
mod secrets;
pub mod tls;
pub mod transport;
