//! Keys for systemd: each goes to the volume or the unit that it is for, and to nobody else.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use lockbox_authz::KeyId;
use lockbox_tests::testkit::key_client::{self, KeyClient, as_user};
use lockbox_tests::testkit::{Cluster, Lockbox, eventually};

const NOBODY: u32 = 65_534;

/// A lockbox alone.
fn alone() -> (Cluster, Lockbox) {
    let cluster = Cluster::start();
    let lockbox = cluster.new_lockbox("a");
    (cluster, lockbox)
}

/// Asks from this address, is given nothing, and finds the reason in the log.
fn refused(lockbox: &Lockbox, name: &str, why: &str) {
    let mark = lockbox.log().mark();
    assert_eq!(key_client::ask(&lockbox.key_socket(), name), b"", "{name}");
    let line = lockbox.log().wait_for(mark, "not served");
    assert!(line.contains(why), "{line}");
}

fn volume(name: &str) -> String {
    format!("{}/cryptsetup/{name}", key_client::random())
}

#[test]
fn a_volume_is_given_the_key_of_its_name() {
    let (_cluster, a) = alone();
    let (data, logs) = (a.create_key("data"), a.create_key("logs"));
    assert_eq!(key_client::volume(&a.key_socket(), "data"), a.reveal(data));
    assert_eq!(key_client::volume(&a.key_socket(), "logs"), a.reveal(logs));
    assert!(!a.log().text().contains("not served"));
}

/// A unit's credential, and a volume's key, in the hands of another unit would be the end of keeping them apart.
#[test]
fn a_credential_goes_to_its_unit_alone() {
    let (_cluster, a) = alone();
    let key = a.create_key("app.service/tls");
    a.create_key("tls");
    let socket = a.key_socket();
    assert_eq!(key_client::credential(&socket, "app.service", "tls"), a.reveal(key));
    let random = key_client::random();
    refused(
        &a,
        &format!("{random}/unit/other.service/tls"),
        "no key with the id or name",
    );
    refused(&a, &volume("app.service/tls"), "is not of the form");
}

/// A key keeps its id when it moves, so such a line holds on every node.
#[test]
fn the_configuration_can_name_another_key_by_id_or_name() {
    let (_cluster, a) = alone();
    let (data, tls) = (a.create_key("vol-1"), a.create_key("tls-key"));
    let own = a.create_key("data");
    a.configure_key_socket(&format!(
        "volumes = {{ data = \"{data}\" }}\ncredentials = {{ \"app.service/tls\" = \"tls-key\" }}"
    ));
    let socket = a.key_socket();
    assert_eq!(key_client::volume(&socket, "data"), a.reveal(data));
    assert_eq!(key_client::credential(&socket, "app.service", "tls"), a.reveal(tls));
    assert_ne!(a.reveal(own), a.reveal(data));
}

#[test]
fn rejects_a_name_that_no_key_has() {
    let (_cluster, a) = alone();
    refused(&a, &volume("data"), "no key with the id or name \"data\"");
}

fn made(lockbox: &Lockbox, command: &[&str]) -> KeyId {
    let key = lockbox.ask(command);
    let id = key["key_id"].as_str().expect("a key has an id");
    id.parse().expect("it is one")
}

fn rotated(lockbox: &Lockbox, key: KeyId) -> KeyId {
    made(lockbox, &["key", "rotate", &key.to_string()])
}

/// The volume's data was opened with the new key.
fn verify(lockbox: &Lockbox, job: KeyId) {
    let job = job.to_string();
    lockbox.ask(&["job", "progress", &job, "100"]);
    lockbox
        .command_around(&["job", "verify", &job], ["sh", "-c", "cat > /dev/null"])
        .expect_success("job verify");
}

