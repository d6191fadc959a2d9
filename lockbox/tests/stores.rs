//! The store's backend: chosen at the beginning, converted later, and never mistaken for the other. Its files: compacted.

#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

mod support;

use std::fs;

use support::{Machine, folder_contains};

/// Rewrites what the configuration says about the store.
fn configure(machine: &Machine, from: &str, to: &str) {
    let path = machine.path("lockbox.toml");
    let text = fs::read_to_string(&path).unwrap();
    let line = |name: &str| format!("store = \"{name}\"");
    assert!(text.contains(&line(from)), "{text}");
    fs::write(&path, text.replace(&line(from), &line(to))).unwrap();
}

fn serve_fails(machine: &Machine) -> (i32, String) {
    let config = machine.path("lockbox.toml");
    machine.fails(&["serve", "--config", config.to_str().unwrap()])
}

fn convert(machine: &Machine, to: &str) -> serde_json::Value {
    let state = machine.path("state");
    machine.json(&["store", "convert", "--state-dir", state.to_str().unwrap(), "--to", to])
}

#[test]
fn a_lockbox_on_redb_keeps_its_keys() {
    let mut machine = Machine::on_store("a", "redb");
    machine.serve_unsealed();
    let key = machine.create(&["--name", "volume"]);
    let secret = machine.reveal(&key);
    machine.kill();
    machine.serve_unsealed();
    assert_eq!(machine.reveal(&key), secret);
    machine.ok(&["key", "destroy", &key, "--yes"]);
    machine.stop();
    machine.serve_unsealed();
    assert_eq!(machine.keys(), [""; 0]);
    assert!(!folder_contains(&machine.path("state"), &secret));
}

#[test]
fn a_conversion_takes_every_key_along_and_back() {
    let mut machine = Machine::new("a");
    machine.serve_unsealed();
    let keys: Vec<_> = (0..20).map(|_| machine.create(&[])).collect();
    let secrets: Vec<_> = keys.iter().map(|key| machine.reveal(key)).collect();
    machine.stop();
    for (from, to) in [("sled", "redb"), ("redb", "sled")] {
        let converted = convert(&machine, to);
        assert_eq!(
            (&converted["store"], &converted["converted"]),
            (&to.into(), &true.into())
        );
        assert!(converted["records"].as_u64().unwrap() > 40, "{converted}");
        assert!(!machine.path("state").join("store").join(from).exists());
        configure(&machine, from, to);
        machine.serve_unsealed();
        let revealed: Vec<_> = keys.iter().map(|key| machine.reveal(key)).collect();
        assert_eq!(revealed, secrets);
        machine.stop();
        assert_eq!(convert(&machine, to)["converted"], false);
    }
}

#[test]
fn rejects_a_store_that_is_not_what_the_configuration_says() {
    let machine = Machine::on_store("a", "redb");
    configure(&machine, "redb", "sled");
    let (exit, message) = serve_fails(&machine);
    assert_eq!(exit, 78, "{message}");
    assert!(
        message.contains("its store is kept by redb, and the configuration says store = \"sled\""),
        "{message}"
    );
    assert!(message.contains("lockbox store convert --state-dir"), "{message}");
}

#[test]
fn rejects_a_conversion_under_a_running_lockbox() {
    let mut machine = Machine::new("a");
    machine.serve_unsealed();
    let key = machine.create(&[]);
    let state = machine.path("state");
    let arguments = [
        "store",
        "convert",
        "--state-dir",
        state.to_str().unwrap(),
        "--to",
        "redb",
    ];
    let (exit, message) = machine.fails(&arguments);
    assert_eq!(exit, 74, "{message}");
    assert!(message.contains("has it open"), "{message}");
    machine.reveal(&key);
}

/// A sealed daemon has no store open, so it can't keep a conversion away. It must not go on as if nothing had happened.
#[test]
fn a_lockbox_that_was_converted_while_sealed_says_so() {
    let mut machine = Machine::new("a");
    machine.serve();
    convert(&machine, "redb");
    let key = machine.path("key");
    let (_, message) = machine.fails(&["unseal", "--key-file", key.to_str().unwrap()]);
    assert!(message.contains("its store is kept by redb"), "{message}");
}

fn compact_arguments(state: &str) -> [&str; 4] {
    ["store", "compact", "--state-dir", state]
}

