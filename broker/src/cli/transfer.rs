//! Transfers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use lockbox_authz::{AuthorizationId, KeyId, Labels, Operation, Selection};
use lockbox_rpc::api::control::{
    AuthorizeTransferRequest, GetTransferRequest, ListTransfersRequest, RevokeTransferRequest,
    Transfer as WireTransfer, TransferState, WatchTransferRequest, WithheldKey,
};
use serde_json::{Value, json};

use super::client::Broker;
use super::error::{CliError, OTHER, UNAVAILABLE, WITHHELD};
use super::key_ref::KeyRef;
use super::output::{Format, Table, or_dash, print, print_json, printable};
use super::{Global, block_on};
use crate::broker::random;
use crate::clock::rfc3339;
use crate::files;

#[derive(Debug, Subcommand)]
pub(super) enum Transfer {
    /// Let one lockbox hand keys to another
    Authorize(Authorize),
    /// List transfers, the newest first
    List {
        /// At most this many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one transfer
    Show { id: AuthorizationId },
    /// Show a transfer as it goes, until it has ended
    Watch {
        id: AuthorizationId,
        /// Give up watching after so many seconds; the transfer goes on
        #[arg(long, value_name = "SECONDS")]
        wait_timeout: Option<u64>,
    },
    /// End a transfer before its time; keys that the target already holds stay there
    Revoke {
        id: AuthorizationId,
        /// For people
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["keys", "select_labels", "all"])))]
pub(super) struct Authorize {
    /// Who hands out the keys: name or id
    #[arg(long)]
    source: String,
    /// Who receives them: name or id
    #[arg(long)]
    target: String,
    /// Whether the source keeps them
    #[arg(long, value_enum)]
    operation: OperationArg,
    /// A key: its id, or LOCKBOX/NAME, such as store1/vol-2; repeatable. All of them may leave the source, or none does
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<KeyRef>,
    /// Every key with this label, as key=value; repeatable: with all of them
    #[arg(long = "select-label", value_name = "KEY=VALUE")]
    select_labels: Vec<String>,
    /// Every key that may leave
    #[arg(long)]
    all: bool,
    /// For how many seconds the authorization is valid; at most 86400. Lockboxes tolerate 2 minutes of clock difference
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    ttl: u32,
    /// For people and the log
    #[arg(long, default_value = "")]
    reason: String,
    /// Your own id for this request; a retry with the same one can't authorize twice
    #[arg(long)]
    request_id: Option<String>,
    /// Write the signed authorization to a file, for a lockbox without a route to the broker
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Wait until the transfer has ended. Ends with code 3 if it is complete but selected keys stay at the source, and with
    /// code 1 if it ends otherwise
    #[arg(long)]
    wait: bool,
    /// Give up waiting after so many seconds; the transfer goes on
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    wait_timeout: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OperationArg {
    /// The source keeps the keys
    Copy,
    /// The source erases the keys once the target has them
    Move,
}

impl Transfer {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        block_on(async {
            // What is wrong with the arguments is said before anything is asked of the network.
            if let Self::Authorize(authorize) = &self {
                authorize.check()?;
            }
            let mut broker = Broker::connect(global).await?;
            match self {
                Self::Authorize(authorize) => authorize.run(global, &mut broker).await,
                Self::List { limit } => list(global, &mut broker, limit).await,
                Self::Show { id } => show(global, &mut broker, id).await,
                Self::Watch { id, wait_timeout } => watch_for(global, &mut broker, id, wait_timeout).await.map(drop),
                Self::Revoke { id, reason } => {
                    let request = RevokeTransferRequest {
                        authorization_id: id.to_vec(),
                        reason,
                    };
                    let answer = broker.client.revoke_transfer(request).await;
                    let answer =
                        answer.map_err(|status| CliError::from_status("the transfer was not revoked", &status))?;
                    show_one(global, &answer.into_inner().transfer.unwrap_or_default())
                }
            }
        })
    }
}

impl Authorize {
    /// Checks what is known of the selection before names are looked up.
    fn check(&self) -> Result<(), CliError> {
        let ids: Vec<KeyId> = self.keys.iter().filter_map(KeyRef::id).collect();
        match ids.is_empty() && !self.keys.is_empty() {
            true => Ok(()),
            false => self.selection(ids).map(drop),
        }
    }

