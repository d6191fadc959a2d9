//! The folder of a store: what is opened, what is refused, and what people are told.

mod common;

use std::fs;
use std::path::Path;

use common::{Scratch, commit, everything, get, options, put, refusal, remove};
use lockbox_store::StoreFailure;
use lockbox_store_disk::{Backend, DiskStore, Options, recorded_backend};
use lockbox_store_redb::Redb;
use lockbox_store_sled::Sled;

on_each_backend! {
    what_was_acknowledged_is_there_after_reopening,
    a_clone_keeps_the_store_open_and_the_last_one_frees_it,
    rejects_a_second_process_and_names_the_first,
    rejects_a_store_that_was_never_finished,
    rejects_a_store_of_another_format,
    rejects_a_folder_that_is_not_there_and_does_not_make_it,
    rejects_creating_over_anything,
    an_empty_folder_is_as_good_as_none,
    rejects_a_cache_that_was_never_measured,
}

fn create<B: Backend>(dir: &Path) -> StoreFailure {
    DiskStore::<B>::create(dir, &options()).expect_err("refused")
}

fn what_was_acknowledged_is_there_after_reopening<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let mut expected = Vec::new();
    for session in 0..5_u8 {
        let store = scratch.open();
        assert_eq!(everything(&store), expected);
        let key = session.to_string();
        let value = vec![session; 30_000 * usize::from(session % 2) + 5];
        commit(&store, put(&key, &value));
        expected.push((key.into(), value));
    }
    let store = scratch.open();
    commit(&store, remove("1"));
    drop(store);
    expected.remove(1);
    assert_eq!(everything(&scratch.open()), expected);
}

fn a_clone_keeps_the_store_open_and_the_last_one_frees_it<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let store = scratch.open();
    let clone = store.clone();
    drop(store);
    assert!(matches!(refusal::<B>(&scratch.store), StoreFailure::Open { .. }));
    commit(&clone, put("k", "v"));
    drop(clone);
    assert_eq!(get(&scratch.open(), "k"), Some(b"v".to_vec()));
}

fn rejects_a_second_process_and_names_the_first<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let _store = scratch.open();
    let message = refusal::<B>(&scratch.store).to_string();
    assert!(
        message.contains(&format!("process {} has it open", std::process::id())),
        "{message}"
    );
    assert!(message.contains("stop that process"), "{message}");
}

fn rejects_a_store_that_was_never_finished<B: Backend>() {
    let scratch = Scratch::<B>::created();
    fs::remove_file(scratch.store.join("READY")).expect("removes");
    let message = refusal::<B>(&scratch.store).to_string();
    assert!(message.contains("never finished"), "{message}");
    assert!(
        message.contains("remove the folder and create the store again"),
        "{message}"
    );
}

fn rejects_a_store_of_another_format<B: Backend>() {
    let scratch = Scratch::<B>::created();
    fs::write(
        scratch.store.join("READY"),
        format!("lockbox-store-{0} 2 {0}\n", B::FORMAT.name),
    )
    .expect("writes");
    assert!(refusal::<B>(&scratch.store).to_string().contains("does not know"));
}

fn rejects_a_folder_that_is_not_there_and_does_not_make_it<B: Backend>() {
    let scratch = Scratch::<B>::new();
    assert!(
        refusal::<B>(&scratch.store)
            .to_string()
            .contains("create the store first")
    );
    assert!(!scratch.store.exists());
}

fn rejects_creating_over_anything<B: Backend>() {
    let scratch = Scratch::<B>::created();
    assert!(
        create::<B>(&scratch.store)
            .to_string()
            .contains("a store in it already")
    );
    let foreign = Scratch::<B>::new();
    fs::create_dir(&foreign.store).expect("makes");
    fs::write(foreign.store.join("letter"), "dear").expect("writes");
    assert!(create::<B>(&foreign.store).to_string().contains("empty folder"));
    assert_eq!(fs::read_dir(&foreign.store).expect("lists").count(), 1);
}

fn an_empty_folder_is_as_good_as_none<B: Backend>() {
    let scratch = Scratch::<B>::new();
    fs::create_dir(&scratch.store).expect("makes");
    DiskStore::<B>::create(&scratch.store, &options()).expect("creates");
    assert_eq!(everything(&scratch.open()), []);
}

fn rejects_a_cache_that_was_never_measured<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let cache = |cache_bytes| Options {
        cache_bytes,
        ..options()
    };
    for bytes in [0, 65 * 1024 * 1024] {
        let failure = DiskStore::<B>::open(&scratch.store, lockbox_store::Media::default(), &cache(bytes))
            .err()
            .expect("refused");
        assert!(failure.to_string().contains("1 MiB to 64 MiB"));
    }
}

#[test]
fn rejects_a_store_of_another_backend_and_names_both() {
    let scratch = Scratch::<Redb>::created();
    let message = refusal::<Sled>(&scratch.store).to_string();
    assert!(message.contains("kept by redb, and sled was asked for"), "{message}");
    assert!(message.contains("lockbox store convert"), "{message}");
    let recorded = recorded_backend(&scratch.store).expect("reads");
    assert_eq!(recorded.as_deref(), Some("redb"));
    assert_eq!(fs::read_dir(&scratch.store).expect("lists").count(), 3);
}
