//! The command line: each command asks the daemon over its socket, but for `init`, `serve`,
//! `store`, `backup verify`, `backup restore` and `completions`.

mod args;
mod backup;
mod client;
mod cluster;
mod daemon;
mod error;
mod init;
mod job_run;
mod job_tool;
mod jobs;
mod keys;
mod lifecycle;
mod notice;
mod output;
mod percent;
mod secrets;
mod store;
mod transfers;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::memory;
use args::{BackupCommand, Cli, Command};
use client::Client;
use error::CliError;
use output::Output;

/// Runs the program.
pub fn main() -> ExitCode {
    if let Err(error) = memory::forbid_dumps() {
        lockbox_host::say!("warning: {error}");
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing to be done about a terminal that is gone.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(error::USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let code = match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            lockbox_host::say!("lockbox: {error}");
            ExitCode::from(error.exit)
        }
    };
    lockbox_host::log::flush();
    code
}

fn run(cli: Cli) -> Result<(), CliError> {
    let output = Output::new(cli.output);
    match cli.command {
        Command::Init(args) => init::run(args, &output, &cli.socket),
        Command::Serve(args) => daemon::serve(args),
        Command::Store { command } => store::run(command, &output),
        Command::Backup {
            command: BackupCommand::Verify(args),
        } => backup::verify(args, &output),
        Command::Backup {
            command: BackupCommand::Restore(args),
        } => backup::restore(*args, &output, &cli.socket),
        Command::Completions { shell } => {
            // Into memory first: generating panics when a write fails.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lockbox", &mut script);
            output::print_text(&String::from_utf8_lossy(&script))
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| CliError::failed(format!("the runtime can't be started: {error}")))?;
            runtime.block_on(async {
                let client = Client::connect(&cli.socket).await?;
                ask(command, client, &output).await
            })
        }
    }
}

async fn ask(command: Command, client: Client, output: &Output) -> Result<(), CliError> {
    match command {
        Command::Unseal(args) => daemon::unseal(args, client, output).await,
        Command::Seal => daemon::seal(client, output).await,
        Command::Status => daemon::status(client, output).await,
        Command::Join(args) => cluster::join(args, client, output).await,
        Command::Roster { command } => cluster::roster(command, client, output).await,
        Command::Notice { command } => notice::run(command, client, output).await,
        Command::Alarm { command } => cluster::alarm(command, client, output).await,
        Command::Key { command } => keys::run(command, client, output).await,
        Command::Job { command } => jobs::run(command, client, output).await,
        Command::Transfer { command } => transfers::run(command, client, output).await,
        Command::Backup {
            command: BackupCommand::Create(args),
        } => backup::create(args, client, output).await,
        Command::Init(_)
        | Command::Serve(_)
        | Command::Store { .. }
        | Command::Backup { .. }
        | Command::Completions { .. } => Ok(()),
    }
}
