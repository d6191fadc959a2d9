//! Join tokens, join requests, and what a join key may sign: SPEC section 3.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lockbox_authz::envelope::{EnvelopeError, Statement, UnverifiedEnvelope};
use lockbox_authz::join::{JoinRequest, JoinToken};
use lockbox_authz::keys::Signer;
use lockbox_authz::limits::MAX_ADDRESS_CHARS;
use lockbox_authz::roster::{Applied, Change, JoinState, Lockbox, RosterError};
use lockbox_authz::wire;
use prost::Message;
use support::{
    ADMIN, BROKER, CLUSTER, Cluster, NOW_MS, allow_join, labels, lockbox, public, refused_field, secret, sign_entry,
};

const JOIN: u8 = 50;
const NEW: u8 = 40;

fn token() -> JoinToken {
    JoinToken {
        cluster_id: CLUSTER,
        broker_address: "broker.example:7400".to_owned(),
        broker_key: public(BROKER),
        join_key: secret(JOIN),
    }
}

fn wire_token() -> wire::JoinToken {
    wire::JoinToken {
        version: 1,
        cluster_id: CLUSTER.to_vec(),
        broker_address: "broker.example:7400".to_owned(),
        broker_key: public(BROKER).to_vec(),
        join_secret: vec![JOIN; 32],
    }
}

fn text(bytes: &[u8]) -> String {
    format!("lbxjoin1.{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn refused_text(text: &str) -> &'static str {
    JoinToken::decode(text).err().expect("the token was taken").field
}

fn refused_token(spoil: impl FnOnce(&mut wire::JoinToken)) -> &'static str {
    let mut wire = wire_token();
    spoil(&mut wire);
    refused_text(&text(&wire.encode_to_vec()))
}

#[test]
fn a_token_is_read_as_it_was_written() {
    let encoded = token().encode();
    assert_eq!(*encoded, text(&wire_token().encode_to_vec()));
    let read = JoinToken::decode(&format!(" {}\n", encoded.as_str())).expect("as it was pasted");
    assert_eq!(read.cluster_id, CLUSTER);
    assert_eq!(read.broker_address, "broker.example:7400");
    assert_eq!(read.broker_key, public(BROKER));
    assert_eq!(read.join_key.public_key(), public(JOIN));
}

#[test]
fn rejects_a_token_without_its_prefix() {
    let encoded = token().encode();
    for text in [
        "",
        "lbxjoin1",
        &encoded[9..],
        &encoded.replacen("1.", "2.", 1),
        &encoded.to_uppercase(),
    ] {
        assert_eq!(refused_text(text), "join token", "{}", text.len());
    }
}

#[test]
fn rejects_a_token_that_was_cut_short_or_mistyped() {
    let encoded = token().encode();
    for length in 0..encoded.len() {
        let refused = JoinToken::decode(&encoded[..length]).err().expect("it was cut");
        assert_eq!(refused.field, "join token", "cut to {length}");
        let is_damaged = refused.rule.contains("incomplete or damaged");
        assert_eq!(is_damaged, length >= "lbxjoin1.".len(), "cut to {length}: {refused}");
    }
    for text in [
        format!("{}=", encoded.as_str()),
        encoded.replacen('.', ".+", 1),
        encoded.replacen('.', ". ", 1),
    ] {
        assert_eq!(refused_text(&text), "join token");
    }
}

#[test]
fn rejects_a_token_that_is_too_long() {
    assert_eq!(refused_text(&format!("lbxjoin1.{}", "A".repeat(2_000))), "join token");
}

#[test]
fn rejects_a_token_in_another_encoding() {
    let bytes = [&wire_token().encode_to_vec()[..], &[0x30, 1]].concat();
    assert_eq!(refused_text(&text(&bytes)), "join token");
}

