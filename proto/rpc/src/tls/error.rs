//! Why a TLS configuration could not be made. Handshakes have their own errors, in the transport.

/// The caller's key or file was not usable. No variant repeats any of its input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("the identity key was refused by the cryptographic library")]
    IdentityKey(#[source] rustls::Error),

    #[error("the {input} holds no {wanted} in PEM form; check that the path names the right file")]
    Pem {
        /// Which input, in the operator's words.
        input: &'static str,
        wanted: &'static str,
    },

    #[error("a certificate of the {input} can't be trusted as a certificate authority; check that it is one")]
    TrustAnchor {
        input: &'static str,
        #[source]
        source: rustls::Error,
    },

    #[error("the certificate chain can't be used with the private key; check that they were issued together")]
    OwnCertificate(#[source] rustls::Error),
}
