//! The wrapping certificate: which X-Wing key a lockbox wants keys wrapped to. SPEC section 5.

use crate::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
use crate::field::{self, FieldError};
use crate::id::{ClusterId, LockboxId};
use crate::keys::PublicKey;
use crate::limits::{KEM_X_WING, VERSION, WRAPPING_KEY_BYTES};
use crate::{labels, wire};

/// Binds a wrapping key to the identity that signs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappingCertificate {
    pub cluster_id: ClusterId,
    pub lockbox_id: LockboxId,
    /// An X-Wing encapsulation key, 1,216 bytes.
    pub wrapping_key: Box<[u8]>,
    /// Counts the wrapping keys of this lockbox, from 1.
    pub generation: u64,
}

/// Why a certificate does not speak for a lockbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the wrapping certificate is refused: {0}")]
    Envelope(#[from] EnvelopeError),
    #[error("the wrapping certificate is for cluster {found}, not {expected}")]
    OtherCluster { expected: ClusterId, found: ClusterId },
    #[error("the wrapping certificate is for lockbox {found}, not {expected}")]
    OtherLockbox { expected: LockboxId, found: LockboxId },
}

impl WrappingCertificate {
    /// Verifies that `identity_key` signed a certificate for this lockbox in this cluster.
    pub fn verify(
        envelope: &UnverifiedEnvelope,
        identity_key: PublicKey,
        cluster_id: ClusterId,
        lockbox_id: LockboxId,
    ) -> Result<Verified<Self>, CertificateError> {
        let certificate = envelope.verify::<Self>(&[identity_key], 1)?;
        let statement = certificate.statement();
        if statement.cluster_id != cluster_id {
            return Err(CertificateError::OtherCluster {
                expected: cluster_id,
                found: statement.cluster_id,
            });
        }
        if statement.lockbox_id != lockbox_id {
            return Err(CertificateError::OtherLockbox {
                expected: lockbox_id,
                found: statement.lockbox_id,
            });
        }
        Ok(certificate)
    }
}

impl Statement for WrappingCertificate {
    const PAYLOAD_TYPE: &'static str = labels::WRAPPING_CERTIFICATE;
    type Wire = wire::WrappingCertificate;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        if wire.kem_id != KEM_X_WING {
            return Err(FieldError::new("kem_id", "must be 0x647a (X-Wing)"));
        }
        if wire.wrapping_key.len() != WRAPPING_KEY_BYTES {
            return Err(FieldError::new("wrapping_key", "must have 1,216 bytes"));
        }
        if wire.generation == 0 {
            return Err(FieldError::new("generation", "counts from 1"));
        }
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            lockbox_id: LockboxId::from_slice("lockbox_id", &wire.lockbox_id)?,
            wrapping_key: wire.wrapping_key.into_boxed_slice(),
            generation: wire.generation,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::WrappingCertificate {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            lockbox_id: self.lockbox_id.to_vec(),
            kem_id: KEM_X_WING,
            wrapping_key: self.wrapping_key.to_vec(),
            generation: self.generation,
        }
    }
}
