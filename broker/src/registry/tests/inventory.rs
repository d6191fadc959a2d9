//! What lockboxes report of their keys, and what a stolen one opens.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::task::{Context, Waker};
use std::time::Duration;

use lockbox_authz::impact::{Finding, Kinship, Remedy};
use lockbox_authz::inventory::{InventoryEntry, InventoryState, MAX_INVENTORY_ENTRIES, Parent};
use lockbox_authz::{InventoryReport, Labels, MaterialId};

use tokio::sync::mpsc;

use super::*;
use crate::limits::{MAX_IMPACT_KEYS, MAX_RANGE_KEYS, READINGS_AT_ONCE};

pub(super) fn held(number: u8, material: u8) -> InventoryEntry {
    InventoryEntry {
        key_id: KeyId([number; 16]),
        material_id: MaterialId([material; 16]),
        state: InventoryState::Active,
        parent: None,
        consumers: Vec::new(),
        job: None,
        name: String::new(),
        labels: Labels::default(),
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
    let entries = entries.iter().map(|(key, material)| held(*key, *material)).collect();
    let told = tell_entries(registry, reported_at_ms, lockbox, range, entries).await;
    told.unwrap();
}

async fn tell_entries(
    registry: &Arc<Registry>,
    reported_at_ms: i64,
    lockbox: u8,
    range: (Option<u8>, Option<u8>),
    entries: Vec<InventoryEntry>,
) -> Result<(), Refusal> {
    let report = InventoryReport {
        cluster_id: registry.roster().cluster_id(),
        lockbox_id: id(lockbox),
        reported_at_ms,
        after: range.0.map(|number| KeyId([number; 16])),
        last: range.1.map(|number| KeyId([number; 16])),
        entries,
    };
    registry.turn(move |turn| turn.take_inventory(&report, NOW_MS)).await
}

/// Alpha was taken over this long before now.
pub(super) fn theft(ago_ms: i64) -> Theft {
    Theft {
        lockbox_id: id(ALPHA),
        since_ms: NOW_MS - ago_ms,
        with_gone_at_first: false,
    }
}

pub(super) async fn impact(registry: &Arc<Registry>, exposed: Exposed) -> Vec<Impact> {
    let (sender, parts) = std::sync::mpsc::channel();
    let take = move |part| {
        sender.send(part).expect("it is received below");
        ControlFlow::Continue(())
    };
    registry.impact(exposed, take).await.unwrap();
    parts.into_iter().collect()
}

/// Without what the lockboxes have no more.
async fn opened_by(registry: &Arc<Registry>, key: u8) -> Vec<(u8, LockboxId)> {
    let at = |finding: &Finding| (finding.holding.entry.key_id.0[0], finding.holding.lockbox_id);
    let impact = impact(registry, Exposed::Key(KeyId([key; 16]))).await;
    let held = impact.iter().flat_map(|part| {
        let has = |finding: &&Finding| !part.held_until_ms.contains_key(&LeftPlace::of(&finding.holding));
        part.findings.iter().filter(has).map(at)
    });
    held.collect()
}

/// All that was known of the keys of a stolen server is asked, and a server may have more keys than one family may.
#[tokio::test]
async fn every_key_of_a_stolen_lockbox_is_told_however_many_there_are() {
    const KEYS: usize = MAX_IMPACT_KEYS + 1;
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let key_id = |number: usize| KeyId((number as u128 + 1).to_be_bytes());
    let numbers: Vec<usize> = (0..KEYS).collect();
    for range in numbers.chunks(MAX_INVENTORY_ENTRIES) {
        let (first, last) = (range[0], range[range.len() - 1]);
        let entry = |number: &usize| InventoryEntry {
            key_id: key_id(*number),
            material_id: MaterialId(key_id(*number).0),
            ..held(0, 0)
        };
        let report = InventoryReport {
            cluster_id: registry.roster().cluster_id(),
            lockbox_id: id(ALPHA),
            reported_at_ms: NOW_MS,
            after: (first > 0).then(|| key_id(first - 1)),
            last: (last + 1 < KEYS).then(|| key_id(last)),
            entries: range.iter().map(entry).collect(),
        };
        let taken = registry.turn(move |turn| turn.take_inventory(&report, NOW_MS)).await;
        taken.unwrap();
    }
    let told = impact(&registry, Exposed::Lockbox(theft(0))).await;
    assert!(told.iter().all(|part| !part.truncated));
    let keys: BTreeSet<KeyId> = told
        .iter()
        .flat_map(|part| part.findings.iter().map(|finding| finding.holding.entry.key_id))
        .collect();
    assert_eq!(keys.len(), KEYS);
}

/// A requester that asks and does not read must not keep a stolen lockbox from being retired.
#[tokio::test]
async fn rejects_more_readings_than_may_be_at_once_and_goes_on_with_everything_else() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    tell(&registry, ALPHA, (None, None), &[(2, 2)]).await;
    let exposed = Exposed::Key(KeyId([2; 16]));
    let (began, all_began) = std::sync::mpsc::channel();
    let mut readings = Vec::new();
    let mut unread = Vec::new();
    for _ in 0..READINGS_AT_ONCE {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (registry, began) = (Arc::clone(&registry), began.clone());
        let take = move |_| {
            began.send(()).expect("it is received below");
            // Until its other end is dropped.
            let _ = released.recv();
            ControlFlow::Break(())
        };
        readings.push(tokio::spawn(async move { registry.impact(exposed, take).await }));
        unread.push(release);
    }
    tokio::task::spawn_blocking(move || all_began.iter().take(READINGS_AT_ONCE).count())
        .await
        .unwrap();

    let one_more = registry.impact(exposed, |_| ControlFlow::Continue(())).await;
    assert!(matches!(one_more, Err(Refusal::Busy)));
    tell(&registry, ALPHA, (None, None), &[(4, 4)]).await;
    drop(unread);
    for reading in readings {
        assert!(matches!(reading.await.unwrap(), Err(Refusal::NotTaken)));
    }
    assert_eq!(opened_by(&registry, 4).await, [(4, id(ALPHA))]);
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

/// The layer is at a lockbox that has not reported; its snapshot's old blocks are under the base's material all the same.
#[tokio::test]
async fn what_lies_on_a_key_is_found_although_its_parent_was_never_reported() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let mut snapshot = held(6, 4);
    snapshot.parent = Some(Parent {
        key_id: KeyId([4; 16]),
        relation: "snapshot".to_owned(),
        stated_lies_on: Some(KeyId([2; 16])),
    });
    tell(&registry, ALPHA, (None, None), &[(2, 2)]).await;
    let told = tell_entries(&registry, NOW_MS, BETA, (None, None), vec![snapshot]).await;
    told.unwrap();
    let registry = reopen(&store);
    let told = impact(&registry, Exposed::Key(KeyId([2; 16]))).await;
    let found: Vec<_> = told
        .iter()
        .flat_map(|part| &part.findings)
        .map(|found| (found.holding.lockbox_id, found.kinship, found.remedy))
        .collect();
    let expected = [
        (id(ALPHA), Kinship::Material, Remedy::Deep),
        (id(BETA), Kinship::Layer, Remedy::Deep),
    ];
    assert_eq!(found, expected);
    assert_eq!(opened_by(&registry, 6).await, [(6, id(BETA)), (2, id(ALPHA))]);
}

