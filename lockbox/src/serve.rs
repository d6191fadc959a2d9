//! The daemon, from start to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockbox_core::limits::MAX_KEY_FILE_BYTES;
use lockbox_core::slots::SlotSecret;
use lockbox_host::signals::Starting;
use lockbox_host::{console, log, start};
use lockbox_rpc::notify;
use lockbox_rpc::transport::{
    AddressLimits, BindError, LocalListener, Peer, ServerLimits, Services, Strangers, serve_unix,
};
use lockbox_store_disk::{When, once_in};
use rustix::process::geteuid;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::engine::{Engine, Stop};
use crate::files::{self, FileError};
use crate::folder::{Folder, FolderError};
use crate::node::{Node, UnsealError};
use crate::{key_socket, local_service, memory, reload};

/// Threads that may wait for the lockbox's lock or for the disk. Each step of a transfer needs one.
const BLOCKING_THREADS: usize = 64;

/// Connections of one user to the socket. Root and the daemon's own user may have more.
const CONNECTIONS_PER_USER: usize = 256;

/// Connections of users that are not let in, and how long one lasts: enough to be told.
const REFUSED_CONNECTIONS: usize = 16;
const REFUSED_LIFETIME: Duration = Duration::from_secs(5);

/// What the store's failures end the process with: `EX_IOERR` of sysexits.
const EXIT_STORE: i32 = 74;

/// Why the daemon did not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("the socket can't be opened")]
    Bind(#[from] BindError),
    #[error("the key file can't be used")]
    KeyFile(#[from] FileError),
    #[error("it can't be unsealed with the key file")]
    Unseal(#[from] UnsealError),
    #[error("the runtime can't be started: {0}")]
    Runtime(#[from] std::io::Error),
}

/// What the command line says beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    pub ports_file: Option<PathBuf>,
    pub unseal_key_file: Option<PathBuf>,
}

/// Serves until it is told to stop.
pub fn run(config: Config, options: ServeOptions) -> Result<(), ServeError> {
    if let Err(error) = memory::lock() {
        tracing::warn!("{error}");
    }
    let folder = Folder::find(&config.state_dir)?;
    folder.require_backend(config.store)?;
    start::warn_of_user(&config.state_dir);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    runtime.block_on(serve(config, folder, options))
}

/// Compacts a store that wastes much space. A store that can't be compacted is served as it is.
fn compact(folder: &Folder) {
    let mut progress = once_in(Duration::from_secs(5), |progress| {
        notify::still_starting();
        tracing::info!("compacting the store: {progress}");
    });
    match folder.compact_store(When::IfWasteful, &mut progress) {
        Ok(None) => {}
        Ok(Some(copied)) => tracing::info!(
            records = copied.records,
            bytes_before = copied.bytes_before,
            bytes_after = copied.bytes_after,
            "the store was compacted"
        ),
        Err(error) => tracing::warn!(%error, "the store was not compacted"),
    }
}

async fn serve(config: Config, folder: Folder, options: ServeOptions) -> Result<(), ServeError> {
    let signals = Starting::catch()?;
    if !folder.is_read_only() {
        compact(&folder);
    }
    let (mode, key_mode) = socket_modes(&config);
    let listener = LocalListener::bind(&config.socket, mode).await?;
    let keys = match &config.key_socket {
        Some(keys) => Some(LocalListener::bind(&keys.path, key_mode).await?),
        None => None,
    };
    let node = Node::new(config, folder, Engine::new(stop_at_once()), options.ports_file);
    node.ports.write(None);
    if let Some(path) = &options.unseal_key_file {
        unseal(&node, path).await?;
    }
    let service = Services::new()
        .with(local_service::service(Arc::clone(&node)))
        .with(local_service::lifecycle::service(Arc::clone(&node)));
    // Dropping the task closes the socket and its connections.
    let mut key_server = JoinSet::new();
    if let Some(keys) = keys {
        key_server.spawn(key_socket::run(Arc::clone(&node), keys));
    }
    let signals = signals.serving()?;
    announce(&node);
    let reloading = Arc::clone(&node);
    let stopped = signals.until_stopped(move || reload::reload(&reloading));
    serve_unix(listener, service, socket_limits(&node), stopped).await;
    key_server.shutdown().await;
    node.seal().await;
    tracing::info!("stopped");
    Ok(())
}

async fn unseal(node: &Arc<Node>, path: &Path) -> Result<(), ServeError> {
    start::require_regular(path).map_err(files::failed("read", path))?;
    let secret = files::read_private(path, MAX_KEY_FILE_BYTES)?;
    node.unseal(SlotSecret::KeyFile(secret)).await?;
    Ok(())
}

/// From here on connections are answered: the socket listens, and what waits in it is served next.
fn announce(node: &Node) {
    let config = node.config();
    let socket = config.socket.display();
    let state = if node.engine.is_sealed() { "sealed" } else { "unsealed" };
    tracing::info!(%socket, state, version = crate::VERSION, "ready");
    if let Err(error) = console::answer(&format!("ready {socket} {state}\n")) {
        tracing::warn!(%error, "the line \"ready\" was not written to standard output");
    }
    notify::ready();
}

/// A user that is not let in is told so, and can do no more: few connections, and short ones. One that is let in can't take
/// all places from the others.
fn socket_limits(node: &Arc<Node>) -> ServerLimits {
    let node = Arc::clone(node);
    let is_allowed = move |peer: Peer<'_>| {
        let config = node.config();
        matches!(peer, Peer::Local(peer) if local_service::may_use(&config.allowed_uids, &config.allowed_gids, peer))
    };
    ServerLimits {
        connections_per_peer: CONNECTIONS_PER_USER,
        exempt_uids: vec![0, geteuid().as_raw()],
        strangers: Some(Strangers {
            connections: AddressLimits::total(REFUSED_CONNECTIONS),
            lifetime: REFUSED_LIFETIME,
            ..Strangers::unless(is_allowed)
        }),
        ..ServerLimits::default()
    }
}

/// The modes of the socket and of the key socket.
pub(crate) fn socket_modes(config: &Config) -> (u32, u32) {
    let keys = config.key_socket.as_ref();
    let key_uids = keys.map_or(&[][..], |keys| &keys.allowed_uids);
    (
        socket_mode(&config.allowed_uids, &config.allowed_gids),
        socket_mode(key_uids, &[]),
    )
}

/// Only the daemon's own user and root by the file's mode, unless others are to be let in: then the kernel's word on who
/// calls decides.
fn socket_mode(uids: &[u32], gids: &[u32]) -> u32 {
    let own = [0, geteuid().as_raw()];
    let only_own = uids.iter().all(|uid| own.contains(uid)) && gids.is_empty();
    if only_own { 0o600 } else { 0o666 }
}

/// Nothing is unwound and nothing more is written: whatever was acknowledged is durable, and nothing else may be.
fn stop_at_once() -> Stop {
    Arc::new(|why| {
        tracing::error!("{why}; stopping at once");
        log::exit(EXIT_STORE);
    })
}
