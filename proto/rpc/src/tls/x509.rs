//! Mutual TLS with X.509 certificates (RFC 5280) for the control plane's port, so that any gRPC client can use it.
//!
//! All inputs are the bytes of PEM files (RFC 7468). A private key may be PKCS#8, SEC 1 or PKCS#1.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{TlsError, VERSIONS, finish_client, finish_server, provider};

/// For a port on which only clients are answered that hold a certificate issued under `client_ca_pem`.
///
/// The chain begins with the server's own certificate.
pub fn server_config(
    cert_chain_pem: &[u8],
    key_pem: &[u8],
    client_ca_pem: &[u8],
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let chain = certificates(cert_chain_pem, "server's certificate chain")?;
    let key = private_key(key_pem, "server's key file")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(
        trust_anchors(client_ca_pem, "client CA file")?,
        Arc::<CryptoProvider>::clone(&provider),
    )
    .build()
    .expect("at least one trust anchor, and no revocation list");

    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .expect("the provider has suites and groups for TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::OwnCertificate)?;
    Ok(finish_server(config))
}

/// For connections to servers whose certificate is issued under `ca_pem`, showing the client's own certificate.
///
/// The chain begins with the client's own certificate.
pub fn client_config(ca_pem: &[u8], cert_chain_pem: &[u8], key_pem: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let chain = certificates(cert_chain_pem, "client's certificate chain")?;
    let key = private_key(key_pem, "client's key file")?;
    let verifier = WebPkiServerVerifier::builder_with_provider(
        trust_anchors(ca_pem, "server CA file")?,
        Arc::<CryptoProvider>::clone(&provider),
    )
    .build()
    .expect("at least one trust anchor, and no revocation list");

    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)
        .expect("the provider has suites and groups for TLS 1.3")
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::OwnCertificate)?;
    Ok(finish_client(config))
}

/// The reason of a parse error is dropped on purpose: it quotes the file, and the file may be a key.
fn certificates(pem: &[u8], input: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = || TlsError::Pem {
        input,
        wanted: "certificate",
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| refused())?;
    if chain.is_empty() { Err(refused()) } else { Ok(chain) }
}

fn private_key(pem: &[u8], input: &'static str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::Pem {
        input,
        wanted: "private key",
    })
}

/// Each certificate counts: with a part of the file left out, less or other would be trusted than its owner thinks.
fn trust_anchors(pem: &[u8], input: &'static str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut anchors = RootCertStore::empty();
    for certificate in certificates(pem, input)? {
        anchors
            .add(certificate)
            .map_err(|source| TlsError::TrustAnchor { input, source })?;
    }
    Ok(Arc::new(anchors))
}
