//! Machines that should not be there: strangers that ask to join.

use lockbox_tests::testkit::crowd::ask_to_join;
use lockbox_tests::testkit::{Cluster, Lockbox, Output};

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
