//! What a lockbox had and reports no more: a thief who has it report its keys as gone must not hide what it knew.

use std::collections::BTreeSet;

use lockbox_authz::impact::{Kinship, Progress, Remedy};
use lockbox_authz::inventory::{Consumer, InventoryEntry, InventoryState, MAX_CONSUMERS, Parent};
use lockbox_authz::{InventoryReport, MaterialId};
use lockbox_store::{Batch, Completion, Health, Pair, Store, StoreFailure};
use tokio::sync::mpsc;

use super::inventory::{held, impact, theft};
use super::*;
use crate::limits::{MAX_MATERIALS_OF_KEY, READINGS_AT_ONCE};

const HOUR_MS: i64 = 60 * 60 * 1_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Everything that a lockbox has and had, at a time of the broker's clock.
pub(super) async fn say(
    registry: &Arc<Registry>,
    lockbox: u8,
    now_ms: i64,
    entries: impl IntoIterator<Item = InventoryEntry>,
) -> Result<(), Refusal> {
    let report = InventoryReport {
        cluster_id: registry.roster().cluster_id(),
        lockbox_id: id(lockbox),
        reported_at_ms: now_ms,
        after: None,
        last: None,
        entries: entries.into_iter().collect(),
    };
    registry.turn(move |turn| turn.take_inventory(&report, now_ms)).await
}

fn gone(number: u8, material: u8, state: InventoryState) -> InventoryEntry {
    InventoryEntry {
        state,
        ..held(number, material)
    }
}

fn child_of(number: u8, parent: u8, relation: &str) -> InventoryEntry {
    InventoryEntry {
        parent: Some(Parent {
            key_id: KeyId([parent; 16]),
            relation: relation.to_owned(),
            stated_lies_on: None,
        }),
        ..held(number, number)
    }
}

/// The materials that a notice would name.
async fn exposed(registry: &Arc<Registry>, theft: Theft) -> Vec<u8> {
    named(registry, Subject::Lockbox(theft)).await
}

pub(super) async fn named(registry: &Arc<Registry>, subject: Subject) -> Vec<u8> {
    let (sender, mut pages) = mpsc::channel(READINGS_AT_ONCE);
    registry.preview(subject, sender).await.unwrap();
    let mut materials = BTreeSet::new();
    while let Some(page) = pages.recv().await {
        let named = page.unwrap();
        materials.extend(named.iter().map(|named| named.holding.entry.material_id.0[0]));
    }
    materials.into_iter().collect()
}

/// What is stored below some prefixes.
async fn rows(registry: &Arc<Registry>, prefixes: &'static [&'static str]) -> usize {
    let all = registry.turn(move |turn| {
        let rows = prefixes.iter().map(|prefix| turn.scan(prefix.as_bytes(), None, 10_000));
        rows.map(|rows| Ok(rows?.len())).sum()
    });
    all.await.unwrap()
}

#[tokio::test]
async fn what_a_lockbox_says_that_it_has_no_more_counts_from_the_time_of_the_theft() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let moved = InventoryState::Moved { to: id(BETA) };
    let all = [1, 2, 3, 4, 5].map(|number| held(number, number));
    say(&registry, ALPHA, NOW_MS - 9 * DAY_MS, all.clone()).await.unwrap();
    say(&registry, BETA, NOW_MS - 9 * DAY_MS, [held(2, 2), held(3, 3)])
        .await
        .unwrap();
    let [_, two, three, four, five] = all;
    let early = [gone(1, 1, InventoryState::Destroyed), two, three, four, five.clone()];
    say(&registry, ALPHA, NOW_MS - 8 * DAY_MS, early).await.unwrap();
    // Key 1 was destroyed before. Key 2 is moved away, 3 destroyed, 4 not spoken of, and 5 said to have been another.
    let late = [
        gone(1, 1, InventoryState::Destroyed),
        gone(2, 2, moved),
        gone(3, 3, InventoryState::Destroyed),
        held(5, 9),
    ];
    say(&registry, ALPHA, NOW_MS - HOUR_MS, late.clone()).await.unwrap();

    let registry = reopen(&store);
    assert_eq!(exposed(&registry, theft(2 * HOUR_MS)).await, [2, 3, 4, 5, 9]);
    assert_eq!(exposed(&registry, theft(HOUR_MS / 2)).await, [9]);
    assert_eq!(exposed(&registry, theft(10 * DAY_MS)).await, [1, 2, 3, 4, 5, 9]);
    // A retry of the same does not make it later.
    say(&registry, ALPHA, NOW_MS, late).await.unwrap();
    assert_eq!(exposed(&registry, theft(HOUR_MS / 2)).await, [9]);
}

