//! What an erasure leaves, what a crash leaves of an erasure, and what a damaged node takes with it. SPEC section 9.3.

use std::collections::BTreeSet;

use lockbox_store::Operation;

use super::*;
use crate::limits::TREE_FAN_OUT;

/// Ids of keys by which inner nodes they have in common.
struct Ids(u32);

impl Ids {
    /// The next id whose leaf is as wanted.
    fn next(&mut self, vault: &Vault, is_wanted: impl Fn(u16) -> bool) -> KeyId {
        loop {
            self.0 += 1;
            let mut id = [0xA5; 16];
            id[..4].copy_from_slice(&self.0.to_be_bytes());
            if is_wanted(vault.tree.leaf_of(KeyId(id))) {
                return KeyId(id);
            }
        }
    }
}

/// The number of the node at a depth that a leaf is below.
fn above(leaf: u16, depth: u8) -> u16 {
    leaf >> (5 * (3 - depth))
}

fn put_ids(fixture: &mut Fixture, vault: &mut Vault, ids: &[KeyId]) {
    let mut changes = Changes::default();
    for id in ids {
        let mut key = key(0, &mut fixture.rng);
        key.info.key_id = *id;
        changes.put_key(key);
    }
    fixture.commit(vault, changes);
}

fn erasing(ids: &[KeyId]) -> Changes {
    let mut changes = Changes::default();
    ids.iter().for_each(|id| changes.erase_key(tombstone(*id)));
    changes
}

fn erase_ids(fixture: &mut Fixture, vault: &mut Vault, ids: &[KeyId]) {
    fixture.commit(vault, erasing(ids));
}

fn opens(vault: &Vault, id: KeyId) -> bool {
    vault.key(id).is_ok_and(|key| key.is_some())
}

/// Who has the root key, the present effaceable root, and every row that was ever written.
struct Thief<'f> {
    root: &'f RootKey,
    rows: BTreeSet<(Vec<u8>, Vec<u8>)>,
}

impl Thief<'_> {
    fn remember(&mut self, store: &MemoryStore) {
        self.rows.extend(store.durable_after(0));
    }

    /// Everything at a place that one of the keys opens.
    fn open(&self, place: &[u8], keys: &BTreeSet<Vec<u8>>, label: &[u8], bound: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
        let aad = [label, &STORE_ID, bound].concat();
        let rows = self.rows.iter().filter(|(at, _)| at == place);
        let tried = rows.flat_map(|(_, sealed)| keys.iter().map(move |key| (array(key), sealed)));
        tried
            .filter_map(|(key, sealed)| aead_open(&key, sealed, &aad).ok())
            .collect()
    }

    /// The data-encryption keys of a key that the image leads to: down the tree by its rows, and by what is derived.
    fn data_keys(&self, image: &[u8], leaf: u16, key_id: KeyId) -> usize {
        let mut sealing = [0; 32];
        hkdf_sha256(&STORE_ID, self.root.expose(), &[labels::EPOCH_SEALING], &mut sealing);
        let aad = [labels::EPOCH_KEY, &STORE_ID].concat();
        let image = aead_open(&sealing, image, &aad).expect("it is the root's own");
        let (epoch, epoch_key) = image.split_first_chunk::<8>().expect("an epoch and a key");
        let mut keys = BTreeSet::from([epoch_key.to_vec()]);
        for epoch in u64::from_be_bytes(*epoch).. {
            let bound = epoch.to_be_bytes();
            let next = self.open(&rows::next_epoch(epoch), &keys, labels::NEXT_EPOCH_KEY, &bound);
            if next.is_empty() {
                break;
            }
            keys.extend(next.iter().map(|key| key.to_vec()));
        }
        for depth in 0..3 {
            let place = rows::tree_node(depth, above(leaf, depth));
            let child = above(leaf, depth + 1);
            let index = usize::from(child) % TREE_FAN_OUT * 32;
            let stored = self.open(&place, &keys, labels::TREE_NODE, &place);
            let child = [&[depth + 1][..], &child.to_be_bytes()].concat();
            let derived = keys.iter().map(|key| {
                let mut okm = [0; 32];
                hkdf_sha256(&STORE_ID, key, &[labels::CHILD, &child], &mut okm);
                okm.to_vec()
            });
            let stored = stored.iter().map(|row| row[index..index + 32].to_vec());
            keys = derived.chain(stored).collect();
        }
        let place = rows::data_key(leaf, key_id);
        self.open(&place, &keys, labels::DATA_KEY, &place).len()
    }
}

