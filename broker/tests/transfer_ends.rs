//! How a transfer ends early, or is left waiting, through the real daemon.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Authorized, World, key_ids, next, report, request, watch_request};
use lockbox_authz::limits::MAX_CLOCK_SKEW_MS;
use lockbox_authz::{AuthorizationId, Operation, Revocation, Selection, UnverifiedEnvelope};
use lockbox_broker::clock::now_ms;
use lockbox_broker::config::Config;
use lockbox_broker::decide::TransferRequest;
use lockbox_broker::keyfile;
use lockbox_broker::registry::Registry;
use lockbox_rpc::api::control::{ListTransfersRequest, RevokeTransferRequest, TransferState, WatchTransferRequest};
use lockbox_rpc::api::node::{TransferReport, TransferRole, TransferStage, connect_response};
use lockbox_store_sled::SledStore;
use tonic::Code;

#[tokio::test]
async fn a_revocation_reaches_both_ends_and_ends_the_watch() {
    let world = World::new();
    let (alpha, mut alpha_link, _beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;
    let response = client
        .authorize_transfer(request("r1", Operation::Move, 1))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    let mut watch = client
        .watch_transfer(watch_request(&authorized))
        .await
        .unwrap()
        .into_inner();
    next(&mut watch).await.unwrap();
    beta_link.offer().await;
    let revoke = RevokeTransferRequest {
        authorization_id: authorized.statement.authorization_id.to_vec(),
        reason: "wrong volume".to_owned(),
    };
    client.revoke_transfer(revoke.clone()).await.unwrap();
    let revoked = next(&mut watch).await.unwrap();
    assert_eq!(revoked.state(), TransferState::Revoked);
    assert_eq!(revoked.detail, "wrong volume");
    assert_eq!(next(&mut watch).await, None);

    let roster = alpha.roster(&world).await;
    for link in [&mut alpha_link, &mut beta_link] {
        let Ok(connect_response::Message::RevokeTransfer(message)) = link.next_but_roster().await else {
            panic!("a revocation was due");
        };
        let envelope = UnverifiedEnvelope::from_bytes(&message.revocation).unwrap();
        let verified = Revocation::verify(&envelope, &roster).expect("a lockbox takes it");
        assert_eq!(
            verified.statement().authorization_id,
            authorized.statement.authorization_id
        );
    }
    // Once more to whoever was away, and a late erasure record is still worth having.
    let mut alpha_link = alpha.connect(&world).await;
    let again = alpha_link.next_but_roster().await;
    assert!(
        matches!(again, Ok(connect_response::Message::RevokeTransfer(_))),
        "{again:?}"
    );
    alpha_link
        .report(TransferReport {
            erasure_records: vec![alpha.erasure(&authorized, 0, &key_ids(1))],
            ..report(&authorized, TransferRole::Source, TransferStage::Complete, 1)
        })
        .await;
    let again = client
        .revoke_transfer(revoke)
        .await
        .unwrap()
        .into_inner()
        .transfer
        .unwrap();
    assert_eq!(again.state(), TransferState::Revoked);
    assert_eq!(again.keys_erased, 1);
}

#[tokio::test]
async fn rejects_revoking_a_complete_transfer() {
    let world = World::new();
    let (alpha, mut alpha_link, _beta, _beta_link) = world.two().await;
    let mut client = world.client().await;
    let response = client
        .authorize_transfer(request("r1", Operation::Move, 1))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    alpha_link
        .report(TransferReport {
            erasure_records: vec![alpha.erasure(&authorized, 0, &key_ids(1))],
            ..report(&authorized, TransferRole::Source, TransferStage::Complete, 1)
        })
        .await;
    let revoke = RevokeTransferRequest {
        authorization_id: authorized.statement.authorization_id.to_vec(),
        reason: String::new(),
    };
    assert_eq!(
        client.revoke_transfer(revoke).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
}

/// A source whose clock is behind takes an authorization for two minutes longer, so the broker authorizes it that long ago.
#[tokio::test]
async fn a_watch_ends_when_nobody_took_the_transfer_in_time() {
    const TTL_S: u32 = 1;
    const LEFT_MS: i64 = 4_000;
    let mut world = World::new();
    let ends = world.two().await;
    drop(ends);
    world.kill();
    let id = AuthorizationId::from_random([8; 16]);
    authorize_at(
        &world,
        id,
        TTL_S,
        now_ms() - i64::from(TTL_S) * 1_000 - MAX_CLOCK_SKEW_MS + LEFT_MS,
    )
    .await;
    world.start();

    let watch = WatchTransferRequest {
        authorization_id: id.to_vec(),
    };
    let mut watch = world.client().await.watch_transfer(watch).await.unwrap().into_inner();
    let mut last = None;
    while let Some(transfer) = next(&mut watch).await {
        last = Some(transfer);
    }
    let last = last.expect("a watch begins with what is");
    assert_eq!(last.state(), TransferState::Expired);
    assert_eq!(last.detail, "its time ran out before the source was reached");
    assert!(
        now_ms() > last.expires_at_ms + MAX_CLOCK_SKEW_MS,
        "it was called expired too early"
    );
}

/// Authorizes a move from alpha to beta in the store of a broker that does not run.
async fn authorize_at(world: &World, id: AuthorizationId, ttl_seconds: u32, at_ms: i64) {
    let config = Config::load(world.path("broker.toml").as_ref()).unwrap();
    let key = keyfile::read(&config.signing_key).unwrap();
    let store = SledStore::open(
        &config.store,
        lockbox_store::Media::default(),
        &lockbox_broker::init::store_options(),
    )
    .unwrap();
    let registry = Arc::new(Registry::open(Arc::new(store)).unwrap());
    let wanted = TransferRequest {
        requester: "operator".to_owned(),
        request_id: "long-ago".to_owned(),
        source: "alpha".to_owned(),
        target: "beta".to_owned(),
        operation: Operation::Move,
        selection: Selection::from_unsorted_ids(key_ids(1)).unwrap(),
        ttl_seconds,
        reason: String::new(),
    };
    registry
        .turn(move |turn| turn.authorize(&wanted, &config.requesters, &key, id, at_ms))
        .await
        .unwrap();
}

/// An authorization that can't be handed over must not run.
#[tokio::test]
async fn nothing_is_authorized_if_the_file_for_it_exists() {
    let world = World::new();
    let _ends = world.two().await;
    let out = world.path("authorization.bin");
    let authorize = |target: &'static str| {
        let arguments = [
            "transfer",
            "authorize",
            "--source",
            "alpha",
            "--target",
            target,
            "--operation",
            "move",
        ];
        world.operator_runs(&[&arguments[..], &["--all", "--out", &out]].concat())
    };
    let unknown = authorize("gamma");
    assert!(!unknown.status.success());
    assert!(!Path::new(&out).exists(), "a refused request left its file behind");
    std::fs::write(&out, "precious").unwrap();
    assert!(!authorize("beta").status.success());
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert_eq!(world.operator(&["transfer", "list"]).lines().count(), 1);

    std::fs::remove_file(&out).unwrap();
    assert!(authorize("beta").status.success());
    assert!(UnverifiedEnvelope::from_bytes(&std::fs::read(&out).unwrap()).is_ok());
    let log = std::fs::read_to_string(world.temp.path().join("broker.log")).unwrap();
    let refused = log
        .lines()
        .find(|line| line.contains("a transfer was not authorized"))
        .unwrap();
    for field in [
        "requester",
        "operator",
        "source",
        "alpha",
        "target",
        "gamma",
        "request_id",
    ] {
        assert!(refused.contains(field), "{field}: {refused}");
    }
}

/// A script must not hang on a lockbox that is down, nor take that for a failure.
#[tokio::test]
async fn a_wait_that_takes_too_long_says_that_the_transfer_goes_on() {
    let world = World::new();
    let _ends = world.two().await;
    let arguments = [
        "transfer",
        "authorize",
        "--source",
        "alpha",
        "--target",
        "beta",
        "--operation",
        "move",
    ];
    let waited = world.operator_runs(&[&arguments[..], &["--all", "--wait", "--wait-timeout", "1"]].concat());
    assert_eq!(waited.status.code(), Some(69));
    let said = common::stderr(&waited);
    assert!(said.contains("it is still authorized; it goes on"), "{said}");
    let listed = world.operator(&["transfer", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let watched = world.operator_runs(&[
        "transfer",
        "watch",
        listed[0]["id"].as_str().unwrap(),
        "--wait-timeout",
        "1",
    ]);
    assert_eq!(watched.status.code(), Some(69));
}

/// A stop must not wait for streams that last as long as the daemon.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_streams_and_is_no_failure() {
    let mut world = World::new();
    let (_alpha, mut alpha_link, _beta, mut beta_link) = world.two().await;
    let mut client = world.client().await;
    let response = client
        .authorize_transfer(request("r1", Operation::Move, 1))
        .await
        .unwrap();
    let authorized = Authorized::from_response(response.into_inner());
    let mut watch = client
        .watch_transfer(watch_request(&authorized))
        .await
        .unwrap()
        .into_inner();
    next(&mut watch).await.unwrap();
    beta_link.offer().await;
    assert_eq!(world.stop(), Some(0));
    assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(
        alpha_link.next_but_roster().await.unwrap_err().code(),
        Code::Unavailable
    );
}

/// A broker that goes on after a failed write would acknowledge what a power cut then undoes.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_stops_the_broker_and_loses_nothing_that_was_answered() {
    let mut world = World::new();
    let _ends = world.two().await;
    world.kill();
    world.start_with_little_room();
    let mut client = world.client().await;
    let mut answered = 0;
    // Whether the last one gets its refusal or the end of the connection, it is not told that all is well.
    loop {
        let large = request(&format!("r{answered}"), Operation::Move, 1_024);
        match client.authorize_transfer(large).await {
            Ok(_) => answered += 1,
            Err(_) => break,
        }
    }
    assert_eq!(world.wait(), Some(74));
    let log = std::fs::read_to_string(world.temp.path().join("broker.log")).unwrap();
    assert!(log.contains("would break the promise"), "{log}");

    world.start();
    let list = ListTransfersRequest {
        page_size: 1_000,
        page_token: String::new(),
    };
    let (mut client, mut kept) = (world.client().await, 0);
    let mut page = client.list_transfers(list.clone()).await.unwrap().into_inner();
    loop {
        kept += page.transfers.len();
        if page.next_page_token.is_empty() {
            break;
        }
        let next = ListTransfersRequest {
            page_token: page.next_page_token,
            ..list.clone()
        };
        page = client.list_transfers(next).await.unwrap().into_inner();
    }
    assert!(
        answered > 0 && kept >= answered,
        "{answered} were answered and {kept} are known"
    );
}
