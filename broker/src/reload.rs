//! SIGHUP: the configuration and the certificates are read again, and what can change while the daemon runs is changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockbox_host::log;

use crate::broker::Broker;
use crate::config::Config;
use crate::port_certificates::PortCertificates;

/// What of a running daemon can change.
pub(crate) struct Reload {
    file: PathBuf,
    config: Config,
    broker: Arc<Broker>,
    certificates: Arc<PortCertificates>,
}

impl Reload {
    /// `config` is the one in force, and was read from `file`.
    pub(crate) fn new(file: &Path, config: Config, broker: &Arc<Broker>, certificates: &Arc<PortCertificates>) -> Self {
        Self {
            file: file.to_owned(),
            config,
            broker: Arc::clone(broker),
            certificates: Arc::clone(certificates),
        }
    }

    /// Takes the configuration and the certificates as they are now. Of a configuration that is wrong anywhere, nothing is
    /// taken; the same goes for the certificates.
    pub(crate) fn run(&mut self) {
        self.certificates.reload();
        let read = match Config::load(&self.file) {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "the configuration was not reloaded; the former one stays in force");
                return;
            }
        };
        let (new, fixed) = self.config.with_changes_of(read);
        log::set_level(new.log.level);
        self.broker.set_requesters(new.requesters.clone());
        self.config = new;
        if !fixed.is_empty() {
            tracing::warn!(
                settings = fixed.join(", "),
                "these settings take effect when the daemon is restarted"
            );
        }
        tracing::info!("the configuration was reloaded");
    }
}
