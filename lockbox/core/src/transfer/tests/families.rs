//! Transfers of keys that lie on each other, over several chunks. SPEC sections 6.3, step 17, and 7.4.

use super::*;
use crate::lifecycle::derive::Relation;
use crate::lifecycle::family::MAX_LAYERS;
use crate::limits::MAX_CHUNK_KEYS;
use crate::record::{Key, Lineage};
use crate::transfer::target::check_layers;

fn base(node: &mut Node) -> KeyId {
    node.create_base("golden")
}

fn derive(node: &mut Node, parent: KeyId, relation: Relation) -> KeyId {
    let made = node.derive(parent, relation).expect("the policy allows it");
    if relation == Relation::Layer {
        let cancelled = node.step(|lockbox, now, rng| lockbox.job_cancel(made, false, now, rng));
        cancelled.expect("it is open");
    }
    made
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

/// How many keys of a family that is being moved each end has: the source all of them, or else the target.
fn whole_at_one_end(ends: &Ends<'_>, family: &[KeyId]) -> (usize, usize) {
    let (left, arrived) = (whole_chains(ends.source, family), whole_chains(ends.target, family));
    let is_whole = left == family.len() || left == 0 && arrived == family.len();
    assert!(is_whole, "{left} of {} are left, {arrived} have arrived", family.len());
    (left, arrived)
}

#[test]
fn a_move_of_a_family_that_is_cut_off_at_every_chunk_has_it_whole_at_one_end_at_any_time() {
    const KEYS: usize = 30;
    for cut in CUTS {
        let mut cluster = Cluster::new();
        let family = family(&mut cluster.a, KEYS);
        cluster.a.lockbox_mut().limit_chunks(4);
        let authorization = cluster.authorize(Operation::Move, Selection::All);
        let Cluster { a, b, .. } = &mut cluster;
        let mut ends = Ends { source: a, target: b };
        let id = ends.accept(&authorization);
        // A receipt or a settlement that is lost is settled by the next session, which then loses its own.
        for _ in 0..8 {
            if ends.session(id, cut).expect("an authorized transfer") {
                break;
            }
            ends.source.restart();
            ends.target.restart();
            whole_at_one_end(&ends, &family);
        }
        if state(ends.target, id) == TransferState::Open {
            assert!(ends.session(id, Cut::Never).expect("it resumes"), "{cut:?}");
        }
        assert_eq!(whole_at_one_end(&ends, &family), (0, KEYS), "{cut:?}");
        let status = ends.source.lockbox().transfer_status(id);
        let status = status.expect("undamaged").expect("there");
        assert_eq!((status.chunks_done, status.keys_done), (8, KEYS as u64));
        assert_eq!(status.state, TransferState::Complete);
        assert_eq!(state(ends.target, id), TransferState::Complete);
    }
}

/// A MOVE that has brought two of a family's eight chunks.
fn in_the_midst(ends: &mut Ends<'_>, authorization: &Verified<Authorization>) -> AuthorizationId {
    ends.source.lockbox_mut().limit_chunks(4);
    let id = ends.accept(authorization);
    for _ in 0..2 {
        assert!(!ends.session(id, Cut::SettlementLost).expect("an authorized transfer"));
        ends.source.restart();
        ends.target.restart();
    }
    id
}

/// What the broker is told of a source's transfer, once it has acknowledged everything before.
fn told(node: &mut Node) -> Option<(usize, usize)> {
    let report = node.lockbox().reports(1).expect("undamaged").pop()?;
    node.step(|lockbox, _, rng| lockbox.reported(&report, rng))
        .expect("memory does not fail");
    Some((report.receipts.len(), report.erasure_records.len()))
}

/// What a stolen target has of a family is known by the receipts, and they come before anything is erased.
#[test]
fn the_broker_hears_of_each_receipt_at_once_and_of_the_erasure_of_a_family_at_its_end() {
    let mut cluster = Cluster::new();
    family(&mut cluster.a, 30);
    let authorization = cluster.authorize(Operation::Move, Selection::All);
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = in_the_midst(&mut ends, &authorization);
    assert_eq!(told(ends.source), Some((2, 0)));
    assert!(!ends.session(id, Cut::SettlementLost).expect("it resumes"));
    assert_eq!(told(ends.source), Some((1, 0)));
    assert!(ends.session(id, Cut::Never).expect("it resumes"));
    assert_eq!(told(ends.source), Some((5, 8)));
    assert_eq!(told(ends.source), None);
}

/// Nobody could put the family together again if the source had erased a part of it by then.
#[test]
fn a_move_that_is_revoked_in_the_midst_of_a_family_leaves_it_whole_and_free_at_its_source() {
    const KEYS: usize = 30;
    let mut cluster = Cluster::new();
    let family = family(&mut cluster.a, KEYS);
    let first = cluster.authorize(Operation::Move, Selection::All);
    let revocation = cluster.revoke(first.statement().authorization_id);
    let mut again = cluster.statement(Operation::Move, Selection::All);
    again.request_id = "again".to_owned();
    let again = Verified::sign(again, &cluster.broker);
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = in_the_midst(&mut ends, &first);
    ends.source
        .step(|lockbox, now, rng| lockbox.revoke(&revocation, now, rng))
        .expect("a broker signed it");
    assert!(!ends.session(id, Cut::Never).expect("it says what has arrived"));
    let status = ends.source.lockbox().transfer_status(id);
    let status = status.expect("undamaged").expect("there");
    assert_eq!((status.state, status.chunks_done), (TransferState::Ended, 0));
    assert!(status.detail.contains("stays here"), "{}", status.detail);
    assert_eq!(whole_at_one_end(&ends, &family), (KEYS, 8));
    for key_id in &family {
        let bound = ends.source.lockbox().open_transfer_of(*key_id);
        assert_eq!(bound.expect("undamaged"), None);
    }

    // What has arrived by the first one is not in the way of the second.
    let second = ends.accept(&again);
    assert!(ends.session(second, Cut::Never).expect("the keys are free"));
    assert_eq!(whole_at_one_end(&ends, &family), (0, KEYS));
}

#[test]
fn a_target_that_declines_the_rest_of_a_family_leaves_it_whole_and_free_at_its_source() {
    const KEYS: usize = 30;
    let mut cluster = Cluster::new();
    let family = family(&mut cluster.a, KEYS);
    let authorization = cluster.authorize(Operation::Move, Selection::All);
    let Cluster { a, b, .. } = &mut cluster;
    let mut ends = Ends { source: a, target: b };
    let id = in_the_midst(&mut ends, &authorization);
    ends.target
        .step(|lockbox, _, rng| lockbox.decline_incoming(id, "a key does not fit in", rng))
        .expect("it is open");
    assert!(!ends.session(id, Cut::Never).expect("the source hears of it"));
    assert_eq!(state(ends.source, id), TransferState::Ended);
    assert_eq!(whole_at_one_end(&ends, &family), (KEYS, 8));
    for key_id in &family {
        let bound = ends.source.lockbox().open_transfer_of(*key_id);
        assert_eq!(bound.expect("undamaged"), None);
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