/// What is made of a key has a name of its own: the volume must still open at the next boot.
#[test]
fn snapshots_and_clones_keep_no_volume_shut() {
    let (_cluster, a) = alone();
    let data = made(
        &a,
        &["key", "create", "--name", "data", "--clone-policy", "share,rekey,layer"],
    );
    made(&a, &["key", "snapshot", "data"]);
    let id = data.to_string();
    let clones = ["share", "rekey", "layer"].map(|mode| made(&a, &["key", "clone", &id, "--mode", mode]));
    assert_eq!(key_client::volume(&a.key_socket(), "data"), a.reveal(data));

    // Nor does the rotation of one of them.
    let again = rotated(&a, clones[0]);
    assert_eq!(key_client::volume(&a.key_socket(), "data"), a.reveal(data));
    verify(&a, again);
    assert_eq!(key_client::volume(&a.key_socket(), "data"), a.reveal(data));
    a.ask(&["job", "done", &again.to_string(), "--yes"]);
    assert!(!a.holds(clones[0]));
    assert_eq!(key_client::volume(&a.key_socket(), "data"), a.reveal(data));
}

/// Whoever boots while a volume is encrypted anew needs the key that the volume has at that time, by name and by id, over any
/// number of rotations.
#[test]
fn a_volume_is_given_the_key_that_its_rotation_has_come_to() {
    let (_cluster, a) = alone();
    let first = a.create_key("data");
    a.configure_key_socket(&format!("volumes = {{ by-id = \"{first}\" }}"));
    let socket = a.key_socket();
    let given = |key: &[u8]| {
        for volume in ["data", "by-id"] {
            assert_eq!(key_client::volume(&socket, volume), key, "{volume}");
        }
    };
    let mut old = first;
    for _ in 0..2 {
        let (new, material) = (rotated(&a, old), a.reveal(old));
        given(&material);
        a.ask(&["job", "progress", &new.to_string(), "50"]);
        given(&material);
        let material = a.reveal(new);
        verify(&a, new);
        given(&material);
        a.ask(&["job", "done", &new.to_string(), "--yes"]);
        assert!(!a.holds(old));
        given(&material);
        old = new;
    }
    a.restart();
    given(&a.reveal(old));
}

/// Its data may be partly under the new key, but it is the old one's header that opens it.
#[test]
fn a_volume_whose_rotation_was_cancelled_is_given_its_old_key() {
    let (_cluster, a) = alone();
    let data = a.create_key("data");
    a.configure_key_socket(&format!("volumes = {{ by-id = \"{data}\" }}"));
    let cancelled = rotated(&a, data);
    a.ask(&["job", "cancel", &cancelled.to_string()]);
    for volume in ["data", "by-id"] {
        assert_eq!(key_client::volume(&a.key_socket(), volume), a.reveal(data));
    }
    // The next one ends well, and what the first one left is not taken for the volume's key.
    let new = rotated(&a, data);
    verify(&a, new);
    a.ask(&["job", "done", &new.to_string(), "--yes"]);
    for volume in ["data", "by-id"] {
        assert_eq!(key_client::volume(&a.key_socket(), volume), a.reveal(new));
    }
}

/// It took its volume along.
#[test]
fn rejects_a_configured_key_that_was_moved_away() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let key = a.create_key("data");
    a.configure_key_socket(&format!("volumes = {{ data = \"{key}\" }}"));
    a.wait_until_connected();
    cluster.move_keys(&a, &b, &[key]).wait();
    refused(&a, &volume("data"), "moved");
}

#[test]
fn rejects_a_key_that_was_destroyed() {
    let (_cluster, a) = alone();
    let key = a.create_key("data");
    a.configure_key_socket(&format!("volumes = {{ data = \"{key}\" }}"));
    a.destroy(key).expect("it has no consumers");
    refused(&a, &volume("data"), "destroyed");
}

#[test]
fn rejects_an_address_that_says_nothing() {
    let (_cluster, a) = alone();
    a.create_key("data");
    refused(&a, "data", "is not of the form");
    let mark = a.log().mark();
    let client = KeyClient::connect(&a.key_socket(), None).expect("the key socket listens");
    assert_eq!(client.read(), b"");
    a.log().wait_for(mark, "no abstract address");
}

