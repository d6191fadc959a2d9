//! The daemon as its parts see it: the engine, and what they tell each other.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockbox_authz::Labels;
use lockbox_core::slots::{SlotError, SlotSecret};
use lockbox_core::vault::Verification;
use lockbox_rpc::tls::TlsError;
use lockbox_rpc::tls::raw_key::NodeKey;
use rand_core::Rng;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinSet;

use crate::broker_link::{self, LinkState, Refusals};
use crate::clock::BrokerClock;
use crate::config::Config;
use crate::destruction;
use crate::engine::{Engine, OpenError, Sealed};
use crate::entropy::rng;
use crate::expired;
use crate::folder::{Folder, FolderError};
use crate::peer_port;
use crate::ports::PortsFile;
use crate::puller::{self, Pulls};
use crate::scan;

/// How long a seal waits for the broker to hear of it. The root key and the volume keys are gone before; the connection has the
/// identity key until it ends.
const TELL_SEALED: Duration = Duration::from_secs(5);

/// What the parts of the daemon share.
pub struct Node {
    config: Mutex<Arc<Config>>,
    pub folder: Folder,
    pub engine: Arc<Engine>,
    /// What the puller is to do.
    pub(crate) pulls: Pulls,
    /// What the broker is to hear besides the ledger's reports.
    pub(crate) refusals: Refusals,
    /// How the link to the broker stands.
    pub(crate) link: watch::Sender<LinkState>,
    pub(crate) broker_clock: BrokerClock,
    /// What the scan of the store has found; `None` while it is under way.
    pub(crate) scan: watch::Sender<Option<Verification>>,
    /// host:port by which other lockboxes reach this one; `None` while the peer port is closed.
    pub(crate) peer_address: watch::Sender<Option<String>>,
    /// Held while a join is under way, so that the link does not ask at the same time. The labels are those wished for.
    pub(crate) joining: AsyncMutex<Labels>,
    pub(crate) ports: PortsFile,
    /// Random, and another one with each start. By it a broker tells two machines with one identity.
    pub(crate) instance_id: [u8; 16],
    /// Held while it is unsealed or sealed.
    running: AsyncMutex<Option<Tasks>>,
}

/// The tasks of an unsealed lockbox. Dropping them ends them.
struct Tasks {
    serving: JoinSet<()>,
    /// The link to a broker, which outlives the seal by the message that says so.
    link: JoinSet<()>,
}

/// Why a lockbox was not unsealed.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the lockbox is stopping")]
    Stopping,
}

