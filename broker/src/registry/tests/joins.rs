//! Who asks to join, and who is let in by a token.

use super::*;

/// Lockbox `seed` asks to join.
async fn ask(registry: &Arc<Registry>, seed: usize, from: [u8; 4], now_ms: i64) -> Result<JoinOutcome, Refusal> {
    let key = asking(seed);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let request = JoinRequest {
        cluster_id: registry.roster().cluster_id(),
        lockbox: Lockbox {
            lockbox_id: LockboxId::from_random(bytes),
            name: format!("asks-{seed}"),
            identity_key: key.public_key(),
            labels: Labels::default(),
        },
        requested_at_ms: now_ms,
    };
    let envelope = Verified::sign(request, &key).envelope().clone();
    let from = Some(from.into());
    registry
        .turn(move |turn| turn.join(&envelope, None, from, &secret(BROKER), now_ms))
        .await
}

fn asking(seed: usize) -> SecretKey {
    let mut bytes = [200; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    SecretKey::from_seed(&bytes)
}

/// The names of those that wait.
async fn waiting(registry: &Arc<Registry>) -> Vec<String> {
    let pending = registry.turn(|turn| turn.pending_joins()).await.unwrap();
    pending
        .into_iter()
        .map(|pending| pending.request.lockbox.name)
        .collect()
}

/// Anybody can ask to join, so it must not fill the disk, nor keep real ones out.
#[tokio::test]
async fn strangers_leave_places_for_requests_from_elsewhere() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let stranger = |seed: usize| {
        [
            198,
            51,
            u8::try_from(seed / PENDING_JOINS.per_network).unwrap(),
            seed as u8 % 8,
        ]
    };
    for seed in 0..PENDING_JOINS.total {
        ask(&registry, seed, stranger(seed), NOW_MS + seed as i64)
            .await
            .unwrap();
    }
    assert_eq!(waiting(&registry).await.len(), PENDING_JOINS.total);
    let honest = 1_000;
    ask(&registry, honest, [192, 0, 2, 1], NOW_MS + 500).await.unwrap();
    // The strangers go on.
    let mut taken = 0;
    for seed in 2_000..2_100 {
        let late_ms = NOW_MS + PENDING_JOIN_REPLACED_AFTER_MS + 1_000;
        taken += usize::from(ask(&registry, seed, stranger(seed % 256), late_ms).await.is_ok());
    }
    assert!(taken > 0, "the oldest of a network gives way");
    let waiting = waiting(&registry).await;
    assert_eq!(waiting.len(), PENDING_JOINS.total);
    assert!(waiting.contains(&format!("asks-{honest}")), "{waiting:?}");
}

/// Each request is a write to the disk.
#[tokio::test]
async fn rejects_more_requests_of_an_address_than_one_in_its_turn() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let from = [192, 0, 2, 1];
    for seed in 0..PENDING_JOINS.per_address {
        ask(&registry, seed, from, NOW_MS + seed as i64).await.unwrap();
    }
    let one_more = PENDING_JOINS.per_address;
    let soon_ms = NOW_MS + PENDING_JOIN_REPLACED_AFTER_MS - 1;
    let refused = ask(&registry, one_more, from, soon_ms).await;
    assert!(matches!(refused, Err(Refusal::TooManyPending)), "{refused:?}");
    assert_eq!(ask(&registry, 0, from, soon_ms).await.unwrap(), JoinOutcome::Pending);

    ask(&registry, one_more, from, soon_ms + 1).await.unwrap();
    let waiting = waiting(&registry).await;
    assert!(!waiting.contains(&"asks-0".to_owned()), "the oldest has given way");
    assert_eq!(waiting.len(), PENDING_JOINS.per_address);
}

#[tokio::test]
async fn a_request_is_dropped_after_a_week() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    ask(&registry, 0, [192, 0, 2, 1], NOW_MS).await.unwrap();
    let late_ms = NOW_MS + PENDING_JOIN_KEPT_MS + 1;
    ask(&registry, 1, [192, 0, 2, 1], late_ms).await.unwrap();
    assert_eq!(waiting(&registry).await, ["asks-1"]);
}

#[tokio::test]
async fn rejected_requests_free_their_places_and_are_bounded() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let rounds = MAX_REJECTED_JOINS / PENDING_JOINS.per_address + 1;
    for round in 0..rounds {
        let seeds = round * PENDING_JOINS.per_address..(round + 1) * PENDING_JOINS.per_address;
        for seed in seeds.clone() {
            ask(&registry, seed, [192, 0, 2, 1], NOW_MS + round as i64)
                .await
                .unwrap();
        }
        let keys: Vec<_> = seeds.map(|seed| asking(seed).public_key()).collect();
        let at_ms = NOW_MS + round as i64;
        registry
            .turn(move |turn| turn.reject_joins(&keys, at_ms))
            .await
            .unwrap();
    }
    // Those that were rejected first are forgotten.
    ask(&registry, 0, [192, 0, 2, 1], NOW_MS + 1_000).await.unwrap();
    let last = rounds * PENDING_JOINS.per_address - 1;
    let refused = ask(&registry, last, [192, 0, 2, 1], NOW_MS + 1_000).await;
    assert!(matches!(refused, Err(Refusal::JoinRejected)), "{refused:?}");
}

