//! Families of many keys, without the lockbox that would have them.

use std::collections::{BTreeSet, HashSet};

use super::*;
use crate::limits::MAX_CHUNK_KEYS;

/// So many that the tests would not end if for each key that is left out all the others were looked at again.
const MANY: u32 = 50_000;

fn key(number: u32) -> KeyId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    KeyId(id)
}

/// The bonds of keys of which each lies on another, those that may leave being taken.
fn bonds(operation: Operation, lie: &[(u32, Option<u32>)], may_leave: impl Fn(u32) -> bool) -> Bonds {
    let mut above: BTreeMap<KeyId, Vec<KeyId>> = BTreeMap::new();
    for (upper, lower) in lie {
        if let Some(lower) = lower {
            above.entry(key(*lower)).or_default().push(key(*upper));
        }
    }
    let mut bonds = Bonds::new(true, operation);
    for (number, below) in lie.iter().filter(|(number, _)| may_leave(*number)) {
        let bond = Bond {
            bytes: 100,
            below: below.map(key),
            above: above.remove(&key(*number)).unwrap_or_default(),
        };
        bonds.keys.insert(key(*number), bond);
    }
    bonds
}

/// Leaves out what would be torn: how many those are.
fn withhold(bonds: &mut Bonds) -> u64 {
    let mut withheld = Withheld::default();
    bonds.withhold(&mut withheld);
    withheld.count
}

/// Sound pairs of which the ids come first, and then a base with a wide family.
fn pairs_and_a_wide_family() -> (Vec<(u32, Option<u32>)>, u32) {
    let base = 2 * MANY;
    let pairs = (0..MANY).map(|number| (number, (number % 2 == 1).then(|| number - 1)));
    let family = (1..=MANY).map(|layer| (base + layer, Some(base)));
    (pairs.chain([(base, None)]).chain(family).collect(), base)
}

#[test]
fn a_pinned_base_withholds_all_its_layers_and_nothing_else() {
    let (lie, base) = pairs_and_a_wide_family();
    for operation in [Operation::Copy, Operation::Move] {
        let mut bonds = bonds(operation, &lie, |number| number != base);
        assert_eq!(withhold(&mut bonds), u64::from(MANY));
        let planned: usize = bonds.groups().iter().map(Group::count).sum();
        assert_eq!(planned, MANY as usize);
    }
}

#[test]
fn a_pinned_layer_withholds_its_family_from_a_move_and_only_itself_from_a_copy() {
    let (lie, base) = pairs_and_a_wide_family();
    let pinned = base + MANY;
    let mut moved = bonds(Operation::Move, &lie, |number| number != pinned);
    assert_eq!(withhold(&mut moved), u64::from(MANY), "the base and its other layers");
    assert!(moved.groups().iter().all(|group| group.count() == 2));
    let mut copied = bonds(Operation::Copy, &lie, |number| number != pinned);
    assert_eq!(withhold(&mut copied), 0);
    assert_eq!(copied.groups().len(), lie.len() - 1);
}

/// In a long chain whose ids grow downward, each key that is left out is found only after the one below it.
#[test]
fn a_chain_falls_as_a_whole_with_its_lowest_key() {
    let lie: Vec<_> = (0..MANY).map(|number| (number, Some(number + 1))).collect();
    for operation in [Operation::Copy, Operation::Move] {
        let mut bonds = bonds(operation, &lie, |_| true);
        assert_eq!(withhold(&mut bonds), u64::from(MANY));
        assert!(bonds.groups().is_empty());
    }
}

/// Or a target would refuse a key because the one that it lies on is not there yet.
#[test]
fn a_copy_takes_each_key_by_itself_after_what_it_lies_on() {
    // A tree in which a key's id says nothing of its height: each lies on one that stands elsewhere in the order of ids.
    let place = |number: u32| number * 7_919 % 10_007;
    let lie: Vec<_> = (0..10_007)
        .map(|number| (place(number), (number > 0).then(|| place((number - 1) / 3))))
        .collect();
    let below: BTreeMap<KeyId, Option<KeyId>> =
        lie.iter().map(|(upper, lower)| (key(*upper), lower.map(key))).collect();
    let bonds = bonds(Operation::Copy, &lie, |_| true);
    let mut arrived = HashSet::new();
    for group in bonds.groups() {
        assert_eq!(group.count(), 1);
        let ancestor = below[&group.lowest()];
        assert!(ancestor.is_none_or(|ancestor| arrived.contains(&ancestor)));
        arrived.insert(group.lowest());
    }
    assert_eq!(arrived.len(), lie.len());
}

/// Or a crash between two chunks would leave a volume's keys in two places.
#[test]
fn a_move_takes_a_family_as_one() {
    let lie: Vec<_> = (0..1_000)
        .map(|number| (number, (number >= 10).then(|| number - 10)))
        .collect();
    let groups = bonds(Operation::Move, &lie, |_| true).groups();
    assert_eq!(groups.len(), 10);
    for group in groups {
        let remainders: BTreeSet<u32> = group
            .key_ids()
            .iter()
            .map(|id| u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]) % 10)
            .collect();
        assert_eq!((group.count(), remainders.len()), (100, 1));
    }
}

fn group(count: usize, bytes: usize) -> Group {
    let member = |number| Member {
        key_id: key(number),
        bytes,
    };
    Group {
        keys: (0..).take(count).map(member).collect(),
    }
}

fn counts(parts: &[Group]) -> Vec<usize> {
    parts.iter().map(Group::count).collect()
}

#[test]
fn a_chunk_takes_so_many_keys_and_so_many_bytes() {
    let parts = |count, bytes| group(count, bytes).parts(MAX_CHUNK_KEYS).map(|parts| counts(&parts));
    assert_eq!(parts(MAX_CHUNK_KEYS, 100), Some(vec![MAX_CHUNK_KEYS]));
    assert_eq!(parts(MAX_CHUNK_KEYS + 1, 100), Some(vec![MAX_CHUNK_KEYS, 1]));
    let half = (MAX_CHUNK_BYTES - 8) / 2;
    assert_eq!(parts(3, half), Some(vec![2, 1]));
    assert_eq!(parts(3, half + 1), Some(vec![1, 1, 1]));
}

/// Or a target would be sent a key before what it lies on.
#[test]
fn the_parts_of_a_family_have_its_keys_in_their_order() {
    let ids = group(100, 1).key_ids();
    let parts = group(100, 1).parts(7).expect("they are few");
    let parted: Vec<KeyId> = parts.iter().flat_map(Group::key_ids).collect();
    assert_eq!(parted, ids);
}

#[test]
fn rejects_parting_a_family_into_more_chunks_than_are_erased_in_one_step() {
    assert_eq!(group(64, 1).parts(1).map(|parts| parts.len()), Some(MAX_FAMILY_CHUNKS));
    assert!(group(65, 1).parts(1).is_none());
}