/// A key that comes and goes between two reports was known to whoever had the machine then.
#[tokio::test]
async fn a_key_that_is_first_heard_of_when_it_is_gone_counts() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS - 1, []).await.unwrap();
    say(&registry, ALPHA, NOW_MS, [gone(2, 2, InventoryState::Destroyed)])
        .await
        .unwrap();
    assert_eq!(exposed(&registry, theft(HOUR_MS)).await, [2]);
}

/// A broker with an empty database hears of everything that a lockbox ever destroyed or moved away as if it were new; to mark
/// all that can't be undone.
#[tokio::test]
async fn what_was_gone_when_the_broker_met_the_lockbox_counts_only_if_it_is_asked_for() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let moved = gone(2, 2, InventoryState::Moved { to: id(BETA) });
    let range = |after: Option<u8>, last: Option<u8>, entries: &[InventoryEntry]| {
        let report = InventoryReport {
            cluster_id: registry.roster().cluster_id(),
            lockbox_id: id(ALPHA),
            reported_at_ms: NOW_MS,
            after: after.map(|number| KeyId([number; 16])),
            last: last.map(|number| KeyId([number; 16])),
            entries: entries.to_vec(),
        };
        registry.turn(move |turn| turn.take_inventory(&report, NOW_MS))
    };
    // The first round has three reports, and breaks off once.
    range(None, Some(2), &[held(1, 1), moved.clone()]).await.unwrap();
    let destroyed = |number: u8| gone(number, number, InventoryState::Destroyed);
    range(None, Some(2), &[held(1, 1), moved]).await.unwrap();
    range(Some(2), Some(3), &[destroyed(3)]).await.unwrap();
    range(Some(3), None, &[held(4, 4), destroyed(5)]).await.unwrap();
    // From here on it is known.
    range(Some(3), None, &[destroyed(4), destroyed(5), destroyed(6)])
        .await
        .unwrap();

    let by_default = theft(HOUR_MS);
    assert_eq!(exposed(&registry, by_default).await, [1, 4, 6]);
    let left_out = registry.left_out(by_default).await.unwrap();
    assert_eq!(
        (left_out.gone_at_first.count, left_out.gone_at_first.from_ms),
        (3, Some(NOW_MS))
    );
    assert_eq!(left_out.earlier.count, 0);
    let told = impact(&registry, Exposed::Lockbox(by_default)).await;
    let open = told.iter().flat_map(|part| &part.findings);
    let open = open.filter(|found| found.progress == Progress::Open);
    let open: BTreeSet<_> = open.map(|found| found.holding.entry.key_id.0[0]).collect();
    assert_eq!(open.into_iter().collect::<Vec<_>>(), [1, 4, 6]);
    let asked = Theft {
        with_gone_at_first: true,
        ..by_default
    };
    assert_eq!(exposed(&registry, asked).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(registry.left_out(asked).await.unwrap(), LeftOut::default());
}

