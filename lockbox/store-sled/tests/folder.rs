//! The folder of a store: what is opened, what is refused, and what people are told.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Scratch, commit, everything, open, put, refusal};
use lockbox_store::{Batch, MAX_VALUE_BYTES, Store, StoreFailure};

/// A store with enough in it that each of sled's files has content, closed.
fn filled() -> Scratch {
    let scratch = Scratch::created();
    for session in 0..2 {
        let store = scratch.open();
        for number in 0..40 {
            commit(&store, put(&format!("{session}/{number}"), vec![number; 700]));
        }
    }
    // sled writes its snapshot when it opens.
    drop(scratch.open());
    scratch
}

fn snapshot(scratch: &Scratch) -> std::path::PathBuf {
    fs::read_dir(scratch.store.join("sled"))
        .expect("lists")
        .map(|entry| entry.expect("lists").path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("snap."))
        })
        .expect("sled wrote a snapshot")
}

#[test]
fn a_snapshot_left_half_written_does_not_prevent_opening() {
    let scratch = filled();
    let left = scratch.sled("snap.FFFFFFFFFFFFFFF0.generating");
    fs::write(&left, "half").expect("writes");
    let store = scratch.open();
    assert_eq!(everything(&store).len(), 80);
    assert!(!left.exists());
}

#[test]
fn large_values_stay_in_the_one_file_that_is_synced() {
    let scratch = Scratch::created();
    {
        let store = scratch.open();
        for number in 0..60_u8 {
            commit(&store, put(&number.to_string(), vec![number; MAX_VALUE_BYTES]));
        }
        for number in 0..60_u8 {
            commit(&store, put(&number.to_string(), vec![number + 1; 4096]));
        }
    }
    let store = scratch.open();
    assert_eq!(everything(&store).len(), 60);
    assert_eq!(fs::read_dir(scratch.sled("blobs")).expect("lists").count(), 0);
}

#[test]
fn the_longest_keys_stay_in_the_one_file_that_is_synced() {
    let scratch = Scratch::created();
    let store = scratch.open();
    for group in 0..40_u32 {
        let mut batch = Batch::new();
        for number in 0..200_u32 {
            let name = (group * 200 + number).wrapping_mul(0x9E37_79B1).to_be_bytes();
            batch.put(name.repeat(80), vec![1; 50]);
        }
        commit(&store, batch);
    }
    assert_eq!(everything(&store).len(), 8000);
    assert_eq!(fs::read_dir(scratch.sled("blobs")).expect("lists").count(), 0);
}

type Damage = fn(&Scratch);
type SnapshotDamage = fn(&Path);

#[test]
fn rejects_files_that_are_missing_empty_or_nonsense_and_names_the_folder() {
    let damages: [(&str, Damage); 6] = [
        ("the log is missing", |at| {
            fs::remove_file(at.sled("db")).expect("removes")
        }),
        ("the log is empty", |at| fs::write(at.sled("db"), "").expect("writes")),
        ("the log is nonsense", |at| {
            fs::write(at.sled("db"), [0xA5; 600_000]).expect("writes")
        }),
        ("the settings are missing", |at| {
            fs::remove_file(at.sled("conf")).expect("removes")
        }),
        ("the settings are nonsense", |at| {
            fs::write(at.sled("conf"), "of no use at all").expect("writes")
        }),
        ("the settings differ", |at| {
            let text = String::from_utf8_lossy(&fs::read(at.sled("conf")).expect("reads")).replace("524288", "524289");
            fs::write(at.sled("conf"), text).expect("writes");
        }),
    ];
    for (name, damage) in damages {
        let scratch = filled();
        damage(&scratch);
        match refusal(&scratch.store) {
            StoreFailure::Damaged { place, .. } => assert_eq!(place, scratch.store.display().to_string(), "{name}"),
            other => panic!("{name}: {other}"),
        }
    }
}

/// Everything in a snapshot is in the log as well. Giving up the store for it would lose every key since the last backup.
#[test]
fn a_damaged_snapshot_is_set_aside_and_every_record_is_found() {
    let damages: [(&str, SnapshotDamage); 4] = [
        ("empty", |snapshot| fs::write(snapshot, "").expect("writes")),
        ("cut short", |snapshot| {
            let bytes = fs::read(snapshot).expect("reads");
            fs::write(snapshot, &bytes[..bytes.len() / 2]).expect("writes");
        }),
        ("cut to its checksum", |snapshot| {
            fs::write(snapshot, [0; 12]).expect("writes")
        }),
        ("changed", |snapshot| flip(snapshot, 20)),
    ];
    for (name, damage) in damages {
        let scratch = filled();
        let before = everything(&scratch.open());
        let path = snapshot(&scratch);
        damage(&path);
        let left = fs::read(&path).expect("reads");
        assert!(everything(&scratch.open()) == before, "{name}");
        let aside = path.with_file_name(format!(
            "damaged-{}",
            path.file_name().expect("a name").to_string_lossy()
        ));
        assert_eq!(fs::read(aside).expect("it was set aside"), left, "{name}");
        assert!(everything(&scratch.open()) == before, "{name}");
    }
}

/// A flipped bit may go unnoticed by sled, which is why the layers above seal each record and keep an anchor. But it
/// must never end the process.
#[test]
fn a_flipped_bit_anywhere_is_an_answer_and_not_a_panic() {
    let scratch = filled();
    let mut refused = 0;
    for file in ["db", "conf"]
        .map(|name| scratch.sled(name))
        .into_iter()
        .chain([snapshot(&scratch)])
    {
        let length = fs::metadata(&file).expect("is there").len().min(60_000);
        for offset in (0..length).step_by(1 + length as usize / 40) {
            let copy = Scratch::new();
            copy_folder(&scratch.store, &copy.store);
            flip(
                &copy.store.join(file.strip_prefix(&scratch.store).expect("within")),
                offset,
            );
            match open(&copy.store) {
                Ok(store) => drop(store.scan(b"", None, usize::MAX)),
                Err(StoreFailure::Damaged { .. }) => refused += 1,
                Err(other) => panic!("{}: {other}", file.display()),
            }
        }
    }
    assert!(refused > 0);
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("writes");
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("makes");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}
