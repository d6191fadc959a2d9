//! Steps 3 to 10: for whom it is, when, and how often.

use lockbox_authz::WrappingCertificate;
use lockbox_authz::id::LockboxId;
use lockbox_authz::keys::{SecretKey, Signer};
use lockbox_authz::limits::KEPT_AFTER_EXPIRY_MS;
use lockbox_authz::roster::Change;

use super::*;
use crate::expired::tests::drop_all;
use crate::testing::NOW_MS;

const SKEW: i64 = MAX_CLOCK_SKEW_MS;

#[test]
fn rejects_another_cluster() {
    let mut case = Case::new();
    case.statement.cluster_id = ClusterId(Hash([9; 32]));
    assert!(matches!(case.refusal(), Refusal::OtherCluster { .. }));
}

#[test]
fn rejects_a_roster_that_is_not_known_here_yet() {
    let mut case = Case::new();
    case.statement.roster_head.index += 1;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::RosterBehind), "{refusal}");
    assert!(!refusal.is_final(), "it would be in order after the roster was fetched");
}

#[test]
fn rejects_a_forked_roster() {
    let mut case = Case::new();
    case.statement.roster_head.hash = Hash([9; 32]);
    assert!(matches!(case.refusal(), Refusal::RosterForked));
}

#[test]
fn rejects_a_peer_with_a_forked_roster() {
    let mut case = Case::new();
    let mut head = case.cluster.roster.head();
    head.hash = Hash([9; 32]);
    let bytes = case.signed();
    let refused = case.present(bytes, head);
    assert!(matches!(refused, Err(SourceError::Refused(Refusal::RosterForked))));
}

#[test]
fn rejects_another_source() {
    let mut case = Case::new();
    case.statement.source.lockbox_id = LockboxId([9; 16]);
    assert!(matches!(case.refusal(), Refusal::OtherSource(_)));
}

#[test]
fn rejects_this_source_under_another_identity() {
    let mut case = Case::new();
    case.statement.source.identity_key = SecretKey::generate(&mut case.cluster.rng).public_key();
    assert!(matches!(case.refusal(), Refusal::OtherSource(_)));
}

#[test]
fn rejects_while_this_lockbox_is_retired() {
    let mut case = Case::new();
    let lockbox_id = case.statement.source.lockbox_id;
    let reason = "stolen".to_owned();
    case.cluster.change(Change::RetireLockbox { lockbox_id, reason });
    case.cluster.sync();
    assert!(matches!(case.refusal(), Refusal::NotAdmitted));
}

#[test]
fn rejects_a_target_that_no_admin_admitted() {
    let mut case = Case::new();
    let key = SecretKey::generate(&mut case.cluster.rng);
    case.statement.target.lockbox_id = LockboxId([9; 16]);
    case.statement.target.identity_key = key.public_key();
    case.peer = key.public_key();
    assert!(matches!(case.refusal(), Refusal::TargetNotAdmitted(_)));
}

#[test]
fn rejects_a_retired_target() {
    let mut case = Case::new();
    let lockbox_id = case.statement.target.lockbox_id;
    let reason = "stolen".to_owned();
    case.cluster.change(Change::RetireLockbox { lockbox_id, reason });
    case.cluster.sync();
    assert!(matches!(case.refusal(), Refusal::TargetNotAdmitted(_)));
}

#[test]
fn rejects_an_admitted_target_under_another_identity() {
    let mut case = Case::new();
    let key = SecretKey::generate(&mut case.cluster.rng);
    case.statement.target.identity_key = key.public_key();
    case.peer = key.public_key();
    assert!(matches!(case.refusal(), Refusal::TargetIdentity));
}

#[test]
fn rejects_a_peer_that_is_not_the_target() {
    let mut case = Case::new();
    case.peer = SecretKey::generate(&mut case.cluster.rng).public_key();
    assert!(matches!(case.refusal(), Refusal::OtherPeer));
}

