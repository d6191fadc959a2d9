//! The machine's clock, and times for people.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use lockbox_authz::time::rfc3339;

/// A clock that differs from the broker's by more is warned of: a quarter of the difference that every check allows.
pub(crate) const CLOCK_WARNING_MS: i64 = 30 * 1_000;

/// Milliseconds since 1970. A clock before 1970 reads as 1970.
pub fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// The clock of the broker that last told its time. It says whether waiting can help, and decides nothing else.
#[derive(Debug, Default)]
pub(crate) struct BrokerClock(Mutex<Option<(Instant, i64)>>);

impl BrokerClock {
    /// Takes what a broker's clock says now, in milliseconds since 1970.
    pub(crate) fn set(&self, time_ms: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), time_ms));
    }

    /// The broker's time now, whatever became of this machine's wall clock since; `None` if no broker has told it.
    pub(crate) fn now_ms(&self) -> Option<i64> {
        let (at, time_ms) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let elapsed_ms = i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX);
        Some(time_ms.saturating_add(elapsed_ms))
    }
}
