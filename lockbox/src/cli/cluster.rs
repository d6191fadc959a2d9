//! `lockbox join`, `roster` and `alarm`.

use std::path::Path;

use lockbox_authz::limits::{MAX_ENVELOPE_BYTES, MAX_ROSTER_PAGE};
use lockbox_authz::roster::{LockboxMember, file};
use lockbox_authz::{Roster, UnverifiedEnvelope};
use lockbox_rpc::api::local::{
    ApplyRosterRequest, ClearAlarmRequest, GetRosterRequest, JoinRequest, JoinTarget, Membership, join_request,
};
use serde_json::{Value, json};

use super::args::{AlarmCommand, JoinArgs, RosterCommand};
use super::client::Client;
use super::daemon::membership_text;
use super::error::CliError;
use super::keys::wire_labels;
use super::output::{Output, fields, labels_json, labels_text, table};
use super::secrets;
use crate::files::{self, PUBLIC};

/// Entries of one request: a page of the largest envelopes stays below the transport's 4 MiB.
const ENTRIES_PER_REQUEST: usize = 64;
const _: () =
    assert!(ENTRIES_PER_REQUEST * MAX_ENVELOPE_BYTES < 4 * 1024 * 1024 && ENTRIES_PER_REQUEST < MAX_ROSTER_PAGE);

/// A roster file: thousands of entries, and not somebody's disk image.
const MAX_ROSTER_FILE_BYTES: usize = 64 * 1024 * 1024;

pub(super) async fn join(args: JoinArgs, mut client: Client, output: &Output) -> Result<(), CliError> {
    let how = match (&args.token, args.broker, args.cluster_id, args.broker_key) {
        (Some(path), ..) => join_request::How::Token(std::mem::take(&mut *secrets::token(path)?)),
        (None, Some(broker_address), Some(cluster_id), Some(broker_key)) => join_request::How::Target(JoinTarget {
            broker_address,
            cluster_id: cluster_id.to_vec(),
            broker_key: broker_key.to_vec(),
            labels: wire_labels(args.labels),
        }),
        (None, ..) => {
            return Err(CliError::usage(
                "name a token with --token, or a broker with --broker, --cluster-id and --broker-key",
            ));
        }
    };
    let answer = client.service.join(JoinRequest { how: Some(how) }).await?.into_inner();
    let membership = answer.membership();
    let json = json!({ "membership": membership_text(membership), "fingerprint": answer.fingerprint });
    output.print(&json, || {
        let advice = match membership {
            Membership::Pending => "an admin compares this fingerprint, then runs: lockbox-broker lockbox admit",
            _ => "",
        };
        fields(&[
            ("membership", membership_text(membership).to_owned()),
            ("fingerprint", answer.fingerprint.clone()),
            ("next", advice.to_owned()),
        ])
    })
}

pub(super) async fn roster(command: RosterCommand, client: Client, output: &Output) -> Result<(), CliError> {
    match command {
        RosterCommand::Show => show(client, output).await,
        RosterCommand::Apply { file } => apply(client, output, &file).await,
        RosterCommand::Export { file } => export(client, output, &file).await,
    }
}

pub(super) async fn alarm(command: AlarmCommand, mut client: Client, output: &Output) -> Result<(), CliError> {
    let AlarmCommand::Clear { number } = command;
    client
        .service
        .clear_alarm(ClearAlarmRequest { alarm_id: number })
        .await?;
    output.print(&json!({ "cleared": number }), || format!("alarm {number} is cleared"))
}

async fn show(client: Client, output: &Output) -> Result<(), CliError> {
    let entries = fetch(client).await?;
    let roster = Roster::from_chain(&entries, None)
        .map_err(|error| CliError::failed(format!("the daemon's roster does not verify: {error}")))?;
    output.print(&roster_json(&roster), || roster_text(&roster))
}

