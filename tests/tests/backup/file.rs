//! The backup's file: one moment in it, under a secret, whole or refused.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lockbox_authz::KeyId;

use super::{Backup, Scene, assert_nothing_made, write_private};

/// More pages than one, so that much happens while they are read.
const MANY: usize = 1_500;

#[test]
fn a_backup_shows_one_moment_although_keys_come_and_go_meanwhile() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    let before: BTreeSet<KeyId> = a.create_keys(MANY).into_iter().collect();
    let stop = AtomicBool::new(false);
    // One after the other: at each moment the keys are a beginning of this list, without a beginning of the same list.
    let (mut made, backup) = thread::scope(|scope| {
        let working = scope.spawn(|| {
            let mut made = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                made.extend(a.create_keys(1));
                if made.len() % 2 == 0 {
                    a.destroy(made[made.len() / 2 - 1]).expect("nobody uses it");
                }
            }
            made
        });
        let backups: Vec<_> = (0..3).map(|n| scene.back_up(&a, &format!("backup-{n}"))).collect();
        stop.store(true, Ordering::Relaxed);
        (working.join().expect("it does not panic"), backups)
    });
    made.push(a.create_key("after"));
    for backup in &backup {
        let listed = backup.listed();
        let keys_in = |state: &str| -> BTreeSet<KeyId> {
            let entries = listed["entries"].as_array().expect("a list").iter();
            let of_state = entries.filter(|entry| entry["state"] == state);
            of_state
                .map(|entry| entry["key_id"].as_str().expect("text").parse().expect("an id"))
                .collect()
        };
        let (held, destroyed) = (keys_in("held"), keys_in("destroyed"));
        assert_eq!(listed["keys"], held.len());
        assert!(before.is_subset(&held), "a key that was there all the time is missing");
        let known = |key: &KeyId| held.contains(key) || destroyed.contains(key);
        let created = made.iter().take_while(|key| known(key)).count();
        let gone = made.iter().take_while(|key| destroyed.contains(*key)).count();
        assert_eq!(
            made[created..].iter().filter(|key| known(key)).count(),
            0,
            "a later key without an earlier one"
        );
        assert_eq!(destroyed.len(), gone, "a later destroy without an earlier one");
        assert_eq!(held.len(), MANY + created - gone);
        assert!(
            (created / 2).abs_diff(gone) <= 1,
            "{created} created and {gone} destroyed were at no moment"
        );
    }
}

#[test]
fn rejects_a_wrong_secret() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    a.create_key("volume");
    let backup = scene.back_up(&a, "backup");
    let wrong = scene.cluster.folder().join("wrong");
    write_private(&wrong, &[1; 48]);
    let verified = backup.verify_with(&[], &[OsStr::new("--key-file"), wrong.as_os_str()]);
    assert_eq!(verified.status.code(), Some(77), "{}", verified.stderr);
    let args = [OsStr::new("--backup-key-file"), wrong.as_os_str()];
    let (c, made) = scene.cluster.restore("c", &backup.path, &args);
    assert_nothing_made(&c, &made, 77, "no slot opens with it");
    // What a backup opens with is its own: the lockbox's key file is not it.
    let own = a.key_file();
    let verified = backup.verify_with(&[], &[OsStr::new("--key-file"), own.as_os_str()]);
    assert_eq!(verified.status.code(), Some(77), "{}", verified.stderr);
}

#[test]
fn a_passphrase_opens_it_too() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    let key = a.create_key("volume");
    let passphrase = scene.cluster.folder().join("passphrase");
    write_private(&passphrase, b"correct horse battery staple\n");
    let out = scene.cluster.folder().join("backup");
    let args = ["backup", "create", "--passphrase-file"].map(OsStr::new);
    let args = args
        .into_iter()
        .chain([passphrase.as_os_str(), OsStr::new("--out"), out.as_os_str()]);
    a.command(args).expect_success("backup create");
    let args = [OsStr::new("--backup-passphrase-file"), passphrase.as_os_str()];
    let (c, made) = scene.cluster.restore("c", &out, &args);
    made.expect_success("backup restore");
    assert_eq!(c.reveal(key), a.reveal(key));
}

