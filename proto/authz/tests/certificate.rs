//! Wrapping certificates: each field's rule, and whom they speak for.

mod support;

use lockbox_authz::certificate::{CertificateError, WrappingCertificate};
use lockbox_authz::envelope::{EnvelopeError, Statement};
use lockbox_authz::id::{ClusterId, Hash};
use lockbox_authz::wire;
use support::{CLUSTER, SOURCE, TARGET, TARGET_KEY, certificate, public, refused_field};

fn refused_certificate(change: impl FnOnce(&mut wire::WrappingCertificate)) -> &'static str {
    let mut wire = certificate().statement().to_wire();
    change(&mut wire);
    refused_field::<WrappingCertificate>(wire)
}

#[test]
fn rejects_a_wrapping_certificate_whose_fields_break_their_rules() {
    assert_eq!(refused_certificate(|wire| wire.version = 0), "version");
    assert_eq!(refused_certificate(|wire| wire.cluster_id.clear()), "cluster_id");
    assert_eq!(refused_certificate(|wire| wire.lockbox_id.clear()), "lockbox_id");
    assert_eq!(refused_certificate(|wire| wire.generation = 0), "generation");
}

/// X25519 alone would be a wrapping that a quantum computer of later years undoes.
#[test]
fn rejects_a_wrapping_certificate_for_another_kem() {
    assert_eq!(refused_certificate(|wire| wire.kem_id = 0x0020), "kem_id");
    assert_eq!(refused_certificate(|wire| wire.kem_id = 0), "kem_id");
}

#[test]
fn rejects_a_wrapping_key_of_another_length() {
    assert_eq!(
        refused_certificate(|wire| wire.wrapping_key.truncate(1_215)),
        "wrapping_key"
    );
    assert_eq!(refused_certificate(|wire| wire.wrapping_key.push(0)), "wrapping_key");
}

#[test]
fn a_wrapping_certificate_speaks_for_its_lockbox() {
    let envelope = certificate().envelope().clone();
    assert!(WrappingCertificate::verify(&envelope, public(TARGET_KEY), CLUSTER, TARGET).is_ok());
}

#[test]
fn rejects_a_wrapping_certificate_by_another_identity() {
    let envelope = certificate().envelope().clone();
    assert!(matches!(
        WrappingCertificate::verify(&envelope, public(99), CLUSTER, TARGET),
        Err(CertificateError::Envelope(EnvelopeError::UntrustedSigner { .. }))
    ));
}

#[test]
fn rejects_a_wrapping_certificate_of_another_cluster() {
    let envelope = certificate().envelope().clone();
    let expected = ClusterId(Hash([9; 32]));
    assert_eq!(
        WrappingCertificate::verify(&envelope, public(TARGET_KEY), expected, TARGET).err(),
        Some(CertificateError::OtherCluster {
            expected,
            found: CLUSTER
        })
    );
}

#[test]
fn rejects_a_wrapping_certificate_of_another_lockbox() {
    let envelope = certificate().envelope().clone();
    assert_eq!(
        WrappingCertificate::verify(&envelope, public(TARGET_KEY), CLUSTER, SOURCE).err(),
        Some(CertificateError::OtherLockbox {
            expected: SOURCE,
            found: TARGET
        })
    );
}
