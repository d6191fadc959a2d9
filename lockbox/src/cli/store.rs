//! `lockbox store`: what is done to the store while no daemon has it.

use std::fmt::Arguments;
use std::time::Duration;

use lockbox_core::slots::SlotSecret;
use lockbox_core::vault::Verification;
use lockbox_host::say;
use lockbox_store_disk::{Converted, Copied, Usage, When, once_in};
use serde_json::json;

use super::args::{CompactArgs, ConvertArgs, StoreArgs, StoreCommand};
use super::error::CliError;
use super::output::{Output, mebibytes};
use super::secrets;
use crate::folder::{Folder, FolderError};
use crate::offline::{self, Looked, OfflineError};

pub(super) fn run(command: StoreCommand, output: &Output) -> Result<(), CliError> {
    match command {
        StoreCommand::Convert(args) => convert(args, output),
        StoreCommand::Compact(args) => compact(args, output),
        StoreCommand::Verify(args) => verify(args, output),
        StoreCommand::Accept(args) => accept(args, output),
    }
}

fn convert(args: ConvertArgs, output: &Output) -> Result<(), CliError> {
    let folder = Folder::find(&args.state_dir).map_err(explain)?;
    let to = args.to;
    let converted = folder.convert_store(to, &mut progress()).map_err(explain)?;
    let copied = match converted {
        Converted::Copied(copied) => Some(copied),
        Converted::Already => None,
    };
    let json = json!({
        "store": to.as_str(),
        "converted": copied.is_some(),
        "records": copied.map(|copied| copied.records),
    });
    output.print(&json, || match copied {
        Some(Copied { records, .. }) => format!(
            "{records} records were copied to {to}, read again and compared; the old files are removed\n\
             next: write store = \"{to}\" in lockbox.toml"
        ),
        None => format!("the store is kept by {to} already"),
    })
}

fn compact(args: CompactArgs, output: &Output) -> Result<(), CliError> {
    let folder = Folder::find(&args.state_dir).map_err(explain)?;
    let Some(copied) = folder.compact_store(When::Always, &mut progress()).map_err(explain)? else {
        return Err(CliError::failed("the store was not compacted"));
    };
    let json = json!({
        "records": copied.records,
        "bytes_before": copied.bytes_before,
        "bytes_after": copied.bytes_after,
    });
    output.print(&json, || {
        format!(
            "{} records were copied into new files, read again and compared; the old files are removed\n\
             the store takes {} instead of {}",
            copied.records,
            mebibytes(copied.bytes_after),
            mebibytes(copied.bytes_before)
        )
    })
}

/// Says once a second how far a copy has come.
fn progress() -> impl FnMut(Arguments<'_>) {
    once_in(Duration::from_secs(1), |progress| say!("{progress}"))
}

fn verify(args: StoreArgs, output: &Output) -> Result<(), CliError> {
    let (folder, secret) = folder_and_secret(&args)?;
    let looked = offline::verify(&folder, &secret).map_err(explain_offline)?;
    print(&folder, &looked, output)?;
    if looked.is_as_committed() {
        return Ok(());
    }
    Err(CliError::store(
        "the store is damaged; bring back the newest copy of the whole folder, restore a backup, or take it as it is with \
         `lockbox store accept`",
    ))
}

fn accept(args: StoreArgs, output: &Output) -> Result<(), CliError> {
    let (folder, secret) = folder_and_secret(&args)?;
    let looked = offline::accept(&folder, &secret).map_err(explain_offline)?;
    print(&folder, &looked, output)
}

fn folder_and_secret(args: &StoreArgs) -> Result<(Folder, SlotSecret), CliError> {
    let folder = Folder::find(&args.state_dir).map_err(explain)?;
    Ok((folder, secrets::slot_secret_or_prompt(&args.secret, "Passphrase: ")?))
}

fn print(folder: &Folder, looked: &Looked, output: &Output) -> Result<(), CliError> {
    let found = &looked.found;
    let usage = Usage {
        disk_bytes: folder.store_bytes().map_err(explain)?,
        record_bytes: found.bytes,
    };
    let json = json!({
        "whole": looked.is_as_committed(),
        "accepted": looked.accepted,
        "anchor": looked.refusal.as_ref().map(ToString::to_string),
        "keys": found.keys,
        "records": found.records,
        "store_bytes": usage.disk_bytes,
        "store_waste_bytes": usage.waste_bytes(),
        "damaged_count": found.damaged_count,
        "damaged": found
            .damaged
            .iter()
            .map(|finding| json!({ "record": finding.what, "why": finding.why }))
            .collect::<Vec<_>>(),
        "mismatch": found
            .mismatch
            .map(|mismatch| json!({ "found": mismatch.found, "committed": mismatch.committed })),
    });
    output.print(&json, || text(looked, found, usage))
}

fn text(looked: &Looked, found: &Verification, usage: Usage) -> String {
    let mut lines = vec![
        format!("{} keys and {} other records open", found.keys, found.records),
        format!(
            "the store takes {}, {} of it wasted",
            mebibytes(usage.disk_bytes),
            mebibytes(usage.waste_bytes())
        ),
    ];
    for finding in &found.damaged {
        lines.push(format!("damaged: {}: {}", finding.what, finding.why));
    }
    if found.damaged_count > found.damaged.len() as u64 {
        let more = found.damaged_count - found.damaged.len() as u64;
        lines.push(format!("damaged: {more} more"));
    }
    if let Some(refusal) = &looked.refusal {
        lines.push(refusal.to_string());
    } else if let Some(mismatch) = found.mismatch {
        lines.push(mismatch.to_string());
    }
    if looked.accepted {
        lines.push("the store was accepted as it is; damaged records stay damaged".to_owned());
    } else if looked.is_as_committed() {
        lines.push("all records are those that were committed".to_owned());
    }
    lines.join("\n")
}

fn explain(error: FolderError) -> CliError {
    let text = error.to_string();
    match error {
        FolderError::Store(_) => CliError::store(text),
        _ => CliError::config(text),
    }
}

fn explain_offline(error: OfflineError) -> CliError {
    match error {
        OfflineError::Folder(error) => explain(error),
        OfflineError::Slot(_) => CliError::not_permitted(error.to_string()),
        OfflineError::Vault(_) | OfflineError::Store(_) => CliError::store(error.to_string()),
    }
}
