//! What a TLS listener does when there is too much, too slow, or time to stop.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::common::{Admitted, Held, Server, connect, handshake, handshake_on, limits, node, request, who_am_i};
use http_body::Frame;
use lockbox_rpc::tls::raw_key::{self, NodeKey};
use lockbox_rpc::transport::{AddressLimits, ConnectError, Peer, PeerIdentity, ServerLimits, Strangers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt;

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn silent_connection_does_not_keep_others_out() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |limits| {
        limits.handshakes = AddressLimits::total(1);
        limits.handshake_timeout = FOR_EVER;
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

/// A stranger that sends all but the last byte would otherwise keep what it sent in memory for good.
#[tokio::test]
async fn request_that_does_not_arrive_is_given_up() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |limits| {
        limits.request_timeout = Duration::from_millis(100);
    })
    .await;
    let channel = connect(&server, &client_key, &server_key).await.unwrap();
    let (body, never) = unfinished(b"\0\0\0\0\x05half");

    let late = raw_request(&channel, body).await;

    assert_eq!(late, Some(Code::DeadlineExceeded));
    drop(never);
    who_am_i(&channel).await.unwrap();
}

/// A message's size is announced before it comes, and memory would be set aside for it.
#[tokio::test]
async fn rejects_stranger_that_announces_a_large_request() {
    let (server_key, client_key) = (node(1), node(2));
    let known = Arc::new(AtomicBool::new(false));
    let is_known = Arc::clone(&known);
    let server = start(&server_key, &client_key, |limits| {
        limits.request_timeout = Duration::from_secs(1);
        limits.strangers = Some(Strangers::unless(move |_| is_known.load(Ordering::Relaxed)));
    })
    .await;
    let channel = connect(&server, &client_key, &server_key).await.unwrap();
    who_am_i(&channel).await.unwrap();

    // 1 MiB.
    let (body, _never) = unfinished(b"\0\0\x10\0\0");
    assert_eq!(raw_request(&channel, body).await, Some(Code::OutOfRange));

    // The same connection may send it once its peer is known.
    known.store(true, Ordering::Relaxed);
    let (body, _never) = unfinished(b"\0\0\x10\0\0");
    assert_eq!(raw_request(&channel, body).await, Some(Code::DeadlineExceeded));
}

#[tokio::test]
async fn strangers_take_no_place_of_those_that_are_known() {
    let (server_key, known_key) = (node(1), node(2));
    let mut limits = limits();
    limits.connections = 1;
    limits.strangers = Some(Strangers {
        connections: AddressLimits::total(1),
        ..Strangers::unless(is(&known_key))
    });
    let tls = raw_key::server_config(&server_key, Admitted::these(&[&known_key, &node(3), &node(4)]));
    let mut server = Server::start_at("127.0.0.1:0", tls, limits).await;
    let known = connect(&server, &known_key, &server_key).await.unwrap();
    let stranger = connect(&server, &node(3), &server_key).await.unwrap();
    let held = tokio::spawn(async move { request(&stranger, "/lockbox.test.Mirror/Hold").await });
    assert_eq!(server.held.recv().await, Some(Held::Began));

    let newcomer = connect(&server, &node(4), &server_key).await.unwrap();

    // The stranger that came first has given way, with its request.
    assert_eq!(server.held.recv().await, Some(Held::Dropped));
    held.await.unwrap().unwrap_err();
    who_am_i(&newcomer).await.unwrap();
    who_am_i(&known).await.unwrap();
}

/// Each attacker holds as many silent connections as it can open, and the time for a handshake is never over.
#[tokio::test]
async fn silent_connections_keep_no_client_out() {
    let (server_key, client_key) = (node(1), node(2));
    let attackers = [[127, 1, 0, 1], [127, 2, 0, 1], [127, 3, 0, 1], [127, 4, 0, 1]];
    let neighbours = [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4], [127, 0, 0, 5]];
    let own = [[127, 0, 0, 1]];
    for (from, count) in [
        (&attackers[..2], 256),
        (&attackers, 500),
        (&neighbours, 500),
        (&own, 500),
    ] {
        let server = start(&server_key, &client_key, |limits| {
            limits.handshake_timeout = FOR_EVER;
            limits.pressed_handshake_timeout = FOR_EVER;
        })
        .await;
        let mut held = Vec::new();
        for from in from.iter().cycle().take(count) {
            held.push(silent(&server, *from).await);
        }

        let channel = connect(&server, &client_key, &server_key).await.unwrap();

        who_am_i(&channel).await.unwrap();
    }
}