/// The address is the client's own word, so that the kernel's word on who it is must count.
#[test]
fn rejects_a_user_that_is_not_let_in() {
    let (cluster, a) = alone();
    let key = a.create_key("data");
    // The folders are closed to others anyway; it is the socket that is to be tried.
    for folder in [cluster.folder(), a.key_socket().parent().expect("it is in a folder")] {
        fs::set_permissions(folder, Permissions::from_mode(0o711)).expect("it is ours");
    }
    let socket = a.key_socket();
    let connect = |name: &str| KeyClient::connect(&socket, Some(name.as_bytes()));
    let name = volume("data");
    let by_mode = as_user(NOBODY, || connect(&name)).err().map(|error| error.kind());
    assert_eq!(by_mode, Some(std::io::ErrorKind::PermissionDenied));

    // Now that one more user is let in, the file's mode keeps nobody out.
    a.configure_key_socket("allowed_uids = [12345]");
    let mark = a.log().mark();
    let key_of_nobody = as_user(NOBODY, || connect(&name).expect("the mode lets it").read());
    assert_eq!(key_of_nobody, b"");
    assert!(
        a.log()
            .wait_for(mark, "may not use the key socket")
            .contains("uid=65534")
    );
    assert_eq!(as_user(12_345, || key_client::volume(&socket, "data")), a.reveal(key));
}

/// Connections that users other than root and the lockbox's own may have.
const OF_OTHERS: usize = 64;

/// A lockbox whose clients wait, user 12345's among them, and the key that they wait for.
fn sealed_and_open_to_others() -> (Cluster, Lockbox, KeyId) {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("data");
    for folder in [cluster.folder(), a.key_socket().parent().expect("it is in a folder")] {
        fs::set_permissions(folder, Permissions::from_mode(0o711)).expect("it is ours");
    }
    a.configure_key_socket("allowed_uids = [12345]");
    a.seal();
    (cluster, a, key)
}

/// A user that may have keys may still not keep the machine's volumes from being opened at boot.
#[test]
fn rejects_more_connections_of_other_users_and_none_of_roots() {
    let (_cluster, a, key) = sealed_and_open_to_others();
    let connect = || {
        let name = volume("data");
        KeyClient::connect(&a.key_socket(), Some(name.as_bytes())).expect("the key socket listens")
    };
    let waiting = as_user(12_345, || (0..OF_OTHERS).map(|_| connect()).collect::<Vec<_>>());
    assert_eq!(as_user(12_345, || connect().read()), b"");
    let own = connect();
    a.unseal();
    assert_eq!(own.read(), a.reveal(key));
    for client in waiting {
        assert_eq!(client.read(), a.reveal(key));
    }
}

/// A unit that is stopped and started again while its operator is on the way must not use up the places of those that wait.
#[test]
fn a_client_that_went_away_leaves_its_place_to_others() {
    let (_cluster, a, key) = sealed_and_open_to_others();
    let connect = || {
        let name = volume("data");
        as_user(12_345, || KeyClient::connect(&a.key_socket(), Some(name.as_bytes()))).expect("the key socket listens")
    };
    let waiting: Vec<_> = (0..OF_OTHERS).map(|_| connect()).collect();
    drop(waiting);
    eventually("each place is free again", || {
        (a.log().text().matches("went away").count() == OF_OTHERS).then_some(())
    });
    let client = connect();
    a.unseal();
    assert_eq!(client.read(), a.reveal(key));
}

/// A machine that boots asks before its operator has come.
#[test]
fn a_client_waits_for_a_sealed_lockbox_to_be_unsealed() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let key = a.create_key("data");
    a.seal();
    let name = volume("data");
    let client = KeyClient::connect(&a.key_socket(), Some(name.as_bytes())).expect("the key socket listens");
    a.unseal();
    assert_eq!(client.read(), a.reveal(key));
}

#[test]
fn rejects_a_client_when_the_lockbox_stays_sealed() {
    let (_cluster, a) = alone();
    a.create_key("data");
    a.configure_key_socket("unseal_wait_s = 0");
    a.seal();
    refused(&a, &volume("data"), "stayed sealed");
}
