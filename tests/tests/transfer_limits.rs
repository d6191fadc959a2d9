//! Limits of a requester, through the real binaries: they hold whatever way it says which keys.

use lockbox_authz::{Labels, Operation, Selection};
use lockbox_tests::testkit::{Ask, Cluster, Lockbox, NewKey, TransferState};
use tonic::Code;

struct Pair {
    cluster: Cluster,
    a: Lockbox,
    b: Lockbox,
}

/// Two lockboxes, and a broker whose operator has this limit.
fn pair(limit: &str) -> Pair {
    let cluster = Cluster::start();
    // The operator's row is the last of the file.
    cluster.broker().configure(limit);
    let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
    Pair { cluster, a, b }
}

/// A requester that may have two keys leave must not empty a server with one request.
#[test]
fn a_requesters_limit_holds_for_ids_labels_and_all() {
    let Pair { cluster, a, b } = pair("max_keys = 2");
    let with = |pool| NewKey {
        labels: vec![("pool", pool)],
        ..NewKey::named("volume")
    };
    let keys = a.create_keys_like(&with("fast"), 3);
    let by_ids = Selection::from_unsorted_ids(keys.clone()).expect("three keys");
    let denied = cluster.try_authorize(Ask::new(Operation::Move, &a, &b, by_ids));
    let denied = denied.err().expect("three are more than two");
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    assert!(denied.message().contains("max_keys"), "{denied}");
    let fast = Selection::Labels(Labels::parse(["pool=fast"]).expect("a label"));
    for selection in [fast, Selection::All] {
        for operation in [Operation::Move, Operation::Copy] {
            let ended = cluster
                .authorize(Ask::new(operation, &a, &b, selection.clone()))
                .wait_for_end();
            assert_eq!(ended.state(), TransferState::Refused);
            assert!(ended.detail.contains("step 19, limit: 3 keys"), "{}", ended.detail);
        }
    }
    assert_eq!(
        (a.keys().len(), b.keys().len()),
        (3, 0),
        "a refused transfer moved keys"
    );
    // What is within the limit goes, so nothing was spent or bound by what was refused.
    let two = a.create_keys_like(&with("slow"), 2);
    let slow = Selection::Labels(Labels::parse(["pool=slow"]).expect("a label"));
    cluster.authorize(Ask::new(Operation::Move, &a, &b, slow)).wait();
    assert!(two.iter().all(|key| b.holds(*key)));
    cluster.move_keys(&a, &b, &keys[..2]).wait();
}
