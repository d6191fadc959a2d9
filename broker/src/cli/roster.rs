//! The roster: looking at it, verifying it, and signing changes of it.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use lockbox_authz::roster::file::encode_entries;
use lockbox_authz::roster::{self, Change, RosterEntry};
use lockbox_authz::{ClusterId, CompromiseNotice, PublicKey, Statement, UnverifiedEnvelope};
use serde_json::{Value, json};

use super::client::{Broker, read_entry_file};
use super::client_file::ClientFile;
use super::error::{CONFIG, CliError};
use super::output::{Format, Table, counted, print, print_json};
use super::{Global, block_on, signing};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::{files, init};

#[derive(Debug, Subcommand)]
pub(super) enum Roster {
    /// Show the broker's roster, after verifying it; or what a file says that admins have to sign, and who has signed it
    Show {
        /// A file of entries and compromise notices
        #[arg(long)]
        file: Option<PathBuf>,
        /// For --file: the roster that names the admins, instead of the broker's, as `roster export` writes it
        #[arg(long, value_name = "FILE", requires = "file")]
        roster: Option<PathBuf>,
    },
    /// Verify the broker's roster, or one in a file, from the first entry to the last
    Verify {
        /// A file that `roster export` wrote
        #[arg(long)]
        file: Option<PathBuf>,
        /// The cluster that is expected, instead of the one in the client file
        #[arg(long, value_name = "HEX")]
        cluster_id: Option<ClusterId>,
    },
    /// Write the roster to a file, for `lockbox roster apply`
    Export { file: PathBuf },
    /// Show the entries and compromise notices in a file, ask, and add an admin's signature to each, in place
    Sign {
        file: PathBuf,
        /// The roster that names the admins, instead of the broker's, as `roster export` writes it
        #[arg(long, value_name = "FILE")]
        roster: Option<PathBuf>,
        /// Don't ask for confirmation
        #[arg(long)]
        yes: bool,
        /// An admin's key; repeatable
        #[arg(long = "admin-key", value_name = "FILE", required = true)]
        keys: Vec<PathBuf>,
    },
    /// Submit the entries and compromise notices in a file to the broker
    Submit { file: PathBuf },
    /// Found the cluster with entries that the admins have signed, on the broker's machine
    Found {
        file: PathBuf,
        /// The broker.toml that `init` wrote
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

impl Roster {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        match self {
            Self::Sign {
                file,
                roster,
                yes,
                keys,
            } => signing::sign(global, &file, &keys, roster.as_deref(), yes),
            Self::Show {
                file: Some(file),
                roster,
            } => signing::show(global, &file, roster.as_deref()),
            Self::Found { file, config } => found(global, &file, &config),
            Self::Verify {
                file: Some(file),
                cluster_id,
            } => verify_file(global, &file, cluster_id),
            Self::Verify {
                file: None,
                cluster_id: Some(expected),
            } => block_on(async {
                let entries = Broker::connect(global).await?.entries().await?;
                verified(global, &entries, Some(expected))
            }),
            Self::Show { file: None, .. }
            | Self::Verify {
                file: None,
                cluster_id: None,
            } => block_on(async {
                let roster = Broker::connect(global).await?.roster().await?;
                show(global, &roster, Proof::Verified)
            }),
            Self::Export { file } => block_on(async {
                let roster = Broker::connect(global).await?.roster().await?;
                let entries: Vec<_> = roster.entries_from(0, usize::MAX).collect();
                let count = entries.len();
                files::write_new(&file, &encode_entries(entries), files::PUBLIC)?;
                done(
                    global,
                    &format!("wrote {} to {}", counted(count, "entry", "entries"), file.display()),
                )
            }),
            Self::Submit { file } => block_on(submit(global, &file)),
        }
    }
}

async fn submit(global: &Global, file: &Path) -> Result<(), CliError> {
    let entries = read_entry_file(file)?;
    let mut broker = Broker::connect(global).await?;
    let mut notices = 0;
    for entry in &entries {
        if entry.payload_type() == CompromiseNotice::PAYLOAD_TYPE {
            broker.submit_notice(entry).await?;
            notices += 1;
            continue;
        }
        let made: RosterEntry = entry
            .unverified_statement()
            .map_err(|error| CliError::other(format!("{}: {error}", file.display())))?;
        if !broker.submit_until_taken(entry, made.index).await? {
            return Err(CliError::other(
                "the roster has moved on since the entry was made; make it again and have it signed again",
            ));
        }
    }
    let mut submitted = vec![counted(entries.len() - notices, "entry", "entries")];
    if notices > 0 {
        submitted.push(counted(notices, "compromise notice", "compromise notices"));
    }
    done(global, &format!("submitted {}", submitted.join(" and ")))
}

fn found(global: &Global, file: &Path, config: &Path) -> Result<(), CliError> {
    let config = Config::load(config)?;
    let roster = init::found(&config.store, &read_entry_file(file)?)?;
    let (name, id) = (roster.cluster_name(), roster.cluster_id());
    done(global, &format!("founded cluster {name:?}, id {id}"))
}

fn verify_file(global: &Global, file: &Path, cluster_id: Option<ClusterId>) -> Result<(), CliError> {
    let expected = match cluster_id {
        Some(cluster_id) => Some(cluster_id),
        None => clients_cluster_id(global)?,
    };
    verified(global, &read_entry_file(file)?, expected)
}

/// The cluster that the client file names, where there is one to be read; a file can be verified without.
fn clients_cluster_id(global: &Global) -> Result<Option<ClusterId>, CliError> {
    if std::fs::File::open(&global.client).is_err() {
        return Ok(None);
    }
    let file = ClientFile::load(&global.client)?;
    file.cluster_id.parse().map(Some).map_err(|error| {
        CliError::new(
            CONFIG,
            format!(
                "{}: cluster_id: {error}; correct the value, or name the cluster with --cluster-id",
                global.client.display()
            ),
        )
    })
}

/// What was found out about a roster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// It is the roster of the cluster that was expected.
    Verified,
    /// It is properly signed by those that it names itself. Anybody can make such a one.
    Consistent,
}

