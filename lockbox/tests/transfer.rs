//! Keys between two lockboxes without a broker: the roster and the authorization are carried by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use lockbox_authz::authorization::Operation;
use lockbox_authz::roster::Change;
use support::cluster::{Cluster, lockbox_id};
use support::{Machine, eventually};

/// Two members of one cluster, unsealed, with the same roster.
fn two_members() -> (Cluster, Machine, Machine) {
    let (mut source, mut target) = (Machine::new("source"), Machine::new("target"));
    source.serve_unsealed();
    target.serve_unsealed();
    let mut cluster = Cluster::found();
    cluster.admit(&source, &["zone=a"]);
    cluster.admit(&target, &["zone=b"]);
    cluster.carry_roster_to(&source);
    cluster.carry_roster_to(&target);
    assert_eq!(source.status()["membership"], "admitted");
    (cluster, source, target)
}

/// Lets the target begin, and gives the transfer's id.
fn accept(cluster: &mut Cluster, operation: Operation, source: &Machine, target: &Machine, keys: &[String]) -> String {
    let authorization = cluster.authorize(operation, source, target, keys);
    let file = cluster.sign(&authorization, target);
    let address = source.peer_address();
    let accepted = target.json(&[
        "transfer",
        "accept",
        file.to_str().unwrap(),
        "--source-address",
        &address,
    ]);
    accepted["authorization_id"].as_str().unwrap().to_owned()
}

/// The main promise: exactly one holder afterwards, and it is the target.
#[test]
fn a_move_leaves_one_holder() {
    let (mut cluster, source, target) = two_members();
    let keys: Vec<_> = ["a", "b", "c"].map(|name| source.create(&["--name", name])).into();
    let secrets: Vec<_> = keys.iter().map(|key| source.reveal(key)).collect();

    let id = accept(&mut cluster, Operation::Move, &source, &target, &keys);
    let at_target = target.wait_for_transfer(&id, "complete");
    let at_source = source.wait_for_transfer(&id, "complete");
    for (transfer, role) in [(&at_target, "target"), (&at_source, "source")] {
        assert_eq!((&transfer["role"], &transfer["key_count"]), (&role.into(), &3.into()));
        assert_eq!(
            (&transfer["receipts"], &transfer["erasure_records"]),
            (&1.into(), &1.into())
        );
    }
    for (key, secret) in keys.iter().zip(&secrets) {
        assert_eq!(target.reveal(key), *secret);
        let (_, message) = source.fails(&["key", "reveal", key]);
        assert!(
            message.contains("was moved to") && message.contains(&lockbox_id(&target).to_string()),
            "{message}"
        );
    }
    assert_eq!(source.keys(), [""; 0]);
    assert_eq!(source.json(&["key", "show", &keys[0]])["state"], "moved");
}

#[test]
fn a_copy_leaves_two_holders_of_the_same_key() {
    let (mut cluster, source, target) = two_members();
    let key = source.create(&["--label", "volume=1", "--deny-move"]);
    let id = accept(
        &mut cluster,
        Operation::Copy,
        &source,
        &target,
        std::slice::from_ref(&key),
    );
    target.wait_for_transfer(&id, "complete");
    assert_eq!(target.reveal(&key), source.reveal(&key));
    // The veto travels with the key, or the next lockbox would not keep it.
    let copied = target.json(&["key", "show", &key]);
    assert_eq!(copied["transfer_policy"]["deny_move"], true);
    assert_eq!(copied["labels"]["volume"], "1");
}

/// Nothing but the daemons' own records brings it to its end: no operator, no second authorization.
#[test]
fn a_transfer_goes_on_when_the_source_comes_back() {
    let (mut cluster, mut source, target) = two_members();
    let key = source.create(&[]);
    let secret = source.reveal(&key);
    let address = source.peer_address();
    let authorization = cluster.authorize(Operation::Move, &source, &target, std::slice::from_ref(&key));
    let file = cluster.sign(&authorization, &target);
    source.kill();
    target.ok(&[
        "transfer",
        "accept",
        file.to_str().unwrap(),
        "--source-address",
        &address,
    ]);
    let id = authorization.authorization_id.to_string();
    eventually("the target says why it does not go on", || {
        let transfer = target.json(&["transfer", "show", &id]);
        transfer["detail"]
            .as_str()
            .filter(|detail| detail.contains("can't be reached"))
            .map(|_| ())
    });
    // The port was chosen by the kernel; it must be the same one again.
    let config = source.path("lockbox.toml");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace("127.0.0.1:0", &address);
    std::fs::write(&config, text).unwrap();
    source.serve_unsealed();
    target.wait_for_transfer(&id, "complete");
    assert_eq!(target.reveal(&key), secret);
    assert_eq!(source.keys(), [""; 0]);
}

