//! The certificates of the control plane's port: looking at them, renewing them, replacing the CA.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use lockbox_rpc::api::control::{ListCertificatesRequest, ListCertificatesResponse, RenewCertificateRequest};
use serde_json::{Value, json};

use super::client::Broker;
use super::client_file::ClientFile;
use super::confirm::{check_terminal, confirm};
use super::error::CliError;
use super::output::{Format, Table, print, print_json};
use super::{Global, block_on};
use crate::clock::{now_ms, rfc3339};
use crate::files;
use crate::pki::{
    self, Authority, Certificate, NewKey, PkiError, SERVER_CERTIFICATE, SERVER_KEY, finish_interrupted, read_one,
};

#[derive(Debug, Subcommand)]
pub(super) enum Certificates {
    /// Show certificates: subject, role, when they expire. Without arguments: those that the client file names
    Show {
        /// PEM files
        files: Vec<PathBuf>,
        /// The folder that `init` made: show every certificate in it
        #[arg(long, conflicts_with = "files")]
        dir: Option<PathBuf>,
    },
    /// Renew certificates from 30 days before they expire (or in the last third of a shorter life); else do nothing.
    /// Without --dir: the client's own, through the broker. With --dir, on the broker's machine: the server's and the operator's
    Renew {
        /// The folder that `init` made; it has the CA's key
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Put a new CA beside the old one. Both are trusted until `certificate drop-old-ca`
        #[arg(long, requires = "dir", conflicts_with = "now")]
        ca: bool,
        /// Renew also what is not due yet
        #[arg(long)]
        now: bool,
    },
    /// End the replacement of the CA: the old one is trusted no more. Run it when every client has run `certificate renew`
    DropOldCa {
        /// The folder that `init` made
        #[arg(long)]
        dir: PathBuf,
        /// Don't ask for confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// What became of one file.
struct Outcome {
    file: PathBuf,
    /// When the new certificate expires; `None` if there was nothing to do.
    renewed_until_ms: Option<i64>,
    renew_from_ms: i64,
}

impl Certificates {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        match self {
            Self::Show { files, dir } => show(global, files, dir.as_deref()),
            Self::Renew { dir: None, now, .. } => block_on(renew_own(global, now)),
            Self::Renew {
                dir: Some(dir),
                ca: true,
                ..
            } => replace_ca(global, &dir),
            Self::Renew {
                dir: Some(dir), now, ..
            } => renew_in(global, &dir, now),
            Self::DropOldCa { dir, yes } => {
                if !yes {
                    let question = "Clients that have not run `certificate renew` since the new CA was made can't connect \
                                    any more.";
                    check_terminal("clients that have only the old CA can't connect any more")?;
                    confirm(question, "the old CA is still trusted")?;
                }
                pki::drop_old_ca(&dir.join("pki"), now_ms())?;
                renew_in(global, &dir, false)
            }
        }
    }
}

/// Warns of the certificates of the broker's port that are to be renewed.
pub(super) async fn warn_of_port(broker: &mut Broker) -> Result<(), CliError> {
    let port = port_certificates(broker).await?;
    let now_ms = now_ms();
    for pem in [&port.server_chain, &port.client_ca] {
        for certificate in pki::parse(Path::new("the broker's answer"), pem.as_bytes())? {
            if let Some(expiry) = certificate.expiry_warning(now_ms) {
                let (subject, mend) = (&certificate.subject, certificate.role.renewal_at_broker());
                lockbox_host::say!(
                    "warning: the broker's {} certificate ({subject}) {expiry}; on the broker's machine, run {mend}",
                    certificate.role.as_str()
                );
            }
        }
    }
    Ok(())
}

/// Refuses to use a client certificate that has expired, and warns of one that is to be renewed.
pub(super) fn check_own(path: &Path, pem: &[u8]) -> Result<(), CliError> {
    let (now_ms, shown) = (now_ms(), path.display());
    let own = pki::parse(path, pem)?.swap_remove(0);
    match own.expiry_warning(now_ms) {
        Some(expiry) if own.is_expired(now_ms) => Err(CliError::new(
            super::error::PERMISSION,
            format!(
                "the client certificate {shown} {expiry}; on the broker's machine, make a new one with `lockbox-broker client \
                 create`, or renew the operator's with `lockbox-broker certificate renew --dir DIR`"
            ),
        )),
        Some(expiry) => {
            lockbox_host::say!(
                "warning: the client certificate {shown} {expiry}; run `lockbox-broker certificate renew`"
            );
            Ok(())
        }
        None => Ok(()),
    }
}

async fn port_certificates(broker: &mut Broker) -> Result<ListCertificatesResponse, CliError> {
    let answer = broker.certificate.list_certificates(ListCertificatesRequest {}).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| CliError::from_status("the broker's certificates can't be listed", &status))
}

async fn renew_own(global: &Global, now: bool) -> Result<(), CliError> {
    let ClientFile {
        ca, certificate, key, ..
    } = ClientFile::load(&global.client)?;
    finish_interrupted(&certificate, &key)?;
    let mut broker = Broker::connect(global).await?;
    let bundle = port_certificates(&mut broker).await?.trust_bundle;
    let own = read_one(&certificate)?;
    let mut is_of_old_ca = false;
    if !bundle.is_empty() {
        let trusted = pki::parse(Path::new("the broker's answer"), bundle.as_bytes())?;
        is_of_old_ca = trusted.iter().skip(1).any(|old| old.subject == own.issuer);
        let known = pki::parse(&ca, &files::read(&ca)?)?;
        if !known
            .iter()
            .map(Certificate::der)
            .eq(trusted.iter().map(Certificate::der))
        {
            files::replace(&ca, bundle.as_bytes(), files::PUBLIC)?;
            lockbox_host::say!("{}: replaced by the CAs that the broker uses now", ca.display());
        }
    }
    let mut outcome = Outcome::nothing(&certificate, &own);
    if now || is_of_old_ca || own.is_due(now_ms()) {
        let new = NewKey::generate()?;
        let signing_request = new.signing_request.clone();
        let issued = broker
            .certificate
            .renew_certificate(RenewCertificateRequest { signing_request })
            .await
            .map_err(|status| CliError::from_status("the certificate was not renewed", &status))?;
        outcome.renewed_until_ms = Some(new.install(&issued.into_inner().certificate, &certificate, &key)?);
    }
    report(global, &[outcome])
}

