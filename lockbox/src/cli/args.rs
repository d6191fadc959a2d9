//! The arguments of every command. No secret is ever one: arguments and the environment can be read by others.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lockbox_authz::field::Label;
use lockbox_authz::id::{AuthorizationId, ClusterId, KeyId};
use lockbox_authz::keys::PublicKey;
use lockbox_authz::wire::InventoryConsumer;
use lockbox_rpc::api::local::ClonePolicy;

use super::jobs::JobCommand;
use super::lifecycle::{LifeCommand, clone_policy, consumer};
use super::notice::NoticeCommand;
use crate::backend::Backend;

const DEFAULT_SOCKET: &str = "/run/lockbox/lockbox.sock";

/// A sealed lockbox for the volume keys of this machine.
#[derive(Parser)]
#[command(name = "lockbox", version, arg_required_else_help = true)]
pub(super) struct Cli {
    /// The daemon's socket; for `init`, the one to configure.
    #[arg(long, global = true, env = "LOCKBOX_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub(super) socket: PathBuf,
    /// How answers are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a new lockbox: its folder, its identity, and a way to unseal it.
    Init(InitArgs),
    /// Run the daemon.
    Serve(ServeArgs),
    /// Open the lockbox.
    Unseal(SecretArgs),
    /// Forget every secret and close every connection.
    Seal,
    /// Show whether it is sealed, and how it stands. Exit code 0: healthy; 2: sealed; 3: unsealed, but with an alarm, a damaged
    /// store, or retired by the cluster.
    Status,
    /// Ask a broker for admission to its cluster.
    Join(JoinArgs),
    /// Make, import, list, show, reveal, snapshot, clone, rotate and destroy keys.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Follow the jobs that bring data under a new key: rekey, layer, rotate.
    Job {
        #[command(subcommand)]
        command: JobCommand,
    },
    /// Look at transfers, or accept one that was authorized by hand.
    Transfer {
        #[command(subcommand)]
        command: TransferCommand,
    },
    /// Show the cluster's roster, or carry it by hand.
    Roster {
        #[command(subcommand)]
        command: RosterCommand,
    },
    /// Take compromise notices by hand: keys that strangers know, as the admins say.
    Notice {
        #[command(subcommand)]
        command: NoticeCommand,
    },
    /// Let transfers go on after an alarm.
    Alarm {
        #[command(subcommand)]
        command: AlarmCommand,
    },
    /// Look at the store, or change what keeps its records, while the daemon is stopped.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Make a sealed copy of every key, check one, or make a new lockbox from one.
    Backup {
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Print a shell's completions.
    Completions { shell: Shell },
}

#[derive(Args)]
pub(super) struct InitArgs {
    /// The folder to make. Nothing may be in it.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: PathBuf,
    /// This lockbox's name in the cluster, such as the host's.
    #[arg(long)]
    pub(super) name: String,
    #[command(flatten)]
    pub(super) secret: SecretArgs,
    /// Where to write the daemon's configuration.
    #[arg(long, value_name = "FILE", default_value = "lockbox.toml")]
    pub(super) config_out: PathBuf,
    /// The address on which other lockboxes reach it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7401")]
    pub(super) peer_listen: SocketAddr,
    /// host:port by which other lockboxes reach it, if not by the address that it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) peer_address: Option<String>,
    /// What keeps the records.
    #[arg(long, value_enum, default_value_t = Backend::Sled)]
    pub(super) store: Backend,
}

/// What opens a lockbox or a backup. With none of them, a passphrase is asked for.
#[derive(Args)]
#[group(multiple = false)]
pub(super) struct SecretArgs {
    /// The passphrase is in this file (its last newline does not count).
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
    /// The passphrase is on standard input.
    #[arg(long)]
    pub(super) passphrase_stdin: bool,
    /// The bytes of this file, 32 or more, instead of a passphrase.
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct ServeArgs {
    /// The configuration, as `init` writes one.
    #[arg(long, value_name = "FILE", default_value = "lockbox.toml")]
    pub(super) config: PathBuf,
    /// Write the addresses that were really bound to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) ports_file: Option<PathBuf>,
    /// Unseal at once with this key file.
    #[arg(long, value_name = "FILE")]
    pub(super) unseal_key_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct JoinArgs {
    /// Join with the token in this file; without a value, or with `-`, it is read from standard input.
    #[arg(long, alias = "token-file", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    #[arg(conflicts_with = "broker")]
    pub(super) token: Option<PathBuf>,
    /// Without a token: host:port of the broker's node port.
    #[arg(long, value_name = "HOST:PORT", requires = "cluster_id", requires = "broker_key")]
    pub(super) broker: Option<String>,
    /// Without a token: the cluster to join. No other roster is taken.
    #[arg(long, value_name = "HEX", requires = "broker")]
    pub(super) cluster_id: Option<ClusterId>,
    /// Without a token: the key that the broker must prove.
    #[arg(long, value_name = "HEX", requires = "broker")]
    pub(super) broker_key: Option<PublicKey>,
    /// Without a token: a label wished for. The admins decide.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label, requires = "broker")]
    pub(super) labels: Vec<Label>,
}

#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key.
    Create {
        #[command(flatten)]
        attributes: Attributes,
        /// How many bytes, 16 to 512; 64 unless given.
        #[arg(long = "bytes", value_name = "N")]
        length_bytes: Option<u32>,
    },
    /// Take a key that was made elsewhere.
    Import {
        #[command(flatten)]
        attributes: Attributes,
        /// The file with the key; `-` for standard input.
        #[arg(long = "in", value_name = "FILE", default_value = "-")]
        input: PathBuf,
        /// How the key is written there.
        #[arg(long, value_enum, default_value_t = Encoding::Raw)]
        encoding: Encoding,
    },
    /// List keys.
    ///
    /// A key whose record is damaged is listed by its id, with "damaged" for its state, and among those of any name, as its own
    /// can't be read. The exit code is 74 then, as of any damage of the store, though everything else is listed.
    List {
        /// Only those with this name.
        #[arg(long)]
        name: Option<String>,
        /// Those that were destroyed or moved away, too.
        #[arg(long)]
        all: bool,
    },
    /// Show one key, without its secret.
    Show { key: String },
    /// Write one key's secret to standard output.
    Reveal {
        key: String,
        /// How it is written; no newline is added.
        #[arg(long, value_enum, default_value_t = Encoding::Raw)]
        encoding: Encoding,
        /// Also if standard output is a terminal.
        #[arg(long)]
        to_terminal: bool,
    },
    /// Erase a key for good.
    ///
    /// A key whose record is damaged is named by its id, and destroyed only with --force, as what uses it can't be read. It
    /// does not come back from a backup either, no more than any key that was destroyed.
    Destroy {
        key: String,
        /// Also if something is registered as using it, or if that can't be read.
        #[arg(long)]
        force: bool,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
    #[command(flatten)]
    Life(LifeCommand),
}

#[derive(Args)]
pub(super) struct Attributes {
    /// Name of the key; no other key of this lockbox may have it.
    #[arg(long, default_value = "")]
    pub(super) name: String,
    /// What it is for; aes-xts-plain64 unless given.
    #[arg(long, default_value = "")]
    pub(super) algorithm: String,
    /// A label; transfers select keys by them.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(super) labels: Vec<Label>,
    /// It never leaves this lockbox, whatever is authorized.
    #[arg(long)]
    pub(super) pinned: bool,
    /// It must not be copied to another lockbox.
    #[arg(long)]
    pub(super) deny_copy: bool,
    /// It must not be moved to another lockbox.
    #[arg(long)]
    pub(super) deny_move: bool,
    /// It may only go to a lockbox with this label.
    #[arg(long = "require-target-label", value_name = "KEY=VALUE", value_parser = label)]
    pub(super) required_target_labels: Vec<Label>,
    /// Nobody should ever ask for it: an authorization that selects it is refused and raises an alarm.
    #[arg(long)]
    pub(super) canary: bool,
    /// What a snapshot or clone may do with it: deny, or a list of share, rekey and layer.
    #[arg(long, value_name = "LIST", value_parser = clone_policy, default_value = "deny")]
    pub(super) clone_policy: ClonePolicy,
    /// Who uses it, such as cinder/volume/7bd4b53c.
    #[arg(long = "consumer", value_name = "SERVICE/TYPE/ID", value_parser = consumer)]
    pub(super) consumers: Vec<InventoryConsumer>,
    /// Its id, so that repeating the command makes no second key.
    #[arg(long, value_name = "UUID")]
    pub(super) id: Option<KeyId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Encoding {
    Raw,
    Hex,
    Base64,
}

#[derive(Subcommand)]
pub(super) enum TransferCommand {
    /// List transfers.
    List,
    /// Show one transfer.
    Show { authorization_id: AuthorizationId },
    /// Begin a transfer to this lockbox under an authorization in a file.
    Accept {
        file: PathBuf,
        /// host:port of the source's peer port.
        #[arg(long, value_name = "HOST:PORT")]
        source_address: String,
    },
}

#[derive(Subcommand)]
pub(super) enum RosterCommand {
    /// Show who belongs to the cluster.
    Show,
    /// Take the entries in a file.
    Apply { file: PathBuf },
    /// Write all entries to a file.
    Export { file: PathBuf },
}

#[derive(Subcommand)]
pub(super) enum AlarmCommand {
    /// Clear an alarm that was looked at.
    Clear { number: u64 },
}

#[derive(Subcommand)]
pub(super) enum StoreCommand {
    /// Give the store another backend. May be interrupted at any point, and run again.
    Convert(ConvertArgs),
    /// Copy the store into new files, to give back the disk space that it wastes. May be interrupted at any point.
    Compact(CompactArgs),
    /// Read every record, and say which are damaged and whether all are there. Changes nothing.
    Verify(StoreArgs),
    /// Take the store as it is, after it was rolled back or records were lost. What it says of its keys and of the
    /// authorizations that were spent is believed from then on.
    Accept(StoreArgs),
}

#[derive(Args)]
pub(super) struct StoreArgs {
    /// The lockbox's folder.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: PathBuf,
    #[command(flatten)]
    pub(super) secret: SecretArgs,
}

#[derive(Args)]
pub(super) struct CompactArgs {
    /// The lockbox's folder.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: PathBuf,
}

#[derive(Args)]
pub(super) struct ConvertArgs {
    /// The lockbox's folder.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: PathBuf,
    /// What is to keep the records.
    #[arg(long, value_enum)]
    pub(super) to: Backend,
}

#[derive(Subcommand)]
pub(super) enum BackupCommand {
    /// Copy every key into a sealed file, while the daemon goes on.
    Create(BackupCreateArgs),
    /// Check every frame and record of a backup, and count the keys in it.
    Verify(BackupVerifyArgs),
    /// Make a new lockbox with the keys of a backup.
    Restore(Box<BackupRestoreArgs>),
}

#[derive(Args)]
pub(super) struct BackupCreateArgs {
    /// The file to write. It must not exist.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) secret: SecretArgs,
}

#[derive(Args)]
pub(super) struct BackupVerifyArgs {
    /// The backup.
    pub(super) file: PathBuf,
    /// List the keys in it.
    #[arg(long)]
    pub(super) list: bool,
    #[command(flatten)]
    pub(super) secret: SecretArgs,
}

#[derive(Args)]
pub(super) struct BackupRestoreArgs {
    /// The backup.
    pub(super) file: PathBuf,
    /// Open the backup with the passphrase in this file; without this and --backup-key-file it is asked for.
    #[arg(long, value_name = "FILE", conflicts_with = "backup_key_file")]
    pub(super) backup_passphrase_file: Option<PathBuf>,
    /// Open the backup with the bytes of this file.
    #[arg(long, value_name = "FILE")]
    pub(super) backup_key_file: Option<PathBuf>,
    /// What became of the keys since, as `lockbox-broker evidence export` writes it.
    #[arg(long, value_name = "FILE")]
    pub(super) evidence: Option<PathBuf>,
    /// Bring every key back, also those that were destroyed or moved to another lockbox since.
    #[arg(long, conflicts_with = "evidence")]
    pub(super) without_evidence: bool,
    /// Bring this key back although the evidence says that it was moved away, or that another lockbox destroyed it; repeatable.
    /// What the backup's own lockbox destroyed stays out.
    #[arg(long, value_name = "KEY ID", requires = "evidence")]
    pub(super) admit: Vec<KeyId>,
    #[command(flatten)]
    pub(super) init: InitArgs,
}

pub(super) fn label(text: &str) -> Result<Label, String> {
    let (key, value) = text.split_once('=').ok_or("a label is written as key=value")?;
    Ok(Label {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
