//! What operators and control planes do with transfers, through the real binaries.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use lockbox_authz::{Authorization, KeyId, Labels, Operation, Selection, UnverifiedEnvelope};
use lockbox_rpc::api::local::TransferPolicy;
use lockbox_tests::testkit::attacker::StolenBroker;
use lockbox_tests::testkit::{Ask, Cluster, Lockbox, NewKey, TransferState, eventually};
use tonic::Code;

/// More than one chunk takes would need a selection by label; this is a full one but for 24.
const MANY: usize = 1_000;

struct Pair {
    cluster: Cluster,
    a: Lockbox,
    b: Lockbox,
}

fn pair() -> Pair {
    let cluster = Cluster::start();
    let a = cluster.add_lockbox_with("a", &["zone=a"]);
    let b = cluster.add_lockbox_with("b", &["zone=b"]);
    Pair { cluster, a, b }
}

fn sorted(keys: &[KeyId]) -> Vec<KeyId> {
    let set: BTreeSet<KeyId> = keys.iter().copied().collect();
    set.into_iter().collect()
}

#[test]
fn a_moved_key_is_at_its_target_alone_with_the_same_bytes() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    let material = a.reveal(key);
    let transfer = cluster.move_keys(&a, &b, &[key]);
    let ended = transfer.wait();
    assert_eq!((ended.keys_received, ended.keys_erased), (1, 1));
    assert_eq!(b.reveal(key), material);
    assert!(!a.holds(key), "two holders after a MOVE");
    let remains = a.key(key).expect("a tombstone remains");
    assert_eq!(remains.state, "moved");
    assert_eq!(remains.moved_to, b.id().to_vec());
    let detail = transfer.detail();
    assert_eq!((detail.receipts.len(), detail.erasure_records.len()), (1, 1));
    a.wait_for_transfer(transfer.id, "complete");
    b.wait_for_transfer(transfer.id, "complete");
}

#[test]
fn a_copied_key_is_at_both() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    let material = a.reveal(key);
    let ended = cluster.copy_keys(&a, &b, &[key]).wait();
    assert_eq!((ended.keys_received, ended.keys_erased), (1, 0));
    assert_eq!((a.reveal(key), b.reveal(key)), (material.clone(), material));
}

#[test]
fn a_thousand_keys_are_moved_and_copied_back() {
    let Pair { cluster, a, b } = pair();
    let keys = a.create_keys(MANY);
    let sample: Vec<_> = keys.iter().step_by(97).map(|key| (*key, a.reveal(*key))).collect();
    let ended = cluster.move_keys(&a, &b, &keys).wait();
    assert_eq!((ended.keys_received, ended.keys_erased), (MANY as u64, MANY as u64));
    assert_eq!(a.keys(), [], "two holders after a MOVE");
    assert_eq!(b.keys(), sorted(&keys));
    for (key, material) in &sample {
        assert_eq!(b.reveal(*key), *material);
    }
    cluster.copy_keys(&b, &a, &keys).wait();
    assert_eq!(a.keys(), b.keys());
    for (key, material) in &sample {
        assert_eq!(a.reveal(*key), *material);
    }
}

#[test]
fn a_key_goes_there_and_back_again() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    let material = a.reveal(key);
    for (from, to) in [(&a, &b), (&b, &a), (&a, &b), (&b, &a)] {
        cluster.move_keys(from, to, &[key]).wait();
        assert!(!from.holds(key), "two holders after a MOVE");
        assert_eq!(to.reveal(key), material);
    }
    assert_eq!(a.keys(), [key]);
}

#[test]
fn an_evacuation_takes_the_keys_with_the_label_and_leaves_what_is_pinned() {
    let Pair { cluster, a, b } = pair();
    let with = |name: &str, labels: &[(&'static str, &'static str)], pinned| NewKey {
        labels: labels.to_vec(),
        policy: TransferPolicy {
            pinned,
            ..TransferPolicy::default()
        },
        ..NewKey::named(name)
    };
    let leaving: Vec<_> = (0..3)
        .map(|number| a.create(&with(&format!("fast-{number}"), &[("pool", "fast")], false)))
        .collect();
    let pinned = a.create(&with("pinned", &[("pool", "fast")], true));
    let other = a.create(&with("slow", &[("pool", "slow")], false));
    let selection = Selection::Labels(Labels::parse(["pool=fast"]).expect("a label"));
    let ended = cluster.authorize(Ask::new(Operation::Move, &a, &b, selection)).wait();
    assert_eq!((ended.key_count, ended.withheld_count), (3, 1));
    assert_eq!(b.keys(), sorted(&leaving));
    assert_eq!(a.keys(), sorted(&[pinned, other]));
}

