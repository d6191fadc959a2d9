//! What a stolen key or lockbox opens, and what is done about a stolen lockbox.

use clap::{Args, ValueEnum};
use lockbox_authz::impact::Remedy;
use lockbox_authz::inventory::{InventoryEntry, InventoryState};
use lockbox_authz::roster::{Change, LockboxMember, Roster};
use lockbox_authz::{AuthorizationId, KeyId, LockboxId, wire};
use lockbox_rpc::api::control::get_impact_request::Subject;
use lockbox_rpc::api::control::{
    GetImpactRequest, GetTransferRequest, ImpactFinding, ListTransfersRequest, RevokeTransferRequest, Transfer,
    TransferState,
};
use serde_json::{Value, json};

use super::client::{Admin, Broker, Changed};
use super::confirm::confirm;
use super::counted::{Asked, Counted};
use super::error::CliError;
use super::key::Preview;
use super::key_ref::KeyRef;
use super::notice;
use super::output::{Format, Table, or_dash, print, print_json};
use super::since::{Since, since};
use super::{Global, block_on};
use crate::clock::rfc3339;
use crate::decide::{NotTheOnly, find_the_only};
use crate::picture::{self, Node};

/// Transfers of one request.
const PAGE: u32 = 1_000;

#[derive(Debug, Args)]
pub(super) struct ImpactCommand {
    /// The key whose material is known to strangers: its id, or LOCKBOX/NAME
    #[arg(required_unless_present = "lockbox", conflicts_with = "lockbox")]
    key: Option<KeyRef>,
    /// Instead of a key: a lockbox, by its name or id, with everything that it held
    #[arg(long, value_name = "NAME")]
    lockbox: Option<String>,
    /// With --lockbox: when it was taken over at the earliest, a date or time (UTC), or how long ago, like 36h or 30d. What it
    /// held then or later counts, also what it destroyed, moved away or no longer reports since, which is shown with "held
    /// until" [default: 7d before it was last heard of, or retired]
    #[arg(long, value_name = "TIME", value_parser = since, requires = "lockbox")]
    since: Option<Since>,
    /// Draw a picture instead: DOT for Graphviz, or SVG
    #[arg(long, value_enum)]
    picture: Option<Picture>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Picture {
    Dot,
    Svg,
}

/// What was found, and whether there is more.
struct Found {
    findings: Vec<ImpactFinding>,
    truncated: bool,
    /// Of a lockbox.
    counted: Counted,
}

impl ImpactCommand {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        let asked = Asked::of(self.since);
        let is_lockbox = self.key.is_none();
        let found = block_on(async {
            let mut broker = Broker::connect(global).await?;
            let subject = match self.key {
                Some(key) => Subject::KeyId(key.resolve(&mut broker).await?.to_vec()),
                None => Subject::Lockbox(self.lockbox.unwrap_or_default()),
            };
            fetch(&mut broker, subject, asked).await
        })?;
        if is_lockbox {
            lockbox_host::say!(
                "what counts is everything that the lockbox held at {} or later",
                found.counted.since()
            );
            found.counted.warn();
        }
        let nodes = || found.findings.iter().map(node).collect::<Vec<_>>();
        match self.picture {
            Some(Picture::Dot) => print(&picture::dot(&nodes())),
            Some(Picture::Svg) => print(&picture::svg(&nodes())),
            None if global.output == Format::Json => {
                let mut json = found.to_json();
                if is_lockbox {
                    found.counted.add_to(&mut json);
                }
                print_json(&json)
            }
            None => print(&found.table()),
        }
    }
}

/// A lockbox that was stolen.
pub(super) struct Theft {
    /// Its name or id.
    pub(super) lockbox: String,
    /// What it held then or later is known to strangers; `None` if nobody says.
    pub(super) since: Option<Since>,
    pub(super) reason: String,
    /// Don't ask.
    pub(super) yes: bool,
}

