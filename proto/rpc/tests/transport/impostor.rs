//! Clients and servers that break the rules, each in one way.

use std::sync::Arc;

use lockbox_rpc::tls::PeerKey;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, ServerConfig, SignatureScheme, SupportedProtocolVersion,
    WantsVersions,
};

/// Believes every server, as an attacker's client does.
#[derive(Debug)]
pub(crate) struct AnyServer {
    pub(crate) raw_key: bool,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw_key
    }
}

/// What a client shows for itself: nothing, or any bytes with any key, announced as raw key or as certificate.
#[derive(Debug)]
pub(crate) struct Shows {
    pub(crate) certified: Option<Arc<CertifiedKey>>,
    pub(crate) raw_key: bool,
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }

    fn only_raw_public_keys(&self) -> bool {
        self.raw_key
    }
}

/// A client that believes every server, speaks HTTP/2 and shows what it is told to.
pub(crate) fn client(
    shows: Shows,
    server_raw_key: bool,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let builder: ConfigBuilder<ClientConfig, WantsVersions> =
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let mut config = builder
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer {
            raw_key: server_raw_key,
        }))
        .with_client_cert_resolver(Arc::new(shows));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A raw-key server that shows `shown` and signs with `signing`.
pub(crate) fn server(shown: PeerKey, signing: &rcgen::KeyPair) -> Arc<ServerConfig> {
    let certified = certified(shown.to_spki().to_vec(), signing);
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyRawKey))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// `shown` as the only entry of the certificate list, whether or not it belongs to the key.
pub(crate) fn certified(shown: Vec<u8>, signing: &rcgen::KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::try_from(signing.serialize_der()).unwrap();
    Arc::new(CertifiedKey::new(
        vec![CertificateDer::from(shown)],
        any_supported_type(&key).unwrap(),
    ))
}

/// Lets every raw key in.
#[derive(Debug)]
struct AnyRawKey;

impl rustls::server::danger::ClientCertVerifier for AnyRawKey {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
