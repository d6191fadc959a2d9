//! Whoever has taken a lockbox over has it destroy its keys, move them away and forget them before it is retired; what it knew
//! is noticed all the same.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use lockbox_authz::KeyId;
use lockbox_tests::testkit::attacker::copy_folder;
use lockbox_tests::testkit::{Broker, Cluster, Lockbox, Output, eventually};
use serde_json::{Value, json};

fn state(lockbox: &Lockbox, key: KeyId) -> String {
    lockbox.key(key).expect("it is here").state
}

fn impact_of_a(broker: &Broker, more: &[&str]) -> Output {
    let args = ["impact", "--lockbox", "a", "--output", "json"];
    broker.command(args.iter().chain(more))
}

/// What the broker knows of a key at a, once that is so.
fn wait_until_known(broker: &Broker, key: KeyId, state: &str) -> Value {
    eventually(&format!("the broker knows that {key} is {state} at a"), || {
        let impact = impact_of_a(broker, &[]).expect_success("impact").json();
        let is_it =
            |found: &&Value| found["key_id"] == key.to_string() && found["lockbox"] == "a" && found["state"] == state;
        impact["findings"].as_array()?.iter().find(is_it).cloned()
    })
}

fn compromise_a(broker: &Broker, more: &[&str]) -> Output {
    compromise(broker, "a", more)
}

fn compromise(broker: &Broker, lockbox: &str, more: &[&str]) -> Output {
    let admin_key = broker.admin_key_file();
    let args = ["lockbox", "compromise", lockbox, "--yes"];
    let args = args.iter().chain(more);
    let args = args.map(OsStr::new);
    broker.command(args.chain([OsStr::new("--admin-key"), admin_key.as_os_str()]))
}

#[test]
fn a_thief_does_not_hide_what_a_lockbox_knew() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let [a, b, c] = ["a", "b", "c"].map(|name| cluster.add_lockbox(name));
    let elsewhere = b.create_key("elsewhere");
    a.stop();
    let older = cluster.folder().join("older");
    copy_folder(&a.state_dir(), &older);
    a.start();
    let forgotten = a.create_key("forgotten");
    cluster.copy_keys(&a, &b, &[forgotten]).wait();
    wait_until_known(broker, forgotten, "active");

    // The thief puts a folder back that has never had the key, destroys another one, and moves a third one away.
    a.stop();
    fs::remove_dir_all(a.state_dir()).expect("the folder is ours");
    copy_folder(&older, &a.state_dir());
    fs::set_permissions(a.state_dir(), fs::Permissions::from_mode(0o700)).expect("the folder is ours");
    a.start();
    let found = wait_until_known(broker, forgotten, "unreported");
    assert!(found["held_until_ms"].is_i64(), "{found}");
    assert_eq!(
        (&found["remedy"], &found["progress"]),
        (&"deep".into(), &"to do".into())
    );
    let destroyed = a.create_key("destroyed");
    let moved = a.create_key("moved");
    cluster.copy_keys(&a, &b, &[destroyed]).wait();
    wait_until_known(broker, destroyed, "active");
    a.ask(&["key", "destroy", &destroyed.to_string(), "--yes"]);
    cluster.move_keys(&a, &c, &[moved]).wait();
    for (key, said) in [(destroyed, "destroyed"), (moved, "moved")] {
        let found = wait_until_known(broker, key, said);
        assert_eq!(
            (&found["remedy"], &found["progress"]),
            (&"deep".into(), &"to do".into())
        );
    }

    // It is remembered durably, and what is not remembered any more is said.
    broker.restart();
    let early = impact_of_a(broker, &["--since", "60d"]).expect_success("impact");
    assert!(early.stderr.contains("inventory.left_days"), "{}", early.stderr);
    let early = early.json();
    let (held, known) = (&early["held_since_ms"], &early["left_known_from_ms"]);
    assert!(held.as_i64() < known.as_i64(), "{held} {known}");
    let answer = compromise_a(broker, &["--output", "json"]).expect_success("lockbox compromise");
    let counted = "with 3 keys that it has no more: 1 moved away, 1 destroyed, 1 no longer reported";
    assert!(answer.stderr.contains(counted), "{}", answer.stderr);
    let answer = answer.json();
    assert_eq!(
        answer["no_longer_held"],
        json!({ "moved": 1, "destroyed": 1, "unreported": 1 })
    );
    assert_eq!(answer["compromise"]["notices"][0]["materials"], 3);
    for (lockbox, key) in [(&b, forgotten), (&b, destroyed), (&c, moved)] {
        // It may still be on its way back to the broker.
        eventually(&format!("{key} is marked at {}", lockbox.name()), || {
            (state(lockbox, key) == "compromised").then_some(())
        });
    }
    assert_eq!(state(&b, elsewhere), "active", "the thief never had it");
}

/// The operator knows that the machine was sound until now, and may say so; that it was not is said later.
#[test]
fn a_key_that_was_moved_away_is_noticed_if_the_theft_was_before() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let [a, b] = ["a", "b"].map(|name| cluster.add_lockbox(name));
    let moved = a.create_key("moved");
    cluster.move_keys(&a, &b, &[moved]).wait();
    wait_until_known(broker, moved, "moved");
    let refused = compromise_a(broker, &["--since", "tomorrow"]);
    assert!(
        !refused.status.success() && refused.stderr.contains("--since"),
        "{}",
        refused.stderr
    );
    let nothing = compromise_a(broker, &["--since", "0s", "--output", "json"]);
    let nothing = nothing.expect_success("lockbox compromise");
    assert!(
        nothing.stderr.contains("1 key that left the lockbox before"),
        "{}",
        nothing.stderr
    );
    let nothing = nothing.json();
    assert_eq!(nothing["left_earlier"]["count"], 1);
    assert_eq!(nothing["compromise"], Value::Null, "no notice is under way");
    assert_eq!(state(&b, moved), "active");
    let shown = compromise_a(broker, &["--since", "1h"]).expect_success("lockbox compromise");
    assert!(shown.stderr.contains("moved, held until 20"), "{}", shown.stderr);
    eventually("the key is marked at b", || {
        (state(&b, moved) == "compromised").then_some(())
    });
}

/// The command is given again, as when it failed half way, and by then the name is another's.
#[test]
fn a_replacement_is_not_retired_in_place_of_the_stolen_one_whose_name_it_has() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    wait_until_known(broker, key, "active");
    broker.retire("a");
    let replacement = cluster.add_lockbox_in("replacement", "a");
    let refused = compromise(broker, "a", &[]);
    assert!(!refused.status.success());
    for lockbox in [&a, &replacement] {
        assert!(refused.stderr.contains(&lockbox.id().to_string()), "{}", refused.stderr);
    }
    let answer = compromise(broker, &a.id().to_string(), &["--output", "json"]);
    let answer = answer.expect_success("lockbox compromise").json();
    assert_eq!(answer["compromise"]["notices"][0]["materials"], 1);
    assert_eq!(answer["findings"][0]["key_id"], key.to_string());
    assert!(broker.roster().admitted(&replacement.id()).is_some());
}
