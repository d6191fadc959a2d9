//! The lockboxes of the cluster.

use clap::Subcommand;
use lockbox_authz::roster::{self, Change};
use lockbox_authz::{Fingerprint, Labels};
use lockbox_rpc::api::control::{ListLockboxesRequest, LockboxAlarm, LockboxHealth, LockboxInfo, LockboxStatus};
use serde_json::{Value, json};

use super::certificate::warn_of_port;
use super::client::{Admin, Broker};
use super::confirm::{check_terminal, confirm};
use super::error::CliError;
use super::impact::Theft;
use super::joins::Rejected;
use super::output::{Format, Table, counted, print, print_json, printable};
use super::since::{Since, since};
use super::{Global, block_on, impact, joins};
use crate::clock::rfc3339;
use crate::decide::find_lockbox;

#[derive(Debug, Subcommand)]
pub(super) enum Lockbox {
    /// List the lockboxes, and those that ask to join
    List,
    /// Show one lockbox
    Show {
        /// Its name or id
        lockbox: String,
    },
    /// Admit a lockbox that asks to join, after comparing its fingerprint
    Admit {
        /// Its name or id, as `lockbox list` shows it
        lockbox: String,
        /// The fingerprint that the lockbox itself shows (`lockbox status` on its machine)
        #[arg(long, value_name = "HEX")]
        fingerprint: Fingerprint,
        /// A label that the lockbox gets, as key=value; repeatable. Those that it wishes for don't count
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Remove a request to join, or many. The same identities are refused for a day, unless they join with a token
    Reject {
        #[command(flatten)]
        which: Rejected,
    },
    /// Retire a lockbox, for good; its keys stay there and can't be transferred any more
    Retire {
        /// Its name or id
        lockbox: String,
        /// For people
        #[arg(long, default_value = "")]
        reason: String,
        /// Don't ask for confirmation
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        admin: Admin,
    },
    /// Retire a stolen lockbox, revoke what is open with it, tell every lockbox that strangers know what it held, and show
    /// everything that it opens. What it held within its last seven days counts (--since), also what it destroyed, moved away
    /// or no longer reports since: whoever has taken it over knew that, too
    Compromise {
        /// Its name or id
        lockbox: String,
        /// When it was taken over at the earliest: a date or time (UTC), or how long ago, like 36h or 30d. 0s: only what it
        /// says that it holds now [default: 7d before it was last heard of, or retired]
        #[arg(long, value_name = "TIME", value_parser = since)]
        since: Option<Since>,
        /// For people
        #[arg(long, default_value = "stolen")]
        reason: String,
        /// Don't ask for confirmation
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        admin: Admin,
    },
}

impl Lockbox {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        if let Self::Retire {
            lockbox, yes: false, ..
        } = &self
        {
            check_terminal("a lockbox is retired for good: its keys stay there and can't be transferred any more")?;
            let question =
                format!("Retire lockbox {lockbox} for good? Its keys stay there and can't be transferred any more.");
            confirm(&question, "nothing was retired")?;
        }
        if let Self::Compromise { yes: false, .. } = &self {
            check_terminal("a lockbox is retired, and what it held marked as compromised, for good")?;
        }
        block_on(async {
            let mut broker = Broker::connect(global).await?;
            match self {
                Self::List => {
                    warn_of_port(&mut broker).await?;
                    show_list(global, &list(&mut broker).await?)
                }
                Self::Show { lockbox } => show(global, &find(list(&mut broker).await?, &lockbox)?),
                Self::Admit {
                    lockbox,
                    fingerprint,
                    labels,
                    admin,
                } => {
                    let labels = Labels::parse(labels.iter().map(String::as_str))
                        .map_err(|error| CliError::usage(format!("--label: {error}")))?;
                    let pending = pending(list(&mut broker).await?, &lockbox, fingerprint)?;
                    let admitted = roster::Lockbox { labels, ..pending };
                    let name = admitted.name.clone();
                    let changed = broker
                        .change(&admin, |_| Ok(Change::AdmitLockbox(admitted.clone())))
                        .await?;
                    changed.report(global, &format!("lockbox {name} is admitted"))
                }
                Self::Reject { which } => joins::reject(global, &mut broker, which).await,
                Self::Retire {
                    lockbox, reason, admin, ..
                } => retire(global, &mut broker, &admin, &lockbox, reason).await,
                Self::Compromise {
                    lockbox,
                    since,
                    reason,
                    yes,
                    admin,
                } => {
                    let theft = Theft {
                        lockbox,
                        since,
                        reason,
                        yes,
                    };
                    impact::compromise(global, &mut broker, &admin, theft).await
                }
            }
        })
    }
}

