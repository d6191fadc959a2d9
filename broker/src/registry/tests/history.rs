//! What is kept for how long.

use lockbox_authz::limits::KEPT_AFTER_EXPIRY_MS;

use super::*;
use crate::limits::{DEFAULT_HISTORY_DAYS, DEFAULT_TTL_SECONDS};

const DAY_MS: i64 = 86_400_000;
const EXPIRES_AT_MS: i64 = NOW_MS + DEFAULT_TTL_SECONDS as i64 * 1_000;
/// When the 7 days after the expiry are over.
const PAST_MS: i64 = EXPIRES_AT_MS + KEPT_AFTER_EXPIRY_MS + 1;
const HISTORY_MS: i64 = DEFAULT_HISTORY_DAYS as i64 * DAY_MS;

fn auth(number: u8) -> AuthorizationId {
    AuthorizationId::from_random([number; 16])
}

async fn revoke(registry: &Arc<Registry>, number: u8) {
    let revoked = registry.turn(move |turn| turn.revoke(auth(number), "", &secret(BROKER), NOW_MS));
    revoked.await.unwrap();
}

/// Drops what is due, with both lockboxes connected, or none.
async fn drop_all(registry: &Arc<Registry>, now_ms: i64, connected: bool) {
    while registry
        .turn(move |turn| turn.drop_history(now_ms, &|_| connected))
        .await
        .unwrap()
    {}
}

/// The messages that a lockbox gets when it connects.
async fn heard(registry: &Arc<Registry>, lockbox: u8, now_ms: i64) -> usize {
    let (mut count, mut after) = (0, None);
    loop {
        let page = registry.turn(move |turn| turn.all_to_hear(id(lockbox), after, now_ms));
        let (page, last) = page.await.unwrap();
        count += page.len();
        match last {
            Some(last) => after = Some(last),
            None => return count,
        }
    }
}

fn rows(store: &MemoryStore, prefixes: &[&str]) -> usize {
    let rows = |prefix: &&str| store.scan(prefix.as_bytes(), None, usize::MAX).unwrap().len();
    prefixes.iter().map(rows).sum()
}

const TRANSFER_ROWS: [&str; 10] = [
    "transfer/",
    "authorization/",
    "revocation/",
    "receipt/",
    "erasure/",
    "request/",
    "all/",
    "own/",
    "end/",
    "expired-at/",
];

/// Each would be sent on each connection, for good, and take 8 KiB.
#[tokio::test]
async fn what_was_revoked_and_has_expired_is_told_to_nobody_and_dropped() {
    const MANY: u8 = 200;
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    for number in 1..=MANY {
        authorize(&registry, request(&format!("r{number}")), number)
            .await
            .unwrap();
        revoke(&registry, number).await;
    }
    let many = usize::from(MANY);
    assert_eq!(heard(&registry, ALPHA, EXPIRES_AT_MS).await, many);
    let later = EXPIRES_AT_MS + DAY_MS + 1;
    assert_eq!(heard(&registry, ALPHA, later).await, 0);
    assert_eq!(heard(&registry, BETA, later).await, 0);
    assert_eq!(rows(&store, &["end/"]), 0, "nothing is left to look through");
    drop_all(&registry, PAST_MS - 1, true).await;
    assert_eq!(rows(&store, &["authorization/", "revocation/"]), 2 * many);
    drop_all(&registry, PAST_MS, true).await;
    assert_eq!(rows(&store, &["authorization/", "revocation/", "expired-at/"]), 0);
    // The requester is still told what became of its request, and gets no second transfer for it.
    let again = authorize(&registry, request("r1"), 255).await.unwrap();
    assert!(!again.is_new && again.authorization.is_empty());
    assert_eq!(again.transfer.state(), TransferState::Revoked);
    drop_all(&registry, EXPIRES_AT_MS + HISTORY_MS + 1, true).await;
    assert_eq!(rows(&store, &TRANSFER_ROWS), 0);
}

/// A restore needs them to keep out the keys that have left.
#[tokio::test]
async fn receipts_and_erasure_records_are_kept_for_the_days_of_the_history() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    let known = transfer(&registry, 1).await;
    let signed = Signed {
        registry: &registry,
        transfer: &known,
    };
    let receipts = vec![signed.receipt(BETA, known.authorization_hash)];
    let erasures = vec![signed.erasure(ALPHA)];
    for (lockbox, role) in [(ALPHA, TransferRole::Source), (BETA, TransferRole::Target)] {
        let done = signed.report(role, receipts.clone(), erasures.clone());
        report(&registry, lockbox, done).await.unwrap();
    }
    drop_all(&registry, EXPIRES_AT_MS + HISTORY_MS, true).await;
    let (statements, _) = registry.turn(|turn| turn.custody(id(ALPHA), auth(1), 0)).await.unwrap();
    assert_eq!(statements.len(), 3, "authorization, receipt and erasure record");
    drop_all(&registry, EXPIRES_AT_MS + HISTORY_MS + 1, true).await;
    assert_eq!(rows(&store, &TRANSFER_ROWS), 0);
}

/// Its target may have keys for which no receipt has come, and its source keys that it has to erase.
#[tokio::test]
async fn an_open_move_is_never_dropped() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    let known = transfer(&registry, 1).await;
    let signed = Signed {
        registry: &registry,
        transfer: &known,
    };
    let running = TransferReport {
        stage: TransferStage::Running.into(),
        ..signed.report(TransferRole::Source, Vec::new(), Vec::new())
    };
    report(&registry, ALPHA, running).await.unwrap();
    revoke(&registry, 1).await;
    let before = rows(&store, &TRANSFER_ROWS);
    let much_later = EXPIRES_AT_MS + 10 * HISTORY_MS;
    drop_all(&registry, much_later, true).await;
    assert_eq!(rows(&store, &TRANSFER_ROWS), before);
    assert_eq!(heard(&registry, ALPHA, much_later).await, 1, "it is revoked there, too");
}

/// Where there is no route to the broker, a transfer goes by hand, and what was signed about it comes much later.
#[tokio::test]
async fn what_a_lockbox_could_not_tell_of_yet_is_kept() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    revoke(&registry, 1).await;
    drop_all(&registry, PAST_MS + DAY_MS, false).await;
    assert_eq!(rows(&store, &["authorization/", "revocation/"]), 2);
    let later = PAST_MS + DAY_MS;
    assert_eq!(heard(&registry, ALPHA, later).await, 0);
    let known = transfer(&registry, 1).await;
    let signed = Signed {
        registry: &registry,
        transfer: &known,
    };
    let running = TransferReport {
        stage: TransferStage::Running.into(),
        ..signed.report(TransferRole::Source, Vec::new(), Vec::new())
    };
    assert!(report(&registry, ALPHA, running).await.unwrap().must_hear);
    assert_eq!(heard(&registry, ALPHA, later).await, 1);
}

#[tokio::test]
async fn destruction_records_are_kept_for_the_days_of_the_history() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let record = super::custody::destroyed(&registry.roster(), ALPHA, ALPHA);
    super::custody::custody_report(&registry, ALPHA, vec![record])
        .await
        .unwrap();
    drop_all(&registry, NOW_MS + HISTORY_MS, true).await;
    assert_eq!(rows(&store, &["destruction/", "destruction-at/"]), 2);
    drop_all(&registry, NOW_MS + HISTORY_MS + 1, true).await;
    assert_eq!(rows(&store, &["destruction/", "destruction-at/"]), 0);
}