fn array(key: &[u8]) -> [u8; 32] {
    key.try_into().expect("a key has 32 bytes")
}

#[test]
fn no_row_that_was_ever_written_leads_to_an_erased_key() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    let mut ids = Ids(0);
    let victim = ids.next(&vault, |_| true);
    let leaf = vault.tree.leaf_of(victim);
    let in_leaf = ids.next(&vault, |other| other == leaf);
    let near: Vec<KeyId> = (1..=2)
        .map(|depth| {
            ids.next(&vault, |other| {
                above(other, depth) == above(leaf, depth) && other != leaf
            })
        })
        .collect();
    let store = fixture.store.clone();
    let root = RootKey::init_with(|root| root.copy_from_slice(fixture.root.expose()));
    let mut thief = Thief {
        root: &root,
        rows: BTreeSet::new(),
    };
    put_ids(&mut fixture, &mut vault, &[victim, in_leaf, near[0], near[1]]);
    thief.remember(&store);
    let image = |fixture: &Fixture| fixture.image.read().remove(0);
    let derived = thief.data_keys(&image(&fixture), leaf, victim);
    // The nodes above the key get rows, twice.
    for id in &near {
        erase_ids(&mut fixture, &mut vault, &[*id]);
        put_ids(&mut fixture, &mut vault, &[victim]);
        thief.remember(&store);
        let found = thief.data_keys(&image(&fixture), leaf, victim);
        assert!(
            found > derived && derived == 1,
            "who finds nothing before proves nothing after: {found}, {derived}"
        );
    }
    erase_ids(&mut fixture, &mut vault, &[victim]);
    thief.remember(&store);
    assert_eq!(thief.data_keys(&image(&fixture), leaf, victim), 0);
    assert_eq!(
        thief.data_keys(&image(&fixture), leaf, in_leaf),
        1,
        "another key went with it"
    );
    // Nor what comes later.
    erase_ids(&mut fixture, &mut vault, &[in_leaf]);
    put_ids(&mut fixture, &mut vault, &near);
    thief.remember(&store);
    assert_eq!(thief.data_keys(&image(&fixture), leaf, victim), 0);
}

/// A power cut comes after any batch, and leaves any image that was written, or that should have been replaced.
#[test]
fn other_keys_survive_a_crash_between_any_two_writes_of_an_erasure() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    let mut ids = Ids(0);
    let kept: Vec<KeyId> = (0..50).map(|_| ids.next(&vault, |_| true)).collect();
    let gone: Vec<KeyId> = (0..3_400).map(|_| ids.next(&vault, |_| true)).collect();
    put_ids(&mut fixture, &mut vault, &kept);
    put_ids(&mut fixture, &mut vault, &gone);
    fixture.store.hold();
    let mut images = fixture.image.read();
    let erased_first = [gone[0]];
    for doomed in [&erased_first[..], &gone[1..]] {
        for batch in vault.stage(erasing(doomed), &mut fixture.rng).expect("stages") {
            images.extend(batch.root_image().map(<[u8]>::to_vec));
            fixture.store.submit(batch, Box::new(|_| ()));
        }
    }
    let batches = fixture.store.waiting();
    assert_eq!((batches, images.len()), (3, 4), "the second erasure takes two batches");
    let held = fixture.store.clone();
    for durable in 0..=batches {
        let rows: Vec<_> = held.durable_after(durable).into_iter().collect();
        for image in &images[..=durable] {
            fixture.store = MemoryStore::new();
            for rows in rows.chunks(5_000) {
                let mut batch = Batch::new();
                rows.iter()
                    .for_each(|(place, stored)| batch.put(place.clone(), stored.clone()));
                fixture.store.commit(batch).expect("memory does not fail");
            }
            let found = Images {
                root: vec![image.clone()],
                anchor: fixture.anchor.read(),
            };
            let store: Arc<dyn Store> = Arc::new(fixture.store.clone());
            let (vault, _) = Vault::open(store, STORE_ID, &fixture.root, &found, &mut fixture.rng).expect("opens");
            assert!(kept.iter().all(|id| opens(&vault, *id)), "another key went with it");
            let left = gone
                .iter()
                .filter(|id| vault.has_key(**id).expect("memory does not fail"));
            assert!(
                left.clone().step_by(50).all(|id| opens(&vault, *id)),
                "a key is half erased"
            );
            let left = left.count();
            assert!(
                match durable {
                    0 => left == 3_400,
                    1 => left == 3_399,
                    2 => left > 0 && left < 3_399,
                    _ => left == 0,
                },
                "{left} are left after {durable} batches"
            );
        }
    }
}

