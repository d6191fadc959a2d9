//! Backups, through the real binaries: made while the daemon goes on, verified, restored onto another machine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lockbox_rpc::api::local::TransferPolicy;
use lockbox_tests::testkit::canary::Canary;
use lockbox_tests::testkit::{Cluster, Lockbox, NewKey, Output};
use serde_json::Value;

mod evidence;
mod file;

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
