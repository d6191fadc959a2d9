//! Transfers of keys that lie on each other, over several chunks. SPEC sections 6.3, step 17, and 7.4.

use super::*;
use crate::keys::KeyRequest;
use crate::lifecycle::derive::{DeriveRequest, Relation};
use crate::lifecycle::family::MAX_LAYERS;
use crate::limits::MAX_CHUNK_KEYS;
use crate::record::{ClonePolicy, Key, Lineage};
use crate::transfer::target::check_layers;

fn base(node: &mut Node) -> KeyId {
    let request = KeyRequest {
        name: "golden".to_owned(),
        clone_policy: ClonePolicy {
            share: true,
            rekey: true,
            layer: true,
        },
        ..KeyRequest::default()
    };
    let made = node.step(|lockbox, now, rng| lockbox.create_key(request, None, now, rng));
    made.expect("a good request").key_id
}

fn derive(node: &mut Node, parent: KeyId, relation: Relation) -> KeyId {
    let request = DeriveRequest {
        parent,
        relation,
        key_id: None,
        name: None,
        labels: None,
    };
    let made = node.step(|lockbox, now, rng| lockbox.derive_key(request, now, rng));
    made.expect("the policy allows it").key_id
}

/// A base, many keys that lie on it, and on some of them others again.
fn family(node: &mut Node, count: usize) -> Vec<KeyId> {
    let base = base(node);
    let layer = derive(node, base, Relation::Layer);
    let mut family = vec![base, layer];
    while family.len() < count {
        let share = derive(node, layer, Relation::Share);
        family.push(share);
        if family.len() % 5 == 0 && family.len() < count {
            family.push(derive(node, share, Relation::Layer));
        }
    }
    family
}

fn key(node: &Node, key_id: KeyId) -> Key {
    node.lockbox().reveal_key(key_id).expect("it is here")
}

/// The keys of a family that are here. A volume's key that lacks what it lies on opens a part of the volume.
fn whole_chains(node: &Node, family: &[KeyId]) -> usize {
    let here: Vec<KeyId> = family.iter().copied().filter(|id| is_here(node, *id)).collect();
    for key_id in &here {
        if let Some(ancestor) = key(node, *key_id).info.lies_on() {
            assert!(here.contains(&ancestor), "{key_id} is here without {ancestor}");
        }
    }
    here.len()
}

#[test]
fn a_copy_of_a_family_that_is_cut_off_at_every_chunk_has_whole_chains_at_any_time() {
    const KEYS: usize = 30;
    for cut in CUTS {
        let mut cluster = Cluster::new();
        let family = family(&mut cluster.a, KEYS);
        cluster.a.lockbox_mut().limit_chunks(4);
        let authorization = cluster.authorize(Operation::Copy, Selection::All);
        let Cluster { a, b, .. } = &mut cluster;
        let mut ends = Ends { source: a, target: b };
        let id = ends.accept(&authorization);
        let planned = |ends: &Ends| {
            let keys = |chunk| {
                ends.source
                    .lockbox()
                    .outgoing_chunk(id, chunk)
                    .map(|chunk| chunk.key_ids)
            };
            (0..8).map(keys).collect::<Result<Vec<_>, _>>()
        };
        let mut plan = None;
        // A receipt or a settlement that is lost is settled by the next session, which then loses its own.
        for _ in 0..8 {
            if ends.session(id, cut).expect("an authorized transfer") {
                break;
            }
            ends.source.restart();
            ends.target.restart();
            whole_chains(ends.target, &family);
            let now = planned(&ends).expect("30 keys take 8 chunks of 4");
            assert_eq!(plan.get_or_insert_with(|| now.clone()), &now, "{cut:?}");
        }
        if state(ends.target, id) == TransferState::Open {
            assert!(ends.session(id, Cut::Never).expect("it resumes"), "{cut:?}");
        }
        assert_eq!(whole_chains(ends.source, &family), KEYS, "{cut:?}");
        assert_eq!(whole_chains(ends.target, &family), KEYS, "{cut:?}");
        assert_eq!(state(ends.source, id), TransferState::Complete);
    }
}

