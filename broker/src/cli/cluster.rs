//! `init`, `serve` and `client create`: what is done on the broker's own machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use lockbox_authz::PublicKey;
use lockbox_host::start;
use serde_json::json;

use super::Global;
use super::client_file::{ClientFile, client_toml};
use super::error::{CliError, OTHER};
use super::output::{Format, print, print_json};
use crate::clock::{now_ms, rfc3339};
use crate::init::{self, FOUNDING_ENTRIES, Made, Plan};
use crate::pki::{self, Authority, CLIENT_DAYS, MAX_CLIENT_DAYS, Purpose};
use crate::{files, serve};

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The folder to make everything in; it must not exist or be empty
    #[arg(long)]
    dir: PathBuf,
    /// For people; 1 to 64 characters
    #[arg(long)]
    cluster_name: String,
    /// Where lockboxes connect
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7400")]
    node_listen: SocketAddr,
    /// Where lockboxes are told to connect, if that differs
    #[arg(long, value_name = "HOST:PORT")]
    node_address: Option<String>,
    /// Where control planes connect
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7402")]
    control_listen: SocketAddr,
    /// A name or address under which control planes reach the broker; repeatable
    #[arg(long = "server-name", value_name = "NAME")]
    server_names: Vec<String>,
    /// The public key of an admin who has a key already; repeatable
    #[arg(long = "admin-public-key", value_name = "HEX")]
    admin_public_keys: Vec<PublicKey>,
    /// How many of these admins must sign each change of the roster
    #[arg(long, value_name = "K", default_value_t = 1, requires = "admin_public_keys")]
    admin_threshold: u32,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The broker.toml that `init` wrote
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the addresses that were bound to this file, as JSON
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Client {
    /// Issue a certificate to one who will ask for transfers, and write a client.toml for it
    Create {
        /// The requester's name, to be listed in broker.toml
        name: String,
        /// The folder that `init` made
        #[arg(long)]
        dir: PathBuf,
        /// The folder to make; it must not exist or be empty
        #[arg(long)]
        out: PathBuf,
        /// A SPIFFE id, which is then the requester's name
        #[arg(long, value_name = "spiffe://...")]
        uri: Option<String>,
        /// For how many days the certificate is valid, 1 to 3650; the client can renew it before they are over
        #[arg(long, default_value_t = CLIENT_DAYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CLIENT_DAYS)))]
        days: u32,
    },
}

impl Init {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        let plan = Plan {
            node_address: self.node_address.unwrap_or_else(|| self.node_listen.to_string()),
            server_names: server_names(self.server_names, self.control_listen),
            cluster_name: self.cluster_name,
            node_listen: self.node_listen,
            control_listen: self.control_listen,
            admin_public_keys: self.admin_public_keys,
            admin_threshold: self.admin_threshold,
        };
        let dir = std::path::absolute(&self.dir).map_err(|error| CliError::usage(error.to_string()))?;
        files::require_parent(&dir)?;
        let needed_bytes = init::store_options().needed_bytes();
        let parent = dir.parent().unwrap_or(Path::new("/"));
        if let Some(problem) = start::missing_room(parent, needed_bytes) {
            return Err(CliError::other(problem));
        }
        let made = init::init(&self.dir, &plan, now_ms())?;
        match global.output {
            Format::Json => print_json(&json!({
                "dir": self.dir,
                "cluster_id": made.cluster_id.to_string(),
                "broker_key": made.broker_key.to_string(),
                "broker_fingerprint": made.broker_key.fingerprint().to_string(),
                "admin_fingerprint": made.admin.map(|fingerprint| fingerprint.to_string()),
            })),
            Format::Table => print(&describe(&self.dir, &plan.cluster_name, &made)),
        }
    }
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CliError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| CliError::new(OTHER, format!("the runtime can't be started: {error}")))?;
        Ok(runtime.block_on(serve::run(&self.config, self.ports_file.as_deref()))?)
    }
}

