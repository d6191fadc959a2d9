//! Authorizations and revocations: each field's rule, and who may sign.

mod support;

use lockbox_authz::authorization::{Authorization, Revocation, Selection};
use lockbox_authz::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
use lockbox_authz::field::Labels;
use lockbox_authz::id::{AuthorizationId, KeyId};
use lockbox_authz::limits::{MAX_SELECTED_KEYS, MAX_SIGNATURES, MAX_VALIDITY_MS};
use lockbox_authz::wire;
use prost::Message;
use support::{
    BROKER, CLUSTER, Cluster, NOW_MS, SOURCE, accepted, admit_broker, authorization, public, refused_field,
    retire_broker, secret, sign_payload, wire_label,
};

/// A good authorization after a change: the field that is refused.
fn refused(change: impl FnOnce(&mut wire::Authorization)) -> &'static str {
    let mut wire = authorization().to_wire();
    change(&mut wire);
    refused_field::<Authorization>(wire)
}

fn refused_selection(keys: Option<wire::selection::Keys>) -> &'static str {
    refused(|wire| wire.selection = Some(wire::Selection { keys }))
}

fn ids(ids: Vec<Vec<u8>>) -> Option<wire::selection::Keys> {
    Some(wire::selection::Keys::Ids(wire::KeyIds { ids }))
}

fn source(wire: &mut wire::Authorization) -> &mut wire::Party {
    wire.source.as_mut().expect("it has one")
}

fn target(wire: &mut wire::Authorization) -> &mut wire::Party {
    wire.target.as_mut().expect("it has one")
}

#[test]
fn rejects_a_version_that_is_not_known() {
    assert_eq!(refused(|wire| wire.version = 0), "version");
    assert_eq!(refused(|wire| wire.version = 2), "version");
}

#[test]
fn rejects_an_authorization_id_of_another_length() {
    assert_eq!(refused(|wire| wire.authorization_id.clear()), "authorization_id");
    assert_eq!(refused(|wire| wire.authorization_id.push(0)), "authorization_id");
}

#[test]
fn rejects_a_cluster_id_of_another_length() {
    assert_eq!(refused(|wire| wire.cluster_id.clear()), "cluster_id");
    assert_eq!(refused(|wire| wire.cluster_id.push(0)), "cluster_id");
}

#[test]
fn rejects_a_request_id_that_is_empty_too_long_or_can_not_be_printed() {
    for text in [String::new(), "x".repeat(129), "a\nb".to_owned()] {
        assert_eq!(refused(|wire| wire.request_id = text), "request_id");
    }
}

#[test]
fn rejects_a_requester_that_is_empty_too_long_or_can_not_be_printed() {
    for text in [String::new(), "x".repeat(257), "a\u{1b}b".to_owned()] {
        assert_eq!(refused(|wire| wire.requester = text), "requester");
    }
}

#[test]
fn rejects_a_reason_that_is_too_long_or_can_not_be_printed() {
    for text in ["x".repeat(257), "a\rb".to_owned()] {
        assert_eq!(refused(|wire| wire.reason = text), "reason");
    }
}

/// Bounds count characters, so that no language has less room than another.
#[test]
fn texts_of_the_greatest_length_are_read() {
    let mut wire = authorization().to_wire();
    wire.request_id = "ж".repeat(128);
    wire.requester = "ж".repeat(256);
    wire.reason = "ж".repeat(256);
    accepted::<Authorization>(wire);
    let mut wire = authorization().to_wire();
    wire.reason.clear();
    accepted::<Authorization>(wire);
}

#[test]
fn a_limit_that_is_left_out_is_none() {
    let mut wire = authorization().to_wire();
    assert_eq!(
        Authorization::from_wire(wire.clone()).expect("it is good").max_keys,
        Some(20)
    );
    wire.max_keys = 0;
    assert_eq!(
        Authorization::from_wire(wire.clone()).expect("it is good").max_keys,
        None
    );
}

