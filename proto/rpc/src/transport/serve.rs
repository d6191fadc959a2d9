//! The TLS listener.

use std::io;
use std::net::{IpAddr, SocketAddr};
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
use super::limits::{LINGER, LINGER_BYTES};
use super::places::{Full, Taken, Tally, network};
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
}

/// Never ends by itself. Owns the listener, so that the port is free as soon as this is dropped.
async fn accept_all<S: RequestService>(listener: TcpListener, service: S, port: &Arc<Port>, stage: &StageControl) {
    let handshakes = Arc::new(Semaphore::new(port.gate.limits().handshakes));
    let addresses = Tally::new();
    loop {
        let slot = Arc::clone(&handshakes).acquire_owned().await;
        let slot = slot.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let limit = port.gate.limits().handshakes_per_address;
                let Some(turn) = addresses.take(network(peer.ip()), limit) else {
                    debug!(%peer, limit, "closing a new connection: too many handshakes with this address");
                    continue;
                };
                let port = Arc::clone(port);
                let slot = (slot, turn);
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
    slot: (OwnedSemaphorePermit, Taken<IpAddr>),
    mut stage: StageWatch,
) {
    let proved = tokio::select! {
        proved = prove(&port, tcp, peer) => proved,
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
            log_full(peer, full);
            let _ = timeout(LINGER, tls.shutdown()).await;
            return;
        }
    };
    let outcome = port.gate.serve(tls, service, caller, place, stage).await;
    if let Err(error) = outcome {
        debug!(%peer, error = &*error as &dyn std::error::Error, "connection failed");
    }
}

/// What strangers do must not fill the log.
fn log_full(peer: SocketAddr, full: Full) {
    match full {
        Full::Listener | Full::Peer => warn!(%peer, reason = %full, "closing a new connection"),
        Full::Strangers | Full::Address => debug!(%peer, reason = %full, "closing a new connection"),
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
