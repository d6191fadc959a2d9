use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockbox_authz::field::Labels;
use lockbox_authz::id::MaterialId;
use lockbox_store::{Completion, Health, MemoryStore, Pair};

use super::*;
use crate::record::{Departure, KeyInfo, KeyOrigin, KeyState, TransferPolicy};
use crate::secrets::KeyMaterial;
use crate::testing::{Image, TestRng};

/// A store whose reads begin to fail after a number of them.
struct Failing {
    inner: MemoryStore,
    reads_left: AtomicUsize,
}

impl Failing {
    fn read(&self) -> Result<(), StoreFailure> {
        let left = self.reads_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(StoreFailure::Stopped { promise: "of a test" });
        }
        self.reads_left.store(left - 1, Ordering::Relaxed);
        Ok(())
    }
}

impl Store for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure> {
        self.read()?;
        self.inner.get(key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure> {
        self.read()?;
        self.inner.scan(prefix, after, limit)
    }

    fn submit(&self, batch: Batch, done: Completion) {
        self.inner.submit(batch, done);
    }

    fn health(&self) -> Health {
        self.inner.health()
    }
}

struct Fixture {
    store: MemoryStore,
    image: Image,
    root: RootKey,
    rng: TestRng,
}

const STORE_ID: [u8; 16] = [7; 16];

impl Fixture {
    fn new() -> Self {
        let mut rng = TestRng::new(1);
        let root = RootKey::random(&mut rng);
        let image = Image::default();
        let store = MemoryStore::new().with_root(Box::new(image.clone()));
        store
            .commit(Vault::format(STORE_ID, &root, &mut rng))
            .expect("memory does not fail");
        Self {
            store,
            image,
            root,
            rng,
        }
    }

    fn open(&mut self) -> Result<Vault, VaultError> {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let images = self.image.read();
        let (vault, unfinished) = Vault::open(store, STORE_ID, &self.root, &images, &mut self.rng)?;
        if let Some(batch) = unfinished {
            self.store.commit(batch)?;
        }
        Ok(vault)
    }

    fn commit(&mut self, vault: &mut Vault, changes: Changes) {
        for batch in vault.stage(changes, &mut self.rng).expect("stages") {
            self.store.submit(batch, Box::new(|_| ()));
        }
    }
}

fn key(number: u8, rng: &mut TestRng) -> Key {
    let material = KeyMaterial::random(64, rng);
    Key {
        info: KeyInfo {
            key_id: KeyId([number; 16]),
            material_id: MaterialId([number; 16]),
            algorithm: "aes-xts-plain64".to_owned(),
            length_bytes: 64,
            state: KeyState::Active,
            origin: KeyOrigin::Generated,
            name: String::new(),
            created_at_ms: 1,
            labels: Labels::default(),
            consumers: Vec::new(),
            clone_policy: Default::default(),
            transfer_policy: TransferPolicy::default(),
            lineage: None,
        },
        material,
    }
}

fn tombstone(key_id: KeyId) -> Tombstone {
    Tombstone {
        key_id,
        material_id: MaterialId([0; 16]),
        name: String::new(),
        departure: Departure::Destroyed,
        departed_at_ms: 1,
        moved: None,
        lineage: None,
    }
}

fn put(fixture: &mut Fixture, vault: &mut Vault, number: u8) {
    let mut changes = Changes::default();
    changes.put_key(key(number, &mut fixture.rng));
    fixture.commit(vault, changes);
}

fn erase(fixture: &mut Fixture, vault: &mut Vault, number: u8) {
    let mut changes = Changes::default();
    changes.erase_key(tombstone(KeyId([number; 16])));
    fixture.commit(vault, changes);
}

fn holds(vault: &Vault, number: u8) -> bool {
    vault.key(KeyId([number; 16])).expect("undamaged").is_some()
}

#[test]
fn an_erased_key_takes_no_other_with_it() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    for number in [1, 2, 3] {
        put(&mut fixture, &mut vault, number);
    }
    erase(&mut fixture, &mut vault, 2);
    let vault = fixture.open().expect("opens");
    assert!(holds(&vault, 1) && !holds(&vault, 2) && holds(&vault, 3));
}

#[test]
fn nothing_that_is_left_opens_an_erased_key() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    put(&mut fixture, &mut vault, 1);
    let before = fixture.store.scan(b"", None, usize::MAX).expect("memory does not fail");
    erase(&mut fixture, &mut vault, 1);

    // A store that never forgets a byte: everything that was there before is put back.
    let mut residue = Batch::new();
    for (place, value) in before {
        residue.put(place, value);
    }
    fixture.store.commit(residue).expect("memory does not fail");
    assert!(fixture.open().is_err(), "the old table opened under the new root");
}

