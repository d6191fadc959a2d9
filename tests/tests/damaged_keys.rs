//! Bit rot takes the keys that it hits, and no other: the rest is listed, told to the broker and served.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use lockbox_authz::KeyId;
use lockbox_rpc::api::local::StoreState;
use lockbox_store::Batch;
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

/// Takes a key's rows of these kinds away. The daemon is stopped.
fn lose(lockbox: &Lockbox, kinds: &[u8], key: KeyId) {
    let mut batch = Batch::new();
    for (place, _) in lockbox.rows(|place| kinds.contains(&place[0]) && place.ends_with(&key.0)) {
        batch.remove(place);
    }
    lockbox.change_store(batch);
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
    let name = a.key(keys[0]).expect("it is here").name;
    a.stop();
    // A record, two in a row, a data-encryption key; and what remains of a key that is gone.
    let rotten = [keys[0], keys[7], keys[8], keys[20], keys[25]];
    a.rot(b'R', &rotten[..3]);
    a.rot(b'W', &rotten[3..4]);
    lose(&a, b"R", rotten[4]);
    a.rot(b'x', &[gone]);
    a.start();

    // Before the scan has ended nobody can name the lost key; whoever counts on the list is told so all the same.
    assert_eq!(a.command(["key", "list"]).status.code(), DAMAGE);
    a.scanned();
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
    // A damaged key's name still means it.
    let shown = a.command(["key", "show", &name]);
    assert_eq!(shown.status.code(), DAMAGE, "{}", shown.stderr);
    assert!(shown.stderr.contains(&keys[0].to_string()), "{}", shown.stderr);

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

/// Nothing in the store names it any more, but that it is missing is known.
#[test]
fn a_key_that_is_lost_altogether_is_missed_and_not_told_as_gone() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let mut keys = a.create_keys(3);
    keys.sort();
    eventually("the broker knows all", || {
        keys.iter().all(|key| reported(&cluster, *key).is_some()).then_some(())
    });
    a.stop();
    lose(&a, b"RW", keys[1]);
    a.start();
    for _ in 0..2 {
        let list = a.command(["key", "list"]);
        assert_eq!(list.status.code(), DAMAGE);
        assert!(list.stderr.contains("1 keys are missing"), "{}", list.stderr);
        a.scanned();
    }
    a.wait_until_connected();
    a.ask(&["key", "set", &keys[0].to_string(), "--state", "suspended"]);
    eventually("the broker hears of what changes", || {
        (reported(&cluster, keys[0])? == "suspended").then_some(())
    });
    assert_eq!(reported(&cluster, keys[1]).as_deref(), Some("active"));
}

/// A key of each damage is destroyed: nothing is left that would be reported, and the broker hears of it as of any destroy.
#[test]
fn damaged_keys_can_be_destroyed_and_leave_the_store_whole() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let keys = a.create_keys(8);
    let snapshot = a.ask(&["key", "create", "--name", "parent", "--clone-policy", "share"]);
    let snapshot = id(&a.ask(&["key", "snapshot", &text(&snapshot["key_id"])]));
    eventually("the broker knows all", || reported(&cluster, snapshot));
    a.stop();
    let (rotten, lost) = ([keys[0], snapshot, keys[1]], keys[2]);
    a.rot(b'R', &rotten[..2]);
    a.rot(b'W', &rotten[2..]);
    lose(&a, b"R", lost);
    a.start();
    assert_eq!(a.scanned().damaged_records.len(), 4);
    assert_eq!(listed(&a, &[])[&lost], "damaged");

    let refused = a.command(["key", "destroy", &keys[0].to_string(), "--yes"]);
    assert_eq!(refused.status.code(), DAMAGE);
    assert!(refused.stderr.contains("with force"), "{}", refused.stderr);
    for key in rotten.iter().chain([&lost]) {
        let destroyed = a.ask(&["key", "destroy", &key.to_string(), "--yes", "--force"]);
        assert_eq!(destroyed["state"], "destroyed");
    }
    let of_snapshot = a.ask(&["key", "show", &snapshot.to_string()]);
    assert_eq!(of_snapshot["relation"], "snapshot", "what it was is not told any more");

    eventually("nothing is damaged any more", || {
        (a.status().store_state() == StoreState::Whole).then_some(())
    });
    for alarm in a.status().alarms {
        a.command(["alarm", "clear", &alarm.alarm_id.to_string()])
            .expect_success("alarm clear");
    }
    for key in rotten.iter().chain([&lost]) {
        eventually("the broker hears of the destroy", || {
            (reported(&cluster, *key)? == "destroyed").then_some(())
        });
    }
    // Transfers go on, and what was destroyed does not come back.
    cluster.copy_keys(&a, &b, &keys[3..4]).wait();
    let again = a.command(["key", "create", "--id", &keys[0].to_string()]);
    assert!(again.stderr.contains("was destroyed"), "{}", again.stderr);
    a.stop();
    let (whole, found, said) = a.offline_store("verify");
    assert!(whole, "{found} {said}");
    a.start();
    assert!(keys[3..].iter().all(|key| a.holds(*key)));
    assert_eq!(a.scanned().store_state(), StoreState::Whole);
    assert!(a.status().alarms.is_empty(), "an alarm came back");
}