/// Retires a stolen lockbox in one entry of the roster, ends what it may still begin, tells every lockbox that strangers know
/// what it held, and says what it opens. What was done before is not done again, so that it can be repeated after it failed
/// half way.
pub(super) async fn compromise(
    global: &Global,
    broker: &mut Broker,
    admin: &Admin,
    theft: Theft,
) -> Result<(), CliError> {
    let Theft {
        lockbox,
        since,
        reason,
        yes,
    } = theft;
    let roster = broker.roster().await?;
    let member = the_only(&roster, &lockbox)?;
    // Whatever follows is of this one: its name is free once it is retired, and another may have it by the next request.
    let lockbox_id = member.lockbox.lockbox_id;
    let lockbox = member.lockbox.name.as_str();
    if !yes && !member.retired {
        let question = format!("Retire lockbox {lockbox} ({lockbox_id}) for good, and revoke what is open with it?");
        confirm(&question, "nothing was done")?;
    }
    // First of all, since the rest may take a while: a server may have held a million keys.
    let is_retired = if member.retired {
        lockbox_host::say!("lockbox {lockbox} was retired before");
        true
    } else {
        let changed = retire(broker, admin, lockbox_id, &reason).await?;
        changed.tell(&format!("lockbox {lockbox} is retired"));
        matches!(changed, Changed::Submitted)
    };
    let mut ended = Ended::default();
    // Before the entry is submitted nobody knows of the retirement; that is somebody else's to do.
    if is_retired {
        revoke_open(broker, &lockbox_id.to_vec(), &reason, &mut ended).await;
    }
    let preview = Preview::of_lockbox(broker, lockbox_id, Asked::of(since)).await?;
    let materials = preview.unnoticed();
    let left = preview.left_at(lockbox_id);
    let counted = preview.counted();
    lockbox_host::say!("{}", left.text(lockbox, counted.since()));
    counted.warn();
    if !materials.is_empty() {
        lockbox_host::ask!("{}", preview.text());
        if !yes {
            let otherwise = "no key was marked; run the command again to mark them";
            confirm(
                "Mark every key with these materials as compromised, for good?",
                otherwise,
            )?;
        }
    }
    let made = match materials.is_empty() {
        true => None,
        false => Some(notice::make(broker, admin, &materials, &reason).await?),
    };
    let found = fetch(broker, Subject::Lockbox(lockbox_id.to_string()), counted.again()).await?;
    if global.output == Format::Json {
        let mut json = found.to_json();
        json["retired"] = is_retired.into();
        counted.add_to(&mut json);
        json["no_longer_held"] = left.to_json();
        json["revoked_authorizations"] = json!(ended.revoked);
        json["compromise"] = match &made {
            Some(made) => made.to_json(broker).await?,
            None => Value::Null,
        };
        print_json(&json)?;
    } else {
        for id in &ended.revoked {
            lockbox_host::say!("authorization {id} is revoked");
        }
        if let Some(made) = &made {
            made.report(global, broker).await?;
        }
        print(&found.table())?;
    }
    ended.into_result()
}

/// The lockbox that is meant. The name of a retired one may have been given to another, which must not be retired for it.
fn the_only<'a>(roster: &'a Roster, name_or_id: &str) -> Result<&'a LockboxMember, CliError> {
    find_the_only(roster, name_or_id).map_err(|error| match error {
        NotTheOnly::Unknown => CliError::other(format!("no lockbox is called {name_or_id}")),
        NotTheOnly::Several(all) => {
            let one = |(id, retired): &(LockboxId, bool)| match retired {
                true => format!("{id} (retired)"),
                false => format!("{id} (admitted)"),
            };
            let all: Vec<_> = all.iter().map(one).collect();
            CliError::usage(format!(
                "several lockboxes have or had the name {name_or_id}: {}; name the stolen one by its id",
                all.join(", ")
            ))
        }
    })
}

async fn retire(broker: &mut Broker, admin: &Admin, lockbox_id: LockboxId, reason: &str) -> Result<Changed, CliError> {
    let retirement = Change::RetireLockbox {
        lockbox_id,
        reason: reason.to_owned(),
    };
    broker.change(admin, |_| Ok(retirement.clone())).await
}

/// What came of the authorizations that were open.
#[derive(Default)]
struct Ended {
    revoked: Vec<String>,
    failures: Vec<CliError>,
}

