//! `lockbox key set|consumer|snapshot|clone|rotate|compromise|impact`.

use clap::{Args, Subcommand, ValueEnum};
use lockbox_authz::field::Label;
use lockbox_authz::id::KeyId;
use lockbox_authz::wire::{InventoryConsumer, InventoryEntry, InventoryState};
use lockbox_rpc::api::local::{
    AddConsumerRequest, CancelDestructionRequest, ClonePolicy, CompromiseKeyRequest, DeriveKeyRequest, Finding,
    GetImpactRequest, GetImpactResponse, GetKeyRequest, LabelSet, Relation, RemoveConsumerRequest, SetKeyRequest,
    TransferPolicy,
};
use serde_json::{Value, json};

use super::args::label;
use super::client::Client;
use super::error::CliError;
use super::jobs::job_json;
use super::keys::{self, resolve, wire_labels};
use super::output::{Output, or_null, table, uuid};

#[derive(Subcommand)]
pub(super) enum LifeCommand {
    /// Change a key's name, labels, policies or state. What is not given stays.
    Set(SetArgs),
    /// Say who uses a key: it is destroyed only with --force while somebody does.
    Consumer {
        #[command(subcommand)]
        command: ConsumerCommand,
    },
    /// Make a snapshot's key: a key of its own on the same material.
    Snapshot {
        key: String,
        #[command(flatten)]
        descendant: Descendant,
    },
    /// Make a clone's key, as the key's clone policy allows.
    Clone {
        key: String,
        /// share: the same material. rekey: its own, and the data is encrypted anew. layer: its own for new blocks.
        #[arg(long, value_enum)]
        mode: CloneMode,
        #[command(flatten)]
        descendant: Descendant,
    },
    /// Make new material for a volume: a job, at whose end the old key is scheduled for destruction.
    Rotate {
        key: String,
        #[command(flatten)]
        descendant: Descendant,
    },
    /// Give a key that is scheduled for destruction the state back that it had.
    CancelDestruction { key: String },
    /// Mark every key here that has this key's material as known to strangers. Other lockboxes are told by
    /// `lockbox-broker key compromise`.
    Compromise { key: String },
    /// Show what a key's material opens, as far as this lockbox knows.
    Impact { key: String },
}

#[derive(Args)]
pub(super) struct SetArgs {
    key: String,
    /// For people.
    #[arg(long)]
    name: Option<String>,
    /// The labels, instead of those that it has.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label, conflicts_with = "no_labels")]
    labels: Vec<Label>,
    /// Take every label away.
    #[arg(long)]
    no_labels: bool,
    /// What a snapshot or clone may do with it: deny, or a list of share, rekey and layer.
    #[arg(long, value_name = "LIST", value_parser = clone_policy)]
    clone_policy: Option<ClonePolicy>,
    /// Whether it never leaves this lockbox.
    #[arg(long, value_name = "BOOL")]
    pinned: Option<bool>,
    /// Whether it must not be copied.
    #[arg(long, value_name = "BOOL")]
    deny_copy: Option<bool>,
    /// Whether it must not be moved.
    #[arg(long, value_name = "BOOL")]
    deny_move: Option<bool>,
    /// The labels that a target must have, instead of those before.
    #[arg(long = "require-target-label", value_name = "KEY=VALUE", value_parser = label)]
    #[arg(conflicts_with = "any_target")]
    required_target_labels: Vec<Label>,
    /// Let it go to a target with any labels.
    #[arg(long)]
    any_target: bool,
    /// Whether nobody should ever ask for it: an authorization that selects it is refused and raises an alarm.
    #[arg(long, value_name = "BOOL")]
    canary: Option<bool>,
    /// active, suspended or deactivated.
    #[arg(long)]
    state: Option<String>,
}

