//! A store at rest: all of it once, and single records that must not open.
//!
//! [`Keys`] finds the way from the root key to a record by SPEC section 9, with nothing of the vault's code but the
//! primitives and the labels.

use lockbox_core::labels;
use lockbox_core::primitives::{aead_open, aead_seal, hkdf_sha256};
use lockbox_core::wire;
use lockbox_core::wire::scheduled_destruction::Origin;
use lockbox_store::Store;
use prost::Message;

use super::Vector;
use super::file::hex;
use super::fixed::{FixedRng, NOW_MS};
use super::scene::{Node, Scene};

/// The keys of a store that hang on its root key.
pub(super) struct Keys<'n> {
    node: &'n Node,
    store_id: [u8; 16],
}

impl<'n> Keys<'n> {
    pub(super) fn of(node: &'n Node) -> Self {
        let store_id = node.header.store_id();
        Self { node, store_id }
    }

    fn derive(&self, label: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        hkdf_sha256(&self.store_id, &self.node.root_key, &[label], &mut key);
        key
    }

    pub(super) fn placing(&self) -> [u8; 32] {
        self.derive(labels::PLACING)
    }

    fn aad(&self, label: &[u8], rest: &[u8]) -> Vec<u8> {
        [label, &self.store_id, rest].concat()
    }

    /// Opens a record of the book: version, salt, and what is sealed.
    fn book_record(&self, place: &[u8], stored: &[u8]) -> Vec<u8> {
        let (version, rest) = stored.split_at(8);
        let (salt, sealed) = rest.split_at(16);
        let mut key = [0; 32];
        hkdf_sha256(salt, &self.derive(labels::BOOK), &[labels::BOOK_RECORD_KEY], &mut key);
        let aad = self.aad(labels::BOOK_RECORD, &[version, place].concat());
        open(&key, sealed, &aad)
    }

    /// The epoch and its key, from the effaceable root.
    fn epoch(&self, image: &[u8]) -> (u64, [u8; 32]) {
        let opened = open(
            &self.derive(labels::EPOCH_SEALING),
            image,
            &self.aad(labels::EPOCH_KEY, &[]),
        );
        let (epoch, key) = opened.split_at(8);
        (u64::from_be_bytes(array(epoch)), array(key))
    }

    /// The key of a leaf: by the nodes that have rows, and derived below them.
    fn leaf_key(&self, scene: &Scene, leaf: u16) -> [u8; 32] {
        let (_, mut key) = self.epoch(&scene.image);
        for depth in 0..3 {
            let number = |depth: u8| (leaf >> (5 * (3 - depth))).to_be_bytes();
            let place = [&b"T"[..], &[depth], &number(depth)].concat();
            let child = number(depth + 1);
            key = match scene.rows.iter().find(|(at, _)| *at == place) {
                Some((_, sealed)) => {
                    let row = open(&key, sealed, &self.aad(labels::TREE_NODE, &place));
                    let start = usize::from(u16::from_be_bytes(child) % 32) * 32;
                    array(&row[start..start + 32])
                }
                None => {
                    let place = [&[depth + 1][..], &child].concat();
                    let mut derived = [0; 32];
                    hkdf_sha256(&self.store_id, &key, &[labels::CHILD, &place], &mut derived);
                    derived
                }
            };
        }
        key
    }

    pub(super) fn wrapping_seed(&self) -> [u8; 32] {
        let stored = self
            .node
            .store
            .get(b"i")
            .expect("memory does not fail")
            .expect("it has an identity");
        let record = wire::SelfRecord::decode(&self.book_record(b"i", &stored)[..]).expect("a good record");
        array(&record.wrapping_seed)
    }
}

fn open(key: &[u8; 32], sealed: &[u8], aad: &[u8]) -> Vec<u8> {
    aead_open(key, sealed, aad).expect("nothing was changed").to_vec()
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("it has the right length")
}

pub(super) fn vectors(scene: &Scene) -> Vec<Vector> {
    let keys = Keys::of(&scene.a);
    let mut vectors = vec![store(scene, &keys)];
    vectors.extend(images(scene, &keys));
    vectors.extend(book_records(scene, &keys));
    vectors.extend(key_records(scene, &keys));
    vectors
}