    fn request(&self, selection: &Selection) -> AuthorizeTransferRequest {
        let operation = match self.operation {
            OperationArg::Copy => Operation::Copy,
            OperationArg::Move => Operation::Move,
        };
        let new_id = || AuthorizationId::from_random(random()).to_string();
        AuthorizeTransferRequest {
            request_id: self.request_id.clone().unwrap_or_else(new_id),
            source: self.source.clone(),
            target: self.target.clone(),
            operation: operation.to_wire().into(),
            selection: Some(selection.to_wire()),
            ttl_seconds: self.ttl,
            reason: self.reason.clone(),
        }
    }

    /// What is asked for, with the keys by their ids.
    fn selection(&self, keys: Vec<KeyId>) -> Result<Selection, CliError> {
        if self.all {
            Ok(Selection::All)
        } else if self.keys.is_empty() {
            let labels = Labels::parse(self.select_labels.iter().map(String::as_str));
            let labels = labels.map_err(|error| CliError::usage(format!("--select-label: {error}")))?;
            Ok(Selection::Labels(labels))
        } else {
            Selection::from_unsorted_ids(keys)
                .map_err(|error| CliError::usage(format!("--key: {error}; select larger sets by label")))
        }
    }

    async fn run(self, global: &Global, broker: &mut Broker) -> Result<(), CliError> {
        let keys = KeyRef::resolve_at(&self.source, &self.keys, broker).await?;
        let request = self.request(&self.selection(keys)?);
        // Before the request: a transfer that runs without the file that was asked for is worse than none.
        let out = self.out.as_deref().map(OutFile::create).transpose()?;
        let answer = broker.client.authorize_transfer(request).await;
        let answer = answer
            .map_err(|status| CliError::from_status("the transfer was not authorized", &status))?
            .into_inner();
        if let Some(out) = out {
            out.write(&answer.authorization)?;
        }
        let transfer = answer.transfer.unwrap_or_default();
        if !self.wait {
            return show_one(global, &transfer);
        }
        let id = AuthorizationId::from_slice("authorization_id", &transfer.authorization_id);
        let id = id.map_err(|error| CliError::other(format!("the broker's answer is refused: {error}")))?;
        let last = watch_for(global, broker, id, self.wait_timeout).await?;
        match last.state() {
            TransferState::Complete if last.withheld_count == 0 => Ok(()),
            TransferState::Complete => Err(CliError::new(
                WITHHELD,
                format!(
                    "the transfer is complete, but {} of the selected keys stay at the source; see above why, and ask again for \
                     them when they may leave",
                    last.withheld_count
                ),
            )),
            _ => Err(CliError::new(
                OTHER,
                format!("the transfer ended {}: {}", state(&last), or_dash(&last.detail)),
            )),
        }
    }
}

/// The file for an authorization; it goes away again if nothing is written to it.
struct OutFile<'a> {
    path: &'a Path,
    is_written: bool,
}

impl<'a> OutFile<'a> {
    fn create(path: &'a Path) -> Result<Self, CliError> {
        files::write_new(path, &[], files::PUBLIC)?;
        Ok(Self {
            path,
            is_written: false,
        })
    }

    fn write(mut self, bytes: &[u8]) -> Result<(), CliError> {
        files::replace(self.path, bytes, files::PUBLIC)?;
        self.is_written = true;
        Ok(())
    }
}

impl Drop for OutFile<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            // What is reported is why nothing was written.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

async fn list(global: &Global, broker: &mut Broker, limit: usize) -> Result<(), CliError> {
    let mut transfers: Vec<WireTransfer> = Vec::new();
    let mut page_token = String::new();
    loop {
        let wanted = limit.saturating_sub(transfers.len()).min(1_000);
        let request = ListTransfersRequest {
            page_size: u32::try_from(wanted).unwrap_or(u32::MAX),
            page_token,
        };
        let page = broker.client.list_transfers(request).await;
        let page = page
            .map_err(|status| CliError::from_status("the transfers can't be listed", &status))?
            .into_inner();
        transfers.extend(page.transfers);
        page_token = page.next_page_token;
        if page_token.is_empty() || transfers.len() >= limit {
            break;
        }
    }
    if global.output == Format::Json {
        return print_json(&transfers.iter().map(to_json).collect());
    }
    let mut table = Table::new(&[
        "ID",
        "STATE",
        "OPERATION",
        "SOURCE",
        "TARGET",
        "KEYS",
        "CREATED",
        "REQUESTER",
    ]);
    for transfer in &transfers {
        table.row([
            id(transfer),
            state(transfer).to_owned(),
            operation(transfer).to_owned(),
            source(transfer).to_owned(),
            target(transfer).to_owned(),
            progress(transfer),
            rfc3339(transfer.created_at_ms),
            transfer.requester.clone(),
        ]);
    }
    print(&table.render())
}

