//! What the daemon and its command line refuse, with the message and the exit code that a script goes by.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use support::{Machine, failure};

/// Sealed is silent: a thief of the running machine gets nothing.
#[test]
fn a_sealed_lockbox_answers_status_and_unseal_only() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let key = machine.create(&[]);
    machine.ok(&["seal"]);
    let file = machine.write("file", b"x");
    let file = file.to_str().unwrap();
    let id = "0b8f1c2e-6a35-4d8b-9a53-5e0f3f6f1a11";
    let broker = [
        "--broker",
        "h:1",
        "--cluster-id",
        &"0".repeat(64),
        "--broker-key",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    ];
    let commands: [&[&str]; 11] = [
        &["seal"],
        &["key", "create"],
        &["key", "import", "--in", file],
        &["key", "list"],
        &["key", "show", &key],
        &["key", "reveal", &key],
        &["key", "destroy", &key, "--yes"],
        &["transfer", "list"],
        &["transfer", "show", id],
        &["transfer", "accept", file, "--source-address", "h:1"],
        &["alarm", "clear", "1"],
    ];
    for command in commands
        .into_iter()
        .chain([&[&["join"], &broker[..]].concat()[..], &["roster", "show"]])
    {
        let (code, message) = machine.fails(command);
        assert_eq!(code, 1, "{command:?}: {message}");
        assert!(
            message.contains("sealed: run `lockbox unseal`"),
            "{command:?}: {message}"
        );
    }
    let status = machine.status();
    assert_eq!(status["sealed"], true);
    assert!(
        status.get("lockbox_id").is_none() && status.get("fingerprint").is_none(),
        "{status}"
    );
    machine.unseal();
    assert_eq!(machine.keys(), [key]);
}

#[test]
fn rejects_a_wrong_passphrase() {
    let mut machine = Machine::with_passphrase("alpha", "correct horse battery");
    machine.serve();
    let output = machine.run_with_input(&["unseal", "--passphrase-stdin"], b"correct horse batterz");
    let (code, message) = failure(&output);
    assert_eq!(code, 77);
    assert!(message.contains("no slot opens with it"), "{message}");
    assert_eq!(machine.status()["sealed"], true);
}

#[test]
fn rejects_a_short_passphrase_before_anything_is_made() {
    let machine = Machine::empty();
    let (state, config) = (machine.path("state"), machine.path("lockbox.toml"));
    let args = [
        "init",
        "--name",
        "a",
        "--passphrase-stdin",
        "--state-dir",
        state.to_str().unwrap(),
    ];
    let output = machine.run_with_input(
        &[&args[..], &["--config-out", config.to_str().unwrap()]].concat(),
        b"short",
    );
    let (code, message) = failure(&output);
    assert_eq!(code, 64);
    assert!(message.contains("12 to 1,024 bytes"), "{message}");
    assert!(!state.exists() && !config.exists());
}

#[test]
fn rejects_a_key_file_that_others_can_read() {
    let mut machine = Machine::new("alpha");
    machine.serve();
    let key = machine.path("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, message) = machine.fails(&["unseal", "--key-file", key.to_str().unwrap()]);
    assert_eq!(code, 77);
    assert!(message.contains("chmod 600"), "{message}");
}

#[test]
fn says_how_to_start_a_daemon_that_does_not_run() {
    let machine = Machine::empty();
    let (code, message) = machine.fails(&["status"]);
    assert_eq!(code, 69);
    assert!(message.contains("lockbox serve"), "{message}");
}

#[test]
fn rejects_wrong_usage() {
    let machine = Machine::empty();
    let (code, message) = machine.fails(&["key", "create", "--label", "zone"]);
    assert_eq!(code, 64);
    assert!(message.contains("key=value"), "{message}");
}

/// A token in the arguments could be read by every user of the machine.
#[test]
fn rejects_a_join_token_as_an_argument() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let (code, message) = machine.fails(&["join", "--token", "lbxjoin1.AAAA"]);
    assert_eq!(code, 64);
    assert!(message.contains("--token -") && !message.contains("AAAA"), "{message}");
}

