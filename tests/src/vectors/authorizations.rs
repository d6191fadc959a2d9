//! Authorizations: every way in which an envelope, and every way in which its payload, is refused.

use lockbox_authz::authorization::{Authorization, Operation, Selection};
use lockbox_authz::envelope::{Statement, Verified};
use lockbox_authz::field::Labels;
use lockbox_authz::keys::Signer;
use lockbox_authz::labels;
use lockbox_authz::limits::{MAX_ENVELOPE_BYTES, MAX_VALIDITY_MS};
use lockbox_authz::wire;
use prost::Message;

use super::Vector;
use super::file::hex;
use super::fixed::{public, secret};
use super::protobuf::{fields, sign_payload, sign_wire};
use super::scene::{BROKER, SECOND_BROKER, Scene};

pub(super) fn vectors(scene: &Scene) -> Vec<Vector> {
    let good = good(scene);
    let mut vectors = accepted(scene);
    vectors.extend(spoiled_envelopes(&good, scene));
    vectors.extend(spoiled_signatures(&good, scene));
    vectors.extend(spoiled_payloads(&good, scene));
    vectors.extend(spoiled_fields(&good, scene));
    vectors.push(good);
    vectors
}

fn vector(name: &str, about: &str, signed: &Verified<Authorization>) -> Vector {
    Vector::accepted("envelope", name, about, signed.envelope().to_bytes())
        .with("statement", "authorization")
        .with_hex("trusted", public(BROKER).as_bytes())
        .with("threshold", "1")
        .with_hex("yields-hash", &signed.hash().0)
}

fn good(scene: &Scene) -> Vector {
    let about = "A broker lets storage-b fetch one key from storage-a, which then erases it.";
    vector("authorization", about, &scene.authorization)
}

fn accepted(scene: &Scene) -> Vec<Vector> {
    let statement = scene.authorization.statement();
    let by_label = Authorization {
        operation: Operation::Copy,
        selection: Selection::Labels(Labels::parse(["env=prod", "tier=gold"]).expect("labels")),
        reason: String::new(),
        ..statement.clone()
    };
    let of_all = Authorization {
        selection: Selection::All,
        ..statement.clone()
    };
    let limited = Authorization {
        max_keys: Some(20),
        ..of_all.clone()
    };
    let sign = |statement| Verified::sign(statement, &secret(BROKER));
    let mut by_two = vector(
        "authorization-by-two",
        "Two brokers sign, and two must.",
        &scene.authorization,
    );
    let mut envelope = scene.authorization.envelope().clone();
    envelope.add_signature(&secret(SECOND_BROKER)).expect("another signer");
    by_two.body = envelope.to_bytes();
    by_two.set("threshold", "2");
    vec![
        vector(
            "authorization-by-label",
            "A copy, selected by labels, without a reason.",
            &sign(by_label),
        ),
        vector("authorization-of-all", "All keys move: an evacuation.", &sign(of_all)),
        vector(
            "authorization-limited",
            "All keys move, if they are at most 20.",
            &sign(limited),
        ),
        by_two.with_hex("trusted", public(SECOND_BROKER).as_bytes()),
    ]
}

