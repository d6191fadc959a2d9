//! Machines that should not be there: strangers that ask to join, and a copy of a lockbox.

use lockbox_tests::testkit::crowd::ask_to_join;
use lockbox_tests::testkit::{Cluster, Lockbox, Output, eventually};

/// Joins without a token.
fn join(cluster: &Cluster, lockbox: &Lockbox) -> Output {
    let roster = cluster.broker().roster();
    let (address, cluster_id) = (cluster.broker().node_proxy().address(), roster.cluster_id().to_string());
    let key = roster.brokers()[0].signing_key.to_string();
    lockbox.command([
        "join",
        "--broker",
        &address,
        "--cluster-id",
        &cluster_id,
        "--broker-key",
        &key,
    ])
}

#[test]
fn a_lockbox_is_told_that_its_request_was_not_taken() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let honest = cluster.new_lockbox("honest");
    // They come from the lockbox's own address.
    let mut strangers = 0;
    while ask_to_join(broker, &format!("stranger-{strangers}")).is_ok() {
        strangers += 1;
        assert!(strangers < 256, "one address has all places");
    }

    let refused = join(&cluster, &honest);
    assert_eq!(refused.status.code(), Some(69), "{}", refused.stderr);
    assert!(refused.stderr.contains("wait for admission"), "{}", refused.stderr);

    let rejected = broker.command(["lockbox", "reject", "--from", "127.0.0.1"]);
    rejected.expect_success("lockbox reject");
    let joined = join(&cluster, &honest).expect_success("lockbox join").text();
    assert!(joined.contains("pending"), "{joined}");
    let listed = broker
        .command(["lockbox", "list"])
        .expect_success("lockbox list")
        .text();
    assert!(listed.contains("honest") && !listed.contains("stranger"), "{listed}");

    let rejected = broker.command(["lockbox", "reject", "honest"]);
    rejected.expect_success("lockbox reject");
    let refused = join(&cluster, &honest);
    assert_eq!(refused.status.code(), Some(77), "{}", refused.stderr);
    assert!(refused.stderr.contains("an admin has rejected"), "{}", refused.stderr);
}

/// The pause in milliseconds that a line of a lockbox's log names.
fn pause_ms(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("pause_ms=")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[test]
fn two_machines_with_one_identity_are_shown_and_pause() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let original = cluster.add_lockbox("original");
    original.stop();
    let copy = cluster.copy_lockbox(&original, "copy");
    let mark = broker.log().mark();
    original.start();
    copy.start();

    let warning = broker
        .log()
        .wait_for(mark, "two machines connect with the identity of one lockbox");
    assert!(warning.contains("other_address=127.0.0.1:"), "{warning}");
    let shown = eventually("both addresses are shown", || {
        let listed = broker.command(["lockbox", "list", "--output", "json"]);
        let listed = listed.expect_success("lockbox list").json();
        let shared = &listed[0]["shared_identity"]["addresses"];
        shared.as_array().cloned()
    });
    assert_eq!(shown.len(), 2, "{shown:?}");
    for command in [&["lockbox", "list"][..], &["lockbox", "show", "original"]] {
        let text = broker.command(command).expect_success("lockbox").text();
        assert!(
            text.contains("two machines connect as lockbox original, from 127.0.0.1:"),
            "{text}"
        );
    }
    for lockbox in [&original, &copy] {
        eventually("it pauses for longer each time", || {
            let text = lockbox.log().text();
            let displaced = text.lines().filter(|line| line.contains("another machine connected"));
            displaced.filter_map(pause_ms).find(|pause_ms| *pause_ms >= 1_000)
        });
    }
    let text = broker.log().text();
    let connections = text.lines().filter(|line| line.contains(" connected ")).count();
    assert!(connections < 20, "{connections} connections");
}
