use lockbox_authz::roster::{Admins, Change, Genesis, Head, Lockbox, RosterEntry};
use lockbox_authz::{
    AuthorizationId, DestructionRecord, ErasureClass, ErasureRecord, Hash, JoinRequest, KeyId, Labels, Operation,
    Receipt, RestorationRecord, SecretKey, Selection, SessionId, Signer, Verified, WrappingCertificate,
};
use lockbox_rpc::api::control::TransferState;
use lockbox_rpc::api::node::{CustodyReport, TransferReport, TransferRole, TransferStage};
use lockbox_store::MemoryStore;

use super::*;
use crate::decide::TransferRequest;
use crate::limits::{
    MAX_REJECTED_JOINS, MAX_REPORT_RECEIPTS, PENDING_JOIN_KEPT_MS, PENDING_JOIN_REPLACED_AFTER_MS, PENDING_JOINS,
    REJECTED_JOIN_KEPT_MS,
};
use crate::requesters::{Permission, Requester, Requesters, SelectionKind};

mod custody;
mod history;
mod inventory;
mod joins;
mod left;
mod open;
mod received;

const NOW_MS: i64 = 1_800_000_000_000;
const ADMIN: u8 = 1;
const BROKER: u8 = 2;
const JOIN: u8 = 3;
const ALPHA: u8 = 10;
const BETA: u8 = 11;

fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn id(number: u8) -> LockboxId {
    LockboxId::from_random([number; 16])
}

fn lockbox(number: u8, name: &str) -> Lockbox {
    Lockbox {
        lockbox_id: id(number),
        name: name.to_owned(),
        identity_key: secret(number).public_key(),
        labels: Labels::default(),
    }
}

fn admit(roster: &Roster, change: Change) -> UnverifiedEnvelope {
    Verified::sign(roster.next_entry(change, NOW_MS), &secret(ADMIN))
        .envelope()
        .clone()
}

/// A registry on a store with a broker and the lockboxes alpha and beta, which have connected.
async fn registry(store: &MemoryStore) -> Arc<Registry> {
    let genesis = RosterEntry {
        cluster_id: None,
        index: 0,
        previous: None,
        signed_at_ms: NOW_MS,
        change: Change::Genesis(Genesis {
            cluster_name: "test".to_owned(),
            admins: Admins::new(vec![secret(ADMIN).public_key()], 1, 1).unwrap(),
            nonce: [9; 32],
        }),
    };
    let mut roster = Roster::found(Verified::sign(genesis, &secret(ADMIN)).envelope(), None).unwrap();
    let admit_broker = Change::AdmitBroker {
        name: "broker".to_owned(),
        signing_key: secret(BROKER).public_key(),
    };
    for change in [
        admit_broker,
        Change::AdmitLockbox(lockbox(ALPHA, "alpha")),
        Change::AdmitLockbox(lockbox(BETA, "beta")),
    ] {
        let entry = admit(&roster, change);
        roster.apply(&entry).unwrap();
    }
    store.commit(founding_batch(&roster)).unwrap();
    let registry = reopen(store);
    for number in [ALPHA, BETA] {
        let facts = facts(&roster, number);
        registry
            .turn(move |turn| turn.set_lockbox_facts(id(number), facts))
            .await
            .unwrap();
    }
    registry
}

fn reopen(store: &MemoryStore) -> Arc<Registry> {
    Arc::new(Registry::open(Arc::new(store.clone())).unwrap())
}

fn facts(roster: &Roster, number: u8) -> LockboxFacts {
    let certificate = WrappingCertificate {
        cluster_id: roster.cluster_id(),
        lockbox_id: id(number),
        wrapping_key: vec![number; lockbox_authz::limits::WRAPPING_KEY_BYTES].into(),
        generation: 1,
    };
    LockboxFacts {
        wrapping_certificate: Verified::sign(certificate, &secret(number)).envelope().clone(),
        peer_address: format!("10.0.0.{number}:7401"),
        software_version: "1".to_owned(),
        roster_head: roster.head(),
        last_seen_ms: NOW_MS,
        takes_notices: true,
        clock_ahead_ms: None,
        health: None,
    }
}

