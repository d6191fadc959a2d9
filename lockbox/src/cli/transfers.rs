//! `lockbox transfer`.

use lockbox_authz::limits::MAX_ENVELOPE_BYTES;
use lockbox_rpc::api::local::{AcceptTransferRequest, GetTransferRequest, ListTransfersRequest, Transfer, WithheldKey};
use serde_json::{Value, json};

use super::args::TransferCommand;
use super::client::Client;
use super::error::CliError;
use super::output::{Output, fields, or_null, table, time_or_null, uuid};
use crate::clock::rfc3339;
use crate::files;

/// Transfers of one request.
const PAGE: u32 = 1_000;

pub(super) async fn run(command: TransferCommand, mut client: Client, output: &Output) -> Result<(), CliError> {
    match command {
        TransferCommand::List => {
            let mut transfers = list(&mut client).await?;
            transfers.sort_by_key(|transfer| std::cmp::Reverse(transfer.began_at_ms));
            let json = json!({ "transfers": transfers.iter().map(transfer_json).collect::<Vec<_>>() });
            output.print(&json, || transfers_text(&transfers))
        }
        TransferCommand::Show { authorization_id } => {
            let request = GetTransferRequest {
                authorization_id: authorization_id.to_vec(),
            };
            let answer = client.service.get_transfer(request).await?.into_inner();
            let transfer = answer.transfer.unwrap_or_default();
            let (receipts, erasure_records) = (answer.receipts.len(), answer.erasure_records.len());
            let mut json = transfer_json(&transfer);
            json["receipts"] = receipts.into();
            json["erasure_records"] = erasure_records.into();
            output.print(&json, || {
                let evidence = format!("{receipts} receipts, {erasure_records} erasure records");
                transfer_text(&transfer) + &fields(&[("evidence", evidence)])
            })
        }
        TransferCommand::Accept { file, source_address } => {
            let authorization = files::read_bounded(&file, MAX_ENVELOPE_BYTES);
            let authorization = authorization.map_err(|error| CliError::usage(error.to_string()))?;
            let request = AcceptTransferRequest {
                authorization: authorization.to_vec(),
                source_address,
            };
            let transfer = client.service.accept_transfer(request).await?.into_inner().transfer;
            let transfer = transfer.unwrap_or_default();
            output.print(&transfer_json(&transfer), || transfer_text(&transfer))
        }
    }
}

async fn list(client: &mut Client) -> Result<Vec<Transfer>, CliError> {
    let mut transfers = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListTransfersRequest {
            page_size: PAGE,
            page_token,
        };
        let page = client.service.list_transfers(request).await?.into_inner();
        transfers.extend(page.transfers);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(transfers);
        }
    }
}

fn operation(transfer: &Transfer) -> &'static str {
    match transfer.operation() {
        lockbox_authz::wire::Operation::Copy => "copy",
        lockbox_authz::wire::Operation::Move => "move",
        lockbox_authz::wire::Operation::Unspecified => "unknown",
    }
}

fn transfer_json(transfer: &Transfer) -> Value {
    json!({
        "authorization_id": uuid(&transfer.authorization_id),
        "role": transfer.role,
        "peer_id": uuid(&transfer.peer_id),
        "operation": operation(transfer),
        "state": transfer.state,
        "key_count": transfer.key_count,
        "chunk_count": transfer.chunk_count,
        "chunks_done": transfer.chunks_done,
        "withheld_count": transfer.withheld_count,
        "withheld": transfer.withheld.iter().map(|key| json!({
            "key_id": uuid(&key.key_id),
            "reason": key.reason,
        })).collect::<Vec<_>>(),
        "began_at_ms": time_or_null(transfer.began_at_ms),
        "ended_at_ms": time_or_null(transfer.ended_at_ms),
        "detail": or_null(transfer.detail.clone()),
        "requester": transfer.requester,
        "reason": or_null(transfer.reason.clone()),
    })
}

fn transfer_text(transfer: &Transfer) -> String {
    let count = |count: u64| if count == 0 { String::new() } else { count.to_string() };
    let shown = fields(&[
        ("transfer", uuid(&transfer.authorization_id)),
        ("operation", operation(transfer).to_owned()),
        ("state", transfer.state.clone()),
        ("detail", transfer.detail.clone()),
        ("this is the", transfer.role.clone()),
        ("other end", uuid(&transfer.peer_id)),
        ("keys", count(transfer.key_count)),
        ("withheld", count(transfer.withheld_count)),
        ("chunks", progress(transfer)),
        ("began", rfc3339(transfer.began_at_ms)),
        ("ended", rfc3339(transfer.ended_at_ms)),
        ("requester", transfer.requester.clone()),
        ("reason", transfer.reason.clone()),
    ]);
    let withheld = |key: &WithheldKey| format!("withheld  {}  {}\n", uuid(&key.key_id), key.reason);
    shown + &transfer.withheld.iter().map(withheld).collect::<String>()
}

fn transfers_text(transfers: &[Transfer]) -> String {
    let row = |transfer: &Transfer| {
        vec![
            uuid(&transfer.authorization_id),
            transfer.role.clone(),
            operation(transfer).to_owned(),
            transfer.state.clone(),
            transfer.key_count.to_string(),
            progress(transfer),
            rfc3339(transfer.began_at_ms),
            transfer.detail.clone(),
        ]
    };
    table(
        &[
            "TRANSFER",
            "ROLE",
            "OPERATION",
            "STATE",
            "KEYS",
            "CHUNKS",
            "BEGAN",
            "DETAIL",
        ],
        &transfers.iter().map(row).collect::<Vec<_>>(),
    )
}

fn progress(transfer: &Transfer) -> String {
    format!("{}/{}", transfer.chunks_done, transfer.chunk_count)
}
