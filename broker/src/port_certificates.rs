//! The certificates of the control plane's port while the daemon runs: files that change are used without a restart, and
//! the log warns before one expires.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockbox_rpc::tls::x509;
use lockbox_rpc::transport::SharedTls;
use rustls::ServerConfig;

use crate::clock::now_ms;
use crate::config::{Config, ConfigError};
use crate::files;
use crate::pki::{self, Authority, Certificate, PkiError};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Between two warnings of one certificate.
const WARN_EVERY_MS: i64 = 24 * 60 * 60 * 1_000;

pub struct PortCertificates {
    paths: Paths,
    tls: SharedTls,
    in_use: Mutex<InUse>,
}

struct Paths {
    config_file: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    ca_key: Option<PathBuf>,
}

/// What handshakes use; PEM.
#[derive(Clone, Default)]
pub struct InUse {
    pub server_chain: String,
    pub client_ca: String,
    /// What a client has to trust, if the CA of the clients is the server's as well; else empty.
    pub trust_bundle: String,
    /// Each with the setting that names its file.
    certificates: Vec<(&'static str, Certificate)>,
}

impl PortCertificates {
    /// Reads and checks what `config` names.
    ///
    /// # Errors
    ///
    /// Names the setting of the file that can't be used.
    pub fn load(config_file: &Path, config: &Config) -> Result<Self, ConfigError> {
        let paths = Paths {
            config_file: config_file.to_owned(),
            certificate: config.control_certificate.clone(),
            key: config.control_key.clone(),
            client_ca: config.control_client_ca.clone(),
            ca_key: config.control_ca_key.clone(),
        };
        let (tls, in_use) = paths.read()?;
        Ok(Self {
            paths,
            tls: tls.into(),
            in_use: Mutex::new(in_use),
        })
    }

    pub fn tls(&self) -> SharedTls {
        self.tls.clone()
    }

    pub fn in_use(&self) -> InUse {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn can_issue(&self) -> bool {
        self.paths.ca_key.is_some()
    }

    /// The authority that issues client certificates, as its files are now; `None` if the broker has no CA key.
    pub fn authority(&self) -> Result<Option<Authority>, PkiError> {
        self.paths.authority()
    }

    /// Reads the files again and uses them for new connections. What can't be used is not used, and the log says why.
    pub fn reload(&self) {
        match self.paths.read() {
            Ok((tls, in_use)) => {
                self.tls.replace(tls);
                *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = in_use;
                tracing::info!("the control port's certificates were read again");
            }
            Err(error) => tracing::warn!(%error, "the control port's certificates stay as they were"),
        }
    }

    /// Reloads files that change, and warns once a day of certificates that are to be renewed. Never ends.
    pub async fn watch(&self) {
        let mut seen = self.paths.stamps();
        let mut warn_at_ms = 0;
        loop {
            let now = now_ms();
            if now >= warn_at_ms {
                self.warn(now);
                warn_at_ms = now.saturating_add(WARN_EVERY_MS);
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let stamps = self.paths.stamps();
            if stamps != seen {
                seen = stamps;
                self.reload();
            }
        }
    }

    fn warn(&self, now_ms: i64) {
        for (key, certificate) in &self.in_use().certificates {
            if let Some(expiry) = certificate.expiry_warning(now_ms) {
                let (subject, mend) = (&certificate.subject, certificate.role.renewal_at_broker());
                tracing::warn!(
                    key,
                    subject,
                    "a certificate of the control port {expiry}; renew it with {mend}"
                );
            }
        }
    }
}

impl Paths {
    fn authority(&self) -> Result<Option<Authority>, PkiError> {
        let open = |key: &PathBuf| Authority::open_files(&self.client_ca, key);
        self.ca_key.as_ref().map(open).transpose()
    }

    fn read(&self) -> Result<(Arc<ServerConfig>, InUse), ConfigError> {
        let wrong = |key: &str, problem: String| ConfigError {
            file: self.config_file.clone(),
            key: key.to_owned(),
            problem,
            mend: "name the right PEM file".to_owned(),
        };
        let chain = files::read(&self.certificate).map_err(|error| wrong("control.certificate", error.to_string()))?;
        let key = files::read_private(&self.key).map_err(|error| wrong("control.key", error.to_string()))?;
        let ca = files::read(&self.client_ca).map_err(|error| wrong("control.client_ca", error.to_string()))?;
        let tls = x509::server_config(&chain, &key, &ca).map_err(|error| {
            wrong(
                "control.certificate, control.key or control.client_ca",
                error.to_string(),
            )
        })?;
        let authority = self
            .authority()
            .map_err(|error| wrong("control.ca_key", error.to_string()))?;
        let parse = |key: &'static str, path: &Path, pem: &[u8]| {
            pki::parse(path, pem).map_err(|error| wrong(key, error.to_string()))
        };
        let server = parse("control.certificate", &self.certificate, &chain)?;
        let authorities = parse("control.client_ca", &self.client_ca, &ca)?;
        let is_servers_ca = authorities.iter().any(|ca| ca.subject == server[0].issuer);
        let trusted = authority.filter(|_| is_servers_ca);
        let named = |key, list: Vec<Certificate>| list.into_iter().map(move |certificate| (key, certificate));
        Ok((
            tls,
            InUse {
                server_chain: String::from_utf8_lossy(&chain).into_owned(),
                client_ca: String::from_utf8_lossy(&ca).into_owned(),
                trust_bundle: trusted.map(|authority| authority.trust_bundle()).unwrap_or_default(),
                certificates: named("control.certificate", server)
                    .chain(named("control.client_ca", authorities))
                    .collect(),
            },
        ))
    }

    /// Changes when one of the files is replaced or written.
    fn stamps(&self) -> [Option<(u64, i64, i64)>; 3] {
        [&self.certificate, &self.key, &self.client_ca].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
        })
    }
}