fn table() -> Requesters {
    let mut table = Requesters::default();
    table.add(Requester {
        name: "operator".to_owned(),
        operations: vec![Permission::Copy, Permission::Move],
        source_labels: Labels::default(),
        target_labels: Labels::default(),
        selections: vec![SelectionKind::Ids, SelectionKind::All],
        max_keys: None,
        max_open_transfers: 1_000,
    });
    table
}

fn key_ids(count: u8) -> Vec<KeyId> {
    (0..count).map(|number| KeyId::from_random([number; 16])).collect()
}

fn request(request_id: &str) -> TransferRequest {
    TransferRequest {
        requester: "operator".to_owned(),
        request_id: request_id.to_owned(),
        source: "alpha".to_owned(),
        target: "beta".to_owned(),
        operation: Operation::Move,
        selection: Selection::from_unsorted_ids(key_ids(2)).unwrap(),
        ttl_seconds: 0,
        reason: String::new(),
    }
}

/// Authorizes with the id that `number` stands for.
async fn authorize(registry: &Arc<Registry>, request: TransferRequest, number: u8) -> Result<Authorized, Refusal> {
    let new = AuthorizationId::from_random([number; 16]);
    registry
        .turn(move |turn| turn.authorize(&request, &table(), &secret(BROKER), new, NOW_MS))
        .await
}

async fn transfer(registry: &Arc<Registry>, number: u8) -> Transfer {
    let id = AuthorizationId::from_random([number; 16]);
    let found = registry.turn(move |turn| turn.transfer(id)).await.unwrap();
    found.expect("it was authorized")
}

/// What the two ends sign about a transfer of `key_ids(2)` in one chunk.
struct Signed<'a> {
    registry: &'a Registry,
    transfer: &'a Transfer,
}

impl Signed<'_> {
    fn receipt(&self, signer: u8, authorization_hash: Hash) -> Vec<u8> {
        let receipt = Receipt {
            cluster_id: self.registry.roster().cluster_id(),
            authorization_hash,
            session_id: SessionId::from_random([4; 16]),
            chunk: 0,
            chunk_hash: Hash([5; 32]),
            key_ids: key_ids(2),
            stored_at_ms: NOW_MS,
        };
        Verified::sign(receipt, &secret(signer)).envelope().to_bytes()
    }

    fn erasure(&self, signer: u8) -> Vec<u8> {
        let erasure = ErasureRecord {
            cluster_id: self.registry.roster().cluster_id(),
            authorization_hash: self.transfer.authorization_hash,
            chunk: 0,
            receipt_hash: Hash([6; 32]),
            key_ids: key_ids(2),
            erasure_class: ErasureClass::Software,
            erased_at_ms: NOW_MS,
        };
        Verified::sign(erasure, &secret(signer)).envelope().to_bytes()
    }

    fn report(&self, role: TransferRole, receipts: Vec<Vec<u8>>, erasure_records: Vec<Vec<u8>>) -> TransferReport {
        TransferReport {
            report_id: 1,
            authorization_id: self.transfer.authorization_id.to_vec(),
            role: role.into(),
            stage: TransferStage::Complete.into(),
            key_count: 2,
            keys_done: 2,
            receipts,
            erasure_records,
            ..TransferReport::default()
        }
    }
}

async fn report(registry: &Arc<Registry>, lockbox: u8, report: TransferReport) -> Result<Reported, Refusal> {
    registry
        .turn(move |turn| turn.report(id(lockbox), &report, NOW_MS))
        .await
}

/// Whoever is told before the sync could act on an authorization that a power cut then undoes.
#[tokio::test]
async fn nobody_is_told_of_a_transfer_before_it_is_durable() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let submitted = registry.lock().submitted;
    store.hold();
    let answer = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { authorize(&registry, request("r1"), 1).await }
    });
    while registry.lock().submitted == submitted {
        tokio::task::yield_now().await;
    }
    let reader = registry.turn(|turn| turn.list(None, None, 10, NOW_MS));
    // Long enough for a reader that does not wait.
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), reader).await;
    assert!(early.is_err() && !answer.is_finished());
    store.release().unwrap();
    assert!(answer.await.unwrap().unwrap().is_new);
    store.crash();
    assert_eq!(
        transfer(&reopen(&store), 1).await.state(NOW_MS),
        TransferState::Authorized
    );
}

