//! The gRPC services, and the TLS that carries them.

#[allow(missing_docs, clippy::all)]
pub mod api;
mod secrets;
pub mod tls;
pub mod transport;