#[test]
fn rejects_a_token_whose_fields_break_their_rules() {
    assert_eq!(refused_token(|wire| wire.version = 2), "version");
    assert_eq!(refused_token(|wire| wire.cluster_id.truncate(31)), "cluster_id");
    assert_eq!(refused_token(|wire| wire.broker_address.clear()), "broker_address");
    assert_eq!(
        refused_token(|wire| wire.broker_address = "x".repeat(MAX_ADDRESS_CHARS + 1)),
        "broker_address"
    );
    assert_eq!(
        refused_token(|wire| wire.broker_address = "a\nb".to_owned()),
        "broker_address"
    );
    assert_eq!(refused_token(|wire| wire.broker_key = vec![0; 32]), "broker_key");
    assert_eq!(refused_token(|wire| wire.join_secret.truncate(31)), "join token");
}

#[test]
fn the_error_of_a_token_never_repeats_it() {
    let encoded = token().encode();
    let cut = &encoded[..encoded.len() - 1];
    let error = JoinToken::decode(cut).err().expect("cut short");
    assert!(!error.to_string().contains(&encoded[12..20]));
    assert!(error.to_string().contains("lockbox-broker token create"), "{error}");
}

#[test]
fn rejects_a_join_request_whose_fields_break_their_rules() {
    let good = JoinRequest {
        cluster_id: CLUSTER,
        lockbox: lockbox(NEW, "a"),
        requested_at_ms: NOW_MS,
    };
    let refused = |spoil: fn(&mut wire::JoinRequest)| {
        let mut wire = good.to_wire();
        spoil(&mut wire);
        refused_field::<JoinRequest>(wire)
    };
    assert_eq!(refused(|wire| wire.version = 0), "version");
    assert_eq!(refused(|wire| wire.cluster_id.clear()), "cluster_id");
    assert_eq!(refused(|wire| wire.lockbox = None), "lockbox");
    assert_eq!(refused(|wire| wire.lockbox = Some(wire::Lockbox::default())), "name");
    assert_eq!(refused(|wire| wire.requested_at_ms = 0), "requested_at_ms");
}

/// A cluster in which a join key may admit one lockbox, for one second.
fn cluster(name: Option<&str>) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.apply(support::admit_broker(BROKER, "broker"));
    cluster.apply(allow_join(JOIN, name));
    cluster
}

fn admission(cluster: &Cluster, lockbox: Lockbox, at_ms: i64, signers: &[u8]) -> UnverifiedEnvelope {
    sign_entry(
        &cluster.roster.next_entry(Change::AdmitLockbox(lockbox), at_ms),
        signers,
    )
}

fn refused_rule(cluster: &mut Cluster, envelope: &UnverifiedEnvelope) -> &'static str {
    match cluster.refused(envelope) {
        RosterError::Rule(rule) => rule,
        other => panic!("refused for another reason: {other}"),
    }
}

fn state(cluster: &Cluster) -> Option<JoinState> {
    cluster.roster.join(&public(JOIN)).map(|join| join.state)
}

#[test]
fn a_join_key_admits_one_lockbox_until_its_last_moment() {
    let mut cluster = cluster(Some("a"));
    assert_eq!(state(&cluster), Some(JoinState::Allowed));
    let envelope = admission(&cluster, lockbox(NEW, "a"), NOW_MS + 1_000, &[JOIN, BROKER]);
    assert_eq!(cluster.roster.apply(&envelope), Ok(Applied::New));
    assert_eq!(state(&cluster), Some(JoinState::Used));
    assert!(cluster.roster.admitted_by_key(&public(NEW)).is_some());
}

#[test]
fn rejects_an_unknown_join_key() {
    let mut cluster = cluster(None);
    let envelope = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN + 1, BROKER]);
    let keyid = public(JOIN + 1).fingerprint().to_string();
    assert_eq!(
        cluster.refused(&envelope),
        RosterError::Envelope(EnvelopeError::UntrustedSigner { keyid })
    );
}

#[test]
fn rejects_a_used_join_key() {
    let mut cluster = cluster(None);
    let first = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN, BROKER]);
    cluster.roster.apply(&first).expect("the first lockbox");
    let second = admission(&cluster, lockbox(NEW + 1, "b"), NOW_MS, &[JOIN, BROKER]);
    assert_eq!(refused_rule(&mut cluster, &second), "the join key was used or revoked");
}

#[test]
fn rejects_a_revoked_join_key() {
    let mut cluster = cluster(None);
    cluster.apply(Change::RevokeJoin { join_key: public(JOIN) });
    assert_eq!(state(&cluster), Some(JoinState::Revoked));
    let envelope = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN, BROKER]);
    assert_eq!(
        refused_rule(&mut cluster, &envelope),
        "the join key was used or revoked"
    );
}