#[test]
fn rejects_a_wrapping_key_that_the_target_did_not_certify() {
    let mut case = Case::new();
    let attacker = SecretKey::generate(&mut case.cluster.rng);
    let genuine: WrappingCertificate = case.cluster.b.certificate().unverified_statement().expect("ours");
    case.statement.target_wrapping_certificate = Verified::sign(genuine, &attacker).envelope().clone();
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Certificate(_)), "{refusal}");
}

#[test]
fn rejects_a_wrapping_key_of_another_lockbox() {
    let mut case = Case::new();
    case.statement.target_wrapping_certificate = case.cluster.a.certificate();
    assert!(matches!(case.refusal(), Refusal::Certificate(_)));
}

#[test]
fn rejects_a_wrapping_certificate_of_another_cluster() {
    let mut case = Case::new();
    let mut certificate: WrappingCertificate = case.cluster.b.certificate().unverified_statement().expect("ours");
    certificate.cluster_id = ClusterId(Hash([9; 32]));
    let signed = Verified::sign(certificate, &case.cluster.b.lockbox().identity().identity_key);
    case.statement.target_wrapping_certificate = signed.envelope().clone();
    assert!(matches!(case.refusal(), Refusal::Certificate(_)));
}

#[test]
fn rejects_before_its_time() {
    let mut case = Case::new();
    case.cluster.a.now_ms = NOW_MS - SKEW - 1;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::NotYetValid { .. }) && !refusal.is_final());
}

#[test]
fn rejects_after_its_time() {
    let mut case = Case::new();
    case.cluster.a.now_ms = case.statement.expires_at_ms + SKEW + 1;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Expired { .. }) && refusal.is_final());
}

#[test]
fn permits_clocks_that_differ_by_the_allowed_skew() {
    for skew in [-SKEW, 300_000 + SKEW] {
        let mut case = Case::new();
        case.cluster.a.now_ms = NOW_MS + skew;
        let (bytes, head) = (case.signed(), case.cluster.roster.head());
        case.present(bytes, head).expect("within the skew");
    }
}

#[test]
fn rejects_what_was_revoked_before_it_was_presented() {
    let mut case = Case::new();
    let revocation = case.cluster.revoke(case.statement.authorization_id);
    case.cluster
        .a
        .step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");
    assert!(matches!(case.refusal(), Refusal::Revoked));
}

#[test]
fn rejects_a_spent_authorization() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes.clone(), head).expect("the first time");
    // The transfer has ended, as it does when the roster retires the target.
    let id = case.statement.authorization_id;
    case.cluster
        .a
        .step(|lockbox, now, rng| {
            let mut outgoing = lockbox.outgoing(id)?.expect("it was opened");
            outgoing.end("a test", now);
            let mut changes = Changes::default();
            outgoing.put(&mut changes);
            let batches = lockbox.vault.stage(changes, rng)?;
            Ok::<_, LockboxError>(crate::step::Step::new(batches, ()))
        })
        .expect("memory does not fail");
    assert!(matches!(case.refusal_of(bytes), Refusal::Spent));
}

/// A clock that is set back makes valid once more what has expired.
#[test]
fn rejects_what_expires_no_later_than_what_was_dropped() {
    let mut case = Case::new();
    let revocation = case.cluster.revoke(case.statement.authorization_id);
    let a = &mut case.cluster.a;
    a.step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");
    a.now_ms += 300_000 + KEPT_AFTER_EXPIRY_MS + 1;
    assert_eq!(drop_all(a), 1);
    a.now_ms = NOW_MS;
    a.restart();
    assert!(matches!(case.refusal(), Refusal::MayBeSpent { .. }));
    case.statement.expires_at_ms += 1;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("it expires later");
}

#[test]
fn rejects_a_second_target_under_a_spent_id() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("the first time");
    case.statement.reason = "another body under the same id".to_owned();
    assert!(matches!(case.refusal(), Refusal::OtherAuthorization));
}
