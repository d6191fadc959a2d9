//! The engine on a real store in a folder of its own.

use std::fs::File;
use std::path::Path;

use lockbox_authz::KeyId;
use lockbox_core::keys::KeyRequest;
use lockbox_core::slots::SlotSecret;
use lockbox_store_disk::Options;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use zeroize::Zeroizing;

use super::*;

/// Held by a test that measures the room on the disk, and takes some.
static DISK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn secret() -> SlotSecret {
    SlotSecret::KeyFile(Zeroizing::new(vec![7; 32]))
}

fn engine() -> Arc<Engine> {
    Engine::new(Arc::new(|why| panic!("stopped: {why}")))
}

fn open(engine: &Engine, folder: &Folder) {
    let header = folder.read_header().unwrap();
    let (_, root) = header.open(&secret()).unwrap();
    engine.open(folder, header, root).unwrap();
}

async fn create(engine: &Arc<Engine>) -> Result<KeyId, StepError<LockboxError>> {
    let step = engine.step(|lockbox, now_ms, rng| lockbox.create_key(KeyRequest::default(), None, now_ms, rng));
    step.await.map(|info| info.key_id)
}

async fn destroy(engine: &Arc<Engine>, key: KeyId) {
    let step = engine.step(move |lockbox, now_ms, rng| lockbox.destroy_key(key, false, now_ms, rng));
    step.await.unwrap();
}

async fn keys(engine: &Arc<Engine>) -> usize {
    let keys = engine.read(|lockbox| lockbox.keys_after(None, 1_000).map(|keys| keys.len()));
    keys.await.unwrap().unwrap()
}

#[tokio::test]
async fn sealed_is_silent_and_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = Folder::init(&dir.path().join("box"), "a", &secret()).unwrap();
    let engine = engine();
    assert!(matches!(create(&engine).await, Err(StepError::Sealed)));
    open(&engine, &folder);
    create(&engine).await.unwrap();
    engine.seal();
    assert!(matches!(create(&engine).await, Err(StepError::Sealed)));
    assert_eq!(engine.read(|_| ()).await, Err(Sealed));
    assert!(engine.cluster().is_err());
    open(&engine, &folder);
    assert_eq!(keys(&engine).await, 1);
}

/// Whoever asks for the destroy again is told that it was done, so the next start has to finish it.
#[tokio::test]
async fn a_destroy_that_was_cut_off_between_the_slots_of_its_root_leaves_no_old_root() {
    const SLOT: usize = 4_096;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("box");
    let (folder, _) = Folder::init(&path, "a", &secret()).unwrap();
    let engine = engine();
    open(&engine, &folder);
    let key = create(&engine).await.unwrap();
    engine.seal();
    let old = std::fs::read(path.join("root")).unwrap();
    open(&engine, &folder);
    destroy(&engine, key).await;
    engine.seal();
    // The second slot was written, and power failed before the first was.
    let mut root = std::fs::read(path.join("root")).unwrap();
    root[..SLOT].copy_from_slice(&old[..SLOT]);
    std::fs::write(path.join("root"), root).unwrap();
    open(&engine, &folder);
    destroy(&engine, key).await;
    engine.seal();
    let root = std::fs::read(path.join("root")).unwrap();
    assert!(
        root[..SLOT] != old[..SLOT],
        "what opens the destroyed key is still there"
    );
    assert_eq!(folder.images().unwrap().root.len(), 1);
}

/// Destroying is possible on a full disk, and nothing that was refused is there afterwards, in memory or in the store.
#[tokio::test]
async fn a_full_disk_refuses_new_keys_and_goes_on() {
    let _disk = DISK.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_that_can_be_full(dir.path());
    let engine = engine();
    open(&engine, &folder);
    let (kept, doomed) = (create(&engine).await.unwrap(), create(&engine).await.unwrap());

    let filler = fill(dir.path());
    // The store measures once a second, and whenever it has written.
    destroy(&engine, doomed).await;
    assert!(matches!(
        create(&engine).await,
        Err(StepError::NoRoom(StoreFailure::NearlyFull))
    ));
    assert!(matches!(engine.check_room().await, Err(StepError::NoRoom(_))));
    assert_eq!(
        (
            keys(&engine).await,
            engine.read(lockbox_core::lockbox::Lockbox::key_count).await.unwrap()
        ),
        (1, 1)
    );
    destroy(&engine, kept).await;

    filler.set_len(0).unwrap();
    destroy(&engine, kept).await;
    create(&engine).await.unwrap();
    assert_eq!(engine.read(lockbox_core::lockbox::Lockbox::key_count).await.unwrap(), 1);
    engine.seal();
    open(&engine, &folder);
    assert_eq!(keys(&engine).await, 1);
}