/// The bytes of the envelope itself, which anybody on the way can change.
fn spoiled_envelopes(good: &Vector, scene: &Scene) -> Vec<Vector> {
    let whole = fields(&good.body);
    let mut large = scene.authorization.envelope().to_wire();
    large.payload = vec![0; MAX_ENVELOPE_BYTES];
    let body = |suffix: &str, reason: &str, about: &str, body: Vec<u8>| {
        good.spoiled(suffix, reason, about, |vector| vector.body = body)
    };
    let first_payload = wire::Envelope {
        payload: b"what is shown".to_vec(),
        ..Default::default()
    };
    let padded = {
        let mut padded = good.body.clone();
        // The two bytes of the payload's length become three.
        padded[2] |= 0x80;
        padded.insert(3, 0);
        padded
    };
    vec![
        body("too-large", "too-large", "More than 48 KiB.", large.encode_to_vec()),
        body(
            "empty",
            "signature-count",
            "No bytes at all: the empty envelope.",
            Vec::new(),
        ),
        body(
            "cut-short",
            "malformed",
            "The last byte is missing.",
            good.body[..good.body.len() - 1].to_vec(),
        ),
        body(
            "trailing-field",
            "not-canonical",
            "A field that nobody knows follows the envelope.",
            [&good.body[..], &[0x7a, 1, b'x']].concat(),
        ),
        body(
            "envelope-reordered",
            "not-canonical",
            "The signature stands before the payload.",
            [whole[2].clone(), whole[0].clone(), whole[1].clone()].concat(),
        ),
        body(
            "payload-twice",
            "not-canonical",
            "Two payloads: one for people, and the one that a decoder takes.",
            [first_payload.encode_to_vec(), good.body.clone()].concat(),
        ),
        body(
            "length-padded",
            "not-canonical",
            "The payload's length takes one byte more than it must.",
            padded,
        ),
    ]
}

fn spoiled_signatures(good: &Vector, scene: &Scene) -> Vec<Vector> {
    let signed = scene.authorization.envelope().to_wire();
    let payload = &signed.payload;
    let spoil = |suffix: &str, reason: &str, about: &str, spoil: &dyn Fn(&mut wire::Envelope)| {
        good.spoiled(suffix, reason, about, |vector| {
            let mut envelope = signed.clone();
            spoil(&mut envelope);
            vector.body = envelope.encode_to_vec();
        })
    };
    let signed_by = |suffix: &str, reason: &str, about: &str, signers: &[&str]| {
        let secrets: Vec<_> = signers.iter().map(|name| secret(name)).collect();
        let secrets: Vec<_> = secrets.iter().collect();
        good.spoiled(suffix, reason, about, |vector| {
            vector.body = sign_payload(labels::AUTHORIZATION, payload.clone(), &secrets).encode_to_vec();
        })
    };
    let names: Vec<String> = (1..=17).map(|number| format!("signer-{number}")).collect();
    let seventeen: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut too_few = good.spoiled(
        "too-few-signers",
        "too-few-signers",
        "One broker signed, two must.",
        |vector| {
            vector.set("threshold", "2");
        },
    );
    too_few = too_few.with_hex("trusted", public(SECOND_BROKER).as_bytes());
    vec![
        too_few,
        signed_by("unsigned", "signature-count", "Nobody signed.", &[]),
        signed_by(
            "by-seventeen",
            "signature-count",
            "One signature more than is allowed.",
            &seventeen,
        ),
        signed_by(
            "by-stranger",
            "untrusted-signer",
            "Somebody else signed.",
            &["stranger"],
        ),
        signed_by(
            "by-broker-and-stranger",
            "untrusted-signer",
            "A broker signed, and somebody else did, too.",
            &[BROKER, "stranger"],
        ),
        signed_by(
            "signed-twice",
            "repeated-signer",
            "The same broker signed twice.",
            &[BROKER, BROKER],
        ),
        spoil(
            "payload-changed",
            "bad-signature",
            "The operation is COPY now; MOVE was signed.",
            &|envelope| {
                let mut payload = wire::Authorization::decode(&envelope.payload[..]).expect("a message");
                payload.operation = wire::Operation::Copy.into();
                envelope.payload = payload.encode_to_vec();
            },
        ),
        spoil(
            "signature-changed",
            "bad-signature",
            "One bit of the signature is flipped.",
            &|envelope| {
                envelope.signatures[0].sig[40] ^= 1;
            },
        ),
        spoil(
            "signature-short",
            "signature-length",
            "The signature has 63 bytes.",
            &|envelope| {
                envelope.signatures[0].sig.truncate(63);
            },
        ),
        spoil(
            "scalar-not-reduced",
            "bad-signature",
            "The group's order is added to the signature's S.",
            &|envelope| {
                add_order(&mut envelope.signatures[0].sig[32..]);
            },
        ),
        spoil(
            "signed-bare",
            "bad-signature",
            "The payload itself is signed, not its encoding with the type.",
            &|e| {
                e.signatures[0].sig = secret(BROKER).sign(&e.payload).to_vec();
            },
        ),
        spoil(
            "keyid-in-capitals",
            "untrusted-signer",
            "The key id is written in capital letters.",
            &|envelope| {
                envelope.signatures[0].keyid = envelope.signatures[0].keyid.to_uppercase();
            },
        ),
        spoil(
            "keyid-of-another",
            "untrusted-signer",
            "The key id is that of somebody who is not trusted.",
            &|envelope| {
                envelope.signatures[0].keyid = public("stranger").fingerprint().to_string();
            },
        ),
        spoil(
            "type-changed",
            "wrong-payload-type",
            "Signed as an authorization, presented as a receipt.",
            &|envelope| {
                envelope.payload_type = labels::RECEIPT.to_owned();
            },
        ),
        good.spoiled(
            "signed-as-receipt",
            "bad-signature",
            "Signed as a receipt, presented as an authorization.",
            |vector| {
                let mut envelope = sign_payload(labels::RECEIPT, payload.clone(), &[&secret(BROKER)]);
                envelope.payload_type = labels::AUTHORIZATION.to_owned();
                vector.body = envelope.encode_to_vec();
            },
        ),
    ]
}