#[test]
fn rejects_a_missing_party() {
    assert_eq!(refused(|wire| wire.source = None), "source");
    assert_eq!(refused(|wire| wire.target = None), "target");
}

#[test]
fn rejects_a_party_whose_id_has_another_length() {
    assert_eq!(refused(|wire| source(wire).lockbox_id.truncate(15)), "lockbox_id");
    assert_eq!(refused(|wire| target(wire).lockbox_id.clear()), "lockbox_id");
}

#[test]
fn rejects_a_party_whose_identity_key_is_no_key() {
    assert_eq!(refused(|wire| source(wire).identity_key.truncate(31)), "identity_key");
    assert_eq!(refused(|wire| target(wire).identity_key = vec![0; 32]), "identity_key");
}

#[test]
fn rejects_a_target_that_is_the_source() {
    assert_eq!(refused(|wire| target(wire).lockbox_id = SOURCE.to_vec()), "target");
    assert_eq!(
        refused(|wire| target(wire).identity_key = source(wire).identity_key.clone()),
        "target"
    );
}

#[test]
fn rejects_a_missing_wrapping_certificate() {
    let field = refused(|wire| wire.target_wrapping_certificate = None);
    assert_eq!(field, "target_wrapping_certificate");
}

#[test]
fn rejects_a_wrapping_certificate_that_nobody_signed() {
    let field = refused(|wire| {
        wire.target_wrapping_certificate = Some(wire::Envelope::default());
    });
    assert_eq!(field, "target_wrapping_certificate");
}

#[test]
fn rejects_a_wrapping_certificate_with_too_many_signatures() {
    let field = refused(|wire| {
        let certificate = wire.target_wrapping_certificate.as_mut().expect("it has one");
        let signature = certificate.signatures[0].clone();
        certificate.signatures = vec![signature; MAX_SIGNATURES + 1];
    });
    assert_eq!(field, "target_wrapping_certificate");
}

#[test]
fn rejects_an_operation_that_is_not_known() {
    for operation in [0, 3, -1] {
        assert_eq!(refused(|wire| wire.operation = operation), "operation");
    }
}

#[test]
fn rejects_a_missing_selection() {
    assert_eq!(refused(|wire| wire.selection = None), "selection");
    assert_eq!(refused_selection(None), "selection");
}

#[test]
fn rejects_a_selection_of_no_ids() {
    assert_eq!(refused_selection(ids(Vec::new())), "selection");
}

#[test]
fn rejects_a_selection_of_too_many_ids() {
    let mut many: Vec<Vec<u8>> = (0..=u16::try_from(MAX_SELECTED_KEYS).expect("1,024"))
        .map(|number| [&number.to_be_bytes()[..], &[0; 14]].concat())
        .collect();
    assert_eq!(refused_selection(ids(many.clone())), "selection");
    many.pop();
    let mut wire = authorization().to_wire();
    wire.selection = Some(wire::Selection { keys: ids(many) });
    accepted::<Authorization>(wire);
}

#[test]
fn rejects_ids_that_are_not_ascending_or_repeated() {
    let [one, two] = [vec![1; 16], vec![2; 16]];
    assert_eq!(refused_selection(ids(vec![two, one.clone()])), "selection");
    assert_eq!(refused_selection(ids(vec![one.clone(), one])), "selection");
}

#[test]
fn rejects_a_selected_id_of_another_length() {
    assert_eq!(refused_selection(ids(vec![vec![1; 15]])), "selection");
}

#[test]
fn rejects_a_selection_by_no_label() {
    let labels = wire::LabelSelector { labels: Vec::new() };
    assert_eq!(
        refused_selection(Some(wire::selection::Keys::Labels(labels))),
        "selection"
    );
}

#[test]
fn rejects_a_selection_by_unsorted_labels() {
    let labels = vec![wire_label("b", "1"), wire_label("a", "1")];
    let selector = wire::LabelSelector { labels };
    assert_eq!(
        refused_selection(Some(wire::selection::Keys::Labels(selector))),
        "labels"
    );
}

