//! Step 17: keys that lie on each other.

use super::*;
use crate::limits::{MAX_CHUNK_KEYS, MAX_FAMILY_CHUNKS};

#[test]
fn rejects_a_layer_without_what_it_lies_on_and_names_it() {
    for operation in [Operation::Copy, Operation::Move] {
        let (mut case, layer) = bonded(Relation::Layer);
        end_job(&mut case, layer);
        case.statement.operation = operation;
        case.statement.selection = Selection::Ids(vec![layer]);
        let refusal = case.refusal();
        assert!(matches!(refusal, Refusal::MissingAncestor { ancestor, .. } if ancestor == case.key_id));
        assert!(refusal.requester_text().contains(&case.key_id.to_string()));
    }
}

#[test]
fn rejects_moving_what_a_layer_lies_on_without_the_layer() {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    let refusal = case.refusal();
    assert!(matches!(refusal, Refusal::LayerLeftBehind { layer: left, .. } if left == layer));
    case.statement.operation = Operation::Copy;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("a copy leaves it in place");
}

#[test]
fn withholds_a_torn_chain_when_labels_select() {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    case.change_key(|key| key.info.transfer_policy.pinned = true);
    case.cluster.a.create("free", TransferPolicy::default());
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("one key may leave");
    let status = case
        .cluster
        .a
        .lockbox()
        .transfer_status(case.statement.authorization_id);
    let status = status.expect("undamaged").expect("it was opened");
    assert_eq!((status.key_count, status.withheld_count), (1, 2));
}

/// A base and a layer with as many snapshots as make the family one key wider than a chunk, all by themselves on the base.
fn wide_family() -> (Case, Vec<KeyId>) {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    let mut family = vec![case.key_id, layer];
    while family.len() <= MAX_CHUNK_KEYS {
        family.push(snapshot(&mut case, layer));
    }
    (case, family)
}

fn snapshot(case: &mut Case, parent: KeyId) -> KeyId {
    let request = DeriveRequest {
        parent,
        relation: Relation::Snapshot,
        key_id: None,
        name: None,
        labels: None,
    };
    let step = case
        .cluster
        .a
        .step(|lockbox, now, rng| lockbox.derive_key(request, now, rng));
    step.expect("its policy allows it").key_id
}

fn counts(case: &Case) -> (u64, u64) {
    let id = case.statement.authorization_id;
    let status = case.cluster.a.lockbox().transfer_status(id);
    let status = status.expect("undamaged").expect("it was opened");
    (status.key_count, status.withheld_count)
}

#[test]
fn rejects_moving_a_family_that_an_authorization_cannot_name() {
    let (mut case, family) = wide_family();
    // No selection by ids names them all; to be told of the layer that is missing would lead nowhere.
    for count in [1, 2, MAX_CHUNK_KEYS] {
        let selected = family[..count].to_vec();
        case.statement.selection = Selection::from_unsorted_ids(selected).expect("within the bounds");
        let refusal = case.refusal();
        assert!(
            matches!(refusal, Refusal::TooManyToName(key) if key == case.key_id),
            "{refusal}"
        );
        let told = refusal.requester_text();
        assert!(
            told.contains(&case.key_id.to_string()) && told.contains("by a label"),
            "{told}"
        );
    }
}

/// One golden image with many clones must not keep a machine from being evacuated.
#[test]
fn moves_a_family_too_wide_for_a_chunk_with_the_rest() {
    let (mut case, family) = wide_family();
    case.cluster.a.create("free", TransferPolicy::default());
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("all may leave");
    assert_eq!(counts(&case), (family.len() as u64 + 1, 0));
}

#[test]
fn rejects_moving_a_family_that_takes_too_many_chunks() {
    let (mut case, layer) = bonded(Relation::Layer);
    end_job(&mut case, layer);
    let mut named = vec![case.key_id, layer];
    while named.len() <= MAX_FAMILY_CHUNKS {
        named.push(snapshot(&mut case, layer));
    }
    case.statement.selection = Selection::from_unsorted_ids(named).expect("within the bounds");
    case.cluster.a.lockbox_mut().limit_chunks(1);
    let refusal = case.refusal();
    assert!(
        matches!(refusal, Refusal::TooManyLayers(key) if key == case.key_id),
        "{refusal}"
    );
    assert!(refusal.requester_text().contains("copy them"));
}

#[test]
fn withholds_a_family_that_takes_too_many_chunks_and_moves_the_rest() {
    let (mut case, family) = wide_family();
    case.cluster
        .a
        .lockbox_mut()
        .limit_chunks(MAX_CHUNK_KEYS / MAX_FAMILY_CHUNKS);
    case.cluster.a.create("free", TransferPolicy::default());
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("one key may leave");
    assert_eq!(counts(&case), (1, family.len() as u64));
}

#[test]
fn copies_a_family_too_wide_for_a_chunk() {
    let (mut case, family) = wide_family();
    case.statement.operation = Operation::Copy;
    case.statement.selection = Selection::All;
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("nothing is left behind by a copy");
    assert_eq!(counts(&case), (family.len() as u64, 0));
}
