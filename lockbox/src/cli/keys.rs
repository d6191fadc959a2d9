//! `lockbox key`.

use std::io::{self, BufRead, IsTerminal};

use lockbox_authz::field::Label;
use lockbox_authz::id::KeyId;
use lockbox_core::keys::DAMAGED;
use lockbox_core::lifecycle::derive::policy_text;
use lockbox_core::record::ClonePolicy;
use lockbox_rpc::api::local::{
    CreateKeyRequest, DestroyKeyRequest, Destruction, GetKeyRequest, GetStatusRequest, ImportKeyRequest, Key,
    ListKeysRequest, ResolveKeyRequest, RevealKeyRequest, TransferPolicy,
};
use serde_json::{Value, json};
use tonic::Code;

use super::args::{Attributes, Encoding, KeyCommand};
use super::client::Client;
use super::error::CliError;
use super::lifecycle::consumer_text;
use super::output::{Output, duration_text, fields, labels_json, labels_text, or_null, table, time_or_null, uuid};
use super::{lifecycle, secrets};
use crate::clock::rfc3339;

/// Keys of one request.
const PAGE: u32 = 1_000;

pub(super) async fn run(command: KeyCommand, mut client: Client, output: &Output) -> Result<(), CliError> {
    match command {
        KeyCommand::Create {
            attributes,
            length_bytes,
        } => {
            let mut request = request(attributes);
            request.length_bytes = length_bytes.unwrap_or(0);
            let key = client.service.create_key(request).await?.into_inner().key;
            print(output, &key.unwrap_or_default())
        }
        KeyCommand::Import {
            attributes,
            input,
            encoding,
        } => {
            let mut material = secrets::material(&input, encoding)?;
            let request = ImportKeyRequest {
                attributes: Some(request(attributes)),
                material: std::mem::take(&mut *material),
            };
            let key = client.service.import_key(request).await?.into_inner().key;
            print(output, &key.unwrap_or_default())
        }
        KeyCommand::List { name, all } => {
            let listed = list_completely(&mut client, name, all).await?;
            let keys = &listed.keys;
            let json = json!({ "keys": keys.iter().map(key_json).collect::<Vec<_>>() });
            output.print(&json, || keys_text(keys))?;
            check_whole(&listed)
        }
        KeyCommand::Show { key } => {
            let key_id = resolve(&mut client, key, true).await?.to_vec();
            let key = client.service.get_key(GetKeyRequest { key_id }).await?.into_inner().key;
            print(output, &key.unwrap_or_default())
        }
        KeyCommand::Reveal {
            key,
            encoding,
            to_terminal,
        } => reveal(&mut client, key, encoding, to_terminal).await,
        KeyCommand::Destroy { key, force, yes } => {
            let key_id = resolve(&mut client, key, false).await?;
            if !yes {
                confirm(&format!(
                    "Key {key_id} will be gone for good, and with it whatever only it opens.\n"
                ))?;
            }
            let key_id = key_id.to_vec();
            let request = DestroyKeyRequest { key_id, force };
            let answer = client.service.destroy_key(request).await?.into_inner();
            let key = answer.key.unwrap_or_default();
            let remaining: Vec<_> = answer.remaining_key_ids.iter().map(|id| uuid(id)).collect();
            let mut json = key_json(&key);
            json["remaining_key_ids"] = json!(remaining);
            output.print(&json, || {
                let mut text = key_text(&key);
                if !remaining.is_empty() {
                    text += &format!("\nIts material lives on in: {}\n", remaining.join(", "));
                }
                text
            })
        }
        KeyCommand::Life(command) => lifecycle::run(command, &mut client, output).await,
    }
}

pub(super) fn wire_labels(labels: Vec<Label>) -> Vec<lockbox_authz::wire::Label> {
    let wire = |Label { key, value }| lockbox_authz::wire::Label { key, value };
    labels.into_iter().map(wire).collect()
}

async fn reveal(client: &mut Client, key: String, encoding: Encoding, to_terminal: bool) -> Result<(), CliError> {
    if io::stdout().is_terminal() && !to_terminal {
        return Err(CliError::usage(
            "the key would be shown on the terminal, and stay in its history; send it to a pipe or a file, or say \
             --to-terminal",
        ));
    }
    let key_id = resolve(client, key, false).await?.to_vec();
    let answer = client
        .service
        .reveal_key(RevealKeyRequest { key_id })
        .await?
        .into_inner();
    secrets::write(&answer.material, encoding)
}

