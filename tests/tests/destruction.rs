//! The end of a rotation: what proves that the new key opens the data.

use lockbox_authz::KeyId;
use lockbox_tests::testkit::{Cluster, Lockbox, Output};

/// A key, and the job of its rotation.
fn rotation(lockbox: &Lockbox, name: &str) -> (KeyId, KeyId) {
    let old = lockbox.create_key(name);
    let made = lockbox.ask(&["key", "rotate", &old.to_string()]);
    let job: KeyId = made["key_id"].as_str().expect("an id").parse().expect("an id");
    lockbox.ask(&["job", "progress", &job.to_string(), "100"]);
    (old, job)
}

fn verify(lockbox: &Lockbox, job: KeyId, command: &[&str]) -> Output {
    lockbox.command_around(&["job", "verify", &job.to_string()], command)
}

fn refused(output: &Output) -> &str {
    assert!(!output.status.success(), "it was not refused: {}", output.text());
    &output.stderr
}

#[test]
fn rejects_a_verification_whose_command_has_not_read_the_new_key() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (old, job) = rotation(&a, "data");
    for command in [
        &["true"][..],
        &["cat", "/etc/hostname"],
        &["true", "{new}"],
        &["head", "-c", "63", "{new}"],
        &["cat", "{old}", "/dev/null"],
        &["sh", "-c", "cat {old}; : {new:hex}"],
    ] {
        let why = verify(&a, job, command);
        assert!(refused(&why).contains("new key"), "{command:?}: {}", why.stderr);
        assert!(!why.stderr.contains("progress"), "{}", why.stderr);
        let shown = a.ask(&["job", "show", &job.to_string()]);
        assert_eq!(shown["state"], "running", "{command:?}");
    }
    assert!(a.holds(old) && a.holds(job));
    for command in [
        &["cat"][..],
        &["cat", "{new}"],
        &["sh", "-c", "cat {new:hex} || cat {new}"],
    ] {
        verify(&a, job, command).expect_success("job verify");
    }
}

/// What a tool did that never had the new key, it did without it.
#[test]
fn rejects_a_tool_that_has_not_read_the_new_key() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let old = a.create_key("data");
    let made = a.ask(&["key", "rotate", &old.to_string()]);
    let job = made["key_id"].as_str().expect("an id");
    let run = a.command_around(&["job", "run", job], ["sh", "-c", "cat {old} > /dev/null; : {new}"]);
    assert!(refused(&run).contains("without reading the new key"), "{}", run.stderr);
    let verified = a.command_around(&["job", "verify", job], ["cat"]);
    let why = refused(&verified);
    assert!(why.contains("job run") && !why.contains("job progress"), "{why}");
}