async fn show(global: &Global, broker: &mut Broker, id: AuthorizationId) -> Result<(), CliError> {
    let (mut receipts, mut erasure_records) = (0, 0);
    let mut from_chunk = 0;
    let (transfer, names) = loop {
        let request = GetTransferRequest {
            authorization_id: id.to_vec(),
            from_chunk,
        };
        let answer = broker.client.get_transfer(request).await;
        let answer = answer
            .map_err(|status| CliError::from_status("the transfer can't be shown", &status))?
            .into_inner();
        receipts += answer.receipts.len();
        erasure_records += answer.erasure_records.len();
        if answer.next_chunk <= from_chunk {
            break (answer.transfer.unwrap_or_default(), answer.key_names);
        }
        from_chunk = answer.next_chunk;
    };
    if global.output == Format::Json {
        let mut value = to_json(&transfer);
        value["receipts"] = receipts.into();
        value["erasure_records"] = erasure_records.into();
        let names = names
            .iter()
            .map(|key| (uuid(&key.key_id), printable(key.name.clone()).into()));
        value["key_names"] = Value::Object(names.collect());
        return print_json(&value);
    }
    let mut text = describe(
        &transfer,
        &[("receipts", receipts), ("erasure records", erasure_records)],
    );
    for key in &names {
        text += &format!("name  {}  {}\n", uuid(&key.key_id), printable(key.name.clone()));
    }
    print(&text)
}

/// Prints each change until the transfer has ended, or the time is over; returns the last state.
async fn watch_for(
    global: &Global,
    broker: &mut Broker,
    id: AuthorizationId,
    timeout_s: Option<u64>,
) -> Result<WireTransfer, CliError> {
    let mut last = None;
    let watched = watch(global, broker, id, &mut last);
    let in_time = match timeout_s {
        Some(seconds) => tokio::time::timeout(Duration::from_secs(seconds), watched).await,
        None => Ok(watched.await),
    };
    match (in_time, last) {
        (Ok(Err(error)), _) => Err(error),
        (Ok(Ok(())), Some(last)) => Ok(last),
        (Ok(Ok(())), None) => Err(CliError::other(
            "the broker ended the watch without an answer; run the command again",
        )),
        (Err(_), Some(last)) => Err(CliError::new(
            UNAVAILABLE,
            format!("the transfer has not ended: it is still {}; it goes on", state(&last)),
        )),
        (Err(_), None) => Err(CliError::new(
            UNAVAILABLE,
            "the broker did not answer in time; a transfer that was authorized goes on",
        )),
    }
}

async fn watch(
    global: &Global,
    broker: &mut Broker,
    id: AuthorizationId,
    last: &mut Option<WireTransfer>,
) -> Result<(), CliError> {
    let failed = |status: tonic::Status| CliError::from_status("the transfer can't be watched", &status);
    let request = WatchTransferRequest {
        authorization_id: id.to_vec(),
    };
    let mut changes = broker
        .client
        .watch_transfer(request)
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(change) = changes.message().await.map_err(failed)? {
        let transfer = change.transfer.unwrap_or_default();
        let is_complete = transfer.state() == TransferState::Complete;
        match global.output {
            Format::Json => print(&format!("{}\n", to_json(&transfer)))?,
            Format::Table => print(&format!(
                "{}  {}  {}  {} -> {}  {} keys{}\n{}",
                id,
                state(&transfer),
                operation(&transfer),
                source(&transfer),
                target(&transfer),
                progress(&transfer),
                if transfer.detail.is_empty() {
                    String::new()
                } else {
                    format!("  {}", printable(transfer.detail.clone()))
                },
                if is_complete {
                    withheld(&transfer)
                } else {
                    String::new()
                },
            ))?,
        }
        *last = Some(transfer);
    }
    Ok(())
}

fn show_one(global: &Global, transfer: &WireTransfer) -> Result<(), CliError> {
    match global.output {
        Format::Json => print_json(&to_json(transfer)),
        Format::Table => print(&describe(transfer, &[])),
    }
}