#[derive(Subcommand)]
pub(super) enum ConsumerCommand {
    /// Register a user.
    Add {
        key: String,
        /// Such as cinder/volume/7bd4b53c.
        #[arg(value_parser = consumer, value_name = "SERVICE/TYPE/ID")]
        consumer: InventoryConsumer,
    },
    /// Take a user off the list.
    Remove {
        key: String,
        #[arg(value_parser = consumer, value_name = "SERVICE/TYPE/ID")]
        consumer: InventoryConsumer,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CloneMode {
    Share,
    Rekey,
    Layer,
}

#[derive(Args)]
pub(super) struct Descendant {
    /// Its name; the parent's unless given.
    #[arg(long)]
    name: Option<String>,
    /// Its labels; the parent's unless given.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<Label>,
    /// Its id, so that repeating the command makes no second key.
    #[arg(long, value_name = "UUID")]
    id: Option<KeyId>,
}

pub(super) async fn run(command: LifeCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        LifeCommand::Set(args) => set(args, client, output).await,
        LifeCommand::Consumer { command } => consumers(command, client, output).await,
        LifeCommand::Snapshot { key, descendant } => derive(key, Relation::Snapshot, descendant, client, output).await,
        LifeCommand::Clone { key, mode, descendant } => {
            let relation = match mode {
                CloneMode::Share => Relation::Share,
                CloneMode::Rekey => Relation::Rekey,
                CloneMode::Layer => Relation::Layer,
            };
            derive(key, relation, descendant, client, output).await
        }
        LifeCommand::Rotate { key, descendant } => derive(key, Relation::Rotate, descendant, client, output).await,
        LifeCommand::CancelDestruction { key } => {
            let key_id = keys::resolve_scheduled(client, key).await?.to_vec();
            let answer = client.lifecycle.cancel_destruction(CancelDestructionRequest { key_id });
            keys::print(output, &answer.await?.into_inner().key.unwrap_or_default())
        }
        LifeCommand::Compromise { key } => compromise(key, client, output).await,
        LifeCommand::Impact { key } => {
            let key_id = resolve(client, key, true).await?.to_vec();
            let impact = impact(client, key_id).await?;
            output.print(&impact_json(&impact), || impact_text(&impact))
        }
    }
}

async fn set(args: SetArgs, client: &mut Client, output: &Output) -> Result<(), CliError> {
    let key_id = resolve(client, args.key.clone(), false).await?.to_vec();
    let transfer_policy = changed_policy(&args, &key_id, client).await?;
    let relabel = args.no_labels || !args.labels.is_empty();
    let request = SetKeyRequest {
        key_id,
        name: args.name,
        labels: relabel.then(|| LabelSet {
            labels: wire_labels(args.labels),
        }),
        clone_policy: args.clone_policy,
        transfer_policy,
        state: args.state.unwrap_or_default(),
    };
    let key = client.lifecycle.set_key(request).await?.into_inner().key;
    keys::print(output, &key.unwrap_or_default())
}

/// The whole policy is replaced, so without an option of it none is sent: it could undo what somebody else sets now.
async fn changed_policy(
    args: &SetArgs,
    key_id: &[u8],
    client: &mut Client,
) -> Result<Option<TransferPolicy>, CliError> {
    if !args.changes_policy() {
        return Ok(None);
    }
    let get = GetKeyRequest {
        key_id: key_id.to_vec(),
    };
    let key = client.service.get_key(get).await?.into_inner().key.unwrap_or_default();
    let mut policy = key.transfer_policy.unwrap_or_default();
    policy.pinned = args.pinned.unwrap_or(policy.pinned);
    policy.deny_copy = args.deny_copy.unwrap_or(policy.deny_copy);
    policy.deny_move = args.deny_move.unwrap_or(policy.deny_move);
    policy.canary = args.canary.unwrap_or(policy.canary);
    if args.any_target || !args.required_target_labels.is_empty() {
        policy.required_target_labels = wire_labels(args.required_target_labels.clone());
    }
    Ok(Some(policy))
}

impl SetArgs {
    fn changes_policy(&self) -> bool {
        let flags = [self.pinned, self.deny_copy, self.deny_move, self.canary];
        flags.iter().any(Option::is_some) || self.any_target || !self.required_target_labels.is_empty()
    }
}

async fn consumers(command: ConsumerCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    let key = match command {
        ConsumerCommand::Add { key, consumer } => {
            let request = AddConsumerRequest {
                key_id: resolve(client, key, false).await?.to_vec(),
                consumer: Some(consumer),
            };
            client.lifecycle.add_consumer(request).await?.into_inner().key
        }
        ConsumerCommand::Remove { key, consumer } => {
            let request = RemoveConsumerRequest {
                key_id: resolve(client, key, false).await?.to_vec(),
                consumer: Some(consumer),
            };
            client.lifecycle.remove_consumer(request).await?.into_inner().key
        }
    };
    keys::print(output, &key.unwrap_or_default())
}

async fn derive(
    key: String,
    relation: Relation,
    descendant: Descendant,
    client: &mut Client,
    output: &Output,
) -> Result<(), CliError> {
    let has_parents_name = descendant.name.is_none();
    let request = DeriveKeyRequest {
        parent_key_id: resolve(client, key, false).await?.to_vec(),
        relation: relation.into(),
        key_id: descendant.id.map(KeyId::to_vec).unwrap_or_default(),
        name: descendant.name,
        labels: (!descendant.labels.is_empty()).then(|| LabelSet {
            labels: wire_labels(descendant.labels),
        }),
    };
    let answer = client.lifecycle.derive_key(request).await?.into_inner();
    let key = answer.key.unwrap_or_default();
    let mut json = keys::key_json(&key);
    json["job"] = answer.job.as_ref().map_or(Value::Null, job_json);
    output.print(&json, || {
        let mut text = keys::key_text(&key);
        if has_parents_name {
            text += "\nIt has its parent's name: who asks for a key by that name alone is refused while both are here. Use ids, or \
                     --name.\n";
        }
        if answer.job.is_some() {
            let id = uuid(&key.key_id);
            text += &format!(
                "\nThe old material stays until the data was opened with the new key:\n  \
                 lockbox job run {id} -- COMMAND\n  lockbox job verify {id} -- COMMAND\n  lockbox job done {id}\n"
            );
        }
        text
    })
}

async fn compromise(key: String, client: &mut Client, output: &Output) -> Result<(), CliError> {
    let key_id = resolve(client, key, false).await?.to_vec();
    let request = CompromiseKeyRequest { key_id: key_id.clone() };
    let mut pages = client.lifecycle.compromise_key(request).await?.into_inner();
    let mut marked = Vec::new();
    while let Some(page) = pages.message().await? {
        marked.extend(page.key_ids.iter().map(|id| uuid(id)));
    }
    let impact = impact(client, key_id.clone()).await?;
    let mut json = impact_json(&impact);
    json["marked"] = json!(marked);
    output.print(&json, || {
        let text = impact_text(&impact);
        let elsewhere = "Whatever other lockboxes have of its material is marked when an admin runs";
        format!(
            "{} keys are marked as compromised here.\n\n{text}\n{elsewhere}:\n  lockbox-broker key compromise {} \
             --admin-key FILE\n",
            marked.len(),
            uuid(&key_id),
        )
    })
}

async fn impact(client: &mut Client, key_id: Vec<u8>) -> Result<GetImpactResponse, CliError> {
    let answer = client.lifecycle.get_impact(GetImpactRequest { key_id }).await?;
    let mut pages = answer.into_inner();
    let mut impact = pages.message().await?.unwrap_or_default();
    while let Some(page) = pages.message().await? {
        impact.findings.extend(page.findings);
    }
    Ok(impact)
}

fn impact_json(impact: &GetImpactResponse) -> Value {
    let finding = |finding: &Finding| {
        let entry = finding.entry.clone().unwrap_or_default();
        json!({
            "key_id": uuid(&entry.key_id),
            "material_id": uuid(&entry.material_id),
            "state": state(&entry),
            "kinship": finding.kinship,
            "remedy": finding.remedy,
            "progress": finding.progress,
            "parent_key_id": or_null(uuid(&entry.parent_key_id)),
            "relation": or_null(entry.relation.clone()),
            "lies_on_key_id": lies_on(&entry),
            "moved_to": or_null(uuid(&entry.moved_to)),
            "consumers": entry.consumers.iter().map(consumer_text).collect::<Vec<_>>(),
        })
    };
    json!({
        "material_id": uuid(&impact.material_id),
        "truncated": impact.truncated,
        "findings": impact.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn lies_on(entry: &lockbox_authz::wire::InventoryEntry) -> Option<String> {
    let entry = lockbox_authz::inventory::InventoryEntry::from_wire(entry.clone()).ok()?;
    entry.parent?.lies_on().map(|key_id| key_id.to_string())
}

fn impact_text(impact: &GetImpactResponse) -> String {
    let row = |finding: &Finding| {
        let entry = finding.entry.clone().unwrap_or_default();
        let consumers: Vec<_> = entry.consumers.iter().map(consumer_text).collect();
        let moved_to = uuid(&entry.moved_to);
        vec![
            uuid(&entry.key_id),
            match moved_to.as_str() {
                "" => state(&entry).to_owned(),
                target => format!("moved to {target}"),
            },
            finding.kinship.clone(),
            finding.remedy.clone(),
            finding.progress.clone(),
            consumers.join(" "),
        ]
    };
    let rows: Vec<_> = impact.findings.iter().map(row).collect();
    let mut text = table(&["KEY", "STATE", "KINSHIP", "REMEDY", "PROGRESS", "CONSUMERS"], &rows);
    if impact.truncated {
        text += "\nThe family is larger than what was looked at.\n";
    }
    text += "\nCopies at other lockboxes: ask the broker, `lockbox-broker impact KEY`.\n";
    text
}

fn state(entry: &InventoryEntry) -> &'static str {
    match entry.state() {
        InventoryState::Active => "active",
        InventoryState::Suspended => "suspended",
        InventoryState::Deactivated => "deactivated",
        InventoryState::Compromised => "compromised",
        InventoryState::Destroyed => "destroyed",
        InventoryState::Moved => "moved",
        InventoryState::Scheduled | InventoryState::ScheduledCompromised => "scheduled",
        InventoryState::Unspecified => "unknown",
    }
}

pub(super) fn consumer_text(consumer: &InventoryConsumer) -> String {
    format!(
        "{}/{}/{}",
        consumer.service, consumer.resource_type, consumer.resource_id
    )
}

/// service/type/id; the id may have slashes.
pub(super) fn consumer(text: &str) -> Result<InventoryConsumer, String> {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(service), Some(resource_type), Some(resource_id)) => Ok(InventoryConsumer {
            service,
            resource_type,
            resource_id,
        }),
        _ => Err("a consumer is written as service/type/id".to_owned()),
    }
}

/// `deny`, or a list of what is allowed.
pub(super) fn clone_policy(text: &str) -> Result<ClonePolicy, String> {
    let mut policy = ClonePolicy::default();
    if text == "deny" {
        return Ok(policy);
    }
    for word in text.split(',') {
        match word {
            "share" => policy.share = true,
            "rekey" => policy.rekey = true,
            "layer" => policy.layer = true,
            _ => return Err("a clone policy is deny, or a list of share, rekey and layer".to_owned()),
        }
    }
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        set: SetArgs,
    }

    fn changes_policy(options: &str) -> bool {
        let words = ["set", "volume"].into_iter().chain(options.split_whitespace());
        Command::try_parse_from(words)
            .expect("good options")
            .set
            .changes_policy()
    }

    /// A command that renames a key must not undo a pin that another operator sets at the same time.
    #[test]
    fn a_transfer_policy_is_sent_only_with_an_option_of_it() {
        for options in ["--name x", "--no-labels", "--state suspended", "--clone-policy deny"] {
            assert!(!changes_policy(options), "{options}");
        }
        for options in [
            "--pinned false",
            "--deny-copy true",
            "--deny-move true",
            "--canary false",
            "--any-target",
            "--require-target-label a=b",
        ] {
            assert!(changes_policy(options), "{options}");
        }
    }
}
