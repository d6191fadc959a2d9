//! The daemon and its command line, from init to destroy, through the real binary.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{Machine, failure, folder_contains};

/// What a storage operator does on the first day.
#[test]
fn a_key_lives_from_create_to_destroy() {
    let mut machine = Machine::with_passphrase("alpha", "correct horse battery\n");
    machine.serve();
    assert_eq!(machine.status()["sealed"], true);

    let unsealed = machine.run_with_input(&["unseal", "--passphrase-stdin"], b"correct horse battery");
    support::expect_success(&unsealed);
    let status = machine.status();
    assert_eq!((&status["sealed"], &status["name"]), (&false.into(), &"alpha".into()));

    let key = machine.create(&["--name", "vol-1", "--bytes", "32", "--label", "zone=a"]);
    let secret = machine.reveal("vol-1");
    assert_eq!(secret.len(), 32);
    let hex = machine.ok(&["key", "reveal", &key, "--encoding", "hex"]);
    let expected: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected.as_bytes());
    assert_eq!(machine.status()["key_count"], 1);

    machine.ok(&["key", "destroy", "vol-1", "--yes"]);
    assert_eq!(machine.keys(), [""; 0]);
    let (code, message) = machine.fails(&["key", "reveal", &key]);
    assert_eq!(code, 1);
    assert!(message.contains("was destroyed"), "{message}");

    machine.ok(&["seal"]);
    assert_eq!(machine.status()["sealed"], true);
    machine.stop();
}

/// Otherwise every volume of the machine would be lost with a restart.
#[test]
fn keys_survive_restarts_and_destroyed_ones_stay_destroyed() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let kept = machine.create(&["--name", "kept"]);
    let doomed = machine.create(&["--name", "doomed"]);
    let secret = machine.reveal(&kept);
    machine.ok(&["key", "destroy", &doomed, "--yes"]);
    machine.stop();

    machine.serve();
    machine.unseal();
    assert_eq!(machine.reveal(&kept), secret);
    assert!(machine.fails(&["key", "reveal", &doomed]).1.contains("was destroyed"));
    machine.kill();

    machine.serve_unsealed();
    assert_eq!(machine.reveal(&kept), secret);
    assert_eq!(machine.keys(), [kept]);
    assert!(machine.fails(&["key", "reveal", &doomed]).1.contains("was destroyed"));
}

/// Whoever takes the disk has ciphertext.
#[test]
fn no_secret_is_in_the_folder_or_the_log() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let canary = b"canary-canary-canary-canary-0123";
    let imported = machine.run_with_input(&["key", "import", "--name", "canary"], canary);
    support::expect_success(&imported);
    assert_eq!(machine.reveal("canary"), canary);
    assert!(!machine.log().contains("canary-canary"));
    machine.stop();
    assert!(!folder_contains(&machine.path("state"), &canary[..16]));
}

/// A retry after a lost answer must not leave a second key that nobody knows.
#[test]
fn creating_again_with_the_same_id_makes_no_second_key() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let id = "0b8f1c2e-6a35-4d8b-9a53-5e0f3f6f1a11";
    assert_eq!(machine.create(&["--id", id, "--name", "vol"]), id);
    let secret = machine.reveal(id);
    assert_eq!(machine.create(&["--id", id, "--name", "vol"]), id);
    assert_eq!(machine.reveal(id), secret);
    let (_, message) = machine.fails(&["key", "create", "--id", id, "--name", "another"]);
    assert!(message.contains("not the same"), "{message}");
}

#[test]
fn a_key_is_not_destroyed_unasked() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    machine.create(&["--name", "vol"]);
    let (code, message) = machine.fails(&["key", "destroy", "vol"]);
    assert_eq!(code, 64);
    assert!(message.contains("--yes"), "{message}");
    assert_eq!(machine.keys().len(), 1);
}

/// More than one page, with what is gone in between.
#[test]
fn a_list_has_every_key_once() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let mut ids: Vec<_> = (0..7).map(|_| machine.create(&[])).collect();
    for gone in &ids[..3] {
        machine.ok(&["key", "destroy", gone, "--yes"]);
    }
    let list = machine.json(&["key", "list", "--all"]);
    let mut states: Vec<_> = list["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["state"].clone())
        .collect();
    states.sort_by_key(ToString::to_string);
    assert_eq!(states[..4], ["active"; 4]);
    assert_eq!(states[4..], ["destroyed"; 3]);
    let mut here = machine.keys();
    here.sort();
    ids.drain(..3);
    ids.sort();
    assert_eq!(here, ids);
}

#[test]
fn init_makes_nothing_over_something() {
    let machine = Machine::new("alpha");
    let state = machine.path("state");
    let key = machine.path("key");
    let config = machine.path("second.toml");
    let again = machine.run(&[
        "init",
        "--name",
        "beta",
        "--state-dir",
        state.to_str().unwrap(),
        "--key-file",
        key.to_str().unwrap(),
        "--config-out",
        config.to_str().unwrap(),
    ]);
    let (_, message) = failure(&again);
    assert!(message.contains("not empty"), "{message}");
    assert!(!config.exists());
}