async fn retire(
    global: &Global,
    broker: &mut Broker,
    admin: &Admin,
    lockbox: &str,
    reason: String,
) -> Result<(), CliError> {
    // Looked up once: if the change has to be made again, the name may be another's by then.
    let roster = broker.roster().await?;
    let member = find_lockbox(&roster, lockbox).ok_or_else(|| unknown(lockbox))?;
    let retirement = Change::RetireLockbox {
        lockbox_id: member.lockbox.lockbox_id,
        reason,
    };
    let changed = broker.change(admin, |_| Ok(retirement.clone())).await?;
    changed.report(
        global,
        &format!("lockbox {lockbox} is retired; its keys stay there and can't be transferred any more"),
    )
}

pub(super) async fn list(broker: &mut Broker) -> Result<Vec<LockboxInfo>, CliError> {
    let answer = broker.client.list_lockboxes(ListLockboxesRequest {}).await;
    let answer = answer.map_err(|status| CliError::from_status("the lockboxes can't be listed", &status))?;
    Ok(answer.into_inner().lockboxes)
}

/// The one that is named. Several may ask to join under one name.
fn find(infos: Vec<LockboxInfo>, name_or_id: &str) -> Result<LockboxInfo, CliError> {
    let mut matching = infos.into_iter().filter(|info| is_called(info, name_or_id));
    let first = matching.next().ok_or_else(|| unknown(name_or_id))?;
    let more: Vec<_> = matching.collect();
    if more.is_empty() {
        return Ok(first);
    }
    let admitted = std::iter::once(first)
        .chain(more)
        .find(|info| info.status() == LockboxStatus::Admitted);
    admitted.ok_or_else(|| {
        CliError::usage(format!(
            "several lockboxes are called {name_or_id}; name one by its id, as `lockbox-broker lockbox list` shows it"
        ))
    })
}

/// The request that waits, if it is by the key whose fingerprint the admin has compared.
fn pending(infos: Vec<LockboxInfo>, name_or_id: &str, fingerprint: Fingerprint) -> Result<roster::Lockbox, CliError> {
    let waiting = infos
        .into_iter()
        .filter(|info| info.status() == LockboxStatus::Pending && is_called(info, name_or_id));
    let mut nobody = true;
    for info in waiting {
        nobody = false;
        let lockbox = info
            .lockbox
            .and_then(|lockbox| roster::Lockbox::from_wire(lockbox).ok());
        // The fingerprint is computed here: the one in the broker's answer is only for looking at.
        if let Some(lockbox) = lockbox.filter(|lockbox| lockbox.identity_key.fingerprint() == fingerprint) {
            return Ok(lockbox);
        }
    }
    Err(CliError::other(if nobody {
        format!("no lockbox called {name_or_id} asks to join; run `lockbox join` on its machine first")
    } else {
        format!(
            "the lockbox {name_or_id} that asks to join has another fingerprint; it is not the machine you looked at, so \
             find out who asks before you admit anybody"
        )
    }))
}

fn is_called(info: &LockboxInfo, name_or_id: &str) -> bool {
    info.lockbox
        .as_ref()
        .is_some_and(|lockbox| lockbox.name == name_or_id || id(info) == name_or_id)
}

fn unknown(name_or_id: &str) -> CliError {
    CliError::other(format!(
        "no lockbox is called {name_or_id}; `lockbox-broker lockbox list` shows them"
    ))
}

fn show_list(global: &Global, infos: &[LockboxInfo]) -> Result<(), CliError> {
    if global.output == Format::Json {
        return print_json(&infos.iter().map(to_json).collect());
    }
    let mut table = Table::new(&[
        "NAME",
        "STATUS",
        "CONNECTED",
        "HEALTH",
        "ADDRESS",
        "LABELS",
        "LAST SEEN",
        "CLOCK",
        "ID",
    ]);
    for info in infos.iter().filter(|info| info.status() != LockboxStatus::Pending) {
        table.row([
            name(info).to_owned(),
            status(info).to_owned(),
            if info.connected { "yes" } else { "no" }.to_owned(),
            health(info),
            info.peer_address.clone(),
            labels(info),
            rfc3339(info.last_seen_ms),
            clock(info),
            id(info),
        ]);
    }
    let warnings = infos.iter().flat_map(warnings);
    let warnings: String = warnings.map(|warning| format!("\n{warning}\n")).collect();
    print(&format!("{}{}{warnings}", table.render(), joins::table(infos)))
}

/// Two machines with one identity, and alarms.
fn warnings(info: &LockboxInfo) -> Vec<String> {
    let name = printable(name(info).to_owned());
    let shared = info.shared_identity.iter().map(|shared| {
        let addresses = printable(shared.addresses.join(" and "));
        format!(
            "warning: two machines connect as lockbox {name}, from {addresses}; stop the copy, and make it a lockbox of its own"
        )
    });
    let health = info.health.clone().unwrap_or_default();
    let alarms = health.alarms.iter().map(|alarm| {
        let since = rfc3339(alarm.raised_at_ms);
        let what = match alarm.what.as_str() {
            "" => "`lockbox status` on its machine shows it".to_owned(),
            what => printable(what.to_owned()),
        };
        let effect = match alarm.stops_transfers {
            true => "alarm, transfers are stopped",
            false => "warning",
        };
        format!("lockbox {name} ({effect}) since {since}: {what}")
    });
    let further = match health.further_alarms {
        0 => None,
        count => Some(format!(
            "lockbox {name} has {count} more alarms; `lockbox status` on its machine shows them"
        )),
    };
    shared.chain(alarms).chain(further).collect()
}

