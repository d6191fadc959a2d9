//! How many transfers one requester may have open.

use super::*;
use crate::registry::transfer::lapses_at_ms;

const LIMIT: usize = 2;

fn limited() -> Requesters {
    let mut requesters = Requesters::default();
    for name in ["operator", "nova"] {
        requesters.add(Requester {
            name: name.to_owned(),
            max_open_transfers: LIMIT,
            ..table().find("operator").unwrap().clone()
        });
    }
    requesters
}

/// Authorizes under a limit of two, at a time, with the id that `number` stands for.
async fn ask(registry: &Arc<Registry>, requester: &str, number: u8, now_ms: i64) -> Result<Authorized, Refusal> {
    let request = TransferRequest {
        requester: requester.to_owned(),
        ..request(&format!("r{number}"))
    };
    let new = AuthorizationId::from_random([number; 16]);
    registry
        .turn(move |turn| turn.authorize(&request, &limited(), &secret(BROKER), new, now_ms))
        .await
}

/// A broker with as many open transfers of the operator's as it may have.
async fn full(store: &MemoryStore) -> Arc<Registry> {
    let registry = registry(store).await;
    for number in 1..=2 {
        ask(&registry, "operator", number, NOW_MS).await.unwrap();
    }
    registry
}

#[tokio::test]
async fn rejects_more_open_transfers_than_the_requester_may_have() {
    let store = MemoryStore::new();
    full(&store).await;
    // A restart must not forget them.
    let registry = reopen(&store);
    let refused = ask(&registry, "operator", 3, NOW_MS).await.unwrap_err();
    assert!(matches!(refused, Refusal::TooManyOpenTransfers { limit: LIMIT }));
    assert!(refused.to_string().contains("max_open_transfers in broker.toml"));
    let asked_again = ask(&registry, "operator", 1, NOW_MS).await.unwrap();
    assert!(!asked_again.is_new, "a repeated request opens nothing");
    ask(&registry, "nova", 4, NOW_MS).await.unwrap();
}

#[tokio::test]
async fn a_transfer_that_is_revoked_makes_room() {
    let store = MemoryStore::new();
    let registry = full(&store).await;
    let id = AuthorizationId::from_random([1; 16]);
    registry
        .turn(move |turn| turn.revoke(id, "", &secret(BROKER), NOW_MS))
        .await
        .unwrap();
    ask(&reopen(&store), "operator", 3, NOW_MS).await.unwrap();
    ask(&registry, "operator", 3, NOW_MS).await.unwrap();
}

#[tokio::test]
async fn a_transfer_that_an_end_refuses_makes_room() {
    let store = MemoryStore::new();
    let registry = full(&store).await;
    let refused = TransferReport {
        authorization_id: AuthorizationId::from_random([1; 16]).to_vec(),
        role: TransferRole::Source.into(),
        stage: TransferStage::Refused.into(),
        ..TransferReport::default()
    };
    report(&registry, ALPHA, refused).await.unwrap();
    ask(&registry, "operator", 3, NOW_MS).await.unwrap();
}

#[tokio::test]
async fn a_transfer_that_expires_makes_room_and_one_that_was_accepted_does_not_expire() {
    let store = MemoryStore::new();
    let registry = full(&store).await;
    let accepted = TransferReport {
        authorization_id: AuthorizationId::from_random([1; 16]).to_vec(),
        role: TransferRole::Target.into(),
        stage: TransferStage::Accepted.into(),
        ..TransferReport::default()
    };
    report(&registry, BETA, accepted).await.unwrap();
    let lapses_at_ms = lapses_at_ms(transfer(&registry, 2).await.expires_at_ms);
    assert!(ask(&registry, "operator", 3, lapses_at_ms).await.is_err());
    ask(&registry, "operator", 3, lapses_at_ms + 1).await.unwrap();
    assert!(ask(&registry, "operator", 4, lapses_at_ms + 1).await.is_err());
}

/// What an end waits for must not end the transfer, or make it look as if nobody had it.
#[tokio::test]
async fn an_end_that_waits_says_why_and_changes_nothing_else() {
    let store = MemoryStore::new();
    let registry = full(&store).await;
    let of = |role: TransferRole, stage: TransferStage, detail: &str| TransferReport {
        authorization_id: AuthorizationId::from_random([1; 16]).to_vec(),
        role: role.into(),
        stage: stage.into(),
        detail: detail.to_owned(),
        ..TransferReport::default()
    };
    let (waiting, accepted) = (TransferStage::Waiting, TransferStage::Accepted);
    report(&registry, BETA, of(TransferRole::Target, accepted, ""))
        .await
        .unwrap();
    report(&registry, BETA, of(TransferRole::Target, waiting, "an alarm there"))
        .await
        .unwrap();
    let waits = transfer(&reopen(&store), 1).await;
    assert_eq!(
        (waits.state(NOW_MS), waits.detail(NOW_MS)),
        (TransferState::Accepted, "an alarm there".to_owned())
    );
    report(&registry, ALPHA, of(TransferRole::Source, waiting, "an alarm here"))
        .await
        .unwrap();
    let waits = transfer(&registry, 1).await;
    assert_eq!(waits.detail(NOW_MS), "an alarm here");
    report(&registry, BETA, of(TransferRole::Target, TransferStage::Running, ""))
        .await
        .unwrap();
    report(&registry, ALPHA, of(TransferRole::Source, TransferStage::Running, ""))
        .await
        .unwrap();
    assert_eq!(transfer(&registry, 1).await.detail(NOW_MS), "");
}
