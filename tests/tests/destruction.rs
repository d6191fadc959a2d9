//! The end of a rotation: what proves that the new key opens the data, and the grace time of the old key.

use lockbox_authz::{KeyId, Operation};
use lockbox_tests::testkit::{Cluster, Lockbox, Output, TransferState, eventually, key_client, luks};
use serde_json::Value;

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

/// A rotation that has ended: its old key and its new one.
fn rotated(lockbox: &Lockbox, name: &str) -> (KeyId, KeyId) {
    let (old, job) = rotation(lockbox, name);
    verify(lockbox, job, &["sh", "-c", "cat > /dev/null"]).expect_success("job verify");
    lockbox.ask(&["job", "done", &job.to_string(), "--yes"]);
    (old, job)
}

fn refused(output: &Output) -> &str {
    assert!(!output.status.success(), "it was not refused: {}", output.text());
    &output.stderr
}

fn show(lockbox: &Lockbox, key: KeyId) -> Value {
    lockbox.ask(&["key", "show", &key.to_string()])
}

fn remaining_ms(lockbox: &Lockbox, key: KeyId) -> u64 {
    let shown = show(lockbox, key);
    shown["destruction"]["remaining_ms"].as_u64().expect("it is scheduled")
}

/// The commands that an operator in a hurry types, one after the other, with the only key of a volume.
#[test]
fn a_volume_opens_after_three_careless_commands() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let old = a.create_key("data");
    let made = a.ask(&["key", "rotate", &old.to_string()]);
    let job = made["key_id"].as_str().expect("an id");
    let volume = luks::empty(cluster.folder(), "data");
    luks::cryptsetup(&luks::format_args(), &volume, &a.reveal(old)).expect_success("luksFormat");
    a.command(["job", "progress", job, "100"]);
    a.command_around(&["job", "verify", job], ["true"]);
    a.command(["job", "done", job]);
    a.command(["job", "done", job, "--yes"]);
    let key = a.try_reveal(old).expect("the volume's only key");
    assert!(luks::opens(&volume, &key));
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

#[test]
fn the_end_of_a_rotation_shows_the_key_that_it_takes_and_asks() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let old = a.create_key("data");
    let consumer = "cinder/volume/7bd4b53c";
    a.ask(&["key", "consumer", "add", &old.to_string(), consumer]);
    let made = a.ask(&["key", "rotate", &old.to_string()]);
    let job = made["key_id"].as_str().expect("an id");
    a.ask(&["job", "progress", job, "100"]);
    a.command_around(&["job", "verify", job], ["cat"])
        .expect_success("job verify");
    for options in [&[][..], &["--now"]] {
        let asked = a.command([&["job", "done", job], options].concat());
        assert_eq!(asked.status.code(), Some(64), "{}", asked.stderr);
        let material = show(&a, old)["material_id"].as_str().expect("an id").to_owned();
        for part in [&old.to_string(), "data", &material, consumer, "age", "--yes"] {
            assert!(asked.stderr.contains(part), "{part} is not in: {}", asked.stderr);
        }
    }
    assert!(a.holds(old), "it was destroyed without a word");
    assert_eq!(a.ask(&["job", "show", job])["state"], "verified");
}

