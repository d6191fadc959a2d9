//! `lockbox notice`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use lockbox_authz::id::{KeyId, NoticeId};
use lockbox_authz::roster::file;
use lockbox_authz::{Statement, UnverifiedEnvelope, notice::CompromiseNotice};
use lockbox_rpc::api::local::{ApplyNoticeRequest, ApplyNoticeResponse};
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::output::Output;
use crate::files;

/// A file of notices: hundreds of them, and not somebody's disk image.
const MAX_NOTICE_FILE_BYTES: usize = 64 * 1024 * 1024;

#[derive(Subcommand)]
pub(super) enum NoticeCommand {
    /// Take the notices in a file, and mark every key here that they name, now and in future.
    Apply {
        /// As `lockbox-broker notice export` writes it.
        file: PathBuf,
    },
}

pub(super) async fn run(command: NoticeCommand, mut client: Client, output: &Output) -> Result<(), CliError> {
    let NoticeCommand::Apply { file } = command;
    let mut applied = Vec::new();
    for notice in read(&file)? {
        let notice = notice.to_bytes();
        let answer = client.lifecycle.apply_notice(ApplyNoticeRequest { notice }).await?;
        applied.push(answer.into_inner());
    }
    let notices: Vec<Value> = applied.iter().map(to_json).collect();
    output.print(&json!({ "notices": notices }), || applied.iter().map(text).collect())
}

fn read(path: &Path) -> Result<Vec<UnverifiedEnvelope>, CliError> {
    let wrong = |why: String| CliError::usage(format!("{}: {why}", path.display()));
    let bytes = files::read_bounded(path, MAX_NOTICE_FILE_BYTES).map_err(|error| CliError::usage(error.to_string()))?;
    let notices = file::decode_entries(&bytes).map_err(|error| wrong(error.to_string()))?;
    if notices.is_empty() {
        return Err(wrong("there is no compromise notice in it".to_owned()));
    }
    let is_notice = |envelope: &UnverifiedEnvelope| envelope.payload_type() == CompromiseNotice::PAYLOAD_TYPE;
    match notices.iter().all(is_notice) {
        true => Ok(notices),
        false => Err(wrong(
            "not everything in it is a compromise notice; roster entries are for `lockbox roster apply`".to_owned(),
        )),
    }
}

fn to_json(applied: &ApplyNoticeResponse) -> Value {
    json!({
        "notice_id": notice_id(applied),
        "keys": applied.key_count,
        "marked": applied.marked_count,
        "marked_key_ids": marked(applied),
    })
}

fn text(applied: &ApplyNoticeResponse) -> String {
    let mut text = format!(
        "notice {}: {} keys here, {} of them marked as compromised now\n",
        notice_id(applied),
        applied.key_count,
        applied.marked_count
    );
    for key_id in marked(applied) {
        text += &format!("  {key_id}\n");
    }
    if applied.marked_count > applied.marked_key_ids.len() as u64 {
        text += "  and more\n";
    }
    text
}

fn notice_id(applied: &ApplyNoticeResponse) -> String {
    NoticeId::from_slice("notice_id", &applied.notice_id).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

fn marked(applied: &ApplyNoticeResponse) -> Vec<String> {
    let ids = applied.marked_key_ids.iter();
    ids.filter_map(|id| KeyId::from_slice("key_id", id).ok())
        .map(|id| id.to_string())
        .collect()
}
