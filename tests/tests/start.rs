//! What keeps a daemon from starting, and `init` from making anything, is said at once and with the way out.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use lockbox_tests::testkit::disk::Disk;
use lockbox_tests::testkit::process::run;
use lockbox_tests::testkit::{Cluster, Lockbox, Output, lockbox_binary};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Signal, geteuid};

/// Somebody else than root: `nobody` of Debian.
const NOBODY: u32 = 65_534;

const MIB: u64 = 1024 * 1024;

fn replace_by_fifo(path: &Path) {
    let _ = fs::remove_file(path);
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("the folder is ours");
}

/// Starts a daemon that must refuse to start.
fn refused(program: &Path, config: &Path, more: &[&str]) -> String {
    let mut serve = Command::new(program);
    serve.arg("serve").arg("--config").arg(config).args(more);
    let output = run(&mut serve, b"");
    assert!(!output.status.success(), "{output:?}");
    output.stderr
}

fn refused_lockbox(lockbox: &Lockbox, key_file: &Path) -> String {
    let key_file = key_file.to_str().expect("our own name");
    refused(&lockbox.program(), &lockbox.config(), &["--unseal-key-file", key_file])
}

#[test]
fn rejects_a_fifo_as_lock_file() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.stop();
    let lock_file = a.socket().with_extension("lock");
    assert!(lock_file.exists(), "it stays beside the socket");
    replace_by_fifo(&lock_file);
    let said = refused_lockbox(&a, &a.key_file());
    assert!(said.contains("no regular file") && said.contains(".lock"), "{said}");
    fs::remove_file(lock_file).expect("the folder is ours");
    a.start();
}

#[test]
fn rejects_a_key_file_that_is_no_file() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.stop();
    let fifo = a.key_file().with_extension("fifo");
    replace_by_fifo(&fifo);
    let folder = a.state_dir();
    for (path, what) in [
        (fifo.as_path(), "a FIFO"),
        (folder.as_path(), "a directory"),
        (Path::new("/dev/zero"), "a device"),
    ] {
        let said = refused_lockbox(&a, path);
        assert!(said.contains(what) && said.contains("must be a regular file"), "{said}");
    }
}

#[test]
fn rejects_a_part_of_the_state_folder_that_is_no_file() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.stop();
    for name in ["anchor", "root", "header"] {
        replace_by_fifo(&a.state_dir().join(name));
        let said = refused_lockbox(&a, &a.key_file());
        assert!(said.contains("a FIFO") && said.contains(name), "{said}");
    }
}

/// At a reload, a FIFO would keep the daemon from every other signal.
#[test]
fn rejects_a_fifo_as_configuration() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let mark = a.log().mark();
    replace_by_fifo(&a.config());
    a.signal(Signal::HUP);
    let line = a.log().wait_for(mark, "the configuration was not reloaded");
    assert!(line.contains("a FIFO"), "{line}");
    a.stop();
    let said = refused_lockbox(&a, &a.key_file());
    assert!(said.contains("a FIFO"), "{said}");
}

#[test]
fn rejects_a_file_of_the_broker_that_is_no_file() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    broker.stop();
    for name in [
        "pki/ca.key",
        "pki/ca.crt",
        "pki/server.key",
        "pki/server.crt",
        "broker.key",
    ] {
        replace_by_fifo(&broker.dir().join(name));
        let said = refused(&broker.program(), &broker.dir().join("broker.toml"), &[]);
        assert!(said.contains("a FIFO") && said.contains(name), "{said}");
    }
}

/// `lockbox init` with these paths.
fn init(state_dir: &Path, socket: &Path, config: &Path, key_file: &Path) -> Output {
    let mut init = Command::new(lockbox_binary());
    init.args(["init", "--name", "a", "--peer-listen", "127.0.0.1:0", "--state-dir"])
        .arg(state_dir)
        .arg("--socket")
        .arg(socket)
        .arg("--config-out")
        .arg(config)
        .arg("--key-file")
        .arg(key_file);
    run(&mut init, b"")
}

