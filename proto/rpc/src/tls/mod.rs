//! The TLS that carries every network call: TLS 1.3 only (RFC 8446), the hybrid group X25519MLKEM768 preferred.
//!
//! [`raw_key`] is for nodes among themselves (RFC 7250, keys pinned to the roster), [`x509`] for the control plane's
//! port. Both share what stands here: suites, groups, HTTP/2 as the only protocol, and no resumption, no tickets and
//! no early data. A resumed session would skip the check of the peer's identity against the roster of that moment.

mod error;
mod peer_key;
pub mod raw_key;
mod raw_key_verifier;
pub mod x509;

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

pub use error::TlsError;
pub use peer_key::PeerKey;
pub use raw_key_verifier::KeyRefusal;

/// The protocol that is negotiated (RFC 7301), and the only one: HTTP/2, as gRPC asks for.
pub const ALPN_H2: &[u8] = b"h2";

const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// AES-256-GCM first: every server that this runs on has it in hardware. ChaCha20-Poly1305 for those that have not.
///
/// X25519 alone is a fallback for clients of the control plane's port that don't know the hybrid group.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

fn finish_server(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

fn finish_client(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}
