//! Strangers hold half-open handshakes on a port; honest clients are served all the same, at their first attempt.

use std::net::{Ipv4Addr, SocketAddr};

use lockbox_tests::testkit::crowd::HalfOpen;
use lockbox_tests::testkit::{Cluster, Lockbox};

/// Each is in another /24.
const STRANGERS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(127, 1, 0, 1),
    Ipv4Addr::new(127, 2, 0, 1),
    Ipv4Addr::new(127, 3, 0, 1),
    Ipv4Addr::new(127, 4, 0, 1),
];

/// The honest clients' own address: an attacker behind the same address translation.
const SHARED: [Ipv4Addr; 1] = [Ipv4Addr::LOCALHOST];

/// Attacks a port in each way, and has an honest client do its work meanwhile.
fn under_attack(port: SocketAddr, mut honest: impl FnMut(&str)) {
    let attack = |from: &[Ipv4Addr], count| HalfOpen::open(port, from, count);
    let two = attack(&STRANGERS[..2], 256);
    honest("two");
    // The client did not just wait until the strangers had to go.
    assert!(two.still_open() >= 100, "{} are open", two.still_open());
    drop(two);
    let _four = attack(&STRANGERS, 500);
    honest("four");
    let _shared = attack(&SHARED, 500);
    honest("shared");
}

/// A lockbox's attempts to reach its broker, or the source of a transfer, none of which may fail.
fn assert_no_retry(lockbox: &Lockbox, mark: usize) {
    assert!(!lockbox.log().has(mark, "tried again"), "{}", lockbox.log());
}

#[test]
fn the_control_plane_is_served() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    under_attack(broker.control_proxy().upstream(), |_| {
        broker.command(["lockbox", "list"]).expect_success("lockbox list");
    });
}

#[test]
fn lockboxes_join_and_reconnect() {
    let cluster = Cluster::start();
    let port = cluster.broker().node_proxy().upstream();
    let member = cluster.add_lockbox("member");
    under_attack(port, |name| {
        cluster.add_lockbox(name);
        let mark = member.log().mark();
        member.restart();
        member.wait_until_connected();
        assert_no_retry(&member, mark);
    });
}

#[test]
fn transfers_reach_their_source() {
    let cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.add_lockbox(name));
    under_attack(source.proxy().upstream(), |name| {
        let key = source.create_key(name);
        let mark = target.log().mark();
        cluster.copy_keys(&source, &target, &[key]).wait();
        assert_no_retry(&target, mark);
    });
}
