//! Steps 11 to 16, 18 and 19: what this lockbox's own keys, jobs and caps allow, and the requester's limit.

use lockbox_authz::field::Labels;
use lockbox_authz::id::AuthorizationId;

use super::*;
use crate::lifecycle::caps::{Caps, HOUR_MS};
use crate::record::{Destruction, DestructionOrigin, KeyState};

#[test]
fn rejects_a_key_that_is_not_here() {
    let mut case = Case::new();
    case.statement.selection = Selection::from_unsorted_ids(vec![case.key_id, KeyId([9; 16])]).expect("two keys");
    assert!(matches!(case.refusal(), Refusal::NoKey(id) if id == KeyId([9; 16])));
}

#[test]
fn rejects_a_selection_that_matches_nothing() {
    let mut case = Case::new();
    case.statement.selection = Selection::Labels(Labels::parse(["pool=fast"]).expect("a label"));
    assert!(matches!(case.refusal(), Refusal::NothingSelected));
}

#[test]
fn rejects_a_copy_of_a_compromised_key() {
    let mut case = Case::new();
    case.change_key(|key| key.info.state = KeyState::Compromised);
    case.statement.operation = Operation::Copy;
    assert!(matches!(case.refusal(), Refusal::State { .. }));
}

#[test]
fn rejects_a_key_that_is_scheduled_for_destruction() {
    for operation in [Operation::Copy, Operation::Move] {
        let mut case = Case::new();
        case.change_key(|key| {
            key.info.destruction = Some(Destruction {
                origin: DestructionOrigin::Rotation(KeyId([9; 16])),
                scheduled_at_ms: 1,
                due_run_ms: 1,
            });
        });
        case.statement.operation = operation;
        assert!(matches!(case.refusal(), Refusal::Scheduled(id) if id == case.key_id));
        // What else is selected may leave.
        case.statement.selection = Selection::All;
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::AllWithheld { count: 1, .. }), "{refusal}");
        assert!(refusal.requester_text().contains("is scheduled for destruction"));
    }
}

#[test]
fn rejects_a_key_of_another_open_transfer() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("the first time");
    case.statement.authorization_id = AuthorizationId([9; 16]);
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::Busy { .. }) && !refusal.is_final());
}

#[test]
fn rejects_a_pinned_key() {
    let mut case = Case::with_policy(TransferPolicy {
        pinned: true,
        ..TransferPolicy::default()
    });
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn rejects_a_copy_that_the_key_forbids() {
    let mut case = Case::with_policy(TransferPolicy {
        deny_copy: true,
        ..TransferPolicy::default()
    });
    case.statement.operation = Operation::Copy;
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn rejects_a_move_that_the_key_forbids() {
    let mut case = Case::with_policy(TransferPolicy {
        deny_move: true,
        ..TransferPolicy::default()
    });
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn rejects_a_target_without_the_labels_that_the_key_requires() {
    let mut case = Case::with_policy(TransferPolicy {
        required_target_labels: Labels::parse(["zone=c"]).expect("a label"),
        ..TransferPolicy::default()
    });
    assert!(matches!(case.refusal(), Refusal::Policy { .. }));
}

#[test]
fn withholds_the_pinned_key_and_takes_the_rest_when_all_are_selected() {
    let mut case = Case::new();
    case.cluster.a.create(
        "pinned",
        TransferPolicy {
            pinned: true,
            ..TransferPolicy::default()
        },
    );
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("one key may leave");
    let status = case
        .cluster
        .a
        .lockbox()
        .transfer_status(case.statement.authorization_id)
        .expect("undamaged")
        .expect("it was opened");
    assert_eq!((status.key_count, status.withheld_count), (1, 1));
}

#[test]
fn rejects_a_selection_of_which_no_key_may_leave_and_says_why() {
    let mut case = Case::with_policy(TransferPolicy {
        pinned: true,
        ..TransferPolicy::default()
    });
    case.statement.selection = Selection::All;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::AllWithheld { count: 1, .. }) && refusal.is_final());
    assert!(
        refusal.requester_text().contains("is pinned to its lockbox"),
        "{refusal}"
    );
}

/// The reasons are told with the first of many; how many there are is told in any case.
#[test]
fn the_first_keys_that_are_withheld_are_told_with_their_reasons() {
    const PINNED: u64 = 40;
    let mut case = Case::new();
    for _ in 0..PINNED {
        case.cluster.a.create(
            "pinned",
            TransferPolicy {
                pinned: true,
                ..TransferPolicy::default()
            },
        );
    }
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("one key may leave");
    let reports = case.cluster.a.lockbox().reports(1).expect("undamaged");
    let status = &reports[0].status;
    assert_eq!((status.withheld_count, status.withheld.len()), (PINNED, 32));
    let is_pinned = |key: &crate::wire::WithheldKey| key.reason.contains("is pinned") && key.key_id != case.key_id.0;
    assert!(status.withheld.iter().all(is_pinned));
}

#[test]
fn rejects_a_canary_whatever_else_is_wrong() {
    let policy = TransferPolicy {
        canary: true,
        pinned: true,
        ..TransferPolicy::default()
    };
    for selection in [None, Some(Selection::All)] {
        let mut case = Case::with_policy(policy.clone());
        let unknown = KeyId([0xff; 16]);
        case.statement.selection = selection.unwrap_or(Selection::Ids(vec![case.key_id, unknown]));
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::Canary(key) if key == case.key_id));
        let told = refusal.requester_text();
        assert_eq!(told, Refusal::Alarm.requester_text());
        assert!(
            !told.contains("canary") && !told.contains(&case.key_id.to_string()),
            "a thief must not learn what gave it away"
        );
    }
}

