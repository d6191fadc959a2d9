//! Who gets in: lockboxes on the node port, requesters on the control plane's.

#![allow(clippy::unwrap_used, reason = "a test may fail that way")]

mod common;

use std::sync::Arc;

use common::{Peer, World, run, secret, stderr};
use lockbox_authz::roster::Change;
use lockbox_authz::{Signer, UnverifiedEnvelope, Verified};
use lockbox_rpc::api::control::control_service_client::ControlServiceClient;
use lockbox_rpc::api::control::{
    ListLockboxesRequest, ListRosterEntriesRequest, RejectJoinsRequest, SubmitRosterEntryRequest,
};
use lockbox_rpc::api::node::{JoinStatus, SyncRosterRequest, connect_response};
use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::{ClientTimeouts, ConnectError, connect_x509};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::Code;

#[tokio::test]
async fn a_token_admits_one_lockbox_with_its_labels() {
    let world = World::new();
    let token = world.token(&["--label", "zone=a", "--name", "alpha"]);
    let mut alpha = Peer::new(&world, 1, "alpha");
    let unlabelled = alpha.admission(&alpha.roster(&world).await, &token);
    let refused = alpha.ask(&world, unlabelled).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("labels"), "{}", refused.message());

    alpha.lockbox.labels = lockbox_authz::Labels::parse(["zone=a"]).unwrap();
    alpha.join(&world, &token).await;
    // A retry after a lost answer.
    let known = alpha.ask(&world, Vec::new()).await.unwrap();
    assert_eq!(known.status(), JoinStatus::Admitted);

    let mut second = Peer::new(&world, 2, "alpha-2");
    second.lockbox.labels.clone_from(&alpha.lockbox.labels);
    let entry = second.admission(&second.roster(&world).await, &token);
    assert_eq!(
        second.ask(&world, entry).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert!(world.operator(&["lockbox", "list"]).contains("zone=a"));
}