async fn apply(mut client: Client, output: &Output, path: &Path) -> Result<(), CliError> {
    let wrong = |why: String| CliError::usage(format!("{}: {why}", path.display()));
    let bytes = files::read_bounded(path, MAX_ROSTER_FILE_BYTES).map_err(|error| CliError::usage(error.to_string()))?;
    let entries = file::decode_entries(&bytes).map_err(|error| wrong(error.to_string()))?;
    if entries.is_empty() {
        return Err(wrong("there is no roster entry in it".to_owned()));
    }
    let (mut applied, mut head) = (0, None);
    for page in entries.chunks(ENTRIES_PER_REQUEST) {
        let entries = page.iter().map(UnverifiedEnvelope::to_bytes).collect();
        let answer = client
            .service
            .apply_roster(ApplyRosterRequest { entries })
            .await?
            .into_inner();
        applied += answer.applied;
        head = answer.head;
    }
    let index = head.map_or(0, |head| head.index);
    output.print(&json!({ "applied": applied, "head_index": index }), || {
        format!("{applied} new entries; the roster is at entry {index}")
    })
}

async fn export(client: Client, output: &Output, path: &Path) -> Result<(), CliError> {
    let entries = fetch(client).await?;
    files::replace(path, &file::encode_entries(&entries), PUBLIC)
        .map_err(|error| CliError::failed(error.to_string()))?;
    let count = entries.len();
    output.print(&json!({ "entries": count, "file": path }), || {
        format!("{count} entries are in {}", path.display())
    })
}

/// The whole roster, page by page.
async fn fetch(mut client: Client) -> Result<Vec<UnverifiedEnvelope>, CliError> {
    let mut entries = Vec::new();
    loop {
        let from_index = entries.len() as u64;
        let page = client
            .service
            .get_roster(GetRosterRequest { from_index })
            .await?
            .into_inner();
        let end = page.head.map_or(0, |head| head.index + 1);
        let empty = page.entries.is_empty();
        for bytes in page.entries {
            let entry = UnverifiedEnvelope::from_bytes(&bytes);
            entries
                .push(entry.map_err(|error| CliError::failed(format!("the daemon's roster is malformed: {error}")))?);
        }
        if empty || entries.len() as u64 >= end {
            return Ok(entries);
        }
    }
}

fn roster_json(roster: &Roster) -> Value {
    let lockbox = |member: &LockboxMember| {
        json!({
            "lockbox_id": member.lockbox.lockbox_id.to_string(),
            "name": member.lockbox.name,
            "fingerprint": member.lockbox.identity_key.fingerprint().to_string(),
            "labels": labels_json(&member.lockbox.labels.to_wire()),
            "retired": member.retired,
        })
    };
    let brokers = roster.brokers().iter().map(|broker| {
        json!({
            "name": broker.name,
            "signing_key": broker.signing_key.to_string(),
            "retired": broker.retired,
        })
    });
    json!({
        "cluster_id": roster.cluster_id().to_string(),
        "cluster_name": roster.cluster_name(),
        "head": { "index": roster.head().index, "hash": roster.head().hash.to_string() },
        "admins": roster.admins().keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "admin_threshold": roster.admins().threshold,
        "broker_threshold": roster.broker_threshold(),
        "brokers": brokers.collect::<Vec<_>>(),
        "lockboxes": roster.lockboxes().map(lockbox).collect::<Vec<_>>(),
    })
}

fn roster_text(roster: &Roster) -> String {
    let state = |retired: bool| if retired { "retired" } else { "admitted" }.to_owned();
    let head = roster.head();
    let admins = roster.admins();
    let brokers = roster.brokers().iter().map(|broker| {
        let key = broker.signing_key.to_string();
        vec![
            "broker".to_owned(),
            broker.name.clone(),
            state(broker.retired),
            key,
            String::new(),
        ]
    });
    let lockboxes = roster.lockboxes().map(|member| {
        let id = member.lockbox.lockbox_id.to_string();
        let labels = labels_text(&member.lockbox.labels.to_wire());
        vec![
            "lockbox".to_owned(),
            member.lockbox.name.clone(),
            state(member.retired),
            id,
            labels,
        ]
    });
    let rows: Vec<_> = brokers.chain(lockboxes).collect();
    let facts = fields(&[
        (
            "cluster",
            format!("{} ({})", roster.cluster_name(), roster.cluster_id()),
        ),
        ("head", format!("entry {} ({})", head.index, head.hash)),
        (
            "admins",
            format!("{} of {} must sign", admins.threshold, admins.keys.len()),
        ),
    ]);
    format!(
        "{facts}\n{}",
        table(&["KIND", "NAME", "STATE", "ID OR KEY", "LABELS"], &rows)
    )
}
