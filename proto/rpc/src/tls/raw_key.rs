//! Mutual TLS with raw Ed25519 public keys (RFC 7250): among lockboxes, and between lockbox and broker.
//!
//! There is no certificate, so nothing is issued and nothing expires. A server asks its [`PeerPolicy`] at each
//! handshake, a client pins the one key that it expects.

use std::fmt;
use std::sync::Arc;

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use zeroize::Zeroizing;

use super::raw_key_verifier::{AdmittedClient, PinnedServer};
use super::{PeerKey, TlsError, VERSIONS, finish_client, finish_server, provider};

/// DER of a PrivateKeyInfo for Ed25519 (RFC 8410, section 7) up to the 32 bytes of the seed.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Which keys a server lets in.
pub trait PeerPolicy: Send + Sync + fmt::Debug + 'static {
    /// Whether a node with this Ed25519 public key may connect now.
    ///
    /// Asked once for each handshake, on the connection's task: it must not block. At that moment the peer has named
    /// the key and not yet proved it, so the answer must change nothing; the handshake fails if the proof doesn't
    /// follow. A connection outlives a change of the roster: whoever serves a request checks the roster again.
    fn admits(&self, key: &[u8; 32]) -> bool;
}

/// This node's identity key, ready for handshakes in either role.
///
/// The key lives in the TLS library's memory until the last configuration made with it is dropped.
#[derive(Clone)]
pub struct NodeKey {
    certified: Arc<CertifiedKey>,
    public: PeerKey,
}

impl NodeKey {
    /// Takes the 32-byte seed of an Ed25519 key (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, TlsError> {
        let mut pkcs8 = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
        pkcs8[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        pkcs8[PKCS8_PREFIX.len()..].copy_from_slice(seed);

        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..])).map_err(TlsError::IdentityKey)?;
        let spki = key.public_key().expect("an Ed25519 signing key knows its public key");
        let public = PeerKey::from_spki(&spki).expect("the public key of an Ed25519 signing key is an Ed25519 key");
        let certified = CertifiedKey::new(vec![CertificateDer::from(public.to_spki().to_vec())], key);
        Ok(Self {
            certified: Arc::new(certified),
            public,
        })
    }

    /// The public half, which the roster names.
    pub fn public_key(&self) -> PeerKey {
        self.public
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// For a port on which only nodes with an admitted key are answered.
pub fn server_config(key: &NodeKey, policy: Arc<dyn PeerPolicy>) -> Arc<ServerConfig> {
    let provider = provider();
    let verifier = AdmittedClient::new(policy, &provider);
    finish_server(
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)
            .expect("the provider has suites and groups for TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key.certified.clone()))),
    )
}

/// For connections to the one server that holds the Ed25519 key `expected`.
pub fn client_config(key: &NodeKey, expected: [u8; 32]) -> Arc<ClientConfig> {
    let provider = provider();
    let verifier = PinnedServer::new(PeerKey(expected), &provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .expect("the provider has suites and groups for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key.certified.clone())));
    // The key is the server's name; the address would only tell an onlooker more.
    config.enable_sni = false;
    finish_client(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 1: a node must be known to its peers by the key that its seed stands for.
    #[test]
    fn public_key_is_that_of_the_seed() {
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
            0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let public = [
            0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1,
            0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
        ];
        assert_eq!(
            NodeKey::from_seed(&seed).expect("any 32 bytes are a seed").public_key(),
            PeerKey(public)
        );
    }

    #[test]
    fn debug_shows_no_seed() {
        let key = NodeKey::from_seed(&[0xa5; 32]).expect("any 32 bytes are a seed");
        let shown = format!("{key:?}");
        assert!(!shown.contains("a5a5") && !shown.contains("165, 165"), "{shown}");
    }
}