#[tokio::test]
async fn a_revoked_token_admits_nobody() {
    let world = World::new();
    let token = world.token(&[]);
    let join_key = token.join_key.public_key().to_string();
    world.operator(&["token", "revoke", &join_key, "--admin-key", &world.path("admin.key")]);
    let alpha = Peer::new(&world, 1, "alpha");
    let entry = alpha.admission(&alpha.roster(&world).await, &token);
    assert_eq!(
        alpha.ask(&world, entry).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

/// Two lockboxes join at once: the second signs again for the place after the first, and its token still works.
#[tokio::test]
async fn an_admission_that_came_second_can_be_signed_again() {
    let world = World::new();
    let (one, two) = (world.token(&[]), world.token(&[]));
    let (alpha, beta) = (Peer::new(&world, 1, "alpha"), Peer::new(&world, 2, "beta"));
    let roster = alpha.roster(&world).await;
    let (first, second) = (alpha.admission(&roster, &one), beta.admission(&roster, &two));
    alpha.ask(&world, first).await.unwrap();
    let refused = beta.ask(&world, second).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    beta.join(&world, &two).await;
}

#[tokio::test]
async fn without_a_token_an_admin_decides_by_the_fingerprint() {
    let world = World::new();
    let alpha = Peer::new(&world, 1, "alpha");
    let impostor = Peer::new(&world, 2, "alpha");
    for peer in [&alpha, &impostor] {
        let asked = peer.ask(&world, Vec::new()).await.unwrap();
        assert_eq!(asked.status(), JoinStatus::Pending);
    }
    let refused = alpha.open(&world, alpha.hello(&alpha.identity)).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let admin = world.path("admin.key");
    let admit = |fingerprint: &str| {
        world.operator_runs(&[
            "lockbox",
            "admit",
            "alpha",
            "--fingerprint",
            fingerprint,
            "--admin-key",
            &admin,
        ])
    };
    let wrong = admit(&secret(3).public_key().fingerprint().to_string());
    assert!(stderr(&wrong).contains("another fingerprint"), "{}", stderr(&wrong));
    assert!(!wrong.status.success());
    let right = admit(&alpha.identity.public_key().fingerprint().to_string());
    assert!(right.status.success(), "{}", stderr(&right));

    assert_eq!(
        alpha.ask(&world, Vec::new()).await.unwrap().status(),
        JoinStatus::Admitted
    );
    assert_eq!(
        impostor.ask(&world, Vec::new()).await.unwrap().status(),
        JoinStatus::Pending
    );
    alpha.connect(&world).await;
    let shown = world.operator(&["lockbox", "show", "alpha", "--output", "json"]);
    assert!(shown.contains("\"status\": \"admitted\""), "{shown}");
}

/// Strangers that fill the list keep nobody out, and an admin removes what they left.
#[tokio::test]
async fn an_admin_sees_who_asks_and_rejects() {
    let world = World::new();
    let strangers = [1, 2, 3].map(|number| Peer::new(&world, number, &format!("stranger-{number}")));
    for peer in &strangers {
        peer.ask(&world, Vec::new()).await.unwrap();
    }
    let fingerprint = strangers[0].identity.public_key().fingerprint().to_string();
    let listed = world.operator(&["lockbox", "list"]);
    let line = listed.lines().find(|line| line.contains("stranger-1")).unwrap();
    assert!(line.contains("127.0.0.1") && line.contains(&fingerprint), "{listed}");

    world.operator(&["lockbox", "reject", "stranger-1"]);
    let refused = strangers[0].ask(&world, Vec::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("rejected"), "{}", refused.message());
    let unknown = world.operator_runs(&["lockbox", "reject", "stranger-1"]);
    assert!(
        !unknown.status.success() && stderr(&unknown).contains("lockbox list"),
        "{}",
        stderr(&unknown)
    );
    let rejected = world.operator(&["lockbox", "reject", "--from", "127.0.0.1", "--output", "json"]);
    assert!(rejected.contains("\"rejected\": 2"), "{rejected}");
    assert!(!world.operator(&["lockbox", "list"]).contains("stranger"));

    let token = world.token(&[]);
    strangers[0].join(&world, &token).await;
}

#[tokio::test]
async fn rejects_a_requester_that_may_not_reject_requests_to_join() {
    let mut world = World::new();
    let peer = Peer::new(&world, 1, "alpha");
    peer.ask(&world, Vec::new()).await.unwrap();
    let (dir, out) = (world.dir(), world.temp.path().join("nova"));
    let (dir, folder) = (dir.to_str().unwrap(), out.to_str().unwrap());
    let made = run(&["client", "create", "nova", "--dir", dir, "--out", folder]);
    assert!(made.status.success(), "{}", stderr(&made));
    world.configure(
        "[[requester]]\nname = \"nova\"\noperations = [\"move\", \"list-all\"]\nsource_labels = {}\n\
         target_labels = {}\nselections = [\"ids\"]\n",
    );
    world.restart();
    let mut nova = world.client_as(&out.join("client.toml")).await;
    let identity_keys = vec![peer.identity.public_key().as_bytes().to_vec()];
    let refused = nova
        .reject_joins(RejectJoinsRequest { identity_keys })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(world.operator(&["lockbox", "list"]).contains("alpha"));
}

/// A request that somebody else signed would put a key on the admins' list whose holder never asked.
#[tokio::test]
async fn rejects_a_request_to_join_that_is_not_signed_by_its_own_identity() {
    let world = World::new();
    let mut forged = Peer::new(&world, 1, "alpha");
    forged.identity = secret(9);
    let refused = forged.ask(&world, Vec::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(!world.operator(&["lockbox", "list"]).contains("alpha"));
}

/// With another's wrapping key in it, keys for this lockbox could be read by the other.
#[tokio::test]
async fn rejects_a_wrapping_certificate_that_another_signed() {
    let world = World::new();
    let alpha = Peer::new(&world, 1, "alpha");
    alpha.join(&world, &world.token(&[])).await;
    let mut link = alpha.open(&world, alpha.hello(&secret(9))).await.unwrap();
    assert_eq!(link.next().await.unwrap_err().code(), Code::PermissionDenied);
    // One of another lockbox, properly signed by it.
    let beta = Peer::new(&world, 2, "beta");
    let mut link = alpha.open(&world, beta.hello(&beta.identity)).await.unwrap();
    assert_eq!(link.next().await.unwrap_err().code(), Code::PermissionDenied);
    assert!(world.operator(&["lockbox", "show", "alpha"]).contains("last seen    -"));
}

#[tokio::test]
async fn a_retired_lockbox_is_disconnected_and_the_others_are_told() {
    let world = World::new();
    let (alpha, mut alpha_link, _beta, mut beta_link) = world.two().await;
    let admin = world.path("admin.key");
    world.operator(&[
        "lockbox",
        "retire",
        "alpha",
        "--yes",
        "--admin-key",
        &admin,
        "--reason",
        "stolen",
    ]);
    let ended = alpha_link.next_but_roster().await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    let told = beta_link.next().await.unwrap();
    assert!(matches!(told, connect_response::Message::RosterAdvanced(_)), "{told:?}");
    let refused = alpha.open(&world, alpha.hello(&alpha.identity)).await.err().unwrap();
    assert!(refused.message().contains("retired"), "{}", refused.message());
}

#[tokio::test]
async fn a_newer_connection_replaces_the_older() {
    let world = World::new();
    let (alpha, mut older, _beta, _beta_link) = world.two().await;
    let _newer = alpha.connect(&world).await;
    assert_eq!(older.next_but_roster().await.unwrap_err().code(), Code::Aborted);
    assert!(
        world
            .operator(&["lockbox", "show", "alpha"])
            .contains("connected    yes")
    );
}

#[tokio::test]
async fn a_roster_comes_in_pages_and_goes_on_where_it_ended() {
    let world = World::new();
    let alpha = Peer::new(&world, 1, "alpha");
    alpha.join(&world, &world.token(&[])).await;
    let roster = alpha.roster(&world).await;
    let head = roster.head();
    let mut client = alpha.node_client(&world).await;
    let request = SyncRosterRequest {
        head: Some(head.to_wire()),
        entries: Vec::new(),
    };
    assert!(
        client
            .sync_roster(request)
            .await
            .unwrap()
            .into_inner()
            .entries
            .is_empty()
    );
    let mut control = world.client().await;
    let request = ListRosterEntriesRequest { from_index: 2 };
    let page = control.list_roster_entries(request).await.unwrap().into_inner();
    let ours: Vec<Vec<u8>> = roster.entries_from(2, 256).map(UnverifiedEnvelope::to_bytes).collect();
    assert_eq!(page.entries, ours);
}

#[tokio::test]
async fn rejects_a_roster_entry_that_no_admin_signed() {
    let world = World::new();
    let alpha = Peer::new(&world, 1, "alpha");
    let roster = alpha.roster(&world).await;
    let change = Change::AdmitLockbox(alpha.lockbox.clone());
    let forged = Verified::sign(roster.next_entry(change, lockbox_broker::clock::now_ms()), &secret(9));
    let submit = SubmitRosterEntryRequest {
        entry: forged.envelope().to_bytes(),
    };
    let refused = world.client().await.submit_roster_entry(submit).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let sync = SyncRosterRequest {
        head: None,
        entries: vec![forged.envelope().to_bytes()],
    };
    assert!(alpha.node_client(&world).await.sync_roster(sync).await.is_err());
    assert_eq!(alpha.roster(&world).await.head(), roster.head());
}

#[tokio::test]
async fn rejects_a_requester_that_the_table_does_not_name() {
    let world = World::new();
    let out = world.temp.path().join("nova");
    let (dir, uri) = (world.dir(), "spiffe://cloud/nova");
    let made = run(&[
        "client",
        "create",
        "nova",
        "--dir",
        dir.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--uri",
        uri,
    ]);
    assert!(made.status.success(), "{}", stderr(&made));
    let mut nova = world.client_as(&out.join("client.toml")).await;
    let refused = nova.list_lockboxes(ListLockboxesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let text = refused.message();
    assert!(
        text.contains(uri) && text.contains("[[requester]]") && text.contains("broker.toml"),
        "{text}"
    );
    let command = world.runs_as(&out.join("client.toml"), &["transfer", "list"]);
    assert_eq!(command.status.code(), Some(77));
}

#[tokio::test]
async fn rejects_a_client_certificate_of_another_authority() {
    let world = World::new();
    let other = World::new();
    let read = |path: String| std::fs::read(path).unwrap();
    let tls = x509::client_config(
        &read(world.path("pki/ca.crt")),
        &read(other.path("pki/operator.crt")),
        &read(other.path("pki/operator.key")),
    )
    .unwrap();
    let refused = connect_x509(&world.control, "localhost", tls, &ClientTimeouts::default()).await;
    assert!(matches!(refused, Err(ConnectError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_a_client_without_a_certificate() {
    let world = World::new();
    let ca = std::fs::read(world.path("pki/ca.crt")).unwrap();
    let mut anchors = rustls::RootCertStore::empty();
    anchors.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(anchors)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let refused = connect_x509(&world.control, "localhost", Arc::new(tls), &ClientTimeouts::default()).await;
    match refused {
        Err(ConnectError::Refused { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(channel) => {
            let answer = ControlServiceClient::new(channel)
                .list_lockboxes(ListLockboxesRequest {})
                .await;
            panic!("a client without a certificate was let in: {answer:?}");
        }
    }
}
