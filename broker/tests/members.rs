//! The admins' commands about brokers, admins and retired lockboxes, through the real daemon.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use common::{Peer, World, run, secret, stderr, stdout};
use lockbox_authz::Signer;
use lockbox_broker::keyfile;

/// After a theft of the broker's key, this is what takes the thief's signatures their worth.
#[test]
fn a_broker_is_admitted_and_retired() {
    let world = World::new();
    let admin = world.path("admin.key");
    let key = secret(9).public_key().to_string();
    world.operator(&["broker", "admit", "second", &key, "--admin-key", &admin]);
    let listed = world.operator(&["broker", "list"]);
    assert!(
        listed
            .lines()
            .any(|line| line.contains(&key) && line.contains("second") && line.contains("admitted")),
        "{listed}"
    );
    let again = world.operator_runs(&["broker", "admit", "second", &key, "--admin-key", &admin]);
    assert!(
        stderr(&again).contains("the roster would refuse this"),
        "{}",
        stderr(&again)
    );

    world.operator(&["broker", "retire", &key, "--admin-key", &admin, "--reason", "stolen"]);
    let own = world.broker_key().to_string();
    let listed: serde_json::Value =
        serde_json::from_str(&world.operator(&["broker", "list", "--output", "json"])).unwrap();
    let standing: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|broker| (&broker["signing_key"], &broker["status"]))
        .collect();
    assert_eq!(
        standing,
        [(&own.into(), &"admitted".into()), (&key.into(), &"retired".into())]
    );
    assert!(world.operator(&["roster", "show"]).contains("stolen"));
    let unknown = world.operator_runs(&["broker", "retire", "third", "--admin-key", &admin]);
    assert!(stderr(&unknown).contains("broker list"), "{}", stderr(&unknown));
}

#[test]
fn the_admins_are_replaced_and_the_old_ones_sign_no_more() {
    let world = World::new();
    let old = world.path("admin.key");
    let new: Vec<String> = [5, 6]
        .map(|number| {
            let file = world.path(&format!("new-{number}.key"));
            keyfile::write_new(file.as_ref(), &secret(number)).unwrap();
            file
        })
        .to_vec();
    let publics = [5, 6].map(|number| secret(number).public_key().to_string());
    let change = |threshold: &str| {
        world.operator_runs(&[
            "admin",
            "change",
            "--admin-public-key",
            &publics[0],
            "--admin-public-key",
            &publics[1],
            "--admin-threshold",
            threshold,
            "--admin-key",
            &old,
        ])
    };
    let never = change("3");
    assert_eq!(never.status.code(), Some(64), "{}", stderr(&never));
    let changed = change("2");
    assert!(changed.status.success(), "{}", stderr(&changed));

    let shown = world.operator(&["admin", "show"]);
    assert!(publics.iter().all(|key| shown.contains(key.as_str())), "{shown}");
    assert!(
        shown.contains("2 of 2 admins sign changes of the roster, 1 broker signs each authorization"),
        "{shown}"
    );
    let key = secret(9).public_key().to_string();
    let admit = ["broker", "admit", "second", &key, "--admin-key"];
    assert_eq!(
        world.operator_runs(&[&admit[..], &[&old]].concat()).status.code(),
        Some(77)
    );
    assert_eq!(
        world.operator_runs(&[&admit[..], &[&new[0]]].concat()).status.code(),
        Some(77)
    );
    world.operator(&[&admit[..], &[&new[0], "--admin-key", &new[1]]].concat());
    let shown = world.operator(&["roster", "show"]);
    assert!(
        shown.contains("by 1 of 1 admin ") && shown.contains("by 2 of 2 admins"),
        "{shown}"
    );
}

/// A script that retires the wrong lockbox loses its keys to the cluster.
#[tokio::test]
async fn a_program_retires_only_with_yes() {
    let world = World::new();
    let alpha = Peer::new(&world, 1, "alpha");
    alpha.join(&world, &world.token(&[])).await;
    let admin = world.path("admin.key");
    let retire = ["lockbox", "retire", "alpha", "--admin-key", &admin];
    let asked = world.operator_runs(&retire);
    assert_eq!(asked.status.code(), Some(64));
    assert!(
        stderr(&asked).contains("its keys stay there and can't be transferred any more")
            && stderr(&asked).contains("--yes"),
        "{}",
        stderr(&asked)
    );
    assert!(world.operator(&["lockbox", "list"]).contains("admitted"));
    world.operator(&[&retire[..], &["--yes"]].concat());
    assert!(world.operator(&["lockbox", "list"]).contains("retired"));
}

/// Who believes a file that only agrees with itself believes whoever wrote it.
#[tokio::test]
async fn a_roster_in_a_file_is_verified_against_the_clients_cluster() {
    let (world, other) = (World::new(), World::new());
    let alpha = Peer::new(&world, 1, "alpha");
    alpha.join(&world, &world.token(&[])).await;
    let file = world.path("roster.bin");
    world.operator(&["roster", "export", &file]);
    let verify = ["roster", "verify", "--file", &file];
    let verified = world.operator(&verify);
    assert!(verified.contains("verified    every entry"), "{verified}");
    let admission = verified.lines().find(|line| line.contains("admit lockbox")).unwrap();
    assert!(admission.contains("by a join key"), "{admission}");
    assert!(!admission.contains("admins"), "{admission}");

    let refused = other.operator_runs(&verify);
    assert!(stderr(&refused).contains("belongs to cluster"), "{}", stderr(&refused));
    let nowhere = world.path("no-such-client.toml");
    let alone = run(&[&["--client", &nowhere][..], &verify].concat());
    assert!(alone.status.success(), "{}", stderr(&alone));
    let said = stdout(&alone);
    assert!(
        said.contains("consistent (no cluster id to compare with)") && !said.contains("verified"),
        "{said}"
    );
}