#[test]
fn a_malformed_token_is_not_echoed() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let output = machine.run_with_input(&["join", "--token", "-"], b"lbxjoin1.c2VjcmV0");
    let (code, message) = failure(&output);
    assert_eq!(code, 64);
    assert!(message.contains("join token") && !message.contains("c2Vj"), "{message}");
    assert!(!machine.log().contains("c2Vj"));
}

/// One line with the file, the key and the mend, and nothing is opened.
#[test]
fn rejects_a_bad_configuration() {
    let machine = Machine::new("alpha");
    let path = machine.path("lockbox.toml");
    let good = fs::read_to_string(&path).unwrap();
    let cases = [
        (format!("peer_prot = 1\n{good}"), "peer_prot", "correct its name"),
        (good.replace("state_dir", "# state_dir"), "state_dir", "add it"),
        (
            good.replace("127.0.0.1:0", "localhost"),
            "peer_listen",
            "write one like",
        ),
        (
            good.replace("127.0.0.1:0", "0.0.0.0:0"),
            "peer_address",
            "add the host:port",
        ),
        (good.replace("/state", "/elsewhere"), "elsewhere", "lockbox init"),
    ];
    for (text, key, mend) in cases {
        fs::write(&path, text).unwrap();
        let (code, message) = machine.fails(&["serve", "--config", path.to_str().unwrap()]);
        assert_eq!(code, 78, "{message}");
        assert!(message.contains(key) && message.contains(mend), "{message}");
        assert_eq!(
            message.lines().filter(|line| line.starts_with("lockbox:")).count(),
            1,
            "{message}"
        );
        assert!(!machine.path("socket").exists());
    }
}

/// Two daemons with one store would each undo what the other promised.
#[test]
fn rejects_a_second_daemon_on_the_same_folder() {
    let mut machine = Machine::new("alpha");
    machine.serve_unsealed();
    let (config, other) = (machine.path("lockbox.toml"), machine.path("other.toml"));
    let text = fs::read_to_string(&config).unwrap().replace("/socket", "/other-socket");
    fs::write(&other, text).unwrap();
    let key = machine.path("key");
    let second = [
        "serve",
        "--config",
        other.to_str().unwrap(),
        "--unseal-key-file",
        key.to_str().unwrap(),
    ];
    let (code, message) = machine.fails(&second);
    assert_eq!(code, 74, "{message}");
    assert!(message.contains("has it open"), "{message}");
    let (code, message) = machine.fails(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(message.contains("already served"), "{message}");
}

/// Only root can become somebody else, so only root can try this; the decision itself has a test in `local_service`.
#[test]
fn rejects_a_user_that_is_not_listed() {
    if Command::new("setpriv")
        .args(["--reuid=65534", "true"])
        .status()
        .is_ok_and(|status| !status.success())
    {
        return eprintln!("skipped: this user can't become another");
    }
    let mut machine = Machine::new("alpha");
    let config = machine.path("lockbox.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("allowed_uids = [64055]\n{text}")).unwrap();
    fs::set_permissions(machine.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    machine.serve_unsealed();
    // The stranger may not be able to walk to the build's folder.
    let binary = machine.path("lockbox-copy");
    fs::copy(env!("CARGO_BIN_EXE_lockbox"), &binary).unwrap();
    let run_as = |uid: &str| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups"]);
        command
            .arg(&binary)
            .arg("--socket")
            .arg(machine.path("socket"))
            .args(["key", "list"]);
        command.output().unwrap()
    };
    support::expect_success(&run_as("64055"));
    let (code, message) = failure(&run_as("65534"));
    assert_eq!(code, 77);
    assert!(message.contains("allowed_uids"), "{message}");
}
