//! `lockbox serve`, `unseal`, `seal` and `status`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lockbox_core::slots::SlotSecret;
use lockbox_host::log;
use lockbox_rpc::api::local::{
    Alarm, GetStatusRequest, GetStatusResponse, Membership, SealRequest, StoreState, UnsealRequest, unseal_request,
};
use serde_json::{Value, json};

use super::args::{SecretArgs, ServeArgs};
use super::client::Client;
use super::error::CliError;
use super::output::{Output, duration_text, fields, hex, mebibytes, or_null, uuid};
use super::secrets;
use crate::clock::rfc3339;
use crate::config::Config;
use crate::engine::OpenError;
use crate::folder::FolderError;
use crate::node::UnsealError;
use crate::serve::{self, ServeError, ServeOptions};

pub(super) fn serve(args: ServeArgs) -> Result<(), CliError> {
    let config = Config::load(&args.config).map_err(|error| CliError::config(error.to_string()))?;
    log::begin(config.log, &["lockbox", "lockbox_rpc", "transfer"])
        .map_err(|error| CliError::failed(format!("the log can't be started: {error}")))?;
    let options = ServeOptions {
        ports_file: args.ports_file,
        unseal_key_file: args.unseal_key_file,
    };
    serve::run(config, options).map_err(explain)
}

pub(super) async fn unseal(args: SecretArgs, mut client: Client, output: &Output) -> Result<(), CliError> {
    let secret = match secrets::slot_secret_or_prompt(&args, "Passphrase: ")? {
        SlotSecret::KeyFile(mut bytes) => unseal_request::Secret::KeyFile(std::mem::take(&mut *bytes)),
        SlotSecret::Passphrase(mut bytes) => unseal_request::Secret::Passphrase(std::mem::take(&mut *bytes)),
    };
    let request = UnsealRequest { secret: Some(secret) };
    let slot_id = client.service.unseal(request).await?.into_inner().slot_id;
    output.print(&json!({ "sealed": false, "slot_id": slot_id }), || {
        format!("unsealed with slot {slot_id}")
    })
}

pub(super) async fn seal(mut client: Client, output: &Output) -> Result<(), CliError> {
    client.service.seal(SealRequest {}).await?;
    output.print(&json!({ "sealed": true }), || "sealed".to_owned())
}

pub(super) async fn status(mut client: Client, output: &Output) -> Result<(), CliError> {
    let status = client.service.get_status(GetStatusRequest {}).await?.into_inner();
    output.print(&status_json(&status), || status_text(&status))?;
    health(&status)
}

/// The exit code: 0 for a healthy lockbox.
fn health(status: &GetStatusResponse) -> Result<(), CliError> {
    if status.sealed {
        return Err(CliError::sealed("it is sealed"));
    }
    let mut reasons = Vec::new();
    if status.store_state() == StoreState::Damaged {
        reasons.push("the store is damaged".to_owned());
    }
    if status.membership() == Membership::Retired {
        reasons.push("the cluster's roster has retired it".to_owned());
    }
    match status.alarms.len() {
        0 => {}
        1 => reasons.push("1 alarm".to_owned()),
        count => reasons.push(format!("{count} alarms")),
    }
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(CliError::degraded(format!(
            "it needs an operator: {}",
            reasons.join(", ")
        ))),
    }
}

fn store_text(state: StoreState) -> &'static str {
    match state {
        StoreState::Unspecified => "sealed",
        StoreState::Checking => "being checked",
        StoreState::Whole => "whole",
        StoreState::Damaged => "damaged",
    }
}

fn disk_text(status: &GetStatusResponse) -> String {
    let taken = mebibytes(status.store_bytes);
    match status.store_waste_bytes {
        Some(waste) => format!("{taken}, {} of it wasted", mebibytes(waste)),
        None => taken,
    }
}

pub(super) fn membership_text(membership: Membership) -> &'static str {
    match membership {
        Membership::Unspecified | Membership::None => "none",
        Membership::Pending => "pending",
        Membership::Admitted => "admitted",
        Membership::Retired => "retired",
    }
}

