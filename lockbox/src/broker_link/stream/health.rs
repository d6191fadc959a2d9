//! How the lockbox is, for the broker's lists: when it connects, when that changes, and once it is sealed. SPEC section 7.9.

use lockbox_authz::field;
use lockbox_authz::limits::{MAX_ALARM_CHARS, MAX_ALARMS_TOLD};
use lockbox_core::lifecycle::caps::CANARY_ALARM;
use lockbox_core::lockbox::AlarmKind;
use lockbox_rpc::api::node::{Alarm, ConnectResponse, HealthReport, connect_request, connect_response};
use tonic::Streaming;

use super::{LinkError, Stream, request};

impl Stream<'_> {
    /// Tells the broker, unless it was told the same on this connection.
    pub(super) async fn tell_health(&mut self) -> Result<(), LinkError> {
        let alarms = self.node.engine.read(|lockbox| {
            let alarms = lockbox.alarms().values().map(|alarm| Alarm {
                what: told(&alarm.what),
                raised_at_ms: alarm.raised_at_ms,
                stops_transfers: alarm.kind == AlarmKind::Stop,
            });
            alarms.collect()
        });
        let mut alarms: Vec<Alarm> = alarms.await?;
        alarms.sort_by_key(|alarm| !alarm.stops_transfers);
        let further_alarms = alarms.len().saturating_sub(MAX_ALARMS_TOLD);
        alarms.truncate(MAX_ALARMS_TOLD);
        let roster = self.node.engine.cluster()?.roster.clone();
        let health = HealthReport {
            report_id: 0,
            sealed: false,
            roster_head: roster.map(|roster| roster.head().to_wire()),
            alarms,
            further_alarms: u32::try_from(further_alarms).unwrap_or(u32::MAX),
        };
        if self.health.as_ref() == Some(&health) {
            return Ok(());
        }
        self.send_health(health.clone()).await?;
        self.health = Some(health);
        Ok(())
    }

    /// Tells the broker that this lockbox is sealed, and waits until it has heard. The caller sets the time for that.
    pub(super) async fn tell_sealed(&mut self, inbound: &mut Streaming<ConnectResponse>) {
        let Some(health) = self.health.take() else { return };
        let sealed = HealthReport { sealed: true, ..health };
        let Ok(number) = self.send_health(sealed).await else {
            return;
        };
        while let Ok(Some(answer)) = inbound.message().await {
            if let Some(connect_response::Message::Ack(ack)) = answer.message
                && ack.report_id == number
            {
                return;
            }
        }
    }

    async fn send_health(&mut self, health: HealthReport) -> Result<u64, LinkError> {
        self.reports_sent += 1;
        let report_id = self.reports_sent;
        let message = request(connect_request::Message::HealthReport(HealthReport {
            report_id,
            ..health
        }));
        self.outbound.send(message).await.map_err(|_| LinkError::Closed)?;
        Ok(report_id)
    }
}

/// As long as the broker takes it, without characters that it refuses, and without the name of a canary.
fn told(what: &str) -> String {
    let what = match what.starts_with(CANARY_ALARM) {
        true => CANARY_ALARM,
        false => what,
    };
    let plain = what.chars().map(|c| match field::is_plain(c) {
        true => c,
        false => ' ',
    });
    plain.take(MAX_ALARM_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The broker refuses a report with any other text, and would then show neither the alarm nor that the lockbox is sealed.
    #[test]
    fn a_text_is_told_as_the_broker_takes_it_and_names_no_canary() {
        let hostile = format!("a\u{1b}[2J\u{202e}\n{}", "b".repeat(2 * MAX_ALARM_CHARS));
        let text = told(&hostile);
        assert!(text.starts_with("a [2J  bb"), "{text}");
        field::text("alarm", &text, 0, MAX_ALARM_CHARS).unwrap();
        assert_eq!(told(&format!("{CANARY_ALARM}: an id")), CANARY_ALARM);
    }
}