/// Who signed an entry.
enum SignedBy {
    Admins { threshold: u32, count: usize },
    JoinKey,
}

fn verified(global: &Global, entries: &[UnverifiedEnvelope], expected: Option<ClusterId>) -> Result<(), CliError> {
    let roster = roster::Roster::from_chain(entries, expected)
        .map_err(|error| CliError::other(format!("the roster does not verify: {error}")))?;
    let proof = if expected.is_some() {
        Proof::Verified
    } else {
        Proof::Consistent
    };
    show(global, &roster, proof)?;
    if expected.is_none() {
        lockbox_host::say!("no cluster id was given: compare the one above with the one that your admins know");
    }
    Ok(())
}

/// The entries of a verified roster, each with those who signed it.
fn signed_entries(roster: &roster::Roster) -> Result<Vec<(RosterEntry, SignedBy)>, CliError> {
    let mut entries = Vec::new();
    let mut join_keys: Vec<PublicKey> = Vec::new();
    let mut admins = roster.admins().clone();
    for envelope in roster.entries_from(0, usize::MAX) {
        let entry: RosterEntry = envelope
            .unverified_statement()
            .map_err(|error| CliError::other(format!("the roster does not verify: {error}")))?;
        // The genesis entry is signed by the admins that it names; the others by those before them.
        if let Change::Genesis(genesis) = &entry.change {
            admins.clone_from(&genesis.admins);
        }
        let is_admission = matches!(entry.change, Change::AdmitLockbox(_));
        // No key has two roles, so a verified entry that names a join key as its signer was signed by it.
        let signed_by = if is_admission && join_keys.iter().any(|key| envelope.claims_signer(key)) {
            SignedBy::JoinKey
        } else {
            SignedBy::Admins {
                threshold: admins.threshold,
                count: admins.keys.len(),
            }
        };
        match &entry.change {
            Change::AllowJoin { join_key, .. } => join_keys.push(*join_key),
            Change::ChangeAdmins(changed) => admins.clone_from(changed),
            _ => {}
        }
        entries.push((entry, signed_by));
    }
    Ok(entries)
}

