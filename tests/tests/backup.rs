//! Backups, through the real binaries: made while the daemon goes on, verified, restored onto another machine.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lockbox_authz::KeyId;
use lockbox_rpc::api::local::TransferPolicy;
use lockbox_tests::testkit::canary::Canary;
use lockbox_tests::testkit::proxy::Direction;
use lockbox_tests::testkit::{Cluster, Lockbox, NewKey, Output, eventually};
use serde_json::Value;

/// More pages than one, so that much happens while they are read.
const MANY: usize = 1_500;

/// A cluster, and what a backup in it opens with.
struct Scene {
    cluster: Cluster,
    secret: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::start();
        let secret = cluster.folder().join("backup.key");
        write_private(&secret, &[0xB5; 48]);
        Self { cluster, secret }
    }

    /// Makes a backup, which nothing may be wrong with.
    fn back_up(&self, lockbox: &Lockbox, file: &str) -> Backup<'_> {
        let path = self.cluster.folder().join(file);
        let args = [
            OsStr::new("backup"),
            OsStr::new("create"),
            OsStr::new("--out"),
            path.as_os_str(),
        ];
        let secret = [OsStr::new("--key-file"), self.secret.as_os_str()];
        lockbox
            .command(args.into_iter().chain(secret))
            .expect_success("backup create");
        Backup { scene: self, path }
    }

    /// What became of a lockbox's keys, once the broker knows of these destroyed ones.
    fn evidence(&self, lockbox: &str, file: &str) -> PathBuf {
        let out = self.cluster.folder().join(file);
        let args = ["evidence", "export", "--lockbox", lockbox, "--out"].map(OsStr::new);
        let exported = self.cluster.broker().command(args.into_iter().chain([out.as_os_str()]));
        exported.expect_success("evidence export");
        out
    }
}

struct Backup<'a> {
    scene: &'a Scene,
    path: PathBuf,
}

impl Backup<'_> {
    fn verify(&self, args: &[&str]) -> Output {
        let secret = self.scene.secret.as_os_str();
        self.verify_with(args, &[OsStr::new("--key-file"), secret])
    }

    fn verify_with(&self, args: &[&str], secret: &[&OsStr]) -> Output {
        let mut command = std::process::Command::new(lockbox_tests::testkit::lockbox_binary());
        command.args(["backup", "verify"]).arg(&self.path).args(args);
        command.args(["--output", "json"]).args(secret);
        lockbox_tests::testkit::process::run(&mut command, b"")
    }

    fn listed(&self) -> Value {
        self.verify(&["--list"]).expect_success("backup verify").json()
    }

    fn restore(&self, name: &str, args: &[&str]) -> (Lockbox, Output) {
        let mut all = vec![OsStr::new("--backup-key-file"), self.scene.secret.as_os_str()];
        all.extend(args.iter().map(OsStr::new));
        self.scene.cluster.restore(name, &self.path, &all)
    }

    fn restore_with(&self, name: &str, evidence: &Path) -> (Lockbox, Value) {
        let evidence = evidence.to_str().expect("a temporary folder's name is text");
        let (lockbox, made) = self.restore(name, &["--evidence", evidence]);
        (lockbox, made.expect_success("backup restore").json())
    }
}

