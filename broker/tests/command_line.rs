//! What an operator types, and what the shell gets back.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use common::{World, run, secret, stderr, stdout};
use lockbox_authz::Signer;
use lockbox_authz::roster::Roster;
use lockbox_authz::roster::file::decode_entries;
use lockbox_broker::keyfile;

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn usage_errors_are_64() {
    assert_eq!(run(&["frobnicate"]).status.code(), Some(64));
    let nothing_selected = run(&[
        "transfer",
        "authorize",
        "--source",
        "a",
        "--target",
        "b",
        "--operation",
        "move",
    ]);
    assert_eq!(nothing_selected.status.code(), Some(64));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn an_unreachable_broker_is_69() {
    let mut world = World::new();
    world.kill();
    let output = world.operator_runs(&["lockbox", "list"]);
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
}

#[test]
fn bad_configuration_is_78_and_says_what_to_do() {
    let mut world = World::new();
    world.kill();
    world.configure("[metrics]\n");
    let output = run(&["serve", "--config", &world.path("broker.toml")]);
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("broker.toml: metrics") && said.contains("remove it"),
        "{said}"
    );
    assert!(stdout(&output).is_empty());
}

#[test]
fn a_store_is_compacted_while_the_broker_does_not_run_and_keeps_everything() {
    let mut world = World::new();
    let compact = ["store", "compact", "--config", &world.path("broker.toml")];
    let refused = run(&compact);
    assert_eq!(refused.status.code(), Some(74), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("has it open"), "{}", stderr(&refused));
    let before = world.operator(&["roster", "show", "--output", "json"]);
    world.stop();
    let compacted = run(&compact);
    assert!(compacted.status.success(), "{}", stderr(&compacted));
    assert!(stdout(&compacted).contains("the store takes"), "{}", stdout(&compacted));
    world.start();
    assert_eq!(world.operator(&["roster", "show", "--output", "json"]), before);
}

#[test]
fn a_broker_key_that_others_can_read_is_78() {
    let mut world = World::new();
    world.kill();
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(world.path("broker.key"), mode).unwrap();
    let output = run(&["serve", "--config", &world.path("broker.toml")]);
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    assert!(
        said.contains("broker.toml: signing_key: ") && said.contains("chmod 600"),
        "{said}"
    );
}

/// With another cluster's key every lockbox would turn away, and nobody would know why.
#[test]
fn a_broker_key_that_the_roster_lacks_is_78() {
    let mut world = World::new();
    world.kill();
    std::fs::remove_file(world.path("broker.key")).unwrap();
    keyfile::write_new(Path::new(&world.path("broker.key")), &secret(9)).unwrap();
    let output = run(&["serve", "--config", &world.path("broker.toml")]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("the roster has no broker with this key"));
}

/// What systemd orders after the broker could not reach it otherwise.
#[test]
fn the_service_manager_hears_that_the_ports_are_open() {
    let mut world = World::new();
    world.kill();
    let path = world.temp.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    world.start_notifying(&path);
    let mut message = [0; 64];
    let length = manager.recv(&mut message).unwrap();
    assert_eq!(message[..length], *b"READY=1");
    TcpStream::connect(&world.node).unwrap();
    TcpStream::connect(&world.control).unwrap();
}

#[test]
fn two_brokers_can_not_share_a_store() {
    let world = World::new();
    let output = run(&["serve", "--config", &world.path("broker.toml")]);
    assert_eq!(output.status.code(), Some(74), "{}", stderr(&output));
}

#[test]
fn init_leaves_used_folders_alone_and_nothing_half_made() {
    let temp = tempfile::tempdir().unwrap();
    let used = temp.path().join("used");
    std::fs::create_dir(&used).unwrap();
    std::fs::write(used.join("precious"), "x").unwrap();
    let refused = run(&["init", "--dir", used.to_str().unwrap(), "--cluster-name", "test"]);
    assert!(!refused.status.success());
    assert_eq!(names(&used), ["precious"]);

    let fresh = temp.path().join("fresh");
    let long = "x".repeat(65);
    let refused = run(&["init", "--dir", fresh.to_str().unwrap(), "--cluster-name", &long]);
    assert!(!refused.status.success());
    assert_eq!(names(temp.path()), ["used"]);
}