/// As the lockbox last said: `ok`, `sealed`, its alarms; `-` before it said anything, or when it is retired.
fn health(info: &LockboxInfo) -> String {
    let Some(health) = info
        .health
        .as_ref()
        .filter(|_| info.status() == LockboxStatus::Admitted)
    else {
        return "-".to_owned();
    };
    let alarms = match health.alarms.len() + health.further_alarms as usize {
        0 => None,
        count => Some(counted(count, "alarm", "alarms")),
    };
    let sealed = health.sealed.then(|| "sealed".to_owned());
    match sealed.into_iter().chain(alarms).collect::<Vec<_>>().join(", ") {
        health if health.is_empty() => "ok".to_owned(),
        health => health,
    }
}

fn show(global: &Global, info: &LockboxInfo) -> Result<(), CliError> {
    if global.output == Format::Json {
        return print_json(&to_json(info));
    }
    let head = info.roster_head.as_ref();
    let mut table = Table::new(&[]);
    for (key, value) in [
        ("name", name(info).to_owned()),
        ("id", id(info)),
        ("status", status(info).to_owned()),
        ("fingerprint", info.fingerprint.clone()),
        ("labels", labels(info)),
        ("connected", if info.connected { "yes" } else { "no" }.to_owned()),
        ("health", health(info)),
        ("address", info.peer_address.clone()),
        ("asked from", info.asked_from.clone()),
        ("version", info.software_version.clone()),
        (
            "roster head",
            head.map_or_else(|| "-".to_owned(), |head| head.index.to_string()),
        ),
        ("last seen", rfc3339(info.last_seen_ms)),
        ("clock", clock(info)),
    ] {
        table.row([key.to_owned(), value]);
    }
    let warnings: String = warnings(info).iter().map(|warning| format!("\n{warning}\n")).collect();
    print(&format!("{}{warnings}", table.render().trim_start_matches('\n')))
}

fn to_json(info: &LockboxInfo) -> Value {
    let lockbox = info.lockbox.clone().unwrap_or_default();
    let labels: serde_json::Map<String, Value> = lockbox
        .labels
        .into_iter()
        .map(|label| (label.key, label.value.into()))
        .collect();
    json!({
        "name": lockbox.name,
        "id": id(info),
        "status": status(info),
        "fingerprint": info.fingerprint,
        "labels": labels,
        "connected": info.connected,
        "peer_address": info.peer_address,
        "software_version": info.software_version,
        "roster_index": info.roster_head.as_ref().map(|head| head.index),
        "last_seen_ms": info.last_seen_ms,
        "asked_from": info.asked_from,
        "shared_identity": info.shared_identity.as_ref().map(|shared| json!({
            "addresses": shared.addresses,
            "last_at_ms": shared.last_at_ms,
        })),
        "clock_ahead_ms": info.clock_ahead_ms,
        "health": info.health.as_ref().map(health_json),
    })
}

fn health_json(health: &LockboxHealth) -> Value {
    let alarm = |alarm: &LockboxAlarm| {
        json!({
            "what": printable(alarm.what.clone()),
            "raised_at_ms": alarm.raised_at_ms,
            "stops_transfers": alarm.stops_transfers,
        })
    };
    json!({
        "sealed": health.sealed,
        "alarms": health.alarms.iter().map(alarm).collect::<Vec<_>>(),
        "further_alarms": health.further_alarms,
    })
}

/// How far a lockbox's clock is from the broker's: `+480 s` is ahead. Differences of less than a second are not told apart.
fn clock(info: &LockboxInfo) -> String {
    info.clock_ahead_ms
        .map_or_else(|| "-".to_owned(), |ahead_ms| format!("{:+} s", ahead_ms / 1_000))
}

pub(super) fn name(info: &LockboxInfo) -> &str {
    info.lockbox.as_ref().map_or("", |lockbox| &lockbox.name)
}

pub(super) fn id(info: &LockboxInfo) -> String {
    let id = info.lockbox.as_ref().map_or(&[][..], |lockbox| &lockbox.lockbox_id);
    lockbox_authz::LockboxId::from_slice("lockbox_id", id).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

fn status(info: &LockboxInfo) -> &'static str {
    match info.status() {
        LockboxStatus::Unspecified => "?",
        LockboxStatus::Pending => "pending",
        LockboxStatus::Admitted => "admitted",
        LockboxStatus::Retired => "retired",
    }
}

fn labels(info: &LockboxInfo) -> String {
    let labels = info.lockbox.as_ref().map_or(&[][..], |lockbox| &lockbox.labels);
    let texts: Vec<String> = labels
        .iter()
        .map(|label| format!("{}={}", label.key, label.value))
        .collect();
    texts.join(",")
}