impl SignedBy {
    fn describe(&self) -> String {
        match self {
            Self::Admins { threshold, count } => format!("by {threshold} of {}", counted(*count, "admin", "admins")),
            Self::JoinKey => "by a join key".to_owned(),
        }
    }
}

fn show(global: &Global, roster: &roster::Roster, proof: Proof) -> Result<(), CliError> {
    let entries = signed_entries(roster)?;
    let head = roster.head();
    if global.output == Format::Json {
        let list: Vec<Value> = entries
            .iter()
            .map(|(entry, signed_by)| {
                json!({
                    "index": entry.index,
                    "signed_at_ms": entry.signed_at_ms,
                    "signed": signed_by.describe(),
                    "change": entry.change.describe(),
                    "detail": describe(&entry.change),
                })
            })
            .collect();
        return print_json(&json!({
            "cluster_name": roster.cluster_name(),
            "cluster_id": roster.cluster_id().to_string(),
            "cluster_id_compared": proof == Proof::Verified,
            "head_index": head.index,
            "head_hash": head.hash.to_string(),
            "admin_threshold": roster.admins().threshold,
            "broker_threshold": roster.admins().broker_threshold,
            "entries": list,
        }));
    }
    let mut table = Table::new(&["INDEX", "SIGNED", "CHANGE"]);
    for (entry, signed_by) in &entries {
        table.row([
            entry.index.to_string(),
            format!("{} {}", rfc3339(entry.signed_at_ms), signed_by.describe()),
            describe(&entry.change),
        ]);
    }
    let finding = match proof {
        Proof::Verified => "verified    every entry",
        Proof::Consistent => "consistent (no cluster id to compare with)",
    };
    print(&format!(
        "{}\ncluster     {} ({})\nhead        {} {}\n{finding}\n",
        table.render(),
        roster.cluster_id(),
        roster.cluster_name(),
        head.index,
        head.hash,
    ))
}

/// Tells that something was done that has no other result.
fn done(global: &Global, result: &str) -> Result<(), CliError> {
    match global.output {
        Format::Json => print_json(&json!({ "result": result })),
        Format::Table => {
            lockbox_host::say!("{result}");
            Ok(())
        }
    }
}

/// What an entry does, in one line.
fn describe(change: &Change) -> String {
    let what = change.describe();
    match change {
        Change::Genesis(genesis) => format!(
            "{what} {:?}, {} of {}",
            genesis.cluster_name,
            genesis.admins.threshold,
            counted(genesis.admins.keys.len(), "admin", "admins")
        ),
        Change::AdmitLockbox(lockbox) => {
            let fingerprint = lockbox.identity_key.fingerprint();
            format!(
                "{what} {} ({}), fingerprint {fingerprint}",
                lockbox.name, lockbox.lockbox_id
            )
        }
        Change::RetireLockbox { lockbox_id, reason } => format!("{what} {lockbox_id} {reason}"),
        Change::AdmitBroker { name, signing_key } => {
            format!("{what} {name}, fingerprint {}", signing_key.fingerprint())
        }
        Change::RetireBroker { signing_key, reason } => {
            format!("{what}, fingerprint {} {reason}", signing_key.fingerprint())
        }
        Change::ChangeAdmins(admins) => format!(
            "{what}: {} of {}, {}",
            admins.threshold,
            admins.keys.len(),
            counted(admins.broker_threshold as usize, "broker signs", "brokers sign")
        ),
        Change::AllowJoin {
            join_key,
            expires_at_ms,
            labels,
            name,
        } => {
            let name = name.as_deref().unwrap_or("any name");
            format!(
                "{what} {join_key} until {}, {name}, [{}]",
                rfc3339(*expires_at_ms),
                super::output::labels(labels)
            )
        }
        Change::RevokeJoin { join_key } => format!("{what} {join_key}"),
    }
}
