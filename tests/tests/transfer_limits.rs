//! Limits of a requester, through the real binaries: they hold whatever way it says which keys.

use lockbox_authz::{Labels, Operation, Selection};
use lockbox_tests::testkit::{Ask, Broker, Cluster, Lockbox, NewKey, TransferState, eventually};
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

/// Transfers of the operator's that are queued before another requester's one.
const MANY: usize = 300;

/// A requester that queues as many transfers as it may must not hold up another's.
#[test]
fn a_requesters_one_transfer_does_not_wait_for_all_of_anothers() {
    let Pair { cluster, a, b } = pair("");
    let broker = cluster.broker();
    let nova = cluster.folder().join("nova");
    let (dir, out) = (broker.dir().to_string_lossy(), nova.to_string_lossy());
    broker
        .command_as(
            &broker.dir().join("client.toml"),
            ["client", "create", "nova", "--dir", &*dir, "--out", &*out],
        )
        .expect_success("client create");
    broker.configure(
        "[[requester]]\nname = \"nova\"\noperations = [\"copy\"]\nsource_labels = {}\ntarget_labels = {}\nselections = [\"ids\"]",
    );
    let keys = a.create_keys(MANY + 1);
    broker.node_proxy().refuse();
    for key in &keys[..MANY] {
        cluster.copy_keys(&a, &b, &[*key]);
    }
    let key = keys[MANY].to_string();
    let command = [
        "transfer",
        "authorize",
        "--source",
        "a",
        "--target",
        "b",
        "--operation",
        "copy",
        "--key",
        &key,
        "--wait",
    ];
    let waiting = broker.start_command_as(&nova.join("client.toml"), command);
    eventually("nova's transfer is authorized", || {
        open_transfers(broker).eq(&(MANY + 1)).then_some(())
    });
    broker.node_proxy().pass();
    waiting.wait().expect_success("nova's transfer");
    let open = open_transfers(broker);
    assert!(
        open >= MANY / 3,
        "nova's transfer waited until {open} of {MANY} were left"
    );
    assert!(b.holds(keys[MANY]));
}

/// How many transfers have not ended.
fn open_transfers(broker: &Broker) -> usize {
    let listed = broker.command(["transfer", "list", "--limit", "1000", "--output", "json"]);
    let listed = listed.expect_success("transfer list").json();
    let transfers = listed.as_array().expect("a list");
    transfers
        .iter()
        .filter(|transfer| transfer["state"] != "complete")
        .count()
}
