use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::limits::KEPT_AFTER_EXPIRY_MS;

use super::DropPlace;
use crate::record::TransferPolicy;
use crate::testing::{Cluster, Node};
use crate::transfer::tests::{begin, carry};

/// Goes through everything as the daemon does. Gives how much was dropped.
pub(crate) fn drop_all(node: &mut Node) -> usize {
    let mut count = 0;
    let mut place = Some(DropPlace::default());
    while let Some(from) = place {
        let dropped = node.step(|lockbox, now, rng| lockbox.drop_expired(from, now, rng));
        let dropped = dropped.expect("undamaged");
        count += dropped.count;
        place = dropped.next;
    }
    count
}

fn acknowledge_all(node: &mut Node) {
    for report in node.lockbox().reports(100).expect("undamaged") {
        node.step(|lockbox, _, rng| lockbox.reported(&report, rng))
            .expect("it was reported");
    }
}

/// How many records there are of transfers, their chunks and revocations.
fn count(node: &Node) -> usize {
    let is_history = |place: &[u8]| b"opvtc".contains(&place[0]);
    node.stored().iter().filter(|(place, _)| is_history(place)).count()
}

fn pass(cluster: &mut Cluster, time_ms: i64) {
    cluster.a.now_ms += time_ms;
    cluster.b.now_ms += time_ms;
}

#[test]
fn what_has_ended_is_dropped_seven_days_after_it_expired() {
    let mut cluster = Cluster::new();
    for operation in [Operation::Copy, Operation::Move] {
        let key_id = cluster.a.create("volume", TransferPolicy::default());
        let authorization = cluster.authorize(operation, Selection::Ids(vec![key_id]));
        carry(&mut cluster.a, &mut cluster.b, &authorization).expect("it goes");
    }
    let never_presented = cluster.authorize(Operation::Move, Selection::All);
    let revocation = cluster.revoke(never_presented.statement().authorization_id);
    cluster
        .a
        .step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");
    assert_eq!((count(&cluster.a), count(&cluster.b)), (5, 4));
    pass(&mut cluster, 300_000 + KEPT_AFTER_EXPIRY_MS);
    acknowledge_all(&mut cluster.a);
    acknowledge_all(&mut cluster.b);
    assert_eq!((drop_all(&mut cluster.a), drop_all(&mut cluster.b)), (0, 0));
    pass(&mut cluster, 1);
    assert_eq!((drop_all(&mut cluster.a), drop_all(&mut cluster.b)), (3, 2));
    assert_eq!((count(&cluster.a), count(&cluster.b)), (0, 0));
}

/// The target may have stored the key: without the record, nobody would erase it at the source.
#[test]
fn an_open_move_is_never_dropped() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    begin(&mut cluster.a, &mut cluster.b, &authorization);
    pass(&mut cluster, 100 * KEPT_AFTER_EXPIRY_MS);
    acknowledge_all(&mut cluster.a);
    acknowledge_all(&mut cluster.b);
    assert_eq!((drop_all(&mut cluster.a), drop_all(&mut cluster.b)), (0, 0));
    carry(&mut cluster.a, &mut cluster.b, &authorization).expect("it goes on");
    assert!(cluster.a.lockbox().vault.key(key_id).expect("undamaged").is_none());
}

/// The broker would never get its receipts, and a restore would bring the key back.
#[test]
fn what_the_broker_was_not_told_of_is_not_dropped() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(vec![key_id]));
    carry(&mut cluster.a, &mut cluster.b, &authorization).expect("it goes");
    pass(&mut cluster, 100 * KEPT_AFTER_EXPIRY_MS);
    assert_eq!((drop_all(&mut cluster.a), drop_all(&mut cluster.b)), (0, 0));
}