#[test]
fn a_pinned_key_stays_and_the_requester_is_told_why() {
    let Pair { cluster, a, b } = pair();
    let pinned = a.create(&NewKey {
        policy: TransferPolicy {
            pinned: true,
            ..TransferPolicy::default()
        },
        ..NewKey::named("pinned")
    });
    let free = a.create_key("free");
    for operation in [Operation::Move, Operation::Copy] {
        let ended = cluster.transfer(operation, &a, &b, &[pinned, free]).wait_for_end();
        assert_eq!(ended.state(), TransferState::Refused);
        assert!(
            ended.detail.contains("pinned") && ended.detail.contains(&pinned.to_string()),
            "{}",
            ended.detail
        );
    }
    assert_eq!(
        a.keys(),
        sorted(&[pinned, free]),
        "all of the keys may leave, or none does"
    );
    assert_eq!(b.keys(), []);
}

#[test]
fn a_key_goes_only_where_its_own_policy_lets_it() {
    let Pair { cluster, a, b } = pair();
    let zone_c = lockbox_authz::wire::Label {
        key: "zone".to_owned(),
        value: "c".to_owned(),
    };
    let key = a.create(&NewKey {
        policy: TransferPolicy {
            required_target_labels: vec![zone_c],
            ..TransferPolicy::default()
        },
        ..NewKey::named("picky")
    });
    let refused = cluster.move_keys(&a, &b, &[key]).wait_for_end();
    assert_eq!(refused.state(), TransferState::Refused);
    assert!(refused.detail.contains("labels"), "{}", refused.detail);
    let c = cluster.add_lockbox_with("c", &["zone=c"]);
    cluster.move_keys(&a, &c, &[key]).wait();
    assert!(c.holds(key) && !a.holds(key) && !b.holds(key));
}

#[test]
fn a_key_that_is_not_there_is_refused_by_name() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    cluster.move_keys(&a, &b, &[key]).wait();
    let again = cluster.move_keys(&a, &b, &[key]).wait_for_end();
    assert_eq!(again.state(), TransferState::Refused);
    assert!(again.detail.contains(&key.to_string()), "{}", again.detail);
    assert!(b.holds(key));
}

#[test]
fn a_request_that_is_repeated_authorizes_once() {
    let Pair { cluster, a, b } = pair();
    let keys = [a.create_key("one"), a.create_key("two")];
    let select = |keys: &[KeyId]| Selection::from_unsorted_ids(keys.to_vec()).expect("keys");
    let ask = Ask::new(Operation::Move, &a, &b, select(&keys[..1]));
    let first = cluster.authorize(ask.clone());
    first.wait();
    cluster.broker().restart();
    let again = cluster.authorize(ask.clone());
    assert_eq!((again.id, &again.authorization), (first.id, &first.authorization));
    let other = Ask {
        selection: select(&keys[1..]),
        ..ask
    };
    let refused = cluster.try_authorize(other).err().expect("the request id is taken");
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    assert!(a.holds(keys[1]));
}

#[test]
fn a_revoked_transfer_takes_nothing() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    a.proxy().refuse();
    let transfer = cluster.move_keys(&a, &b, &[key]);
    transfer.wait_until("the target has it", |transfer| {
        transfer.state() == TransferState::Accepted
    });
    assert_eq!(transfer.revoke().expect("it is open").state(), TransferState::Revoked);
    a.log().wait_for(0, "step=\"revoked\"");
    a.proxy().pass();
    eventually("the target has given up", || {
        b.transfer(transfer.id).filter(|transfer| transfer.state != "open")
    });
    assert!(a.holds(key) && !b.holds(key));
    // The key is free: another transfer takes it.
    let c = cluster.add_lockbox("c");
    cluster.move_keys(&a, &c, &[key]).wait();
    assert!(c.holds(key) && !b.holds(key));
}

#[test]
fn a_complete_transfer_can_not_be_revoked() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    let transfer = cluster.move_keys(&a, &b, &[key]);
    transfer.wait();
    let refused = transfer.revoke().expect_err("it is complete");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[test]
fn a_retired_lockbox_gets_nothing_more() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    a.proxy().refuse();
    let transfer = cluster.move_keys(&a, &b, &[key]);
    transfer.wait_until("the target has it", |transfer| {
        transfer.state() == TransferState::Accepted
    });
    cluster.broker().retire("b");
    a.wait_for_head(cluster.broker().roster().head());
    a.proxy().pass();
    let refused = cluster.try_authorize(Ask::new(
        Operation::Move,
        &a,
        &b,
        Selection::from_unsorted_ids(vec![key]).expect("a key"),
    ));
    let refused = refused.err().expect("b is retired");
    assert!(refused.message().contains("retired"), "{refused}");
    assert!(a.holds(key), "a key left for a retired lockbox");
    // A new transfer of the key to somebody else shows that it is bound to nothing.
    let c = cluster.add_lockbox("c");
    cluster.move_keys(&a, &c, &[key]).wait();
    assert!(c.holds(key) && !a.holds(key));
    assert!(!b.holds(key));
}

