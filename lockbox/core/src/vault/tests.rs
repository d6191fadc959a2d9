use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockbox_authz::field::Labels;
use lockbox_authz::id::MaterialId;
use lockbox_store::{Completion, Health, MemoryStore, Pair};

mod tree;

use super::*;
use crate::labels;
use crate::primitives::{aead_open, aead_seal, hkdf_sha256};
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
    anchor: Image,
    root: RootKey,
    rng: TestRng,
}

const STORE_ID: [u8; 16] = [7; 16];

impl Fixture {
    fn new() -> Self {
        let mut rng = TestRng::new(1);
        let root = RootKey::random(&mut rng);
        let (image, anchor) = (Image::default(), Image::default());
        let store = MemoryStore::new()
            .with_root(Box::new(image.clone()))
            .with_anchor(Box::new(anchor.clone()));
        store
            .commit(Vault::format(STORE_ID, &root, &mut rng))
            .expect("memory does not fail");
        Self {
            store,
            image,
            anchor,
            root,
            rng,
        }
    }

    fn open(&mut self) -> Result<Vault, VaultError> {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let images = self.images();
        let (vault, completing) = Vault::open(store, STORE_ID, &self.root, &images, &mut self.rng)?;
        self.store.commit(completing)?;
        Ok(vault)
    }

    fn images(&self) -> Images {
        Images {
            root: self.image.read(),
            anchor: self.anchor.read(),
        }
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
            destruction: None,
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

/// Found by the fuzz target `authentic_record`: it fell over.
#[test]
fn rejects_an_epoch_key_of_another_length() {
    let mut fixture = Fixture::new();
    let sealing = crate::secrets::EpochSealingKey::init_with(|key| {
        hkdf_sha256(&STORE_ID, fixture.root.expose(), &[labels::EPOCH_SEALING], key);
    });
    let image = fixture.image.read().remove(0);
    let aad = [labels::EPOCH_KEY, &STORE_ID].concat();
    let opened = aead_open(sealing.expose(), &image, &aad).expect("it is the root's own");
    let (epoch, key) = opened.split_first_chunk::<8>().expect("an epoch and a key");
    let key: &[u8; 32] = key.try_into().expect("a key");
    let aad = [labels::NEXT_EPOCH_KEY, &STORE_ID, epoch].concat();
    let mut batch = Batch::new();
    let short = aead_seal(key, &[1; 31], &aad, &mut fixture.rng);
    batch.put(rows::next_epoch(u64::from_be_bytes(*epoch)), short);
    fixture.store.commit(batch).expect("memory does not fail");
    assert!(matches!(fixture.open(), Err(VaultError::Root(_))));
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
    assert_eq!(fixture.open().expect("opens").key_count(), 0);
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
    let images = fixture.images();
    let (mut vault, _) = Vault::open(
        Arc::clone(&failing) as Arc<dyn Store>,
        STORE_ID,
        &fixture.root,
        &images,
        &mut fixture.rng,
    )
    .expect("opens");
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
        assert_eq!(vault.key_count(), 3);
    }
    assert!(refused >= 5, "no read failed where it matters");
}

/// What the store had at a time, put back.
fn put_back(fixture: &mut Fixture, old: BTreeMap<Vec<u8>, Vec<u8>>, places: impl Fn(&[u8]) -> bool) {
    let now = fixture.store.durable_after(0);
    let mut batch = Batch::new();
    for place in now.keys().filter(|place| places(place)) {
        batch.remove(place.clone());
    }
    for (place, stored) in old.into_iter().filter(|(place, _)| places(place)) {
        batch.put(place, stored);
    }
    fixture.store.commit(batch).expect("memory does not fail");
}

fn verify(vault: &mut Vault) -> Verification {
    loop {
        if let Some(verification) = vault.verify_page(2).expect("memory does not fail") {
            return verification;
        }
    }
}

#[test]
fn rejects_a_store_that_was_rolled_back() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    put(&mut fixture, &mut vault, 1);
    let old = fixture.store.durable_after(0);
    put(&mut fixture, &mut vault, 2);
    put_back(&mut fixture, old, |_| true);
    let refused = fixture.open().err();
    assert!(
        matches!(refused, Some(VaultError::RolledBack { store: 2, anchor: 3 })),
        "{refused:?}"
    );
}

