//! Disks that fill up or refuse to write.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{
    CHILD_STORE, Scratch, child_arguments, child_store, commit, everything, get, options, put, remove, tell, with_image,
};
use lockbox_store::{Batch, EffaceableRoot, Health, Media, Store, StoreFailure};
use lockbox_store_disk::{Backend, DiskStore, Options};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tempfile::TempDir;

on_each_backend! {
    a_nearly_full_disk_refuses_inserts_takes_destroys_and_recovers,
    a_batch_that_is_larger_than_the_room_is_refused_while_smaller_ones_are_taken,
    ballast_is_given_up_when_less_is_available_than_it_holds_and_made_again_later,
    a_write_that_fails_poisons_the_store_and_loses_nothing_acknowledged,
    writes_until_it_fails,
}

const MIB: u64 = 1024 * 1024;

/// A root that only counts as one.
struct Root;

impl EffaceableRoot for Root {
    fn replace(&mut self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// A folder on a file system that other programs leave alone, as far as there is one.
struct Disk {
    folder: TempDir,
    /// What may still be written, by the options of these tests. Other programs may write half as much meanwhile.
    room_bytes: u64,
    _alone: MutexGuard<'static, ()>,
}

/// The tests fill the same file system.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Disk {
    fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let folder = folder.expect("a temporary folder");
        Self {
            room_bytes: (available_bytes(folder.path()) / 4).min(64 * MIB),
            folder,
            _alone: alone,
        }
    }

    fn store(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    fn open<B: Backend>(&self, options: &Options) -> DiskStore<B> {
        let media = Media {
            root: Some(Box::new(Root)),
            anchor: None,
        };
        DiskStore::<B>::open(&self.store(), media, options).expect("opens")
    }

    fn options(&self) -> Options {
        Options {
            low_water_bytes: available_bytes(self.folder.path()) - self.room_bytes,
            ..options()
        }
    }

    /// Takes more than the options leave.
    fn fill(&self) {
        let file = File::create(self.hog()).expect("creates");
        fallocate(&file, FallocateFlags::empty(), 0, self.room_bytes / 2 * 3).expect("there is room");
    }

    fn empty(&self) {
        fs::remove_file(self.hog()).expect("removes");
    }

    fn hog(&self) -> std::path::PathBuf {
        self.folder.path().join("hog")
    }
}

fn available_bytes(folder: &Path) -> u64 {
    let disk = statvfs(folder).expect("a file system");
    disk.f_bavail * disk.f_frsize
}

fn a_nearly_full_disk_refuses_inserts_takes_destroys_and_recovers<B: Backend>() {
    let disk = Disk::new();
    let options = disk.options();
    DiskStore::<B>::create(&disk.store(), &options).expect("creates");
    let store = disk.open::<B>(&options);
    commit(&store, put("1", "first"));
    commit(&store, put("2", "second"));
    disk.fill();
    // The last reading of the room is at most a second old, so one more group may pass before the next.
    let _ = store.commit(put("3", "third"));

    assert_eq!(
        store.commit(put("1", "changed")).expect_err("refused"),
        StoreFailure::NearlyFull
    );
    assert_eq!(get(&store, "1"), Some(b"first".to_vec()));
    assert_eq!(store.health(), Health::NearlyFull);
    commit(&store, remove("1"));
    commit(&store, with_image(put("2", "wrapped anew"), "image"));
    assert_eq!(get(&store, "1"), None);
    assert_eq!(get(&store, "2"), Some(b"wrapped anew".to_vec()));

    disk.empty();
    commit(&store, put("4", "fourth"));
    assert_eq!(store.health(), Health::Ready);
}

fn a_batch_that_is_larger_than_the_room_is_refused_while_smaller_ones_are_taken<B: Backend>() {
    let disk = Disk::new();
    let options = disk.options();
    DiskStore::<B>::create(&disk.store(), &options).expect("creates");
    let store = disk.open::<B>(&options);
    let mut large = Batch::new();
    for number in 0..1_200_u16 {
        large.put(number.to_be_bytes().to_vec(), vec![0; 60_000]);
    }
    assert_eq!(store.commit(large).expect_err("refused"), StoreFailure::NearlyFull);
    commit(&store, put("small", ""));
    assert_eq!(everything(&store).len(), 1);
}

fn ballast_is_given_up_when_less_is_available_than_it_holds_and_made_again_later<B: Backend>() {
    let scratch = Scratch::<B>::new();
    let ballast = scratch.store.join("BALLAST");
    let open_with = |ballast_bytes| {
        let options = Options {
            ballast_bytes,
            ..options()
        };
        DiskStore::<B>::open(&scratch.store, Media::default(), &options).expect("opens")
    };
    let options = Options {
        ballast_bytes: MIB,
        ..options()
    };
    DiskStore::<B>::create(&scratch.store, &options).expect("creates");
    assert_eq!(fs::metadata(&ballast).expect("made").len(), MIB);
    commit(&open_with(MIB), put("1", ""));
    assert!(ballast.exists());

    // No disk has this much available.
    let store = open_with(u64::MAX);
    assert!(!ballast.exists());
    commit(&store, remove("1"));
    drop(store);
    assert!(!ballast.exists());

    // Another size is made at the next opening, and none is one of them.
    drop(open_with(2 * MIB));
    assert_eq!(fs::metadata(&ballast).expect("made").len(), 2 * MIB);
    drop(open_with(0));
    assert!(!ballast.exists());
}

/// A process that may not let a file grow past a limit gets the same error from the kernel as on a full disk.
fn a_write_that_fails_poisons_the_store_and_loses_nothing_acknowledged<B: Backend>() {
    let scratch = Scratch::<B>::created();
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("this program"))
        .args(child_arguments::<B>("writes_until_it_fails"))
        .env(CHILD_STORE, &scratch.store)
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    let numbers = |start: &str| {
        said.lines()
            .filter_map(|line| line.strip_prefix(start))
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers("failed ").len(), 1, "{said}");
    assert!(said.contains("that an acknowledged change survives"), "{said}");
    let acknowledged = numbers("acknowledged ");
    assert!(acknowledged.len() > 5, "{said}");
    let store = scratch.open();
    for number in acknowledged {
        assert_eq!(get(&store, number), Some(vec![7; 50_000]), "{number}");
    }
}

/// The child's part.
fn writes_until_it_fails<B: Backend>() {
    let Some(dir) = child_store() else { return };
    let store = common::open::<B>(&dir).expect("opens");
    let failure = (0..)
        .find_map(|number| {
            let outcome = store.commit(put(&number.to_string(), vec![7; 50_000]));
            if outcome.is_ok() {
                tell(&format!("acknowledged {number}"));
            }
            outcome.err()
        })
        .expect("the disk is finite");
    tell(&format!("failed {failure}"));
    assert_eq!(store.health(), Health::Poisoned(failure.clone()));
    assert_eq!(store.commit(remove("0")).expect_err("refused"), failure);
}