/// It is of no use at once, everybody can see that, and until it is erased its operator can have it back.
#[test]
fn a_rotated_key_is_scheduled_for_destruction_and_can_be_had_back() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let (old, job) = rotation(&a, "data");
    let bytes = a.reveal(old);
    verify(&a, job, &["cat"]).expect_success("job verify");
    let done = a.ask(&["job", "done", &job.to_string(), "--yes"]);
    assert_eq!(done["scheduled"]["key_id"], old.to_string());
    assert_eq!(done["destroyed_key_id"], Value::Null);

    let why = a.try_reveal(old).expect_err("it is of no use").message().to_owned();
    assert!(why.contains(&format!("lockbox key cancel-destruction {old}")), "{why}");
    refused(&a.command(["key", "clone", &old.to_string(), "--mode", "share"]));
    assert_eq!(
        a.command(["key", "reveal", "data"]).stdout,
        a.reveal(job),
        "the name is the new key's"
    );
    assert_eq!(key_client::volume(&a.key_socket(), "data"), a.reveal(job));
    for operation in [Operation::Move, Operation::Copy] {
        let mark = a.log().mark();
        let end = cluster.transfer(operation, &a, &b, &[old]).wait_for_end();
        assert_eq!(end.state(), TransferState::Refused);
        a.log().wait_for(mark, "is scheduled for destruction");
    }

    let shown = show(&a, old);
    assert_eq!(shown["state"], "scheduled");
    let destruction = &shown["destruction"];
    assert_eq!(
        (&destruction["origin"], &destruction["job"]),
        (&"rotation".into(), &job.to_string().into())
    );
    assert_eq!(destruction["returns_to"], "active");
    let week_ms = 7 * 24 * 60 * 60 * 1_000;
    let remaining = remaining_ms(&a, old);
    assert!(remaining <= week_ms && remaining > week_ms - 600_000, "{remaining}");
    assert_eq!(a.status().scheduled_count, 1);
    eventually("the broker shows it", || {
        let impact = ["impact", &old.to_string(), "--output", "json"];
        let told = cluster.broker().command(impact).expect_success("impact").json();
        let findings = told["findings"].as_array().expect("a list");
        let found = findings.iter().find(|found| found["key_id"] == old.to_string())?;
        (found["state"] == "scheduled").then_some(())
    });

    let back = a.ask(&["key", "cancel-destruction", "data"]);
    assert_eq!(
        (&back["key_id"], &back["state"]),
        (&old.to_string().into(), &"active".into())
    );
    assert_eq!(a.reveal(old), bytes);
    refused(&a.command(["key", "cancel-destruction", &old.to_string()]));
}

#[test]
fn a_kill_does_not_begin_a_grace_time_anew() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.set_grace("60s");
    a.restart();
    let (old, _) = rotated(&a, "data");
    // Run time is noted at the latest when a tenth of what remains has passed.
    eventually("a part of its grace time has passed", || {
        (remaining_ms(&a, old) < 50_000).then_some(())
    });
    a.restart();
    let after = remaining_ms(&a, old);
    assert!(after < 58_000, "it began anew: {after}");
}

/// The daemon is killed before the key is due, while it is erased, or after that, as it happens.
#[test]
fn a_scheduled_key_is_erased_when_it_is_due_although_the_daemon_is_killed() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.set_grace("1s");
    a.restart();
    for name in ["one", "two", "three"] {
        let (old, job) = rotated(&a, name);
        a.restart();
        eventually("it is erased", || (show(&a, old)["state"] == "destroyed").then_some(()));
        refused(&a.command(["key", "cancel-destruction", &old.to_string()]));
        assert!(a.holds(job));
        assert_eq!(a.status().scheduled_count, 0);
    }
}

#[test]
fn the_end_of_a_rotation_destroys_at_once_where_that_is_asked_for() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let (old, job) = rotation(&a, "data");
    verify(&a, job, &["cat"]).expect_success("job verify");
    let done = a.ask(&["job", "done", &job.to_string(), "--now", "--yes"]);
    assert_eq!(done["destroyed_key_id"], old.to_string());
    assert_eq!(show(&a, old)["state"], "destroyed");

    // Also after it was scheduled: nobody has to wait.
    let (old, job) = rotated(&a, "more");
    a.ask(&["job", "done", &job.to_string(), "--now", "--yes"]);
    assert_eq!(show(&a, old)["state"], "destroyed");
    let (old, _) = rotated(&a, "last");
    a.ask(&["key", "destroy", &old.to_string(), "--yes"]);
    assert_eq!(show(&a, old)["state"], "destroyed");
}

/// What a daemon would take for no grace time at all, it does not start with.
#[test]
fn rejects_a_grace_time_without_a_unit() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    a.kill();
    a.set_grace("7");
    let config = a.state_dir().with_file_name("lockbox.toml");
    let served = a.command(["serve".as_ref(), "--config".as_ref(), config.as_os_str()]);
    assert_eq!(served.status.code(), Some(78), "{}", served.stderr);
    assert!(served.stderr.contains("destruction.grace"), "{}", served.stderr);
}
