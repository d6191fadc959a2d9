//! Seal slots. The body is the header of a lockbox's folder.

use lockbox_core::limits::{MAX_ARGON2_MEMORY_KIB, MAX_ARGON2_PASSES};
use lockbox_core::slots::{Header, PassphraseCost};
use lockbox_core::wire;
use prost::Message;

use super::Vector;
use super::file::hex;
use super::fixed::{FixedRng, NOW_MS};
use super::scene::{PASSPHRASE, Scene, key_file_bytes, passphrase, root_from};

pub(super) fn vectors(scene: &Scene) -> Vec<Vector> {
    let body = scene.a.header.to_bytes();
    let opened = |vector: Vector, slot: &str| {
        vector
            .with("yields-slot", slot)
            .with_hex("yields-root-key", &scene.a.root_key)
    };
    let header = |name: &str, about: &str| Vector::accepted("header", name, about, body.clone());
    let by_passphrase = header("header", "storage-a's header: its first slot opens with a passphrase.");
    let by_passphrase = opened(by_passphrase.with("passphrase", PASSPHRASE), "1");
    let by_key_file = header(
        "header-key-file",
        "storage-a's header: its second slot opens with a key file.",
    );
    let by_key_file = opened(by_key_file.with_hex("key-file", &key_file_bytes()), "2");
    let mut vectors = vec![opened(recommended(scene), "3")];
    vectors.extend(wrong_secrets(&by_passphrase, &by_key_file));
    vectors.extend(changed_fields(&by_passphrase));
    vectors.extend(changed_key_file_slot(&by_key_file));
    vectors.extend(out_of_bounds(&by_passphrase));
    vectors.extend(malformed(&by_passphrase));
    let damaged_first = damaged(&by_key_file);
    vectors.extend([by_passphrase, by_key_file, damaged_first]);
    vectors
}

/// A third slot, with the cost that is used unless an operator says otherwise.
fn recommended(scene: &Scene) -> Vector {
    const OTHER: &str = "battery staple horse";
    let mut header = Header::from_bytes(&scene.a.header.to_bytes()).expect("a good header");
    let root = root_from(&scene.a.root_key);
    let mut rng = FixedRng::new("recommended cost");
    header
        .add_slot(&passphrase(OTHER), PassphraseCost::RECOMMENDED, &root, NOW_MS, &mut rng)
        .expect("a good slot");
    let about = "A third slot, with the recommended cost of Argon2id.";
    Vector::accepted("header", "header-recommended-cost", about, header.to_bytes()).with("passphrase", OTHER)
}

fn wrong_secrets(by_passphrase: &Vector, by_key_file: &Vector) -> Vec<Vector> {
    let phrase = |suffix: &str, reason: &str, about: &str, phrase: &str| {
        by_passphrase.spoiled(suffix, reason, about, |vector| vector.set("passphrase", phrase))
    };
    let file = |suffix: &str, reason: &str, about: &str, file: &[u8]| {
        by_key_file.spoiled(suffix, reason, about, |vector| vector.set("key-file", hex(file)))
    };
    let mut other_file = key_file_bytes();
    other_file[31] ^= 1;
    vec![
        phrase(
            "wrong-passphrase",
            "does-not-open",
            "Another passphrase.",
            "correct horse batterz",
        ),
        phrase(
            "passphrase-in-capitals",
            "does-not-open",
            "The passphrase in capital letters.",
            "CORRECT HORSE BATTERY",
        ),
        phrase("passphrase-short", "length", "A passphrase of 11 bytes.", "correct hor"),
        file("wrong", "does-not-open", "Another key file.", &other_file),
        file(
            "longer",
            "does-not-open",
            "The key file with a newline.",
            &[&key_file_bytes()[..], b"\n"].concat(),
        ),
        file("short", "length", "A key file of 31 bytes.", &key_file_bytes()[..31]),
    ]
}

type Spoiler = (&'static str, &'static str, fn(&mut wire::Header));

fn changed(good: &Vector, reason: &str, (suffix, about, spoil): Spoiler) -> Vector {
    good.spoiled(suffix, reason, about, |vector| {
        let mut header = wire::Header::decode(&vector.body[..]).expect("a good header");
        spoil(&mut header);
        vector.body = header.encode_to_vec();
    })
}

