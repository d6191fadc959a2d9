//! What was signed about one lockbox's keys, in a file that anybody can verify.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use lockbox_authz::Evidence as Verified;
use lockbox_authz::limits::MAX_EVIDENCE_BYTES;
use lockbox_authz::roster::file::append_frame;
use lockbox_rpc::api::control::ExportEvidenceRequest;
use serde_json::json;

use super::client::Broker;
use super::error::CliError;
use super::output::{Format, print, print_json};
use super::{Global, block_on};
use crate::decide::find_lockbox;
use crate::files;

#[derive(Debug, Subcommand)]
pub(super) enum Evidence {
    /// Write what says which keys a lockbox took in, gave away and destroyed, for `lockbox backup restore`
    Export {
        /// Its name or id; it may be retired
        #[arg(long)]
        lockbox: String,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl Evidence {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        match self {
            Self::Export { lockbox, out } => block_on(export(global, &lockbox, &out)),
        }
    }
}

async fn export(global: &Global, lockbox: &str, out: &Path) -> Result<(), CliError> {
    let mut broker = Broker::connect(global).await?;
    let roster = broker.roster().await?;
    let member = find_lockbox(&roster, lockbox).ok_or_else(|| {
        CliError::other(format!(
            "no lockbox is called {lockbox}; `lockbox-broker lockbox list` shows them"
        ))
    })?;
    let lockbox_id = member.lockbox.lockbox_id;
    let failed = |status: tonic::Status| CliError::from_status("the evidence can't be fetched", &status);
    let request = ExportEvidenceRequest {
        lockbox: lockbox_id.to_string(),
    };
    let parts = broker.client.export_evidence(request).await;
    let mut parts = parts.map_err(failed)?.into_inner();
    let mut collected = Collected::default();
    while let Some(part) = parts.message().await.map_err(failed)? {
        collected.add(&part.statements, MAX_EVIDENCE_BYTES)?;
    }
    let Collected { file, statements } = collected;
    // The broker is not believed, and what would be refused later is better refused now.
    Verified::read(&file, roster.cluster_id(), lockbox_id)
        .map_err(|error| CliError::other(format!("what the broker sent does not verify: {error}")))?;
    files::write_new(out, &file, files::PUBLIC)?;
    match global.output {
        Format::Json => print_json(&json!({
            "lockbox_id": lockbox_id.to_string(),
            "file": out,
            "statements": statements,
        })),
        Format::Table => print(&format!(
            "wrote {statements} statements about {lockbox} to {}\n",
            out.display()
        )),
    }
}

/// The file as the broker sends it.
#[derive(Default)]
struct Collected {
    file: Vec<u8>,
    statements: u64,
}

impl Collected {
    /// Refuses more than a restore would read: the broker is not believed, and could go on for ever.
    fn add(&mut self, statements: &[Vec<u8>], most: usize) -> Result<(), CliError> {
        for statement in statements {
            append_frame(&mut self.file, statement);
            self.statements += 1;
            if self.file.len() > most {
                return Err(CliError::other(format!(
                    "what the broker sent has more than the {most} bytes that evidence may have; check that it is the right \
                     broker"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_more_than_a_restore_would_read() {
        let statement = vec![1; 100];
        let mut collected = Collected::default();
        collected
            .add(&[statement.clone(), statement.clone()], 208)
            .expect("as much as there may be");
        assert_eq!((collected.file.len(), collected.statements), (208, 2));
        assert!(collected.add(&[statement], 208).is_err());
    }
}
