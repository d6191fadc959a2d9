//! Destroyed is destroyed, also for somebody with everything: the state folder down to stale bytes in the store's files, the
//! key file, and the format.
//!
//! The finder takes every stretch of bytes that could be a ciphertext, wherever it lies, and every key that can be derived.
//! On a copy from before the destroy the same procedure finds the key, so it is able to.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lockbox_authz::KeyId;
use lockbox_core::primitives::aead_open;
use lockbox_core::{labels, wire};
use lockbox_tests::testkit::attacker::random;
use lockbox_tests::testkit::thief::{Key, LEAF_DEPTH, Thief, number_above};
use lockbox_tests::testkit::{Cluster, NewKey};
use prost::Message;

/// Nonce and tag.
const SEALING_BYTES: usize = 12 + 16;
/// A sealed key.
const SEALED_KEY_BYTES: usize = SEALING_BYTES + 32;
/// Epoch and epoch key.
const IMAGE_BYTES: usize = SEALING_BYTES + 8 + 32;
/// Sealed key records whose length is tried: more than these keys take.
const RECORD_BYTES: std::ops::Range<usize> = 160..224;
/// Random bytes have no longer run of the same.
const RUN_BYTES: usize = 12;
/// The keys of a node's 32 children, and which of them have rows.
const SEALED_NODE_BYTES: usize = SEALING_BYTES + 32 * 32 + 4;
/// Keeps room on the disk, and is never written to again: it has no record in it, and is larger than all else.
const BALLAST: &str = "BALLAST";

#[test]
fn a_destroyed_key_is_not_in_any_byte_of_a_store_on_sled() {
    destroyed_is_destroyed("sled");
}

#[test]
fn a_destroyed_key_is_not_in_any_byte_of_a_store_on_redb() {
    destroyed_is_destroyed("redb");
}

fn destroyed_is_destroyed(backend: &str) {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox_on(backend, "a");
    let [kept, material] = [random::<64>(), random::<64>()];
    a.kill();
    let empty = Thief::copy(&a.state_dir(), &a.key_file(), &cluster.folder().join("empty"));
    let key = KeyId(random());
    let leaf = empty.leaf_of(&key.0);
    // One shares the leaf with it; the other only the nodes above, which get rows as it is destroyed.
    let kept_key = id_with(&empty, |other| other == leaf);
    let neighbour = id_with(&empty, |other| {
        other != leaf && number_above(other, 2) == number_above(leaf, 2)
    });
    a.start();
    for (name, key_id, material) in [
        ("kept", kept_key, &kept),
        ("destroyed", key, &material),
        ("neighbour", neighbour, &random()),
    ] {
        let named = NewKey {
            key_id: Some(key_id),
            ..NewKey::named(name)
        };
        a.import(&named, material);
    }
    a.destroy(neighbour).expect("nobody uses it");
    let copy = |name: &str| {
        a.kill();
        let thief = Thief::copy(&a.state_dir(), &a.key_file(), &cluster.folder().join(name));
        Found::by(&thief, &[key.0, kept_key.0])
    };
    let before = copy("before");
    assert!(
        before.materials.contains(material.as_slice()) && before.materials.contains(kept.as_slice()),
        "who finds nothing before proves nothing after"
    );

    a.start();
    a.destroy(key).expect("nobody uses it");
    // Killed, so that nothing is tidied up.
    let after = copy("after");
    assert!(after.materials.contains(kept.as_slice()), "the other key went with it");
    assert!(!after.materials.contains(material.as_slice()), "the key came back");

    // The ciphertexts of before, should they still lie anywhere, with every key of after.
    let keys = after.keys();
    for sealed in &before.opened {
        let opens = keys
            .iter()
            .find(|key| aead_open(key, &sealed.bytes, &sealed.aad).is_ok());
        if sealed.leads_to_all {
            assert!(opens.is_none(), "{} of before opens", sealed.what);
        }
    }
    let leading = before.opened.iter().filter(|sealed| sealed.leads_to_all).count();
    let nodes = before.opened.iter().filter(|sealed| sealed.what.contains("node"));
    assert!(nodes.count() >= 3, "the nodes above the key had no rows to be found");
    println!(
        "{backend}: {} stretches tried before, {} after; {} ciphertexts opened before, {leading} of them led to the key; {} keys derived after",
        before.tried,
        after.tried,
        before.opened.len(),
        keys.len()
    );
}

