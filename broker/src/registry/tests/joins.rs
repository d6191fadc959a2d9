//! Who asks to join, and who is let in by a token.

use super::*;

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