/// Keys that left before the time that is looked at are the sign of a theft that was earlier than the operator thinks.
#[tokio::test]
async fn what_left_too_early_to_count_is_told() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let all = [1, 2, 3].map(|number| held(number, number));
    say(&registry, ALPHA, NOW_MS - 4 * HOUR_MS, all).await.unwrap();
    say(&registry, ALPHA, NOW_MS - 3 * HOUR_MS, [held(2, 2), held(3, 3)])
        .await
        .unwrap();
    say(&registry, ALPHA, NOW_MS - 2 * HOUR_MS, [held(3, 3)]).await.unwrap();
    say(&registry, ALPHA, NOW_MS, []).await.unwrap();
    let left_out = registry.left_out(theft(HOUR_MS)).await.unwrap();
    let earlier = (left_out.earlier.count, left_out.earlier.from_ms);
    assert_eq!(earlier, (2, Some(NOW_MS - 3 * HOUR_MS)));
    assert_eq!(registry.left_out(theft(3 * HOUR_MS)).await.unwrap(), LeftOut::default());
}

/// An answer that leaves out what nobody remembers must say so, or it is taken for the whole.
#[tokio::test]
async fn the_broker_says_since_when_it_remembers() {
    let store = MemoryStore::new();
    let at_first = registry(&store).await;
    let from = |registry: &Registry, now_ms| registry.left_known_from_ms(now_ms).unwrap();
    assert_eq!(from(&at_first, NOW_MS), NOW_MS, "it was told nothing");
    say(&at_first, ALPHA, NOW_MS, [held(1, 1), held(2, 2)]).await.unwrap();
    say(&at_first, ALPHA, NOW_MS + DAY_MS, [held(1, 1)]).await.unwrap();
    let registry = reopen(&store);
    assert_eq!(from(&registry, NOW_MS + 2 * DAY_MS), NOW_MS, "it was not there before");
    let later_ms = NOW_MS + 40 * DAY_MS;
    assert_eq!(from(&registry, later_ms), later_ms - 30 * DAY_MS);
    for days in [14, 27, 40] {
        say(&registry, ALPHA, NOW_MS + days * DAY_MS, [held(1, 1)])
            .await
            .unwrap();
    }
    // What was forgotten does not come back when more days are kept.
    let longer = Registry::open(Arc::new(store.clone())).unwrap();
    let longer = longer.with_inventory_bounds(InventoryBounds::with_left_days(60));
    assert_eq!(from(&longer, later_ms), NOW_MS + DAY_MS + 1);
}

/// An operator names the key of a volume, and the only lockbox that had it was wiped by the thief.
#[tokio::test]
async fn a_key_that_nobody_reports_any_more_can_be_named() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS, [held(2, 7), held(3, 3)]).await.unwrap();
    say(&registry, ALPHA, NOW_MS, []).await.unwrap();
    assert_eq!(named(&registry, Subject::Keys(vec![KeyId([2; 16])])).await, [7]);
}