fn status_json(status: &GetStatusResponse) -> Value {
    let slots = status.slots.iter();
    let slots: Vec<Value> = slots
        .map(|slot| json!({ "slot_id": slot.slot_id, "kind": slot.kind }))
        .collect();
    if status.sealed {
        return json!({
            "sealed": true,
            "software_version": status.software_version,
            "slots": slots,
            "memory_locked": status.memory_locked,
        });
    }
    let alarm = |alarm: &Alarm| {
        json!({
            "alarm_id": alarm.alarm_id,
            "kind": alarm.kind,
            "what": alarm.what,
            "raised_at_ms": alarm.raised_at_ms,
        })
    };
    let head = status.roster_head.as_ref();
    json!({
        "sealed": false,
        "software_version": status.software_version,
        "slots": slots,
        "memory_locked": status.memory_locked,
        "lockbox_id": uuid(&status.lockbox_id),
        "name": status.name,
        "fingerprint": status.fingerprint,
        "identity_key": hex(&status.identity_key),
        "wrapping_certificate": or_null(BASE64.encode(&status.wrapping_certificate)),
        "cluster_id": or_null(hex(&status.cluster_id)),
        "membership": membership_text(status.membership()),
        "roster_head": head.map(|head| json!({ "index": head.index, "hash": hex(&head.hash) })),
        "broker_connected": status.broker_connected,
        "broker_address": or_null(status.broker_address.clone()),
        "key_count": status.key_count,
        "scheduled_count": status.scheduled_count,
        "next_destruction_ms": (status.scheduled_count > 0).then_some(status.next_destruction_ms),
        "store": store_text(status.store_state()),
        "store_finding": or_null(status.store_finding.clone()),
        "damaged_records": status.damaged_records,
        "store_bytes": status.store_bytes,
        "store_waste_bytes": status.store_waste_bytes,
        "alarms": status.alarms.iter().map(alarm).collect::<Vec<_>>(),
        "peer_address": or_null(status.peer_address.clone()),
    })
}

fn status_text(status: &GetStatusResponse) -> String {
    let slots: Vec<_> = status
        .slots
        .iter()
        .map(|slot| format!("{} ({})", slot.slot_id, slot.kind))
        .collect();
    let memory = match status.memory_locked {
        true => "locked",
        false => "not locked: secrets may reach swap",
    };
    if status.sealed {
        return fields(&[
            ("state", "sealed; open it with `lockbox unseal`".to_owned()),
            ("slots", slots.join(", ")),
            ("memory", memory.to_owned()),
            ("version", status.software_version.clone()),
        ]);
    }
    let broker = match (status.broker_address.as_str(), status.broker_connected) {
        ("", _) => String::new(),
        (address, true) => format!("{address}, connected"),
        (address, false) => format!("{address}, not connected"),
    };
    let mut text = fields(&[
        ("state", "unsealed".to_owned()),
        ("lockbox", uuid(&status.lockbox_id)),
        ("name", status.name.clone()),
        ("fingerprint", status.fingerprint.clone()),
        ("cluster", hex(&status.cluster_id)),
        ("membership", membership_text(status.membership()).to_owned()),
        (
            "roster",
            status
                .roster_head
                .as_ref()
                .map(|head| format!("entry {}", head.index))
                .unwrap_or_default(),
        ),
        ("broker", broker),
        ("peers at", status.peer_address.clone()),
        ("keys", status.key_count.to_string()),
        ("scheduled", scheduled_text(status)),
        ("store", store_text(status.store_state()).to_owned()),
        ("disk", disk_text(status)),
        ("slots", slots.join(", ")),
        ("memory", memory.to_owned()),
        ("version", status.software_version.clone()),
    ]);
    for record in &status.damaged_records {
        text += &format!("\ndamaged: {record}");
    }
    for alarm in &status.alarms {
        let (number, what, when) = (alarm.alarm_id, &alarm.what, rfc3339(alarm.raised_at_ms));
        let (title, effect) = match alarm.kind.as_str() {
            "warn" => ("WARNING", "it stops nothing"),
            _ => ("ALARM", "transfers are stopped"),
        };
        text += &format!(
            "\n{title} {number} since {when}: {what}\n  {effect}; once it was looked at: lockbox alarm clear {number}\n"
        );
    }
    text
}

/// Keys that are scheduled for destruction; nothing for none.
fn scheduled_text(status: &GetStatusResponse) -> String {
    match status.scheduled_count {
        0 => String::new(),
        count => format!(
            "{count} for destruction, the first in {} of the daemon's run time",
            duration_text(status.next_destruction_ms)
        ),
    }
}

fn explain(error: ServeError) -> CliError {
    let text = crate::chain(&error);
    match error {
        ServeError::Folder(FolderError::Store(_)) => CliError::store(text),
        ServeError::Folder(_) | ServeError::KeyFile(_) => CliError::config(text),
        ServeError::Unseal(UnsealError::Slot(_)) => CliError::not_permitted(text),
        ServeError::Unseal(UnsealError::Open(
            OpenError::Folder(FolderError::Store(_))
            | OpenError::Store(_)
            | OpenError::NotAsCommitted(_)
            | OpenError::NoRoot(_),
        )) => CliError::store(text),
        ServeError::Unseal(_) | ServeError::Bind(_) | ServeError::Runtime(_) => CliError::failed(text),
    }
}
