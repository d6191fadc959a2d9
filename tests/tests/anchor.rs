//! A store that is not what was last committed is found out: rolled back as a whole, or in single records. And what is not
//! damaged is served all the same.

use std::fs;
use std::path::Path;
use std::process::Command;

use lockbox::two_slots::FILE_BYTES;
use lockbox_authz::KeyId;
use lockbox_rpc::api::local::StoreState;
use lockbox_store::Batch;
use lockbox_tests::testkit::disk::ReadOnly;
use lockbox_tests::testkit::{Cluster, Lockbox, eventually};
use tonic::Code;

fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
}

fn unseal(lockbox: &Lockbox) -> (bool, String) {
    let key_file = lockbox.key_file();
    let output = lockbox.command(["unseal".as_ref(), "--key-file".as_ref(), key_file.as_os_str()]);
    (output.status.success(), output.stderr)
}

fn of_key(key: KeyId) -> impl Fn(&[u8]) -> bool {
    move |place| matches!(place[0], b'R' | b'W') && place.ends_with(&key.0)
}

#[test]
fn rejects_a_store_that_was_put_back() {
    let cluster = Cluster::start();
    let lockbox = cluster.new_lockbox("a");
    let old = lockbox.create_key("old");
    lockbox.stop();
    let dir = lockbox.state_dir();
    copy_folder(&dir.join("store"), &dir.join("before"));
    lockbox.start();
    let new = lockbox.create_key("new");
    lockbox.stop();
    fs::remove_dir_all(dir.join("store")).expect("the folder is ours");
    fs::rename(dir.join("before"), dir.join("store")).expect("the folder is ours");

    lockbox.start_sealed();
    let (opened, said) = unseal(&lockbox);
    assert!(
        !opened && said.contains("rolled back") && said.contains("lockbox store verify"),
        "{said}"
    );
    assert!(lockbox.status().sealed);
    lockbox.stop();

    let (whole, found, said) = lockbox.offline_store("verify");
    assert!(!whole && said.contains("lockbox store accept"), "{said}");
    assert!(
        found["anchor"].as_str().expect("it is told").contains("rolled back"),
        "{found}"
    );
    assert_eq!(found["keys"], 1);
    // Looking changes nothing.
    lockbox.start_sealed();
    assert!(!unseal(&lockbox).0);
    lockbox.stop();

    let (accepted, found, said) = lockbox.offline_store("accept");
    assert!(accepted && found["accepted"] == true, "{said}");
    lockbox.start();
    assert!(lockbox.holds(old) && !lockbox.holds(new));
    let status = lockbox.scanned();
    assert_eq!(status.store_state(), StoreState::Whole);
    // The ledger may have forgotten what was spent: transfers wait for an operator.
    assert!(
        status.alarms.iter().any(|alarm| alarm.what.contains("accepted")),
        "nobody is told"
    );
    lockbox.stop();
    assert!(lockbox.offline_store("verify").0);
}

/// One key's record is lost from the store, and another is put back in an older version that opens at its place.
#[test]
fn a_damaged_record_is_named_and_takes_no_other_with_it() {
    let cluster = Cluster::start();
    let [a, b] = ["a", "b"].map(|name| cluster.add_lockbox(name));
    let keys = a.create_keys(20);
    let kept = keys[..19].iter().map(|key| (*key, a.reveal(*key))).collect::<Vec<_>>();
    let lost = keys[19];
    a.stop();
    let mut batch = Batch::new();
    for (place, _) in a.rows(|place| place[0] == b'R' && place.ends_with(&lost.0)) {
        batch.remove(place);
    }
    a.change_store(batch);

    let (whole, found, _) = a.offline_store("verify");
    assert!(!whole);
    assert_eq!(
        (&found["keys"], &found["damaged_count"]),
        (&19.into(), &1.into()),
        "{found}"
    );
    assert!(
        found["damaged"][0]["record"]
            .as_str()
            .expect("a name")
            .contains(&lost.to_string()),
        "{found}"
    );

    a.start();
    let status = a.scanned();
    assert_eq!(status.store_state(), StoreState::Damaged);
    assert_eq!(status.damaged_records.len(), 1);
    assert!(status.damaged_records[0].contains(&lost.to_string()));
    assert!(
        kept.iter().all(|(key, bytes)| a.reveal(*key) == *bytes),
        "an undamaged key is not served"
    );
    a.wait_until_connected();
    let transfer = cluster.copy_keys(&a, &b, &keys[..1]);
    let alarm = eventually("the alarm is raised", || a.status().alarms.first().cloned());
    assert!(!b.holds(keys[0]), "a transfer went on in spite of the alarm");
    assert!(alarm.what.contains("damaged"));
    a.command(["alarm", "clear", &alarm.alarm_id.to_string()])
        .expect_success("alarm clear");
    // The operator has looked; what is whole may leave again.
    drop(transfer);
    cluster.copy_keys(&a, &b, &keys[1..2]).wait();
}

/// A record that was exchanged for its own older version opens; only the digest of all records tells.
#[test]
fn a_record_that_was_put_back_is_found_out() {
    let cluster = Cluster::start();
    let lockbox = cluster.new_lockbox("a");
    let [first, second] = ["first", "second"].map(|name| lockbox.create_key(name));
    lockbox.stop();
    let before = lockbox.rows(of_key(first));
    lockbox.start();
    lockbox.destroy(first).expect("it is destroyed");
    lockbox.stop();
    // The rows come back, and the tombstone goes.
    let mut batch = Batch::new();
    for (place, stored) in before {
        batch.put(place, stored);
    }
    for (place, _) in lockbox.rows(|place| place[0] == b'x') {
        batch.remove(place);
    }
    lockbox.change_store(batch);

    lockbox.start();
    assert_eq!(lockbox.scanned().store_state(), StoreState::Damaged);
    let refused = lockbox.try_reveal(first).expect_err("its leaf's key is gone");
    assert_eq!(refused.code(), Code::DataLoss);
    assert!(refused.message().contains(&first.to_string()), "{refused}");
    assert!(lockbox.holds(second));
}

