//! What a TLS listener does when there is too much, too slow, or time to stop.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{Admitted, Held, Server, connect, handshake, limits, node, request, who_am_i};
use lockbox_rpc::tls::raw_key::{self, NodeKey};
use lockbox_rpc::transport::{ConnectError, ServerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::Code;

#[tokio::test]
async fn silent_connection_does_not_keep_others_out_for_long() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |limits| {
        limits.handshakes = 1;
        limits.handshake_timeout = Duration::from_millis(100);
    })
    .await;
    // A connection past its handshake takes no place of one that is not.
    let served = connect(&server, &client_key, &server_key).await.unwrap();
    let _silent = TcpStream::connect(&server.address).await.unwrap();

    let channel = connect(&server, &client_key, &server_key).await.unwrap();

    who_am_i(&channel).await.unwrap();
    who_am_i(&served).await.unwrap();
}

/// A machine that lost its power says nothing more. Its connection must not count against the limit for ever.
#[tokio::test]
async fn connection_of_a_vanished_peer_is_closed() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |limits| {
        limits.keepalive_interval = Duration::from_millis(50);
        limits.keepalive_timeout = Duration::from_millis(50);
    })
    .await;
    let tls = raw_key::client_config(&client_key, server_key.public_key().0);
    let mut vanished = handshake(&server.address, Arc::unwrap_or_clone(tls)).await.unwrap();

    // The preface and empty settings (RFC 9113, section 3.4), and then no answer to any ping.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    vanished.write_all(preface).await.unwrap();

    let end = timeout(Duration::from_secs(30), vanished.read_to_end(&mut Vec::new())).await;
    end.expect("the server closes the connection").unwrap();
}

/// With a reset in place of a clean end, the alert could be lost on the way, and the peer's operator would be told of a
/// broken network.
#[tokio::test]
async fn refused_peer_gets_its_alert_and_a_clean_end() {
    let server = start(&node(1), &node(2), |_| ()).await;
    let mut peer = TcpStream::connect(&server.address).await.unwrap();

    // More than the server reads before it gives up.
    peer.write_all(&[b'x'; 48 * 1024]).await.unwrap();
    peer.shutdown().await.unwrap();
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).await.expect("no reset");

    // A fatal alert (RFC 8446, section 5.1 and appendix B.2).
    assert_eq!((answer[0], answer.len(), answer[5]), (21, 7, 2), "{answer:x?}");
}

#[tokio::test]
async fn connection_over_the_limit_is_closed_and_the_others_live() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |limits| limits.connections = 1).await;
    let first = connect(&server, &client_key, &server_key).await.unwrap();

    let refused = connect(&server, &client_key, &server_key).await;

    assert!(matches!(refused, Err(ConnectError::Closed { .. })), "{refused:?}");
    who_am_i(&first).await.unwrap();
}

#[tokio::test]
async fn request_under_way_is_answered_before_the_listener_ends() {
    let (server_key, client_key) = (node(1), node(2));
    let mut server = start(&server_key, &client_key, |_| ()).await;
    let channel = connect(&server, &client_key, &server_key).await.unwrap();
    let held = tokio::spawn(async move { request(&channel, "/lockbox.test.Mirror/Hold").await });
    assert_eq!(server.held.recv().await, Some(Held::Began));

    let release = server.release.clone();
    let address = server.address.clone();
    let stopped = server.stop();
    // The port is closed to new connections first; only then is the request released.
    while TcpStream::connect(&address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    release.notify_one();

    held.await.unwrap().unwrap();
    stopped.await.unwrap();
}

#[tokio::test]
async fn request_that_does_not_end_is_dropped_after_the_grace_period() {
    let (server_key, client_key) = (node(1), node(2));
    let mut server = start(&server_key, &client_key, |limits| {
        limits.shutdown_grace = Duration::ZERO
    })
    .await;
    let channel = connect(&server, &client_key, &server_key).await.unwrap();
    let held = tokio::spawn(async move { request(&channel, "/lockbox.test.Mirror/Hold").await });
    assert_eq!(server.held.recv().await, Some(Held::Began));

    let mut events = std::mem::replace(&mut server.held, tokio::sync::mpsc::unbounded_channel().1);
    server.stop().await.unwrap();

    // A handler that lived on would hold the store of a daemon that is already gone.
    assert_eq!(events.recv().await, Some(Held::Dropped));
    held.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn unknown_service_is_unimplemented() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |_| ()).await;
    let channel = connect(&server, &client_key, &server_key).await.unwrap();

    for path in ["/lockbox.test.Mirro/Caller", "/lockbox.test.Mirror2/Caller", "/"] {
        assert_eq!(
            request(&channel, path).await.unwrap_err().code(),
            Code::Unimplemented,
            "{path}"
        );
    }
}

#[tokio::test]
async fn closed_port_is_told_apart_from_a_refusal() {
    let (server_key, client_key) = (node(1), node(2));
    let closed = TcpListener::bind("127.0.0.3:0").await.unwrap().local_addr().unwrap();

    let tls = raw_key::client_config(&client_key, server_key.public_key().0);
    let outcome = lockbox_rpc::transport::connect_raw_key(&closed.to_string(), tls, &Default::default()).await;

    assert!(matches!(outcome, Err(ConnectError::Unreachable { .. })), "{outcome:?}");
}

async fn start(server: &NodeKey, client: &NodeKey, change: impl FnOnce(&mut ServerLimits)) -> Server {
    let mut limits = limits();
    change(&mut limits);
    let tls = raw_key::server_config(server, Admitted::these(&[client]));
    Server::start_at("127.0.0.1:0", tls, limits).await
}