fn changed_fields(good: &Vector) -> Vec<Vector> {
    let spoilers: [Spoiler; 12] = [
        ("store-id-changed", "One bit of the store id is flipped.", |h| {
            h.store_id[0] ^= 1
        }),
        ("lockbox-id-changed", "One bit of the lockbox id is flipped.", |h| {
            h.lockbox_id[0] ^= 1
        }),
        ("slot-id-changed", "The slot has another number.", |h| {
            h.slots[0].slot_id = 7
        }),
        ("kind-changed", "The slot claims to be one for a key file.", |h| {
            h.slots[0].kind = wire::SlotKind::KeyFile.into();
        }),
        ("salt-changed", "One bit of the salt is flipped.", |h| {
            h.slots[0].salt[0] ^= 1
        }),
        ("memory-changed", "Argon2id takes more memory.", |h| {
            h.slots[0].memory_kib += 8
        }),
        ("passes-changed", "Argon2id makes a pass less.", |h| {
            h.slots[0].passes -= 1
        }),
        ("lanes-changed", "Argon2id has one lane.", |h| h.slots[0].lanes = 1),
        ("created-at-changed", "The slot is a millisecond younger.", |h| {
            h.slots[0].created_at_ms += 1
        }),
        ("sealed-root-changed", "One bit of the sealed root is flipped.", |h| {
            h.slots[0].sealed_root[30] ^= 1
        }),
        ("sealed-root-short", "The sealed root's last byte is missing.", |h| {
            h.slots[0].sealed_root.pop();
        }),
        ("slot-removed", "The slot is not there.", |h| {
            h.slots.remove(0);
        }),
    ];
    spoilers
        .into_iter()
        .map(|spoiler| changed(good, "does-not-open", spoiler))
        .collect()
}

fn changed_key_file_slot(good: &Vector) -> Vec<Vector> {
    let spoilers: [Spoiler; 2] = [
        ("cost-set", "The slot of a key file claims a cost.", |h| {
            h.slots[1].memory_kib = 1
        }),
        ("salt-changed", "One bit of the salt is flipped.", |h| {
            h.slots[1].salt[0] ^= 1
        }),
    ];
    spoilers
        .into_iter()
        .map(|spoiler| changed(good, "does-not-open", spoiler))
        .collect()
}

fn out_of_bounds(good: &Vector) -> Vec<Vector> {
    let spoilers: [Spoiler; 4] = [
        ("memory-hostile", "Argon2id would take more than 4 GiB.", |h| {
            h.slots[0].memory_kib = MAX_ARGON2_MEMORY_KIB + 1;
        }),
        ("passes-hostile", "Argon2id would make 65 passes.", |h| {
            h.slots[0].passes = MAX_ARGON2_PASSES + 1
        }),
        ("no-passes", "Argon2id would make no pass.", |h| h.slots[0].passes = 0),
        (
            "memory-for-no-lane",
            "Argon2id has less memory than its lanes need.",
            |h| h.slots[0].memory_kib = 15,
        ),
    ];
    spoilers
        .into_iter()
        .map(|spoiler| changed(good, "cost", spoiler))
        .collect()
}

fn malformed(good: &Vector) -> Vec<Vector> {
    let spoilers: [Spoiler; 5] = [
        ("version-2", "A version that nobody knows.", |h| h.version = 2),
        ("store-id-short", "The store id has 15 bytes.", |h| {
            h.store_id.truncate(15)
        }),
        ("lockbox-id-missing", "It names no lockbox.", |h| h.lockbox_id.clear()),
        ("no-slots", "It has no slot.", |h| h.slots.clear()),
        ("nine-slots", "It has nine slots.", |h| {
            h.slots = vec![h.slots[1].clone(); 9]
        }),
    ];
    let mut vectors: Vec<_> = spoilers
        .into_iter()
        .map(|spoiler| changed(good, "malformed", spoiler))
        .collect();
    vectors.push(
        good.spoiled("cut-short", "malformed", "The last byte is missing.", |vector| {
            vector.body.pop();
        }),
    );
    vectors.push(good.spoiled(
        "unknown-field",
        "malformed",
        "It has a field that nobody knows.",
        |vector| {
            vector.body.extend([0x78, 1]);
        },
    ));
    vectors
}

/// The header is damaged in a slot that is not the one that opens.
fn damaged(by_key_file: &Vector) -> Vector {
    let mut vector = by_key_file.clone();
    vector.name = "header-other-slot-damaged".to_owned();
    vector.about = "The first slot is damaged; the second opens all the same.".to_owned();
    let mut header = wire::Header::decode(&vector.body[..]).expect("a good header");
    header.slots[0].salt.clear();
    vector.body = header.encode_to_vec();
    vector
}
