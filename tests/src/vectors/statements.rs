//! The other statements: each once as it is, and spoiled where it differs from an authorization.

use lockbox_authz::authorization::Revocation;
use lockbox_authz::certificate::WrappingCertificate;
use lockbox_authz::envelope::{Statement, UnverifiedEnvelope, Verified};
use lockbox_authz::field::Labels;
use lockbox_authz::id::AuthorizationId;
use lockbox_authz::join::JoinRequest;
use lockbox_authz::keys::{PublicKey, SecretKey, Signer};
use lockbox_authz::transfer::{ErasureRecord, Receipt, SessionOffer};
use lockbox_authz::wire;
use prost::Message;

use super::Vector;
use super::fixed::{id16, public, secret};
use super::protobuf::sign_wire;
use super::scene::{BROKER, Scene, identity};

pub(super) fn vectors(scene: &Scene) -> Vec<Vector> {
    let mut vectors = certificates(scene);
    vectors.extend(offers(scene));
    vectors.extend(receipts(scene));
    vectors.extend(erasure_records(scene));
    vectors.extend(revocations(scene));
    vectors.extend(join_requests(scene));
    vectors
}

pub(super) fn envelope(name: &str, about: &str, envelope: &UnverifiedEnvelope, signer: PublicKey) -> Vector {
    Vector::accepted("envelope", name, about, envelope.to_bytes())
        .with("statement", name)
        .with_hex("trusted", signer.as_bytes())
        .with("threshold", "1")
        .with_hex("yields-hash", &envelope.hash().0)
}

/// A field that breaks its rule, signed by who may sign.
pub(super) fn field<S: Statement>(
    good: &Vector,
    suffix: &str,
    about: &str,
    signer: &SecretKey,
    spoil: impl FnOnce(&mut S::Wire),
) -> Vector {
    good.spoiled(suffix, "field", about, |vector| {
        let envelope = wire::Envelope::decode(&vector.body[..]).expect("a good envelope");
        let mut message = S::Wire::decode(&envelope.payload[..]).expect("a good payload");
        spoil(&mut message);
        vector.body = sign_wire::<S>(&message, signer);
    })
}

pub(super) fn flipped(good: &Vector) -> Vector {
    good.spoiled(
        "payload-changed",
        "bad-signature",
        "One bit of the payload is flipped.",
        |vector| {
            vector.body[60] ^= 1;
        },
    )
}

fn certificates(scene: &Scene) -> Vec<Vector> {
    let certificate = scene.b.lockbox().wrapping_certificate().expect("it has a cluster");
    let target = identity(&scene.b);
    let about = "storage-b says which key it wants keys wrapped to.";
    let good = Vector::accepted(
        "wrapping-certificate",
        "wrapping-certificate",
        about,
        certificate.envelope().to_bytes(),
    )
    .with_hex("trusted", target.public_key().as_bytes())
    .with_hex("cluster-id", &certificate.statement().cluster_id.to_vec())
    .with_hex("lockbox-id", &certificate.statement().lockbox_id.0)
    .with_hex("yields-hash", &certificate.hash().0);
    let spoiled = |suffix: &str, about: &str, spoil: fn(&mut wire::WrappingCertificate)| {
        field::<WrappingCertificate>(&good, suffix, about, &target, spoil)
    };
    vec![
        good.spoiled(
            "by-another",
            "untrusted-signer",
            "Another lockbox signed it.",
            |vector| {
                let by_another = Verified::sign(certificate.statement().clone(), &identity(&scene.a));
                vector.body = by_another.envelope().to_bytes();
            },
        ),
        good.spoiled(
            "of-another-cluster",
            "other-cluster",
            "It is for another cluster.",
            |vector| {
                vector.set("cluster-id", "c1".repeat(32));
            },
        ),
        good.spoiled(
            "of-another-lockbox",
            "other-lockbox",
            "It is for another lockbox.",
            |vector| {
                vector.set("lockbox-id", "a0".repeat(16));
            },
        ),
        spoiled("x25519-alone", "The KEM is DHKEM(X25519), without ML-KEM.", |wire| {
            wire.kem_id = 0x0020
        }),
        spoiled("key-short", "The wrapping key has 1,215 bytes.", |wire| {
            wire.wrapping_key.truncate(1_215)
        }),
        spoiled("generation-0", "The generation is 0.", |wire| wire.generation = 0),
        flipped(&good),
        good,
    ]
}

fn offers(scene: &Scene) -> Vec<Vector> {
    let source = identity(&scene.a);
    let about = "storage-a opens the session.";
    let good = envelope("session-offer", about, scene.offer.envelope(), source.public_key());
    let spoiled = |suffix: &str, about: &str, spoil: fn(&mut wire::SessionOffer)| {
        field::<SessionOffer>(&good, suffix, about, &source, spoil)
    };
    vec![
        spoiled("no-chunks", "The session has no chunk.", |wire| wire.chunk_count = 0),
        spoiled("begins-late", "The session begins after its last chunk.", |wire| {
            wire.first_chunk = 2
        }),
        spoiled(
            "encapsulated-key-short",
            "The encapsulated key has 1,119 bytes.",
            |wire| {
                wire.encapsulated_key.truncate(1_119);
            },
        ),
        spoiled(
            "no-roster-head",
            "The source does not say which roster it has.",
            |wire| wire.roster_head = None,
        ),
        good.spoiled(
            "by-target",
            "untrusted-signer",
            "The target itself signed the offer.",
            |vector| {
                let by_target = Verified::sign(scene.offer.statement().clone(), &identity(&scene.b));
                vector.body = by_target.envelope().to_bytes();
            },
        ),
        flipped(&good),
        good,
    ]
}

