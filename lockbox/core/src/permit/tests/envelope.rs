//! Steps 1 and 2: what is signed, and by whom.

use lockbox_authz::UnverifiedEnvelope;
use lockbox_authz::keys::{SecretKey, Signer};
use lockbox_authz::roster::Change;

use super::*;

#[test]
fn rejects_bytes_that_are_no_envelope() {
    let mut case = Case::new();
    let refusal = case.refusal_of(b"not an envelope".to_vec());
    assert!(matches!(refusal, Refusal::Envelope(_)), "{refusal}");
}

#[test]
fn rejects_another_kind_of_statement() {
    let mut case = Case::new();
    let certificate = case.cluster.b.certificate().to_bytes();
    let refusal = case.refusal_of(certificate);
    assert!(matches!(refusal, Refusal::Envelope(_)), "{refusal}");
}

#[test]
fn rejects_a_signer_that_is_no_broker() {
    let mut case = Case::new();
    let stranger = SecretKey::generate(&mut case.cluster.rng);
    let signed = Verified::sign(case.statement.clone(), &stranger);
    let refusal = case.refusal_of(signed.envelope().to_bytes());
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn rejects_a_retired_broker() {
    let mut case = Case::new();
    let signing_key = case.cluster.broker.public_key();
    case.cluster.change(Change::RetireBroker {
        signing_key,
        reason: "stolen".to_owned(),
    });
    case.cluster.sync();
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn rejects_one_broker_where_the_roster_wants_two() {
    let mut case = Case::new();
    let admins = lockbox_authz::roster::Admins {
        broker_threshold: 2,
        ..case.cluster.roster.admins().clone()
    };
    case.cluster.change(Change::ChangeAdmins(admins));
    case.cluster.sync();
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn rejects_an_admins_signature_in_a_brokers_place() {
    let mut case = Case::new();
    let signed = Verified::sign(case.statement.clone(), &case.cluster.admin);
    let refusal = case.refusal_of(signed.envelope().to_bytes());
    assert!(matches!(refusal, Refusal::Signer(_)), "{refusal}");
}

#[test]
fn every_bit_of_an_authorization_is_guarded() {
    let mut case = Case::new();
    let genuine = case.signed();
    let head = case.cluster.roster.head();
    for byte in 0..genuine.len() {
        let mut bytes = genuine.clone();
        bytes[byte] ^= 1;
        assert!(
            matches!(case.present(bytes, head), Err(SourceError::Refused(_))),
            "byte {byte} can be changed"
        );
    }
    assert!(UnverifiedEnvelope::from_bytes(&genuine).is_ok());
    case.present(genuine, head).expect("the genuine one is still unspent");
}
