//! Snapshots, shares and rotations of layers: their old blocks lie under the layers' ancestors.

use lockbox_authz::authorization::{Operation, Selection};
use lockbox_authz::id::KeyId;
use lockbox_authz::impact::{Kinship, Progress, Remedy};

use super::{ANY, derive, destroy, done, encoded, make, node};
use crate::lifecycle::LifecycleError;
use crate::lifecycle::derive::{DeriveRequest, Relation};
use crate::lifecycle::family::MAX_LAYERS;
use crate::lockbox::LockboxError;
use crate::record::{Key, Lineage, Tombstone};
use crate::testing::{Cluster, Node};
use crate::transfer::target::{TargetError, check_layers};
use crate::transfer::tests::carry;
use crate::wire;

/// A key of which a layer is made, and the layer, whose job is done.
fn layered(node: &mut Node) -> (KeyId, KeyId) {
    let base = make(node, ANY);
    (base, layer_on(node, base))
}

fn layer_on(node: &mut Node, parent: KeyId) -> KeyId {
    let layer = derive(node, parent, Relation::Layer).expect("the policy allows it");
    finish(node, layer);
    layer
}

fn finish(node: &mut Node, job: KeyId) {
    super::finish(node, job);
    done(node, job).expect("it is verified");
}

fn lies_on(node: &Node, key: KeyId) -> Option<KeyId> {
    node.lockbox().reveal_key(key).expect("it is here").info.lies_on()
}

/// The keys that keep another from being destroyed.
fn borne_by(node: &mut Node, key: KeyId) -> String {
    match destroy(node, key, true) {
        Err(LockboxError::Lifecycle(LifecycleError::Layered { layers, .. })) => layers,
        outcome => panic!("{key} bears nothing: {outcome:?}"),
    }
}

#[test]
fn what_is_made_of_a_layer_keeps_the_ancestor_until_the_last_of_it_is_gone() {
    let mut node = node();
    let (base, layer) = layered(&mut node);
    let snapshot = derive(&mut node, layer, Relation::Snapshot).expect("it may");
    let share = derive(&mut node, snapshot, Relation::Share).expect("it may");
    let rekeyed = derive(&mut node, layer, Relation::Rekey).expect("it may");
    finish(&mut node, rekeyed);
    assert_eq!(node.reveal(snapshot), node.reveal(layer));
    for key in [layer, snapshot, share] {
        assert_eq!(lies_on(&node, key), Some(base));
    }
    assert_eq!(lies_on(&node, rekeyed), None, "all of its data is under its own");

    let rotated = derive(&mut node, layer, Relation::Rotate).expect("nothing lies on it");
    finish(&mut node, rotated);
    node.restart();
    assert!(matches!(
        node.lockbox().reveal_key(layer),
        Err(LockboxError::WasDestroyed(_))
    ));
    assert_eq!(
        lies_on(&node, rotated),
        Some(base),
        "the base's blocks are as they were"
    );
    for key in [rotated, share, snapshot] {
        let borne = borne_by(&mut node, base);
        assert!(borne.contains(&key.to_string()), "{borne}");
        assert!(!borne.contains(&layer.to_string()) && !borne.contains(&rekeyed.to_string()));
        destroy(&mut node, key, false).expect("nothing lies on it");
    }
    destroy(&mut node, base, false).expect("nothing lies on it any more");
}

#[test]
fn a_chain_goes_on_through_the_snapshot_of_a_layer() {
    let mut node = node();
    let (base, layer) = layered(&mut node);
    let snapshot = derive(&mut node, layer, Relation::Snapshot).expect("it may");
    let above = layer_on(&mut node, snapshot);
    assert_eq!(lies_on(&node, above), Some(snapshot));
    destroy(&mut node, layer, false).expect("the snapshot has its material");
    assert_eq!(borne_by(&mut node, snapshot), above.to_string());
    assert_eq!(borne_by(&mut node, base), snapshot.to_string());
    let refused = derive(&mut node, snapshot, Relation::Rotate).expect_err("a layer lies on it");
    assert!(refused.to_string().contains(&above.to_string()), "{refused}");
}

#[test]
fn rejects_a_layer_that_makes_the_chain_too_long_for_a_chunk_however_it_is_made() {
    let mut node = node();
    let mut top = make(&mut node, ANY);
    for _ in 1..MAX_LAYERS {
        top = layer_on(&mut node, top);
        top = derive(&mut node, top, Relation::Snapshot).expect("it makes the chain no longer");
    }
    let refused = derive(&mut node, top, Relation::Layer).expect_err("the chain is full");
    assert!(matches!(
        refused,
        LockboxError::Lifecycle(LifecycleError::TooManyLayers(_))
    ));
    derive(&mut node, top, Relation::Rotate).expect("it takes the top's place");
}