/// What is to be done is what would be if the thief had said nothing; elsewhere a key that is gone leaves nothing to do.
#[tokio::test]
async fn the_impact_has_what_a_stolen_lockbox_held_until_it_said_otherwise() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let used = InventoryEntry {
        consumers: vec![Consumer {
            service: "cinder".to_owned(),
            resource_type: "volume".to_owned(),
            resource_id: "v1".to_owned(),
        }],
        ..held(2, 2)
    };
    say(&registry, ALPHA, NOW_MS - DAY_MS, [used.clone(), held(4, 2)])
        .await
        .unwrap();
    say(&registry, BETA, NOW_MS - DAY_MS, [held(2, 2)]).await.unwrap();
    say(
        &registry,
        ALPHA,
        NOW_MS - HOUR_MS,
        [gone(2, 2, InventoryState::Destroyed)],
    )
    .await
    .unwrap();
    say(&registry, BETA, NOW_MS - HOUR_MS, []).await.unwrap();
    let told = impact(&registry, Exposed::Lockbox(theft(2 * HOUR_MS))).await;
    let [family] = &told[..] else { panic!("{told:?}") };
    let found = |number: u8, lockbox: u8| {
        let is_it = |found: &&lockbox_authz::impact::Finding| {
            found.holding.entry.key_id == KeyId([number; 16]) && found.holding.lockbox_id == id(lockbox)
        };
        let found = family.findings.iter().find(is_it).unwrap();
        assert_eq!(
            family.held_until_ms.get(&LeftPlace::of(&found.holding)),
            Some(&(NOW_MS - HOUR_MS))
        );
        (found.holding.entry.state, found.remedy, found.progress)
    };
    let (destroyed, active) = (InventoryState::Destroyed, InventoryState::Active);
    assert_eq!(found(2, ALPHA), (destroyed, Remedy::Deep, Progress::Open));
    assert_eq!(found(4, ALPHA), (active, Remedy::Deep, Progress::Open));
    assert_eq!(found(2, BETA), (active, Remedy::Deep, Progress::Done));
    let consumers = family.findings.iter().map(|found| &found.holding.entry.consumers);
    assert!(consumers.into_iter().any(|consumers| *consumers == used.consumers));
    // Before it was taken over it may do with its keys what it likes.
    let told = impact(&registry, Exposed::Lockbox(theft(0))).await;
    assert!(
        told.iter()
            .all(|part| part.findings.iter().all(|found| found.progress == Progress::Done))
    );
}

/// A thief has a key reported as another one and then as itself again, and waits until the other one is older than the theft
/// that is asked for; an id that was used again does the same.
#[tokio::test]
async fn a_material_that_a_key_had_before_does_not_hide_the_one_that_it_has() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS - 3 * DAY_MS, [held(2, 9)]).await.unwrap();
    say(&registry, ALPHA, NOW_MS - 2 * DAY_MS, [held(2, 2)]).await.unwrap();
    let layer = child_of(4, 2, "layer");
    say(&registry, BETA, NOW_MS, [layer]).await.unwrap();
    let told = impact(&registry, Exposed::Lockbox(theft(DAY_MS))).await;
    let deep: Vec<_> = told
        .iter()
        .flat_map(|part| &part.findings)
        .filter(|found| found.remedy == Remedy::Deep && found.progress == Progress::Open)
        .map(|found| (found.holding.lockbox_id, found.holding.entry.material_id.0[0]))
        .collect();
    assert_eq!(deep, [(id(ALPHA), 2), (id(BETA), 4)]);
}

#[tokio::test]
async fn a_key_that_comes_back_is_held() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let away = gone(2, 2, InventoryState::Moved { to: id(BETA) });
    say(&registry, ALPHA, NOW_MS - 3, [held(2, 2)]).await.unwrap();
    say(&registry, ALPHA, NOW_MS - 2, [away]).await.unwrap();
    say(&registry, ALPHA, NOW_MS - 1, [held(2, 2)]).await.unwrap();
    assert_eq!(exposed(&registry, theft(0)).await, [2]);
    assert_eq!(rows(&registry, &["left/", "left-at/"]).await, 0);
}

/// The disk must not fill with what was destroyed long ago, nor an answer lead there.
#[tokio::test]
async fn what_left_is_forgotten_in_time_with_all_that_leads_to_it() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let mut layer = held(4, 4);
    layer.parent = Some(Parent {
        key_id: KeyId([2; 16]),
        relation: "layer".to_owned(),
        stated_lies_on: None,
    });
    for lockbox in [ALPHA, BETA] {
        say(&registry, lockbox, NOW_MS, [held(2, 2), layer.clone()])
            .await
            .unwrap();
        say(&registry, lockbox, NOW_MS, [held(2, 7)]).await.unwrap();
        say(&registry, lockbox, NOW_MS, []).await.unwrap();
    }
    let leads = &["left/", "left-at/", "holder/", "material/", "child/"];
    assert_eq!(rows(&registry, leads).await, 6 + 6 + 4 + 3 + 1);
    let kept_ms = InventoryBounds::default().left_kept_ms;
    say(&registry, ALPHA, NOW_MS + kept_ms / 2, []).await.unwrap();
    say(&registry, ALPHA, NOW_MS + kept_ms, []).await.unwrap();
    assert_eq!(rows(&registry, leads).await, 20, "it is not over yet");
    say(&registry, ALPHA, NOW_MS + kept_ms + 1, []).await.unwrap();
    assert_eq!(rows(&registry, leads).await, 0);
    for lockbox in [ALPHA, BETA] {
        let weight = registry.turn(move |turn| turn.get(&keys::inventory_weight(id(lockbox))));
        assert_eq!(weight.await.unwrap(), Some(vec![0; 8]), "there is room again");
    }
}