impl Client {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        let Self::Create {
            name,
            dir,
            out,
            uri,
            days,
        } = self;
        lockbox_authz::field::text("the name", &name, 1, 64).map_err(|error| CliError::usage(error.to_string()))?;
        if let Some(uri) = &uri {
            check_spiffe_id(uri)?;
        }
        let authority = Authority::open(&dir.join("pki"))?;
        let operator = ClientFile::load(&dir.join("client.toml"))?;
        let requester = uri.clone().unwrap_or_else(|| name.clone());
        let expires_at_ms = files::make_folder(&out, |out| {
            let purpose = Purpose::Client {
                name: &name,
                uri: uri.as_deref(),
            };
            issue(out, &authority, &operator, &purpose, days)
        })?;
        match global.output {
            Format::Json => print_json(&json!({
                "requester": requester,
                "client": out.join("client.toml"),
                "expires_at_ms": expires_at_ms,
            })),
            Format::Table => print(&format!(
                "Made {}: a certificate and its key, and a client.toml that uses them.\n\
                 The broker knows this client as {requester:?}. To let it do something, add to broker.toml a\n\
                 [[requester]] with this name, and reload the broker (systemctl reload, or SIGHUP).\n\
                 The certificate expires at {}. From 30 days before that, this renews it (run it daily):\n\
                 lockbox-broker certificate renew --client {0}/client.toml\n",
                out.display(),
                rfc3339(expires_at_ms),
            )),
        }
    }
}

fn issue(
    out: &Path,
    authority: &Authority,
    operator: &ClientFile,
    purpose: &Purpose<'_>,
    days: u32,
) -> Result<i64, CliError> {
    let expires_at_ms = authority.issue(
        purpose,
        days,
        &out.join("client.crt"),
        &out.join("client.key"),
        now_ms(),
    )?;
    files::write_new(
        &out.join(pki::CA_CERTIFICATE),
        &files::read(&operator.ca)?,
        files::PUBLIC,
    )?;
    let client = client_toml(&ClientFile {
        ca: pki::CA_CERTIFICATE.into(),
        certificate: "client.crt".into(),
        key: "client.key".into(),
        ..operator.clone()
    });
    files::write_new(&out.join("client.toml"), client.as_bytes(), files::PUBLIC)?;
    Ok(expires_at_ms)
}

/// A SPIFFE id has a trust domain and, at most, a path (SPIFFE-ID, section 2).
fn check_spiffe_id(uri: &str) -> Result<(), CliError> {
    let trust_domain = uri.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
    let is_sound = |domain: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        !domain.is_empty() && domain.chars().all(allowed)
    };
    if trust_domain.is_some_and(is_sound) && !uri.contains(['?', '#']) {
        return Ok(());
    }
    Err(CliError::usage(
        "--uri must be a SPIFFE id, such as spiffe://cloud.example/nova",
    ))
}

/// The names given come first; the machine itself can always use the port.
fn server_names(mut names: Vec<String>, listen: SocketAddr) -> Vec<String> {
    let mut own = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if !listen.ip().is_unspecified() {
        own.push(listen.ip().to_string());
    }
    for name in own {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn describe(dir: &Path, cluster_name: &str, made: &Made) -> String {
    let shown = dir.display();
    let mut text = format!(
        "Founded cluster {cluster_name:?} in {shown}.\n\
         \n\
         cluster id          {}\n\
         broker fingerprint  {}\n\
         disk                the store needs {} of free space\n",
        made.cluster_id,
        made.broker_key.fingerprint(),
        start::mebibytes(init::store_options().needed_bytes())
    );
    match made.admin {
        Some(fingerprint) => text.push_str(&format!(
            "admin fingerprint   {fingerprint}\n\
             \n\
             admin.key decides who belongs to the cluster. Move it to a machine or medium that is offline, and keep a\n\
             copy: without it, the roster can never change again.\n\
             \n\
             Run the broker with: lockbox-broker serve --config {shown}/broker.toml\n"
        )),
        None => text.push_str(&format!(
            "\n\
             The admins have to sign {FOUNDING_ENTRIES}, one after the other:\n\
             lockbox-broker roster sign {shown}/{FOUNDING_ENTRIES} --admin-key FILE\n\
             \n\
             Then, here: lockbox-broker roster found {shown}/{FOUNDING_ENTRIES} --config {shown}/broker.toml\n"
        )),
    }
    text
}
