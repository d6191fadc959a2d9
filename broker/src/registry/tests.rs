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
use crate::limits::{MAX_PENDING_JOINS, MAX_REPORT_RECEIPTS, PENDING_JOIN_KEPT_MS};
use crate::requesters::{Permission, Requester, Requesters, SelectionKind};

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
        max_keys: 1_024,
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

/// Anybody can ask to join, so it must not fill the disk, nor keep real ones out for good.
#[tokio::test]
async fn requests_to_join_are_bounded() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let cluster_id = registry.roster().cluster_id();
    let ask = move |seed: usize, now_ms: i64| {
        let mut bytes = [200; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let key = SecretKey::from_seed(&bytes);
        let request = JoinRequest {
            cluster_id,
            lockbox: Lockbox {
                lockbox_id: LockboxId::from_random(bytes[..16].try_into().unwrap()),
                name: format!("asks-{seed}"),
                identity_key: key.public_key(),
                labels: Labels::default(),
            },
            requested_at_ms: now_ms,
        };
        let envelope = Verified::sign(request, &key).envelope().clone();
        move |turn: &mut Turn<'_>| turn.join(&envelope, None, &secret(BROKER), now_ms)
    };
    for seed in 0..MAX_PENDING_JOINS {
        registry.turn(ask(seed, NOW_MS)).await.unwrap();
    }
    let one_more = registry.turn(ask(MAX_PENDING_JOINS, NOW_MS)).await;
    assert!(matches!(one_more, Err(Refusal::TooManyPending)));
    assert_eq!(registry.turn(ask(0, NOW_MS + 1)).await.unwrap(), JoinOutcome::Pending);
    let later = NOW_MS + PENDING_JOIN_KEPT_MS + 1;
    let outcome = registry.turn(ask(MAX_PENDING_JOINS, later)).await;
    assert_eq!(outcome.unwrap(), JoinOutcome::Pending);
}

/// A request by lockbox `number` and the half-signed entry that a join key admits it with.
fn joining(roster: &Roster, number: u8, at_ms: i64) -> (UnverifiedEnvelope, UnverifiedEnvelope) {
    let member = lockbox(number, &format!("joins-{number}"));
    let request = JoinRequest {
        cluster_id: roster.cluster_id(),
        lockbox: member.clone(),
        requested_at_ms: at_ms,
    };
    let entry = roster.next_entry(Change::AdmitLockbox(member), at_ms);
    let request = Verified::sign(request, &secret(number)).envelope().clone();
    (request, Verified::sign(entry, &secret(JOIN)).envelope().clone())
}

async fn allow_join(registry: &Arc<Registry>) -> Arc<Roster> {
    let allow = Change::AllowJoin {
        join_key: secret(JOIN).public_key(),
        expires_at_ms: NOW_MS + 1_000,
        labels: Labels::default(),
        name: None,
    };
    let entry = admit(&registry.roster(), allow);
    registry.turn(move |turn| turn.append(&entry, NOW_MS)).await.unwrap();
    registry.roster()
}

/// With two entries for one place that both count, the holder of a token could split the cluster for good.
#[tokio::test]
async fn the_broker_signs_one_admission_for_each_place_and_it_is_durable() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let before = allow_join(&registry).await;
    let (request, entry) = joining(&before, 20, NOW_MS);
    let (other_request, other) = joining(&before, 21, NOW_MS);
    let alone = entry.clone();
    let refused = registry.turn(move |turn| turn.append(&alone, NOW_MS)).await;
    assert!(
        matches!(refused, Err(Refusal::Roster(_))),
        "without the broker's signature"
    );
    let about_another = (other_request.clone(), entry.clone());
    let refused = registry
        .turn(move |turn| turn.join(&about_another.0, Some(&about_another.1), &secret(BROKER), NOW_MS))
        .await;
    assert!(matches!(refused, Err(Refusal::Field(_))));
    let outcome = registry
        .turn(move |turn| turn.join(&request, Some(&entry), &secret(BROKER), NOW_MS))
        .await;
    assert_eq!(outcome.unwrap(), JoinOutcome::NewlyAdmitted);
    store.crash();
    let registry = reopen(&store);
    let refused = registry
        .turn(move |turn| turn.join(&other_request, Some(&other), &secret(BROKER), NOW_MS))
        .await;
    assert!(matches!(refused, Err(Refusal::NotNext { due: 6 })), "{refused:?}");
    assert!(registry.roster().lockbox(&id(20)).is_some() && registry.roster().lockbox(&id(21)).is_none());
}