#[test]
fn rejects_an_expired_join_key() {
    let mut cluster = cluster(None);
    let envelope = admission(&cluster, lockbox(NEW, "a"), NOW_MS + 1_001, &[JOIN, BROKER]);
    assert_eq!(refused_rule(&mut cluster, &envelope), "the join key has expired");
}

/// A token that is made while the head is dated ahead expires before the date of its own entry.
#[test]
fn a_join_key_that_expires_before_its_own_entry_admits_at_the_date_of_that_entry_alone() {
    for (at_ms, is_taken) in [(NOW_MS + 5_000, true), (NOW_MS + 5_001, false)] {
        let mut cluster = Cluster::new();
        cluster.apply(support::admit_broker(BROKER, "broker"));
        let allow = sign_entry(
            &cluster.roster.next_entry(allow_join(JOIN, None), NOW_MS + 5_000),
            &cluster.signers,
        );
        cluster.roster.apply(&allow).expect("an admin signed it");
        let envelope = admission(&cluster, lockbox(NEW, "a"), at_ms, &[JOIN, BROKER]);
        assert_eq!(cluster.roster.apply(&envelope).is_ok(), is_taken, "{at_ms}");
    }
}

/// Policies decide by labels: a joining machine does not choose its own.
#[test]
fn rejects_other_labels_than_the_join_key_allows() {
    for other in [&["zone=b"][..], &[], &["zone=a", "env=prod"]] {
        let mut cluster = cluster(None);
        let wanted = Lockbox {
            labels: labels(other),
            ..lockbox(NEW, "a")
        };
        let envelope = admission(&cluster, wanted, NOW_MS, &[JOIN, BROKER]);
        assert_eq!(
            refused_rule(&mut cluster, &envelope),
            "the labels are not those that the join key allows"
        );
    }
}

#[test]
fn rejects_another_name_than_the_join_key_allows() {
    let mut cluster = cluster(Some("a"));
    let envelope = admission(&cluster, lockbox(NEW, "b"), NOW_MS, &[JOIN, BROKER]);
    assert_eq!(
        refused_rule(&mut cluster, &envelope),
        "the name is not the one that the join key allows"
    );
}

/// What holds for an admission by admins holds for one by a join key.
#[test]
fn rejects_an_admission_by_a_join_key_that_breaks_a_rule() {
    let mut cluster = cluster(None);
    cluster.apply(Change::AdmitLockbox(lockbox(NEW, "a")));
    let envelope = admission(&cluster, lockbox(NEW + 1, "a"), NOW_MS, &[JOIN, BROKER]);
    assert_eq!(refused_rule(&mut cluster, &envelope), "another lockbox has this name");
    let own_key = admission(&cluster, lockbox(JOIN, "b"), NOW_MS, &[JOIN, BROKER]);
    assert_eq!(
        refused_rule(&mut cluster, &own_key),
        "a key is admitted once, in one role"
    );
    assert_eq!(state(&cluster), Some(JoinState::Allowed), "a refusal used the key up");
}

/// Whoever has the token alone could give every lockbox another entry for one place, and split the cluster for good.
#[test]
fn rejects_an_admission_that_no_broker_signed() {
    let mut cluster = cluster(None);
    let alone = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN]);
    let too_few = EnvelopeError::TooFewSigners { needed: 2, found: 1 };
    assert_eq!(cluster.refused(&alone), RosterError::Envelope(too_few));
    let by_broker = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[BROKER]);
    assert!(matches!(
        cluster.refused(&by_broker),
        RosterError::Envelope(EnvelopeError::UntrustedSigner { .. })
    ));
    cluster.apply(support::admit_broker(BROKER + 1, "second"));
    cluster.apply(support::retire_broker(BROKER));
    let by_retired = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN, BROKER]);
    assert!(matches!(
        cluster.refused(&by_retired),
        RosterError::Envelope(EnvelopeError::UntrustedSigner { .. })
    ));
    let by_second = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN, BROKER + 1]);
    assert_eq!(cluster.roster.apply(&by_second), Ok(Applied::New));
}

