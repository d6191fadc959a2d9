//! How the lockboxes are, as they say: sealed or not, their alarms, their roster heads. SPEC section 7.9.

use std::sync::Arc;

use lockbox_authz::limits::{MAX_ALARM_CHARS, MAX_ALARMS_TOLD};
use lockbox_authz::roster::Head;
use lockbox_authz::{FieldError, LockboxId, field};
use lockbox_rpc::api::control::{LockboxAlarm, LockboxHealth, LockboxInfo};
use lockbox_rpc::api::node::{Alarm, HealthReport};

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::refusal::Refusal;
use crate::registry::LockboxFacts;

impl Broker {
    /// Takes what a lockbox says of itself; `Ok` means that it is stored durably.
    pub(crate) async fn health_report(
        self: &Arc<Self>,
        lockbox_id: LockboxId,
        report: HealthReport,
    ) -> Result<(), Refusal> {
        let roster_head = check(&report)?;
        let health = HealthReport { report_id: 0, ..report };
        self.turn(move |_, turn| {
            let Some(facts) = turn.lockbox_facts(lockbox_id) else {
                return Ok(());
            };
            if facts.health.as_ref() == Some(&health) && facts.roster_head == roster_head {
                return Ok(());
            }
            warn_of_new(lockbox_id, facts.health.as_ref(), &health);
            let facts = LockboxFacts {
                health: Some(health),
                roster_head,
                ..facts.clone()
            };
            turn.set_lockbox_facts(lockbox_id, facts)
        })
        .await?;
        self.sessions.heard(lockbox_id, Some(roster_head), now_ms());
        Ok(())
    }
}

/// A lockbox that connects is not sealed. Its alarms stand until it says otherwise.
pub(crate) fn of_connected(last: Option<HealthReport>) -> Option<HealthReport> {
    last.map(|last| HealthReport { sealed: false, ..last })
}

/// For clients of the control plane's port.
pub(crate) fn shown(health: &HealthReport) -> LockboxHealth {
    let alarm = |alarm: &Alarm| LockboxAlarm {
        what: alarm.what.clone(),
        raised_at_ms: alarm.raised_at_ms,
        stops_transfers: alarm.stops_transfers,
    };
    LockboxHealth {
        sealed: health.sealed,
        alarms: health.alarms.iter().map(alarm).collect(),
        further_alarms: health.further_alarms,
    }
}

/// The texts of alarms may name keys of others: they are for requesters that see every transfer.
pub(crate) fn hide_texts(info: &mut LockboxInfo) {
    let alarms = info.health.iter_mut().flat_map(|health| &mut health.alarms);
    alarms.for_each(|alarm| alarm.what.clear());
}

fn check(report: &HealthReport) -> Result<Head, Refusal> {
    if report.alarms.len() > MAX_ALARMS_TOLD {
        return Err(FieldError::new("alarms", "must be at most 16").into());
    }
    for alarm in &report.alarms {
        field::text("alarm", &alarm.what, 0, MAX_ALARM_CHARS)?;
    }
    let head = field::required("roster_head", report.roster_head.as_ref())?;
    Ok(Head::from_wire(head)?)
}

/// One line for each report. The text of an alarm is the lockbox's: escaped in the log.
fn warn_of_new(lockbox_id: LockboxId, known: Option<&HealthReport>, health: &HealthReport) {
    let known = known.map_or(&[][..], |known| &known.alarms);
    if let Some(alarm) = health.alarms.iter().find(|alarm| !known.contains(alarm)) {
        tracing::warn!(
            lockbox = %lockbox_id,
            alarm = ?alarm.what,
            stops_transfers = alarm.stops_transfers,
            alarms = health.alarms.len(),
            "a lockbox has raised an alarm"
        );
    }
}