/// The target's word is enough to carry on from, also when it was lost on the way.
#[test]
fn a_transfer_goes_on_when_the_target_is_killed_between_its_steps() {
    for step in [
        "accepted",
        "presented",
        "offer-verified",
        "chunk-stored",
        "settlement-recorded",
    ] {
        let (mut cluster, source, mut target) = two_members();
        let key = source.create(&[]);
        let secret = source.reveal(&key);
        let id = accept(
            &mut cluster,
            Operation::Move,
            &source,
            &target,
            std::slice::from_ref(&key),
        );
        target.wait_for_log(&["transfer:", &id, step]);
        target.kill();
        target.serve_unsealed();
        target.wait_for_transfer(&id, "complete");
        source.wait_for_transfer(&id, "complete");
        assert_eq!(target.reveal(&key), secret, "killed after {step}");
        assert_eq!(source.keys(), [""; 0], "killed after {step}");
    }
}

/// The local veto: no broker overrules it.
#[test]
fn a_pinned_key_stays() {
    let (mut cluster, source, target) = two_members();
    let key = source.create(&["--pinned"]);
    let id = accept(
        &mut cluster,
        Operation::Move,
        &source,
        &target,
        std::slice::from_ref(&key),
    );
    let ended = target.wait_for_transfer(&id, "refused");
    // The reason is the source's own: a peer learns that it was refused, and no more.
    assert_eq!(ended["detail"], "the source refused it");
    source.wait_for_log(&["is pinned to its lockbox"]);
    assert_eq!(source.keys(), [key]);
    assert_eq!(target.keys(), [""; 0]);
}

/// A lockbox that was retired gets nothing, even if it does not know of it.
#[test]
fn a_retired_target_gets_nothing() {
    let (mut cluster, source, target) = two_members();
    let key = source.create(&[]);
    let authorization = cluster.authorize(Operation::Move, &source, &target, std::slice::from_ref(&key));
    let file = cluster.sign(&authorization, &target);
    cluster.change(Change::RetireLockbox {
        lockbox_id: lockbox_id(&target),
        reason: "stolen".to_owned(),
    });
    cluster.carry_roster_to(&source);
    let address = source.peer_address();
    target.ok(&[
        "transfer",
        "accept",
        file.to_str().unwrap(),
        "--source-address",
        &address,
    ]);
    source.wait_for_log(&["handshake refused"]);
    assert_eq!(target.keys(), [""; 0]);
    assert_eq!(source.keys(), [key]);
}

/// The lockbox that was left behind learns what it lacks from the other, not from the broker.
#[test]
fn rosters_meet_in_a_session() {
    let (mut cluster, source, target) = two_members();
    let key = source.create(&[]);
    let authorization = cluster.authorize(Operation::Copy, &source, &target, &[key]);
    let file = cluster.sign(&authorization, &target);
    let signing_key = lockbox_authz::Signer::public_key(&lockbox_authz::SecretKey::from_seed(&[9; 32]));
    let name = "second".to_owned();
    cluster.change(Change::AdmitBroker { name, signing_key });
    cluster.carry_roster_to(&target);
    let address = source.peer_address();
    target.ok(&[
        "transfer",
        "accept",
        file.to_str().unwrap(),
        "--source-address",
        &address,
    ]);
    target.wait_for_transfer(&authorization.authorization_id.to_string(), "complete");
    assert_eq!(source.status()["roster_head"], target.status()["roster_head"]);
}

/// A second entry for the same place: only dishonest admins can make one, and nothing leaves until a person has looked.
#[test]
fn a_forked_roster_stops_transfers_until_the_alarm_is_cleared() {
    let (mut cluster, source, target) = two_members();
    let key = source.create(&[]);
    let fork = |name: &str| Change::AdmitBroker {
        name: name.to_owned(),
        signing_key: lockbox_authz::Signer::public_key(&lockbox_authz::SecretKey::from_seed(&[name.len() as u8; 32])),
    };
    let id = {
        let authorization = cluster.authorize(Operation::Move, &source, &target, std::slice::from_ref(&key));
        let file = cluster.sign(&authorization, &target);
        let mut other = Cluster::found_again(&cluster);
        cluster.change(fork("one"));
        other.change(fork("other"));
        cluster.carry_roster_to(&source);
        let path = source.write("fork", &other.file());
        let (code, message) = source.fails(&["roster", "apply", path.to_str().unwrap()]);
        assert_eq!(code, 1);
        assert!(message.contains("second, properly signed entry"), "{message}");
        let address = source.peer_address();
        target.ok(&[
            "transfer",
            "accept",
            file.to_str().unwrap(),
            "--source-address",
            &address,
        ]);
        authorization.authorization_id.to_string()
    };
    source.wait_for_log(&["an alarm stops transfers"]);
    assert_eq!(source.keys(), [key]);
    let alarm = source.status()["alarms"][0]["alarm_id"].to_string();
    source.ok(&["alarm", "clear", &alarm]);
    target.wait_for_transfer(&id, "complete");
}
