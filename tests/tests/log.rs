//! The log never decides whether keys are served: not when it can't be written, and not when nobody reads it.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use lockbox_tests::testkit::{Broker, Cluster, Lockbox, eventually, key_client, lockbox_binary};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

/// What a pipe takes before its writer has to wait (pipe(7)).
const PIPE_BYTES: usize = 65_536;

fn dev_full() -> File {
    let full = OpenOptions::new().write(true).open("/dev/full");
    full.expect("every Linux has it")
}

/// A pipe that takes nothing more until its reader reads.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().expect("there are descriptors left");
    writer.write_all(&[b'\n'; PIPE_BYTES]).expect("it fits");
    (reader, writer)
}

/// Everything that a storage server needs of its lockbox, and everything that logs a line.
fn serves(lockbox: &Lockbox) {
    let key = lockbox.create_key("data");
    let bytes = lockbox.reveal(key);
    assert_eq!(key_client::volume(&lockbox.key_socket(), "data"), bytes);
    assert_eq!(key_client::volume(&lockbox.key_socket(), "other"), b"");
    lockbox.seal();
    lockbox
        .command(["unseal", "--key-file", path(&lockbox.key_file())])
        .expect_success("unseal");
    assert_eq!(
        lockbox
            .command(["key", "reveal", &key.to_string()])
            .expect_success("reveal")
            .stdout,
        bytes
    );
    let destroy = ["key", "destroy", &key.to_string(), "--yes"].map(str::to_owned);
    lockbox.command(destroy).expect_success("destroy");
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().expect("the test's folder has a plain name")
}

/// A transfer between two lockboxes that connect to this broker anew.
fn authorizes(cluster: &Cluster, broker: &Broker, a: &Lockbox, b: &Lockbox) {
    for lockbox in [a, b] {
        lockbox.wait_until_connected();
    }
    let key = a.create_key("volume");
    cluster.move_keys(a, b, &[key]).wait();
    assert!(b.holds(key) && !a.holds(key));
    let listed = broker.command(["lockbox", "list", "--output", "json"]);
    listed.expect_success("lockbox list");
}

#[test]
fn a_lockbox_serves_while_its_log_is_on_a_full_disk() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.kill();
    a.start_logging_to(dev_full());
    serves(&a);
    a.stop();
}

/// The reader goes away while the daemon runs, as a log collector that crashed.
#[test]
fn a_lockbox_serves_when_the_reader_of_its_log_is_gone() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    a.kill();
    let (reader, writer) = pipe().expect("there are descriptors left");
    a.start_logging_to(writer);
    a.wait_until_connected();
    drop(reader);
    serves(&a);
    // What the link to the broker logs must not end it.
    cluster.broker().restart();
    a.wait_until_connected();
    a.stop();
}

/// The reader is there and does not read, as one that was sent SIGSTOP.
#[test]
fn a_lockbox_serves_and_stops_while_nobody_reads_its_log() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.kill();
    let (_reader, writer) = full_pipe();
    a.start_logging_to(writer);
    serves(&a);
    a.stop();
}

#[test]
fn a_broker_authorizes_when_the_reader_of_its_log_is_gone() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let broker = cluster.broker();
    broker.kill();
    let (reader, writer) = pipe().expect("there are descriptors left");
    broker.start_logging_to(writer);
    drop(reader);
    authorizes(&cluster, broker, &a, &b);
    broker.stop();
}

#[test]
fn a_broker_authorizes_and_stops_while_nobody_reads_its_log() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let broker = cluster.broker();
    broker.kill();
    let (_reader, writer) = full_pipe();
    broker.start_logging_to(writer);
    authorizes(&cluster, broker, &a, &b);
    broker.stop();
}

/// Whoever reads the log later has to know that it is not complete.
#[test]
fn lost_lines_are_counted_once_the_log_is_written_again() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.kill();
    let fifo = cluster.folder().join("log");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("the folder is ours");
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("a small flag");
    let open_reader = || OpenOptions::new().read(true).custom_flags(nonblocking).open(&fifo);
    let reader = open_reader().expect("a reader need not wait");
    let writer = OpenOptions::new().write(true).open(&fifo).expect("there is a reader");
    a.start_logging_to(writer);
    drop(reader);
    for _ in 0..3 {
        assert_eq!(key_client::volume(&a.key_socket(), "other"), b"");
    }
    let mut reader = open_reader().expect("a reader need not wait");
    let mut log = String::new();
    eventually("the log says how many lines it lost", || {
        assert_eq!(key_client::volume(&a.key_socket(), "another"), b"");
        // Nothing to read yet is no error here.
        let _ = reader.read_to_string(&mut log);
        log.lines().find(|line| line.contains("lost_lines=")).map(str::to_owned)
    });
    assert!(log.contains("another"), "{log}");
}

/// A script acts on the exit code, which has to be the one of the error and not of a failed message.
#[test]
fn an_error_that_can_not_be_written_keeps_its_exit_code() {
    let cluster = Cluster::start();
    let nowhere = cluster.folder().join("nowhere");
    let lockbox = |stderr: Stdio| {
        let mut command = Command::new(lockbox_binary());
        let status = command
            .args(["status", "--socket", path(&nowhere)])
            .stderr(stderr)
            .status();
        status.expect("it starts").code()
    };
    assert_eq!(lockbox(Stdio::null()), Some(69));
    assert_eq!(lockbox(dev_full().into()), Some(69));
    let broker = |stderr: Stdio| {
        let mut command = Command::new(cluster.broker().program());
        let status = command
            .args(["lockbox", "list", "--client", path(&nowhere)])
            .stderr(stderr)
            .status();
        status.expect("it starts").code()
    };
    assert_eq!(broker(Stdio::null()), Some(78));
    assert_eq!(broker(dev_full().into()), Some(78));
}

/// `completions bash | head -1`.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let cluster = Cluster::start();
    for program in [lockbox_binary(), cluster.broker().program()] {
        let (reader, writer) = pipe().expect("there are descriptors left");
        drop(reader);
        let mut command = Command::new(&program);
        let child = command
            .args(["completions", "bash"])
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn();
        let output = child.expect("it starts").wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{}", program.display());
    }
}