fn row(scene: &Scene, place: &[u8]) -> Vec<u8> {
    let found = scene.rows.iter().find(|(key, _)| key == place);
    found.expect("the store has it").1.clone()
}

/// Every row, each as length and key, length and value.
fn store(scene: &Scene, keys: &Keys) -> Vector {
    let mut body = Vec::new();
    for part in scene.rows.iter().flat_map(|(key, value)| [key, value]) {
        body.extend(u32::try_from(part.len()).expect("a small row").to_be_bytes());
        body.extend(part);
    }
    Vector::accepted(
        "store",
        "store",
        "All of storage-a's store. One volume key is in it; another, near it in the key tree, was destroyed.",
        body,
    )
    .with_hex("root-key", &scene.a.root_key)
    .with_hex("store-id", &keys.store_id)
    .with_hex("root-image", &scene.image)
    .with_hex(
        "yields-identity-key",
        scene.a.lockbox().identity().public_key().as_bytes(),
    )
    .with_hex("yields-key-id", &scene.key_id.0)
    .with_hex("yields-material", &scene.material)
}

fn last(body: &mut [u8]) -> &mut u8 {
    body.last_mut().expect("it is not empty")
}

/// Spoils what a record is bound to.
fn elsewhere(good: &Vector) -> Vec<Vector> {
    let bits = |suffix: &str, about: &str, name: &str| {
        good.spoiled(suffix, "does-not-open", about, |vector| {
            let mut bytes = vector.bytes(name);
            *last(&mut bytes) ^= 1;
            vector.set(name, hex(&bytes));
        })
    };
    vec![
        bits("of-another-store", "It is from another store.", "store-id"),
        bits("under-another-root", "The root key is another one.", "root-key"),
    ]
}

fn changed(good: &Vector, suffix: &str, about: &str, spoil: fn(&mut Vec<u8>)) -> Vector {
    good.spoiled(suffix, "does-not-open", about, |vector| spoil(&mut vector.body))
}

fn images(scene: &Scene, keys: &Keys) -> Vec<Vector> {
    let (epoch, epoch_key) = keys.epoch(&scene.image);
    let about = "What the effaceable root holds: the epoch key.";
    let good = Vector::accepted("root-image", "root-image", about, scene.image.clone())
        .with_hex("root-key", &scene.a.root_key)
        .with_hex("store-id", &keys.store_id)
        .with("yields-epoch", epoch.to_string())
        .with_hex("yields-epoch-key", &epoch_key);
    let mut vectors = elsewhere(&good);
    vectors.push(changed(
        &good,
        "changed",
        "One bit of the ciphertext is flipped.",
        |body| body[20] ^= 1,
    ));
    vectors.push(changed(&good, "effaced", "It was overwritten with zeros.", |body| {
        body.fill(0)
    }));
    vectors.push(changed(&good, "cut-short", "The last byte is missing.", |body| {
        body.pop();
    }));
    vectors.push(good);
    vectors
}

fn book_records(scene: &Scene, keys: &Keys) -> Vec<Vector> {
    let stored = row(scene, b"i");
    let plaintext = keys.book_record(b"i", &stored);
    let about = "storage-a's record of itself: its seeds.";
    let good = Vector::accepted("book-record", "book-record", about, stored)
        .with_hex("root-key", &scene.a.root_key)
        .with_hex("store-id", &keys.store_id)
        .with_hex("place", b"i")
        .with_hex("yields-plaintext", &plaintext);
    let mut vectors = elsewhere(&good);
    vectors.extend([
        changed(&good, "version-changed", "It claims to be a later version.", |body| {
            body[7] = 2
        }),
        changed(&good, "salt-changed", "One bit of the salt is flipped.", |body| {
            body[8] ^= 1
        }),
        changed(&good, "nonce-changed", "One bit of the nonce is flipped.", |body| {
            body[24] ^= 1
        }),
        changed(
            &good,
            "ciphertext-changed",
            "One bit of the ciphertext is flipped.",
            |body| body[36] ^= 1,
        ),
        changed(&good, "tag-changed", "One bit of the tag is flipped.", |body| {
            *last(body) ^= 1
        }),
        changed(&good, "cut-short", "It is shorter than any record.", |body| {
            body.truncate(51)
        }),
        good.spoiled(
            "at-another-place",
            "does-not-open",
            "It stands where the cluster is noted.",
            |vector| {
                vector.set("place", hex(b"m"));
            },
        ),
        good,
    ]);
    vectors
}