fn key_file(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("key");
    fs::write(&path, [7; 32]).expect("the folder is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    path
}

#[test]
fn rejects_a_socket_path_that_the_kernel_does_not_take() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (dir, key) = (temp.path(), key_file(temp.path()));
    // The key socket's path is made of it and is five bytes longer.
    for (bytes, setting) in [(108, "socket"), (103, "key_socket.path")] {
        let name = "s".repeat(bytes - dir.as_os_str().len() - 1 - ".sock".len()) + ".sock";
        let refused = init(&dir.join("state"), &dir.join(name), &dir.join("a.toml"), &key);
        assert_eq!(refused.status.code(), Some(64), "{}", refused.stderr);
        let said = &refused.stderr;
        assert!(
            said.contains(&format!(": {setting}: ")) && said.contains("at most 107"),
            "{said}"
        );
        assert!(!dir.join("state").exists() && !dir.join("a.toml").exists());
    }
}

#[test]
fn rejects_a_folder_whose_parent_is_missing() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (dir, key) = (temp.path(), key_file(temp.path()));
    let missing = dir.join("missing");
    let socket = dir.join("s.sock");
    let mend = format!("mkdir -p {}", missing.display());
    for (state, config) in [
        (missing.join("state"), dir.join("a.toml")),
        (dir.join("state"), missing.join("a.toml")),
    ] {
        let refused = init(&state, &socket, &config, &key);
        assert!(
            !refused.status.success() && refused.stderr.contains(&mend),
            "{}",
            refused.stderr
        );
        assert!(!dir.join("state").exists() && !dir.join("a.toml").exists());
    }
    let cluster = Cluster::start();
    let mut broker = Command::new(cluster.broker().program());
    broker
        .args(["init", "--cluster-name", "c", "--dir"])
        .arg(missing.join("broker"));
    let refused = run(&mut broker, b"");
    assert!(
        !refused.status.success() && refused.stderr.contains(&mend),
        "{}",
        refused.stderr
    );
}

#[test]
fn init_says_how_much_disk_it_needs_and_refuses_less() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (dir, key) = (temp.path(), key_file(temp.path()));
    let made = init(&dir.join("state"), &dir.join("s.sock"), &dir.join("a.toml"), &key);
    assert!(made.text().contains("100 MiB of free space"), "{}", made.text());
    let Some(disk) = Disk::mount(64 * MIB) else {
        return;
    };
    let socket = disk.path().join("s.sock");
    let refused = init(&disk.path().join("state"), &socket, &disk.path().join("a.toml"), &key);
    assert!(
        !refused.status.success() && refused.stderr.contains("needs 100 MiB"),
        "{}",
        refused.stderr
    );
    assert!(!disk.path().join("state").exists());
    let cluster = Cluster::start();
    let mut broker = Command::new(cluster.broker().program());
    broker
        .args(["init", "--cluster-name", "c", "--dir"])
        .arg(disk.path().join("broker"));
    let refused = run(&mut broker, b"");
    assert!(
        !refused.status.success() && refused.stderr.contains("needs 100 MiB"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_daemon_warns_of_root_and_of_a_folder_of_another_user() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let broker = cluster.broker();
    let is_root = geteuid().is_root();
    if is_root {
        a.log().wait_for(0, "runs as root");
        broker.log().wait_for(0, "runs as root");
    }
    assert!(!a.log().has(0, "belongs to another user") && !broker.log().has(0, "belongs to another user"));
    // Only root can give a folder away.
    if is_root {
        chown(a.state_dir(), Some(NOBODY), None).expect("root may");
        chown(broker.dir().join("store"), Some(NOBODY), None).expect("root may");
        a.restart();
        broker.restart();
        a.log().wait_for(0, "belongs to another user");
        broker.log().wait_for(0, "belongs to another user");
    }
}

/// Before, the folder looked to that user as if there were no lockbox, and the advice was to make one.
#[test]
fn rejects_a_folder_of_another_user() {
    if !geteuid().is_root() {
        return;
    }
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (dir, key) = (temp.path(), key_file(temp.path()));
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    let config = dir.join("a.toml");
    init(&dir.join("state"), &dir.join("s.sock"), &config, &key).expect_success("init");
    // The program's own folder may be closed to that user.
    let program = dir.join("lockbox");
    fs::copy(lockbox_binary(), &program).expect("there is room");
    let mut serve = Command::new(&program);
    serve.arg("serve").arg("--config").arg(&config).uid(NOBODY);
    let refused = run(&mut serve, b"");
    assert!(
        !refused.status.success() && refused.stderr.contains("belongs to the user 0"),
        "{}",
        refused.stderr
    );
}