/// Adds the order of Ed25519's base point, little-endian (RFC 8032, section 5.1).
fn add_order(scalar: &mut [u8]) {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    for (byte, addend) in scalar.iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(addend) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
}

/// Other spellings of the payload, signed by a broker that spells so.
fn spoiled_payloads(good: &Vector, scene: &Scene) -> Vec<Vector> {
    let payload = scene.authorization.envelope().to_wire().payload;
    let whole = fields(&payload);
    let signed = |suffix: &str, reason: &str, about: &str, payload: Vec<u8>| {
        good.spoiled(suffix, reason, about, |vector| {
            vector.body = sign_payload(labels::AUTHORIZATION, payload, &[&secret(BROKER)]).encode_to_vec();
        })
    };
    let mut reordered = whole.clone();
    reordered.swap(0, 1);
    let mut repeated = whole.clone();
    repeated.insert(8, vec![0x48, 1]);
    let without_reason = wire::Authorization {
        reason: String::new(),
        ..scene.authorization.statement().to_wire()
    };
    let mut not_utf8 = payload.clone();
    *not_utf8.last_mut().expect("it is not empty") = 0xff;
    vec![
        signed(
            "payload-unknown-field",
            "not-canonical",
            "A field 16 that nobody knows.",
            [&payload[..], &[0x80, 1, 1]].concat(),
        ),
        signed(
            "payload-reordered",
            "not-canonical",
            "Field 2 stands before field 1.",
            reordered.concat(),
        ),
        signed(
            "payload-field-twice",
            "not-canonical",
            "The operation stands twice: COPY, then MOVE.",
            repeated.concat(),
        ),
        signed(
            "payload-default-written",
            "not-canonical",
            "An empty reason is written out.",
            [&without_reason.encode_to_vec()[..], &[0x72, 0]].concat(),
        ),
        signed(
            "payload-number-padded",
            "not-canonical",
            "The version takes two bytes.",
            [&[0x08, 0x81, 0], &payload[2..]].concat(),
        ),
        signed("payload-not-utf8", "malformed", "The reason is not UTF-8.", not_utf8),
        signed(
            "payload-not-protobuf",
            "malformed",
            "The payload is text.",
            b"move everything to me".to_vec(),
        ),
    ]
}

type FieldSpoiler = (&'static str, &'static str, fn(&mut wire::Authorization));