#[tokio::test]
async fn the_same_request_gives_the_same_transfer() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let first = authorize(&registry, request("r1"), 1).await.unwrap();
    let again = authorize(&reopen(&store), request("r1"), 2).await.unwrap();
    assert!(first.is_new && !again.is_new);
    assert_eq!(first.authorization, again.authorization);
    let mut other = request("r1");
    other.operation = Operation::Copy;
    assert!(matches!(
        authorize(&registry, other, 3).await,
        Err(Refusal::RequestIdTaken)
    ));
}

/// A retry may come after the lockboxes have changed; it must not be told that its transfer never was.
#[tokio::test]
async fn a_retry_is_answered_though_the_target_was_retired() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    let entry = admit(
        &registry.roster(),
        Change::RetireLockbox {
            lockbox_id: id(BETA),
            reason: String::new(),
        },
    );
    registry.turn(move |turn| turn.append(&entry, NOW_MS)).await.unwrap();
    assert!(!authorize(&registry, request("r1"), 2).await.unwrap().is_new);
    assert!(matches!(
        authorize(&registry, request("r2"), 3).await,
        Err(Refusal::Denied(_))
    ));
}

#[tokio::test]
async fn a_move_completes_by_what_its_ends_signed() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    let before = transfer(&registry, 1).await;
    let signed = Signed {
        registry: &registry,
        transfer: &before,
    };
    let receipts = vec![signed.receipt(BETA, before.authorization_hash)];
    report(
        &registry,
        BETA,
        signed.report(TransferRole::Target, receipts.clone(), vec![]),
    )
    .await
    .unwrap();
    assert_eq!(transfer(&registry, 1).await.state(NOW_MS), TransferState::Running);
    let erasures = vec![signed.erasure(ALPHA)];
    report(
        &registry,
        ALPHA,
        signed.report(TransferRole::Source, receipts, erasures),
    )
    .await
    .unwrap();
    let after = transfer(&reopen(&store), 1).await;
    assert_eq!(after.state(NOW_MS), TransferState::Complete);
    assert_eq!((after.keys_received, after.keys_erased), (2, 2));
}

#[tokio::test]
async fn rejects_evidence_that_another_signed_or_that_is_about_another_transfer() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    let before = transfer(&registry, 1).await;
    let signed = Signed {
        registry: &registry,
        transfer: &before,
    };
    let good = before.authorization_hash;
    for (receipts, erasures) in [
        // The source says that the target has the keys.
        (vec![signed.receipt(ALPHA, good)], vec![]),
        // The broker's own key says so.
        (vec![signed.receipt(BROKER, good)], vec![]),
        // About another transfer.
        (vec![signed.receipt(BETA, Hash([7; 32]))], vec![]),
        // The target says that the source has erased the keys.
        (vec![], vec![signed.erasure(BETA)]),
        // A good receipt beside a bad erasure record.
        (vec![signed.receipt(BETA, good)], vec![signed.erasure(BETA)]),
        (vec![b"rubbish".to_vec()], vec![]),
    ] {
        let forged = signed.report(TransferRole::Target, receipts, erasures);
        assert!(report(&registry, BETA, forged).await.is_err());
        assert_eq!(transfer(&registry, 1).await, before);
    }
}

#[tokio::test]
async fn rejects_a_report_by_a_lockbox_that_is_not_that_end() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    let before = transfer(&registry, 1).await;
    let signed = Signed {
        registry: &registry,
        transfer: &before,
    };
    let as_source = signed.report(TransferRole::Source, vec![], vec![]);
    assert!(matches!(
        report(&registry, BETA, as_source).await,
        Err(Refusal::NotAnEnd)
    ));
    let as_target = signed.report(TransferRole::Target, vec![], vec![]);
    assert!(matches!(report(&registry, 12, as_target).await, Err(Refusal::NotAnEnd)));
    assert_eq!(transfer(&registry, 1).await, before);
}

#[tokio::test]
async fn a_revocation_is_told_until_its_end_says_that_it_ended() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    authorize(&registry, request("r1"), 1).await.unwrap();
    let transfer_id = AuthorizationId::from_random([1; 16]);
    registry
        .turn(move |turn| turn.revoke(transfer_id, "wrong volume", &secret(BROKER), NOW_MS))
        .await
        .unwrap();
    let heard = |lockbox| {
        let registry = reopen(&store);
        async move {
            let (heard, _) = registry
                .turn(move |turn| turn.all_to_hear(id(lockbox), None, NOW_MS))
                .await
                .unwrap();
            heard.len()
        }
    };
    assert_eq!((heard(ALPHA).await, heard(BETA).await), (1, 1));
    let ended = TransferReport {
        authorization_id: transfer_id.to_vec(),
        role: TransferRole::Source.into(),
        stage: TransferStage::Ended.into(),
        ..TransferReport::default()
    };
    report(&reopen(&store), ALPHA, ended).await.unwrap();
    assert_eq!((heard(ALPHA).await, heard(BETA).await), (0, 1));
    assert_eq!(transfer(&reopen(&store), 1).await.state(NOW_MS), TransferState::Revoked);
}

