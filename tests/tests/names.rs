//! A name means one key, for the command line, for programs and for systemd.

use lockbox_authz::KeyId;
use lockbox_tests::testkit::{Cluster, Lockbox, key_client};

fn id(text: &str) -> KeyId {
    text.parse().expect("it is an id")
}

fn made(lockbox: &Lockbox, command: &[&str]) -> KeyId {
    id(lockbox.ask(command)["key_id"].as_str().expect("a key has an id"))
}

/// Reveals a key as an operator does.
fn revealed(lockbox: &Lockbox, key: &str) -> Vec<u8> {
    lockbox
        .command(["key", "reveal", key])
        .expect_success("key reveal")
        .stdout
}

/// Runs a command that has to fail, and returns what it says.
fn refused(lockbox: &Lockbox, command: &[&str]) -> String {
    let output = lockbox.command(command);
    assert!(!output.status.success(), "{command:?} succeeded");
    output.stderr
}

/// The second key would make the first unreachable: its volume would stay shut at the next boot.
#[test]
fn rejects_a_second_key_of_a_name() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let key = made(&a, &["key", "create", "--name", "data"]);
    let other = made(&a, &["key", "create", "--name", "logs", "--clone-policy", "share"]);
    for command in [
        &["key", "create", "--name", "data"][..],
        &["key", "create", "--name", &key.to_string()],
        &["key", "snapshot", "logs", "--name", "data"],
        &["key", "set", "logs", "--name", "data"],
    ] {
        let says = refused(&a, command);
        assert!(says.contains(&key.to_string()), "{command:?}: {says}");
    }
    let import = a.command_with(["key", "import", "--name", "data"], &[7; 32]);
    let says = import.stderr;
    assert!(says.contains(&key.to_string()), "key import: {says}");
    let mut held = a.keys();
    held.sort_unstable();
    let mut wanted = [key, other];
    wanted.sort_unstable();
    assert_eq!(held, wanted);
    assert_eq!(key_client::volume(&a.key_socket(), "data"), a.reveal(key));
}

/// Scripts that open a volume by its key's name must go on working on the day when the key is rotated.
#[test]
fn a_name_is_found_while_its_key_is_rotated() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let old = a.create_key("data");
    let new = made(&a, &["key", "rotate", "data"]);
    assert_eq!(revealed(&a, "data"), a.reveal(old));
    let job = new.to_string();
    a.ask(&["job", "progress", &job, "100"]);
    a.command_around(&["job", "verify", &job], ["sh", "-c", "cat > /dev/null"])
        .expect_success("job verify");
    assert_eq!(revealed(&a, "data"), a.reveal(new));
}

/// Storage systems name volumes with UUIDs.
#[test]
fn a_name_that_is_a_uuid_is_found() {
    let cluster = Cluster::start();
    let a = cluster.new_lockbox("a");
    let name = "8c6f7ad2-4c5e-4f8e-9b1a-0d2c3e4f5a6b";
    let key = made(&a, &["key", "create", "--name", name]);
    assert_eq!(revealed(&a, name), a.reveal(key));
    assert_eq!(
        id(a.ask(&["key", "show", name])["key_id"].as_str().expect("an id")),
        key
    );
    a.command(["key", "destroy", name, "--yes"])
        .expect_success("key destroy");
    assert!(!a.holds(key));
}

/// Two clusters' worth of volumes called "data" meet on one server: each key must still be had, and no volume may be given the
/// other's.
#[test]
fn a_key_that_arrives_with_a_taken_name_is_shown_and_refused_by_name() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let (theirs, ours) = (a.create_key("data"), b.create_key("data"));
    cluster.move_keys(&a, &b, &[theirs]).wait();

    let says = refused(&b, &["key", "reveal", "data"]);
    // The wrong one must not be destroyed either.
    refused(&b, &["key", "destroy", "data", "--yes"]);
    assert!(b.holds(theirs) && b.holds(ours));
    let mark = b.log().mark();
    assert_eq!(key_client::volume(&b.key_socket(), "data"), b"");
    let logged = b.log().wait_for(mark, "not served");
    for key in [theirs, ours] {
        assert!(says.contains(&key.to_string()), "{says}");
        assert!(logged.contains(&key.to_string()), "{logged}");
        assert_eq!(revealed(&b, &key.to_string()), b.reveal(key));
    }
    let status = b.command(["status"]).text();
    assert!(
        status.contains("WARNING") && status.contains("a name that another key here has"),
        "{status}"
    );
    let list = b.command(["key", "list"]).expect_success("key list").text();
    assert_eq!(list.matches("(by id only)").count(), 2, "{list}");

    // The warning stops nothing.
    let other = a.create_key("other");
    cluster.move_keys(&a, &b, &[other]).wait();
    // Renaming one of them ends the conflict.
    b.command(["key", "set", &theirs.to_string(), "--name", "data-of-a"])
        .expect_success("key set");
    assert_eq!(revealed(&b, "data"), b.reveal(ours));
    assert_eq!(key_client::volume(&b.key_socket(), "data"), b.reveal(ours));
}

/// Whatever was done with one of them before.
#[test]
fn rejects_a_name_that_a_rotated_key_and_another_one_have() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let (theirs, ours) = (a.create_key("data"), b.create_key("data"));
    let rotated = made(&b, &["key", "rotate", &ours.to_string()]);
    b.ask(&["job", "progress", &rotated.to_string(), "100"]);
    b.command_around(
        &["job", "verify", &rotated.to_string()],
        ["sh", "-c", "cat > /dev/null"],
    )
    .expect_success("job verify");
    cluster.move_keys(&a, &b, &[theirs]).wait();
    let says = refused(&b, &["key", "reveal", "data"]);
    for key in [rotated, theirs] {
        assert!(says.contains(&key.to_string()), "{says}");
    }
    assert!(!says.contains(&ours.to_string()), "its data has the new key: {says}");
}
