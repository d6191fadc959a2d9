//! Operators name keys at the broker as they do at a lockbox, and see names where there were ids only.

use lockbox_authz::KeyId;
use lockbox_tests::testkit::{Broker, Cluster, Lockbox, Output, eventually};
use serde_json::Value;

/// Asks for the impact of a key, until the broker has heard of it what is wanted. Gives the finding at a lockbox.
fn wait_until_known(broker: &Broker, key: &str, lockbox: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("the broker knows {key} at {lockbox}"), || {
        let impact = broker.command(["impact", key, "--output", "json"]);
        let findings = impact.status.success().then(|| impact.json()["findings"].take())?;
        let is_it = |found: &&Value| found["lockbox"] == lockbox && wanted(found);
        findings.as_array()?.iter().find(is_it).cloned()
    })
}

fn refused(output: &Output) -> &str {
    assert!(!output.status.success(), "{}", output.text());
    &output.stderr
}

fn set(lockbox: &Lockbox, key: KeyId, args: &[&str]) {
    let key = key.to_string();
    let all = ["key", "set", &key].into_iter().chain(args.iter().copied());
    lockbox.command(all).expect_success("key set");
}

#[test]
fn a_key_is_moved_and_marked_by_its_name() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let [store1, store2] = ["store1", "store2"].map(|name| cluster.add_lockbox(name));
    let other = store1.create_key("vol-1");
    let key = store1.create_key("vol-2");
    let found = wait_until_known(broker, "store1/vol-2", "store1", |_| true);
    assert_eq!(
        (&found["key_id"], &found["name"]),
        (&key.to_string().into(), &"vol-2".into())
    );
    assert_eq!(found["labels"], serde_json::json!({}));

    let authorize = [
        "transfer",
        "authorize",
        "--source",
        "store1",
        "--target",
        "store2",
        "--operation",
        "move",
    ];
    let moved = broker.command(authorize.iter().chain(&["--key", "store1/vol-2", "--wait"]));
    let moved = moved.expect_success("transfer authorize");
    assert!(
        moved.stderr.contains(&format!("store1/vol-2 is key {key}")),
        "{}",
        moved.stderr
    );
    assert!(store2.holds(key) && !store1.holds(key) && store1.holds(other));

    // A name and labels that change are told again.
    wait_until_known(broker, "store2/vol-2", "store2", |_| true);
    set(&store2, key, &["--name", "vol-9", "--label", "tier=gold"]);
    let found = wait_until_known(broker, "store2/vol-9", "store2", |found| {
        found["labels"]["tier"] == "gold"
    });
    assert_eq!(found["key_id"], key.to_string());
    let before = broker.command(["impact", "store2/vol-2"]);
    assert!(
        refused(&before).contains("store2") && before.stderr.contains("vol-2"),
        "{}",
        before.stderr
    );
    let table = broker.command(["impact", "store2/vol-9"]).expect_success("impact");
    let row = table
        .text()
        .lines()
        .find(|line| line.contains("store2"))
        .map(str::to_owned);
    assert!(
        row.is_some_and(|row| row.contains(&key.to_string()) && row.contains("vol-9")),
        "{}",
        table.text()
    );

    let admin = broker.admin_key_file();
    let admin = admin.to_str().expect("a path of ours");
    let marked = broker.command(["key", "compromise", "store2/vol-9", "--yes", "--admin-key", admin]);
    let marked = marked.expect_success("key compromise");
    assert!(
        marked.stderr.contains("vol-9"),
        "what is marked is shown by name: {}",
        marked.stderr
    );
    assert_eq!(store2.key(key).expect("it is here").state, "compromised");
}

/// The wrong one might leave.
#[test]
fn rejects_a_name_that_two_keys_of_the_source_have() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let [store1, store2] = ["store1", "store2"].map(|name| cluster.add_lockbox(name));
    let (theirs, ours) = (store1.create_key("data"), store2.create_key("data"));
    cluster.move_keys(&store1, &store2, &[theirs]).wait();
    for key in [theirs, ours] {
        wait_until_known(broker, &key.to_string(), "store2", |found| found["name"] == "data");
    }
    let authorize = [
        "transfer",
        "authorize",
        "--source",
        "store2",
        "--target",
        "store1",
        "--operation",
        "move",
    ];
    let output = broker.command(authorize.iter().chain(&["--key", "store2/data"]));
    let says = refused(&output);
    assert!(
        says.contains(&theirs.to_string()) && says.contains(&ours.to_string()),
        "{says}"
    );
    assert!(store2.holds(theirs) && store2.holds(ours));
}

#[test]
fn a_lockbox_that_is_configured_so_tells_no_names() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let store1 = cluster.add_lockbox("store1");
    let key = store1.create_key("vol-2");
    set(&store1, key, &["--label", "tier=gold"]);
    wait_until_known(broker, "store1/vol-2", "store1", |found| {
        found["labels"]["tier"] == "gold"
    });

    store1.stop();
    store1.edit_config("[inventory]\n", "[inventory]\nnames = false\n");
    store1.start();
    let id = key.to_string();
    wait_until_known(broker, &id, "store1", |found| {
        found["name"].is_null() && found["labels"] == serde_json::json!({})
    });
    let output = broker.command(["impact", "store1/vol-2"]);
    let says = refused(&output);
    assert!(says.contains("by its id") && says.contains("[inventory]"), "{says}");
    // What changes later is told without, too.
    let later = store1.create_key("vol-3").to_string();
    wait_until_known(broker, &later, "store1", |found| found["name"].is_null());
}