/// How a row of a node can be amiss.
const DAMAGES: [&str; 3] = ["a bit", "lost", "put back in an older version"];

/// A store where the nodes above the first key have rows: a key whose row is damaged, one that has the node in common with it,
/// and one that has not.
struct Damaged {
    fixture: Fixture,
    vault: Vault,
    ids: Ids,
    /// Two keys that are below the node.
    below: [KeyId; 2],
    other: KeyId,
}

fn damaged(depth: u8, damage: &str) -> Damaged {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    let mut ids = Ids(0);
    let first = ids.next(&vault, |_| true);
    let leaf = vault.tree.leaf_of(first);
    let is_below = |other| above(other, depth) == above(leaf, depth);
    let below = [first, ids.next(&vault, |other| is_below(other) && other != leaf)];
    let erased = [ids.next(&vault, is_below), ids.next(&vault, is_below)];
    let other = ids.next(&vault, |other| !is_below(other) || depth == 0);
    put_ids(
        &mut fixture,
        &mut vault,
        &[below[0], below[1], erased[0], erased[1], other],
    );
    let place = rows::tree_node(depth, above(leaf, depth));
    erase_ids(&mut fixture, &mut vault, &erased[..1]);
    let older = fixture.store.durable(&place).expect("it has a row");
    erase_ids(&mut fixture, &mut vault, &erased[1..]);
    let mut row = fixture.store.durable(&place).expect("it has a row");
    let mut batch = Batch::new();
    match damage {
        "a bit" => {
            row[100] ^= 1;
            batch.put(place, row);
        }
        "lost" => batch.remove(place),
        _ => batch.put(place, older),
    }
    fixture.store.commit(batch).expect("memory does not fail");
    let vault = fixture.open().expect("a damaged node keeps the store shut");
    Damaged {
        fixture,
        vault,
        ids,
        below,
        other,
    }
}

#[test]
fn a_damaged_node_takes_the_keys_below_it_and_no_other() {
    for (depth, damage) in [1, 2]
        .into_iter()
        .flat_map(|depth| DAMAGES.map(|damage| (depth, damage)))
    {
        let Damaged {
            mut fixture,
            mut vault,
            mut ids,
            below,
            other,
        } = damaged(depth, damage);
        let found = verify(&mut vault);
        assert_eq!(found.damaged_count, 3, "depth {depth}, {damage}: {found:?}");
        assert!(
            found.damaged.iter().any(|finding| finding.what.contains("key tree")),
            "{found:?}"
        );
        assert!(opens(&vault, other) && below.iter().all(|id| !opens(&vault, *id)));
        assert!(below.iter().all(|id| vault.is_known_damaged(*id)));

        // A key would be lost there.
        let leaf = vault.tree.leaf_of(below[0]);
        let new = ids.next(&vault, |other| above(other, depth) == above(leaf, depth));
        let mut changes = Changes::default();
        let mut key = key(0, &mut fixture.rng);
        key.info.key_id = new;
        changes.put_key(key);
        let refused = vault.stage(changes, &mut fixture.rng).expect_err("nothing opens there");
        assert!(matches!(refused, VaultError::NoPlace(id) if id == new), "{refused}");

        // An older row may lead to a damaged key that is destroyed: so the node is replaced.
        erase_ids(&mut fixture, &mut vault, &below[..1]);
        put_ids(&mut fixture, &mut vault, &[new]);
        let mut vault = fixture.open().expect("opens");
        assert!(opens(&vault, new) && opens(&vault, other) && !opens(&vault, below[1]));
        assert_eq!(verify(&mut vault).damaged_count, 1, "the other key below it");
    }
}

