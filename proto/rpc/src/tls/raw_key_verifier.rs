//! The two checks of a raw public key: is the client admitted, is the server the expected one.
//!
//! rustls calls the key's check first and the signature's after it; the handshake ends only when both have passed.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

use super::PeerKey;
use super::raw_key::PeerPolicy;

/// Why a peer's key was refused. The peer sees a bare `certificate_unknown` alert; this is for the local log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyRefusal {
    #[error("the peer presented something else than one raw Ed25519 public key")]
    NotOneRawKey,

    #[error("no admitted node has the key that the peer presented (fingerprint {0})")]
    NotAdmitted(PeerKey),

    #[error("the peer presented another identity key than the roster's (expected fingerprint {expected}, got {got})")]
    WrongKey { expected: PeerKey, got: PeerKey },

    #[error("the peer went below TLS 1.3")]
    BelowTls13,
}

impl KeyRefusal {
    /// Finds the refusal in what rustls reports, if it was this module that refused.
    pub(crate) fn find(error: &Error) -> Option<&Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
            _ => None,
        }
    }
}

impl From<KeyRefusal> for Error {
    fn from(refusal: KeyRefusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Lets in the clients that the policy admits, and none without a key.
#[derive(Debug)]
pub(super) struct AdmittedClient {
    policy: Arc<dyn PeerPolicy>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AdmittedClient {
    pub(super) fn new(policy: Arc<dyn PeerPolicy>, provider: &CryptoProvider) -> Self {
        Self {
            policy,
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ClientCertVerifier for AdmittedClient {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = one_raw_key(end_entity, intermediates)?;
        if !self.policy.admits(&key.0) {
            return Err(KeyRefusal::NotAdmitted(key).into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(KeyRefusal::BelowTls13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts one server: the holder of the pinned key, at whatever address.
#[derive(Debug)]
pub(super) struct PinnedServer {
    expected: PeerKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedServer {
    pub(super) fn new(expected: PeerKey, provider: &CryptoProvider) -> Self {
        Self {
            expected,
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got = one_raw_key(end_entity, intermediates)?;
        if got != self.expected {
            let expected = self.expected;
            return Err(KeyRefusal::WrongKey { expected, got }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(KeyRefusal::BelowTls13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// With raw public keys the certificate list holds one entry (RFC 8446, section 4.4.2), the SubjectPublicKeyInfo.
fn one_raw_key(first: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<PeerKey, KeyRefusal> {
    if !more.is_empty() {
        return Err(KeyRefusal::NotOneRawKey);
    }
    PeerKey::from_spki(first).ok_or(KeyRefusal::NotOneRawKey)
}

fn verify_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    // The key is known to be an Ed25519 key, and no other scheme can verify with it, whatever the peer names.
    let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
}