/// The same commit, made twice: once before a copy was put back, once after.
#[test]
fn rejects_a_store_that_went_another_way() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    put(&mut fixture, &mut vault, 1);
    let old = fixture.store.durable_after(0);
    put(&mut fixture, &mut vault, 2);
    let anchor = fixture.anchor.read();
    fixture.anchor = Image::default();
    put_back(&mut fixture, old, |_| true);
    let images = Images {
        root: fixture.image.read(),
        anchor: fixture.store.durable(rows::ANCHOR).into_iter().collect(),
    };
    let store: Arc<dyn Store> = Arc::new(fixture.store.clone());
    let (mut vault, _) = Vault::open(store, STORE_ID, &fixture.root, &images, &mut fixture.rng).expect("opens");
    put(&mut fixture, &mut vault, 3);
    let images = Images { anchor, ..images };
    let store: Arc<dyn Store> = Arc::new(fixture.store.clone());
    let refused = Vault::open(store, STORE_ID, &fixture.root, &images, &mut fixture.rng).err();
    assert!(
        matches!(refused, Some(VaultError::Diverged { commit: 3 })),
        "{refused:?}"
    );
}

#[test]
fn rejects_a_store_without_its_anchor() {
    let mut fixture = Fixture::new();
    *fixture.anchor.0.lock().expect("nobody panics while holding it") = vec![0; 80];
    assert!(matches!(fixture.open().err(), Some(VaultError::NoAnchor)));
}

/// A crash comes between a batch and its anchor, or between many and theirs.
#[test]
fn a_store_may_be_ahead_of_its_anchor() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    let anchor = fixture.anchor.read().remove(0);
    put(&mut fixture, &mut vault, 1);
    put(&mut fixture, &mut vault, 2);
    *fixture.anchor.0.lock().expect("nobody panics while holding it") = anchor;
    let mut vault = fixture.open().expect("opens");
    assert_eq!(vault.key_count(), 2);
    assert!(verify(&mut vault).is_clean());
}

/// One of each: a key's record lost, its data-encryption key lost, both lost, put back in an older version, a record of the
/// book lost, and one bit.
#[test]
fn a_full_scan_finds_each_damage_and_takes_no_other_record_for_it() {
    let (record, data_key) = (rows::KEY_RECORD_KIND, rows::DATA_KEY_KIND);
    let of = |place: &[u8], kind: u8| place[0] == kind && place.ends_with(&[2; 16]);
    type Damage<'a> = (&'static str, Box<dyn Fn(&[u8]) -> bool + 'a>, bool, u64);
    let damages: [Damage<'_>; 5] = [
        ("record lost", Box::new(move |place| of(place, record)), false, 1),
        (
            "data-encryption key lost",
            Box::new(move |place| of(place, data_key)),
            false,
            1,
        ),
        (
            "both lost",
            Box::new(move |place| of(place, record) || of(place, data_key)),
            false,
            0,
        ),
        (
            "both put back",
            Box::new(move |place| of(place, record) || of(place, data_key)),
            true,
            0,
        ),
        (
            "book record lost",
            Box::new(|place| place == Row::Identity.key()),
            false,
            0,
        ),
    ];
    for (name, places, back, damaged) in damages {
        let mut fixture = Fixture::new();
        let mut vault = fixture.open().expect("opens");
        for number in [1, 2, 3] {
            put(&mut fixture, &mut vault, number);
        }
        let mut changes = Changes::default();
        changes.put(Row::Identity, vec![1]);
        fixture.commit(&mut vault, changes);
        let old = fixture.store.durable_after(0);
        put(&mut fixture, &mut vault, 2);
        assert!(verify(&mut vault).is_clean(), "{name}: damaged before");
        put_back(&mut fixture, if back { old } else { BTreeMap::new() }, places);
        let mut vault = fixture.open().expect("opens");
        let found = verify(&mut vault);
        assert!(!found.is_clean(), "{name}");
        assert_eq!(found.damaged_count, damaged, "{name}: {found:?}");
        assert!(
            found.damaged.iter().all(|finding| finding.what.contains("02020202")),
            "{name}: {found:?}"
        );
        assert_eq!(found.mismatch.is_some(), name != "data-encryption key lost", "{name}");
        assert!(
            [1, 3].into_iter().all(|number| holds(&vault, number)),
            "{name}: others are lost with it"
        );
    }
}

#[test]
fn a_scan_sees_each_change_that_is_made_while_it_is_under_way_once() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    for number in 1..=20 {
        put(&mut fixture, &mut vault, number);
    }
    // Ahead of the scan and behind it: keys made, replaced, destroyed.
    for number in 21..=34 {
        assert!(
            vault.verify_page(2).expect("memory does not fail").is_none(),
            "over too soon"
        );
        put(&mut fixture, &mut vault, number);
        put(&mut fixture, &mut vault, 255 - number);
        put(&mut fixture, &mut vault, number - 19);
        erase(&mut fixture, &mut vault, number - 15);
    }
    let verification = verify(&mut vault);
    assert!(verification.is_clean(), "{verification}");
}