/// The parent may be gone when the answer was lost, and with it the knowledge of what it lay on.
#[test]
fn a_repeated_request_makes_no_second_snapshot_of_a_layer_that_is_gone() {
    let mut node = node();
    let (base, layer) = layered(&mut node);
    let request = DeriveRequest {
        parent: layer,
        relation: Relation::Snapshot,
        key_id: Some(KeyId([7; 16])),
        name: None,
        labels: None,
    };
    let repeat = |node: &mut Node| {
        let again = request.clone();
        let info = node.step(|lockbox, now, rng| lockbox.derive_key(again, now, rng));
        info.expect("it is the same")
    };
    let made = repeat(&mut node);
    destroy(&mut node, layer, false).expect("nothing lies on it");
    assert_eq!(repeat(&mut node), made);
    assert_eq!(made.lies_on(), Some(base));
}

#[test]
fn what_lies_on_a_base_travels_with_it_and_is_told_byte_for_byte() {
    for operation in [Operation::Copy, Operation::Move] {
        let mut cluster = Cluster::new();
        let (base, layer) = layered(&mut cluster.a);
        let snapshot = derive(&mut cluster.a, layer, Relation::Snapshot).expect("it may");
        destroy(&mut cluster.a, layer, false).expect("nothing lies on it");
        let above = layer_on(&mut cluster.a, snapshot);
        let mut chain = [base, snapshot, above];
        chain.sort();
        for missing in chain {
            let torn: Vec<KeyId> = chain.into_iter().filter(|key| *key != missing).collect();
            let authorization = cluster.authorize(operation, Selection::Ids(torn));
            let outcome = carry(&mut cluster.a, &mut cluster.b, &authorization);
            let may_stay = operation == Operation::Copy && missing == above;
            assert_eq!(outcome.is_ok(), may_stay, "{operation:?} without {missing}");
            if let Err(refused) = outcome {
                assert!(refused.to_string().contains(&missing.to_string()), "{refused}");
            }
        }
        let sent: Vec<_> = chain.iter().map(|key| encoded(&cluster.a, *key)).collect();
        let authorization = cluster.authorize(operation, Selection::Ids(chain.to_vec()));
        carry(&mut cluster.a, &mut cluster.b, &authorization).expect("the chain is whole");
        cluster.b.restart();
        let arrived: Vec<_> = chain.iter().map(|key| encoded(&cluster.b, *key)).collect();
        assert_eq!(sent, arrived);
        assert_eq!(borne_by(&mut cluster.b, base), snapshot.to_string());
        assert_eq!(borne_by(&mut cluster.b, snapshot), above.to_string());
    }
}

/// A source that plans otherwise than it should must not leave this lockbox with half of a volume's keys.
#[test]
fn rejects_what_arrives_without_what_it_lies_on() {
    let mut source = node();
    let (base, layer) = layered(&mut source);
    let snapshot = derive(&mut source, layer, Relation::Snapshot).expect("it may");
    let target = Node::new("b", 2);
    let arriving = |keys: &[KeyId]| {
        let keys: Vec<Key> = keys
            .iter()
            .map(|key| source.lockbox().reveal_key(*key).expect("it is here"))
            .collect();
        check_layers(target.lockbox(), &keys)
    };
    for torn in [&[snapshot][..], &[layer, snapshot]] {
        let refused = arriving(torn);
        assert!(matches!(refused, Err(TargetError::MissingAncestor { ancestor, .. }) if ancestor == base));
    }
    assert!(
        arriving(&[snapshot, base]).is_ok(),
        "the snapshot does not need the layer"
    );
}

/// Nothing of it could ever be destroyed, or moved away.
#[test]
fn rejects_keys_that_arrive_lying_on_each_other_in_a_ring() {
    let mut source = node();
    let keys: Vec<KeyId> = (0..=MAX_LAYERS).map(|_| make(&mut source, ANY)).collect();
    let target = Node::new("b", 2);
    // Each key on the one after it; the last on the first, or on none.
    let chain = |count: usize, is_ring: bool| {
        let lie = |place: usize| {
            let mut key = source.lockbox().reveal_key(keys[place]).expect("it is here");
            let below = (place + 1 < count || is_ring).then(|| keys[(place + 1) % count]);
            key.info.lineage = below.map(|below| Lineage {
                parent_key_id: KeyId([7; 16]),
                relation: "snapshot".to_owned(),
                stated_lies_on: Some(below),
            });
            key
        };
        let keys: Vec<Key> = (0..count).map(lie).collect();
        check_layers(target.lockbox(), &keys)
    };
    assert!(chain(MAX_LAYERS, false).is_ok());
    for refused in [chain(2, true), chain(MAX_LAYERS, true), chain(MAX_LAYERS + 1, false)] {
        assert!(matches!(refused, Err(TargetError::Field(_))), "{refused:?}");
    }
}

