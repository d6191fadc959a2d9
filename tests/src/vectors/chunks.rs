//! Wrapped keys: HPKE ciphertexts, with everything that opens them.

use lockbox_authz::transfer::SessionOffer;
use lockbox_core::labels;
use lockbox_core::primitives::{hpke_setup_receiver, hpke_setup_sender, wrapping_key};
use lockbox_core::secrets::WrappingSeed;

use super::Vector;
use super::at_rest::Keys;
use super::fixed::{FixedRng, seed};
use super::scene::Scene;

pub(super) fn vectors(scene: &Scene) -> Vec<Vector> {
    let good = good(scene);
    let mut vectors = spoiled(&good);
    vectors.extend(in_sequence(&good));
    vectors.push(good);
    vectors
}

/// The chunk of the scene's session.
fn good(scene: &Scene) -> Vector {
    let wrapping_seed = Keys::of(&scene.b).wrapping_seed();
    let offer: &SessionOffer = scene.offer.statement();
    let statement = scene.authorization.statement();
    let about = "storage-a hands one key to storage-b.";
    let mut vector = Vector::accepted("chunk", "chunk", about, scene.chunk.ciphertext.clone())
        .with_hex("wrapping-seed", &wrapping_seed)
        .with_hex("wrapping-key", &wrapping_key(&seed_from(&wrapping_seed)))
        .with_hex("encapsulated-key", &offer.encapsulated_key)
        .with_hex("authorization-hash", &offer.authorization_hash.0)
        .with_hex("session-id", &offer.session_id.0)
        .with_hex("source", &statement.source.lockbox_id.0)
        .with_hex("target", &statement.target.lockbox_id.0)
        .with("chunk", scene.chunk.chunk.to_string())
        .with("chunk-count", offer.chunk_count.to_string())
        .with("info", "")
        .with("aad", "");
    bind(&mut vector);
    let plaintext = open(&vector).expect("the target opened it, too");
    vector
        .with_hex("yields-plaintext", &plaintext)
        .with_hex("yields-key-id", &scene.key_id.0)
        .with_hex("yields-material", &scene.material)
}

fn open(vector: &Vector) -> Option<Vec<u8>> {
    let wrapping_seed = vector.bytes("wrapping-seed").try_into().expect("32 bytes");
    let encapsulated_key = vector.bytes("encapsulated-key");
    let mut context = hpke_setup_receiver(&seed_from(&wrapping_seed), &encapsulated_key, &vector.bytes("info")).ok()?;
    context
        .open(&vector.body, &vector.bytes("aad"))
        .ok()
        .map(|plaintext| plaintext.to_vec())
}

fn seed_from(bytes: &[u8; 32]) -> WrappingSeed {
    WrappingSeed::init_with(|seed| seed.copy_from_slice(bytes))
}

/// Makes info and aad of the headers that they consist of.
fn bind(vector: &mut Vector) {
    let parts = ["authorization-hash", "session-id", "source", "target"].map(|name| vector.bytes(name));
    let numbers = ["chunk", "chunk-count"].map(|name| u32::try_from(vector.number(name)).expect("32 bits"));
    let info = [labels::TRANSFER_SESSION, &parts.concat()].concat();
    let aad = [labels::TRANSFER_CHUNK, &numbers.map(u32::to_be_bytes).concat()].concat();
    vector.set("info", super::file::hex(&info));
    vector.set("aad", super::file::hex(&aad));
}

fn spoiled(good: &Vector) -> Vec<Vector> {
    let body = |suffix: &str, about: &str, spoil: fn(&mut Vec<u8>)| {
        good.spoiled(suffix, "does-not-open", about, |vector| spoil(&mut vector.body))
    };
    let header = |suffix: &str, about: &str, name: &str, spoil: fn(&mut Vec<u8>)| {
        good.spoiled(suffix, "does-not-open", about, |vector| {
            let mut bytes = vector.bytes(name);
            spoil(&mut bytes);
            vector.set(name, super::file::hex(&bytes));
            bind(vector);
        })
    };
    let number = |suffix: &str, about: &str, name: &str, value: &str| {
        good.spoiled(suffix, "does-not-open", about, |vector| {
            vector.set(name, value);
            bind(vector);
        })
    };
    let last = |bytes: &mut Vec<u8>| *bytes.last_mut().expect("it is not empty") ^= 1;
    vec![
        body("ciphertext-changed", "One bit of the ciphertext is flipped.", |body| {
            body[10] ^= 1
        }),
        body("tag-changed", "One bit of the tag is flipped.", last),
        body("cut-short", "The last byte is missing.", |body| {
            body.pop();
        }),
        body("tag-missing", "There are 15 bytes, less than a tag.", |body| {
            body.truncate(15)
        }),
        body("empty", "There is no ciphertext.", Vec::clear),
        header(
            "kem-ciphertext-changed",
            "One bit of ML-KEM's ciphertext is flipped.",
            "encapsulated-key",
            |key| {
                key[500] ^= 1;
            },
        ),
        header(
            "ephemeral-key-changed",
            "One bit of X25519's ephemeral key is flipped.",
            "encapsulated-key",
            last,
        ),
        header(
            "encapsulated-key-short",
            "The encapsulated key has 1,119 bytes.",
            "encapsulated-key",
            |key| {
                key.pop();
            },
        ),
        header(
            "of-another-authorization",
            "It was sealed under another authorization.",
            "authorization-hash",
            last,
        ),
        header(
            "of-another-session",
            "It was sealed in another session.",
            "session-id",
            last,
        ),
        header("from-another-source", "Another source sealed it.", "source", last),
        header("to-another-target", "It was sealed to another target.", "target", last),
        header(
            "under-another-key",
            "It was sealed to another wrapping key.",
            "wrapping-seed",
            last,
        ),
        number(
            "at-another-place",
            "It was chunk 0, and comes as chunk 1.",
            "chunk",
            "1",
        ),
        number(
            "of-another-count",
            "It was one of one, and comes as one of two.",
            "chunk-count",
            "2",
        ),
    ]
}

/// Two chunks of one session: the order is part of the seal.
fn in_sequence(good: &Vector) -> Vec<Vector> {
    let mut second = good.clone();
    second.name = "chunk-second".to_owned();
    second.about = "The second chunk of a session of two.".to_owned();
    let session = seed("second session");
    second.set("session-id", super::file::hex(&session[..16]));
    second.set("chunk-count", "2");
    second.set("chunk", "0");
    bind(&mut second);
    let first_aad = second.bytes("aad");
    second.set("chunk", "1");
    bind(&mut second);
    let mut rng = FixedRng::new("second session");
    let (encapsulated_key, mut context) =
        hpke_setup_sender(&good.bytes("wrapping-key"), &second.bytes("info"), &mut rng).expect("a good key");
    let plaintext = good.bytes("yields-plaintext");
    let first = context.seal(plaintext.clone().into(), &first_aad).expect("it seals");
    second.body = context.seal(plaintext.into(), &second.bytes("aad")).expect("it seals");
    second.set("encapsulated-key", super::file::hex(&encapsulated_key));
    let out_of_order = second.spoiled("out-of-order", "does-not-open", "The second chunk comes first.", |_| {});
    let second = second
        .with_hex("earlier-aad", &first_aad)
        .with_hex("earlier-ciphertext", &first);
    let repeated = second.spoiled("repeated", "does-not-open", "The first chunk comes again.", |vector| {
        vector.body = first;
        vector.set("aad", super::file::hex(&first_aad));
        vector.set("chunk", "0");
    });
    vec![out_of_order, repeated, second]
}