fn write_private(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the folder is ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

/// Waits until the broker has a destruction record with this key.
fn wait_until_told(scene: &Scene, lockbox: &str, key: KeyId) {
    let mut number = 0;
    eventually("the broker was told of the destroyed key", || {
        number += 1;
        let file = scene.evidence(lockbox, &format!("probe-{number}"));
        let bytes = fs::read(&file).expect("it was written");
        bytes.windows(16).any(|window| window == key.0).then_some(())
    });
}

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
                made.push(a.create_key("meanwhile"));
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
fn a_restored_lockbox_has_the_same_keys_joins_again_and_hands_them_on() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let canary = Canary::new();
    let imported = a.import_key("imported", &canary.material);
    let key = a.create(&NewKey {
        labels: vec![("pool", "fast")],
        policy: TransferPolicy {
            deny_copy: true,
            ..TransferPolicy::default()
        },
        ..NewKey::named("volume")
    });
    let material = a.reveal(key);
    let was = a.key(key).expect("it is here");
    let backup = scene.back_up(&a, "backup");
    let bytes = fs::read(&backup.path).expect("it was written");
    canary.assert_not_in("the backup", &bytes);
    let mode = fs::metadata(&backup.path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    a.kill();
    scene.cluster.broker().retire("a");
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    assert_eq!(
        (&restored["keys"], &restored["findings"]),
        (&Value::from(2), &Value::Array(vec![]))
    );
    assert_eq!(
        (c.reveal(key), c.reveal(imported)),
        (material.clone(), canary.material.clone())
    );
    assert_eq!(c.key(key).expect("it is here"), was, "an attribute changed on the way");
    canary.assert_not_in_folder(&c.state_dir());
    c.join(&scene.cluster.broker().token(&[]));
    c.wait_until_connected();
    scene.cluster.move_keys(&c, &b, &[key]).wait();
    assert_eq!(b.reveal(key), material);
    assert!(!c.holds(key));
}

#[test]
fn a_key_that_was_moved_since_stays_out_and_one_that_came_back_does_not() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let (moved, returned, copied, stayed) = (
        a.create_key("moved"),
        a.create_key("returned"),
        a.create_key("copied"),
        a.create_key("stayed"),
    );
    let backup = scene.back_up(&a, "backup");
    scene.cluster.move_keys(&a, &b, &[moved, returned]).wait();
    scene.cluster.move_keys(&b, &a, &[returned]).wait();
    scene.cluster.copy_keys(&a, &b, &[copied]).wait();
    a.kill();
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    let findings = restored["findings"].as_array().expect("a list");
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0]["key_id"], moved.to_string());
    assert_eq!(findings[0]["name"], "moved");
    assert_eq!(findings[0]["why"], "moved");
    assert_eq!(findings[0]["target_id"], b.id().to_string());
    assert_eq!(findings[0]["restored"], false);
    assert!(!c.holds(moved), "two holders after a MOVE");
    assert!(c.holds(returned) && c.holds(copied) && c.holds(stayed));
    let remains = c.key(moved).expect("a tombstone remains");
    assert_eq!((remains.state.as_str(), remains.moved_to), ("moved", b.id().to_vec()));

    // The operator knows that b is gone as well.
    let evidence = evidence.to_str().expect("text");
    let (d, made) = backup.restore("d", &["--evidence", evidence, "--admit", &moved.to_string()]);
    let findings = made.expect_success("backup restore").json()["findings"].clone();
    assert_eq!(
        (&findings[0]["key_id"], &findings[0]["restored"]),
        (&moved.to_string().into(), &true.into())
    );
    assert!(d.holds(moved));
}

#[test]
fn a_key_that_was_destroyed_since_stays_out() {
    let scene = Scene::new();
    let a = scene.cluster.add_lockbox("a");
    let (destroyed, stayed) = (a.create_key("destroyed"), a.create_key("stayed"));
    let backup = scene.back_up(&a, "backup");
    a.destroy(destroyed).expect("nobody uses it");
    wait_until_told(&scene, "a", destroyed);
    a.kill();
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    let finding = &restored["findings"][0];
    assert_eq!(
        (&finding["key_id"], &finding["why"]),
        (&destroyed.to_string().into(), &"destroyed".into())
    );
    assert!(!c.holds(destroyed), "a destroyed key is back");
    assert!(c.holds(stayed));
    assert_eq!(c.key(destroyed).expect("a tombstone remains").state, "destroyed");
    let id = destroyed.to_string();
    let again = c.command(["key", "create", "--id", &id]);
    assert!(!again.status.success(), "a destroyed key came in by another way");

    // A destroyed key is not admitted: only leaving the evidence out brings it back, and that is said.
    let evidence = evidence.to_str().expect("text");
    let (d, made) = backup.restore("d", &["--evidence", evidence, "--admit", &id]);
    made.expect_success("backup restore");
    assert!(!d.holds(destroyed), "a destroyed key is back");
    let (e, made) = backup.restore("e", &["--without-evidence"]);
    assert!(
        made.stderr
            .contains("any of the 2 keys may have been destroyed or moved"),
        "{}",
        made.stderr
    );
    assert!(e.holds(destroyed));
}

