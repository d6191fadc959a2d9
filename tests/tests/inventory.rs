//! The inventory, through the real binaries: whatever keeps a lockbox from telling all of it, afterwards the broker knows all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lockbox_authz::KeyId;
use lockbox_tests::testkit::attacker::{StolenBroker, copy_folder};
use lockbox_tests::testkit::fake_broker::FakeBroker;
use lockbox_tests::testkit::proxy::Direction;
use lockbox_tests::testkit::{Broker, Cluster, eventually};

/// Three reports.
const KEYS: usize = 700;

/// More than a broker takes off in one step.
const VERY_MANY_KEYS: usize = 1_500;

/// Waits until the broker knows of these keys at a, and of no others.
fn wait_until_known(broker: &Broker, keys: &BTreeMap<KeyId, &str>) {
    let wanted: BTreeMap<String, &str> = keys.iter().map(|(key, state)| (key.to_string(), *state)).collect();
    eventually("the broker knows of all keys", || {
        let impact = broker.command(["impact", "--lockbox", "a", "--output", "json"]);
        let impact = impact.expect_success("impact").json();
        let found = impact["findings"].as_array()?.iter();
        let known: BTreeMap<String, &str> = found
            .map(|found| Some((found["key_id"].as_str()?.to_owned(), found["state"].as_str()?)))
            .collect::<Option<_>>()?;
        (known == wanted).then_some(())
    });
}

#[test]
fn a_round_that_breaks_off_in_the_middle_is_told_again() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let a = cluster.add_lockbox("a");
    broker.kill();
    let keys = a.create_keys(KEYS);
    // The connection begins with a few thousand bytes, and a report has ten thousand.
    broker.node_proxy().cut_once_after(Direction::ToServer, 20_000);
    broker.start();
    broker.node_proxy().wait_for_cut();
    wait_until_known(broker, &keys.into_iter().map(|key| (key, "active")).collect());
}

/// So many keys are gone at once that the broker takes them off in steps, and refuses until it has.
#[test]
fn a_round_that_the_broker_refuses_is_told_again() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let a = cluster.add_lockbox("a");
    a.stop();
    let older = cluster.folder().join("older");
    copy_folder(&a.state_dir(), &older);
    a.start();
    let keys = a.create_keys(VERY_MANY_KEYS);
    let mut known: BTreeMap<_, _> = keys.into_iter().map(|key| (key, "active")).collect();
    wait_until_known(broker, &known);
    a.stop();
    fs::remove_dir_all(a.state_dir()).expect("the folder is ours");
    copy_folder(&older, &a.state_dir());
    fs::set_permissions(a.state_dir(), fs::Permissions::from_mode(0o700)).expect("the folder is ours");
    let (here, there) = (a.log().mark(), broker.log().mark());
    a.start();
    a.log().wait_for(here, "the inventory was not told; it is tried again");
    broker.log().wait_for(there, "an inventory report was refused");
    known.values_mut().for_each(|state| *state = "unreported");
    known.insert(a.create_key("new"), "active");
    wait_until_known(broker, &known);
}

/// Each change of a key would else have it told again, and a line in both logs.
#[test]
fn a_broker_that_has_no_room_is_left_in_peace_whatever_changes() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    let thief = StolenBroker::steal(cluster.broker(), &cluster.folder().join("stolen"));
    cluster.broker().kill();
    let fake = FakeBroker::start(&thief.signing_key, thief.roster.head(), &[], Vec::new());
    let mark = a.log().mark();
    cluster.broker().node_proxy().lead_to(fake.address);
    fake.wait_for_inventory_reports(1);
    a.log().wait_for(mark, "the inventory was not told");
    a.create_key("meanwhile");
    // On a new connection everything is told at once, whatever the one before has said.
    let pause = fake.wait_for_inventory_again();
    assert!(pause > Duration::from_secs(4), "{pause:?}");
}

/// What the broker has no room for may be one key: what it knows of all others must not grow old for that.
#[test]
fn a_range_that_the_broker_has_no_room_for_does_not_keep_the_next_ones_from_being_told() {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox("a");
    a.create_keys(KEYS);
    let thief = StolenBroker::steal(cluster.broker(), &cluster.folder().join("stolen"));
    cluster.broker().kill();
    let fake = FakeBroker::start(&thief.signing_key, thief.roster.head(), &[], Vec::new());
    cluster.broker().node_proxy().lead_to(fake.address);
    let times = fake.wait_for_inventory_reports(3);
    assert!(times[2] - times[0] < Duration::from_secs(4), "{times:?}");
}
