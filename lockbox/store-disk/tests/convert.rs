//! From one backend to the other and back, and into new files of the same: every record arrives, space comes back, and an
//! interruption costs nothing.

mod common;

use std::fmt::Arguments;
use std::fs;
use std::path::Path;

use common::{Scratch, commit, everything, options, put, refusal, remove};
use lockbox_store::{Batch, MAX_VALUE_BYTES, Pair, StoreFailure};
use lockbox_store_disk::{
    Backend, Converted, Copied, When, compact as compact_with, convert as convert_with, disk_bytes, recorded_backend,
};
use lockbox_store_redb::Redb;
use lockbox_store_sled::Sled;
use rustix::fs::{FallocateFlags, fallocate};

on_each_backend! {
    compaction_returns_space_and_keeps_every_record,
    a_store_is_compacted_at_start_only_if_it_is_wasteful,
    leftovers_of_an_interrupted_compaction_are_removed_at_the_next_start,
    rejects_compacting_a_store_that_is_open,
}

fn compact<B: Backend>(dir: &Path, progress: &mut dyn FnMut(Arguments<'_>)) -> Result<Copied, StoreFailure> {
    compact_with::<B>(dir, &options(), When::Always, progress).map(|copied| copied.expect("it was asked for"))
}

fn convert<A: Backend, B: Backend>(
    dir: &Path,
    options: &lockbox_store_disk::Options,
) -> Result<Converted, StoreFailure> {
    convert_with::<A, B>(dir, options, &mut |_| ())
}

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
    let Converted::Copied(copied) = converted else {
        panic!("nothing was copied");
    };
    assert_eq!(copied.records, 2_501);
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

/// Keys that come and go, as they do in a lockbox: each is put with what it needs and removed, and a row that all share is
/// replaced each time. At last as many are there as in a new store.
fn churned<B: Backend>(rounds: u32) -> Scratch<B> {
    let scratch = Scratch::<B>::created();
    let store = scratch.open();
    for round in 0..rounds {
        let key = |round: u32| round.to_be_bytes().repeat(4);
        let mut batch = Batch::new();
        batch.put(key(round), vec![round as u8; 600]);
        batch.put(b"shared".to_vec(), vec![round as u8; 30_000]);
        if round >= 100 {
            batch.remove(key(round - 100));
        }
        commit(&store, batch);
    }
    scratch
}

fn compaction_returns_space_and_keeps_every_record<B: Backend>() {
    let scratch = churned::<B>(600);
    let before = everything(&scratch.open());
    let fresh = Scratch::<B>::created();
    {
        let store = fresh.open();
        for (key, value) in &before {
            let mut batch = Batch::new();
            batch.put(key.clone(), value.clone());
            commit(&store, batch);
        }
    }
    let fresh_bytes = disk_bytes(&fresh.store).expect("measures");
    let mut told = Vec::new();
    let copied = compact::<B>(&scratch.store, &mut |progress| told.push(progress.to_string()));
    let Copied {
        records,
        bytes_before,
        bytes_after,
    } = copied.expect("compacts");
    assert_eq!(records, 101);
    assert!(
        bytes_after * 2 <= fresh_bytes * 3 && bytes_after < bytes_before,
        "{bytes_before} bytes became {bytes_after}, where {fresh_bytes} would do"
    );
    assert_eq!(disk_bytes(&scratch.store).expect("measures"), bytes_after);
    assert!(told.contains(&"copied 101 of 101 records".to_owned()), "{told:?}");
    assert!(everything(&scratch.open()) == before);
    let second = format!("{}-2", B::FORMAT.name);
    assert_eq!(names(&scratch.store), ["LOCK", "READY", &second]);
    compact::<B>(&scratch.store, &mut |_| ()).expect("compacts again");
    assert_eq!(names(&scratch.store), ["LOCK", "READY", B::FORMAT.name]);
    assert!(everything(&scratch.open()) == before);
}

fn a_store_is_compacted_at_start_only_if_it_is_wasteful<B: Backend>() {
    const WASTE: u64 = 257 * 1024 * 1024;
    let (scratch, pairs) = filled::<B>();
    let start = || compact_with::<B>(&scratch.store, &options(), When::IfWasteful, &mut |_| ()).expect("starts");
    assert_eq!(start(), None);
    let waste = fs::File::create(scratch.store.join(B::FORMAT.name).join("waste")).expect("creates");
    fallocate(&waste, FallocateFlags::empty(), 0, WASTE).expect("there is room");
    let copied = start().expect("it is wasteful");
    assert!(
        copied.bytes_before > WASTE && copied.bytes_after < WASTE / 4,
        "{copied:?}"
    );
    assert_eq!(start(), None);
    assert!(everything(&scratch.open()) == pairs);
}

fn leftovers_of_an_interrupted_compaction_are_removed_at_the_next_start<B: Backend>() {
    let (scratch, pairs) = filled::<B>();
    let left = scratch.store.join(format!("{}-2", B::FORMAT.name));
    fs::create_dir(&left).expect("makes");
    fs::write(left.join("db"), "left").expect("writes");
    assert!(everything(&scratch.open()) == pairs);
    assert!(!left.exists());
}

fn rejects_compacting_a_store_that_is_open<B: Backend>() {
    let (scratch, pairs) = filled::<B>();
    let store = scratch.open();
    let failure = compact::<B>(&scratch.store, &mut |_| ()).expect_err("refused");
    assert!(failure.to_string().contains("has it open"), "{failure}");
    assert!(everything(&store) == pairs);
}
