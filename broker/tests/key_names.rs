//! Names of keys at a real broker: what they mean, who may ask, and what a lockbox that lies can do with them.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use common::{Peer, World, held, key, stderr};
use lockbox_authz::inventory::{InventoryEntry, InventoryState};
use lockbox_authz::{KeyId, Labels, Selection, field};
use lockbox_rpc::api::control::{AuthorizeTransferRequest, FindKeyRequest, GetTransferRequest, GetTransferResponse};
use tonic::{Code, Status};

async fn report_all(world: &World, peer: &Peer, entries: Vec<InventoryEntry>) {
    peer.report_keys(world, [None, None], entries).await.unwrap();
}

async fn find(world: &World, lockbox: &str, name: &str) -> Result<KeyId, Status> {
    let request = FindKeyRequest {
        lockbox: lockbox.to_owned(),
        name: name.to_owned(),
    };
    let found = world.client().await.find_key(request).await?.into_inner();
    Ok(KeyId::from_slice("key_id", &found.key_id).unwrap())
}

#[tokio::test]
async fn a_name_means_the_key_that_has_it_now() {
    let mut world = World::new();
    let (a, _, b, _) = world.two().await;
    report_all(&world, &a, vec![held(1, "vol-1"), held(2, "vol-2"), held(3, "")]).await;
    report_all(&world, &b, vec![held(4, "vol-2")]).await;
    assert_eq!(find(&world, "alpha", "vol-2").await.unwrap(), key(2));
    let id = b.lockbox.lockbox_id.to_string();
    assert_eq!(find(&world, &id, "vol-2").await.unwrap(), key(4));

    // Renamed, and given to another key; gone.
    report_all(&world, &a, vec![held(1, "vol-2"), held(2, "vol-1")]).await;
    assert_eq!(find(&world, "alpha", "vol-2").await.unwrap(), key(1));
    report_all(&world, &a, vec![held(2, "vol-1")]).await;
    world.restart();
    assert_eq!(find(&world, "alpha", "vol-1").await.unwrap(), key(2));
    let gone = find(&world, "alpha", "vol-2").await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().contains("by its id"), "{gone}");
    let unknown = find(&world, "gamma", "vol-2").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

/// As at the lockbox: a key that came with another's id for its name must not be taken for it.
#[tokio::test]
async fn an_id_wins_over_a_name_that_looks_like_it() {
    let world = World::new();
    let (a, _, _, _) = world.two().await;
    let id = key(1).to_string();
    report_all(&world, &a, vec![held(1, "vol-1"), held(2, &id)]).await;
    assert_eq!(find(&world, "alpha", &id).await.unwrap(), key(1));
    report_all(&world, &a, vec![held(2, &id)]).await;
    assert_eq!(find(&world, "alpha", &id).await.unwrap(), key(2));
}