/// Who belongs to the cluster is lost, and the keys are not.
#[test]
fn a_damaged_roster_does_not_keep_the_keys_shut() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("volume");
    let bytes = a.reveal(key);
    a.stop();
    let mut batch = Batch::new();
    for (place, mut stored) in a.rows(|place| place[0] == b'e').into_iter().take(1) {
        *stored.last_mut().expect("it is sealed") ^= 1;
        batch.put(place, stored);
    }
    a.change_store(batch);
    a.start_sealed();
    assert!(unseal(&a).0, "the keys are shut");
    assert_eq!(a.reveal(key), bytes);
    assert!(
        a.status().alarms.iter().any(|alarm| alarm.what.contains("damaged")),
        "nobody is told"
    );
}

/// An anchor that is gone or empty is no reason to lose the keys, nor to take the store for whole.
fn rejects_until_accepted(damage: impl FnOnce(&Path)) {
    let cluster = Cluster::start();
    let lockbox = cluster.new_lockbox("a");
    let key = lockbox.create_key("volume");
    lockbox.stop();
    damage(&lockbox.state_dir().join("anchor"));
    lockbox.start_sealed();
    let (opened, said) = unseal(&lockbox);
    assert!(
        !opened && said.contains("lockbox store verify") && said.contains("lockbox store accept"),
        "{said}"
    );
    lockbox.stop();
    let (whole, found, _) = lockbox.offline_store("verify");
    assert!(!whole && found["keys"] == 1, "{found}");
    assert!(lockbox.offline_store("accept").0);
    lockbox.start();
    assert!(lockbox.holds(key));
}

/// A copy of the folder may have left it out.
#[test]
fn rejects_a_store_whose_anchor_is_gone_until_it_is_accepted() {
    rejects_until_accepted(|anchor| fs::remove_file(anchor).expect("the folder is ours"));
}

/// A file system may leave a file empty after a power cut.
#[test]
fn rejects_a_store_whose_anchor_is_empty_until_it_is_accepted() {
    rejects_until_accepted(|anchor| fs::write(anchor, "").expect("the folder is ours"));
}

/// Either slot is enough, so half of a file is as good as the whole, and is made whole again.
#[test]
fn half_of_the_anchor_and_of_the_root_is_enough() {
    let cluster = Cluster::start();
    let lockbox = cluster.new_lockbox("a");
    let [key, doomed] = ["volume", "doomed"].map(|name| lockbox.create_key(name));
    lockbox.destroy(doomed).expect("it is destroyed");
    lockbox.stop();
    let files = ["anchor", "root"].map(|name| lockbox.state_dir().join(name));
    for file in &files {
        let bytes = fs::read(file).expect("reads");
        fs::write(file, &bytes[..bytes.len() / 2 + 100]).expect("the folder is ours");
    }
    lockbox.start();
    assert!(lockbox.holds(key) && !lockbox.holds(doomed));
    lockbox.create_key("another");
    lockbox.stop();
    for file in files {
        assert_eq!(fs::metadata(file).expect("is there").len(), FILE_BYTES as u64);
    }
}

/// The root opens every key, so only a copy of it helps.
#[test]
fn rejects_an_empty_root_and_takes_it_from_a_copy() {
    let cluster = Cluster::start();
    let lockbox = cluster.new_lockbox("a");
    let key = lockbox.create_key("volume");
    lockbox.stop();
    let root = lockbox.state_dir().join("root");
    let kept = fs::read(&root).expect("reads");
    for empty in [true, false] {
        if empty {
            fs::write(&root, "").expect("the folder is ours");
        } else {
            fs::remove_file(&root).expect("the folder is ours");
        }
        lockbox.start_sealed();
        let (opened, said) = unseal(&lockbox);
        let advised = said.contains("the file `root`") && said.contains("lockbox backup restore");
        assert!(!opened && advised, "{said}");
        lockbox.stop();
    }
    fs::write(&root, kept).expect("the folder is ours");
    lockbox.start();
    assert!(lockbox.holds(key));
}

/// A file system that had errors is mounted read-only. A storage server needs its keys then, too.
#[test]
fn keys_are_served_from_a_read_only_file_system_and_nothing_is_changed() {
    let cluster = Cluster::start();
    let lockbox = cluster.new_lockbox("a");
    let key = lockbox.create_key("volume");
    let secret = lockbox.reveal(key);
    lockbox.stop();
    // As a user without the right to mount, there is nothing to see.
    let Some(read_only) = ReadOnly::mount(&lockbox.state_dir()) else {
        return;
    };
    lockbox.start();
    assert_eq!(lockbox.reveal(key), secret);
    let refused = lockbox.command(["key", "create", "--name", "another"]);
    assert!(refused.stderr.contains("read-only file system"), "{}", refused.stderr);
    let refused = lockbox.destroy(key).expect_err("nothing can be removed");
    assert!(refused.message().contains("read-only file system"), "{refused}");
    assert_eq!(lockbox.reveal(key), secret);
    lockbox.stop();
    assert!(lockbox.offline_store("verify").0, "the store is read offline, too");
    drop(read_only);
    lockbox.start();
    assert_eq!(lockbox.reveal(key), secret);
    lockbox.create_key("another");
}