/// Fields that break their rules, signed by a broker that does not keep them.
const FIELDS: [FieldSpoiler; 17] = [
    ("version-2", "A version that nobody knows.", |a| a.version = 2),
    ("authorization-id-short", "The authorization id has 15 bytes.", |a| {
        a.authorization_id.truncate(15)
    }),
    ("cluster-id-short", "The cluster id has 31 bytes.", |a| {
        a.cluster_id.truncate(31)
    }),
    ("request-id-empty", "There is no request id.", |a| a.request_id.clear()),
    ("requester-long", "The requester has 257 characters.", |a| {
        a.requester = "x".repeat(257)
    }),
    ("reason-control", "The reason would clear a terminal.", |a| {
        a.reason = "ok\u{1b}[2J".to_owned()
    }),
    ("source-missing", "There is no source.", |a| a.source = None),
    ("target-is-source", "The keys would go to where they are.", |a| {
        a.target = a.source.clone()
    }),
    ("certificate-missing", "There is no wrapping certificate.", |a| {
        a.target_wrapping_certificate = None
    }),
    ("certificate-unsigned", "Nobody signed the wrapping certificate.", |a| {
        a.target_wrapping_certificate
            .as_mut()
            .expect("it has one")
            .signatures
            .clear();
    }),
    ("operation-missing", "No operation is named.", |a| a.operation = 0),
    ("operation-unknown", "An operation that nobody knows.", |a| {
        a.operation = 3
    }),
    ("selection-missing", "No keys are selected.", |a| a.selection = None),
    ("ids-repeated", "A key is selected twice.", |a| select(a, &[1, 1])),
    ("ids-descending", "The keys are not in their order.", |a| {
        select(a, &[2, 1])
    }),
    ("valid-too-long", "It is valid for a day and a millisecond.", |a| {
        a.expires_at_ms = a.not_before_ms + MAX_VALIDITY_MS + 1;
    }),
    ("expires-at-once", "It ends when it begins.", |a| {
        a.expires_at_ms = a.not_before_ms
    }),
];

fn select(authorization: &mut wire::Authorization, ids: &[u8]) {
    let ids = ids.iter().map(|id| vec![*id; 16]).collect();
    let keys = Some(wire::selection::Keys::Ids(wire::KeyIds { ids }));
    authorization.selection = Some(wire::Selection { keys });
}

fn spoiled_fields(good: &Vector, scene: &Scene) -> Vec<Vector> {
    let wire = scene.authorization.statement().to_wire();
    let spoiled = |suffix: &str, about: &str, spoil: &dyn Fn(&mut wire::Authorization)| {
        good.spoiled(suffix, "field", about, |vector| {
            let mut wire = wire.clone();
            spoil(&mut wire);
            vector.body = sign_wire::<Authorization>(&wire, &secret(BROKER));
        })
    };
    let mut vectors: Vec<Vector> = FIELDS
        .iter()
        .map(|(suffix, about, spoil)| spoiled(suffix, about, spoil))
        .collect();
    // Keys that a careless reader would take.
    let mut y_not_reduced = [0xff; 32];
    (y_not_reduced[0], y_not_reduced[31]) = (0xf0, 0x7f);
    let mut no_point = [0; 32];
    no_point[0] = 2;
    let keys = [
        (
            "identity-small-order",
            "The target's identity key is a point of order 4.",
            [0; 32],
        ),
        (
            "identity-not-reduced",
            "The target's identity key has y = p + 3.",
            y_not_reduced,
        ),
        (
            "identity-no-point",
            "The target's identity key is no point of the curve.",
            no_point,
        ),
    ];
    for (suffix, about, key) in keys {
        vectors.push(spoiled(suffix, about, &|authorization| {
            authorization.target.as_mut().expect("it has one").identity_key = key.to_vec();
        }));
    }
    assert!(
        vectors.iter().all(|vector| vector.body != good.body),
        "{}",
        hex(&good.body)
    );
    vectors
}
