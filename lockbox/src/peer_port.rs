//! The peer port: open while the lockbox is unsealed and has a roster, and closed otherwise.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use lockbox_authz::PublicKey;
use lockbox_rpc::tls::raw_key::{self, PeerPolicy};
use lockbox_rpc::transport::{ServerLimits, serve_tls};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::engine::Cluster;
use crate::node::Node;
use crate::peer_service;

/// Lets in the lockboxes that the roster has admitted and not retired.
struct AdmittedPeers {
    cluster: watch::Receiver<Option<Arc<Cluster>>>,
}

impl PeerPolicy for AdmittedPeers {
    fn admits(&self, key: &[u8; 32]) -> bool {
        let cluster = self.cluster.borrow();
        let roster = cluster.as_ref().and_then(|cluster| cluster.roster.as_ref());
        let key = PublicKey::from_slice("peer key", key);
        roster.is_some_and(|roster| key.is_ok_and(|key| roster.admitted_by_key(&key).is_some()))
    }
}

impl fmt::Debug for AdmittedPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmittedPeers").finish_non_exhaustive()
    }
}

/// Runs until it is dropped, which closes the port and every connection at once.
pub(crate) async fn run(node: Arc<Node>) {
    let mut cluster = node.engine.watch_cluster();
    let has_roster = |cluster: &Option<Arc<Cluster>>| cluster.as_ref().is_some_and(|cluster| cluster.roster.is_some());
    if cluster.wait_for(has_roster).await.is_err() {
        return;
    }
    let (listener, bound) = bind(&node).await;
    let key = match node.identity().await {
        Ok(key) => key,
        Err(error) => return tracing::error!(%error, "the peer port can't be opened"),
    };
    let tls = raw_key::server_config(&key, Arc::new(AdmittedPeers { cluster }));
    let address = node.config().peer_address.clone().unwrap_or_else(|| bound.to_string());
    tracing::info!(%bound, address, "the peer port is open");
    let service = peer_service::service(Arc::clone(&node));
    let _closing = Closing(Arc::clone(&node));
    node.ports.write(Some((bound, &address)));
    node.peer_address.send_replace(Some(address));
    serve_tls(listener, tls, service, ServerLimits::default(), std::future::pending()).await;
}

/// Says that the port is closed, when it is.
struct Closing(Arc<Node>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.ports.write(None);
        tracing::info!("the peer port is closed");
    }
}

/// Another program may have the port for a while: a lockbox that is unsealed serves its own machine meanwhile.
async fn bind(node: &Node) -> (TcpListener, SocketAddr) {
    let mut backoff = Backoff::default();
    loop {
        let bound = TcpListener::bind(node.config().peer_listen).await;
        match bound.and_then(|listener| listener.local_addr().map(|bound| (listener, bound))) {
            Ok(bound) => return bound,
            Err(error) => {
                let address = node.config().peer_listen;
                tracing::error!(%error, %address, "the peer port can't be bound; free it, or change peer_listen");
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}