fn receipts(scene: &Scene) -> Vec<Vector> {
    let target = identity(&scene.b);
    let about = "storage-b holds the keys of chunk 0 durably.";
    let good = envelope("receipt", about, &scene.receipt, target.public_key());
    let spoiled = |suffix: &str, about: &str, spoil: fn(&mut wire::Receipt)| {
        field::<Receipt>(&good, suffix, about, &target, spoil)
    };
    vec![
        spoiled("no-keys", "It names no key.", |wire| wire.key_ids.clear()),
        spoiled("too-many-keys", "It names 1,025 keys.", |wire| {
            wire.key_ids = vec![vec![7; 16]; 1_025]
        }),
        spoiled("chunk-too-high", "It is for chunk 65,536.", |wire| wire.chunk = 65_536),
        spoiled("chunk-hash-short", "The chunk's hash has 31 bytes.", |wire| {
            wire.chunk_hash.truncate(31)
        }),
        spoiled("no-time", "It was never stored.", |wire| wire.stored_at_ms = 0),
        good.spoiled(
            "by-source",
            "untrusted-signer",
            "The source acknowledges its own chunk.",
            |vector| {
                let statement: Receipt = scene.receipt.unverified_statement().expect("a good receipt");
                vector.body = Verified::sign(statement, &identity(&scene.a)).envelope().to_bytes();
            },
        ),
        good.spoiled(
            "is-erasure-record",
            "wrong-payload-type",
            "It is an erasure record.",
            |vector| {
                let statement: ErasureRecord = scene.erasure_record.unverified_statement().expect("a good record");
                vector.body = Verified::sign(statement, &target).envelope().to_bytes();
            },
        ),
        flipped(&good),
        good,
    ]
}

fn erasure_records(scene: &Scene) -> Vec<Vector> {
    let source = identity(&scene.a);
    let about = "storage-a has erased the keys of chunk 0.";
    let good = envelope("erasure-record", about, &scene.erasure_record, source.public_key());
    let spoiled = |suffix: &str, about: &str, spoil: fn(&mut wire::ErasureRecord)| {
        field::<ErasureRecord>(&good, suffix, about, &source, spoil)
    };
    vec![
        spoiled("no-class", "It does not say how thoroughly.", |wire| {
            wire.erasure_class = 0
        }),
        spoiled("unknown-class", "A class that nobody knows.", |wire| {
            wire.erasure_class = 3
        }),
        spoiled("no-receipt", "It names no receipt.", |wire| wire.receipt_hash.clear()),
        spoiled("no-keys", "It names no key.", |wire| wire.key_ids.clear()),
        flipped(&good),
        good,
    ]
}

fn revocations(scene: &Scene) -> Vec<Vector> {
    let broker = secret(BROKER);
    let revocation = Revocation {
        cluster_id: scene.roster.cluster_id(),
        authorization_id: scene.authorization.statement().authorization_id,
        reason: "the migration was called off".to_owned(),
        expires_at_ms: scene.authorization.statement().expires_at_ms,
    };
    let signed = Verified::sign(revocation, &broker);
    let good = envelope(
        "revocation",
        "A broker takes the authorization back.",
        signed.envelope(),
        public(BROKER),
    );
    vec![
        field::<Revocation>(
            &good,
            "no-authorization",
            "It names no authorization.",
            &broker,
            |wire| {
                wire.authorization_id.clear();
            },
        ),
        field::<Revocation>(
            &good,
            "reason-long",
            "The reason has 257 characters.",
            &broker,
            |wire| {
                wire.reason = "x".repeat(257);
            },
        ),
        good.spoiled(
            "of-another",
            "bad-signature",
            "It names another authorization than was signed.",
            |vector| {
                let mut envelope = wire::Envelope::decode(&vector.body[..]).expect("a good envelope");
                let mut payload = wire::Revocation::decode(&envelope.payload[..]).expect("a good payload");
                payload.authorization_id = AuthorizationId(id16("another authorization")).to_vec();
                envelope.payload = payload.encode_to_vec();
                vector.body = envelope.encode_to_vec();
            },
        ),
        good,
    ]
}

fn join_requests(scene: &Scene) -> Vec<Vector> {
    let key = identity(&scene.a);
    let labels = Labels::parse(["rack=7", "zone=a"]).expect("labels");
    let request = scene
        .a
        .lockbox()
        .join_request(labels, super::fixed::NOW_MS)
        .expect("it has a cluster");
    let good = envelope(
        "join-request",
        "storage-a asks to be admitted.",
        request.envelope(),
        key.public_key(),
    );
    let spoiled = |suffix: &str, about: &str, spoil: fn(&mut wire::Lockbox)| {
        field::<JoinRequest>(&good, suffix, about, &key, |wire| {
            spoil(wire.lockbox.as_mut().expect("it has one"));
        })
    };
    vec![
        spoiled("labels-unsorted", "The labels are not in their order.", |lockbox| {
            lockbox.labels.reverse()
        }),
        spoiled("label-twice", "A label has two values.", |lockbox| {
            lockbox.labels[0].key = lockbox.labels[1].key.clone();
        }),
        spoiled("label-in-capitals", "A label's key has a capital letter.", |lockbox| {
            lockbox.labels[0].key = "Rack".to_owned();
        }),
        spoiled("no-name", "The lockbox has no name.", |lockbox| lockbox.name.clear()),
        good,
    ]
}
