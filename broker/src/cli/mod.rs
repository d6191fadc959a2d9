//! The command line.

mod certificate;
mod client;
mod client_file;
mod cluster;
mod confirm;
mod counted;
mod error;
mod evidence;
mod head_file;
mod impact;
mod joins;
mod key;
mod key_ref;
mod lockbox;
mod members;
mod notice;
mod output;
mod roster;
mod signing;
mod since;
mod store;
mod token;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use client_file::{ClientFile, client_toml};
use error::{CliError, USAGE};
use output::Format;

#[derive(Debug, Parser)]
#[command(
    name = "lockbox-broker",
    version,
    about = "Decides which lockbox may hand which keys to which, and never holds a key",
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// How to print results
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How to reach the broker, and as whom; `init` and `client create` write such a file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "LOCKBOX_BROKER_CLIENT",
        default_value = "client.toml"
    )]
    client: PathBuf,
    /// The broker's control-plane port, instead of the one in the client file
    #[arg(long, global = true, value_name = "HOST:PORT", env = "LOCKBOX_BROKER_SERVER")]
    server: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Found a cluster: admin key, roster, broker key, certificates, configuration
    Init(cluster::Init),
    /// Run the broker
    Serve(cluster::Serve),
    /// Certificates for those who ask the broker for transfers
    #[command(subcommand)]
    Client(cluster::Client),
    /// Certificates of the control plane's port: how long they last, and new ones
    #[command(subcommand)]
    Certificate(certificate::Certificates),
    /// Tokens with which lockboxes join the cluster
    #[command(subcommand)]
    Token(token::Token),
    /// The broker's store, while the broker does not run
    #[command(subcommand)]
    Store(store::Store),
    /// The lockboxes of the cluster
    #[command(subcommand)]
    Lockbox(lockbox::Lockbox),
    /// The brokers of the cluster
    #[command(subcommand)]
    Broker(members::BrokerMembers),
    /// The admins, who sign changes of the roster
    #[command(subcommand)]
    Admin(members::AdminMembers),
    /// Transfers of keys between lockboxes
    #[command(subcommand)]
    Transfer(transfer::Transfer),
    /// What became of a lockbox's keys, for restoring a backup of it
    #[command(subcommand)]
    Evidence(evidence::Evidence),
    /// What a stolen key or lockbox opens, from what the lockboxes have reported
    Impact(impact::ImpactCommand),
    /// Keys that strangers know
    #[command(subcommand)]
    Key(key::Key),
    /// What the admins tell every lockbox of keys that strangers know
    #[command(subcommand)]
    Notice(notice::Notice),
    /// The signed chain that says who belongs to the cluster
    #[command(subcommand)]
    Roster(roster::Roster),
    /// Print a completion script for a shell
    Completions { shell: Shell },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap prints them to standard output.
            let code = if error.use_stderr() { USAGE } else { 0 };
            // Nobody is left to be told if even this can't be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let code = match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            lockbox_host::say!("lockbox-broker: {error}");
            ExitCode::from(error.code)
        }
    };
    lockbox_host::log::flush();
    code
}

fn run(cli: Cli) -> Result<(), CliError> {
    let global = cli.global;
    match cli.command {
        Command::Init(init) => init.run(&global),
        Command::Serve(serve) => serve.run(),
        Command::Client(client) => client.run(&global),
        Command::Certificate(certificates) => certificates.run(&global),
        Command::Token(token) => token.run(&global),
        Command::Store(store) => store.run(&global),
        Command::Lockbox(lockbox) => lockbox.run(&global),
        Command::Broker(brokers) => brokers.run(&global),
        Command::Admin(admins) => admins.run(&global),
        Command::Transfer(transfer) => transfer.run(&global),
        Command::Evidence(evidence) => evidence.run(&global),
        Command::Impact(impact) => impact.run(&global),
        Command::Key(key) => key.run(&global),
        Command::Notice(notice) => notice.run(&global),
        Command::Roster(roster) => roster.run(&global),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lockbox-broker", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Runs one command's requests.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::other(format!("the asynchronous runtime can't be started: {error}")))?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
