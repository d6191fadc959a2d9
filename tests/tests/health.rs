//! How an operator, and a monitor, see that a lockbox is sealed or has an alarm: on its machine and at the broker.

use lockbox_rpc::api::local::TransferPolicy;
use lockbox_tests::testkit::{Cluster, Lockbox, NewKey, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What the broker's list says of a lockbox.
fn listed(cluster: &Cluster, lockbox: &Lockbox) -> Value {
    let list = cluster.broker().command(["lockbox", "list", "--output", "json"]);
    let list = list.expect_success("lockbox list").json();
    let lockboxes = list.as_array().expect("a list").iter();
    let mut named = lockboxes.filter(|info| info["name"] == lockbox.name());
    named.next().expect("it is a member").clone()
}

fn wait_for_health(cluster: &Cluster, lockbox: &Lockbox, wanted: &str) -> String {
    eventually(&format!("the broker shows {} as {wanted}", lockbox.name()), || {
        let list = cluster.broker().command(["lockbox", "list"]).text();
        let mut lines = list.lines().filter(|line| line.starts_with(lockbox.name()));
        let row = lines.next()?;
        row.contains(wanted).then(|| list.clone())
    })
}

fn code(lockbox: &Lockbox) -> Option<i32> {
    lockbox.command(["status"]).status.code()
}

#[test]
fn a_sealed_lockbox_is_seen_by_the_exit_code_and_at_the_broker() {
    let cluster = Cluster::start();
    let store1 = cluster.add_lockbox("store1");
    let store2 = cluster.add_lockbox("store2");
    assert_eq!(code(&store1), Some(0));
    wait_for_health(&cluster, &store1, "yes        ok");
    store1.seal();
    assert_eq!(code(&store1), Some(2));
    assert_eq!(
        listed(&cluster, &store1)["health"]["sealed"],
        true,
        "it is told before the seal is answered"
    );
    wait_for_health(&cluster, &store1, "no         sealed");
    wait_for_health(&cluster, &store2, "yes        ok");
    cluster.broker().restart();
    wait_for_health(&cluster, &store1, "sealed");
    store1.unseal();
    assert_eq!(code(&store1), Some(0));
    wait_for_health(&cluster, &store1, "yes        ok");
}

/// Sealing is for emergencies: a broker that does not answer must not keep it from ending.
#[test]
fn a_broker_that_is_stopped_does_not_hold_up_a_seal() {
    let cluster = Cluster::start();
    let store1 = cluster.add_lockbox("store1");
    wait_for_health(&cluster, &store1, "yes        ok");
    cluster.broker().signal(Signal::STOP);
    store1.seal();
    assert_eq!(code(&store1), Some(2));
    cluster.broker().signal(Signal::CONT);
    store1.unseal();
    wait_for_health(&cluster, &store1, "yes        ok");
}

#[test]
fn an_alarm_is_seen_by_the_exit_code_and_with_its_text_at_the_broker() {
    let cluster = Cluster::start();
    let store1 = cluster.add_lockbox("store1");
    let store2 = cluster.add_lockbox("store2");
    let canary = store1.create(&NewKey {
        policy: TransferPolicy {
            canary: true,
            ..TransferPolicy::default()
        },
        ..NewKey::named("canary")
    });
    cluster.copy_keys(&store1, &store2, &[canary]).wait_for_end();
    let list = wait_for_health(&cluster, &store1, "1 alarm");
    assert!(list.contains("alarm, transfers are stopped"), "{list}");
    assert_eq!(code(&store1), Some(3));
    let alarm = store1.status().alarms.remove(0);
    // Whoever reaches the broker must not learn which key to leave out the next time.
    assert_eq!(alarm.what, format!("an authorization asked for a canary key: {canary}"));
    let what = "an authorization asked for a canary key";
    let shown = listed(&cluster, &store1);
    assert_eq!(
        shown["health"],
        json!({
            "sealed": false,
            "alarms": [{ "what": what, "raised_at_ms": alarm.raised_at_ms, "stops_transfers": true }],
            "further_alarms": 0,
        })
    );
    let shown = cluster.broker().command(["lockbox", "show", "store1"]).text();
    assert!(shown.contains(what), "{shown}");
    assert_alarms_without_texts(&cluster);
    wait_for_health(&cluster, &store1, "yes        1 alarm");
    store1.seal();
    wait_for_health(&cluster, &store1, "no         sealed, 1 alarm");
    store1.unseal();
    let number = alarm.alarm_id.to_string();
    store1
        .command(["alarm", "clear", &number])
        .expect_success("alarm clear");
    wait_for_health(&cluster, &store1, "yes        ok");
    assert_eq!(code(&store1), Some(0));
}

/// A text may name keys of others.
fn assert_alarms_without_texts(cluster: &Cluster) {
    let broker = cluster.broker();
    broker.configure(
        "[[requester]]\nname = \"nova\"\noperations = [\"copy\"]\nsource_labels = {}\ntarget_labels = {}\nselections = [\"ids\"]\n",
    );
    let (dir, out) = (broker.dir(), cluster.folder().join("nova"));
    let made = broker.command([
        "client".as_ref(),
        "create".as_ref(),
        "nova".as_ref(),
        "--dir".as_ref(),
        dir.as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
    ]);
    made.expect_success("client create");
    broker.restart();
    let list = eventually("the broker answers nova", || {
        let list = broker.command_as(&out.join("client.toml"), ["lockbox", "list", "--output", "json"]);
        list.status.success().then(|| list.json())
    });
    let alarm = &list[0]["health"]["alarms"][0];
    assert_eq!((&alarm["what"], &alarm["stops_transfers"]), (&json!(""), &json!(true)));
}

/// The broker's list is where an operator looks whether all have heard of a change.
#[test]
fn the_broker_shows_the_roster_that_each_lockbox_has_now() {
    let cluster = Cluster::start();
    let store1 = cluster.add_lockbox("store1");
    cluster.add_lockbox("store2");
    let head = cluster.broker().roster().head();
    eventually("the broker shows the newest entry", || {
        (listed(&cluster, &store1)["roster_index"] == head.index).then_some(())
    });
}
