//! Files that are not what redb wrote: an answer that names them, and never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use lockbox_store::{Batch, Media, Store, StoreFailure};
use lockbox_store_redb::{MIN_CACHE_BYTES, Options, RedbStore};
use tempfile::TempDir;

fn options() -> Options {
    Options {
        cache_bytes: MIN_CACHE_BYTES,
        low_water_bytes: 0,
        ballast_bytes: 0,
    }
}

/// A closed store with some records.
fn filled() -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().expect("a temporary folder");
    let dir = root.path().join("store");
    RedbStore::create(&dir, &options()).expect("creates");
    let store = RedbStore::open(&dir, Media::default(), &options()).expect("opens");
    for group in 0..10_u8 {
        let mut batch = Batch::new();
        for number in 0..40_u8 {
            batch.put(vec![group, number], vec![number; 700]);
        }
        store.commit(batch).expect("commits");
    }
    (root, dir)
}

type Damage = fn(&Path);

#[test]
fn damage_is_an_answer_that_names_the_folder() {
    let damages: [(&str, Damage); 6] = [
        ("it is missing", |file| fs::remove_file(file).expect("removes")),
        ("it is empty", |file| fs::write(file, "").expect("writes")),
        ("it is nonsense", |file| {
            fs::write(file, [0xA5; 600_000]).expect("writes")
        }),
        ("it is another file", |file| {
            fs::write(file, "of no use at all").expect("writes")
        }),
        ("its header is gone", |file| {
            let mut bytes = fs::read(file).expect("reads");
            bytes[..4096].fill(0);
            fs::write(file, bytes).expect("writes");
        }),
        ("its end is gone", |file| {
            let bytes = fs::read(file).expect("reads");
            fs::write(file, &bytes[..bytes.len() / 2]).expect("writes");
        }),
    ];
    for (name, damage) in damages {
        let (_root, dir) = filled();
        damage(&dir.join("redb/db"));
        match RedbStore::open(&dir, Media::default(), &options()).err() {
            Some(StoreFailure::Damaged { place, reason }) => {
                assert_eq!(place, dir.display().to_string(), "{name}");
                assert!(reason.contains("redb/db"), "{name}: {reason}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Another program's database is not taken for an empty store.
#[test]
fn rejects_a_database_that_is_not_a_store() {
    let (_root, dir) = filled();
    let file = dir.join("redb/db");
    fs::remove_file(&file).expect("removes");
    drop(redb::Database::create(&file).expect("creates"));
    let failure = RedbStore::open(&dir, Media::default(), &options())
        .err()
        .expect("refused");
    assert!(matches!(failure, StoreFailure::Damaged { .. }), "{failure}");
}