/// A daemon asks by itself every 30 seconds, and would be back on the list at once.
#[tokio::test]
async fn rejects_a_lockbox_for_a_day_after_an_admin_did() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let from = [192, 0, 2, 1];
    for seed in [0, 1] {
        ask(&registry, seed, from, NOW_MS).await.unwrap();
    }
    let reject = |registry: Arc<Registry>| async move {
        let keys = [asking(0).public_key(), asking(7).public_key()];
        registry
            .turn(move |turn| turn.reject_joins(&keys, NOW_MS))
            .await
            .unwrap()
    };
    assert_eq!(reject(Arc::clone(&registry)).await, 1);
    assert_eq!(reject(Arc::clone(&registry)).await, 0, "it waits no more");
    assert_eq!(waiting(&registry).await, ["asks-1"]);
    let within_a_day_ms = NOW_MS + REJECTED_JOIN_KEPT_MS;
    let refused = ask(&registry, 0, from, within_a_day_ms).await;
    assert!(matches!(refused, Err(Refusal::JoinRejected)), "{refused:?}");
    ask(&registry, 0, from, within_a_day_ms + 1).await.unwrap();
    assert_eq!(waiting(&registry).await.len(), 2);
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
        .turn(move |turn| turn.join(&about_another.0, Some(&about_another.1), None, &secret(BROKER), NOW_MS))
        .await;
    assert!(matches!(refused, Err(Refusal::Field(_))));
    let outcome = registry
        .turn(move |turn| turn.join(&request, Some(&entry), None, &secret(BROKER), NOW_MS))
        .await;
    assert_eq!(outcome.unwrap(), JoinOutcome::NewlyAdmitted);
    store.crash();
    let registry = reopen(&store);
    let refused = registry
        .turn(move |turn| turn.join(&other_request, Some(&other), None, &secret(BROKER), NOW_MS))
        .await;
    assert!(matches!(refused, Err(Refusal::NotNext { due: 6 })), "{refused:?}");
    assert!(registry.roster().lockbox(&id(20)).is_some() && registry.roster().lockbox(&id(21)).is_none());
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
            .turn(move |turn| turn.join(&request, Some(&entry), None, &secret(BROKER), now_ms))
            .await;
        assert_eq!(outcome.is_ok(), is_taken, "{outcome:?}");
    }
}

/// Also with a head that is years ahead lockboxes join, by tokens that end when this machine's clock says so, and are retired.
#[tokio::test]
async fn entries_follow_one_that_is_dated_ahead() {
    const YEARS_MS: i64 = 9 * 365 * 86_400_000;
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let early = NOW_MS - YEARS_MS;
    let late = early + lockbox_authz::limits::MAX_CLOCK_SKEW_MS + 1;
    let allow = Change::AllowJoin {
        join_key: secret(JOIN).public_key(),
        expires_at_ms: early,
        labels: Labels::default(),
        name: None,
    };
    let entry = admit(&registry.roster(), allow);
    registry.turn(move |turn| turn.append(&entry, early)).await.unwrap();
    let (request, entry) = joining(&registry.roster(), 20, early);
    let (again, same) = (request.clone(), entry.clone());
    let refused = registry
        .turn(move |turn| turn.join(&again, Some(&same), None, &secret(BROKER), late))
        .await;
    assert!(matches!(refused, Err(Refusal::Roster(_))), "{refused:?}");
    let outcome = registry
        .turn(move |turn| turn.join(&request, Some(&entry), None, &secret(BROKER), early))
        .await;
    assert_eq!(outcome.unwrap(), JoinOutcome::NewlyAdmitted);
    let retire = Change::RetireLockbox {
        lockbox_id: id(20),
        reason: String::new(),
    };
    let entry = admit(&registry.roster(), retire);
    registry.turn(move |turn| turn.append(&entry, early)).await.unwrap();
    assert!(registry.roster().admitted(&id(20)).is_none());
}

/// Every later entry would have to bear the same date or a later one.
#[tokio::test]
async fn rejects_an_entry_from_the_future() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let before = allow_join(&registry).await;
    // A millisecond after the head: an entry that is dated as the head is another case.
    let ahead = before.next_entry(Change::AdmitLockbox(lockbox(20, "one")), NOW_MS + 1);
    let entry = Verified::sign(ahead, &secret(ADMIN)).envelope().clone();
    let early = NOW_MS + 1 - lockbox_authz::limits::MAX_CLOCK_SKEW_MS;
    let again = entry.clone();
    let refused = registry.turn(move |turn| turn.append(&again, early - 1)).await;
    assert!(matches!(refused, Err(Refusal::FromTheFuture { .. })), "{refused:?}");
    let (request, joined) = joining(&before, 21, NOW_MS + 1);
    let refused = registry
        .turn(move |turn| turn.join(&request, Some(&joined), None, &secret(BROKER), early - 1))
        .await;
    assert!(matches!(refused, Err(Refusal::FromTheFuture { .. })), "{refused:?}");
    registry.turn(move |turn| turn.append(&entry, early)).await.unwrap();
}