/// The names of a lockbox that is away may be others by now.
#[tokio::test]
async fn rejects_a_transfer_by_the_names_of_a_source_that_is_not_connected() {
    let world = World::new();
    let (a, alpha, _, _beta) = world.two().await;
    report_all(&world, &a, vec![held(1, "vol-1")]).await;
    drop(alpha);
    let ends = ["--source", "alpha", "--target", "beta", "--operation", "copy"];
    let authorize = [&["transfer", "authorize"], &ends[..], &["--key", "alpha/vol-1"]].concat();
    let refused = loop {
        // The broker notices a moment later.
        let output = world.operator_runs(&authorize);
        if !output.status.success() {
            break output;
        }
    };
    assert!(
        stderr(&refused).contains("alpha is not connected"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(find(&world, "alpha", "vol-1").await.unwrap(), key(1), "for other uses");
}

/// A transfer of ids is authorized whether or not its source holds them: that must not show what its target holds.
#[tokio::test]
async fn a_transfer_shows_only_names_that_the_requester_may_find() {
    let mut world = World::new();
    let out = world.temp.path().join("nova");
    let made = common::run(&[
        "client",
        "create",
        "nova",
        "--dir",
        &world.path(""),
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", stderr(&made));
    world.configure(
        "[[requester]]\nname = \"nova\"\noperations = [\"copy\"]\nsource_labels = { zone = \"a\" }\ntarget_labels = {}\n\
         selections = [\"ids\"]\n",
    );
    world.restart();
    let (mut a, b) = (Peer::new(&world, 1, "alpha"), Peer::new(&world, 2, "beta"));
    a.lockbox.labels = Labels::parse(["zone=a"]).unwrap();
    a.join(&world, &world.token(&["--label", "zone=a"])).await;
    b.join(&world, &world.token(&[])).await;
    let (_alpha, _beta) = (a.connect(&world).await, b.connect(&world).await);
    report_all(&world, &a, vec![held(1, "vol-1")]).await;
    report_all(&world, &b, vec![held(2, "secret-project")]).await;

    let selection = Selection::from_unsorted_ids(vec![key(1), key(2)]).unwrap();
    let request = AuthorizeTransferRequest {
        selection: Some(selection.to_wire()),
        ..common::request("names", lockbox_authz::Operation::Copy, 1)
    };
    let client = out.join("client.toml");
    let made = world
        .client_as(&client)
        .await
        .authorize_transfer(request)
        .await
        .unwrap();
    let request = GetTransferRequest {
        authorization_id: made.into_inner().transfer.unwrap().authorization_id,
        from_chunk: 0,
    };
    let names = |detail: tonic::Response<GetTransferResponse>| {
        let names = detail.into_inner().key_names.into_iter().map(|key| key.name);
        names.collect::<Vec<_>>()
    };
    let shown = world
        .client_as(&client)
        .await
        .get_transfer(request.clone())
        .await
        .unwrap();
    assert_eq!(names(shown), ["vol-1"]);
    let shown = world.client().await.get_transfer(request).await.unwrap();
    assert_eq!(names(shown), ["vol-1", "secret-project"], "the operator may see both");
}

/// The wrong one might be moved, or marked for good.
#[tokio::test]
async fn rejects_a_name_that_several_keys_have() {
    let world = World::new();
    let (a, _, _, _) = world.two().await;
    let scheduled = InventoryEntry {
        state: InventoryState::Scheduled { is_compromised: false },
        ..held(3, "vol")
    };
    report_all(&world, &a, vec![held(1, "vol"), scheduled.clone()]).await;
    assert_eq!(find(&world, "alpha", "vol").await.unwrap(), key(1), "3 is only kept");
    report_all(&world, &a, vec![scheduled.clone()]).await;
    assert_eq!(find(&world, "alpha", "vol").await.unwrap(), key(3));

    report_all(&world, &a, vec![held(1, "vol"), held(2, "vol"), scheduled]).await;
    let refused = find(&world, "alpha", "vol").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let says = refused.message();
    assert!(
        says.contains(&key(1).to_string()) && says.contains(&key(2).to_string()),
        "{says}"
    );
    let many = (1..=100).map(|number| held(number, "vol")).collect();
    report_all(&world, &a, many).await;
    assert!(find(&world, "alpha", "vol").await.unwrap_err().message().len() < 1_000);
}

#[tokio::test]
async fn rejects_names_of_a_lockbox_that_tells_none() {
    let world = World::new();
    let (a, _, _, _) = world.two().await;
    report_all(&world, &a, vec![held(1, "")]).await;
    let refused = find(&world, "alpha", "vol-1").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let says = refused.message();
    assert!(says.contains("by its id") && says.contains("[inventory]"), "{says}");
}

/// A requester learns nothing of lockboxes from which it may have no key.
#[tokio::test]
async fn rejects_a_requester_that_may_not_name_keys_of_the_lockbox() {
    let mut world = World::new();
    let mut clients = Vec::new();
    for (name, row) in [
        (
            "nova",
            "operations = [\"move\"]\nsource_labels = {}\nselections = [\"ids\"]",
        ),
        (
            "other-zone",
            "operations = [\"move\"]\nsource_labels = { zone = \"b\" }\nselections = [\"ids\"]",
        ),
        (
            "by-label",
            "operations = [\"copy\"]\nsource_labels = {}\nselections = [\"labels\"]",
        ),
        (
            "none",
            "operations = [\"revoke\"]\nsource_labels = {}\nselections = [\"ids\"]",
        ),
    ] {
        let out = world.temp.path().join(name);
        let (dir, out_text) = (world.path(""), out.to_str().unwrap());
        let made = common::run(&["client", "create", name, "--dir", &dir, "--out", out_text]);
        assert!(made.status.success(), "{}", stderr(&made));
        world.configure(&format!(
            "[[requester]]\nname = \"{name}\"\n{row}\ntarget_labels = {{}}\n"
        ));
        clients.push(out.join("client.toml"));
    }
    world.restart();
    let (a, _, _, _) = world.two().await;
    report_all(&world, &a, vec![held(1, "vol-1")]).await;
    let mut codes = Vec::new();
    for client in &clients {
        let request = FindKeyRequest {
            lockbox: "alpha".to_owned(),
            name: "vol-1".to_owned(),
        };
        let found = world.client_as(client).await.find_key(request).await;
        codes.push(found.map_or_else(|status| status.code(), |_| Code::Ok));
    }
    use Code::{Ok, PermissionDenied};
    assert_eq!(codes, [Ok, PermissionDenied, PermissionDenied, PermissionDenied]);
}

/// The name in the request is as little known as any other text.
#[tokio::test]
async fn rejects_a_name_that_no_key_may_have() {
    let world = World::new();
    for hostile in ["\u{202e}a\u{1b}[2J\nb", &"n".repeat(100_000), ""] {
        for (lockbox, name) in [(hostile, "vol-1"), ("alpha", hostile)] {
            let refused = find(&world, lockbox, name).await.unwrap_err();
            let says = refused.message();
            assert!(says.chars().all(field::is_plain) && says.len() < 500, "{says:?}");
        }
    }
}

/// What beta calls its key may be anything: it must not choose which key leaves alpha.
#[tokio::test]
async fn a_transfer_takes_the_source_s_names_and_no_others() {
    let world = World::new();
    let (a, _alpha, b, _beta) = world.two().await;
    report_all(&world, &a, vec![held(1, "vol-1"), held(2, "vol-2")]).await;
    report_all(&world, &b, vec![held(1, "vol-2")]).await;
    let authorize = [
        "transfer",
        "authorize",
        "--source",
        "alpha",
        "--target",
        "beta",
        "--operation",
        "copy",
    ];
    let refused = world.operator_runs(&[&authorize[..], &["--key", "beta/vol-2"]].concat());
    assert_eq!(refused.status.code(), Some(64), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("beta is not the source"),
        "{}",
        stderr(&refused)
    );
    let listed = world.operator(&["transfer", "list", "--output", "json"]);
    assert_eq!(listed.trim(), "[]", "nothing was authorized");

    let other = key(9).to_string();
    let keys = ["--key", "alpha/vol-2", "--key", &other, "--output", "json"];
    let made = world.operator_runs(&[&authorize[..], &keys].concat());
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(
        stderr(&made).contains(&format!("alpha/vol-2 is key {}", key(2))),
        "{}",
        stderr(&made)
    );
    let transfer: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let id = transfer["id"].as_str().unwrap();
    let authorization_id: lockbox_authz::AuthorizationId = id.parse().unwrap();
    let request = GetTransferRequest {
        authorization_id: authorization_id.to_vec(),
        from_chunk: 0,
    };
    let detail = world.client().await.get_transfer(request).await.unwrap().into_inner();
    let selection = Selection::from_wire(detail.transfer.unwrap().selection.unwrap()).unwrap();
    assert_eq!(selection, Selection::Ids(vec![key(2), key(9)]));
    let shown = world.operator(&["transfer", "show", id]);
    assert!(shown.contains(&format!("name  {}  vol-2\n", key(2))), "{shown}");
}
