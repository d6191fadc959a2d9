//! What admins sign: shown whole, asked for, and signed by admins only.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use common::{Peer, World, run, secret, stderr, stdout};
use lockbox_authz::Signer;
use lockbox_broker::keyfile;

/// An admin key of this number in a file.
fn key_file(folder: &Path, number: u8) -> String {
    let file = folder.join(format!("admin-{number}.key"));
    keyfile::write_new(&file, &secret(number)).unwrap();
    file.to_str().unwrap().to_owned()
}

fn public(number: u8) -> String {
    secret(number).public_key().to_string()
}

fn fingerprint(number: u8) -> String {
    secret(number).public_key().fingerprint().to_string()
}

/// A cluster whose admins are the old one and two new ones, of whom two must sign; their key files.
fn two_of_three(world: &World) -> [String; 3] {
    let old = world.path("admin.key");
    let old_public = keyfile::read(old.as_ref()).unwrap().public_key().to_string();
    world.operator(&[
        "admin",
        "change",
        "--admin-public-key",
        &old_public,
        "--admin-public-key",
        &public(5),
        "--admin-public-key",
        &public(6),
        "--admin-threshold",
        "2",
        "--admin-key",
        &old,
    ]);
    [old, key_file(world.temp.path(), 5), key_file(world.temp.path(), 6)]
}

/// A change of the admins that one of two has signed.
fn change_of_admins(world: &World, admin: &str) -> (String, Output) {
    let entry = world.path("change.entry");
    let written = world.operator_runs(&[
        "admin",
        "change",
        "--admin-public-key",
        &public(6),
        "--admin-public-key",
        &public(7),
        "--admin-threshold",
        "1",
        "--admin-key",
        admin,
        "--entry-out",
        &entry,
    ]);
    assert!(written.status.success(), "{}", stderr(&written));
    (entry, written)
}