#[test]
fn what_was_destroyed_before_the_backup_stays_destroyed_after_it() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    let destroyed = a.create_key("destroyed");
    a.destroy(destroyed).expect("nobody uses it");
    let (c, made) = scene.back_up(&a, "backup").restore("c", &[]);
    assert!(made.stderr.contains("belonged to no cluster"), "{}", made.stderr);
    assert_eq!(c.key(destroyed).expect("a tombstone remains").state, "destroyed");
}

/// Whatever a lockbox that was made of the backup did with the keys, it was the same keys.
#[test]
fn a_key_that_a_restored_lockbox_destroyed_or_gave_away_stays_out_of_the_next() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let (destroyed, moved, stayed) = (a.create_key("destroyed"), a.create_key("moved"), a.create_key("stayed"));
    let backup = scene.back_up(&a, "backup");
    a.kill();
    scene.cluster.broker().retire("a");
    let (c, _) = backup.restore_with("c", &scene.evidence("a", "first"));
    c.join(&scene.cluster.broker().token(&[]));
    c.wait_until_connected();
    scene.cluster.move_keys(&c, &b, &[moved]).wait();
    c.destroy(destroyed).expect("nobody uses it");
    wait_until_told(&scene, "a", destroyed);
    let (d, made) = {
        let evidence = scene.evidence("a", "second");
        backup.restore("d", &["--evidence", evidence.to_str().expect("text")])
    };
    assert!(
        made.stderr.contains(&format!("lockbox {} is not retired", c.id())),
        "{}",
        made.stderr
    );
    let restored = made.expect_success("backup restore").json();
    assert_eq!(restored["claimed_successors"], serde_json::json!([c.id().to_string()]));
    let mut said = restored["findings"].as_array().expect("a list").iter();
    assert!(
        said.any(|finding| finding["destroyed_by_successor"] == c.id().to_string()),
        "nobody says on whose word it stays out: {restored}"
    );
    assert!(!d.holds(destroyed), "a destroyed key is back");
    assert!(!d.holds(moved), "two holders after a MOVE");
    assert!(d.holds(stayed));
}

/// The target may hold it, or not: nobody who is asked can say.
#[test]
fn a_key_that_was_on_its_way_stays_out_unless_it_is_admitted() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let key = a.create_key("on its way");
    // The handshake fits into this, the offer does not.
    a.proxy().cut_once_after(Direction::ToClient, 2_600);
    let transfer = scene.cluster.move_keys(&a, &b, &[key]);
    a.proxy().wait_for_cut();
    b.kill();
    assert_eq!(a.transfer(transfer.id).expect("the offer was made").state, "open");
    let backup = scene.back_up(&a, "backup");
    let listed = backup.listed();
    assert_eq!(
        (&listed["moving"], &listed["entries"][0]["state"]),
        (&1.into(), &"moving".into())
    );
    a.kill();
    let evidence = scene.evidence("a", "evidence");
    let (c, restored) = backup.restore_with("c", &evidence);
    assert_eq!(restored["findings"][0]["why"], "moving");
    assert!(!c.holds(key), "a key that b may hold");
    let evidence = evidence.to_str().expect("text");
    let (d, made) = backup.restore("d", &["--evidence", evidence, "--admit", &key.to_string()]);
    made.expect_success("backup restore");
    assert!(d.holds(key));
}