/// A machine that came up with a wrong clock must not lose what the thief of a lockbox hides, nor let it be hidden.
#[tokio::test]
async fn a_clock_that_is_wrong_for_a_while_neither_forgets_what_left_nor_dates_it_before() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    say(&registry, ALPHA, NOW_MS - HOUR_MS, [held(2, 2), held(3, 3)])
        .await
        .unwrap();
    say(&registry, ALPHA, NOW_MS, [held(3, 3)]).await.unwrap();
    for _ in 0..3 {
        say(&registry, BETA, NOW_MS + 400 * DAY_MS, []).await.unwrap();
    }
    say(&registry, ALPHA, NOW_MS - 20 * DAY_MS, []).await.unwrap();
    assert_eq!(exposed(&registry, theft(HOUR_MS)).await, [2, 3]);
    assert_eq!(
        registry.left_known_from_ms(NOW_MS).unwrap(),
        NOW_MS - HOUR_MS,
        "nothing since its first report"
    );
}

/// A member that reports ever new keys, or ever others, must not fill the broker's disk; what is known of it stays.
#[tokio::test]
async fn rejects_more_keys_of_a_lockbox_than_are_kept() {
    let store = MemoryStore::new();
    let registry = bounded(&store, 4).await;
    let three = [held(1, 1), held(2, 2), held(3, 3)];
    say(&registry, ALPHA, NOW_MS - 9, three).await.unwrap();
    let refused = say(
        &registry,
        ALPHA,
        NOW_MS - 8,
        [4, 5, 6, 7, 8].map(|number| held(number, number)),
    )
    .await;
    assert!(matches!(refused, Err(Refusal::TooManyKeys { at_most: 4 })));
    assert_eq!(exposed(&registry, theft(0)).await, [1, 2, 3]);
    // What is gone takes room, too, or the old ones would be pushed out by new ones.
    let one_new = [held(1, 1), held(2, 2), held(4, 4)];
    say(&registry, ALPHA, NOW_MS - 7, one_new).await.unwrap();
    let refused = say(&registry, ALPHA, NOW_MS - 6, [held(1, 1), held(2, 2), held(5, 5)]).await;
    assert!(matches!(refused, Err(Refusal::TooManyKeys { at_most: 4 })));
    let less = [held(1, 1), held(2, 2)];
    say(&registry, ALPHA, NOW_MS - 5, less).await.unwrap();
    assert_eq!(exposed(&registry, theft(DAY_MS)).await, [1, 2, 3, 4]);
    // Another lockbox has its own room.
    say(&registry, BETA, NOW_MS, [6, 7, 8].map(|number| held(number, number)))
        .await
        .unwrap();
}

/// One key may not take the room of many.
#[tokio::test]
async fn rejects_keys_with_more_consumers_than_there_is_room_for() {
    let store = MemoryStore::new();
    let registry = bounded(&store, 16).await;
    let consumer = |number: usize| Consumer {
        service: "s".repeat(64),
        resource_type: "t".repeat(64),
        resource_id: format!("{number:0128}"),
    };
    let large = InventoryEntry {
        consumers: (0..MAX_CONSUMERS).map(consumer).collect(),
        ..held(1, 1)
    };
    let refused = say(&registry, ALPHA, NOW_MS, [large]).await;
    assert!(matches!(refused, Err(Refusal::TooManyKeys { at_most: 16 })));
}

