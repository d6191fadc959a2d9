//! The contract of `Store`, held by the store in memory and by those on disk alike.

mod common;

use std::sync::mpsc;

use common::{Scratch, commit, everything, get, put, remove};
use lockbox_store::{
    Batch, Health, MAX_BATCH_OPERATIONS, MAX_KEY_BYTES, MAX_VALUE_BYTES, MemoryStore, Store, StoreFailure,
};
use lockbox_store_redb::Redb;
use lockbox_store_sled::Sled;

/// Runs a test on each store, a new one each time.
fn on_each_store(test: impl Fn(&dyn Store)) {
    test(&MemoryStore::new());
    test(&Scratch::<Sled>::created().open());
    test(&Scratch::<Redb>::created().open());
}

fn keys(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    store
        .scan(prefix.as_bytes(), after.map(str::as_bytes), limit)
        .expect("scans")
        .into_iter()
        .map(|(key, _)| String::from_utf8(key).expect("the test's keys are text"))
        .collect()
}

#[test]
fn a_batch_is_in_effect_once_submitted_and_durable_once_answered() {
    on_each_store(|store| {
        let (sender, answers) = mpsc::channel();
        let batch = put("a", "1");
        let ticket = batch.ticket();
        store.submit(
            batch,
            Box::new(move |outcome| sender.send(outcome).expect("the test waits")),
        );
        assert_eq!(get(store, "a"), Some(b"1".to_vec()));
        assert_eq!(answers.recv().expect("answered").expect("durable").ticket(), ticket);
        assert_eq!(store.health(), Health::Ready);
    });
}

#[test]
fn a_batch_is_answered_exactly_once_and_in_the_order_of_submission() {
    on_each_store(|store| {
        let (sender, answers) = mpsc::channel();
        let mut tickets = Vec::new();
        for number in 0..500 {
            let batch = put("same key", number.to_string());
            tickets.push(batch.ticket());
            let sender = sender.clone();
            store.submit(
                batch,
                Box::new(move |outcome| sender.send(outcome.expect("durable").ticket()).expect("the test waits")),
            );
        }
        drop(sender);
        assert_eq!(answers.iter().collect::<Vec<_>>(), tickets);
        assert_eq!(get(store, "same key"), Some(b"499".to_vec()));
    });
}

#[test]
fn later_operations_of_a_batch_override_earlier_ones() {
    on_each_store(|store| {
        let long = vec![7; MAX_VALUE_BYTES];
        let mut batch = Batch::new();
        batch.put(b"kept".to_vec(), b"old".to_vec());
        batch.remove(b"kept".to_vec());
        batch.put(b"kept".to_vec(), b"new".to_vec());
        batch.put(b"gone".to_vec(), long.clone());
        batch.remove(b"gone".to_vec());
        batch.put(b"short".to_vec(), long.clone());
        batch.put(b"short".to_vec(), b"s".to_vec());
        batch.put(b"long".to_vec(), b"s".to_vec());
        batch.put(b"long".to_vec(), long.clone());
        commit(store, batch);
        let expected = [("kept", b"new".to_vec()), ("long", long), ("short", b"s".to_vec())];
        assert_eq!(everything(store), expected.map(|(key, value)| (key.into(), value)));
    });
}

#[test]
fn a_scan_yields_the_keys_of_its_prefix_in_order_and_in_pages() {
    on_each_store(|store| {
        let mut batch = Batch::new();
        for key in ["b", "ab", "a/3", "a", "a/1", "a/", "a0", "a/2", ""] {
            batch.put(key.into(), key.into());
        }
        commit(store, batch);
        assert_eq!(
            keys(store, "", None, 99),
            ["", "a", "a/", "a/1", "a/2", "a/3", "a0", "ab", "b"]
        );
        assert_eq!(keys(store, "a/", None, 2), ["a/", "a/1"]);
        assert_eq!(keys(store, "a/", Some("a/1"), 2), ["a/2", "a/3"]);
        assert_eq!(keys(store, "a/", Some("a/3"), 2), [""; 0]);
        // A key that is not there, and keys on either side of the prefix, are places to go on from as well.
        assert_eq!(keys(store, "a/", Some("a/15"), 9), ["a/2", "a/3"]);
        assert_eq!(keys(store, "a/", Some("a"), 9), ["a/", "a/1", "a/2", "a/3"]);
        assert_eq!(keys(store, "a/", Some("b"), 9), [""; 0]);
        assert_eq!(keys(store, "c", None, 9), [""; 0]);
        assert_eq!(keys(store, "", None, 0), [""; 0]);
    });
}

