//! The TLS listener.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::TcpConnectInfo;
use tracing::{debug, warn};

use super::connection::{Caller, Gate, RequestService, Stage, StageControl, StageWatch, pause_after};
use super::crowd::{RecentAddresses, Room, Seat};
use super::limits::{LINGER, LINGER_BYTES};
use super::{PeerIdentity, ServerLimits};
use crate::tls::{ALPN_H2, KeyRefusal, PeerKey};

/// A listener's TLS configuration. It can be replaced while the listener serves; clones share one configuration.
#[derive(Clone, Debug)]
pub struct SharedTls(watch::Sender<Arc<ServerConfig>>);

impl SharedTls {
    /// Uses `config` for the handshakes that begin from now on. Open connections stay as they are.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        self.0.send_replace(config);
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.borrow()))
    }
}

impl From<Arc<ServerConfig>> for SharedTls {
    fn from(config: Arc<ServerConfig>) -> Self {
        Self(watch::Sender::new(config))
    }
}

/// Serves the requests of the peers that `tls` lets in, until `shutdown` completes and the last connection is closed.
///
/// `tls` is made by [`raw_key::server_config`](crate::tls::raw_key::server_config) or
/// [`x509::server_config`](crate::tls::x509::server_config); each request's extensions hold the peer's
/// [`PeerIdentity`]. Dropping the future closes the listener and all of its connections at once.
pub async fn serve_tls<S: RequestService>(
    listener: TcpListener,
    tls: impl Into<SharedTls>,
    service: S,
    limits: ServerLimits,
    shutdown: impl Future<Output = ()>,
) {
    let port = Arc::new(Port {
        tls: tls.into(),
        gate: Gate::new(limits, true),
        recent: RecentAddresses::default(),
    });
    let stage = StageControl::new();
    tokio::select! {
        () = accept_all(listener, service, &port, &stage) => (),
        () = shutdown => (),
    }
    stage.finish(port.gate.limits().shutdown_grace).await;
}

/// What the connections of one listener share.
struct Port {
    tls: SharedTls,
    gate: Gate,
    recent: RecentAddresses,
}

/// Never ends by itself. Owns the listener, so that the port is free as soon as this is dropped.
async fn accept_all<S: RequestService>(listener: TcpListener, service: S, port: &Arc<Port>, stage: &StageControl) {
    let limits = port.gate.limits();
    let handshakes = Room::new("handshakes", limits.handshakes, limits.pressed_handshake_timeout);
    let running = Arc::new(Semaphore::new(limits.handshakes.total));
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let seat = handshakes.enter(port.recent.holder(peer.ip()));
                // The handshake that gave way ends at once.
                let running = Arc::clone(&running).acquire_owned().await;
                let running = running.expect("the semaphore is never closed");
                let port = Arc::clone(port);
                let slot = (seat, running);
                tokio::spawn(serve_peer(port, service.clone(), tcp, peer, slot, stage.watch()));
            }
            Err(error) => pause_after(&error).await,
        }
    }
}

async fn serve_peer<S: RequestService>(
    port: Arc<Port>,
    service: S,
    tcp: TcpStream,
    peer: SocketAddr,
    mut slot: (Seat, OwnedSemaphorePermit),
    mut stage: StageWatch,
) {
    let proved = tokio::select! {
        biased;
        proved = prove(&port, tcp, peer) => proved,
        () = slot.0.lost() => {
            debug!(%peer, "handshake closed to make room for another");
            None
        }
        () = stage.reached(Stage::Draining) => None,
    };
    drop(slot);
    let Some((mut tls, identity)) = proved else { return };

    let connection = TcpConnectInfo {
        local_addr: tls.get_ref().0.local_addr().ok(),
        remote_addr: Some(peer),
    };
    let caller = Caller::Remote { identity, connection };
    let place = match port.gate.admit(&caller) {
        Ok(place) => place,
        Err(full) => {
            warn!(%peer, reason = %full, "closing a new connection");
            let _ = timeout(LINGER, tls.shutdown()).await;
            return;
        }
    };
    if !place.is_strangers() {
        port.recent.note(peer.ip());
    }
    let outcome = port.gate.serve(tls, service, caller.clone(), place, stage).await;
    if let Err(error) = outcome {
        debug!(%peer, error = &*error as &dyn std::error::Error, "connection failed");
    }
    // It may have lasted for long, or its peer may have become known.
    if port.gate.knows(&caller) {
        port.recent.note(peer.ip());
    }
}

/// Performs the handshake, and tells the log why when it fails. The peer learns the TLS alert and no more.
async fn prove(port: &Port, tcp: TcpStream, peer: SocketAddr) -> Option<(TlsStream<TcpStream>, PeerIdentity)> {
    if let Err(error) = tcp.set_nodelay(true) {
        debug!(%peer, %error, "connection lost before the handshake");
        return None;
    }
    let handshake = port.tls.acceptor().accept(tcp).into_fallible();
    let tls = match timeout(port.gate.limits().handshake_timeout, handshake).await {
        Ok(Ok(tls)) => tls,
        Ok(Err((error, tcp))) => {
            log_refusal(peer, &error);
            linger(tcp).await;
            return None;
        }
        Err(_) => {
            debug!(%peer, "handshake took too long");
            return None;
        }
    };

    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(ALPN_H2) {
        warn!(%peer, "connection refused: the peer did not ask for HTTP/2 (ALPN h2)");
        return None;
    }
    // Both configurations demand a proof from the client, so there is a first certificate.
    let identity = session.peer_certificates()?.first().map(|first| identity(first))?;
    Some((tls, identity))
}

/// A verified X.509 certificate can't be taken for a raw key: what a raw key's verifier admits is one exact encoding of
/// 44 bytes, which no certificate has.
fn identity(certificate: &[u8]) -> PeerIdentity {
    match PeerKey::from_spki(certificate) {
        Some(key) => PeerIdentity::RawKey(key.0),
        None => PeerIdentity::Certificate(Arc::from(certificate)),
    }
}

fn log_refusal(peer: SocketAddr, error: &io::Error) {
    let Some(tls) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        debug!(%peer, %error, "connection lost during the handshake");
        return;
    };
    match KeyRefusal::find(tls) {
        Some(refusal) => warn!(%peer, reason = %refusal, "handshake refused"),
        None => warn!(%peer, reason = %tls, "handshake refused"),
    }
}

/// Closes so that the alert arrives: with bytes of the peer's unread, the kernel would answer them with a reset, and
/// the reset could overtake the alert.
async fn linger(mut tcp: TcpStream) {
    let drain = async {
        tcp.shutdown().await?;
        let mut left = LINGER_BYTES;
        let mut discarded = [0; 1024];
        while left > 0 {
            match tcp.read(&mut discarded).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // Whether the peer listened to the end or not, there is nothing left to do for it.
    let _ = timeout(LINGER, drain).await;
}