#[tokio::test]
async fn rejects_ever_other_materials_of_one_key() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let other = |number: usize| InventoryEntry {
        material_id: MaterialId((number as u128 + 1).to_be_bytes()),
        ..held(1, 0)
    };
    for number in 0..=MAX_MATERIALS_OF_KEY {
        say(&registry, ALPHA, NOW_MS, [other(number)]).await.unwrap();
    }
    let refused = say(&registry, ALPHA, NOW_MS, [other(MAX_MATERIALS_OF_KEY + 1)]).await;
    assert!(matches!(refused, Err(Refusal::TooManyMaterials(key)) if key == KeyId([1; 16])));
}

/// One report may say of a key that it has another material, and that it has that one no more: two more to remember.
#[tokio::test]
async fn rejects_one_report_that_makes_two_materials_too_many() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    // The last one sorts behind all others.
    let materials = (1..MAX_MATERIALS_OF_KEY as u8).chain([200]);
    for material in materials.clone() {
        say(&registry, ALPHA, NOW_MS, [held(2, material)]).await.unwrap();
    }
    let other = gone(2, 100, InventoryState::Destroyed);
    let refused = say(&registry, ALPHA, NOW_MS, [other]).await;
    assert!(matches!(refused, Err(Refusal::TooManyMaterials(key)) if key == KeyId([2; 16])));
    say(&registry, ALPHA, NOW_MS, []).await.unwrap();
    let all: Vec<u8> = materials.collect();
    assert_eq!(exposed(&registry, theft(HOUR_MS)).await, all);
}

/// What leads to a key is not counted as what a lockbox takes on the disk, so it may not outlast what it leads to.
#[tokio::test]
async fn a_key_that_comes_back_with_another_parent_leaves_nothing_of_the_one_before() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    for parent in 10..20 {
        say(&registry, ALPHA, NOW_MS, [child_of(2, parent, "layer")])
            .await
            .unwrap();
        assert_eq!(rows(&registry, &["child/"]).await, 1);
        say(&registry, ALPHA, NOW_MS, []).await.unwrap();
        assert_eq!(rows(&registry, &["child/", "left/"]).await, 2);
    }
}

/// A lockbox may know less of a key that it destroyed than it knew before; what lay on a stolen key is still found.
#[tokio::test]
async fn what_a_key_descended_from_is_known_after_it_is_reported_without_that() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let layer = child_of(4, 2, "layer");
    say(&registry, ALPHA, NOW_MS - DAY_MS, [held(2, 2), layer.clone()])
        .await
        .unwrap();
    let destroyed = gone(4, 4, InventoryState::Destroyed);
    for entries in [
        vec![held(2, 2), destroyed.clone()],
        vec![held(2, 2)],
        vec![held(2, 2), destroyed],
    ] {
        say(&registry, ALPHA, NOW_MS - HOUR_MS, entries).await.unwrap();
        let told = impact(&registry, Exposed::Key(KeyId([2; 16]))).await;
        let findings = told.iter().flat_map(|part| &part.findings);
        let found: Vec<_> = findings
            .map(|found| (found.holding.entry.key_id.0[0], found.kinship, found.progress))
            .collect();
        let expected = [
            (2, Kinship::Material, Progress::Open),
            (4, Kinship::Layer, Progress::Done),
        ];
        assert_eq!(found, expected);
    }
    say(&registry, ALPHA, NOW_MS, []).await.unwrap();
    for part in 1..=3 {
        let later_ms = NOW_MS + part * InventoryBounds::default().left_kept_ms / 2;
        say(&registry, ALPHA, later_ms, []).await.unwrap();
    }
    assert_eq!(rows(&registry, &["child/", "holder/", "material/"]).await, 0);
}