#[test]
fn secret_keys_are_for_their_owner_alone() {
    let world = World::new();
    for name in [
        "admin.key",
        "broker.key",
        "pki/ca.key",
        "pki/server.key",
        "pki/operator.key",
    ] {
        let mode = std::fs::metadata(world.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn an_exported_roster_verifies_without_the_broker() {
    let mut world = World::new();
    world.token(&[]);
    let file = world.temp.path().join("roster.bin");
    let file = file.to_str().unwrap();
    world.operator(&["roster", "export", file]);
    world.kill();
    let cluster_id = world.cluster_id().to_string();
    let verified = run(&["roster", "verify", "--file", file, "--cluster-id", &cluster_id]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let other = run(&["roster", "verify", "--file", file, "--cluster-id", &"ab".repeat(32)]);
    assert!(!other.status.success());
    let entries = decode_entries(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(
        Roster::from_chain(&entries, Some(world.cluster_id()))
            .unwrap()
            .head()
            .index,
        2
    );
}

#[test]
fn a_client_certificate_names_a_spiffe_id_and_says_how_long_it_lasts() {
    let world = World::new();
    let (dir, out) = (world.dir(), world.path("nova"));
    let create = |uri: &str| {
        run(&[
            "client",
            "create",
            "nova",
            "--dir",
            dir.to_str().unwrap(),
            "--out",
            &out,
            "--uri",
            uri,
        ])
    };
    for uri in ["https://cloud/nova", "spiffe:///nova", "nova"] {
        let refused = create(uri);
        assert_eq!(refused.status.code(), Some(64), "{uri}: {}", stderr(&refused));
    }
    assert!(!Path::new(&out).exists());
    let made = create("spiffe://cloud/nova");
    assert!(
        stdout(&made).contains("The certificate expires at 20"),
        "{}",
        stdout(&made)
    );
}

/// Two of three admins, each on a machine of their own, found a cluster and change it.
#[test]
fn several_admins_found_a_cluster_and_change_it_by_files() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("cluster");
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let admins: Vec<String> = (1..=3)
        .map(|number| {
            let file = temp.path().join(format!("admin-{number}.key"));
            keyfile::write_new(&file, &secret(number)).unwrap();
            file.to_str().unwrap().to_owned()
        })
        .collect();
    let publics: Vec<String> = (1..=3).map(|number| secret(number).public_key().to_string()).collect();
    let ok = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    };
    ok(&[
        "init",
        "--dir",
        dir.to_str().unwrap(),
        "--cluster-name",
        "test",
        "--node-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
        "--admin-threshold",
        "2",
        "--admin-public-key",
        &publics[0],
        "--admin-public-key",
        &publics[1],
        "--admin-public-key",
        &publics[2],
    ]);
    assert!(!dir.join("admin.key").exists());
    let unfounded = run(&["serve", "--config", &path("broker.toml")]);
    assert_eq!(unfounded.status.code(), Some(78));
    assert!(stderr(&unfounded).contains("roster found"), "{}", stderr(&unfounded));

    let (entries, config) = (path("founding.entries"), path("broker.toml"));
    let shown = ok(&["roster", "show", "--file", &entries]);
    for part in [&publics[2][..], "0 of the 2 needed", "\"broker\"", "2 of 3 admins sign"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let signed = run(&["roster", "sign", &entries, "--yes", "--admin-key", &admins[0]]);
    let said = stderr(&signed);
    assert!(
        said.contains("1 signature is missing") && said.contains(&publics[2]),
        "{said}"
    );
    let again = run(&["roster", "sign", &entries, "--yes", "--admin-key", &admins[0]]);
    assert!(
        stderr(&again).contains("this key has signed it already"),
        "{}",
        stderr(&again)
    );
    assert!(
        !run(&["roster", "found", &entries, "--config", &config])
            .status
            .success()
    );
    let signed = run(&["roster", "sign", &entries, "--yes", "--admin-key", &admins[2]]);
    assert!(stderr(&signed).contains("roster found"), "{}", stderr(&signed));
    ok(&["roster", "found", &entries, "--config", &config]);
    assert!(
        !run(&["roster", "found", &entries, "--config", &config])
            .status
            .success()
    );

    let world = World::of(temp);
    let alone = world.operator_runs(&["token", "create", "--broker-address", "b:1", "--admin-key", &admins[0]]);
    assert_eq!(alone.status.code(), Some(77));
    assert!(stderr(&alone).contains("2 admins must sign"), "{}", stderr(&alone));
    let entry = path("allow-join.entry");
    world.operator(&[
        "token",
        "create",
        "--broker-address",
        "b:1",
        "--admin-key",
        &admins[0],
        "--entry-out",
        &entry,
    ]);
    world.operator(&["roster", "sign", &entry, "--yes", "--admin-key", &admins[1]]);
    world.operator(&["roster", "submit", &entry]);
    assert!(world.operator(&["roster", "show"]).contains("allow join"));
}