/// Every later entry would have to bear the same date or a later one.
#[tokio::test]
async fn rejects_an_entry_from_the_future() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let before = allow_join(&registry).await;
    let entry = admit(&before, Change::AdmitLockbox(lockbox(20, "one")));
    let early = NOW_MS - lockbox_authz::limits::MAX_CLOCK_SKEW_MS;
    let again = entry.clone();
    let refused = registry.turn(move |turn| turn.append(&again, early - 1)).await;
    assert!(matches!(refused, Err(Refusal::FromTheFuture { .. })), "{refused:?}");
    let (request, joined) = joining(&before, 21, NOW_MS);
    let refused = registry
        .turn(move |turn| turn.join(&request, Some(&joined), &secret(BROKER), early - 1))
        .await;
    assert!(matches!(refused, Err(Refusal::FromTheFuture { .. })), "{refused:?}");
    registry.turn(move |turn| turn.append(&entry, early)).await.unwrap();
}

/// The date in an entry is its maker's: a thief of an old token would write an old one.
#[tokio::test]
async fn rejects_a_token_that_expired_by_the_brokers_clock() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let before = allow_join(&registry).await;
    let late = NOW_MS + 1_000 + lockbox_authz::limits::MAX_CLOCK_SKEW_MS;
    for (now_ms, is_taken) in [(late + 1, false), (late, true)] {
        let (request, entry) = joining(&before, 20, NOW_MS);
        let outcome = registry
            .turn(move |turn| turn.join(&request, Some(&entry), &secret(BROKER), now_ms))
            .await;
        assert_eq!(outcome.is_ok(), is_taken, "{outcome:?}");
    }
}

fn destroyed(roster: &Roster, lockbox: u8, signer: u8) -> Vec<u8> {
    let record = DestructionRecord {
        cluster_id: roster.cluster_id(),
        lockbox_id: id(lockbox),
        key_ids: key_ids(3),
        erasure_class: ErasureClass::Software,
        signed_at_ms: NOW_MS,
    };
    Verified::sign(record, &secret(signer)).envelope().to_bytes()
}

async fn custody_report(registry: &Arc<Registry>, by: u8, records: Vec<Vec<u8>>) -> Result<(), Refusal> {
    let report = CustodyReport { report_id: 1, records };
    registry.turn(move |turn| turn.custody_report(id(by), &report)).await
}

/// What a lockbox destroyed is known for good, however often it says so.
#[tokio::test]
async fn destroyed_keys_and_restored_lockboxes_are_remembered() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let roster = registry.roster();
    let restored = RestorationRecord {
        cluster_id: roster.cluster_id(),
        lockbox_id: id(BETA),
        predecessor_id: id(ALPHA),
        backup_id: [5; 16],
        as_of_ms: NOW_MS,
        signed_at_ms: NOW_MS,
    };
    let restored = Verified::sign(restored, &secret(BETA)).envelope().to_bytes();
    let record = destroyed(&roster, ALPHA, ALPHA);
    for _ in 0..2 {
        custody_report(&registry, ALPHA, vec![record.clone()]).await.unwrap();
        custody_report(&registry, BETA, vec![restored.clone()]).await.unwrap();
    }
    let again = reopen(&store);
    let kept = again
        .turn(|turn| Ok((turn.destructions(id(ALPHA), None)?.0, turn.restorations(id(ALPHA))?)))
        .await
        .unwrap();
    assert_eq!(kept, (vec![record], vec![(id(BETA), restored)]));
    let of_beta = again.turn(|turn| turn.destructions(id(BETA), None)).await.unwrap();
    assert!(of_beta.0.is_empty());
}

/// A lockbox that spoke for another could keep the other's keys out of a restore.
#[tokio::test]
async fn rejects_what_a_lockbox_says_of_keys_for_another() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let roster = registry.roster();
    let forged = custody_report(&registry, ALPHA, vec![destroyed(&roster, ALPHA, BETA)]).await;
    assert!(matches!(forged, Err(Refusal::Envelope(_))), "{forged:?}");
    let anothers = custody_report(&registry, ALPHA, vec![destroyed(&roster, BETA, ALPHA)]).await;
    assert!(matches!(anothers, Err(Refusal::Field(_))), "{anothers:?}");
    let good = destroyed(&roster, ALPHA, ALPHA);
    let both = custody_report(&registry, ALPHA, vec![good.clone(), destroyed(&roster, BETA, ALPHA)]).await;
    assert!(both.is_err());
    for count in [0, MAX_REPORT_RECEIPTS + 1] {
        let refused = custody_report(&registry, ALPHA, vec![good.clone(); count]).await;
        assert!(matches!(refused, Err(Refusal::Field(_))), "{count}: {refused:?}");
    }
    let kept = registry.turn(|turn| turn.destructions(id(ALPHA), None)).await.unwrap();
    assert!(kept.0.is_empty(), "a part of a refused report was kept");
}