/// A key's leaf: SPEC section 9.3.
pub(super) fn leaf_of(placing: &[u8; 32], key_id: &[u8; 16]) -> u16 {
    let mut bits = [0; 32];
    hkdf_sha256(placing, key_id, &[labels::LEAF], &mut bits);
    u16::from_be_bytes([bits[0], bits[1]]) >> 1
}

fn key_records(scene: &Scene, keys: &Keys) -> Vec<Vector> {
    let id = scene.key_id.0;
    let placing = keys.placing();
    let leaf = leaf_of(&placing, &id);
    let data_key_place = [&b"W"[..], &leaf.to_be_bytes(), &id].concat();
    let record_place = [&b"R"[..], &id].concat();
    let sealed_data_key = row(scene, &data_key_place);
    let stored = row(scene, &record_place);
    let leaf_key = keys.leaf_key(scene, leaf);
    let data_key: [u8; 32] = array(&open(
        &leaf_key,
        &sealed_data_key,
        &keys.aad(labels::DATA_KEY, &data_key_place),
    ));
    let (version, sealed) = stored.split_at(8);
    let aad = keys.aad(labels::KEY_RECORD, &[version, &record_place].concat());
    let plaintext = open(&data_key, sealed, &aad);
    let about = "A volume key, under its own data-encryption key, which is under its leaf's key.";
    let good = Vector::accepted("key-record", "key-record", about, stored.clone())
        .with_hex("store-id", &keys.store_id)
        .with_hex("placing-key", &placing)
        .with_hex("leaf-key", &leaf_key)
        .with_hex("key-id", &id)
        .with_hex("sealed-data-key", &sealed_data_key)
        .with_hex("yields-data-key", &data_key)
        .with_hex("yields-plaintext", &plaintext);
    let data_key_changed = |suffix: &str, about: &str, spoil: fn(&mut Vec<u8>)| {
        good.spoiled(suffix, "does-not-open", about, |vector| {
            let mut sealed = vector.bytes("sealed-data-key");
            spoil(&mut sealed);
            vector.set("sealed-data-key", hex(&sealed));
        })
    };
    let mut vectors = lineages(&good, &data_key, &aad);
    vectors.extend(scheduled(&good, &data_key, &aad));
    vectors.extend([
        changed(&good, "version-changed", "It claims to be a later version.", |body| {
            body[7] = 2
        }),
        changed(&good, "nonce-changed", "One bit of the nonce is flipped.", |body| {
            body[8] ^= 1
        }),
        changed(
            &good,
            "ciphertext-changed",
            "One bit of the ciphertext is flipped.",
            |body| body[90] ^= 1,
        ),
        changed(&good, "tag-changed", "One bit of the tag is flipped.", |body| {
            *last(body) ^= 1
        }),
        changed(&good, "cut-short", "It is shorter than any record.", |body| {
            body.truncate(7)
        }),
        data_key_changed(
            "data-key-changed",
            "One bit of the data-encryption key is flipped.",
            |key| key[20] ^= 1,
        ),
        data_key_changed(
            "data-key-cut-short",
            "The data-encryption key's last byte is missing.",
            |key| {
                key.pop();
            },
        ),
        good.spoiled(
            "of-another-key",
            "does-not-open",
            "It stands where another key of the leaf would.",
            |vector| {
                let mut other = id;
                other[15] ^= 1;
                vector.set("key-id", hex(&other));
            },
        ),
        good,
    ]);
    vectors
}

