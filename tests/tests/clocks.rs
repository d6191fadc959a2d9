//! Machines whose clocks are wrong, and what that costs the others.

use lockbox_authz::{Operation, Selection};
use lockbox_tests::testkit::{Ask, Broker, Cluster, Output, TransferState, eventually};

const DAY_S: i64 = 24 * 60 * 60;

fn make_token(broker: &Broker) -> Output {
    let admin_key = broker.admin_key_file();
    let admin_key = admin_key.to_str().expect("a temporary folder's name is text");
    broker.command(["token", "create", "--admin-key", admin_key])
}

/// With the entry in the roster for good, nobody could join any more, and a stolen lockbox could not be retired.
#[test]
fn an_entry_that_is_dated_ahead_stops_none_of_those_that_follow() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let key = a.create_key("volume");
    cluster.copy_keys(&a, &b, &[key]).wait();
    broker.set_clock_ahead(30 * DAY_S);
    broker.set_admin_clock_ahead(30 * DAY_S);
    broker.token(&[]);
    broker.set_clock_ahead(0);
    broker.set_admin_clock_ahead(0);
    a.wait_until_connected();

    let c = cluster.add_lockbox("c");
    cluster.copy_keys(&a, &c, &[key]).wait();
    let compromise = || {
        let admin_key = broker.admin_key_file();
        let args = [
            "lockbox",
            "compromise",
            "b",
            "--since",
            "0s",
            "--yes",
            "--output",
            "json",
        ];
        let mut args: Vec<_> = args.iter().map(std::ffi::OsStr::new).collect();
        args.extend(["--admin-key".as_ref(), admin_key.as_os_str()]);
        broker.command(args).expect_success("lockbox compromise").json()
    };
    let answer = compromise();
    assert_eq!(answer["retired"], true, "{answer}");
    for lockbox in [&a, &c] {
        lockbox.wait_for_head(broker.roster().head());
        eventually("the stolen key is marked", || {
            (lockbox.key(key).ok()?.state == "compromised").then_some(())
        });
    }
}

#[test]
fn an_entrys_maker_is_warned_of_a_clock_that_differs_from_the_brokers() {
    const WARNING: &str = "seconds ahead of the broker's";
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let made = make_token(broker).expect_success("token create");
    assert!(!made.stderr.contains(WARNING), "{}", made.stderr);
    broker.set_admin_clock_ahead(100);
    let made = make_token(broker).expect_success("token create");
    assert!(made.stderr.contains(WARNING), "{}", made.stderr);
}

/// A source that refused it for good would make the requester ask again, and again, for as long as its clock is wrong.
#[test]
fn a_source_whose_clock_is_ahead_serves_an_authorization_when_its_clock_is_right() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let key = a.create_key("volume");
    a.set_clock_ahead(8 * 60);
    a.wait_until_connected();
    let list = cluster.broker().command(["lockbox", "list", "--output", "json"]);
    let list = list.expect_success("lockbox list").json();
    let ahead_ms = list[0]["clock_ahead_ms"].as_i64().expect("it was measured");
    assert!((8 * 60_000 - 20_000..8 * 60_000 + 20_000).contains(&ahead_ms), "{list}");
    let mark = a.log().mark();
    let selection = Selection::Ids(vec![key]);
    let transfer = cluster.authorize(Ask::new(Operation::Move, &a, &b, selection));
    let line = a.log().wait_for(mark, "step 8, time: it expired at");
    assert!(line.contains("the source's clock says"), "{line}");
    transfer.wait_until("the requester is told both times", |transfer| {
        transfer.detail.contains("it expired at") && transfer.detail.contains("the source's clock says")
    });
    assert_ne!(transfer.now().state(), TransferState::Refused);
    a.set_clock_ahead(0);
    transfer.wait();
    assert!(b.holds(key) && !a.holds(key));
}

/// The broker stops telling revocations of expired authorizations. Setting a clock back must not make such an authorization valid.
#[test]
fn what_expired_is_dropped_and_is_never_good_again() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    let key = a.create_key("volume");
    b.stop();
    let mark = a.log().mark();
    let selection = Selection::Ids(vec![key]);
    let transfer = cluster.authorize(Ask::new(Operation::Move, &a, &b, selection));
    transfer.revoke().expect("it is not complete");
    a.log().wait_for(mark, "step=\"revoked\"");
    a.stop();
    let revocations = || a.rows(|place| place[0] == b'v').len();
    assert_eq!(revocations(), 1);
    // More than 7 days after it has expired.
    a.start();
    a.set_clock_ahead(8 * DAY_S);
    broker.set_clock_ahead(8 * DAY_S);
    eventually("the source drops the revocation", || {
        a.log().to_string().contains("dropped what expired").then_some(())
    });
    let mark = a.log().mark();
    a.restart();
    a.wait_until_connected();
    // An offer comes after everything that a lockbox is told when it connects.
    b.set_clock_ahead(8 * DAY_S);
    let other = b.create_key("other");
    cluster.copy_keys(&b, &a, &[other]).wait();
    assert!(!a.log().has(mark, "step=\"revoked\""), "{}", a.log());
    assert_eq!(transfer.now().state(), TransferState::Revoked);
    a.stop();
    assert_eq!(revocations(), 0);

    a.set_clock_ahead(0);
    a.start();
    // The broker would tell the target that it was revoked.
    broker.node_proxy().refuse();
    let mark = a.log().mark();
    b.accept_transfer(&transfer.authorization, &a.peer_address())
        .expect("the source decides about the time");
    b.wait_for_transfer(transfer.id, "refused");
    a.log().wait_for(mark, "step 10");
    assert!(a.holds(key) && !b.holds(key));
}
