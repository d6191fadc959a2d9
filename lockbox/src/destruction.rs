//! Keys that are erased after a grace time: the setting, and the task that counts.

use std::sync::Arc;
use std::time::Duration;

use lockbox_core::lifecycle::destruction::Tick;
use lockbox_core::lockbox::{Lockbox, LockboxError};
use serde::Deserialize;

use crate::engine::StepError;
use crate::node::Node;

/// How often the core is asked whether a key is due: a key is erased that much later at most.
const EVERY: Duration = Duration::from_secs(1);

/// The same after a failure: a full disk or a read-only file system takes a while to mend.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// An operator who finds out within a week that a volume does not open can have its old key back.
const DEFAULT_GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A longer time is a mistake, or a wish to keep the key: that is said by not ending the rotation.
const MAX_GRACE: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The section `[destruction]` of `lockbox.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDestruction {
    grace: Option<String>,
}

impl RawDestruction {
    /// The grace time, or what is wrong with `destruction.grace`.
    pub(crate) fn check(self) -> Result<Duration, String> {
        let Some(text) = self.grace else {
            return Ok(DEFAULT_GRACE);
        };
        match parse(&text) {
            Some(grace) if !grace.is_zero() && grace <= MAX_GRACE => Ok(grace),
            Some(_) => Err(format!("{text:?} is not from 1s to 366d")),
            None => Err(format!("{text:?} is not a number with a unit")),
        }
    }
}

/// A whole number with one of the units s, m, h and d.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return None,
    };
    let number: u64 = text[..text.len() - 1].parse().ok()?;
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// Erases the keys that are due, for as long as the lockbox is unsealed.
pub(crate) async fn run(node: Arc<Node>) {
    loop {
        let pause = match tick(&node).await {
            Ok(tick) => {
                report(&tick);
                EVERY
            }
            Err(StepError::Sealed | StepError::Stopping) => return,
            Err(error) => {
                tracing::error!(%error, "can't erase the scheduled keys that are due, nor note the run time; this is tried again in a minute");
                AFTER_FAILURE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn tick(node: &Node) -> Result<Tick, StepError<LockboxError>> {
    let run_ms = node.engine.run_ms();
    let is_needed = node.engine.read(move |lockbox: &Lockbox| lockbox.needs_tick(run_ms));
    if !is_needed.await?.map_err(StepError::Refused)? {
        return Ok(Tick::default());
    }
    let step = node
        .engine
        .step(move |lockbox, now_ms, rng| lockbox.tick(run_ms, now_ms, rng));
    step.await
}

fn report(tick: &Tick) {
    for gone in &tick.erased {
        tracing::info!(key = %gone.key_id, "destroyed at the end of its grace time");
    }
    for (key, error) in &tick.postponed {
        tracing::error!(%key, %error, "not destroyed at the end of its grace time; this is tried again in an hour");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(grace: &str) -> Result<Duration, String> {
        let grace = Some(grace.to_owned());
        RawDestruction { grace }.check()
    }

    #[test]
    fn a_grace_time_has_a_unit() {
        let day = Duration::from_secs(86_400);
        assert_eq!(RawDestruction::default().check(), Ok(7 * day));
        assert_eq!(check("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(check("90m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(check("24h"), Ok(day));
        assert_eq!(check("366d"), Ok(366 * day));
    }

    /// A grace time that was read as none would erase keys at once.
    #[test]
    fn rejects_a_grace_time_that_is_none_or_endless() {
        for text in [
            "",
            "7",
            "d",
            "0s",
            "-1d",
            "1.5d",
            "7 d",
            "7w",
            "7\u{e9}",
            "367d",
            "99999999999999999999d",
        ] {
            assert!(check(text).is_err(), "{text}");
        }
    }
}
