//! Bit rot takes the keys that it hits, and no other: the rest is listed, told to the broker and served.

use std::collections::BTreeMap;

use lockbox_authz::KeyId;
use lockbox_rpc::api::local::StoreState;
use lockbox_tests::testkit::{Cluster, Lockbox, eventually};
use serde_json::Value;

/// The exit code of damage in the store.
const DAMAGE: Option<i32> = Some(74);

/// The states that the command line lists, by id; and that it fails if one is damaged.
fn listed(lockbox: &Lockbox, args: &[&str]) -> BTreeMap<KeyId, String> {
    let all = ["key", "list", "--output", "json"].iter().chain(args);
    let output = lockbox.command(all);
    let keys = output.json()["keys"].as_array().expect("a list").clone();
    let states: BTreeMap<KeyId, String> = keys.iter().map(|key| (id(key), text(&key["state"]))).collect();
    let damaged: Vec<&Value> = keys.iter().filter(|key| key["state"] == "damaged").collect();
    match damaged[..] {
        [] => assert!(output.status.success(), "{}", output.stderr),
        _ => assert_eq!(
            output.status.code(),
            DAMAGE,
            "whoever counts on the list overlooks something"
        ),
    }
    for key in damaged {
        assert!(output.stderr.contains(&id(key).to_string()), "{}", output.stderr);
        assert!(text(&key["damage"]).contains("damaged"), "{key}");
    }
    states
}

fn id(key: &Value) -> KeyId {
    text(&key["key_id"]).parse().expect("an id")
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// How a key stands at a lockbox, as the broker was told; `None` if it knows of no such key.
fn reported(cluster: &Cluster, key: KeyId) -> Option<String> {
    let told = cluster
        .broker()
        .command(["impact", &key.to_string(), "--output", "json"]);
    let told = told.expect_success("impact").json();
    let findings = told["findings"].as_array().expect("a list");
    let found = findings.iter().find(|found| found["key_id"] == key.to_string());
    found.map(|found| text(&found["state"]))
}

#[test]
fn a_damaged_key_keeps_no_other_from_being_listed_and_told() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let mut keys = a.create_keys(30);
    keys.sort();
    let gone = keys.pop().expect("there are 30");
    a.destroy(gone).expect("nothing uses it");
    eventually("the broker knows all", || {
        keys.iter().all(|key| reported(&cluster, *key).is_some()).then_some(())
    });
    a.stop();
    // A record, two in a row, a data-encryption key; and what remains of a key that is gone.
    let rotten = [keys[0], keys[7], keys[8], keys[20]];
    a.rot(b'R', &rotten[..3]);
    a.rot(b'W', &rotten[3..]);
    a.rot(b'x', &[gone]);
    a.start();

    let states = listed(&a, &[]);
    assert_eq!(states.keys().copied().collect::<Vec<_>>(), keys);
    for (key, state) in &states {
        let wanted = if rotten.contains(key) { "damaged" } else { "active" };
        assert_eq!(state, wanted, "{key}");
    }
    assert_eq!(listed(&a, &["--all"])[&gone], "damaged");
    let table = a.command(["key", "list"]);
    assert_eq!(table.status.code(), DAMAGE);
    assert!(table.text().contains(&keys[1].to_string()) && table.stderr.contains("lockbox backup restore"));
    // A name that only a damaged key can have is not said to be nobody's.
    let missing = a.command(["key", "show", "vol-of-old"]);
    assert_eq!(missing.status.code(), DAMAGE);
    assert!(missing.stderr.contains(&keys[0].to_string()), "{}", missing.stderr);

    // What changes beside them is told, and they stay what the broker knew of them.
    a.wait_until_connected();
    a.ask(&["key", "set", &keys[1].to_string(), "--state", "suspended"]);
    let new = a.create_key("new");
    eventually("the broker hears of what is whole", || {
        let is_told = reported(&cluster, new).is_some();
        (is_told && reported(&cluster, keys[1])? == "suspended").then_some(())
    });
    assert!(!a.log().has(0, "the inventory was not told"));
    for key in rotten {
        assert_eq!(reported(&cluster, key).as_deref(), Some("active"));
    }
    assert_eq!(a.scanned().store_state(), StoreState::Damaged);
}