/// Of two members of a oneof the last one counts for a decoder; a person may have been shown the first.
#[test]
fn rejects_a_selection_of_two_kinds() {
    let two_kinds = [&[0x0a, 18, 0x0a, 16][..], &[1; 16], &[0x1a, 0]].concat();
    let whole = authorization().to_wire();
    let after_it = wire::Authorization {
        not_before_ms: whole.not_before_ms,
        expires_at_ms: whole.expires_at_ms,
        roster_head: whole.roster_head.clone(),
        reason: whole.reason.clone(),
        ..Default::default()
    };
    let before_it = wire::Authorization {
        selection: None,
        not_before_ms: 0,
        expires_at_ms: 0,
        roster_head: None,
        reason: String::new(),
        ..whole
    };
    let length = u8::try_from(two_kinds.len()).expect("short");
    let bytes = [
        before_it.encode_to_vec(),
        vec![0x52, length],
        two_kinds,
        after_it.encode_to_vec(),
    ]
    .concat();
    let decoded = wire::Authorization::decode(&bytes[..]).expect("a message");
    let kinds = decoded.selection.expect("one was put").keys;
    assert_eq!(kinds, Some(wire::selection::Keys::All(wire::AllKeys {})));
    let envelope = sign_payload(Authorization::PAYLOAD_TYPE, bytes, &[BROKER]);
    assert_eq!(
        support::read::<Authorization>(&envelope.encode_to_vec(), BROKER).err(),
        Some(EnvelopeError::NotCanonical { part: "payload" })
    );
}

#[test]
fn rejects_times_before_1970() {
    assert_eq!(refused(|wire| wire.not_before_ms = 0), "not_before_ms");
    assert_eq!(refused(|wire| wire.expires_at_ms = -1), "expires_at_ms");
}

#[test]
fn rejects_a_time_window_that_is_empty() {
    assert_eq!(refused(|wire| wire.expires_at_ms = wire.not_before_ms), "expires_at_ms");
    assert_eq!(refused(|wire| wire.expires_at_ms = NOW_MS - 1), "expires_at_ms");
}

#[test]
fn rejects_a_time_window_of_more_than_a_day() {
    assert_eq!(
        refused(|wire| wire.expires_at_ms = NOW_MS + MAX_VALIDITY_MS + 1),
        "expires_at_ms"
    );
    assert_eq!(refused(|wire| wire.expires_at_ms = i64::MAX), "expires_at_ms");
    let mut wire = authorization().to_wire();
    wire.expires_at_ms = NOW_MS + MAX_VALIDITY_MS;
    accepted::<Authorization>(wire);
}

#[test]
fn rejects_a_roster_head_that_is_missing_or_has_no_hash() {
    assert_eq!(refused(|wire| wire.roster_head = None), "roster_head");
    assert_eq!(
        refused(|wire| wire.roster_head = Some(wire::RosterHead::default())),
        "roster_head"
    );
}

#[test]
fn every_selection_is_read_as_it_was_written() {
    let by_label = Labels::parse(["env=prod", "zone=a"]).expect("labels");
    let by_id = Selection::from_unsorted_ids(vec![KeyId([2; 16]), KeyId([1; 16]), KeyId([2; 16])]).expect("two ids");
    assert_eq!(by_id, Selection::Ids(vec![KeyId([1; 16]), KeyId([2; 16])]));
    for selection in [by_id, Selection::Labels(by_label), Selection::All] {
        let mut statement = authorization();
        statement.selection = selection;
        let signed = Verified::sign(statement.clone(), &secret(BROKER));
        let read = support::read::<Authorization>(&signed.envelope().to_bytes(), BROKER).expect("it is good");
        assert_eq!(read.statement(), &statement);
    }
}

/// A cluster with two brokers.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.apply(admit_broker(BROKER, "broker-1"));
    cluster.apply(admit_broker(BROKER + 1, "broker-2"));
    cluster
}