/// Data may be under either key of an open job.
#[test]
fn an_open_job_keeps_its_old_key_after_a_restore() {
    let scene = Scene::new();
    let a = scene.cluster.new_lockbox("a");
    let old = a.create_key("volume");
    a.command(["key", "rotate", &old.to_string()])
        .expect_success("key rotate");
    let (c, made) = scene.back_up(&a, "backup").restore("c", &[]);
    let restored = made.expect_success("backup restore").json();
    assert_eq!(restored["dropped_jobs"], serde_json::json!([]));
    let refused = c.destroy(old).expect_err("half of the volume is lost");
    assert!(refused.message().contains("job"), "{refused}");
}

/// It was made before its lockbox joined: what the lockbox did as a member is known all the same.
#[test]
fn evidence_counts_for_a_backup_of_before_the_lockbox_joined() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.new_lockbox("a"), scene.cluster.add_lockbox("b"));
    let moved = a.create_key("moved");
    let backup = scene.back_up(&a, "backup");
    a.join(&scene.cluster.broker().token(&[]));
    a.wait_until_connected();
    scene.cluster.move_keys(&a, &b, &[moved]).wait();
    let (c, restored) = backup.restore_with("c", &scene.evidence("a", "evidence"));
    assert!(restored["evidence_made_at_ms"].as_i64().is_some_and(|at_ms| at_ms > 0));
    assert!(!c.holds(moved), "two holders after a MOVE");
}

fn assert_nothing_made(lockbox: &Lockbox, made: &Output, exit: i32, says: &str) {
    assert_eq!(made.status.code(), Some(exit), "{}", made.stderr);
    assert!(made.stderr.contains(says), "{}", made.stderr);
    assert!(!lockbox.state_dir().exists(), "something was made");
    let left: Vec<_> = fs::read_dir(lockbox.state_dir().parent().expect("a folder"))
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").file_name())
        .collect();
    assert_eq!(left, ["unseal.key"], "something is left over");
}

#[test]
fn rejects_a_backup_of_a_member_without_evidence() {
    let scene = Scene::new();
    let a = scene.cluster.add_lockbox("a");
    a.create_key("volume");
    let backup = scene.back_up(&a, "backup");
    let (c, made) = backup.restore("c", &[]);
    assert_nothing_made(&c, &made, 64, "lockbox-broker evidence export --lockbox");
}

#[test]
fn rejects_evidence_that_is_not_about_this_backup() {
    let scene = Scene::new();
    let (a, b) = (scene.cluster.add_lockbox("a"), scene.cluster.add_lockbox("b"));
    let key = a.create_key("volume");
    let backup = scene.back_up(&a, "backup");
    scene.cluster.move_keys(&a, &b, &[key]).wait();
    let about_b = scene.evidence("b", "about-b");
    let refused = |name: &str, evidence: &Path, says: &str| {
        let evidence = evidence.to_str().expect("text");
        let (c, made) = backup.restore(name, &["--evidence", evidence]);
        assert_nothing_made(&c, &made, 1, says);
    };
    refused("c", &about_b, "the evidence is about lockbox");
    // Without its end, the evidence would not say that the key was moved.
    let whole = fs::read(scene.evidence("a", "about-a")).expect("it was written");
    let cut = scene.cluster.folder().join("cut");
    let frames = lockbox_authz::roster::file::frames(&whole).expect("frames");
    let mut shorter = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        // All but the receipt and the erasure record, which stand before the summary.
        if number + 3 < frames.len() || number + 1 == frames.len() {
            lockbox_authz::roster::file::append_frame(&mut shorter, frame);
        }
    }
    fs::write(&cut, &shorter).expect("the folder is ours");
    refused("d", &cut, "it was changed or cut");
    fs::write(&cut, &whole[..whole.len() - frames[frames.len() - 1].len() - 4]).expect("the folder is ours");
    refused("e", &cut, "does not end in a broker's summary");
    let other = Scene::new();
    other.cluster.add_lockbox("a");
    refused(
        "f",
        &other.evidence("a", "other"),
        "the roster of the evidence is refused",
    );
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