impl Ended {
    /// The first failure, if there is one; the others are told beside it.
    fn into_result(self) -> Result<(), CliError> {
        let mut failures = self.failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        for failure in failures {
            lockbox_host::say!("{failure}");
        }
        Err(CliError::new(first.code, format!("{first}; run the command again")))
    }
}

/// Revokes every authorization that the lockbox is an end of and that has not ended. One that can't be revoked keeps no other
/// from it.
async fn revoke_open(broker: &mut Broker, lockbox_id: &[u8], reason: &str, ended: &mut Ended) {
    let mut page_token = String::new();
    loop {
        let request = ListTransfersRequest {
            page_size: PAGE,
            page_token,
        };
        let page = match broker.client.list_transfers(request).await {
            Ok(page) => page.into_inner(),
            Err(status) => {
                let failure = CliError::from_status("the open transfers can't be listed", &status);
                return ended.failures.push(failure);
            }
        };
        let open = page.transfers.into_iter();
        for transfer in open.filter(|transfer| is_open_at(transfer, lockbox_id)) {
            revoke(broker, transfer, reason, ended).await;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return;
        }
    }
}

async fn revoke(broker: &mut Broker, transfer: Transfer, reason: &str, ended: &mut Ended) {
    let id = AuthorizationId::from_slice("authorization_id", &transfer.authorization_id);
    let id = id.map_or_else(|_| "?".to_owned(), |id| id.to_string());
    let request = RevokeTransferRequest {
        authorization_id: transfer.authorization_id.clone(),
        reason: reason.to_owned(),
    };
    let Err(status) = broker.client.revoke_transfer(request).await else {
        return ended.revoked.push(id);
    };
    // It may have become complete since it was listed.
    let request = GetTransferRequest {
        authorization_id: transfer.authorization_id,
        ..GetTransferRequest::default()
    };
    let now = broker.client.get_transfer(request).await;
    let now = now.ok().and_then(|answer| answer.into_inner().transfer);
    if !now.is_some_and(|transfer| is_over(&transfer)) {
        let what = format!("authorization {id} was not revoked");
        ended.failures.push(CliError::from_status(&what, &status));
    }
}

fn is_open_at(transfer: &Transfer, lockbox_id: &[u8]) -> bool {
    let ends = [&transfer.source, &transfer.target];
    let is_end = ends.into_iter().flatten().any(|end| end.lockbox_id == lockbox_id);
    is_end && !is_over(transfer)
}

fn is_over(transfer: &Transfer) -> bool {
    matches!(
        transfer.state(),
        TransferState::Complete | TransferState::Refused | TransferState::Revoked | TransferState::Expired
    )
}

async fn fetch(broker: &mut Broker, subject: Subject, asked: Asked) -> Result<Found, CliError> {
    let failed = |status: tonic::Status| CliError::from_status("the impact can't be told", &status);
    let request = GetImpactRequest {
        subject: Some(subject),
        held_since_ms: asked.held_since_ms,
        with_gone_at_first: asked.with_gone_at_first,
    };
    let answer = broker.impact.get_impact(request).await;
    let mut pages = answer.map_err(failed)?.into_inner();
    let mut found = Found {
        findings: Vec::new(),
        truncated: false,
        counted: Counted::new(asked),
    };
    while let Some(page) = pages.message().await.map_err(failed)? {
        for finding in page.findings {
            check(&finding)?;
            found.findings.push(finding);
        }
        found.truncated |= page.truncated;
        let counted = &mut found.counted;
        counted.take(page.left_known_from_ms, page.held_since_ms, page.left_out);
    }
    // It is told family by family; what has to be done comes first.
    found
        .findings
        .sort_by_key(|finding| finding.remedy != Remedy::Deep.name());
    Ok(found)
}

/// What lockboxes chose is printed, and the broker may be a thief's.
fn check(finding: &ImpactFinding) -> Result<(), CliError> {
    let entry = InventoryEntry::from_wire(finding.entry.clone().unwrap_or_default());
    let refused = |error| CliError::other(format!("the broker's answer is refused: {error}"));
    entry.map(drop).map_err(refused)
}

