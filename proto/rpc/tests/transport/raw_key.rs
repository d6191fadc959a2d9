//! Handshakes with raw public keys, over the loopback.

use std::sync::Arc;

use crate::certificates::{Authority, stray_key};
use crate::common::{Admitted, Server, alert, connect, handshake, node, raw_key_server, who_am_i};
use crate::impostor::{self, Shows, certified};
use lockbox_rpc::tls::raw_key;
use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::{ClientTimeouts, ConnectError, PeerIdentity, connect_raw_key, connect_x509};
use rcgen::PublicKeyData;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, NamedGroup, ProtocolVersion};

#[tokio::test]
async fn server_knows_an_admitted_peer_by_its_key() {
    let (server_key, client_key) = (node(1), node(2));
    let server = raw_key_server(&server_key, &Admitted::these(&[&client_key])).await;

    let channel = connect(&server, &client_key, &server_key).await.unwrap();

    let expected = PeerIdentity::RawKey(client_key.public_key().0);
    assert_eq!(who_am_i(&channel).await.unwrap(), format!("{expected:?}"));
}

#[tokio::test]
async fn rejects_unadmitted_client() {
    let (server_key, stranger) = (node(1), node(3));
    let server = raw_key_server(&server_key, &Admitted::these(&[&node(2)])).await;

    let refused = connect(&server, &stranger, &server_key).await.unwrap_err();

    assert!(
        matches!(refused, ConnectError::Refused { alert, .. } if alert == AlertDescription::CertificateUnknown),
        "{refused}"
    );
}

