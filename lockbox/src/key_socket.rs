//! Where systemd fetches keys: a Unix socket that stands as key file in crypttab(5), or as source of `LoadCredential=` in
//! systemd.exec(5).
//!
//! There is no request. A client binds its end to an abstract address that says what it asks for, connects, and reads the
//! key's bytes to the end. A refusal is an end without bytes, since the protocol has no other; the log says the reason.
//!
//! | asked for | the key |
//! |---|---|
//! | volume NAME | the one that `volumes` names for it, else the key named NAME |
//! | credential CREDENTIAL of UNIT | the one that `credentials` names for it, else the key named UNIT/CREDENTIAL |
//!
//! Names mean what they mean everywhere (`lockbox_core::lifecycle::naming`). The key that is found is followed through its
//! rotations: systemd is given the key that has the volume's data now.
//!
//! A volume's name has no slash, so neither can be asked for as the other. What is in the address is the client's word; who
//! the client is, is the kernel's. So it is the user that decides, and a user that is let in may have any key by name.
//!
//! A sealed lockbox answers nothing. The client's connection is kept for a while, so that a machine that boots waits for
//! its operator to unseal; then it is closed.

mod address;
mod settings;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lockbox_authz::KeyId;
use lockbox_core::lockbox::LockboxError;
use lockbox_core::secrets::KeyMaterial;
use lockbox_rpc::transport::{LocalListener, LocalPeer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::geteuid;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::Sealed;
use crate::node::Node;
use address::{Asked, MalformedAddress};
pub use settings::KeySocket;
pub(crate) use settings::{RawKeySocket, beside};

/// Connections of root and of the daemon's own user at once, those that wait for unsealing included: many times the volumes
/// and units of one machine.
const CONNECTIONS: usize = 256;

/// Those of all other users together, so that they keep no volume from being opened.
const CONNECTIONS_OF_OTHERS: usize = 64;

/// For a client to take the bytes. They fit into the socket's buffer, so this is for one that made the buffer tiny.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How soon a client that went away leaves its place to another.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Why a client got nothing.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this user may not use the key socket: see allowed_uids of [key_socket]")]
    NotAllowed,
    #[error("as many connections as it may have are open")]
    Full,
    #[error(transparent)]
    Address(#[from] MalformedAddress),
    #[error("the lockbox stayed sealed: run `lockbox unseal`, and start the unit again")]
    Sealed(#[from] Sealed),
    #[error("the client went away before the lockbox was unsealed")]
    WentAway,
    #[error("refused; [key_socket] of the configuration can give another id or name")]
    Lockbox(#[from] LockboxError),
    #[error("the key could not be sent")]
    Send(#[from] io::Error),
}

/// Serves until it is dropped, which closes the socket and its connections.
pub(crate) async fn run(node: Arc<Node>, listener: LocalListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let places_of_others = Arc::new(Semaphore::new(CONNECTIONS_OF_OTHERS));
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer, address) = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        if let Err(refusal) = admit(&node, peer) {
            log(None, peer, Err(&refusal));
            continue;
        }
        let is_owner = [0, geteuid().as_raw()].contains(&peer.uid);
        let places = if is_owner { &places } else { &places_of_others };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            log(None, peer, Err(&Refusal::Full));
            continue;
        };
        let asked = Asked::from_address(address.as_abstract_name());
        let node = Arc::clone(&node);
        connections.spawn(async move {
            let _place = place;
            match asked {
                Ok(asked) => {
                    let outcome = answer(&node, stream, peer, &asked).await;
                    log(Some(&asked), peer, outcome.as_ref().copied());
                }
                Err(error) => log(None, peer, Err(&error.into())),
            }
        });
    }
}

fn admit(node: &Node, peer: LocalPeer) -> Result<(), Refusal> {
    let config = node.config();
    match config
        .key_socket
        .as_ref()
        .is_some_and(|settings| settings.allowed_uids.contains(&peer.uid))
    {
        true => Ok(()),
        false => Err(Refusal::NotAllowed),
    }
}

/// Gives the key that was sent.
async fn answer(node: &Arc<Node>, mut stream: UnixStream, peer: LocalPeer, asked: &Asked) -> Result<KeyId, Refusal> {
    let at_most = node.config().key_socket.as_ref().map(|settings| settings.unseal_wait);
    tokio::select! {
        unsealed = wait_for_unseal(node, at_most.ok_or(Refusal::NotAllowed)?) => unsealed?,
        () = hung_up(&stream) => return Err(Refusal::WentAway),
    }
    // Once more, as the configuration may have been reloaded while the lockbox was sealed.
    admit(node, peer)?;
    let config = node.config();
    let settings = config.key_socket.as_ref().ok_or(Refusal::NotAllowed)?;
    let named = settings.key_for(asked);
    let found = node
        .engine
        .read(move |lockbox| lockbox.successor(lockbox.resolve_key(&named)?));
    let key_id = found.await??;
    let material = reveal(node, key_id).await?;
    timeout(WRITE_TIMEOUT, async {
        stream.write_all(material.expose()).await?;
        stream.shutdown().await
    })
    .await
    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(key_id)
}

async fn wait_for_unseal(node: &Node, at_most: Duration) -> Result<(), Sealed> {
    let mut cluster = node.engine.watch_cluster();
    let unsealed = cluster.wait_for(Option::is_some);
    match timeout(at_most, unsealed).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Sealed),
    }
}

/// Ends once the client has closed its end. Looked at now and then: systemd shuts down the direction that it does not use, so
/// that its end reads as closed from the start, and of the rest tokio gives no event of its own.
async fn hung_up(stream: &UnixStream) {
    let mut looks = tokio::time::interval(BETWEEN_LOOKS);
    loop {
        looks.tick().await;
        let mut look = [PollFd::new(stream, PollFlags::empty())];
        // A hang-up is reported without being asked for. What can't be looked at is not taken for one.
        let at_once = Timespec::default();
        if poll(&mut look, Some(&at_once)).is_ok() && look[0].revents().contains(PollFlags::HUP) {
            return;
        }
    }
}

/// Durable before it is served: a volume must not be made with a key that a power cut could still take away.
async fn reveal(node: &Node, key_id: KeyId) -> Result<KeyMaterial, Refusal> {
    let revealed = node.engine.read_durable(move |lockbox| lockbox.reveal_key(key_id));
    Ok(revealed.await??.material)
}

fn log(asked: Option<&Asked>, peer: LocalPeer, outcome: Result<KeyId, &Refusal>) {
    let asked = asked.map_or_else(|| "nothing".to_owned(), Asked::to_string);
    match outcome {
        Ok(key) => tracing::info!(%key, %asked, uid = peer.uid, pid = peer.pid, "served"),
        Err(refusal) => {
            let why = crate::chain(refusal);
            tracing::warn!(%asked, %why, uid = peer.uid, pid = peer.pid, "not served");
        }
    }
}