#[tokio::test]
async fn pages_of_transfers_are_the_newest_first_and_miss_none() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    for number in 1..=5 {
        authorize(&registry, request(&format!("r{number}")), number)
            .await
            .unwrap();
    }
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = registry
            .turn(move |turn| turn.list(Some("operator"), after.as_deref(), 2, NOW_MS))
            .await
            .unwrap();
        found.extend(page.transfers.into_iter().map(|transfer| transfer.request_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, ["r1", "r2", "r3", "r4", "r5"]);
    let others = registry
        .turn(|turn| turn.list(Some("nova"), None, 9, NOW_MS))
        .await
        .unwrap();
    assert!(others.transfers.is_empty());
}

/// Two admins who work at the same time must not look like a fork.
#[tokio::test]
async fn rejects_an_entry_that_is_not_the_next_one() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let roster = registry.roster();
    let one = admit(&roster, Change::AdmitLockbox(lockbox(20, "one")));
    let other = admit(&roster, Change::AdmitLockbox(lockbox(21, "other")));
    registry.turn(move |turn| turn.append(&one, NOW_MS)).await.unwrap();
    let refused = registry.turn(move |turn| turn.append(&other, NOW_MS)).await;
    assert!(matches!(refused, Err(Refusal::NotNext { due: 5 })));
    assert_eq!(reopen(&store).roster().head(), registry.roster().head());
}

#[tokio::test]
async fn a_broker_that_lost_entries_learns_them_from_a_lockbox() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let mut ahead = Roster::clone(&registry.roster());
    let entry = admit(&ahead, Change::AdmitLockbox(lockbox(20, "one")));
    ahead.apply(&entry).unwrap();
    let head = ahead.head();
    let outcome = registry
        .turn(move |turn| turn.sync_roster(Some(head), &[entry]))
        .await
        .unwrap();
    assert!(outcome.grown && outcome.entries.is_empty());
    assert_eq!(reopen(&store).roster().head(), ahead.head());
}

/// Anybody may send entries, and to look at them must hold nobody up: what is known costs nothing, and what no admin signed
/// never gets a turn.
#[tokio::test]
async fn entries_that_change_nothing_are_sorted_out() {
    let store = MemoryStore::new();
    let roster = registry(&store).await.roster();
    let known: Vec<_> = roster.entries_from(0, usize::MAX).cloned().collect();
    assert!(matches!(super::screen(&roster, &known), (new, None) if new.is_empty()));

    let good = admit(&roster, Change::AdmitLockbox(lockbox(20, "one")));
    let mut ahead = Roster::clone(&roster);
    ahead.apply(&good).unwrap();
    let change = Change::AdmitLockbox(lockbox(21, "two"));
    let forged = Verified::sign(ahead.next_entry(change, NOW_MS), &secret(99))
        .envelope()
        .clone();
    let (new, refused) = super::screen(&roster, &[known[1].clone(), good.clone(), forged]);
    assert_eq!(new, [good]);
    assert!(refused.is_some());
}

#[tokio::test]
async fn a_fork_is_answered_with_our_entry_at_its_place() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let ours = registry.roster();
    let forked = Head {
        index: 2,
        hash: Hash([7; 32]),
    };
    let outcome = registry
        .turn(move |turn| turn.sync_roster(Some(forked), &[]))
        .await
        .unwrap();
    assert_eq!(outcome.entries.first(), ours.entries_from(2, 1).next());
}

/// A broker that is told to end while a request waits for its turn says so, and does not fall over.
#[tokio::test]
async fn a_task_that_was_never_run_is_no_fault() {
    let task = tokio::spawn(std::future::pending::<()>());
    task.abort();
    assert!(matches!(joined(task.await), Err(Refusal::Store(_))));
}