#[test]
fn a_compaction_returns_space_and_keeps_every_key() {
    let mut machine = Machine::new("a");
    machine.serve_unsealed();
    let keys: Vec<_> = (0..5).map(|_| machine.create(&[])).collect();
    let secrets: Vec<_> = keys.iter().map(|key| machine.reveal(key)).collect();
    for _ in 0..40 {
        let doomed = machine.create(&[]);
        machine.ok(&["key", "destroy", &doomed, "--yes"]);
    }
    machine.stop();
    // What forty destroys write fits into the first segment of sled's log, which any store has.
    let waste = fs::File::create(machine.path("state/store/sled/waste")).unwrap();
    rustix::fs::fallocate(&waste, rustix::fs::FallocateFlags::empty(), 0, 2 * 1024 * 1024).unwrap();
    let state = machine.path("state");
    let compacted = machine.json(&compact_arguments(state.to_str().unwrap()));
    let [before, after] = ["bytes_before", "bytes_after"].map(|name| compacted[name].as_u64().unwrap());

    let mut fresh = Machine::new("b");
    fresh.serve_unsealed();
    for _ in 0..5 {
        fresh.create(&[]);
    }
    let fresh_bytes = fresh.json(&["status"])["store_bytes"].as_u64().unwrap();
    assert!(
        after * 2 <= fresh_bytes * 3 && after * 2 < before,
        "{before} bytes became {after}, where {fresh_bytes} would do"
    );

    // The anchor beside the store knows it, and so does the scan.
    machine.serve_unsealed();
    let revealed: Vec<_> = keys.iter().map(|key| machine.reveal(key)).collect();
    assert_eq!(revealed, secrets);
    assert_eq!(machine.keys().len(), keys.len());
    let status = support::eventually("the store was scanned", || {
        let status = machine.json(&["status"]);
        (status["store"] != "being checked").then_some(status)
    });
    assert_eq!(status["store"], "whole");
    let bytes = |name: &str| status[name].as_u64().unwrap();
    assert!(bytes("store_waste_bytes") < bytes("store_bytes"), "{status}");
}

/// 60,000 keys that came and went made a daemon take 11 seconds to start, and every later start, too.
#[test]
fn a_wasteful_store_is_compacted_when_the_daemon_starts() {
    const WASTE: u64 = 300 * 1024 * 1024;
    let mut machine = Machine::new("a");
    machine.serve_unsealed();
    let key = machine.create(&[]);
    let secret = machine.reveal(&key);
    machine.stop();
    let waste = fs::File::create(machine.path("state/store/sled/waste")).unwrap();
    rustix::fs::fallocate(&waste, rustix::fs::FallocateFlags::empty(), 0, WASTE).unwrap();
    machine.serve_unsealed();
    machine.wait_for_log(&["the store was compacted"]);
    assert!(machine.json(&["status"])["store_bytes"].as_u64().unwrap() < WASTE / 4);
    assert_eq!(machine.reveal(&key), secret);
}

#[test]
fn rejects_a_compaction_under_a_running_lockbox() {
    let mut machine = Machine::new("a");
    machine.serve_unsealed();
    let key = machine.create(&[]);
    let state = machine.path("state");
    let (exit, message) = machine.fails(&compact_arguments(state.to_str().unwrap()));
    assert_eq!(exit, 74, "{message}");
    assert!(message.contains("has it open"), "{message}");
    machine.reveal(&key);
}

/// sled's snapshot holds nothing that its log lacks. Without this, the way out was a backup, and every key since then was lost.
#[test]
fn a_damaged_snapshot_of_sled_loses_no_key() {
    let mut machine = Machine::new("a");
    machine.serve_unsealed();
    let keys: Vec<_> = (0..3).map(|_| machine.create(&[])).collect();
    let secrets: Vec<_> = keys.iter().map(|key| machine.reveal(key)).collect();
    machine.stop();
    // sled writes a snapshot when it opens a log.
    machine.serve_unsealed();
    machine.stop();
    let files = fs::read_dir(machine.path("state/store/sled")).unwrap();
    let snapshot = files
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
        .expect("sled wrote a snapshot");
    fs::write(&snapshot, "").unwrap();
    machine.serve_unsealed();
    machine.wait_for_log(&["damaged", snapshot.to_str().unwrap()]);
    let revealed: Vec<_> = keys.iter().map(|key| machine.reveal(key)).collect();
    assert_eq!(revealed, secrets);
}