/// The alarm is what makes a canary worth having: from then on nothing leaves.
#[test]
fn a_canary_stops_everything_until_an_operator_clears_the_alarm() {
    let mut case = Case::new();
    let canary = case.cluster.a.create(
        "canary",
        TransferPolicy {
            canary: true,
            ..TransferPolicy::default()
        },
    );
    let bytes = case.signed();
    case.cluster
        .a
        .step(|lockbox, now, rng| lockbox.raise_canary_alarm(canary, &bytes, now, rng))
        .expect("memory does not fail");
    assert!(matches!(case.refusal(), Refusal::Alarm));
    case.cluster.a.restart();
    assert!(matches!(case.refusal(), Refusal::Alarm));
    case.cluster
        .a
        .step(|lockbox, _, rng| lockbox.clear_alarm(1, rng))
        .expect("it stands");
    let head = case.cluster.roster.head();
    case.present(bytes, head).expect("the operator has looked at it");
}

#[test]
fn rejects_what_a_job_needs() {
    let (mut case, job) = bonded(Relation::Rekey);
    for key in [case.key_id, job] {
        case.statement.selection = Selection::Ids(vec![key]);
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::InJob { .. }) && !refusal.is_final());
    }
    // At the target nobody would know that some of the clone's data is under the other key.
    case.statement.operation = Operation::Copy;
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::InJob { .. }) && !refusal.is_final());
    case.statement.selection = Selection::Ids(vec![case.key_id]);
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("the clone's source is not rewritten");
}

#[test]
fn rejects_more_keys_than_the_cap_lets_leave() {
    let mut case = Case::new();
    case.cluster.a.create("another", TransferPolicy::default());
    case.statement.selection = Selection::All;
    case.cluster.a.lockbox_mut().set_caps(Caps {
        keys_per_authorization: Some(1),
        ..Caps::default()
    });
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::TooManyKeys { keys: 2, cap: 1 }) && refusal.is_final());
}

/// A requester that may have one key leave must not get two by saying which in another way.
#[test]
fn rejects_more_keys_than_the_requester_may_have_leave() {
    let mut case = Case::new();
    let second = case.cluster.a.create("another", TransferPolicy::default());
    let named = Selection::from_unsorted_ids(vec![case.key_id, second]).expect("two keys");
    let label = |key: &mut Key| key.info.labels = Labels::parse(["pool=fast"]).expect("a label");
    case.change_key(label);
    let first = std::mem::replace(&mut case.key_id, second);
    case.change_key(label);
    let labelled = Selection::Labels(Labels::parse(["pool=fast"]).expect("a label"));
    for selection in [named, labelled, Selection::All] {
        case.statement.selection = selection;
        case.statement.max_keys = Some(1);
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::OverLimit { keys: 2, limit: 1 }) && refusal.is_final());
        assert!(
            refusal.requester_text().contains("2 keys"),
            "the requester must be told why"
        );
    }
    // What is withheld does not leave.
    case.key_id = first;
    case.change_key(|key| key.info.transfer_policy.pinned = true);
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head)
        .expect("one key leaves, as the requester may have");
}

/// A layer brings its ancestors along, and each of them counts.
#[test]
fn the_requesters_limit_counts_whole_families() {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    case.statement.operation = Operation::Copy;
    case.statement.selection = Selection::All;
    case.statement.max_keys = Some(1);
    assert!(matches!(case.refusal(), Refusal::OverLimit { keys: 2, limit: 1 }));
    case.statement.max_keys = Some(2);
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("the layer and what it lies on");
}

#[test]
fn rejects_more_transfers_in_an_hour_than_the_cap_and_takes_them_after_it() {
    let mut case = Case::new();
    let caps = Caps {
        transfers_per_hour: Some(2),
        ..Caps::default()
    };
    let head = case.cluster.roster.head();
    for number in 0..2 {
        case.cluster.a.lockbox_mut().set_caps(caps);
        case.statement.authorization_id = AuthorizationId([number; 16]);
        let key = case.cluster.a.create("volume", TransferPolicy::default());
        case.statement.selection = Selection::Ids(vec![key]);
        let bytes = case.signed();
        case.present(bytes, head).expect("below the cap");
        // A thief must not be helped by a restart.
        case.cluster.a.restart();
    }
    case.cluster.a.lockbox_mut().set_caps(caps);
    case.statement.authorization_id = AuthorizationId([2; 16]);
    case.statement.selection = Selection::Ids(vec![case.key_id]);
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::TooManyTransfers { cap: 2 }) && !refusal.is_final());
    case.cluster.a.now_ms += HOUR_MS;
    case.statement.not_before_ms += HOUR_MS;
    case.statement.expires_at_ms += HOUR_MS;
    let bytes = case.signed();
    case.present(bytes, head).expect("the hour is over");
}
