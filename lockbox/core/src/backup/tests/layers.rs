//! What lies on what comes back with a backup.

use super::jobs::restore;
use super::*;
use crate::lifecycle::LifecycleError;
use crate::lifecycle::destruction::Erase;
use crate::lifecycle::family::Relation;
use crate::lifecycle::job::opened_proof;
use crate::record::ClonePolicy;

fn derive(node: &mut Node, parent: KeyId, relation: Relation) -> KeyId {
    node.derive(parent, relation).expect("nothing is wrong with it")
}

/// Its parent is a tombstone, which holds nothing: the base is kept by what the snapshot itself says.
#[test]
fn the_snapshot_of_a_layer_that_is_gone_keeps_the_base_after_a_restore() {
    let mut node = node_with(0);
    let request = KeyRequest {
        clone_policy: ClonePolicy {
            share: true,
            layer: true,
            ..ClonePolicy::default()
        },
        ..KeyRequest::default()
    };
    let base = node
        .step(|lockbox, now_ms, rng| lockbox.create_key(request, None, now_ms, rng))
        .expect("nothing is wrong with it")
        .key_id;
    let layer = derive(&mut node, base, Relation::Layer);
    let proof = opened_proof(layer, "qemu-img", &node.reveal(layer));
    node.step(|lockbox, now_ms, rng| lockbox.job_verified(layer, "qemu-img", &proof, now_ms, rng))
        .expect("a good proof");
    node.step(|lockbox, now_ms, rng| lockbox.job_done(layer, Erase::Now, now_ms, rng))
        .expect("it is verified");
    let snapshot = derive(&mut node, layer, Relation::Snapshot);
    destroy(&mut node, layer);
    let file = make(&mut node, |_, _| {}).expect("nothing is wrong with it");
    let (mut restored, dropped) = restore(&file, |_| {});
    assert_eq!(dropped, []);
    let refused = restored.step(|lockbox, now_ms, rng| lockbox.destroy_key(base, true, now_ms, rng));
    let Err(LockboxError::Lifecycle(LifecycleError::Layered { layers, .. })) = refused else {
        panic!("the base was let go");
    };
    assert_eq!(layers, snapshot.to_string());
    let impact = restored.lockbox().impact(base).expect("undamaged");
    assert_eq!(impact.findings.len(), 3, "the layer is remembered");
    destroy(&mut restored, snapshot);
    destroy(&mut restored, base);
}
