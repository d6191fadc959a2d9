//! The daemon.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockbox_authz::Signer;
use lockbox_host::signals::{Signals, Starting};
use lockbox_host::{console, log, start};
use lockbox_rpc::notify;
use lockbox_rpc::tls::raw_key::{self, NodeKey};
use lockbox_rpc::transport::{ServerLimits, Services, serve_tls};
use lockbox_store::{Media, StoreFailure};
use lockbox_store_sled::{SledStore, When, once_in};
use tokio::net::TcpListener;

use crate::broker::Broker;
use crate::config::{Config, ConfigError};
use crate::files::{self, FileError};
use crate::port_certificates::PortCertificates;
use crate::registry::{InventoryBounds, OpenError, Registry};
use crate::reload::Reload;
use crate::{certificate_service, control_service, init, inventory_service, keyfile, node_service, notice_service};

/// Why the daemon did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error(
        "can't listen on {address}, which is {key} in broker.toml: {source}; choose another port, or stop what uses it"
    )]
    Bind {
        key: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("can't {action}: {source}")]
    Io { action: &'static str, source: io::Error },
    #[error("stopped: {0}")]
    Store(StoreFailure),
}

/// A broker whose two ports are bound and not served yet.
pub struct Bound {
    pub broker: Arc<Broker>,
    pub node: SocketAddr,
    pub control: SocketAddr,
    node_listener: TcpListener,
    control_listener: TcpListener,
    node_tls: Arc<rustls::ServerConfig>,
    certificates: Arc<PortCertificates>,
    reload: Reload,
}

/// Serves until SIGTERM or SIGINT. Prints one line when both ports are bound.
pub async fn run(config_file: &Path, ports_file: Option<&Path>) -> Result<(), ServeError> {
    let config = Config::load(config_file)?;
    log::begin(config.log, &["lockbox_broker", "lockbox_rpc"]).map_err(io_error("start the log"))?;
    // Before the store is opened, which takes a while.
    let signals = Starting::catch().map_err(io_error("catch signals"))?;
    start::warn_of_user(&config.store);
    let bound = bind(config_file, config).await?;
    let signals = signals.serving().map_err(io_error("catch signals"))?;
    if let Some(ports_file) = ports_file {
        let ports = serde_json::json!({ "node": bound.node.to_string(), "control": bound.control.to_string() });
        files::replace(ports_file, format!("{ports}\n").as_bytes(), files::PUBLIC)?;
    }
    if let Err(error) = console::answer(&format!("ready: node {} control {}\n", bound.node, bound.control)) {
        tracing::warn!(%error, "the line \"ready\" was not written to standard output");
    }
    notify::ready();
    bound.serve(signals).await
}

/// Checks everything that is configured, opens the store, and binds the ports, in this order.
pub async fn bind(config_file: &Path, config: Config) -> Result<Bound, ServeError> {
    let wrong = |key: &str, problem: String, mend: &str| ConfigError {
        file: config_file.to_owned(),
        key: key.to_owned(),
        problem,
        mend: mend.to_owned(),
    };
    let files = [
        ("signing_key", Some(&config.signing_key)),
        ("control.certificate", Some(&config.control_certificate)),
        ("control.key", Some(&config.control_key)),
        ("control.client_ca", Some(&config.control_client_ca)),
        ("control.ca_key", config.control_ca_key.as_ref()),
    ];
    for (setting, path) in files {
        path.map_or(Ok(()), |path| start::require_regular(path))
            .map_err(|error| {
                let path = path.map(|path| path.display().to_string()).unwrap_or_default();
                wrong(setting, format!("can't read {path}: {error}"), "name the right file")
            })?;
    }
    let key = keyfile::read(&config.signing_key)
        .map_err(|error| wrong("signing_key", error.to_string(), "name the broker.key of this broker"))?;
    let node_key = NodeKey::from_seed(&key.seed())
        .map_err(|error| wrong("signing_key", error.to_string(), "name the broker.key of this broker"))?;
    let node_tls = raw_key::server_config(&node_key, Arc::new(node_service::AnyKey));
    let certificates = Arc::new(PortCertificates::load(config_file, &config)?);
    let registry = open(&config)?;
    check_membership(&registry, &key, &wrong)?;
    let (node_listen, control_listen) = (config.node_listen, config.control_listen);
    let broker = Broker::new(registry, key, config.requesters.clone());

    let node_listener = listen("node.listen", node_listen).await?;
    let control_listener = listen("control.listen", control_listen).await?;
    let address = |listener: &TcpListener| listener.local_addr().map_err(io_error("read a port's address"));
    Ok(Bound {
        reload: Reload::new(config_file, config, &broker, &certificates),
        broker,
        node: address(&node_listener)?,
        control: address(&control_listener)?,
        node_listener,
        control_listener,
        node_tls,
        certificates,
    })
}