#[test]
fn a_broker_checks_an_admission_before_it_signs_it_too() {
    let mut cluster = cluster(Some("a"));
    let mut good = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN]);
    assert_eq!(cluster.roster.check_join_entry(&good), Ok(public(JOIN)));
    let refused = |cluster: &Cluster, lockbox: Lockbox, at_ms: i64, signers: &[u8]| {
        let entry = admission(cluster, lockbox, at_ms, signers);
        cluster
            .roster
            .check_join_entry(&entry)
            .expect_err("the entry was taken")
    };
    refused(&cluster, lockbox(NEW, "b"), NOW_MS, &[JOIN]);
    refused(&cluster, lockbox(NEW, "a"), NOW_MS + 1_001, &[JOIN]);
    refused(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN + 1]);
    refused(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN, BROKER]);
    refused(&cluster, lockbox(NEW, "a"), NOW_MS, &[ADMIN]);
    refused(&cluster, lockbox(BROKER, "a"), NOW_MS, &[JOIN]);
    good.add_signature(&secret(BROKER)).expect("room for another");
    assert_eq!(cluster.roster.apply(&good), Ok(Applied::New));
    assert!(cluster.roster.check_join_entry(&good).is_err(), "its place is taken");
}

#[test]
fn rejects_a_join_key_that_signs_beside_an_admin() {
    let mut cluster = cluster(None);
    for signers in [&[ADMIN, JOIN][..], &[JOIN, BROKER, ADMIN]] {
        let envelope = admission(&cluster, lockbox(NEW, "a"), NOW_MS, signers);
        assert!(matches!(
            cluster.refused(&envelope),
            RosterError::Envelope(EnvelopeError::UntrustedSigner { .. })
        ));
    }
}

#[test]
fn rejects_anything_but_an_admission_by_a_join_key() {
    let changes = [
        support::admit_broker(21, "broker"),
        support::change_admins(&[2], 1),
        allow_join(JOIN + 1, None),
        Change::RevokeJoin { join_key: public(JOIN) },
    ];
    let mut cluster = cluster(None);
    for change in changes {
        let envelope = sign_entry(&cluster.roster.next_entry(change, NOW_MS), &[JOIN]);
        let keyid = public(JOIN).fingerprint().to_string();
        assert_eq!(
            cluster.refused(&envelope),
            RosterError::Envelope(EnvelopeError::UntrustedSigner { keyid })
        );
    }
}

#[test]
fn rejects_a_signature_that_only_names_a_join_key() {
    let mut cluster = cluster(None);
    let mut forged = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[99]).to_wire();
    forged.signatures[0].keyid = public(JOIN).fingerprint().to_string();
    let forged = UnverifiedEnvelope::from_wire(forged).expect("its form is good");
    assert!(matches!(
        cluster.refused(&forged),
        RosterError::Envelope(EnvelopeError::BadSignature { .. })
    ));
}

#[test]
fn rejects_revoking_a_join_key_that_is_unknown_used_or_revoked() {
    const RULE: &str = "only an allowed, unused join key can be revoked";
    let revoke = |number| Change::RevokeJoin {
        join_key: public(number),
    };
    let mut cluster = cluster(None);
    assert_eq!(cluster.refused_rule(revoke(JOIN + 1)), RULE);
    let used = admission(&cluster, lockbox(NEW, "a"), NOW_MS, &[JOIN, BROKER]);
    cluster.roster.apply(&used).expect("the first lockbox");
    assert_eq!(cluster.refused_rule(revoke(JOIN)), RULE);
    cluster.apply(allow_join(JOIN + 1, None));
    cluster.apply(revoke(JOIN + 1));
    assert_eq!(cluster.refused_rule(revoke(JOIN + 1)), RULE);
}

/// Admins may admit whom they like while a join key is allowed: the key stays for somebody else.
#[test]
fn an_admission_by_the_admins_uses_no_join_key_up() {
    let mut cluster = cluster(None);
    cluster.apply(Change::AdmitLockbox(lockbox(NEW, "a")));
    assert_eq!(state(&cluster), Some(JoinState::Allowed));
}
