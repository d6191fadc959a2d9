//! What lockboxes say of keys that they destroyed or restored.

use super::*;

pub(super) fn destroyed(roster: &Roster, lockbox: u8, signer: u8) -> Vec<u8> {
    let record = DestructionRecord {
        cluster_id: roster.cluster_id(),
        lockbox_id: id(lockbox),
        key_ids: key_ids(3),
        erasure_class: ErasureClass::Software,
        signed_at_ms: NOW_MS,
    };
    Verified::sign(record, &secret(signer)).envelope().to_bytes()
}

pub(super) async fn custody_report(registry: &Arc<Registry>, by: u8, records: Vec<Vec<u8>>) -> Result<(), Refusal> {
    let report = CustodyReport { report_id: 1, records };
    registry
        .turn(move |turn| turn.custody_report(id(by), &report, NOW_MS))
        .await
}

/// What a lockbox destroyed is known, however often it says so.
#[tokio::test]
async fn destroyed_keys_and_restored_lockboxes_are_remembered() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let roster = registry.roster();
    let restored = RestorationRecord {
        cluster_id: roster.cluster_id(),
        lockbox_id: id(BETA),
        predecessor_id: id(ALPHA),
        backup_id: [5; 16],
        as_of_ms: NOW_MS,
        signed_at_ms: NOW_MS,
    };
    let restored = Verified::sign(restored, &secret(BETA)).envelope().to_bytes();
    let record = destroyed(&roster, ALPHA, ALPHA);
    for _ in 0..2 {
        custody_report(&registry, ALPHA, vec![record.clone()]).await.unwrap();
        custody_report(&registry, BETA, vec![restored.clone()]).await.unwrap();
    }
    let again = reopen(&store);
    let kept = again
        .turn(|turn| Ok((turn.destructions(id(ALPHA), None)?.0, turn.restorations(id(ALPHA))?)))
        .await
        .unwrap();
    assert_eq!(kept, (vec![record], vec![(id(BETA), restored)]));
    let of_beta = again.turn(|turn| turn.destructions(id(BETA), None)).await.unwrap();
    assert!(of_beta.0.is_empty());
}

/// A lockbox that spoke for another could keep the other's keys out of a restore.
#[tokio::test]
async fn rejects_what_a_lockbox_says_of_keys_for_another() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let roster = registry.roster();
    let forged = custody_report(&registry, ALPHA, vec![destroyed(&roster, ALPHA, BETA)]).await;
    assert!(matches!(forged, Err(Refusal::Envelope(_))), "{forged:?}");
    let anothers = custody_report(&registry, ALPHA, vec![destroyed(&roster, BETA, ALPHA)]).await;
    assert!(matches!(anothers, Err(Refusal::Field(_))), "{anothers:?}");
    let good = destroyed(&roster, ALPHA, ALPHA);
    let both = custody_report(&registry, ALPHA, vec![good.clone(), destroyed(&roster, BETA, ALPHA)]).await;
    assert!(both.is_err());
    for count in [0, MAX_REPORT_RECEIPTS + 1] {
        let refused = custody_report(&registry, ALPHA, vec![good.clone(); count]).await;
        assert!(matches!(refused, Err(Refusal::Field(_))), "{count}: {refused:?}");
    }
    let kept = registry.turn(|turn| turn.destructions(id(ALPHA), None)).await.unwrap();
    assert!(kept.0.is_empty(), "a part of a refused report was kept");
}

/// A source that ended a MOVE has what it did not erase, though the target has signed for it: what kept that out of a restore
/// would lose it.
#[tokio::test]
async fn what_a_source_has_kept_did_not_leave_it() {
    let store = MemoryStore::new();
    let registry = registry(&store).await;
    let transfer_id = authorize(&registry, request("r1"), 1)
        .await
        .unwrap()
        .transfer
        .authorization_id;
    let transfer_id = AuthorizationId::from_slice("authorization_id", &transfer_id).unwrap();
    let moved = transfer(&registry, 1).await;
    let signed = Signed {
        registry: &registry,
        transfer: &moved,
    };
    let receipt = signed.receipt(BETA, moved.authorization_hash);
    let running = TransferReport {
        stage: TransferStage::Running.into(),
        ..signed.report(TransferRole::Target, vec![receipt.clone()], Vec::new())
    };
    report(&registry, BETA, running).await.unwrap();
    let says_that_it_left = |lockbox| {
        let (registry, receipt) = (Arc::clone(&registry), receipt.clone());
        async move {
            let said = registry
                .turn(move |turn| turn.custody(id(lockbox), transfer_id, 0))
                .await;
            said.unwrap().0.contains(&receipt)
        }
    };
    assert!(says_that_it_left(ALPHA).await, "it may be on its way out");

    let ended = TransferReport {
        stage: TransferStage::Ended.into(),
        ..signed.report(TransferRole::Source, Vec::new(), Vec::new())
    };
    report(&registry, ALPHA, ended).await.unwrap();

    assert!(!says_that_it_left(ALPHA).await);
    assert!(says_that_it_left(BETA).await, "it has come there");
}
