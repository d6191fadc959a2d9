//! `lockbox store`: what is done to the store while no daemon has it.

use lockbox_store_disk::Converted;
use serde_json::json;

use super::args::{ConvertArgs, StoreCommand};
use super::error::CliError;
use super::output::Output;
use crate::folder::{Folder, FolderError};

pub(super) fn run(command: StoreCommand, output: &Output) -> Result<(), CliError> {
    match command {
        StoreCommand::Convert(args) => convert(args, output),
    }
}

fn convert(args: ConvertArgs, output: &Output) -> Result<(), CliError> {
    let folder = Folder::find(&args.state_dir).map_err(explain)?;
    let to = args.to;
    let converted = folder.convert_store(to).map_err(explain)?;
    let records = match converted {
        Converted::Records(records) => Some(records),
        Converted::Already => None,
    };
    let json = json!({ "store": to.as_str(), "converted": records.is_some(), "records": records });
    output.print(&json, || match records {
        Some(records) => format!(
            "{records} records were copied to {to}, read again and compared; the old files are removed\n\
             next: write store = \"{to}\" in lockbox.toml"
        ),
        None => format!("the store is kept by {to} already"),
    })
}

fn explain(error: FolderError) -> CliError {
    let text = error.to_string();
    match error {
        FolderError::Store(_) => CliError::store(text),
        _ => CliError::config(text),
    }
}