/// A report that is refused again and again must not hold everybody else up each time for as long as it takes to count a million
/// keys.
#[tokio::test]
async fn a_lockbox_that_was_never_counted_is_counted_once_though_its_reports_are_refused() {
    let store = MemoryStore::new();
    let keys = [1, 2, 3].map(|number| held(number, number));
    say(&registry(&store).await, ALPHA, NOW_MS, keys).await.unwrap();
    let mut batch = Batch::new();
    batch.remove(keys::inventory_weight(id(ALPHA)));
    store.commit(batch).unwrap();
    let registry = bounded(&store, 2).await;
    let more = [1, 2, 3, 4].map(|number| held(number, number));
    let refused = say(&registry, ALPHA, NOW_MS, more).await;
    assert!(matches!(refused, Err(Refusal::TooManyKeys { at_most: 2 })));
    let weight = registry.turn(|turn| turn.get(&keys::inventory_weight(id(ALPHA))));
    assert_eq!(weight.await.unwrap(), Some(3u64.to_be_bytes().to_vec()));
}

/// Another lockbox's report may come between any two reads of an answer: a key that leaves then, or comes back, is not lost.
#[tokio::test]
async fn a_key_that_leaves_or_comes_back_while_an_answer_is_read_is_in_it() {
    let (has, has_not) = (vec![held(2, 2)], Vec::new());
    for [before, meanwhile] in [[has.clone(), has_not.clone()], [has_not, has.clone()]] {
        for read in ["inventory/", "left/"] {
            let answers = [Subject::Lockbox(theft(HOUR_MS)), Subject::Keys(vec![KeyId([2; 16])])];
            for subject in answers.map(Some).into_iter().chain([None]) {
                let store = MemoryStore::new();
                let registry = registry(&store).await;
                say(&registry, ALPHA, NOW_MS, has.clone()).await.unwrap();
                say(&registry, ALPHA, NOW_MS, before.clone()).await.unwrap();
                let runtime = tokio::runtime::Handle::current();
                let meanwhile = meanwhile.clone();
                let change = move || runtime.block_on(say(&registry, ALPHA, NOW_MS, meanwhile)).unwrap();
                let store = ChangedMeanwhile {
                    store,
                    read,
                    change: std::sync::Mutex::new(Some(Box::new(change))),
                };
                let reader = Arc::new(Registry::open(Arc::new(store)).unwrap());
                match subject {
                    Some(subject) => assert_eq!(named(&reader, subject).await, [2]),
                    None => {
                        let told = impact(&reader, Exposed::Lockbox(theft(HOUR_MS))).await;
                        assert_eq!(told.iter().flat_map(|part| &part.findings).count(), 1);
                    }
                }
            }
        }
    }
}

/// A store that somebody else changes right after something below a prefix was read for the first time.
struct ChangedMeanwhile {
    store: MemoryStore,
    read: &'static str,
    change: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl ChangedMeanwhile {
    fn after_reading(&self, key: &[u8]) {
        if key.starts_with(self.read.as_bytes())
            && let Some(change) = self.change.lock().unwrap().take()
        {
            change();
        }
    }
}

impl Store for ChangedMeanwhile {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailure> {
        let found = self.store.get(key);
        self.after_reading(key);
        found
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, StoreFailure> {
        let found = self.store.scan(prefix, after, limit);
        self.after_reading(prefix);
        found
    }

    fn submit(&self, batch: Batch, done: Completion) {
        self.store.submit(batch, done);
    }

    fn health(&self) -> Health {
        self.store.health()
    }
}

async fn bounded(store: &MemoryStore, keys_of_one: u64) -> Arc<Registry> {
    if store.get(&keys::roster(0)).unwrap().is_none() {
        drop(registry(store).await);
    }
    let registry = Registry::open(Arc::new(store.clone())).unwrap();
    let bounds = InventoryBounds {
        keys_of_one,
        ..InventoryBounds::default()
    };
    Arc::new(registry.with_inventory_bounds(bounds))
}