/// Why a connection can't be made with this lockbox's identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Sealed(#[from] Sealed),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Node {
    pub fn new(config: Config, folder: Folder, engine: Arc<Engine>, ports_file: Option<PathBuf>) -> Arc<Self> {
        let ports = PortsFile::new(ports_file, &config);
        engine.set_caps(config.caps);
        let mut instance_id = [0; 16];
        rng().fill_bytes(&mut instance_id);
        Arc::new(Self {
            config: Mutex::new(Arc::new(config)),
            folder,
            engine,
            pulls: Pulls::default(),
            refusals: Refusals::default(),
            link: watch::Sender::new(LinkState::default()),
            broker_clock: BrokerClock::default(),
            scan: watch::Sender::new(None),
            peer_address: watch::Sender::new(None),
            joining: AsyncMutex::default(),
            ports,
            instance_id,
            running: AsyncMutex::new(None),
        })
    }

    /// The configuration that is in force now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&lock(&self.config))
    }

    pub(crate) fn set_config(&self, config: Config) {
        *lock(&self.config) = Arc::new(config);
    }

    /// Opens the root key with a slot's secret, and begins to serve. Gives the slot's number.
    ///
    /// One attempt at a time: guessing is as slow as one Argon2id after the other. With a lockbox that is unsealed already,
    /// only the secret is checked.
    ///
    /// Completes even if the caller drops the future: otherwise keys would stay open without the tasks that serve and seal them.
    pub async fn unseal(self: &Arc<Self>, secret: SlotSecret) -> Result<u32, UnsealError> {
        let node = Arc::clone(self);
        let unsealing = tokio::spawn(async move { node.unseal_to_the_end(secret).await });
        unsealing.await.map_err(|_| UnsealError::Stopping)?
    }

    async fn unseal_to_the_end(self: &Arc<Self>, secret: SlotSecret) -> Result<u32, UnsealError> {
        let mut running = self.running.lock().await;
        let node = Arc::clone(self);
        let opened = tokio::task::spawn_blocking(move || node.open(&secret));
        let slot_id = opened.await.map_err(|_| UnsealError::Stopping)??;
        if running.is_none() {
            self.end_with_retired().await;
            *running = Some(self.start());
            tracing::info!(slot_id, "unsealed");
        }
        Ok(slot_id)
    }

    /// Stops serving and forgets every secret. A lockbox that is sealed already stays so. Completes even if the caller drops the
    /// future.
    pub async fn seal(self: &Arc<Self>) {
        let node = Arc::clone(self);
        let sealing = tokio::spawn(async move { node.seal_to_the_end().await });
        // It can only fail when the runtime is going away, and then everything is dropped anyway.
        let _ = sealing.await;
    }

    async fn seal_to_the_end(&self) {
        let mut running = self.running.lock().await;
        let Some(mut tasks) = running.take() else { return };
        // Each task that is dropped drops its sessions, connections and listeners.
        tasks.serving.shutdown().await;
        self.peer_address.send_replace(None);
        self.scan.send_replace(None);
        self.pulls.clear();
        self.refusals.clear();
        let engine = Arc::clone(&self.engine);
        // It can only fail when the runtime is going away, and then everything is dropped anyway.
        let _ = tokio::task::spawn_blocking(move || engine.seal()).await;
        tracing::info!("sealed");
        let is_connected = self.link.borrow().connected;
        if is_connected && tokio::time::timeout(TELL_SEALED, tasks.link.join_next()).await.is_err() {
            tracing::warn!("the broker was not told that this lockbox is sealed: it did not answer");
        }
        tasks.link.shutdown().await;
        self.link.send_replace(LinkState::default());
    }

    /// This lockbox's identity for a TLS handshake.
    pub(crate) async fn identity(&self) -> Result<NodeKey, IdentityError> {
        let key = self
            .engine
            .read(|lockbox| NodeKey::from_seed(&lockbox.identity().identity_key.seed()));
        Ok(key.await??)
    }

    fn open(&self, secret: &SlotSecret) -> Result<u32, UnsealError> {
        let header = self.folder.read_header()?;
        let (slot_id, root) = header.open(secret)?;
        if self.engine.is_sealed() {
            // Once more, as it may have been converted since the daemon was started.
            self.folder.require_backend(self.config().store)?;
            self.engine.open(&self.folder, header, root)?;
        }
        Ok(slot_id)
    }

    /// Does what follows from the roster's retirements once more: power may have failed after they were applied, and before
    /// that.
    async fn end_with_retired(&self) {
        if !self.engine.cluster().is_ok_and(|cluster| cluster.roster.is_some()) {
            return;
        }
        let step = self
            .engine
            .step(|lockbox, now_ms, rng| lockbox.end_with_retired(now_ms, rng));
        if let Err(error) = step.await {
            tracing::error!(%error, "transfers with retired lockboxes are not ended yet");
        }
    }

    fn start(self: &Arc<Self>) -> Tasks {
        let mut serving = JoinSet::new();
        serving.spawn(peer_port::run(Arc::clone(self)));
        serving.spawn(puller::run(Arc::clone(self)));
        serving.spawn(scan::run(Arc::clone(self)));
        serving.spawn(destruction::run(Arc::clone(self)));
        serving.spawn(expired::run(Arc::clone(self)));
        let mut link = JoinSet::new();
        link.spawn(broker_link::run(Arc::clone(self)));
        Tasks { serving, link }
    }
}

/// Locks what no panic can leave half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use lockbox_core::slots::SlotSecret;
    use zeroize::Zeroizing;

    use super::Node;
    use crate::config::Config;
    use crate::engine::Engine;
    use crate::folder::Folder;

    /// As when the operator interrupts the command: the daemon must not be left open without what serves and seals it.
    #[tokio::test]
    async fn an_unseal_whose_caller_goes_away_can_be_sealed() {
        let secret = || SlotSecret::KeyFile(Zeroizing::new(vec![7; 32]));
        let dir = tempfile::tempdir().unwrap();
        let (folder, _) = Folder::init(&dir.path().join("state"), "a", &secret()).unwrap();
        let text = "state_dir = \"state\"\nsocket = \"s\"\npeer_listen = \"127.0.0.1:0\"\n";
        let config = Config::parse(Path::new("/lockbox.toml"), text).unwrap();
        let engine = Engine::new(Arc::new(|why| panic!("stopped: {why}")));
        let node = Node::new(config, folder, engine, None);
        let mut cluster = node.engine.watch_cluster();
        {
            let mut unsealing = Box::pin(node.unseal(secret()));
            tokio::select! {
                biased;
                done = &mut unsealing => panic!("it takes time: {done:?}"),
                () = std::future::ready(()) => {}
            }
        }
        cluster.wait_for(Option::is_some).await.unwrap();
        node.seal().await;
        assert!(node.engine.is_sealed(), "the keys are still open");
    }
}