/// A slow handshake of a member's is finished, however many strangers came after it.
#[tokio::test]
async fn address_of_an_authenticated_peer_gives_way_last() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |limits| {
        limits.handshakes = AddressLimits::total(2);
        limits.handshake_timeout = FOR_EVER;
        limits.pressed_handshake_timeout = FOR_EVER;
    })
    .await;
    who_am_i(&connect(&server, &client_key, &server_key).await.unwrap())
        .await
        .unwrap();
    let slow = silent(&server, [127, 0, 0, 1]).await;
    let mut stranger = silent(&server, [127, 1, 0, 1]).await;

    let _newcomer = silent(&server, [127, 2, 0, 1]).await;

    assert_eq!(stranger.read(&mut [0]).await.unwrap(), 0, "it has given way");
    let tls = Arc::unwrap_or_clone(raw_key::client_config(&client_key, server_key.public_key().0));
    handshake_on(slow, tls).await.unwrap();
}

#[tokio::test]
async fn handshakes_get_less_time_when_many_are_under_way() {
    let (server_key, client_key) = (node(1), node(2));
    let server = start(&server_key, &client_key, |limits| {
        limits.handshakes = AddressLimits::total(3);
        limits.handshake_timeout = FOR_EVER;
        limits.pressed_handshake_timeout = Duration::ZERO;
    })
    .await;
    let mut first = silent(&server, [127, 1, 0, 1]).await;
    let mut second = silent(&server, [127, 2, 0, 1]).await;

    // There is a place for it.
    let _third = silent(&server, [127, 3, 0, 1]).await;

    assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn strangers_connection_ends_and_one_that_became_known_stays() {
    for becomes_known in [false, true] {
        let (server_key, client_key) = (node(1), node(2));
        let asked = Arc::new(Notify::new());
        let was_asked = Arc::clone(&asked);
        let count = AtomicUsize::new(0);
        let mut server = start(&server_key, &client_key, |limits| {
            limits.shutdown_grace = Duration::ZERO;
            limits.strangers = Some(Strangers {
                lifetime: Duration::from_secs(1),
                // Asked when it connects, with its request, and when its time is over.
                ..Strangers::unless(move |_| {
                    let is_last = count.fetch_add(1, Ordering::Relaxed) == 2;
                    if is_last {
                        was_asked.notify_one();
                    }
                    becomes_known && is_last
                })
            });
        })
        .await;
        let channel = connect(&server, &client_key, &server_key).await.unwrap();
        let held = tokio::spawn(async move { request(&channel, "/lockbox.test.Mirror/Hold").await });
        assert_eq!(server.held.recv().await, Some(Held::Began));

        asked.notified().await;

        if becomes_known {
            server.release.notify_one();
            held.await.unwrap().unwrap();
        } else {
            assert_eq!(server.held.recv().await, Some(Held::Dropped));
            held.await.unwrap().unwrap_err();
        }
    }
}

/// One peer must not take the places of all.
#[tokio::test]
async fn peer_has_no_more_connections_than_one_may_have() {
    let (server_key, client_key, other_key) = (node(1), node(2), node(3));
    let mut limits = limits();
    limits.connections_per_peer = 1;
    let tls = raw_key::server_config(&server_key, Admitted::these(&[&client_key, &other_key]));
    let server = Server::start_at("127.0.0.1:0", tls, limits).await;
    let first = connect(&server, &client_key, &server_key).await.unwrap();

    let refused = connect(&server, &client_key, &server_key).await;

    assert!(matches!(refused, Err(ConnectError::Closed { .. })), "{refused:?}");
    who_am_i(&connect(&server, &other_key, &server_key).await.unwrap())
        .await
        .unwrap();
    who_am_i(&first).await.unwrap();
}

/// A connection from this address that says nothing.
async fn silent(server: &Server, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(server.address.parse().unwrap()).await.unwrap()
}

/// Knows one peer by its key.
fn is(known: &NodeKey) -> impl Fn(Peer<'_>) -> bool + Send + Sync + 'static {
    let known = known.public_key().0;
    move |peer| matches!(peer, Peer::Remote(PeerIdentity::RawKey(key)) if *key == known)
}

async fn start(server: &NodeKey, client: &NodeKey, change: impl FnOnce(&mut ServerLimits)) -> Server {
    let mut limits = limits();
    change(&mut limits);
    let tls = raw_key::server_config(server, Admitted::these(&[client]));
    Server::start_at("127.0.0.1:0", tls, limits).await
}

/// A body that begins with these bytes, and goes on until the other half is dropped.
fn unfinished(start: &'static [u8]) -> (Body, mpsc::UnboundedSender<Bytes>) {
    struct Unfinished(mpsc::UnboundedReceiver<Bytes>);
    impl HttpBody for Unfinished {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send(Bytes::from_static(start)).unwrap();
    (Body::new(Unfinished(receiver)), sender)
}

/// The gRPC status that a unary call with this body ends with.
async fn raw_request(channel: &Channel, body: Body) -> Option<Code> {
    let request = http::Request::post("http://localhost/lockbox.test.Mirror/Caller")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let answer = channel.clone().oneshot(request).await.unwrap();
    Status::from_header_map(answer.headers()).map(|status| status.code())
}