/// One range in which nothing is left must not hold everybody else up, nor be refused for ever.
#[tokio::test]
async fn a_lockbox_that_lost_everything_is_taken_off_step_by_step() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let key_id = |number: usize| KeyId((number as u128 + 1).to_be_bytes());
    let numbers: Vec<usize> = (0..MAX_RANGE_KEYS + 10).collect();
    for range in numbers.chunks(MAX_INVENTORY_ENTRIES) {
        let entry = |number: &usize| InventoryEntry {
            key_id: key_id(*number),
            ..held(0, 7)
        };
        let report = InventoryReport {
            cluster_id: registry.roster().cluster_id(),
            lockbox_id: id(ALPHA),
            reported_at_ms: NOW_MS,
            after: range[0].checked_sub(1).map(key_id),
            last: range.last().copied().map(key_id),
            entries: range.iter().map(entry).collect(),
        };
        let taken = registry.turn(move |turn| turn.take_inventory(&report, NOW_MS)).await;
        taken.unwrap();
    }
    let first = tell_entries(&registry, NOW_MS, ALPHA, (None, None), Vec::new()).await;
    assert!(matches!(first, Err(Refusal::MuchIsGone)));
    tell(&registry, ALPHA, (None, None), &[]).await;
    let reported = registry.turn(|turn| turn.scan(&keys::inventory(id(ALPHA)), None, 1));
    assert!(reported.await.unwrap().is_empty());
    let told = impact(&registry, Exposed::Lockbox(theft(0))).await;
    let known: usize = told.iter().map(|part| part.held_until_ms.len()).sum();
    assert_eq!(known, MAX_RANGE_KEYS + 10, "it had them");
}