#[test]
fn an_admin_sees_everything_before_signing_and_what_is_missing_after() {
    let world = World::new();
    let [old, five, _] = two_of_three(&world);
    let (entry, written) = change_of_admins(&world, &old);
    let said = stderr(&written);
    assert!(
        said.contains("1 signature is missing") && said.contains("roster sign"),
        "{said}"
    );
    assert!(!said.contains("roster submit"), "{said}");

    let old_fingerprint = keyfile::read(old.as_ref()).unwrap().public_key().fingerprint();
    let shown = world.operator(&["roster", "show", "--file", &entry]);
    for part in [
        "roster entry 3: change admins",
        "\"test\"",
        &world.cluster_id().to_string(),
        &public(7),
        &fingerprint(7),
        "1 of the 2 needed",
        &format!("{old_fingerprint}  signed"),
        &format!("{}  not signed", fingerprint(5)),
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // Nobody is at a terminal.
    let before = std::fs::read(&entry).unwrap();
    let unasked = world.operator_runs(&["roster", "sign", &entry, "--admin-key", &five]);
    assert_eq!(unasked.status.code(), Some(64), "{}", stderr(&unasked));
    assert!(stderr(&unasked).contains("--yes"), "{}", stderr(&unasked));
    assert_eq!(std::fs::read(&entry).unwrap(), before);

    let signed = world.operator_runs(&["roster", "sign", &entry, "--admin-key", &five, "--yes"]);
    let said = stderr(&signed);
    assert!(said.contains(&public(7)) && said.contains("roster submit"), "{said}");
    world.operator(&["roster", "submit", &entry]);
    let done = world.operator(&["roster", "show", "--file", &entry]);
    assert!(done.contains("the roster has it already"), "{done}");
}

/// On a machine without a way to the broker.
#[test]
fn an_admin_offline_signs_by_the_roster_in_a_file() {
    let mut world = World::new();
    let [old, five, _] = two_of_three(&world);
    let (entry, _) = change_of_admins(&world, &old);
    let roster = world.path("roster.entries");
    world.operator(&["roster", "export", &roster]);
    world.kill();
    let before = std::fs::read(&entry).unwrap();
    let unknown = run(&["roster", "sign", &entry, "--admin-key", &five, "--yes"]);
    assert!(
        !unknown.status.success() && stderr(&unknown).contains("--roster FILE"),
        "{}",
        stderr(&unknown)
    );
    assert_eq!(std::fs::read(&entry).unwrap(), before);
    let signed = run(&[
        "roster",
        "sign",
        &entry,
        "--admin-key",
        &five,
        "--yes",
        "--roster",
        &roster,
    ]);
    assert!(signed.status.success(), "{}", stderr(&signed));
    let shown = run(&["roster", "show", "--file", &entry, "--roster", &roster]);
    assert!(stdout(&shown).contains("2 of the 2 needed"), "{}", stdout(&shown));
}

#[tokio::test]
async fn a_retirement_names_the_lockbox() {
    let world = World::new();
    let alpha = Peer::new(&world, 1, "alpha");
    alpha.join(&world, &world.token(&[])).await;
    world.token(&["--label", "pool=fast"]);
    let (admin, entry) = (world.path("admin.key"), world.path("retire.entry"));
    let written = world.operator_runs(&[
        "lockbox",
        "retire",
        "alpha",
        "--yes",
        "--admin-key",
        &admin,
        "--entry-out",
        &entry,
    ]);
    assert!(stderr(&written).contains("roster submit"), "{}", stderr(&written));
    let shown = world.operator(&["roster", "show", "--file", &entry]);
    assert!(
        shown.contains("\"alpha\"") && shown.contains(&alpha.lockbox.lockbox_id.to_string()),
        "{shown}"
    );
    // The roster itself can be looked at in the same way, with admissions that a token has signed.
    let roster = world.path("roster.entries");
    world.operator(&["roster", "export", &roster]);
    let all = world.operator(&["roster", "show", "--file", &roster, "--roster", &roster]);
    assert!(all.contains("pool=fast"), "{all}");
}

#[test]
fn rejects_the_key_of_nobody_and_leaves_the_file() {
    let world = World::new();
    let [old, ..] = two_of_three(&world);
    let (entry, _) = change_of_admins(&world, &old);
    let before = std::fs::read(&entry).unwrap();
    let stranger = key_file(world.temp.path(), 9);
    let refused = world.operator_runs(&["roster", "sign", &entry, "--yes", "--admin-key", &stranger]);
    assert_eq!(refused.status.code(), Some(77), "{}", stderr(&refused));
    let said = stderr(&refused);
    assert!(
        said.contains("not one of the cluster's admins") && said.contains(&fingerprint(9)),
        "{said}"
    );
    assert_eq!(std::fs::read(&entry).unwrap(), before);
}

/// Its place was taken meanwhile, so that a signature would be in vain.
#[test]
fn rejects_an_entry_whose_place_is_taken() {
    let world = World::new();
    let [old, five, six] = two_of_three(&world);
    let (entry, _) = change_of_admins(&world, &old);
    let admit = [
        "broker",
        "admit",
        "second",
        &public(8),
        "--admin-key",
        &old,
        "--admin-key",
        &six,
    ];
    world.operator(&admit);
    let refused = world.operator_runs(&["roster", "sign", &entry, "--yes", "--admin-key", &five]);
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("another entry 3 already"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn an_admin_key_is_made_private_and_shown_without_its_secret() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("admin.key");
    let path = file.to_str().unwrap();
    let made = run(&["admin", "key", "create", path]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let key = keyfile::read(&file).unwrap();
    let shown = run(&["admin", "key", "show", path]);
    assert_eq!(stdout(&made), stdout(&shown));
    for part in [key.public_key().to_string(), key.public_key().fingerprint().to_string()] {
        assert!(stdout(&shown).contains(&part), "{}", stdout(&shown));
    }
    let pem = std::fs::read_to_string(&file).unwrap();
    let secret_line = pem.lines().nth(1).unwrap();
    assert!(!stdout(&shown).contains(secret_line) && !stderr(&shown).contains(secret_line));

    let again = run(&["admin", "key", "create", path]);
    assert!(
        !again.status.success() && stderr(&again).contains("name another file"),
        "{}",
        stderr(&again)
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), pem, "no key is overwritten");
}