fn describe(transfer: &WireTransfer, counts: &[(&str, usize)]) -> String {
    let mut table = Table::new(&[]);
    for (key, value) in [
        ("id", id(transfer)),
        ("state", state(transfer).to_owned()),
        ("operation", operation(transfer).to_owned()),
        ("source", source(transfer).to_owned()),
        ("target", target(transfer).to_owned()),
        ("selection", selection(transfer)),
        ("keys", transfer.key_count.to_string()),
        ("received", transfer.keys_received.to_string()),
        ("erased", transfer.keys_erased.to_string()),
        ("withheld", transfer.withheld_count.to_string()),
        ("requester", transfer.requester.clone()),
        ("request id", transfer.request_id.clone()),
        ("created", rfc3339(transfer.created_at_ms)),
        ("expires", rfc3339(transfer.expires_at_ms)),
        ("changed", rfc3339(transfer.changed_at_ms)),
        ("reason", or_dash(&transfer.reason).to_owned()),
        ("detail", or_dash(&transfer.detail).to_owned()),
    ] {
        table.row([key.to_owned(), value]);
    }
    for (key, count) in counts {
        table.row([(*key).to_owned(), count.to_string()]);
    }
    table.render().trim_start_matches('\n').to_owned() + &withheld(transfer)
}

/// A line for each key that stays at the source, as far as they are told.
fn withheld(transfer: &WireTransfer) -> String {
    let line = |key: &WithheldKey| format!("withheld  {}  {}\n", uuid(&key.key_id), printable(key.reason.clone()));
    let mut lines: String = transfer.withheld.iter().map(line).collect();
    let told = transfer.withheld.len() as u64;
    if transfer.withheld_count > told {
        lines += &format!("withheld  {} more keys\n", transfer.withheld_count - told);
    }
    lines
}

fn uuid(key_id: &[u8]) -> String {
    KeyId::from_slice("key_id", key_id).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

fn to_json(transfer: &WireTransfer) -> Value {
    json!({
        "id": id(transfer),
        "state": state(transfer),
        "operation": operation(transfer),
        "source": source(transfer),
        "target": target(transfer),
        "selection": selection(transfer),
        "key_count": transfer.key_count,
        "keys_received": transfer.keys_received,
        "keys_erased": transfer.keys_erased,
        "withheld_count": transfer.withheld_count,
        "withheld": transfer.withheld.iter().map(|key| json!({
            "key_id": uuid(&key.key_id),
            "reason": key.reason,
        })).collect::<Vec<_>>(),
        "requester": transfer.requester,
        "request_id": transfer.request_id,
        "created_at_ms": transfer.created_at_ms,
        "expires_at_ms": transfer.expires_at_ms,
        "changed_at_ms": transfer.changed_at_ms,
        "reason": transfer.reason,
        "detail": transfer.detail,
    })
}

fn id(transfer: &WireTransfer) -> String {
    AuthorizationId::from_slice("authorization_id", &transfer.authorization_id)
        .map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

fn state(transfer: &WireTransfer) -> &'static str {
    match transfer.state() {
        TransferState::Unspecified => "?",
        TransferState::Authorized => "authorized",
        TransferState::Accepted => "accepted",
        TransferState::Running => "running",
        TransferState::Complete => "complete",
        TransferState::Refused => "refused",
        TransferState::Revoked => "revoked",
        TransferState::Expired => "expired",
    }
}

fn operation(transfer: &WireTransfer) -> &'static str {
    Operation::from_wire(transfer.operation).map_or("?", Operation::as_str)
}

fn source(transfer: &WireTransfer) -> &str {
    transfer.source.as_ref().map_or("?", |lockbox| &lockbox.name)
}

fn target(transfer: &WireTransfer) -> &str {
    transfer.target.as_ref().map_or("?", |lockbox| &lockbox.name)
}

fn selection(transfer: &WireTransfer) -> String {
    match transfer.selection.clone().map(Selection::from_wire) {
        Some(Ok(Selection::Ids(ids))) if ids.len() == 1 => ids[0].to_string(),
        Some(Ok(Selection::Ids(ids))) => format!("{} keys by id", ids.len()),
        Some(Ok(Selection::Labels(labels))) => {
            let texts: Vec<String> = labels
                .iter()
                .map(|label| format!("{}={}", label.key, label.value))
                .collect();
            texts.join(",")
        }
        Some(Ok(Selection::All)) => "all".to_owned(),
        // The broker has dropped it with the authorization.
        None => "-".to_owned(),
        Some(Err(_)) => "?".to_owned(),
    }
}

/// Keys that are done, of all keys if that is known.
fn progress(transfer: &WireTransfer) -> String {
    let done = match Operation::from_wire(transfer.operation) {
        Ok(Operation::Move) => transfer.keys_erased,
        _ => transfer.keys_received,
    };
    let progress = match transfer.key_count {
        0 => done.to_string(),
        all => format!("{done}/{all}"),
    };
    match transfer.withheld_count {
        0 => progress,
        withheld => format!("{progress} ({withheld} withheld)"),
    }
}
