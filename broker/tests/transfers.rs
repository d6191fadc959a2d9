//! A transfer that runs, as its four parties see it, through the real daemon.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use common::{Authorized, Peer, World, key_ids, next, report, request, secret, watch_request};
use lockbox_authz::{Authorization, Operation, UnverifiedEnvelope};
use lockbox_rpc::api::control::{GetTransferRequest, ListTransfersRequest, RevokeTransferRequest, TransferState};
use lockbox_rpc::api::node::{TransferReport, TransferRole, TransferStage};
use tonic::Code;

#[tokio::test]
async fn a_move_is_authorized_offered_reported_and_complete() {
    let world = World::new();
    let (alpha, mut alpha_link, beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;

    let response = client
        .authorize_transfer(request("r1", Operation::Move, 3))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    let mut watch = client
        .watch_transfer(watch_request(&authorized))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut watch).await.unwrap().state(), TransferState::Authorized);

    let offer = beta_link.offer().await;
    assert_eq!(offer.authorization, authorized.envelope.to_bytes());
    assert_eq!(offer.source_address, "alpha.example:7401");
    let roster = beta.roster(&world).await;
    let envelope = UnverifiedEnvelope::from_bytes(&offer.authorization).unwrap();
    let verified = Authorization::verify(&envelope, &roster).expect("a lockbox takes the broker's signature");
    assert_eq!(verified.statement().source.lockbox_id, alpha.lockbox.lockbox_id);

    beta_link
        .report(report(&authorized, TransferRole::Target, TransferStage::Accepted, 0))
        .await;
    assert_eq!(next(&mut watch).await.unwrap().state(), TransferState::Accepted);

    let keys = key_ids(3);
    let receipts = vec![
        beta.receipt(&authorized, 0, &keys[..2]),
        beta.receipt(&authorized, 1, &keys[2..]),
    ];
    beta_link
        .report(TransferReport {
            receipts: receipts.clone(),
            ..report(&authorized, TransferRole::Target, TransferStage::Running, 3)
        })
        .await;
    let running = next(&mut watch).await.unwrap();
    assert_eq!(running.state(), TransferState::Running);
    assert_eq!(
        (running.key_count, running.keys_received, running.keys_erased),
        (3, 3, 0)
    );

    let erasure_records = vec![
        alpha.erasure(&authorized, 0, &keys[..2]),
        alpha.erasure(&authorized, 1, &keys[2..]),
    ];
    alpha_link
        .report(TransferReport {
            erasure_records: erasure_records.clone(),
            ..report(&authorized, TransferRole::Source, TransferStage::Complete, 3)
        })
        .await;
    let complete = next(&mut watch).await.unwrap();
    assert_eq!(complete.state(), TransferState::Complete);
    assert_eq!(complete.keys_erased, 3);
    assert_eq!(next(&mut watch).await, None, "the watch ends with the transfer");

    let got = client
        .get_transfer(GetTransferRequest {
            authorization_id: authorized.statement.authorization_id.to_vec(),
            from_chunk: 0,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((got.receipts, got.erasure_records), (receipts, erasure_records));
    assert_eq!(got.next_chunk, 0);
}

#[tokio::test]
async fn a_copy_is_complete_when_the_target_has_all_and_says_so() {
    let world = World::new();
    let (_alpha, _alpha_link, beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;
    let response = client
        .authorize_transfer(request("r1", Operation::Copy, 1))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    let mut watch = client
        .watch_transfer(watch_request(&authorized))
        .await
        .unwrap()
        .into_inner();
    beta_link.offer().await;
    beta_link
        .report(TransferReport {
            receipts: vec![beta.receipt(&authorized, 0, &key_ids(1))],
            ..report(&authorized, TransferRole::Target, TransferStage::Complete, 1)
        })
        .await;
    let mut last = None;
    while let Some(transfer) = next(&mut watch).await {
        last = Some(transfer);
    }
    assert_eq!(last.unwrap().state(), TransferState::Complete);
}

/// Evidence of a transfer of many chunks must be had in full, though it does not fit in one message.
#[tokio::test]
async fn evidence_comes_in_pages() {
    let world = World::new();
    let (_alpha, _alpha_link, beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;
    let response = client
        .authorize_transfer(request("r1", Operation::Move, 1))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    beta_link.offer().await;
    let all: Vec<Vec<u8>> = (0..100)
        .map(|chunk| beta.receipt(&authorized, chunk, &key_ids(1)))
        .collect();
    for half in all.chunks(50) {
        beta_link
            .report(TransferReport {
                receipts: half.to_vec(),
                ..report(&authorized, TransferRole::Target, TransferStage::Running, 100)
            })
            .await;
    }
    let (mut found, mut from_chunk) = (Vec::new(), 0);
    loop {
        let page = client
            .get_transfer(GetTransferRequest {
                authorization_id: authorized.statement.authorization_id.to_vec(),
                from_chunk,
            })
            .await
            .unwrap()
            .into_inner();
        found.extend(page.receipts);
        if page.next_chunk == 0 {
            break;
        }
        from_chunk = page.next_chunk;
    }
    assert_eq!(found, all);
}

/// Otherwise an attacker, or the source alone, could make a requester believe that a volume has moved.
#[tokio::test]
async fn forged_evidence_changes_nothing_and_is_not_acknowledged() {
    let world = World::new();
    let (alpha, mut alpha_link, beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;
    let response = client
        .authorize_transfer(request("r1", Operation::Move, 1))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    let other = client
        .authorize_transfer(request("r2", Operation::Move, 1))
        .await
        .unwrap();
    let other = Authorized::from_response(other.into_inner());
    beta_link.offer().await;
    beta_link.offer().await;

    let stranger = Peer {
        identity: secret(77),
        ..Peer::new(&world, 1, "alpha")
    };
    let keys = key_ids(1);
    for (receipts, erasure_records) in [
        (vec![], vec![stranger.erasure(&authorized, 0, &keys)]),
        (vec![], vec![beta.erasure(&authorized, 0, &keys)]),
        (vec![], vec![alpha.erasure(&other, 0, &keys)]),
        (vec![alpha.receipt(&authorized, 0, &keys)], vec![]),
    ] {
        alpha_link
            .send(TransferReport {
                receipts,
                erasure_records,
                ..report(&authorized, TransferRole::Source, TransferStage::Complete, 1)
            })
            .await;
    }
    // The target reports in the source's place.
    beta_link
        .send(TransferReport {
            erasure_records: vec![alpha.erasure(&authorized, 0, &keys)],
            ..report(&authorized, TransferRole::Source, TransferStage::Complete, 1)
        })
        .await;
    // Reports are taken in order, so these acknowledgements come after the broker has seen all of the above.
    let sent = alpha_link
        .send(report(&other, TransferRole::Source, TransferStage::Accepted, 0))
        .await;
    assert_eq!(alpha_link.ack().await, sent);
    let sent = beta_link
        .send(report(&other, TransferRole::Target, TransferStage::Accepted, 0))
        .await;
    assert_eq!(beta_link.ack().await, sent);

    let got = client
        .get_transfer(GetTransferRequest {
            authorization_id: authorized.statement.authorization_id.to_vec(),
            from_chunk: 0,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.transfer, Some(authorized.transfer));
    assert!(got.receipts.is_empty() && got.erasure_records.is_empty());
}

#[tokio::test]
async fn a_killed_broker_still_knows_what_it_answered() {
    let mut world = World::new();
    let (_alpha, alpha_link, beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;
    let response = client
        .authorize_transfer(request("r1", Operation::Move, 2))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    beta_link.offer().await;
    beta_link
        .report(TransferReport {
            receipts: vec![beta.receipt(&authorized, 0, &key_ids(2))],
            ..report(&authorized, TransferRole::Target, TransferStage::Running, 2)
        })
        .await;
    drop((alpha_link, beta_link, client));
    world.restart();

    let mut client = world.client().await;
    let again = client
        .authorize_transfer(request("r1", Operation::Move, 2))
        .await
        .unwrap();
    let again = Authorized::from_response(again.into_inner());
    assert_eq!(again.envelope, authorized.envelope);
    assert_eq!(again.transfer.state(), TransferState::Running);
    assert_eq!(again.transfer.keys_received, 2);
    let other = client.authorize_transfer(request("r1", Operation::Copy, 2)).await;
    assert_eq!(other.unwrap_err().code(), Code::AlreadyExists);
    // It is offered again until it is reported complete.
    let mut beta_link = beta.connect(&world).await;
    assert_eq!(beta_link.offer().await.authorization, authorized.envelope.to_bytes());
}

#[tokio::test]
async fn a_requester_sees_its_own_transfers_only() {
    let mut world = World::new();
    let out = world.temp.path().join("nova");
    let made = common::run(&[
        "client",
        "create",
        "nova",
        "--dir",
        world.dir().to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", common::stderr(&made));
    world.configure(
        "[[requester]]\nname = \"nova\"\noperations = [\"move\", \"revoke\"]\nsource_labels = {}\n\
         target_labels = {}\nselections = [\"ids\"]\n",
    );
    world.restart();
    let _ends = world.two().await;
    let mut operator = world.client().await;
    let mut nova = world.client_as(&out.join("client.toml")).await;
    let response = operator
        .authorize_transfer(request("r1", Operation::Move, 1))
        .await
        .unwrap();
    let operators = Authorized::from_response(response.into_inner());
    // The same request id is another requester's own.
    nova.authorize_transfer(request("r1", Operation::Move, 2))
        .await
        .unwrap();
    let refused = nova
        .authorize_transfer(request("r2", Operation::Copy, 2))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let list = ListTransfersRequest::default();
    assert_eq!(
        nova.list_transfers(list.clone())
            .await
            .unwrap()
            .into_inner()
            .transfers
            .len(),
        1
    );
    assert_eq!(
        operator
            .list_transfers(list)
            .await
            .unwrap()
            .into_inner()
            .transfers
            .len(),
        2
    );
    let authorization_id = operators.statement.authorization_id.to_vec();
    let get = GetTransferRequest {
        authorization_id: authorization_id.clone(),
        from_chunk: 0,
    };
    assert_eq!(nova.get_transfer(get).await.unwrap_err().code(), Code::NotFound);
    let watch = watch_request(&operators);
    assert_eq!(nova.watch_transfer(watch).await.unwrap_err().code(), Code::NotFound);
    let revoke = RevokeTransferRequest {
        authorization_id,
        reason: String::new(),
    };
    assert_eq!(nova.revoke_transfer(revoke).await.unwrap_err().code(), Code::NotFound);
}

/// A target that only knows where its source was would dial that until its authorization expires.
#[tokio::test]
async fn a_source_that_moved_is_offered_again_at_its_new_address() {
    let world = World::new();
    let (alpha, _alpha_link, _beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;
    client
        .authorize_transfer(request("r1", Operation::Move, 1))
        .await
        .unwrap();
    assert_eq!(beta_link.offer().await.source_address, "alpha.example:7401");
    let mut hello = alpha.hello(&alpha.identity);
    hello.peer_address = "10.0.0.7:7401".to_owned();
    let _moved = alpha.open(&world, hello).await.unwrap();
    assert_eq!(beta_link.offer().await.source_address, "10.0.0.7:7401");
}