/// An id whose leaf is as wanted.
fn id_with(thief: &Thief, is_wanted: impl Fn(u16) -> bool) -> KeyId {
    let mut ids = std::iter::repeat_with(|| KeyId(random()));
    let found = ids.find(|id| is_wanted(thief.leaf_of(&id.0)));
    found.expect("there is no end of ids")
}

/// A ciphertext that opened.
struct Opened {
    what: &'static str,
    bytes: Vec<u8>,
    aad: Vec<u8>,
    /// Whether it is on the way to the first key that was looked for.
    leads_to_all: bool,
}

/// What somebody got out of a folder.
#[derive(Default)]
struct Found {
    subkeys: BTreeSet<Key>,
    epochs: BTreeSet<(u64, Key)>,
    nodes: BTreeSet<Key>,
    data_keys: BTreeSet<(Vec<u8>, Key)>,
    materials: BTreeSet<Vec<u8>>,
    opened: Vec<Opened>,
    tried: u64,
}

impl Found {
    /// Everything that leads to these keys; the first is the one that is to be destroyed.
    fn by(thief: &Thief, key_ids: &[[u8; 16]]) -> Self {
        let mut found = Self {
            subkeys: labels::ALL.iter().map(|label| thief.subkey(label)).collect(),
            ..Self::default()
        };
        let mut files = Vec::new();
        read_all(thief.folder(), &mut files);
        let stretches: Vec<&[u8]> = files.iter().flat_map(|file| dense(file)).collect();
        found.find_epochs(thief, &stretches);
        for (number, key_id) in key_ids.iter().enumerate() {
            let leaf_keys = found.find_leaf_keys(thief, &stretches, key_id, number == 0);
            found.find_data_keys(thief, &stretches, &leaf_keys, key_id, number == 0);
            found.find_records(thief, &files, key_id, number == 0);
        }
        found
    }

    fn keys(&self) -> BTreeSet<Key> {
        let epochs = self.epochs.iter().map(|(_, key)| key);
        let data_keys = self.data_keys.iter().map(|(_, key)| key);
        self.subkeys
            .iter()
            .chain(epochs)
            .chain(&self.nodes)
            .chain(data_keys)
            .copied()
            .collect()
    }

    /// Tries each place of each stretch.
    fn open_all(&mut self, stretches: &[&[u8]], length: usize, key: &Key, sealed: &Sealed) -> Vec<Vec<u8>> {
        let mut opened = Vec::new();
        for bytes in stretches.iter().flat_map(|stretch| stretch.windows(length)) {
            self.tried += 1;
            if let Ok(content) = aead_open(key, bytes, &sealed.aad) {
                opened.push(content.to_vec());
                self.opened.push(Opened {
                    what: sealed.what,
                    bytes: bytes.to_vec(),
                    aad: sealed.aad.clone(),
                    leads_to_all: sealed.leads_to_all,
                });
            }
        }
        opened
    }

    /// From the images, old ones among them, and on from each by what leads to the next.
    fn find_epochs(&mut self, thief: &Thief, stretches: &[&[u8]]) {
        let image = Sealed::new("a root image", thief.aad(labels::EPOCH_KEY, &[]));
        let sealing = thief.subkey(labels::EPOCH_SEALING);
        let mut waiting: Vec<(u64, Key)> = Vec::new();
        for content in self.open_all(stretches, IMAGE_BYTES, &sealing, &image) {
            let (epoch, key) = content.split_first_chunk::<8>().expect("it has 40 bytes");
            waiting.push((u64::from_be_bytes(*epoch), array(key)));
        }
        while let Some((epoch, key)) = waiting.pop() {
            if self.epochs.insert((epoch, key)) {
                let aad = thief.aad(labels::NEXT_EPOCH_KEY, &epoch.to_be_bytes());
                let next = Sealed::new("a next epoch key", aad);
                let opened = self.open_all(stretches, SEALED_KEY_BYTES, &key, &next);
                waiting.extend(opened.iter().map(|next| (epoch + 1, array(next))));
            }
        }
    }