/// A destroyed key stays destroyed, whatever it was destroyed for: evidence keeps it out of a restored backup.
#[test]
fn a_key_that_was_destroyed_as_damaged_does_not_come_back_from_a_backup() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let [kept, rotten] = ["kept", "rotten"].map(|name| a.create_key(name));
    let (backup, secret) = (cluster.folder().join("backup"), a.key_file());
    let create = ["backup", "create", "--key-file"].map(OsStr::new);
    let out = [secret.as_os_str(), "--out".as_ref(), backup.as_os_str()];
    a.command(create.into_iter().chain(out)).expect_success("backup create");
    a.stop();
    a.rot(b'R', &[rotten]);
    a.start();
    a.scanned();
    a.ask(&["key", "destroy", &rotten.to_string(), "--yes", "--force"]);
    eventually("the broker hears of the destroy", || {
        (reported(&cluster, rotten)? == "destroyed").then_some(())
    });
    let evidence = cluster.folder().join("evidence");
    let export = ["evidence", "export", "--lockbox", "a", "--out"].map(OsStr::new);
    cluster
        .broker()
        .command(export.into_iter().chain([evidence.as_os_str()]))
        .expect_success("evidence export");

    let given = ["--evidence", "--backup-key-file"].map(OsStr::new);
    let given = [given[0], evidence.as_os_str(), given[1], secret.as_os_str()];
    let (restored, made) = cluster.restore("b", &backup, &given);
    made.expect_success("backup restore");
    assert!(restored.holds(kept) && !restored.holds(rotten));
}

/// Turns one bit of the row of a node of the key tree. The daemon is stopped.
fn rot_node(lockbox: &Lockbox, depth: u8, number: u16) {
    let node = [&b"T"[..], &[depth], &number.to_be_bytes()].concat();
    let rows = lockbox.rows(|place| place == node);
    let [(place, stored)] = &rows[..] else {
        panic!("the node has no row");
    };
    let mut batch = Batch::new();
    let mut stored = stored.clone();
    stored[40] ^= 1;
    batch.put(place.clone(), stored);
    lockbox.change_store(batch);
}

#[test]
fn a_damaged_node_of_the_key_tree_takes_only_the_keys_below_it() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    // Below one of the 32 nodes next to the root there are two at least.
    a.create_keys(33);
    a.stop();
    let mut nodes: BTreeMap<u16, Vec<KeyId>> = BTreeMap::new();
    for (place, _) in a.rows(|place| place[0] == b'W') {
        let leaf = u16::from_be_bytes([place[1], place[2]]);
        let key = KeyId::from_slice("key_id", &place[3..]).expect("an id");
        nodes.entry(leaf >> 10).or_default().push(key);
    }
    let (node, mut below) = nodes.into_iter().max_by_key(|(_, keys)| keys.len()).expect("33 keys");
    let destroyed = below.pop().expect("two at least");
    a.start();
    a.destroy(destroyed).expect("nothing needs it");
    a.stop();
    rot_node(&a, 1, node);
    a.start();
    let status = a.scanned();
    assert_eq!(status.store_state(), StoreState::Damaged);
    assert_eq!(
        status.damaged_records.len(),
        below.len() + 1,
        "{:?}",
        status.damaged_records
    );
    for (key, state) in listed(&a, &[]) {
        assert_eq!(state == "damaged", below.contains(&key), "{key}");
        assert_eq!(a.try_reveal(key).is_ok(), !below.contains(&key), "{key}");
    }
    let gone = below.pop().expect("one at least").to_string();
    a.ask(&["key", "destroy", &gone, "--yes", "--force"]);
    let new = a.create_key("new");
    a.restart();
    assert!(a.holds(new));
    assert_eq!(a.scanned().damaged_records.len(), below.len());
}

/// All keys are below the root. The lockbox says which they are, and changes nothing that another copy of the store needs.
#[test]
fn a_damaged_root_of_the_key_tree_does_not_keep_a_lockbox_shut() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let keys = a.create_keys(3);
    a.destroy(keys[0]).expect("nothing needs it");
    a.stop();
    rot_node(&a, 0, 0);
    a.start();
    assert_eq!(a.scanned().damaged_records.len(), 3);
    assert!(listed(&a, &[]).values().all(|state| state == "damaged"));
    let create = a.command(["key", "create", "--name", "new"]);
    assert_eq!(create.status.code(), DAMAGE);
    assert!(create.stderr.contains("the key tree is damaged"), "{}", create.stderr);
    let destroy = a.command(["key", "destroy", &keys[1].to_string(), "--yes", "--force"]);
    assert_eq!(destroy.status.code(), DAMAGE, "{}", destroy.stderr);
    a.stop();
    let dir = a.state_dir();
    let mut accept = vec!["store", "accept", "--state-dir"]
        .into_iter()
        .map(OsStr::new)
        .collect::<Vec<_>>();
    let key_file = a.key_file();
    accept.extend([dir.as_os_str(), "--key-file".as_ref(), key_file.as_os_str()]);
    assert!(!a.command(accept).status.success(), "every key is given up");
    // The bit is turned back, as by a copy of the store.
    rot_node(&a, 0, 0);
    a.start();
    assert!(keys[1..].iter().all(|key| a.holds(*key)));
}