fn signed_by(signers: &[u8]) -> UnverifiedEnvelope {
    let payload = authorization().to_wire().encode_to_vec();
    let envelope = sign_payload(Authorization::PAYLOAD_TYPE, payload, signers);
    UnverifiedEnvelope::from_wire(envelope).expect("it is signed")
}

fn verify(cluster: &Cluster, signers: &[u8]) -> Result<Verified<Authorization>, EnvelopeError> {
    Authorization::verify(&signed_by(signers), &cluster.roster)
}

#[test]
fn one_broker_or_several_may_sign() {
    assert!(verify(&cluster(), &[BROKER]).is_ok());
    assert!(verify(&cluster(), &[BROKER + 1]).is_ok());
    assert!(verify(&cluster(), &[BROKER, BROKER + 1]).is_ok());
}

#[test]
fn rejects_an_authorization_by_a_stranger_an_admin_or_a_lockbox() {
    let mut cluster = cluster();
    cluster.apply(lockbox_authz::roster::Change::AdmitLockbox(support::lockbox(40, "a")));
    for signer in [99, support::ADMIN, 40] {
        assert!(
            matches!(verify(&cluster, &[signer]), Err(EnvelopeError::UntrustedSigner { .. })),
            "signed by {signer}"
        );
    }
}

#[test]
fn rejects_an_authorization_by_a_retired_broker() {
    let mut cluster = cluster();
    cluster.apply(retire_broker(BROKER));
    assert!(matches!(
        verify(&cluster, &[BROKER]),
        Err(EnvelopeError::UntrustedSigner { .. })
    ));
    assert!(verify(&cluster, &[BROKER + 1]).is_ok());
}

#[test]
fn rejects_an_authorization_by_fewer_brokers_than_the_roster_asks_for() {
    let mut cluster = cluster();
    let admins = lockbox_authz::roster::Admins::new(vec![public(support::ADMIN)], 1, 2).expect("one admin");
    cluster.apply(lockbox_authz::roster::Change::ChangeAdmins(admins));
    assert_eq!(
        verify(&cluster, &[BROKER]).err(),
        Some(EnvelopeError::TooFewSigners { needed: 2, found: 1 })
    );
    assert!(verify(&cluster, &[BROKER, BROKER + 1]).is_ok());
    // One broker may still stop what two authorized.
    assert!(Revocation::verify(&revocation(BROKER), &cluster.roster).is_ok());
}

fn revocation(signer: u8) -> UnverifiedEnvelope {
    let revocation = Revocation {
        cluster_id: CLUSTER,
        authorization_id: AuthorizationId([0xaa; 16]),
        reason: String::new(),
        expires_at_ms: NOW_MS,
    };
    Verified::sign(revocation, &secret(signer)).envelope().clone()
}

#[test]
fn rejects_a_revocation_by_a_stranger_or_a_retired_broker() {
    let mut cluster = cluster();
    cluster.apply(retire_broker(BROKER));
    for signer in [99, BROKER] {
        assert!(
            Revocation::verify(&revocation(signer), &cluster.roster).is_err(),
            "{signer}"
        );
    }
}

#[test]
fn rejects_a_revocation_whose_fields_break_their_rules() {
    let good = revocation(BROKER)
        .unverified_statement::<Revocation>()
        .expect("good")
        .to_wire();
    let refused = |change: fn(&mut wire::Revocation)| {
        let mut wire = good.clone();
        change(&mut wire);
        refused_field::<Revocation>(wire)
    };
    assert_eq!(refused(|wire| wire.version = 2), "version");
    assert_eq!(refused(|wire| wire.cluster_id.truncate(31)), "cluster_id");
    assert_eq!(refused(|wire| wire.authorization_id.truncate(15)), "authorization_id");
    assert_eq!(refused(|wire| wire.reason = "x".repeat(257)), "reason");
    assert_eq!(refused(|wire| wire.reason = "\0".to_owned()), "reason");
    assert_eq!(refused(|wire| wire.expires_at_ms = 0), "expires_at_ms");
}