fn request(attributes: Attributes) -> CreateKeyRequest {
    CreateKeyRequest {
        key_id: attributes.id.map(KeyId::to_vec).unwrap_or_default(),
        name: attributes.name,
        algorithm: attributes.algorithm,
        length_bytes: 0,
        labels: wire_labels(attributes.labels),
        transfer_policy: Some(TransferPolicy {
            pinned: attributes.pinned,
            deny_copy: attributes.deny_copy,
            deny_move: attributes.deny_move,
            required_target_labels: wire_labels(attributes.required_target_labels),
            canary: attributes.canary,
        }),
        clone_policy: Some(attributes.clone_policy),
        consumers: attributes.consumers,
    }
}

async fn list(client: &mut Client, name: String, include_departed: bool) -> Result<Vec<Key>, CliError> {
    let mut keys = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListKeysRequest {
            page_size: PAGE,
            page_token,
            name: name.clone(),
            include_departed,
        };
        let page = client.service.list_keys(request).await?.into_inner();
        keys.extend(page.keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(keys);
        }
    }
}

struct Listed {
    keys: Vec<Key>,
    /// How many keys that are here the list lacks.
    missing: u64,
    /// What a scan of the store has found, if that is damage.
    finding: String,
}

/// Lists keys; without a name, all of them, and compares their number with the one that the lockbox has. Once more if that
/// differs: keys may have come and gone meanwhile.
async fn list_completely(client: &mut Client, name: Option<String>, all: bool) -> Result<Listed, CliError> {
    const ATTEMPTS: usize = 3;
    let is_filtered = name.is_some();
    let name = name.unwrap_or_default();
    let mut listed = Listed {
        keys: Vec::new(),
        missing: 0,
        finding: String::new(),
    };
    for _ in 0..ATTEMPTS {
        let before = client.service.get_status(GetStatusRequest {}).await?.into_inner();
        listed.keys = list(client, name.clone(), all).await?;
        if is_filtered {
            break;
        }
        let after = client.service.get_status(GetStatusRequest {}).await?.into_inner();
        let here = listed.keys.iter().filter(|key| !key.departed).count() as u64;
        listed.missing = before.key_count.min(after.key_count).saturating_sub(here);
        listed.finding = after.store_finding;
        if listed.missing == 0 {
            break;
        }
    }
    Ok(listed)
}

/// Whoever counts on the list must not overlook what is missing in it; so the list is there, and the command fails.
fn check_whole(listed: &Listed) -> Result<(), CliError> {
    let (damaged, marks): (Vec<&Key>, Vec<&Key>) = listed
        .keys
        .iter()
        .filter(|key| !key.damage.is_empty())
        .partition(|key| is_damaged(key));
    let (gone, here): (Vec<&Key>, Vec<&Key>) = damaged.into_iter().partition(|key| key.departed);
    let mut texts = Vec::new();
    let mut say = |keys: &[&Key], what: &str, advice: &str| {
        if !keys.is_empty() {
            let ids = ids(keys.iter().copied()).join("\n  ");
            texts.push(format!("{} of these keys {what}:\n  {ids}\n{advice}", keys.len()));
        }
    };
    say(
        &here,
        "can't be read, as their records are damaged",
        "all others are served; to have these again, restore a backup (see `lockbox backup restore --help`), and to be rid of \
         one, destroy it: lockbox key destroy ID --force",
    );
    say(
        &marks,
        "are served, and whether they are part of a transfer can't be told, as that record is damaged",
        "they can be neither moved nor destroyed; restore a backup (see `lockbox backup restore --help`) to be able to",
    );
    say(
        &gone,
        "are gone, and what remains of them can't be read",
        "there is nothing to destroy; to know again what they were, restore a backup (see `lockbox backup restore --help`)",
    );
    if listed.missing > 0 {
        texts.push(format!(
            "{} keys are missing in this list, as their records are not in the store: look at `lockbox status` when the scan \
             of the store has ended",
            listed.missing
        ));
    }
    if !listed.finding.is_empty() && texts.is_empty() {
        texts.push(format!(
            "the store is damaged ({}), so this list may not be what it was: look at `lockbox status`",
            listed.finding
        ));
    }
    match texts.is_empty() {
        true => Ok(()),
        false => Err(CliError::store(texts.join("\n"))),
    }
}

