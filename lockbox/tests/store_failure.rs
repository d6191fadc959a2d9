//! A store that can't keep its promises ends the daemon: it says which promise, and never goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Write, pipe};
use std::process::{Child, Command, Stdio};

use support::Machine;

#[test]
fn a_failed_write_stops_the_daemon_before_it_acknowledges() {
    let mut machine = Machine::new("alpha");
    let (kept, secret) = with_one_key(&mut machine);
    let daemon = serve_until_a_write_fails(&machine, Stdio::piped());
    let (acknowledged, message) = create_until_refused(&machine, &kept);
    let ended = daemon.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(74), "{message}\n{log}");
    assert!(log.contains("going on would break the promise"), "{log}");

    machine.serve_unsealed();
    assert_eq!(machine.reveal(&kept), secret);
    let here = machine.keys();
    assert!(
        acknowledged.iter().all(|key| here.contains(key)),
        "an acknowledged key is lost"
    );
}

/// systemd starts only a daemon that has ended, so one that waits for the reader of its log keeps its volumes shut.
#[test]
fn a_failed_write_stops_the_daemon_while_nobody_reads_its_log() {
    let mut machine = Machine::new("alpha");
    let (kept, _) = with_one_key(&mut machine);
    let (_reader, mut writer) = pipe().unwrap();
    // As much as a pipe takes (pipe(7)).
    writer.write_all(&[b'\n'; 65_536]).unwrap();
    let mut daemon = serve_until_a_write_fails(&machine, writer.into());
    create_until_refused(&machine, &kept);
    let status = support::eventually("it ends", || daemon.try_wait().unwrap());
    assert_eq!(status.code(), Some(74));
}

/// Makes a key and stops the daemon. Returns the key's id and its bytes.
fn with_one_key(machine: &mut Machine) -> (String, Vec<u8>) {
    machine.serve_unsealed();
    let kept = machine.create(&[]);
    let secret = machine.reveal(&kept);
    machine.stop();
    (kept, secret)
}

/// Starts a daemon with a limit on the size of files, which makes the store's next write fail in the middle of serving.
fn serve_until_a_write_fails(machine: &Machine, stderr: Stdio) -> Child {
    let log_bytes = fs::metadata(machine.path("state/store/sled/db")).unwrap().len();
    let blocks = log_bytes / 512 + 1_024;
    // The signal must be ignored, or it would kill the daemon before the write can fail.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let (config, key) = (machine.path("lockbox.toml"), machine.path("key"));
    let daemon = Command::new("sh")
        .args([
            "-c",
            &script,
            env!("CARGO_BIN_EXE_lockbox"),
            "serve",
            "--config",
            config.to_str().unwrap(),
        ])
        .args(["--unseal-key-file", key.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    support::eventually("it is unsealed", || {
        let output = machine.run(&["--output", "json", "status"]);
        String::from_utf8_lossy(&output.stdout)
            .contains("\"sealed\": false")
            .then_some(())
    });
    daemon
}

/// Creates keys until the daemon does not acknowledge one. Returns the acknowledged ones after `kept`, and the complaint.
fn create_until_refused(machine: &Machine, kept: &str) -> (Vec<String>, String) {
    let mut acknowledged = vec![kept.to_owned()];
    loop {
        let output = machine.run(&["--output", "json", "key", "create", "--bytes", "512"]);
        if !output.status.success() {
            return (acknowledged, String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let key: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        acknowledged.push(key["key_id"].as_str().unwrap().to_owned());
    }
}