/// Records of the same key that open, with other lineages.
fn lineages(good: &Vector, data_key: &[u8; 32], aad: &[u8]) -> Vec<Vector> {
    let (parent, base) = ([0xC7; 16], [0xB5; 16]);
    let mut rng = FixedRng::new("lineages");
    let mut with = |relation: &str, lies_on: &[u8]| {
        let plaintext = good.bytes("yields-plaintext");
        let mut record = wire::KeyRecord::decode(&plaintext[..]).expect("it is accepted");
        record.lineage = Some(wire::Lineage {
            parent_key_id: parent.to_vec(),
            relation: relation.to_owned(),
            lies_on_key_id: lies_on.to_vec(),
        });
        let plaintext = record.encode_to_vec();
        let sealed = aead_seal(data_key, &plaintext, aad, &mut rng);
        let version = &good.body[..8];
        (plaintext, [version, &sealed].concat())
    };
    let mut accepted = |name: &str, about: &str, relation: &str, lies_on: &[u8]| {
        let (plaintext, body) = with(relation, lies_on);
        let mut vector = good.clone();
        (vector.name, vector.about) = (name.to_owned(), about.to_owned());
        vector.body = body;
        vector.set("yields-plaintext", hex(&plaintext));
        vector
    };
    let snapshot = "The snapshot of a layer: it says which key its old blocks lie under.";
    let layer = "A layer: that it lies on its parent is in the relation, and not said again.";
    let mut vectors = vec![
        accepted("key-record-lies-on", snapshot, "snapshot", &base),
        accepted("key-record-of-a-layer", layer, "layer", &[]),
    ];
    let key_id = good.bytes("key-id");
    for (suffix, about, relation, lies_on) in [
        (
            "layer-says-it-twice",
            "A layer that says its parent again.",
            "layer",
            &parent[..],
        ),
        (
            "layer-lies-elsewhere",
            "A layer that lies on another key.",
            "layer",
            &base,
        ),
        (
            "rekeyed-lies-on",
            "All data of a rekeyed clone is under its own key.",
            "rekey",
            &base,
        ),
        (
            "lies-on-its-parent",
            "Only a layer lies on its parent.",
            "rotate",
            &parent,
        ),
        ("lies-on-itself", "A key that lies on itself.", "share", &key_id),
        (
            "lies-on-half-an-id",
            "The id of what it lies on is short.",
            "share",
            &base[..15],
        ),
    ] {
        let (_, body) = with(relation, lies_on);
        vectors.push(good.spoiled(suffix, "field", about, |vector| vector.body.clone_from(&body)));
    }
    vectors
}

/// Records of the same key that open, while it is scheduled for destruction.
fn scheduled(good: &Vector, data_key: &[u8; 32], aad: &[u8]) -> Vec<Vector> {
    let mut rng = FixedRng::new("scheduled");
    let mut with = |origin: Option<Origin>, scheduled_at_ms: i64| {
        let plaintext = good.bytes("yields-plaintext");
        let mut record = wire::KeyRecord::decode(&plaintext[..]).expect("it is accepted");
        record.destruction = Some(wire::ScheduledDestruction {
            origin,
            scheduled_at_ms,
            due_run_ms: 604_800_000,
        });
        let plaintext = record.encode_to_vec();
        let sealed = aead_seal(data_key, &plaintext, aad, &mut rng);
        (plaintext, [&good.body[..8], &sealed].concat())
    };
    let rotation = |job: &[u8]| Some(Origin::Rotation(job.to_vec()));
    let job = [0xD4; 16];
    let (plaintext, body) = with(rotation(&job), NOW_MS);
    let mut accepted = good.clone();
    accepted.name = "key-record-scheduled".to_owned();
    accepted.about = "The old key of a rotation, which is erased after seven days of run time.".to_owned();
    accepted.body = body;
    accepted.set("yields-plaintext", hex(&plaintext));
    let mut vectors = vec![accepted];
    for (suffix, about, origin, at_ms) in [
        ("scheduled-by-nothing", "Nothing says what scheduled it.", None, NOW_MS),
        (
            "scheduled-by-half-an-id",
            "The id of the rotation that scheduled it is short.",
            rotation(&job[..15]),
            NOW_MS,
        ),
        ("scheduled-never", "It has no time.", rotation(&job), 0),
    ] {
        let (_, body) = with(origin, at_ms);
        vectors.push(good.spoiled(suffix, "field", about, |vector| vector.body.clone_from(&body)));
    }
    vectors
}
