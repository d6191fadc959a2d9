//! Requests to join that wait for an admin: the list, and `lockbox reject`.

use std::net::IpAddr;

use clap::Args;
use lockbox_rpc::api::control::{LockboxInfo, LockboxStatus, RejectJoinsRequest};
use serde_json::json;

use super::Global;
use super::client::Broker;
use super::error::CliError;
use super::lockbox::{id, list, name};
use super::output::{Format, Table, print, print_json};
use crate::clock::now_ms;

/// Which requests are rejected.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Rejected {
    /// The name, id or fingerprint of a lockbox that asks to join, as `lockbox list` shows it
    lockbox: Option<String>,
    /// All requests from this IP address
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// All requests
    #[arg(long)]
    all: bool,
}

impl Rejected {
    fn names(&self, info: &LockboxInfo) -> bool {
        let is_called = |text: &String| name(info) == text || id(info) == *text || info.fingerprint == *text;
        self.all
            || self.from.is_some_and(|from| info.asked_from == from.to_string())
            || self.lockbox.as_ref().is_some_and(is_called)
    }
}

pub(super) async fn reject(global: &Global, broker: &mut Broker, which: Rejected) -> Result<(), CliError> {
    let mut pending = list(broker).await?;
    pending.retain(|info| info.status() == LockboxStatus::Pending && which.names(info));
    if let (Some(lockbox), true) = (&which.lockbox, pending.len() > 1) {
        return Err(CliError::usage(format!(
            "several lockboxes ask to join as {lockbox}; name one by its fingerprint, as `lockbox-broker lockbox list` shows \
             it"
        )));
    }
    let keys = pending.into_iter().filter_map(|info| info.lockbox);
    let identity_keys: Vec<Vec<u8>> = keys.map(|lockbox| lockbox.identity_key).collect();
    if identity_keys.is_empty() && !which.all {
        return Err(CliError::other(
            "no such lockbox asks to join; `lockbox-broker lockbox list` shows those that do",
        ));
    }
    let answer = broker.client.reject_joins(RejectJoinsRequest { identity_keys }).await;
    let answer = answer.map_err(|status| CliError::from_status("nothing was rejected", &status))?;
    let rejected = answer.into_inner().rejected;
    if global.output == Format::Json {
        return print_json(&json!({ "rejected": rejected }));
    }
    print(&format!(
        "requests rejected: {rejected}; the same identities are refused for a day, unless they join with a token\n"
    ))
}

/// The requests that wait, for `lockbox list`; empty if there are none.
pub(super) fn table(infos: &[LockboxInfo]) -> String {
    let mut table = Table::new(&["ASKS TO JOIN", "FROM", "WAITS", "FINGERPRINT", "ID"]);
    let mut is_empty = true;
    for info in infos.iter().filter(|info| info.status() == LockboxStatus::Pending) {
        is_empty = false;
        table.row([
            name(info).to_owned(),
            info.asked_from.clone(),
            age(now_ms() - info.last_seen_ms),
            info.fingerprint.clone(),
            id(info),
        ]);
    }
    if is_empty {
        return String::new();
    }
    format!("\n{}", table.render())
}

/// A span in its largest unit.
fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
