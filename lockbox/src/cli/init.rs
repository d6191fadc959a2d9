//! `lockbox init`.

use std::path::{Path, PathBuf};

use lockbox_core::lockbox::LockboxError;
use lockbox_core::slots::SlotSecret;
use serde_json::json;

use super::args::{InitArgs, NewSecret};
use super::error::CliError;
use super::output::{Output, fields};
use super::secrets;
use crate::config::Config;
use crate::files::{self, PUBLIC};
use crate::folder::{Folder, FolderError};

pub(super) fn run(args: InitArgs, output: &Output, socket: &Path) -> Result<(), CliError> {
    let state_dir = absolute(&args.state_dir)?;
    let config_out = absolute(&args.config_out)?;
    let text = Config::template(
        &state_dir,
        args.store,
        &absolute(socket)?,
        args.peer_listen,
        args.peer_address.as_deref(),
    );
    Config::parse(&config_out, &text).map_err(|error| CliError::usage(error.to_string()))?;
    // Before anything is made, so that a second attempt starts from nothing.
    if config_out.exists() {
        let path = config_out.display();
        return Err(CliError::usage(format!(
            "{path} exists; choose another name with --config-out, or remove it"
        )));
    }
    let secret = read_secret(&args.secret)?;
    let (_, header) = Folder::init_on(args.store, &state_dir, &args.name, &secret).map_err(explain)?;
    files::write_new(&config_out, text.as_bytes(), PUBLIC)
        .map_err(|error| CliError::failed(format!("the lockbox is made, but not its configuration: {error}")))?;
    let lockbox_id = header.lockbox_id().to_string();
    let json = json!({
        "lockbox_id": lockbox_id,
        "name": args.name,
        "state_dir": state_dir,
        "config": config_out,
    });
    output.print(&json, || {
        fields(&[
            ("lockbox", lockbox_id.clone()),
            ("name", args.name.clone()),
            ("state", state_dir.display().to_string()),
            ("config", config_out.display().to_string()),
            ("next", format!("lockbox serve --config {}", config_out.display())),
        ])
    })
}

fn read_secret(from: &NewSecret) -> Result<SlotSecret, CliError> {
    if let Some(path) = &from.key_file {
        return Ok(SlotSecret::KeyFile(secrets::key_file(path)?));
    }
    let passphrase = match &from.passphrase_file {
        Some(path) => secrets::passphrase_file(path)?,
        None if from.passphrase_stdin => secrets::passphrase_stdin()?,
        None => secrets::new_passphrase_prompt()?,
    };
    Ok(SlotSecret::Passphrase(passphrase))
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
}

fn explain(error: FolderError) -> CliError {
    let text = error.to_string();
    match error {
        FolderError::Slot(_) | FolderError::Lockbox(LockboxError::Field(_)) => CliError::usage(text),
        FolderError::Store(_) => CliError::store(text),
        _ => CliError::failed(text),
    }
}