fn renew_in(global: &Global, dir: &Path, now: bool) -> Result<(), CliError> {
    let pki = dir.join("pki");
    finish_interrupted(&pki.join(pki::CA_CERTIFICATE), &pki.join(pki::CA_KEY))?;
    let authority = Authority::open(&pki)?;
    let operator = ClientFile::load(&dir.join("client.toml"))?;
    let mut outcomes = Vec::new();
    for (certificate, key) in [
        (operator.certificate, operator.key),
        (pki.join(SERVER_CERTIFICATE), pki.join(SERVER_KEY)),
    ] {
        finish_interrupted(&certificate, &key)?;
        let old = read_one(&certificate)?;
        let mut outcome = Outcome::nothing(&certificate, &old);
        let is_client = old.role == pki::Role::Client;
        if now || old.is_due(now_ms()) || is_client && old.issuer != authority.own().subject {
            // A client that does not trust the new CA yet could not connect.
            if !is_client && authority.is_being_replaced() {
                return Err(PkiError::Overlap { dir: dir.to_owned() }.into());
            }
            outcome.renewed_until_ms = Some(authority.renew_files(&certificate, &key, now_ms())?);
        }
        outcomes.push(outcome);
    }
    if let Some(expiry) = authority.own().expiry_warning(now_ms()) {
        lockbox_host::say!(
            "warning: the CA {expiry}; replace it with `lockbox-broker certificate renew --ca --dir {}`",
            dir.display()
        );
    }
    report(global, &outcomes)
}

fn replace_ca(global: &Global, dir: &Path) -> Result<(), CliError> {
    let pki = dir.join("pki");
    finish_interrupted(&pki.join(pki::CA_CERTIFICATE), &pki.join(pki::CA_KEY))?;
    pki::replace_ca(&pki, now_ms())?;
    lockbox_host::say!(
        "A new CA issues certificates from now on; the old one is trusted, too. Next:\n\
         1. on each client: lockbox-broker certificate renew\n\
         2. when all have done so, within {} days: lockbox-broker certificate drop-old-ca --dir {}",
        pki::OVERLAP_DAYS,
        dir.display()
    );
    renew_in(global, dir, false)
}

impl Outcome {
    fn nothing(file: &Path, certificate: &Certificate) -> Self {
        Self {
            file: file.to_owned(),
            renewed_until_ms: None,
            renew_from_ms: certificate.renew_from_ms(),
        }
    }
}

fn report(global: &Global, outcomes: &[Outcome]) -> Result<(), CliError> {
    if global.output == Format::Json {
        let list = outcomes.iter().map(|outcome| {
            json!({
                "file": outcome.file,
                "renewed": outcome.renewed_until_ms.is_some(),
                "not_after_ms": outcome.renewed_until_ms,
            })
        });
        return print_json(&list.collect());
    }
    let lines: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome.renewed_until_ms {
            Some(until_ms) => format!("{}: renewed until {}\n", outcome.file.display(), rfc3339(until_ms)),
            None => {
                let from = rfc3339(outcome.renew_from_ms);
                format!("{}: nothing to do before {from}\n", outcome.file.display())
            }
        })
        .collect();
    print(&lines.concat())
}

fn show(global: &Global, mut paths: Vec<PathBuf>, dir: Option<&Path>) -> Result<(), CliError> {
    if let Some(dir) = dir {
        paths = certificates_in(&dir.join("pki"))?;
    } else if paths.is_empty() {
        let client = ClientFile::load(&global.client)?;
        paths = vec![client.ca, client.certificate];
    }
    let now_ms = now_ms();
    let mut table = Table::new(&["FILE", "ROLE", "SUBJECT", "NAMES", "NOT AFTER", "DAYS LEFT"]);
    let mut list: Vec<Value> = Vec::new();
    for path in &paths {
        for certificate in pki::parse(path, &files::read(path)?)? {
            list.push(json!({
                "file": path,
                "role": certificate.role.as_str(),
                "subject": certificate.subject,
                "issuer": certificate.issuer,
                "names": certificate.names(),
                "not_after_ms": certificate.not_after_ms,
                "days_left": certificate.days_left(now_ms),
                "renew_from_ms": certificate.renew_from_ms(),
                "expired": certificate.is_expired(now_ms),
            }));
            table.row([
                path.display().to_string(),
                certificate.role.as_str().to_owned(),
                certificate.subject.clone(),
                certificate.names().join(","),
                rfc3339(certificate.not_after_ms),
                match certificate.is_expired(now_ms) {
                    true => "expired".to_owned(),
                    false => certificate.days_left(now_ms).to_string(),
                },
            ]);
        }
    }
    match global.output {
        Format::Json => print_json(&list.into()),
        Format::Table => print(&table.render()),
    }
}

fn certificates_in(pki: &Path) -> Result<Vec<PathBuf>, CliError> {
    let failed = |error| CliError::other(format!("can't read {}: {error}", pki.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(pki).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
