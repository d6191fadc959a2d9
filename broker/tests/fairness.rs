//! Many transfers of one requester must not keep another's waiting.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::path::PathBuf;

use common::{Authorized, World, key_ids, report, request, stderr};
use lockbox_authz::Operation;
use lockbox_rpc::api::control::{AuthorizeTransferResponse, RevokeTransferRequest};
use lockbox_rpc::api::node::{OfferTransfer, TransferReport, TransferRole, TransferStage};
use tonic::Code;

/// What a target works on at a time of one requester's (`limits::MAX_OFFERED`).
const OFFERED: usize = 32;

/// A cluster whose broker also knows `nova`, with lines of nova's row; and nova's client.toml.
fn world_with_nova(lines: &str) -> (World, PathBuf) {
    let mut world = World::new();
    let out = world.temp.path().join("nova");
    let (dir, out_text) = (world.path(""), out.to_str().unwrap());
    let made = common::run(&["client", "create", "nova", "--dir", &dir, "--out", out_text]);
    assert!(made.status.success(), "{}", stderr(&made));
    world.configure(&format!(
        "[[requester]]\nname = \"nova\"\noperations = [\"copy\", \"revoke\"]\nsource_labels = {{}}\n\
         target_labels = {{}}\nselections = [\"ids\"]\n{lines}"
    ));
    world.restart();
    (world, out.join("client.toml"))
}

fn authorized(response: tonic::Response<AuthorizeTransferResponse>) -> Authorized {
    Authorized::from_response(response.into_inner())
}

fn is_of(offer: &OfferTransfer, transfer: &Authorized) -> bool {
    offer.authorization == transfer.envelope.to_bytes()
}

#[tokio::test]
async fn the_one_transfer_of_a_requester_does_not_wait_behind_all_of_anothers() {
    let (world, nova) = world_with_nova("");
    let (_alpha, _alpha_link, beta, mut beta_link) = world.two().await;
    let mut operator = world.client().await;
    let mut many = Vec::new();
    for number in 0..3 * OFFERED {
        let asked = request(&format!("r{number}"), Operation::Copy, 1);
        many.push(authorized(operator.authorize_transfer(asked).await.unwrap()));
    }
    for transfer in &many[..OFFERED] {
        assert!(is_of(&beta_link.offer().await, transfer), "the oldest comes first");
    }
    let mut nova = world.client_as(&nova).await;
    let one = authorized(nova.authorize_transfer(request("r", Operation::Copy, 1)).await.unwrap());
    assert!(
        is_of(&beta_link.offer().await, &one),
        "it waits behind those of another"
    );

    // What waits for something else leaves its place to the next, and so does what ends.
    let (waiting, ended) = (TransferStage::Waiting, TransferStage::Complete);
    let report_of = |number: usize, stage| report(&many[number], TransferRole::Target, stage, 1);
    beta_link.report(report_of(0, waiting)).await;
    assert!(is_of(&beta_link.offer().await, &many[OFFERED]));
    let receipts = vec![beta.receipt(&many[1], 0, &key_ids(1))];
    let report = TransferReport {
        receipts,
        ..report_of(1, ended)
    };
    beta_link.report(report).await;
    assert!(is_of(&beta_link.offer().await, &many[OFFERED + 1]));

    // On its next connection the target is offered at once what it has accepted, and no more than its share besides.
    beta_link.report(report_of(5, TransferStage::Accepted)).await;
    drop(beta_link);
    let mut beta_link = beta.connect(&world).await;
    assert!(is_of(&beta_link.offer().await, &many[5]));
    let mut of_nova = 0;
    for _ in 0..OFFERED {
        of_nova += usize::from(is_of(&beta_link.offer().await, &one));
    }
    assert_eq!(of_nova, 1, "each requester has its turn");
    beta_link.report(report_of(5, TransferStage::Running)).await;
}

#[tokio::test]
async fn rejects_more_open_transfers_than_the_configuration_lets_a_requester_have() {
    let (world, nova) = world_with_nova("max_open_transfers = 2");
    let _ends = world.two().await;
    let mut nova = world.client_as(&nova).await;
    let first = authorized(
        nova.authorize_transfer(request("r0", Operation::Copy, 1))
            .await
            .unwrap(),
    );
    nova.authorize_transfer(request("r1", Operation::Copy, 1))
        .await
        .unwrap();
    let refused = nova
        .authorize_transfer(request("r2", Operation::Copy, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("max_open_transfers"), "{refused}");
    let revoke = RevokeTransferRequest {
        authorization_id: first.statement.authorization_id.to_vec(),
        reason: String::new(),
    };
    nova.revoke_transfer(revoke).await.unwrap();
    nova.authorize_transfer(request("r2", Operation::Copy, 1))
        .await
        .unwrap();
    // Another requester has its own limit.
    let mut operator = world.client().await;
    operator
        .authorize_transfer(request("r2", Operation::Copy, 1))
        .await
        .unwrap();
}