/// A full disk is no reason to let transfers go on with a damaged store, nor does what is refused forget what a scan has found.
#[tokio::test]
async fn a_full_disk_keeps_no_alarm_of_damage_from_stopping_transfers() {
    let _disk = DISK.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_that_can_be_full(dir.path());
    let engine = engine();
    open(&engine, &folder);
    let doomed = create(&engine).await.unwrap();
    while engine.verify_page(100).await.unwrap().unwrap().is_none() {}
    let filler = fill(dir.path());
    // The store measures whenever it has written.
    destroy(&engine, doomed).await;

    let found = Verification {
        damaged_count: 1,
        ..Verification::default()
    };
    engine.note_verification(found).await.unwrap();
    let save = |engine: &Arc<Engine>| {
        let engine = Arc::clone(engine);
        async move { engine.step(|lockbox, _, rng| lockbox.save_alarms(rng)).await }
    };
    for _ in 0..2 {
        assert!(matches!(save(&engine).await, Err(StepError::NoRoom(_))));
        assert_eq!(engine.cluster().unwrap().alarm_count, 1);
    }
    assert!(
        engine.read(Lockbox::knows_every_key).await.unwrap(),
        "what was refused has the store scanned again"
    );

    filler.set_len(0).unwrap();
    destroy(&engine, doomed).await;
    save(&engine).await.unwrap();
    engine.seal();
    open(&engine, &folder);
    assert_eq!(engine.cluster().unwrap().alarm_count, 1);
}

/// Whoever waits for a change would otherwise miss it, and the store and memory would part.
#[tokio::test]
async fn a_step_is_taken_to_its_end_when_its_caller_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = Folder::init(&dir.path().join("box"), "a", &secret()).unwrap();
    let engine = engine();
    open(&engine, &folder);
    let mut activity = engine.watch_activity();
    let (running, is_running) = oneshot::channel();
    let caller = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move {
            let step = engine.step(|lockbox, now_ms, rng| {
                let _ = running.send(());
                lockbox.create_key(KeyRequest::default(), None, now_ms, rng)
            });
            step.await.map(drop)
        }
    });
    is_running.await.unwrap();
    caller.abort();
    activity.changed().await.unwrap();
    assert_eq!(keys(&engine).await, 1);
}

/// The waiting is for the reader's own sight only: with nothing under way there is nothing to wait for.
#[tokio::test]
async fn what_is_read_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = Folder::init(&dir.path().join("box"), "a", &secret()).unwrap();
    let engine = engine();
    open(&engine, &folder);
    let seen = |lockbox: &Lockbox| lockbox.keys_after(None, 10).map(|keys| keys.len());
    assert_eq!(engine.read_durable(seen).await.unwrap().unwrap(), 0);
    create(&engine).await.unwrap();
    assert_eq!(engine.read_durable(seen).await.unwrap().unwrap(), 1);
    engine.seal();
    open(&engine, &folder);
    assert_eq!(engine.read_durable(seen).await.unwrap().unwrap(), 1);
}

const MIB: u64 = 1024 * 1024;

/// For its store the disk is full once 256 MiB more are taken.
fn folder_that_can_be_full(dir: &Path) -> Folder {
    let (folder, _) = Folder::init(&dir.join("box"), "a", &secret()).unwrap();
    folder.with_options(Options {
        low_water_bytes: available_bytes(dir) - 256 * MIB,
        ..Options::default()
    })
}

/// Until the file is cut.
fn fill(dir: &Path) -> File {
    let filler = File::create(dir.join("filler")).unwrap();
    fallocate(&filler, FallocateFlags::empty(), 0, 512 * MIB).unwrap();
    filler
}

fn available_bytes(path: &Path) -> u64 {
    let stat = statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}