#[test]
fn rejects_a_backup_that_was_damaged_anywhere() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    a.create_keys(600);
    let backup = scene.back_up(&a, "backup");
    let whole = fs::read(&backup.path).expect("it was written");
    let other = fs::read(&scene.back_up(&a, "other").path).expect("it was written");
    let frames = frames(&whole);
    assert!(frames.len() > 2, "too few frames to exchange");
    let damaged = scene.cluster.folder().join("damaged");
    let backup = Backup {
        scene: &scene,
        path: damaged.clone(),
    };
    let mut number = 0;
    let mut refused = |bytes: &[u8], what: &str| {
        fs::write(&damaged, bytes).expect("the folder is ours");
        let verified = backup.verify(&[]);
        assert!(!verified.status.success(), "{what} was not found");
        number += 1;
        if number % 4 == 1 {
            let (c, made) = backup.restore(&format!("c{number}"), &[]);
            assert!(!made.status.success(), "{what} was restored");
            assert!(!c.state_dir().exists(), "{what}: something was made");
        }
    };
    let begin = frames[0].start;
    for at in [
        0,
        9,
        11,
        14,
        40,
        begin - 30,
        begin - 1,
        begin,
        begin + 3,
        begin + 4,
        begin + 100,
        whole.len() - 1,
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        refused(&bytes, &format!("a flipped bit in byte {at}"));
    }
    for length in [
        0,
        7,
        11,
        begin,
        begin + 2,
        begin + 50,
        frames[0].end,
        frames[frames.len() - 2].end,
        whole.len() - 1,
    ] {
        refused(&whole[..length], &format!("an end after {length} bytes"));
    }
    let (first, second) = (frames[0].clone(), frames[1].clone());
    let swapped = [
        &whole[..begin],
        &whole[second.clone()],
        &whole[first],
        &whole[second.end..],
    ]
    .concat();
    refused(&swapped, "an exchange of frames");
    let repeated = [&whole[..second.end], &whole[second.clone()], &whole[second.end..]].concat();
    refused(&repeated, "a repeated frame");
    let dropped = [&whole[..begin], &whole[second.start..]].concat();
    refused(&dropped, "a frame that was left out");
    let others = self::frames(&other);
    refused(
        &[&whole[..second.start], &other[others[1].start..]].concat(),
        "the rest of another backup",
    );
    refused(
        &[&other[..others[0].start], &whole[begin..]].concat(),
        "another backup's header",
    );
    refused(&[&whole[..], &whole[begin..]].concat(), "something after its end");
    refused(b"-----BEGIN CERTIFICATE-----", "another file");
}

/// Where the frames of a backup file are, with their lengths.
fn frames(file: &[u8]) -> Vec<std::ops::Range<usize>> {
    let length = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes")) as usize;
    let mut at = 12 + length(8);
    let mut frames = Vec::new();
    while at < file.len() {
        let end = at + 4 + length(at);
        frames.push(at..end);
        at = end;
    }
    frames
}

#[test]
fn a_backup_replaces_no_file_and_leaves_none_behind_when_it_fails() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    let out = scene.cluster.folder().join("precious");
    fs::write(&out, "mine").expect("the folder is ours");
    let secret = scene.secret.as_os_str();
    let create = |out: &Path| {
        let args = ["backup", "create", "--key-file"].map(OsStr::new);
        a.command(args.into_iter().chain([secret, OsStr::new("--out"), out.as_os_str()]))
    };
    assert!(!create(&out).status.success());
    assert_eq!(fs::read(&out).expect("it is there"), b"mine");
    a.seal();
    let folder = scene.cluster.folder().join("out");
    fs::create_dir(&folder).expect("the folder is ours");
    let refused = create(&folder.join("backup"));
    assert!(refused.stderr.contains("sealed"), "{}", refused.stderr);
    assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 0);
}
