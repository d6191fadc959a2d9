//! The store's backend: chosen at the beginning, converted later, and never mistaken for the other.

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