#[test]
fn a_family_wider_than_a_chunk_is_copied_over_several_and_resumes_between_them() {
    let mut cluster = Cluster::new();
    let count = MAX_CHUNK_KEYS * 2 + 1;
    let family = family(&mut cluster.a, count);
    let authorization = cluster.authorize(Operation::Copy, Selection::All);
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    let mut arrived = 0;
    for cut in [Cut::SettlementLost, Cut::ReceiptLost] {
        assert!(!ends.session(id, cut).expect("an authorized transfer"));
        ends.source.restart();
        ends.target.restart();
        arrived += MAX_CHUNK_KEYS;
        let here = family.iter().filter(|key_id| is_here(ends.target, **key_id));
        assert_eq!(here.count(), arrived);
    }
    assert!(ends.session(id, Cut::Never).expect("it resumes"));
    let status = ends.source.lockbox().transfer_status(id);
    let status = status.expect("undamaged").expect("there");
    assert_eq!((status.chunk_count, status.keys_done), (3, count as u64));
    for key_id in family {
        let (sent, stored) = (key(ends.source, key_id), key(ends.target, key_id));
        assert_eq!(*sent.encode(), *stored.encode());
        let on = |node: &Node| node.lockbox().keys_on(key_id).expect("undamaged");
        assert_eq!(on(ends.source), on(ends.target), "what keeps it from being destroyed");
    }
}

/// The MOVE was planned when the layer was not here, and leaves it behind.
#[test]
fn rejects_a_layer_whose_base_came_before_it_and_is_being_moved_on() {
    let mut cluster = Cluster::new();
    let family = family(&mut cluster.a, 2);
    cluster.a.lockbox_mut().limit_chunks(1);
    let authorization = cluster.authorize(Operation::Copy, Selection::All);
    let onward = cluster.authorize_back(Operation::Move, Selection::Ids(vec![family[0]]));
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = ends.accept(&authorization);
    assert!(!ends.session(id, Cut::SettlementLost).expect("an authorized transfer"));
    assert!(is_here(ends.target, family[0]) && !is_here(ends.target, family[1]));

    let layer = [key(ends.source, family[1])];
    check_layers(ends.target.lockbox(), &layer).expect("its base is here and stays");
    begin(ends.target, ends.source, &onward);
    let refused = check_layers(ends.target.lockbox(), &layer);
    assert!(matches!(&refused, Err(error @ TargetError::OnItsWayOut(key)) if *key == family[0] && error.declines()));
}

/// Or one chunk after the other would make it longer than what a MOVE could take away again.
#[test]
fn rejects_what_makes_a_chain_too_long_of_which_a_part_is_here() {
    let mut target = Node::new("b", 2);
    let mut chain = vec![base(&mut target)];
    while chain.len() < MAX_LAYERS {
        let top = chain[chain.len() - 1];
        chain.push(derive(&mut target, top, Relation::Layer));
    }
    let mut source = Node::new("a", 1);
    let (lower, upper) = (base(&mut source), base(&mut source));
    let on = |key_id: KeyId, below: KeyId| {
        let mut key = key(&source, key_id);
        key.info.lineage = Some(Lineage {
            parent_key_id: below,
            relation: Relation::Layer.name().to_owned(),
            stated_lies_on: None,
        });
        key
    };
    let arriving = |below: KeyId| check_layers(target.lockbox(), &[on(upper, lower), on(lower, below)]);
    arriving(chain[MAX_LAYERS - 3]).expect("64 keys are no more than 64");
    for below in &chain[MAX_LAYERS - 2..] {
        assert!(matches!(arriving(*below), Err(TargetError::Field(_))));
    }
}
