//! `--since`: from when on a lockbox is thought to be taken over.

use std::fmt;

use crate::clock::{ms_of_rfc3339, now_ms, rfc3339};
use crate::limits::HELD_WITHIN_MS;

/// A time that is past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since(pub(super) i64);

impl Default for Since {
    fn default() -> Self {
        Self(now_ms().saturating_sub(HELD_WITHIN_MS))
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339(self.0))
    }
}

/// A date, a time, or how long ago.
pub(super) fn since(text: &str) -> Result<Since, String> {
    parse(text, now_ms())
}

fn parse(text: &str, now_ms: i64) -> Result<Since, String> {
    const SHAPE: &str =
        "write how long ago it was, like 36h or 7d, or when, in UTC, like 2026-05-31 or 2026-05-31T08:30:00Z";
    let at_ms = match ms_of_rfc3339(text) {
        Some(at_ms) => at_ms,
        None => ms_of_span(text).and_then(|ago| now_ms.checked_sub(ago)).ok_or(SHAPE)?,
    };
    match at_ms {
        _ if at_ms > now_ms => Err("it is still to come".to_owned()),
        // The broker takes a 0 for no time.
        _ => Ok(Since(at_ms.max(1))),
    }
}

fn ms_of_span(text: &str) -> Option<i64> {
    let unit = match text.chars().last()? {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    let number: u32 = text[..text.len() - 1].parse().ok()?;
    i64::from(number).checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2027-01-15T08:00:00Z.
    const NOW_MS: i64 = 1_800_000_000_000;

    /// Whoever writes a time that is read as another one leaves keys out of a notice.
    #[test]
    fn times_are_written_as_dates_or_as_how_long_ago() {
        for (text, at_ms) in [
            ("0s", NOW_MS),
            ("90m", NOW_MS - 5_400_000),
            ("7d", NOW_MS - 7 * 86_400_000),
            ("2027-01-15T08:00:00Z", NOW_MS),
            ("2027-01-15T07:59Z", NOW_MS - 60_000),
            ("2027-01-15", NOW_MS - 8 * 3_600_000),
            ("2024-02-29", 1_709_164_800_000),
        ] {
            assert_eq!(parse(text, NOW_MS), Ok(Since(at_ms)), "{text}");
        }
        for wrong in [
            "",
            "7",
            "d",
            "-1d",
            "1w",
            "1é",
            "2027-1-15",
            "2027-02-30",
            "2026-13-01",
            "2026-05-31T08:30:00",
            "2026-05-31T24:00:00Z",
            "2026-05-31T08:30:00+02:00",
            "2027-01-15T08:00:01Z",
            "9999999999d",
        ] {
            assert!(parse(wrong, NOW_MS).is_err(), "{wrong}");
        }
    }
}
