//! Nothing in what is signed can be changed: not one bit of an envelope, and not one field of an authorization.

mod support;

use lockbox_authz::authorization::Authorization;
use lockbox_authz::envelope::{EnvelopeError, Statement, UnverifiedEnvelope, Verified};
use lockbox_authz::id::{Hash, KeyId, SessionId};
use lockbox_authz::transfer::Receipt;
use lockbox_authz::wire;
use prost::Message;
use support::{BROKER, CLUSTER, Cluster, NOW_MS, admit_broker, authorization, public, read, secret, wire_label};

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.apply(admit_broker(BROKER, "broker"));
    cluster
}

/// Flips each bit in turn and reads the result: every one must be refused.
fn assert_every_flip_is_refused<T>(bytes: &[u8], read: impl Fn(&[u8]) -> Result<T, EnvelopeError>) {
    assert!(read(bytes).is_ok(), "the original is good");
    let mut changed = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            read(&changed).is_err(),
            "bit {} of byte {} does not count",
            bit % 8,
            bit / 8
        );
        changed[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn rejects_an_authorization_with_any_bit_flipped() {
    let cluster = cluster();
    let bytes = Verified::sign(authorization(), &secret(BROKER)).envelope().to_bytes();
    assert_every_flip_is_refused(&bytes, |bytes| {
        Authorization::verify(&UnverifiedEnvelope::from_bytes(bytes)?, &cluster.roster)
    });
}

#[test]
fn rejects_a_receipt_with_any_bit_flipped() {
    let receipt = Receipt {
        cluster_id: CLUSTER,
        authorization_hash: Hash([1; 32]),
        session_id: SessionId([2; 16]),
        chunk: 0,
        chunk_hash: Hash([3; 32]),
        key_ids: vec![KeyId([4; 16])],
        stored_at_ms: NOW_MS,
    };
    let bytes = Verified::sign(receipt, &secret(BROKER)).envelope().to_bytes();
    assert_every_flip_is_refused(&bytes, |bytes| read::<Receipt>(bytes, BROKER));
}

/// The key id is outside of what is signed; a change of it is noticed all the same.
#[test]
fn rejects_a_changed_key_id_as_untrusted() {
    let cluster = cluster();
    let good = Verified::sign(authorization(), &secret(BROKER)).envelope().to_wire();
    for place in 0..good.signatures[0].keyid.len() {
        let mut changed = good.clone();
        let keyid = &mut changed.signatures[0].keyid;
        let other = if keyid.as_bytes()[place] == b'0' { "1" } else { "0" };
        keyid.replace_range(place..=place, other);
        let envelope = UnverifiedEnvelope::from_wire(changed).expect("its form is good");
        assert!(
            matches!(
                Authorization::verify(&envelope, &cluster.roster),
                Err(EnvelopeError::UntrustedSigner { .. })
            ),
            "digit {place}"
        );
    }
}

type Mutation = (&'static str, fn(&mut wire::Authorization));

/// A change of each field to another value that its rule allows, so that only the signature stands in the way.
const MUTATIONS: [Mutation; 25] = [
    ("authorization_id", |a| a.authorization_id[0] ^= 1),
    ("cluster_id", |a| a.cluster_id[31] ^= 1),
    ("request_id", |a| a.request_id.push('x')),
    ("requester", |a| a.requester = "admin".to_owned()),
    ("source.lockbox_id", |a| party(&mut a.source).lockbox_id[15] ^= 1),
    ("source.identity_key", |a| {
        party(&mut a.source).identity_key = public(9).to_vec()
    }),
    ("target.lockbox_id", |a| party(&mut a.target).lockbox_id[15] ^= 1),
    ("target.identity_key", |a| {
        party(&mut a.target).identity_key = public(9).to_vec()
    }),
    ("source and target", |a| std::mem::swap(&mut a.source, &mut a.target)),
    ("target_wrapping_certificate.payload", |a| {
        certificate(a).payload[100] ^= 1
    }),
    ("target_wrapping_certificate.payload_type", |a| {
        certificate(a).payload_type.push('2')
    }),
    ("target_wrapping_certificate.signatures.sig", |a| {
        certificate(a).signatures[0].sig[0] ^= 1
    }),
    ("target_wrapping_certificate.signatures.keyid", |a| {
        certificate(a).signatures[0].keyid = public(9).fingerprint().to_string();
    }),
    ("target_wrapping_certificate, another signature", |a| {
        let signature = certificate(a).signatures[0].clone();
        certificate(a).signatures.push(signature);
    }),
    ("operation", |a| a.operation = wire::Operation::Copy.into()),
    ("selection, another id", |a| {
        select_ids(a, vec![vec![1; 16], vec![3; 16]])
    }),
    ("selection, one id less", |a| select_ids(a, vec![vec![1; 16]])),
    ("selection, by label", |a| {
        let labels = vec![wire_label("env", "prod")];
        select(a, wire::selection::Keys::Labels(wire::LabelSelector { labels }));
    }),
    ("selection, all", |a| {
        select(a, wire::selection::Keys::All(wire::AllKeys {}))
    }),
    ("not_before_ms", |a| a.not_before_ms -= 1),
    ("expires_at_ms", |a| a.expires_at_ms += 1),
    ("roster_head.index", |a| head(a).index += 1),
    ("roster_head.hash", |a| head(a).hash[0] ^= 1),
    ("reason", |a| a.reason.clear()),
    ("max_keys", |a| a.max_keys = 0),
];

fn party(party: &mut Option<wire::Party>) -> &mut wire::Party {
    party.as_mut().expect("it has one")
}

fn certificate(authorization: &mut wire::Authorization) -> &mut wire::Envelope {
    authorization.target_wrapping_certificate.as_mut().expect("it has one")
}

fn head(authorization: &mut wire::Authorization) -> &mut wire::RosterHead {
    authorization.roster_head.as_mut().expect("it has one")
}

fn select(authorization: &mut wire::Authorization, keys: wire::selection::Keys) {
    authorization.selection = Some(wire::Selection { keys: Some(keys) });
}

fn select_ids(authorization: &mut wire::Authorization, ids: Vec<Vec<u8>>) {
    select(authorization, wire::selection::Keys::Ids(wire::KeyIds { ids }));
}

#[test]
fn rejects_an_authorization_with_any_field_changed() {
    let cluster = cluster();
    let good = authorization().to_wire();
    let signed = Verified::sign(authorization(), &secret(BROKER)).envelope().to_wire();
    assert_eq!(signed.payload, good.encode_to_vec());
    for (field, change) in MUTATIONS {
        let mut changed = good.clone();
        change(&mut changed);
        assert_ne!(changed, good, "{field} was not changed");
        let envelope = wire::Envelope {
            payload: changed.encode_to_vec(),
            ..signed.clone()
        };
        let envelope = UnverifiedEnvelope::from_bytes(&envelope.encode_to_vec()).expect("its form is good");
        assert!(
            envelope.unverified_statement::<Authorization>().is_ok(),
            "{field} breaks a rule"
        );
        assert!(
            matches!(
                Authorization::verify(&envelope, &cluster.roster),
                Err(EnvelopeError::BadSignature { .. })
            ),
            "{field} can be changed"
        );
    }
}

/// The version has no other allowed value; and whoever adds a field is reminded here to add its change above.
#[test]
fn rejects_an_authorization_with_another_version() {
    let wire::Authorization {
        version,
        authorization_id: _,
        cluster_id: _,
        request_id: _,
        requester: _,
        source: _,
        target: _,
        target_wrapping_certificate: _,
        operation: _,
        selection: _,
        not_before_ms: _,
        expires_at_ms: _,
        roster_head: _,
        reason: _,
        max_keys: _,
    } = authorization().to_wire();
    let signed = Verified::sign(authorization(), &secret(BROKER)).envelope().to_wire();
    let mut changed = authorization().to_wire();
    changed.version = version + 1;
    let envelope = wire::Envelope {
        payload: changed.encode_to_vec(),
        ..signed
    };
    let envelope = UnverifiedEnvelope::from_wire(envelope).expect("its form is good");
    let refused = Authorization::verify(&envelope, &cluster().roster);
    assert!(matches!(refused, Err(EnvelopeError::BadSignature { .. })));
}
