//! The machine's clock, and times for people.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970. A clock before 1970 reads as 1970.
pub fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// Year, month and day (UTC) of a time in milliseconds since 1970.
pub fn civil(ms: i64) -> (i32, u8, u8) {
    // Days are counted from March 1 of year 0, so that a leap day is the last of its year.
    let days = ms.div_euclid(86_400_000) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (
        i32::try_from(year).unwrap_or(i32::MAX),
        u8::try_from(month).unwrap_or(12),
        u8::try_from(day).unwrap_or(28),
    )
}

/// A time in milliseconds since 1970 as RFC 3339 has it, in UTC and whole seconds; `-` for 0.
pub fn rfc3339(ms: i64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let (year, month, day) = civil(ms);
    let second_of_day = ms.div_euclid(1_000).rem_euclid(86_400);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// What [`rfc3339`] writes, also without seconds, or a date alone, which begins at midnight (UTC). Nothing before 1970.
pub fn ms_of_rfc3339(text: &str) -> Option<i64> {
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        17 => format!("{}:00Z", text.strip_suffix('Z')?),
        _ => text.to_owned(),
    };
    let number = |from: usize, to: usize| whole.get(from..to)?.parse::<u32>().ok().map(i64::from);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // As in `civil`, the other way round.
    let year_from_march = year - i64::from(month <= 2);
    let month_from_march = (month + 9) % 12;
    let days = 365 * year_from_march + year_from_march / 4 - year_from_march / 100
        + year_from_march / 400
        + (153 * month_from_march + 2) / 5
        + day
        - 1
        - 719_468;
    let ms = (days * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000;
    // What is not a date, or not written as one, comes back as something else.
    (ms > 0 && rfc3339(ms) == whole).then_some(ms)
}

/// How far one clock is ahead of another, or behind it: "100 seconds ahead of".
pub fn describe_ahead(ahead_ms: i64) -> String {
    let seconds = ahead_ms.unsigned_abs() / 1_000;
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    format!("{seconds} seconds {side}")
}

#[cfg(test)]
mod tests {
    use super::{ms_of_rfc3339, rfc3339};

    #[test]
    fn what_is_written_is_read() {
        for ms in [
            1_000,
            951_782_400_000,
            1_709_251_199_000,
            1_798_761_599_000,
            4_107_542_400_000,
        ] {
            assert_eq!(ms_of_rfc3339(&rfc3339(ms)), Some(ms));
        }
    }

    /// `date -u -d @SECONDS` says the same.
    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_709_251_199_999), "2024-02-29T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00Z");
        assert_eq!(rfc3339(1_000), "1970-01-01T00:00:01Z");
    }
}
