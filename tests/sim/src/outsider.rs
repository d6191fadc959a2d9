//! A machine that no admin admitted, and that a stolen broker would like to hand keys to.

use lockbox_authz::authorization::Party;
use lockbox_authz::certificate::WrappingCertificate;
use lockbox_authz::keys::{SecretKey, Signer};
use lockbox_authz::{AuthorizationId, ClusterId, LockboxId, UnverifiedEnvelope, Verified};
use lockbox_core::primitives::wrapping_key;
use lockbox_core::secrets::WrappingSeed;

use crate::rng::SeededRng;

pub(crate) struct Outsider {
    pub(crate) authorization_id: AuthorizationId,
    lockbox_id: LockboxId,
    identity_key: SecretKey,
    wrapping_key: Box<[u8]>,
}

impl Outsider {
    /// It has randomness of its own: that of the world stays as it was before there were outsiders, and old event files
    /// mean what they meant.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = SeededRng::new(seed.rotate_left(32));
        Self {
            authorization_id: AuthorizationId::from_random(rng.bytes()),
            lockbox_id: LockboxId::from_random(rng.bytes()),
            identity_key: SecretKey::generate(&mut rng),
            wrapping_key: wrapping_key(&WrappingSeed::random(&mut rng)),
        }
    }

    pub(crate) fn party(&self) -> Party {
        Party {
            lockbox_id: self.lockbox_id,
            identity_key: self.identity_key.public_key(),
        }
    }

    pub(crate) fn certificate(&self, cluster_id: ClusterId) -> UnverifiedEnvelope {
        let certificate = WrappingCertificate {
            cluster_id,
            lockbox_id: self.lockbox_id,
            wrapping_key: self.wrapping_key.clone(),
            generation: 1,
        };
        Verified::sign(certificate, &self.identity_key).envelope().clone()
    }
}
