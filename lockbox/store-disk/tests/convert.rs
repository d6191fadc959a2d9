//! From one backend to the other and back: every record arrives, and whatever interrupts it costs nothing.

mod common;

use std::fs;
use std::path::Path;

use common::{Scratch, commit, everything, options, put, refusal, remove};
use lockbox_store::{Batch, MAX_VALUE_BYTES, Pair, StoreFailure};
use lockbox_store_disk::{Backend, Converted, convert, recorded_backend};
use lockbox_store_redb::Redb;
use lockbox_store_sled::Sled;

/// More than is copied at a time, of all sizes, and some that were changed or removed.
fn filled<B: Backend>() -> (Scratch<B>, Vec<Pair>) {
    let scratch = Scratch::<B>::created();
    let store = scratch.open();
    for group in 0..5_u16 {
        let mut batch = Batch::new();
        for number in 0..500_u16 {
            let length = if number % 100 == 0 {
                5_000 * usize::from(group)
            } else {
                usize::from(number)
            };
            batch.put(
                [group, number].map(u16::to_be_bytes).concat(),
                vec![number as u8; length],
            );
        }
        commit(&store, batch);
    }
    commit(&store, put("", vec![1; MAX_VALUE_BYTES]));
    commit(&store, put("removed", ""));
    commit(&store, remove("removed"));
    let pairs = everything(&store);
    assert_eq!(pairs.len(), 2_501);
    (scratch, pairs)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("lists")
        .map(|entry| entry.expect("lists").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

fn arrives<A: Backend, B: Backend>() {
    let (scratch, pairs) = filled::<A>();
    let converted = convert::<A, B>(&scratch.store, &options()).expect("converts");
    assert_eq!(converted, Converted::Records(2_501));
    assert_eq!(names(&scratch.store), ["LOCK", "READY", B::FORMAT.name]);
    assert!(matches!(refusal::<A>(&scratch.store), StoreFailure::Open { .. }));
    let store = common::open::<B>(&scratch.store).expect("opens");
    assert!(everything(&store) == pairs);
    commit(&store, put("new", ""));
    drop(store);
    // Back again, with what came since.
    convert::<B, A>(&scratch.store, &options()).expect("converts");
    assert_eq!(everything(&scratch.open()).len(), 2_502);
}

#[test]
fn every_record_arrives_from_sled_in_redb_and_back() {
    arrives::<Sled, Redb>();
}

#[test]
fn every_record_arrives_from_redb_in_sled_and_back() {
    arrives::<Redb, Sled>();
}

#[test]
fn a_second_time_changes_nothing_and_removes_what_the_first_left() {
    let (scratch, pairs) = filled::<Sled>();
    convert::<Sled, Redb>(&scratch.store, &options()).expect("converts");
    fs::create_dir(scratch.store.join("sled")).expect("makes");
    fs::write(scratch.store.join("sled/db"), "left").expect("writes");
    let again = convert::<Sled, Redb>(&scratch.store, &options()).expect("converts");
    assert_eq!(again, Converted::Already);
    assert_eq!(names(&scratch.store), ["LOCK", "READY", "redb"]);
    assert!(everything(&common::open::<Redb>(&scratch.store).expect("opens")) == pairs);
}

#[test]
fn what_an_interrupted_attempt_left_is_not_used() {
    let (scratch, pairs) = filled::<Sled>();
    let (other, _) = filled::<Redb>();
    fs::rename(other.store.join("redb"), scratch.store.join("redb")).expect("moves");
    assert!(everything(&scratch.open()) == pairs);
    convert::<Sled, Redb>(&scratch.store, &options()).expect("converts");
    assert!(everything(&common::open::<Redb>(&scratch.store).expect("opens")) == pairs);
}

#[test]
fn rejects_a_store_that_is_open() {
    let (scratch, _) = filled::<Sled>();
    let _store = scratch.open();
    let failure = convert::<Sled, Redb>(&scratch.store, &options()).expect_err("refused");
    assert!(failure.to_string().contains("has it open"), "{failure}");
}

#[test]
fn rejects_a_folder_without_a_store() {
    let scratch = Scratch::<Sled>::new();
    convert::<Sled, Redb>(&scratch.store, &options()).expect_err("refused");
    assert!(!scratch.store.exists());
}

/// Damage that redb would not look at when it opens must not be taken along, with the only good traces of it removed.
#[test]
fn a_damaged_record_is_found_before_anything_is_changed() {
    let (scratch, _) = filled::<Redb>();
    let path = scratch.store.join("redb/db");
    let mut bytes = fs::read(&path).expect("reads");
    let value = [250; 250];
    let at = bytes
        .windows(250)
        .rposition(|window| window == value)
        .expect("is there");
    // Every copy, as it can't be seen from here which one counts.
    let copies: Vec<_> = (0..=at).filter(|&at| bytes[at..at + 250] == value).collect();
    for at in copies {
        bytes[at + 100] ^= 1;
    }
    fs::write(&path, bytes).expect("writes");
    let failure = convert::<Redb, Sled>(&scratch.store, &options()).expect_err("refused");
    assert!(matches!(failure, StoreFailure::Damaged { .. }), "{failure}");
    assert_eq!(
        recorded_backend(&scratch.store).expect("reads").as_deref(),
        Some("redb")
    );
    assert_eq!(names(&scratch.store), ["LOCK", "READY", "redb"]);
}