fn held(number: u8, material: u8) -> lockbox_authz::inventory::InventoryEntry {
    lockbox_authz::inventory::InventoryEntry {
        key_id: KeyId([number; 16]),
        material_id: lockbox_authz::MaterialId([material; 16]),
        state: lockbox_authz::inventory::InventoryState::Active,
        parent: None,
        consumers: Vec::new(),
        job: None,
    }
}

async fn tell(registry: &Arc<Registry>, lockbox: u8, range: (Option<u8>, Option<u8>), entries: &[(u8, u8)]) {
    tell_at(registry, NOW_MS, lockbox, range, entries).await;
}

async fn tell_at(
    registry: &Arc<Registry>,
    reported_at_ms: i64,
    lockbox: u8,
    range: (Option<u8>, Option<u8>),
    entries: &[(u8, u8)],
) {
    let report = lockbox_authz::InventoryReport {
        cluster_id: registry.roster().cluster_id(),
        lockbox_id: id(lockbox),
        reported_at_ms,
        after: range.0.map(|number| KeyId([number; 16])),
        last: range.1.map(|number| KeyId([number; 16])),
        entries: entries.iter().map(|(key, material)| held(*key, *material)).collect(),
    };
    let taken = registry.turn(move |turn| turn.take_inventory(&report, NOW_MS)).await;
    taken.unwrap();
}

async fn opened_by(registry: &Arc<Registry>, key: u8) -> Vec<(u8, LockboxId)> {
    let impact = registry.impact(Exposed::Key(KeyId([key; 16]))).await.unwrap();
    let at = |finding: &lockbox_authz::impact::Finding| (finding.holding.entry.key_id.0[0], finding.holding.lockbox_id);
    impact.findings.iter().map(at).collect()
}

/// An operator who looks for what a thief can open must not be shown what is no more, nor miss what another range has.
#[tokio::test]
async fn a_range_of_an_inventory_replaces_that_range_and_no_other() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    tell(&registry, ALPHA, (None, Some(4)), &[(2, 2), (4, 2)]).await;
    tell(&registry, ALPHA, (Some(4), None), &[(6, 2)]).await;
    tell(&registry, BETA, (None, None), &[(2, 2), (9, 9)]).await;
    let mut all = opened_by(&registry, 2).await;
    all.sort();
    let mut expected = vec![(2, id(ALPHA)), (2, id(BETA)), (4, id(ALPHA)), (6, id(ALPHA))];
    expected.sort();
    assert_eq!(all, expected);
    tell(&registry, ALPHA, (None, Some(4)), &[(2, 2)]).await;
    let registry = reopen(&store);
    let mut all = opened_by(&registry, 6).await;
    all.sort();
    expected.retain(|found| *found != (4, id(ALPHA)));
    assert_eq!(all, expected);
    assert_eq!(opened_by(&registry, 9).await, [(9, id(BETA))]);
    assert_eq!(opened_by(&registry, 77).await, []);
}

/// A report that was held back on an old connection would bring back what the lockbox has told is gone.
#[tokio::test]
async fn an_older_report_does_not_replace_a_newer_one() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    tell_at(&registry, NOW_MS - 5, ALPHA, (None, None), &[(2, 2), (4, 2)]).await;
    tell_at(&registry, NOW_MS - 9, ALPHA, (None, None), &[(2, 2)]).await;
    assert_eq!(opened_by(&registry, 2).await.len(), 2);
    // Another lockbox's clock is its own.
    tell_at(&registry, NOW_MS - 9, BETA, (None, None), &[(6, 2)]).await;
    assert_eq!(opened_by(&registry, 2).await.len(), 3);
    // A clock that was ahead and was put right.
    tell_at(&registry, NOW_MS + 1_000_000, ALPHA, (None, None), &[(2, 2)]).await;
    tell_at(&registry, NOW_MS, ALPHA, (None, None), &[(2, 2), (4, 2)]).await;
    assert_eq!(opened_by(&registry, 2).await.len(), 3);
}

/// A broker that is told to end while a request waits for its turn says so, and does not fall over.
#[tokio::test]
async fn a_task_that_was_never_run_is_no_fault() {
    let task = tokio::spawn(std::future::pending::<()>());
    task.abort();
    assert!(matches!(joined(task.await), Err(Refusal::Store(_))));
}
