//! What the evidence keeps out, and what an operator may bring back all the same.

use lockbox_authz::evidence::{DestructionRecord, RestorationRecord};
use lockbox_authz::transfer::ErasureClass;

use super::*;

fn destroyed_by(cluster: &Cluster, node: &Node, key_id: KeyId) -> UnverifiedEnvelope {
    let identity = node.lockbox().identity();
    let record = DestructionRecord {
        cluster_id: cluster.roster.cluster_id(),
        lockbox_id: identity.lockbox_id,
        key_ids: vec![key_id],
        erasure_class: ErasureClass::Software,
        signed_at_ms: NOW_MS,
    };
    Verified::sign(record, &identity.identity_key).envelope().clone()
}

/// B's word alone that it is made of a backup of a.
fn claim_of_b(cluster: &Cluster) -> UnverifiedEnvelope {
    let identity = cluster.b.lockbox().identity();
    let record = RestorationRecord {
        cluster_id: cluster.roster.cluster_id(),
        lockbox_id: identity.lockbox_id,
        predecessor_id: cluster.a.party().lockbox_id,
        backup_id: [9; 16],
        as_of_ms: NOW_MS,
        signed_at_ms: NOW_MS,
    };
    Verified::sign(record, &identity.identity_key).envelope().clone()
}

fn select(cluster: &Cluster, evidence: Evidence, admitted: &[KeyId]) -> Selected {
    let keys = cluster.a.lockbox().vault.keys_after(None, 10);
    let entries = keys.expect("nothing is wrong with it").into_iter().map(|key| Entry {
        what: Held::Key(Box::new(key)),
        changed: false,
        moving: None,
        job: None,
    });
    let plan = Plan {
        evidence: Some(evidence),
        admitted: admitted.iter().copied().collect(),
    };
    plan.select(entries.collect(), NOW_MS)
}

/// Any member can claim to be made of a backup, and that it destroyed keys: that must not cost their owner the backup.
#[test]
fn what_a_claimed_successor_destroyed_can_be_admitted() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let statements = [claim_of_b(&cluster), destroyed_by(&cluster, &cluster.b, key_id)];
    let out = select(&cluster, evidence(&cluster, &statements), &[]);
    let successor = Some(cluster.b.party().lockbox_id);
    assert_eq!(out.key_count(), 0);
    assert_eq!(out.findings[0].why, Why::Destroyed { successor });
    let back = select(&cluster, evidence(&cluster, &statements), &[key_id]);
    assert_eq!(back.key_count(), 1);
    assert!(back.findings[0].admitted, "nobody is told of it");
}

#[test]
fn what_the_lockbox_itself_destroyed_is_not_admitted() {
    let mut cluster = Cluster::new();
    let key_id = cluster.a.create("volume", TransferPolicy::default());
    let own = destroyed_by(&cluster, &cluster.a, key_id);
    let statements = [claim_of_b(&cluster), own, destroyed_by(&cluster, &cluster.b, key_id)];
    let out = select(&cluster, evidence(&cluster, &statements), &[key_id]);
    assert_eq!(out.key_count(), 0);
    assert_eq!(out.findings[0].why, Why::Destroyed { successor: None });
}