/// Rotating a layer helps against a thief of the layer's material, and not against one of the base's.
#[test]
fn what_is_made_of_a_layer_is_deep_when_the_base_is_compromised_whoever_is_gone() {
    let mut cluster = Cluster::new();
    let (base, layer) = layered(&mut cluster.a);
    let snapshot = derive(&mut cluster.a, layer, Relation::Snapshot).expect("it may");
    let rotated = derive(&mut cluster.a, layer, Relation::Rotate).expect("it may");
    finish(&mut cluster.a, rotated);
    let mut chain = vec![base, snapshot, rotated];
    chain.sort();
    // The other lockbox never had the layer itself.
    let authorization = cluster.authorize(Operation::Move, Selection::Ids(chain));
    carry(&mut cluster.a, &mut cluster.b, &authorization).expect("the chain is whole");
    let of = |exposed: KeyId, key: KeyId| {
        let impact = cluster.b.lockbox().impact(exposed).expect("undamaged");
        let found = impact.findings.iter().find(|found| found.holding.entry.key_id == key);
        found.map(|found| (found.kinship, found.remedy, found.progress))
    };
    for key in [snapshot, rotated] {
        let found = of(base, key);
        assert_eq!(found, Some((Kinship::Layer, Remedy::Deep, Progress::Open)));
    }
    let found = of(snapshot, snapshot);
    assert_eq!(found, Some((Kinship::Material, Remedy::Deep, Progress::Open)));
    let found = of(snapshot, base);
    assert_eq!(found, Some((Kinship::Ancestor, Remedy::Shallow, Progress::Done)));
    destroy(&mut cluster.b, snapshot, false).expect("nothing lies on it");
    let impact = cluster.b.lockbox().impact(base).expect("undamaged");
    let found = impact
        .findings
        .iter()
        .find(|found| found.holding.entry.key_id == snapshot);
    assert_eq!(found.map(|found| found.progress), Some(Progress::Done));
}

fn refused(lineage: wire::Lineage) -> [&'static str; 2] {
    use prost::Message;
    let mut node = node();
    let key_id = make(&mut node, ANY);
    let key = node.lockbox().reveal_key(key_id).expect("it is here");
    let tombstone = Tombstone::destroyed(&key.info, node.now_ms);
    let lineage = wire::Lineage {
        lies_on_key_id: match &lineage.lies_on_key_id[..] {
            b"itself" => key_id.to_vec(),
            _ => lineage.lies_on_key_id,
        },
        ..lineage
    };
    let mut record = key.to_wire();
    record.lineage = Some(lineage.clone());
    let gone = wire::Tombstone {
        lineage: Some(lineage),
        ..tombstone.to_wire()
    };
    let key = Key::decode(&record.encode_to_vec()).map(drop);
    let gone = Tombstone::decode(&gone.encode_to_vec()).map(drop);
    [key, gone].map(|outcome| outcome.map_or_else(|error| error.field, |()| "nothing"))
}

/// A second spelling of the same lineage would let two records of one key differ, and a wrong one would hide an ancestor.
#[test]
fn rejects_a_lineage_whose_relation_says_otherwise_what_it_lies_on() {
    let (parent, other) = ([1; 16], [2; 16]);
    for (relation, lies_on, field) in [
        ("snapshot", &other[..], "nothing"),
        ("snapshot", &[], "nothing"),
        ("of a later version", &other, "nothing"),
        ("layer", &[], "nothing"),
        ("layer", &parent, "lies_on_key_id"),
        ("layer", &other, "lies_on_key_id"),
        ("rekey", &other, "lies_on_key_id"),
        ("share", &parent, "lies_on_key_id"),
        ("rotate", b"itself", "lies_on_key_id"),
        ("rotate", &other[1..], "lies_on_key_id"),
    ] {
        let lineage = wire::Lineage {
            parent_key_id: parent.to_vec(),
            relation: relation.to_owned(),
            lies_on_key_id: lies_on.to_vec(),
        };
        assert_eq!(refused(lineage), [field; 2], "{relation} on {lies_on:?}");
    }
    let layer = Lineage {
        parent_key_id: KeyId(parent),
        relation: "layer".to_owned(),
        stated_lies_on: None,
    };
    assert_eq!(layer.lies_on(), Some(KeyId(parent)));
}