fn is_damaged(key: &Key) -> bool {
    key.state == DAMAGED
}

fn is_scheduled(key: &Key) -> bool {
    key.destruction.is_some()
}

fn ids<'a>(keys: impl Iterator<Item = &'a Key>) -> Vec<String> {
    keys.map(|key| uuid(&key.key_id)).collect()
}

/// The one key with an id or a name among those that are scheduled for destruction, else as for other commands.
pub(super) async fn resolve_scheduled(client: &mut Client, key: String) -> Result<KeyId, CliError> {
    let mut scheduled = list(client, key.clone(), false).await?;
    scheduled.retain(is_scheduled);
    match &scheduled[..] {
        [] => resolve(client, key, false).await,
        several => only(&key, several),
    }
}

fn only(name: &str, keys: &[Key]) -> Result<KeyId, CliError> {
    if let [key] = keys {
        return KeyId::from_slice("key_id", &key.key_id).map_err(|error| CliError::failed(error.to_string()));
    }
    let of = |key: &Key| format!("{} ({})", uuid(&key.key_id), key.state);
    let ids: Vec<_> = keys.iter().map(of).collect();
    Err(CliError::failed(format!(
        "several keys have or had the name {name:?}; give the id of one:\n  {}",
        ids.join("\n  ")
    )))
}

/// Finds the key with an id or a name. With `include_departed`, a name may also be that of one key that is gone.
pub(super) async fn resolve(client: &mut Client, key: String, include_departed: bool) -> Result<KeyId, CliError> {
    let request = ResolveKeyRequest { key: key.clone() };
    let answer = match client.service.resolve_key(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if include_departed && status.code() == Code::NotFound => {
            let mut keys = list(client, key.clone(), true).await?;
            keys.retain(|key| !is_damaged(key));
            return if keys.is_empty() {
                Err(status.into())
            } else {
                only(&key, &keys)
            };
        }
        Err(status) => return Err(status.into()),
    };
    KeyId::from_slice("key_id", &answer.key_id).map_err(|error| CliError::failed(error.to_string()))
}

/// Shows what a command takes away, and asks.
pub(super) fn confirm(what: &str) -> Result<(), CliError> {
    lockbox_host::ask!("{what}");
    if !io::stdin().is_terminal() {
        return Err(CliError::usage(
            "nothing was done, as standard input is no terminal to ask on; to do it without being asked, say --yes",
        ));
    }
    lockbox_host::ask!("Type \"destroy\" to go on: ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == "destroy" => Ok(()),
        _ => Err(CliError::failed("nothing was done")),
    }
}

/// How long a key that is scheduled for destruction is still there.
pub(super) fn remaining_text(key: &Key) -> String {
    let remaining_ms = key
        .destruction
        .as_ref()
        .map_or(0, |destruction| destruction.remaining_ms);
    format!("{} of the daemon's run time", duration_text(remaining_ms))
}

pub(super) fn print(output: &Output, key: &Key) -> Result<(), CliError> {
    output.print(&key_json(key), || key_text(key))
}

pub(super) fn key_json(key: &Key) -> Value {
    let policy = key.transfer_policy.clone().unwrap_or_default();
    json!({
        "key_id": uuid(&key.key_id),
        "material_id": uuid(&key.material_id),
        "name": key.name,
        "by_id_only": key.by_id_only,
        "state": key.state,
        "algorithm": or_null(key.algorithm.clone()),
        "length_bytes": key.length_bytes,
        "origin": or_null(key.origin.clone()),
        "created_at_ms": time_or_null(key.created_at_ms),
        "labels": labels_json(&key.labels),
        "transfer_policy": {
            "pinned": policy.pinned,
            "deny_copy": policy.deny_copy,
            "deny_move": policy.deny_move,
            "required_target_labels": labels_json(&policy.required_target_labels),
            "canary": policy.canary,
        },
        "clone_policy": clone_policy_text(key),
        "consumers": key.consumers.iter().map(consumer_text).collect::<Vec<_>>(),
        "parent_key_id": or_null(uuid(&key.parent_key_id)),
        "relation": or_null(key.relation.clone()),
        "lies_on_key_id": or_null(uuid(&key.lies_on_key_id)),
        "open_transfer": or_null(uuid(&key.open_transfer)),
        "destruction": key.destruction.as_ref().map(destruction_json),
        "departed_at_ms": time_or_null(key.departed_at_ms),
        "moved_to": or_null(uuid(&key.moved_to)),
        "damage": or_null(key.damage.clone()),
    })
}