/// Where there is no route to the broker, the signed authorization does the same from a file.
#[test]
fn an_authorization_works_from_a_file_without_a_route_to_the_broker() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    let material = a.reveal(key);
    cluster.broker().node_proxy().refuse();
    let transfer = cluster.move_keys(&a, &b, &[key]);
    let file = cluster.folder().join("authorization");
    fs::write(&file, &transfer.authorization).expect("the folder is ours");
    let file = file.to_string_lossy().into_owned();
    let accept = ["transfer", "accept", &file, "--source-address", &a.peer_address()];
    b.command(accept).expect_success("lockbox transfer accept");
    b.wait_for_transfer(transfer.id, "complete");
    assert_eq!(b.reveal(key), material);
    assert!(!a.holds(key), "two holders after a MOVE");
    assert_eq!(
        transfer.now().state(),
        TransferState::Authorized,
        "the broker has heard of nothing"
    );
    cluster.broker().node_proxy().pass();
    transfer.wait();
}

/// A spent authorization is not spent again by whoever has kept a copy of it.
#[test]
fn an_authorization_is_good_once() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    let there = cluster.copy_keys(&a, &b, &[key]);
    there.wait();
    b.destroy(key).expect("it is a copy");
    let again = b
        .accept_transfer(&there.authorization, &a.peer_address())
        .expect("it is known");
    assert_eq!(again.state, "complete");
    assert!(!b.holds(key), "a spent authorization brought a key back");
}

/// A source tolerates two minutes of clock difference: whoever was told "expired" before they are over would see keys move
/// after that.
#[test]
fn an_authorization_that_the_source_still_takes_is_not_called_expired() {
    let Pair { cluster, a, b } = pair();
    let key = a.create_key("volume");
    cluster.broker().node_proxy().refuse();
    let ask = Ask::new(Operation::Move, &a, &b, Selection::Ids(vec![key]));
    let transfer = cluster.authorize(Ask { ttl_seconds: 1, ..ask });
    let expires_at_ms = u128::try_from(transfer.now().expires_at_ms).expect("after 1970");
    eventually("the authorization's time is over", || {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        (since_1970.as_millis() > expires_at_ms).then_some(())
    });
    assert_eq!(transfer.now().state(), TransferState::Authorized);
    cluster.broker().node_proxy().pass();
    transfer.wait();
    assert!(!a.holds(key) && b.holds(key));
}

/// The skew between two clocks is two minutes, so the test signs with the broker's key what a broker signed long ago.
#[test]
fn an_expired_authorization_is_refused_by_the_source() {
    const HOUR_MS: i64 = 3_600_000;
    let Pair { cluster, a, b } = pair();
    let (key, other) = (a.create_key("volume"), a.create_key("other"));
    let model = cluster.copy_keys(&a, &b, &[other]);
    model.wait();
    let broker = StolenBroker::steal(cluster.broker(), &cluster.folder().join("key"));
    let model = UnverifiedEnvelope::from_bytes(&model.authorization).expect("an envelope");
    let model: Authorization = model.unverified_statement().expect("an authorization");
    let certificate = &model.target_wrapping_certificate;
    let now = broker.statement(
        Operation::Move,
        model.source,
        model.target,
        certificate,
        Selection::Ids(vec![key]),
    );
    let long_ago = Authorization {
        not_before_ms: now.not_before_ms - HOUR_MS,
        expires_at_ms: now.expires_at_ms - HOUR_MS,
        ..now
    };
    let mark = a.log().mark();
    let id = long_ago.authorization_id;
    b.accept_transfer(&broker.sign(long_ago), &a.peer_address())
        .expect("the source decides about the time");
    b.wait_for_transfer(id, "refused");
    a.log().wait_for(mark, "step 8, time: it expired at");
    assert!(a.holds(key) && !b.holds(key));
}

/// The command line is what an operator has: the same story told with it.
#[test]
fn an_operator_moves_a_key_with_the_command_line() {
    let Pair { cluster, a, b } = pair();
    let created = a.command([
        "key",
        "create",
        "--name",
        "vol-1",
        "--label",
        "pool=fast",
        "--output",
        "json",
    ]);
    let created = created.expect_success("lockbox key create").json();
    let key = created["key_id"].as_str().expect("the id").to_owned();
    let before = a
        .command(["key", "reveal", "vol-1", "--encoding", "hex"])
        .expect_success("reveal at a")
        .text();
    assert_eq!(before.trim().len(), 128, "64 bytes in hexadecimal");
    let args = [
        "transfer",
        "authorize",
        "--source",
        "a",
        "--target",
        "b",
        "--operation",
        "move",
        "--key",
        &key,
        "--wait",
    ];
    cluster
        .broker()
        .command(args)
        .expect_success("transfer authorize --wait");
    let after = b
        .command(["key", "reveal", &key, "--encoding", "hex"])
        .expect_success("reveal at b")
        .text();
    assert_eq!(after.trim(), before.trim());
    let gone = a.command(["key", "reveal", &key, "--encoding", "hex"]);
    assert!(!gone.status.success() && gone.stdout.is_empty(), "{gone:?}");
    assert!(gone.stderr.contains("moved"), "{}", gone.stderr);
    let listed = cluster
        .broker()
        .command(["transfer", "list", "--output", "json"])
        .expect_success("list")
        .json();
    assert!(listed.to_string().contains("\"complete\""), "{listed}");
}
