//! `lockbox init`, and what `lockbox backup restore` has in common with it.

use std::path::{Path, PathBuf};

use lockbox_core::lockbox::LockboxError;
use lockbox_host::start;
use lockbox_store_disk::Options;
use serde_json::{Value, json};

use super::args::InitArgs;
use super::error::CliError;
use super::output::{Output, fields};
use super::secrets;
use crate::config::Config;
use crate::files::{self, PUBLIC};
use crate::folder::{Folder, FolderError};

pub(super) fn run(args: InitArgs, output: &Output, socket: &Path) -> Result<(), CliError> {
    let prepared = prepare(&args, socket)?;
    let secret = secrets::new_slot_secret(&args.secret)?;
    let (_, header) = Folder::init_on(args.store, &prepared.state_dir, &args.name, &secret).map_err(explain)?;
    prepared.write_config()?;
    let lockbox_id = header.lockbox_id().to_string();
    output.print(&prepared.json(&lockbox_id, &args.name), || {
        prepared.text(&lockbox_id, &args.name)
    })
}

/// What was checked before anything is made, so that a second attempt starts from nothing.
pub(super) struct Prepared {
    state_dir: PathBuf,
    config_out: PathBuf,
    config: String,
}

pub(super) fn prepare(args: &InitArgs, socket: &Path) -> Result<Prepared, CliError> {
    let state_dir = absolute(&args.state_dir)?;
    let config_out = absolute(&args.config_out)?;
    let config = Config::template(
        &state_dir,
        args.store,
        &absolute(socket)?,
        args.peer_listen,
        args.peer_address.as_deref(),
    );
    Config::parse(&config_out, &config).map_err(|error| CliError::usage(error.to_string()))?;
    if config_out.exists() {
        let path = config_out.display();
        return Err(CliError::usage(format!(
            "{path} exists; choose another name with --config-out, or remove it"
        )));
    }
    for path in [&state_dir, &config_out] {
        files::require_parent(path).map_err(|error| CliError::usage(error.to_string()))?;
    }
    let parent = state_dir.parent().unwrap_or(Path::new("/"));
    if let Some(problem) = start::missing_room(parent, Options::default().needed_bytes()) {
        return Err(CliError::failed(problem));
    }
    Ok(Prepared {
        state_dir,
        config_out,
        config,
    })
}

impl Prepared {
    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    pub(super) fn write_config(&self) -> Result<(), CliError> {
        files::write_new(&self.config_out, self.config.as_bytes(), PUBLIC)
            .map_err(|error| CliError::failed(format!("the lockbox is made, but not its configuration: {error}")))
    }

    pub(super) fn json(&self, lockbox_id: &str, name: &str) -> Value {
        json!({
            "lockbox_id": lockbox_id,
            "name": name,
            "state_dir": self.state_dir,
            "config": self.config_out,
        })
    }

    pub(super) fn text(&self, lockbox_id: &str, name: &str) -> String {
        let config = self.config_out.display();
        fields(&[
            ("lockbox", lockbox_id.to_owned()),
            ("name", name.to_owned()),
            ("state", self.state_dir.display().to_string()),
            ("config", config.to_string()),
            ("disk", needed_room()),
            ("next", format!("lockbox serve --config {config}")),
        ])
    }
}

/// What to tell an operator who sizes the disk.
fn needed_room() -> String {
    format!(
        "the store needs {} of free space, and more for many keys",
        start::mebibytes(Options::default().needed_bytes())
    )
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
}

pub(super) fn explain(error: FolderError) -> CliError {
    let text = error.to_string();
    match error {
        FolderError::Slot(_) | FolderError::Lockbox(LockboxError::Field(_)) => CliError::usage(text),
        FolderError::Store(_) => CliError::store(text),
        _ => CliError::failed(text),
    }
}