/// A report that was held back on an old connection would bring back what the lockbox has told is gone.
#[tokio::test]
async fn an_older_report_does_not_replace_a_newer_one() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    tell_at(&registry, NOW_MS - 5, ALPHA, (None, None), &[(2, 2), (4, 2)]).await;
    // It is not to believe that it was told.
    let older = tell_entries(&registry, NOW_MS - 9, ALPHA, (None, None), vec![held(2, 2)]).await;
    assert!(matches!(older, Err(Refusal::OlderReport)));
    assert_eq!(opened_by(&registry, 2).await.len(), 2);
    // Another lockbox's clock is its own.
    tell_at(&registry, NOW_MS - 9, BETA, (None, None), &[(6, 2)]).await;
    assert_eq!(opened_by(&registry, 2).await.len(), 3);
    // A clock that was ahead and was put right.
    tell_at(&registry, NOW_MS + 1_000_000, ALPHA, (None, None), &[(2, 2)]).await;
    tell_at(&registry, NOW_MS, ALPHA, (None, None), &[(2, 2), (4, 2)]).await;
    assert_eq!(opened_by(&registry, 2).await.len(), 3);
}

/// Whoever asks and reads nothing, on a connection that stays, must not keep others from ever asking again.
#[tokio::test]
async fn an_answer_that_nobody_takes_is_broken_off_and_its_place_is_given_back() {
    let store = MemoryStore::new();
    tell(&registry(&store).await, ALPHA, (None, None), &[(2, 2)]).await;
    let mut registry = Registry::open(Arc::new(store)).unwrap();
    registry.readings = Readings::with_patience(Duration::from_millis(50));
    let registry = Arc::new(registry);
    let ask = |pages| {
        let registry = Arc::clone(&registry);
        Box::pin(async move { registry.preview(Subject::Keys(vec![KeyId([2; 16])]), pages).await })
    };
    let mut unread = Vec::new();
    for _ in 0..READINGS_AT_ONCE {
        let (sender, pages) = mpsc::channel(1);
        // The answer's own page has no room.
        sender.try_send(Ok(Vec::new())).expect("there is room for one");
        let mut reading = ask(sender);
        let polled = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "it has its place");
        unread.push((tokio::spawn(reading), pages));
    }
    while !registry.readings.are_all_free() {
        tokio::task::yield_now().await;
    }
    let (sender, mut pages) = mpsc::channel(1);
    ask(sender).await.unwrap();
    assert_eq!(pages.recv().await.expect("an answer").unwrap().len(), 1);
    for (reading, mut pages) in unread {
        assert!(matches!(pages.recv().await, Some(Ok(page)) if page.is_empty()));
        assert!(matches!(pages.recv().await, Some(Err(Refusal::NotTaken))));
        reading.await.unwrap().unwrap();
    }
}