#[test]
fn a_damaged_node_is_replaced_when_the_store_is_accepted() {
    let Damaged {
        mut fixture,
        mut vault,
        mut ids,
        below,
        other,
    } = damaged(1, "lost");
    let (found, batches) = vault.accept(0, &mut fixture.rng).expect("its root is whole");
    assert_eq!(found.damaged_count, 3);
    for batch in batches {
        fixture.store.commit(batch).expect("memory does not fail");
    }
    let mut vault = fixture.open().expect("opens");
    assert_eq!(verify(&mut vault).damaged_count, 2, "the keys below it stay damaged");
    let leaf = vault.tree.leaf_of(below[0]);
    let new = ids.next(&vault, |other| above(other, 1) == above(leaf, 1));
    put_ids(&mut fixture, &mut vault, &[new]);
    let vault = fixture.open().expect("opens");
    assert!(opens(&vault, new) && opens(&vault, other) && below.iter().all(|id| !opens(&vault, *id)));
}

/// It may be that of another copy of the store: what is replaced in one can't be read in the other any more.
#[test]
fn a_damaged_root_node_does_not_keep_the_store_shut_and_is_not_replaced() {
    for damage in DAMAGES {
        let Damaged {
            mut fixture,
            mut vault,
            below,
            other,
            ..
        } = damaged(0, damage);
        let images = fixture.image.read();
        assert!(
            [below[0], below[1], other].iter().all(|id| !opens(&vault, *id)),
            "{damage}"
        );
        assert_eq!(verify(&mut vault).damaged_count, 4, "{damage}");
        let refused = vault
            .stage(erasing(&below), &mut fixture.rng)
            .expect_err("it is replaced");
        assert!(matches!(refused, VaultError::Root(_)), "{refused}");
        let refused = vault.accept(0, &mut fixture.rng).err();
        assert!(matches!(refused, Some(VaultError::Root(_))), "{refused:?}");
        // The book goes on.
        let mut changes = Changes::default();
        changes.put(Row::Identity, vec![1]);
        fixture.commit(&mut vault, changes);
        assert!(vault.read(Row::Identity).expect("it is whole").is_some());
        assert_eq!(fixture.image.read(), images);
    }
}

/// The bytes of an erasure's rows, with their places.
fn bytes_of(batches: &[Batch]) -> usize {
    let operations = batches.iter().flat_map(Batch::operations);
    operations
        .map(|operation| match operation {
            Operation::Put { key, value } => key.len() + value.len(),
            Operation::Remove { key } => key.len(),
        })
        .sum()
}

/// Prints what it measures, at other sizes, too:
///
///     LOCKBOX_MEASURED_KEYS=1000,100000,1000000 cargo test --release -p lockbox-core --lib an_erasure_writes -- --nocapture
#[test]
fn an_erasure_writes_little_however_many_keys_there_are() {
    let counts = std::env::var("LOCKBOX_MEASURED_KEYS").unwrap_or_else(|_| "100,4000".to_owned());
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    let mut ids = Ids(0);
    let mut all: Vec<KeyId> = Vec::new();
    let bytes = |fixture: &mut Fixture, vault: &mut Vault, doomed: &[KeyId]| {
        let batches = vault.stage(erasing(doomed), &mut fixture.rng).expect("stages");
        let bytes = bytes_of(&batches);
        for batch in batches {
            fixture.store.submit(batch, Box::new(|_| ()));
        }
        bytes
    };
    for count in counts.split(',').map(|count| count.parse().expect("a number of keys")) {
        while all.len() < count {
            let new: Vec<KeyId> = (all.len()..count)
                .take(50_000)
                .map(|_| ids.next(&vault, |_| true))
                .collect();
            put_ids(&mut fixture, &mut vault, &new);
            all.extend(new);
        }
        let singles = [(); 9].map(|()| {
            let doomed = all.pop().expect("there are more");
            bytes(&mut fixture, &mut vault, &[doomed])
        });
        assert!(
            singles.iter().all(|bytes| *bytes < 16 * 1024),
            "{singles:?} bytes with {count} keys"
        );
        let mean = singles.iter().sum::<usize>() / singles.len();
        println!("{count} keys: {mean} bytes for one");
        if count > 1_024 {
            // Nodes that several have in common are written once.
            let doomed = all.split_off(all.len() - 1_024);
            let together = bytes(&mut fixture, &mut vault, &doomed);
            println!("{count} keys: {together} bytes for 1,024");
            assert!(
                together < 1_024 * mean * 3 / 4,
                "{together} bytes for 1,024 of {count} keys"
            );
        }
    }
}