#[tokio::test]
async fn policy_is_asked_at_each_handshake() {
    let (server_key, client_key) = (node(1), node(2));
    let roster = Admitted::these(&[]);
    let server = raw_key_server(&server_key, &roster).await;
    connect(&server, &client_key, &server_key).await.unwrap_err();

    roster.admit(&client_key);
    connect(&server, &client_key, &server_key).await.unwrap();

    roster.retire(&client_key);
    let refused = connect(&server, &client_key, &server_key).await;
    assert!(matches!(refused, Err(ConnectError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_wrong_server_key() {
    let (server_key, client_key, expected) = (node(1), node(2), node(4));
    let server = raw_key_server(&server_key, &Admitted::these(&[&client_key])).await;

    let refused = connect(&server, &client_key, &expected).await.unwrap_err();

    let told = refused.to_string();
    assert!(matches!(refused, ConnectError::WrongKey { .. }), "{told}");
    for part in [
        &server.address,
        &expected.public_key().fingerprint(),
        &server_key.public_key().fingerprint(),
    ] {
        assert!(told.contains(part), "{told}");
    }
}

#[tokio::test]
async fn rejects_server_without_the_private_half_of_its_key() {
    let (server_key, client_key) = (node(1), node(2));
    let impostor = Server::start(impostor::server(server_key.public_key(), &stray_key())).await;

    let refused = connect(&impostor, &client_key, &server_key).await;

    assert!(matches!(refused, Err(ConnectError::Handshake { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_client_without_the_private_half_of_its_key() {
    let (server_key, admitted) = (node(1), node(2));
    let server = raw_key_server(&server_key, &Admitted::these(&[&admitted])).await;
    let stolen = certified(admitted.public_key().to_spki().to_vec(), &stray_key());

    assert_eq!(
        verdict(&server, raw(Some(stolen))).await,
        AlertDescription::DecryptError
    );
}

#[tokio::test]
async fn rejects_client_without_key() {
    let server = raw_key_server(&node(1), &Admitted::these(&[])).await;

    // Says that it has a raw key, and then sends none.
    assert_eq!(verdict(&server, raw(None)).await, AlertDescription::CertificateRequired);
    // Doesn't even know of raw keys.
    let unaware = Shows {
        certified: None,
        raw_key: false,
    };
    assert_eq!(verdict(&server, unaware).await, AlertDescription::HandshakeFailure);
}

#[tokio::test]
async fn rejects_x509_client() {
    let server = raw_key_server(&node(1), &Admitted::these(&[])).await;
    let authority = Authority::new("cloud");
    let client = authority.client();
    let tls = x509::client_config(
        authority.pem().as_bytes(),
        client.chain_pem.as_bytes(),
        client.key_pem.as_bytes(),
    )
    .unwrap();

    let refused = connect_x509(&server.address, "localhost", tls, &ClientTimeouts::default()).await;

    assert!(matches!(refused, Err(ConnectError::Handshake { .. })), "{refused:?}");
}

#[tokio::test]
async fn rejects_certificate_in_place_of_a_raw_key() {
    let server = raw_key_server(&node(1), &Admitted::these(&[])).await;
    let disguised = certified(Authority::new("cloud").client().der, &stray_key());

    assert_eq!(
        verdict(&server, raw(Some(disguised))).await,
        AlertDescription::CertificateUnknown
    );
}

#[tokio::test]
async fn rejects_raw_key_of_another_algorithm() {
    let server = raw_key_server(&node(1), &Admitted::these(&[])).await;
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let shown = certified(p256.subject_public_key_info(), &p256);

    let refused = handshake(&server.address, impostor::client(raw(Some(shown)), true, &[&TLS13])).await;

    // Whether rustls finds no common scheme or the verifier sees the key: it must not come in.
    assert!(refused.is_err());
}

#[tokio::test]
async fn rejects_tls12() {
    let (server_key, client_key) = (node(1), node(2));
    let server = raw_key_server(&server_key, &Admitted::these(&[&client_key])).await;

    let old = impostor::client(raw(None), true, &[&TLS12]);

    assert_eq!(
        alert(handshake(&server.address, old).await),
        AlertDescription::ProtocolVersion
    );
}

#[tokio::test]
async fn rejects_client_without_http2() {
    let (server_key, client_key) = (node(1), node(2));
    let server = raw_key_server(&server_key, &Admitted::these(&[&client_key])).await;
    let mut config = config(&client_key, &server_key);

    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let refused = handshake(&server.address, config.clone()).await;
    assert_eq!(alert(refused), AlertDescription::NoApplicationProtocol);

    config.alpn_protocols = Vec::new();
    assert!(handshake(&server.address, config).await.is_err());
}

#[tokio::test]
async fn handshake_is_post_quantum_and_leaves_nothing_to_resume() {
    let (server_key, client_key) = (node(1), node(2));
    let server = raw_key_server(&server_key, &Admitted::these(&[&client_key])).await;

    let tls = handshake(&server.address, config(&client_key, &server_key))
        .await
        .unwrap();

    let session = tls.get_ref().1;
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(
        session.negotiated_key_exchange_group().map(|group| group.name()),
        Some(NamedGroup::X25519MLKEM768)
    );
    // The server's first HTTP/2 frame has been read, and tickets would have come before it.
    assert_eq!(session.tls13_tickets_received(), 0);
}

#[tokio::test]
async fn made_again_connection_is_checked_like_the_first() {
    let (server_key, client_key, impostor_key) = (node(1), node(2), node(3));
    let admitted = Admitted::these(&[&client_key]);
    // An address of its own: no other test can be given the port while it is free.
    let tls = raw_key::server_config(&server_key, admitted.clone());
    let server = Server::start_at("127.0.0.2:0", tls, crate::common::limits()).await;
    let address = server.address.clone();
    let channel = connect(&server, &client_key, &server_key).await.unwrap();
    who_am_i(&channel).await.unwrap();
    server.stop().await.unwrap();

    // Another node takes over the address: the channel must not follow.
    let tls = raw_key::server_config(&impostor_key, admitted.clone());
    let impostor = Server::start_at(&address, tls, crate::common::limits()).await;
    who_am_i(&channel).await.unwrap_err();
    impostor.stop().await.unwrap();

    let tls = raw_key::server_config(&server_key, admitted);
    let _server = Server::start_at(&address, tls, crate::common::limits()).await;
    who_am_i(&channel).await.unwrap();
}

#[tokio::test]
async fn rejects_address_without_port() {
    for address in [
        "10.0.0.1",
        "",
        "10.0.0.1:",
        "10.0.0.1:x",
        "a b:1",
        "root@10.0.0.1:1",
        "http://10.0.0.1:1",
    ] {
        let tls = raw_key::client_config(&node(2), node(1).public_key().0);
        let refused = connect_raw_key(address, tls, &ClientTimeouts::default()).await;
        assert!(
            matches!(refused, Err(ConnectError::Address { .. })),
            "{address:?}: {refused:?}"
        );
    }
}

fn raw(certified: Option<Arc<rustls::sign::CertifiedKey>>) -> Shows {
    Shows {
        certified,
        raw_key: true,
    }
}

async fn verdict(server: &Server, shows: Shows) -> AlertDescription {
    alert(handshake(&server.address, impostor::client(shows, true, &[&TLS13])).await)
}

fn config(client: &raw_key::NodeKey, server: &raw_key::NodeKey) -> rustls::ClientConfig {
    Arc::unwrap_or_clone(raw_key::client_config(client, server.public_key().0))
}