#[test]
fn a_destroy_that_was_cut_off_before_its_root_was_replaced_is_completed() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    for number in [1, 2] {
        put(&mut fixture, &mut vault, number);
    }
    let old_image = fixture.image.read().remove(0);
    erase(&mut fixture, &mut vault, 1);
    erase(&mut fixture, &mut vault, 3);
    put(&mut fixture, &mut vault, 4);

    // The store has the batches, the root was never written.
    *fixture.image.0.lock().expect("no test panics while holding it") = old_image.clone();
    let vault = fixture.open().expect("the old root leads to the new one");
    assert!(!holds(&vault, 1) && holds(&vault, 2) && holds(&vault, 4));
    assert_ne!(fixture.image.read()[0], old_image, "the old root is still there");
}

#[test]
fn a_record_does_not_open_at_another_place() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    for number in [1, 2] {
        put(&mut fixture, &mut vault, number);
    }
    let stolen = fixture
        .store
        .get(&rows::key_record(KeyId([1; 16])))
        .expect("memory does not fail")
        .expect("it was put");
    let mut swap = Batch::new();
    swap.put(rows::key_record(KeyId([2; 16])), stolen);
    fixture.store.commit(swap).expect("memory does not fail");
    let error = vault.key(KeyId([2; 16])).err().expect("a swapped record was served");
    assert!(
        error.to_string().contains("02020202"),
        "it does not name the key: {error}"
    );
    assert!(holds(&vault, 1), "one damaged record took another with it");
}

#[test]
fn a_wrong_root_key_opens_nothing() {
    let mut fixture = Fixture::new();
    fixture.root = RootKey::random(&mut fixture.rng);
    assert!(fixture.open().is_err());
}

#[test]
fn an_erasure_of_more_keys_than_a_batch_takes_is_split_and_complete() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    let ids: Vec<KeyId> = (0..6_000_u32)
        .map(|number| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&(number << 16).to_be_bytes());
            KeyId(id)
        })
        .collect();
    let mut changes = Changes::default();
    for id in &ids {
        let mut key = key(0, &mut fixture.rng);
        key.info.key_id = *id;
        changes.put_key(key);
    }
    fixture.commit(&mut vault, changes);
    let mut changes = Changes::default();
    for id in &ids {
        changes.erase_key(tombstone(*id));
    }
    let batches = vault.stage(changes, &mut fixture.rng).expect("stages");
    assert!(batches.len() > 1 && batches.iter().all(|batch| batch.check_bounds().is_ok()));
    for batch in batches {
        fixture.store.commit(batch).expect("memory does not fail");
    }
    assert_eq!(fixture.open().expect("opens").key_count().expect("counts"), 0);
}

#[test]
fn a_read_that_fails_while_changes_are_staged_leaves_every_key_readable() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    for number in [1, 2, 3] {
        put(&mut fixture, &mut vault, number);
    }
    let failing = Arc::new(Failing {
        inner: fixture.store.clone(),
        reads_left: AtomicUsize::new(usize::MAX),
    });
    let images = fixture.image.read();
    let (mut vault, _) = Vault::open(
        Arc::clone(&failing) as Arc<dyn Store>,
        STORE_ID,
        &fixture.root,
        &images,
        &mut fixture.rng,
    )
    .expect("opens");
    vault.key_count().expect("counts");
    let mut refused = 0;
    for reads in 0.. {
        let mut changes = Changes::default();
        changes.erase_key(tombstone(KeyId([1; 16])));
        changes.erase_key(tombstone(KeyId([2; 16])));
        changes.put_key(key(4, &mut fixture.rng));
        changes.put(Row::Identity, vec![1]);
        failing.reads_left.store(reads, Ordering::Relaxed);
        let staged = vault.stage(changes, &mut fixture.rng);
        failing.reads_left.store(usize::MAX, Ordering::Relaxed);
        if staged.is_ok() {
            break;
        }
        refused += 1;
        assert!(
            [1, 2, 3].into_iter().all(|number| holds(&vault, number)),
            "after {reads} reads"
        );
        assert_eq!(vault.key_count().expect("counts"), 3);
    }
    assert!(refused >= 5, "no read failed where it matters");
}