impl Bound {
    /// Serves until a signal says stop, or the store fails.
    async fn serve(self, signals: Signals) -> Result<(), ServeError> {
        let broker = self.broker;
        let mut reload = self.reload;
        let node = serve_tls(
            self.node_listener,
            self.node_tls,
            Services::new()
                .with(node_service::service(Arc::clone(&broker)))
                .with(inventory_service::inventory(Arc::clone(&broker))),
            node_service::limits(&broker),
            broker.stopping(),
        );
        let control = serve_tls(
            self.control_listener,
            self.certificates.tls(),
            Services::new()
                .with(control_service::service(Arc::clone(&broker)))
                .with(inventory_service::impact(Arc::clone(&broker)))
                .with(notice_service::service(Arc::clone(&broker)))
                .with(certificate_service::service(
                    Arc::clone(&broker),
                    Arc::clone(&self.certificates),
                )),
            ServerLimits::default(),
            broker.stopping(),
        );
        let ordered = async {
            signals.until_stopped(|| reload.run()).await;
            broker.stop();
            // Ends with the two listeners.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Nothing more can be acknowledged, so nobody is kept waiting for it.
            failure = broker.failed() => Err(ServeError::Store(failure)),
            ((), ()) = async { tokio::join!(node, control) } => Ok(()),
            () = self.certificates.watch() => Ok(()),
            () = broker.drop_history() => Ok(()),
            () = ordered => Ok(()),
        }
    }
}

fn open(config: &Config) -> Result<Registry, OpenError> {
    compact(&config.store);
    let store = SledStore::open(&config.store, Media::default(), &init::store_options())?;
    let bounds = InventoryBounds::with_left_days(config.left_days);
    let registry = Registry::open(Arc::new(store))?;
    Ok(registry
        .with_inventory_bounds(bounds)
        .with_history_days(config.history_days))
}

/// Compacts a store that wastes much space. A store that can't be compacted is served as it is.
fn compact(store: &Path) {
    let mut progress = once_in(Duration::from_secs(5), |progress| {
        notify::still_starting();
        tracing::info!("compacting the store: {progress}");
    });
    match SledStore::compact(store, &init::store_options(), When::IfWasteful, &mut progress) {
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

/// A broker that the admins don't know would answer, and every lockbox would turn away from it.
fn check_membership(
    registry: &Registry,
    key: &lockbox_authz::SecretKey,
    wrong: &impl Fn(&str, String, &str) -> ConfigError,
) -> Result<(), ServeError> {
    let roster = registry.roster();
    let ours = key.public_key();
    match roster.brokers().iter().find(|broker| broker.signing_key == ours) {
        None => {
            let problem = format!(
                "the roster has no broker with this key (fingerprint {})",
                ours.fingerprint()
            );
            Err(wrong("signing_key", problem, "name the key of a broker of this cluster").into())
        }
        Some(broker) if broker.retired => {
            tracing::warn!("this broker was retired: it hands out the roster and authorizes nothing");
            Ok(())
        }
        Some(_) => Ok(()),
    }
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Bind { key, address, source })
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { action, source }
}