impl Found {
    fn to_json(&self) -> Value {
        json!({
            "truncated": self.truncated,
            "findings": self.findings.iter().map(to_json).collect::<Vec<_>>(),
        })
    }

    fn table(&self) -> String {
        let mut table = Table::new(&[
            "KEY",
            "NAME",
            "LOCKBOX",
            "STATE",
            "KINSHIP",
            "REMEDY",
            "PROGRESS",
            "CONSUMERS",
            "REPORTED",
        ]);
        for finding in &self.findings {
            let node = node(finding);
            table.row([
                node.key_id,
                or_dash(&node.name).to_owned(),
                node.lockbox,
                state_for_people(&node.state, finding.held_until_ms),
                finding.kinship.clone(),
                node.remedy,
                node.progress,
                node.consumers.join(" "),
                rfc3339(finding.reported_at_ms),
            ]);
        }
        let mut text = table.render();
        if self.findings.is_empty() {
            text += "No lockbox has reported such a key.\n";
        }
        if self.truncated {
            text += "There is more than what was looked at.\n";
        }
        text
    }
}

fn to_json(finding: &ImpactFinding) -> Value {
    let node = node(finding);
    let entry = finding.entry.clone().unwrap_or_default();
    let lockbox_id = finding.lockbox.as_ref().map(|lockbox| id(&lockbox.lockbox_id));
    json!({
        "key_id": node.key_id,
        "name": (!node.name.is_empty()).then_some(node.name),
        "labels": labels_json(&entry.labels),
        "material_id": id(&entry.material_id),
        "lockbox": node.lockbox,
        "lockbox_id": lockbox_id,
        "state": node.state,
        "kinship": finding.kinship,
        "remedy": node.remedy,
        "progress": node.progress,
        "parent_key_id": node.parent,
        "lies_on_key_id": lies_on(&entry),
        "relation": (!node.relation.is_empty()).then_some(node.relation),
        "consumers": node.consumers,
        "reported_at_ms": finding.reported_at_ms,
        "held_until_ms": (finding.held_until_ms != 0).then_some(finding.held_until_ms),
    })
}

/// What became of a key that a lockbox has or had. One that it has no more and has not said why is unreported.
pub(super) fn state(state: InventoryState, held_until_ms: i64) -> &'static str {
    match state.is_held() && held_until_ms != 0 {
        true => "unreported",
        false => state.name(),
    }
}

pub(super) fn state_for_people(state: &str, held_until_ms: i64) -> String {
    match held_until_ms {
        0 => state.to_owned(),
        _ => format!("{state}, held until {}", rfc3339(held_until_ms)),
    }
}

fn labels_json(labels: &[wire::Label]) -> Value {
    let pairs = labels
        .iter()
        .map(|label| (label.key.clone(), label.value.clone().into()));
    Value::Object(pairs.collect())
}

fn lies_on(entry: &wire::InventoryEntry) -> Option<String> {
    let entry = InventoryEntry::from_wire(entry.clone()).ok()?;
    entry.parent?.lies_on().map(|key_id| key_id.to_string())
}

fn node(finding: &ImpactFinding) -> Node {
    let entry = finding.entry.clone().unwrap_or_default();
    let state = InventoryEntry::from_wire(entry.clone())
        .map_or("?", |entry| state(entry.state, finding.held_until_ms))
        .to_owned();
    Node {
        key_id: id(&entry.key_id),
        name: entry.name,
        lockbox: finding
            .lockbox
            .as_ref()
            .map_or_else(String::new, |lockbox| lockbox.name.clone()),
        state,
        parent: (!entry.parent_key_id.is_empty()).then(|| id(&entry.parent_key_id)),
        relation: entry.relation,
        remedy: finding.remedy.clone(),
        progress: finding.progress.clone(),
        consumers: entry
            .consumers
            .iter()
            .map(|consumer| {
                format!(
                    "{}/{}/{}",
                    consumer.service, consumer.resource_type, consumer.resource_id
                )
            })
            .collect(),
    }
}

fn id(bytes: &[u8]) -> String {
    KeyId::from_slice("id", bytes).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}