#[test]
fn keys_of_any_bytes_are_told_apart() {
    on_each_store(|store| {
        let mut keys = vec![
            vec![],
            vec![0],
            vec![0, 0],
            vec![255],
            vec![255, 255],
            vec![b'k'],
            vec![b'p', 0],
            vec![1],
        ];
        keys.push(vec![255; MAX_KEY_BYTES]);
        let long = |key: &[u8]| [key, &[9; 9_000]].concat();
        let mut batch = Batch::new();
        for key in &keys {
            batch.put(key.clone(), long(key));
        }
        commit(store, batch);
        keys.sort();
        let expected: Vec<_> = keys.iter().map(|key| (key.clone(), long(key))).collect();
        assert_eq!(everything(store), expected);
        for key in &keys {
            assert_eq!(store.get(key).expect("reads"), Some(long(key)));
            let mut batch = Batch::new();
            batch.remove(key.clone());
            commit(store, batch);
            assert_eq!(store.get(key).expect("reads"), None);
        }
        assert_eq!(everything(store), []);
    });
}

#[test]
fn a_value_of_any_taken_length_replaces_any_other() {
    on_each_store(|store| {
        let lengths = [0, 1, 4095, 4096, 4097, 8192, 8193, MAX_VALUE_BYTES - 1, MAX_VALUE_BYTES];
        for before in lengths {
            for after in lengths {
                store.submit(put("k", vec![1; before]), Box::new(|outcome| assert!(outcome.is_ok())));
                commit(store, put("k", vec![2; after]));
                assert_eq!(everything(store), [(b"k".to_vec(), vec![2; after])]);
            }
        }
        commit(store, remove("k"));
        assert_eq!(everything(store), []);
    });
}

#[test]
fn rejects_what_is_out_of_bounds_with_nothing_changed() {
    on_each_store(|store| {
        commit(store, put("k", "kept"));
        let mut many = Batch::new();
        for number in 0..=MAX_BATCH_OPERATIONS {
            many.put(number.to_be_bytes().to_vec(), vec![]);
        }
        let mut large = put("k", "lost");
        large.put(b"l".to_vec(), vec![0; MAX_VALUE_BYTES + 1]);
        let mut long = put("k", "lost");
        long.remove(vec![0; MAX_KEY_BYTES + 1]);
        let refused = |batch| store.commit(batch).expect_err("refused");
        assert!(matches!(refused(many), StoreFailure::BatchTooLarge { .. }));
        assert!(matches!(refused(large), StoreFailure::ValueTooLarge { .. }));
        assert!(matches!(refused(long), StoreFailure::KeyTooLarge { .. }));
        assert_eq!(everything(store), [(b"k".to_vec(), b"kept".to_vec())]);
        assert_eq!(store.health(), Health::Ready);
    });
}

#[test]
fn the_largest_batch_is_taken() {
    on_each_store(|store| {
        let key = |number: usize| format!("{:03}/{number}", number * 7919 % 1000);
        let mut batch = Batch::new();
        for number in 0..MAX_BATCH_OPERATIONS {
            batch.put(key(number).into(), vec![number as u8; 1000]);
        }
        commit(store, batch);
        assert_eq!(everything(store).len(), MAX_BATCH_OPERATIONS);
        assert_eq!(get(store, &key(1234)), Some(vec![1234_usize as u8; 1000]));
    });
}

#[test]
fn a_completion_may_submit() {
    completion_may_submit(MemoryStore::new());
    completion_may_submit(Scratch::<Sled>::created().open());
    completion_may_submit(Scratch::<Redb>::created().open());
}

fn completion_may_submit(store: impl Store + Clone) {
    let (sender, answers) = mpsc::channel();
    for number in 0..20_u8 {
        let (again, sender) = (store.clone(), sender.clone());
        store.submit(
            put("first", [number]),
            Box::new(move |_| {
                // Together more than a store may want unsynced. One that made its own thread wait would hang.
                let next = put(&number.to_string(), vec![number; MAX_VALUE_BYTES]);
                again.submit(
                    next,
                    Box::new(move |outcome| sender.send(outcome.is_ok()).expect("the test waits")),
                );
            }),
        );
    }
    drop(sender);
    assert_eq!(answers.iter().collect::<Vec<_>>(), [true; 20]);
    assert_eq!(everything(&store).len(), 21);
}

#[test]
fn readers_see_whole_batches_only() {
    on_each_store(|store| {
        let values = |number: u32| {
            let mut batch = Batch::new();
            for key in 0..50_u32 {
                let length = if key % 10 == 0 { 10_000 } else { 100 };
                batch.put(key.to_be_bytes().to_vec(), number.to_be_bytes().repeat(length / 4));
            }
            batch
        };
        commit(store, values(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 1..100 {
                    commit(store, values(number));
                }
            });
            while !writer.is_finished() {
                let seen = everything(store);
                assert_eq!(seen.len(), 50);
                assert!(
                    seen.iter()
                        .all(|(_, value)| value[..4] == seen[0].1[..4] && value.ends_with(&seen[0].1[..4]))
                );
                let long = store.get(&0_u32.to_be_bytes()).expect("reads").expect("never removed");
                assert_eq!(long, long[..4].repeat(2500));
            }
        });
    });
}