#[test]
fn what_is_accepted_opens_again_and_is_whole() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    put(&mut fixture, &mut vault, 1);
    let old = fixture.store.durable_after(0);
    put(&mut fixture, &mut vault, 2);
    put_back(&mut fixture, old, |_| true);
    let store: Arc<dyn Store> = Arc::new(fixture.store.clone());
    let images = fixture.images();
    let (mut vault, _) =
        Vault::open_as_found(store, STORE_ID, &fixture.root, &images, &mut fixture.rng).expect("opens");
    let (found, batches) = vault.accept(0, &mut fixture.rng).expect("memory does not fail");
    assert!(found.mismatch.is_some(), "the rollback is not told");
    for batch in batches {
        fixture.store.commit(batch).expect("memory does not fail");
    }
    let mut vault = fixture.open().expect("opens");
    assert!(holds(&vault, 1) && !holds(&vault, 2));
    assert!(verify(&mut vault).is_clean());
}

/// What opens nothing would be reported for ever, and raise an alarm with each start.
#[test]
fn stray_data_encryption_keys_go_when_the_store_is_accepted() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    put(&mut fixture, &mut vault, 1);
    let mut planted = Batch::new();
    planted.put(rows::data_key(7, KeyId([9; 16])), vec![0; 60]);
    planted.put(vec![rows::DATA_KEY_KIND, 0], vec![0; 60]);
    fixture.store.commit(planted).expect("memory does not fail");
    assert_eq!(verify(&mut vault).damaged_count, 2);
    let (_, batches) = vault.accept(0, &mut fixture.rng).expect("memory does not fail");
    for batch in batches {
        fixture.store.commit(batch).expect("memory does not fail");
    }
    let mut vault = fixture.open().expect("opens");
    assert!(holds(&vault, 1) && verify(&mut vault).is_clean());
}

/// Its true copy comes back from another lockbox. That the digest is not what it was is told all the same.
#[test]
fn a_key_that_comes_back_where_it_was_lost_is_counted_once() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    put(&mut fixture, &mut vault, 1);
    put(&mut fixture, &mut vault, 2);
    let mut removed = Batch::new();
    removed.remove(rows::key_record(KeyId([1; 16])));
    fixture.store.commit(removed).expect("memory does not fail");
    assert_eq!(verify(&mut vault).damaged_count, 1);
    put(&mut fixture, &mut vault, 1);
    let mut vault = fixture.open().expect("opens");
    let found = verify(&mut vault);
    assert_eq!((found.damaged_count, found.mismatch.is_some()), (0, true));
    assert!(holds(&vault, 1) && holds(&vault, 2));
    assert!(
        vault.knows_every_key(),
        "nothing would be told to the broker as a whole"
    );
}

/// A key that is gone for those who have accepted that is not lost any more.
#[test]
fn what_opened_a_lost_record_goes_when_the_store_is_accepted() {
    let mut fixture = Fixture::new();
    let mut vault = fixture.open().expect("opens");
    put(&mut fixture, &mut vault, 1);
    put(&mut fixture, &mut vault, 2);
    let mut removed = Batch::new();
    removed.remove(rows::key_record(KeyId([1; 16])));
    fixture.store.commit(removed).expect("memory does not fail");
    assert_eq!(verify(&mut vault).damaged_count, 1);
    let (_, batches) = vault.accept(0, &mut fixture.rng).expect("memory does not fail");
    for batch in batches {
        fixture.store.commit(batch).expect("memory does not fail");
    }
    let mut vault = fixture.open().expect("opens");
    assert!(holds(&vault, 2) && verify(&mut vault).is_clean());
    assert!(vault.knows_every_key());
}

/// Whoever can write to the store puts a record where a key will be made: that is found out, and stops nothing.
#[test]
fn a_record_that_nobody_committed_is_found_out_and_can_be_replaced() {
    let mut fixture = Fixture::new();
    let mut planted = Batch::new();
    planted.put(rows::key_record(KeyId([1; 16])), vec![0; 60]);
    fixture.store.commit(planted).expect("memory does not fail");
    let mut vault = fixture.open().expect("opens");
    assert!(verify(&mut vault).mismatch.is_some());
    put(&mut fixture, &mut vault, 1);
    assert!(holds(&vault, 1));
    assert!(
        verify(&mut vault).mismatch.is_some(),
        "it is forgotten that something was there"
    );
}