fn destruction_json(destruction: &Destruction) -> Value {
    json!({
        "origin": destruction.origin,
        "job": or_null(uuid(&destruction.job_key_id)),
        "scheduled_at_ms": destruction.scheduled_at_ms,
        "remaining_ms": destruction.remaining_ms,
        "returns_to": destruction.returns_to,
    })
}

pub(super) fn key_text(key: &Key) -> String {
    let bytes = match key.length_bytes {
        0 => String::new(),
        bytes => bytes.to_string(),
    };
    let time = |ms: i64| if ms == 0 { String::new() } else { rfc3339(ms) };
    fields(&[
        ("key", uuid(&key.key_id)),
        ("name", name_text(key)),
        ("state", key.state.clone()),
        ("algorithm", key.algorithm.clone()),
        ("bytes", bytes),
        ("origin", key.origin.clone()),
        ("created", time(key.created_at_ms)),
        ("labels", labels_text(&key.labels)),
        ("veto", veto(key)),
        ("clones", clone_policy_text(key)),
        (
            "consumers",
            key.consumers.iter().map(consumer_text).collect::<Vec<_>>().join(" "),
        ),
        ("descends from", uuid(&key.parent_key_id)),
        ("as its", key.relation.clone()),
        ("lies on", lies_on_text(key)),
        ("in transfer", uuid(&key.open_transfer)),
        ("destroyed in", destruction_text(key)),
        ("gone since", time(key.departed_at_ms)),
        ("moved to", uuid(&key.moved_to)),
        ("material", uuid(&key.material_id)),
    ])
}

fn destruction_text(key: &Key) -> String {
    let Some(destruction) = &key.destruction else {
        return String::new();
    };
    format!(
        "{}, as {} {} ended at {}; if that is cancelled, it is {} again",
        remaining_text(key),
        destruction.origin,
        uuid(&destruction.job_key_id),
        rfc3339(destruction.scheduled_at_ms),
        destruction.returns_to
    )
}

/// A layer lies on what it descends from; that is said already.
fn lies_on_text(key: &Key) -> String {
    match key.lies_on_key_id == key.parent_key_id {
        true => String::new(),
        false => uuid(&key.lies_on_key_id),
    }
}

fn keys_text(keys: &[Key]) -> String {
    let row = |key: &Key| {
        let created = if key.departed_at_ms == 0 {
            key.created_at_ms
        } else {
            key.departed_at_ms
        };
        vec![
            uuid(&key.key_id),
            name_text(key),
            key.state.clone(),
            if created == 0 { String::new() } else { rfc3339(created) },
            veto(key),
            labels_text(&key.labels),
        ]
    };
    table(
        &["KEY", "NAME", "STATE", "SINCE", "VETO", "LABELS"],
        &keys.iter().map(row).collect::<Vec<_>>(),
    )
}

/// A name that means another key is marked, as it can't be used for this one.
fn name_text(key: &Key) -> String {
    if key.by_id_only {
        format!("{} (by id only)", key.name)
    } else {
        key.name.clone()
    }
}

/// What a snapshot or clone may do with the key; nothing for one that is gone.
fn clone_policy_text(key: &Key) -> String {
    let Some(policy) = key.clone_policy else {
        return String::new();
    };
    policy_text(ClonePolicy {
        share: policy.share,
        rekey: policy.rekey,
        layer: policy.layer,
    })
}

/// What the key's own lockbox forbids, in words.
fn veto(key: &Key) -> String {
    let policy = key.transfer_policy.clone().unwrap_or_default();
    let mut words = Vec::new();
    if policy.pinned {
        words.push("pinned".to_owned());
    }
    if policy.canary {
        words.push("canary".to_owned());
    }
    if policy.deny_copy {
        words.push("no copy".to_owned());
    }
    if policy.deny_move {
        words.push("no move".to_owned());
    }
    if !policy.required_target_labels.is_empty() {
        words.push(format!("only to {}", labels_text(&policy.required_target_labels)));
    }
    words.join(", ")
}
