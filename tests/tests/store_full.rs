//! A disk that is full: reads and destroys go on, inserts are refused, and a store opens on it.
//!
//! On a small ext4 of its own, where this user may mount one. Elsewhere a process that may not let files grow past a limit
//! stands in for it: the kernel's answer to a write is of the same kind, though the low-water mark has nothing to see.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use lockbox_store::{Batch, EffaceableRoot, Health, Media, Store, StoreFailure};
use lockbox_store_disk::{MIN_CACHE_BYTES, Options};
use lockbox_tests::storefaults::Kind;
use lockbox_tests::testkit::disk::Disk;
use lockbox_tests::testkit::eventually;

const VICTIM: &str = env!("CARGO_BIN_EXE_store-victim");

const MIB: u64 = 1024 * 1024;

/// Small, as the disk is.
const OPTIONS: Options = Options {
    cache_bytes: MIN_CACHE_BYTES,
    low_water_bytes: 12 * MIB,
    ballast_bytes: 6 * MIB,
};

/// A root that only counts as one.
struct Root;

impl EffaceableRoot for Root {
    fn replace(&mut self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

fn store_dir(disk: &Disk) -> PathBuf {
    disk.path().join("store")
}

fn open(kind: Kind, dir: &Path) -> Box<dyn Store> {
    let media = Media {
        root: Some(Box::new(Root)),
        anchor: None,
    };
    kind.open(dir, media, &OPTIONS).expect("opens")
}

fn insert(store: &dyn Store, number: u32) -> Result<(), StoreFailure> {
    let mut batch = Batch::new();
    for record in 0..20_u32 {
        batch.put(
            [number, record].map(u32::to_be_bytes).concat(),
            vec![number as u8; 1_000],
        );
    }
    store.commit(batch).map(drop)
}

/// Removes what one insert put, and wraps others anew, as destroying keys does.
fn destroy(store: &dyn Store, number: u32) -> Result<(), StoreFailure> {
    let mut batch = Batch::new();
    for record in 0..20_u32 {
        batch.remove([number, record].map(u32::to_be_bytes).concat());
        batch.put([0, record].map(u32::to_be_bytes).concat(), vec![number as u8; 1_000]);
    }
    batch.replace_root(number.to_be_bytes().to_vec());
    store.commit(batch).map(drop)
}

fn holds(store: &dyn Store, number: u32) -> bool {
    let pairs = store.scan(&number.to_be_bytes(), None, usize::MAX).expect("reads");
    pairs.len() == 20 && (number == 0 || pairs.iter().all(|(_, value)| *value == vec![number as u8; 1_000]))
}

fn fill_the_disk(kind: Kind) {
    let Some(disk) = Disk::mount(64 * MIB) else {
        return limit_the_files(kind);
    };
    kind.create(&store_dir(&disk), &OPTIONS).expect("creates");
    // What somebody will make room with in the end.
    let spare = disk.path().join("spare");
    fs::write(&spare, vec![0xA5; 16 * MIB as usize]).expect("there is room");
    let store = open(kind, &store_dir(&disk));
    // The store's own doing: it stops while there is room for destroys.
    let refused = (1..).find_map(|number| Some(number).zip(insert(store.as_ref(), number).err()));
    let (inserted, failure) = refused.expect("the disk is finite");
    assert_eq!(failure, StoreFailure::NearlyFull);
    assert!(inserted > 100, "{inserted} batches of 20 KB are not much for this disk");
    assert!(holds(store.as_ref(), inserted - 1));
    destroy(store.as_ref(), 1).expect("destroys where inserts are refused");

    // Another program's doing, down to the last byte. Destroys go on in what the ballast held.
    disk.fill();
    destroy(store.as_ref(), 2).expect("destroys on a full disk");
    assert_eq!(store.health(), Health::NearlyFull);
    assert_eq!(
        insert(store.as_ref(), 9_999).expect_err("refused"),
        StoreFailure::NearlyFull
    );
    assert!((3..inserted).all(|number| holds(store.as_ref(), number)));
    assert!(!holds(store.as_ref(), 1) && !holds(store.as_ref(), 2));
    drop(store);

    // Only now, with the ballast given up, is there really nothing left; and what was given up is enough to open once more,
    // and after being killed.
    let store = open(kind, &store_dir(&disk));
    assert!((3..inserted).all(|number| holds(store.as_ref(), number)));
    destroy(store.as_ref(), 3).expect("destroys on a full disk");
    assert_eq!(
        insert(store.as_ref(), 9_999).expect_err("refused"),
        StoreFailure::NearlyFull
    );

    disk.empty();
    fs::remove_file(&spare).expect("removes");
    insert(store.as_ref(), 10_000).expect("there is room again");
    assert_eq!(store.health(), Health::Ready);
    // Made after the answer, which does not wait for it.
    eventually("it has ballast for the next time", || {
        store_dir(&disk).join("BALLAST").exists().then_some(())
    });
    drop(store);
    let store = open(kind, &store_dir(&disk));
    assert!(holds(store.as_ref(), 10_000) && (4..inserted).all(|number| holds(store.as_ref(), number)));
    println!("{kind:?}: {inserted} batches on a disk of 64 MiB; it was full, and recovered by itself");
}

/// A compaction that would fill the disk is not begun. The store stays as it is.
fn rejects_a_compaction_without_room(kind: Kind) {
    const BATCHES: u32 = 200;
    // A limit on files has no free space to measure.
    let Some(disk) = Disk::mount(64 * MIB) else {
        return;
    };
    let dir = store_dir(&disk);
    kind.create(&dir, &OPTIONS).expect("creates");
    let store = open(kind, &dir);
    for number in 0..BATCHES {
        insert(store.as_ref(), number).expect("there is room");
    }
    drop(store);
    // Opening takes a little room, and the copy three times the 4 MB of records.
    let spare = disk.path().join("spare");
    fs::write(&spare, vec![0xA5; 6 * MIB as usize]).expect("there is room");
    disk.fill();
    fs::remove_file(&spare).expect("removes");
    let refused = kind.compact(&dir).expect_err("there is no room");
    assert!(refused.to_string().contains("no room to copy it"), "{refused}");
    disk.empty();
    kind.compact(&dir).expect("there is room");
    let store = open(kind, &dir);
    assert!((0..BATCHES).all(|number| holds(store.as_ref(), number)));
}

#[test]
fn sled_is_not_compacted_without_room() {
    rejects_a_compaction_without_room(Kind::Sled);
}

#[test]
fn redb_is_not_compacted_without_room() {
    rejects_a_compaction_without_room(Kind::Redb);
}

/// A store that was killed has to repair itself when it opens, which writes. Its ballast is what it does that in.
fn open_after_a_kill_on_a_full_disk(kind: Kind) {
    let Some(disk) = Disk::mount(64 * MIB) else {
        return limit_the_files(kind);
    };
    let dir = disk.path().join("run");
    fs::create_dir(&dir).expect("makes a folder");
    let said = |arguments: &[&str]| {
        let output = Command::new(VICTIM).args(arguments).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let path = dir.to_str().expect("text");
    said(&["create", kind.name(), path]);
    let mut writer = Command::new(VICTIM)
        .args(["write", kind.name(), path, "1", "0"])
        .spawn()
        .expect("starts");
    let acknowledged = || fs::read_to_string(dir.join("acks")).unwrap_or_default().lines().count();
    while acknowledged() < 200 {
        std::thread::yield_now();
    }
    writer.kill().expect("runs");
    writer.wait().expect("waits");
    let acknowledged = acknowledged();
    // The writer kept no ballast; this is what a daemon would have had.
    fs::write(dir.join("store/BALLAST"), vec![0xA5; OPTIONS.ballast_bytes as usize]).expect("there is room");
    File::open(dir.join("store/BALLAST"))
        .and_then(|file| file.sync_all())
        .expect("syncs");
    disk.fill();
    let store = open(kind, &dir.join("store"));
    assert_eq!(
        insert(store.as_ref(), 9_999).expect_err("refused"),
        StoreFailure::NearlyFull
    );
    let pairs = store.scan(b"", None, usize::MAX).expect("reads");
    let found = lockbox_tests::storefaults::workload::judge(&pairs, 1).expect("whole batches");
    assert!(
        found[0] as usize >= acknowledged,
        "{acknowledged} acknowledged, {found:?} there"
    );
    destroy(store.as_ref(), 3).expect("destroys on a full disk");
}

/// Without a file system of its own: every file is limited to some size, below which the store is filled until it fails.
fn limit_the_files(kind: Kind) {
    eprintln!("no file system can be mounted here: files are limited instead");
    let place = tempfile::tempdir().expect("a temporary folder");
    let path = place.path().to_str().expect("text");
    let create = Command::new(VICTIM)
        .args(["create", kind.name(), path])
        .status()
        .expect("runs");
    assert!(create.success());
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\""])
        .args([VICTIM, "write", kind.name(), path, "40", "0"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&limited.stdout);
    assert_eq!(
        limited.status.code(),
        Some(lockbox_tests::storefaults::victim::FAILED),
        "{said}"
    );
    assert!(said.contains("going on would break the promise"), "{said}");
    let acks = lockbox_tests::storefaults::child::acknowledged(place.path(), 40);
    let store = kind
        .open(&place.path().join("store"), Media::default(), &OPTIONS)
        .expect("opens when there is room");
    let pairs = store.scan(b"", None, usize::MAX).expect("reads");
    let found = lockbox_tests::storefaults::workload::judge(&pairs, 40).expect("whole batches");
    assert!(
        found.iter().zip(&acks).all(|(found, acked)| found >= acked),
        "{acks:?} acknowledged, {found:?} there"
    );
}

#[test]
fn sled_goes_on_with_a_full_disk() {
    fill_the_disk(Kind::Sled);
}

#[test]
fn redb_goes_on_with_a_full_disk() {
    fill_the_disk(Kind::Redb);
}

#[test]
fn sled_opens_after_a_kill_on_a_full_disk() {
    open_after_a_kill_on_a_full_disk(Kind::Sled);
}

#[test]
fn redb_opens_after_a_kill_on_a_full_disk() {
    open_after_a_kill_on_a_full_disk(Kind::Redb);
}

/// Where a file system can be mounted, the stand-in is not used; it must work all the same.
#[test]
fn a_limit_on_files_poisons_either_store() {
    limit_the_files(Kind::Sled);
    limit_the_files(Kind::Redb);
}