    /// Down the tree to a key's leaf, by rows, old ones among them, and by what is derived.
    fn find_leaf_keys(
        &mut self,
        thief: &Thief,
        stretches: &[&[u8]],
        key_id: &[u8; 16],
        is_first: bool,
    ) -> BTreeSet<Key> {
        let leaf = thief.leaf_of(key_id);
        let mut keys: BTreeSet<Key> = self.epochs.iter().map(|(_, key)| *key).collect();
        for depth in 0..LEAF_DEPTH {
            let place = [&b"T"[..], &[depth], &number_above(leaf, depth).to_be_bytes()].concat();
            let sealed = Sealed {
                leads_to_all: is_first,
                ..Sealed::new("a node of the key tree", thief.aad(labels::TREE_NODE, &place))
            };
            let child = number_above(leaf, depth + 1);
            let at = usize::from(child % 32) * 32;
            let mut children: BTreeSet<Key> = keys.iter().map(|key| thief.child_key(key, depth + 1, child)).collect();
            for key in &keys {
                let rows = self.open_all(stretches, SEALED_NODE_BYTES, key, &sealed);
                children.extend(rows.iter().map(|row| array(&row[at..at + 32])));
            }
            self.nodes.extend(&children);
            keys = children;
        }
        keys
    }

    fn find_data_keys(
        &mut self,
        thief: &Thief,
        stretches: &[&[u8]],
        leaf_keys: &BTreeSet<Key>,
        key_id: &[u8; 16],
        is_first: bool,
    ) {
        let place = [&b"W"[..], &thief.leaf_of(key_id).to_be_bytes(), key_id].concat();
        let sealed = Sealed {
            leads_to_all: is_first,
            ..Sealed::new("a data-encryption key", thief.aad(labels::DATA_KEY, &place))
        };
        for key in leaf_keys {
            for content in self.open_all(stretches, SEALED_KEY_BYTES, key, &sealed) {
                self.data_keys.insert((key_id.to_vec(), array(&content)));
            }
        }
    }

    /// A record stands behind its version, which is a small number of eight bytes.
    fn find_records(&mut self, thief: &Thief, files: &[Vec<u8>], key_id: &[u8; 16], is_first: bool) {
        let place = [b"R", &key_id[..]].concat();
        let keys: Vec<Key> = self
            .data_keys
            .iter()
            .filter(|(of, _)| of == key_id)
            .map(|(_, key)| *key)
            .collect();
        for (version, rest) in files.iter().flat_map(|file| versioned(file)) {
            let sealed = Sealed {
                leads_to_all: is_first,
                ..Sealed::new(
                    "a key record",
                    thief.aad(labels::KEY_RECORD, &[version, &place].concat()),
                )
            };
            for key in &keys {
                for length in RECORD_BYTES.filter(|length| *length <= rest.len()) {
                    for content in self.open_all(&[&rest[..length]], length, key, &sealed) {
                        let record = wire::KeyRecord::decode(&content[..]).expect("it was sealed so");
                        self.materials.insert(record.material.clone());
                    }
                }
            }
        }
    }
}

struct Sealed {
    what: &'static str,
    aad: Vec<u8>,
    leads_to_all: bool,
}

impl Sealed {
    fn new(what: &'static str, aad: Vec<u8>) -> Self {
        let leads_to_all = false;
        Self {
            what,
            aad,
            leads_to_all,
        }
    }
}

fn array(bytes: &[u8]) -> Key {
    bytes.try_into().expect("a key has 32 bytes")
}

fn read_all(folder: &Path, files: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(folder).expect("the copy is ours") {
        let path = entry.expect("the copy is ours").path();
        if path.is_dir() {
            read_all(&path, files);
        } else if path.file_name().is_none_or(|name| name != BALLAST) {
            files.push(fs::read(&path).expect("the copy is ours"));
        }
    }
}

/// The stretches of a file that may be random: between the runs of one byte that stores pad with.
fn dense(file: &[u8]) -> Vec<&[u8]> {
    let mut stretches = Vec::new();
    let mut start = 0;
    let mut at = 0;
    for run in file.chunk_by(|a, b| a == b) {
        if run.len() > RUN_BYTES {
            stretches.push(&file[start..at + RUN_BYTES]);
            start = at + run.len() - RUN_BYTES;
        }
        at += run.len();
    }
    stretches.push(&file[start..]);
    stretches.retain(|stretch| stretch.len() >= SEALED_KEY_BYTES);
    stretches
}

/// Every place that could be behind a version, with the version.
fn versioned(file: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let places = file.windows(8).enumerate();
    let versions = places.filter(|(_, version)| version[..7] == [0; 7] && version[7] > 0);
    versions.map(|(at, version)| (version, &file[at + 8..]))
}
