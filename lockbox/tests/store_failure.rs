//! A store that can't keep its promises ends the daemon: it says which promise, and never goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::process::{Command, Stdio};

use support::Machine;

/// A limit on the size of files makes the log's next write fail in the middle of serving.
#[test]
fn a_failed_write_stops_the_daemon_before_it_acknowledges() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let kept = machine.create(&[]);
    let secret = machine.reveal(&kept);
    machine.stop();

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
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    support::eventually("it is unsealed", || {
        let output = machine.run(&["--output", "json", "status"]);
        String::from_utf8_lossy(&output.stdout)
            .contains("\"sealed\": false")
            .then_some(())
    });
    let mut acknowledged = vec![kept.clone()];
    let message = loop {
        let output = machine.run(&["--output", "json", "key", "create", "--bytes", "512"]);
        if !output.status.success() {
            break String::from_utf8_lossy(&output.stderr).into_owned();
        }
        let key: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        acknowledged.push(key["key_id"].as_str().unwrap().to_owned());
    };
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
