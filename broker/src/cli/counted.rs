//! What counts as held by a stolen lockbox, by the broker's word, and what is left out: it is said whenever something is, since
//! a theft may have been earlier than whoever looks at the answer thinks.

use lockbox_rpc::api::control::LeftOut;
use serde_json::{Value, json};

use super::since::Since;
use crate::clock::rfc3339;

/// What is asked of a stolen lockbox.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// In milliseconds since 1970; 0 for the broker to say.
    pub(super) held_since_ms: i64,
    /// Whether what was gone when the broker met the lockbox counts as well.
    pub(super) with_gone_at_first: bool,
}

/// What the answer is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    asked: Asked,
    /// What lockboxes had no more before this time may be forgotten; 0 if the broker says nothing of it.
    left_known_from_ms: i64,
    held_since_ms: i64,
    left_out: LeftOut,
}

impl Asked {
    /// Whoever names a time has thought about it: everything counts that was heard of as gone since.
    pub(super) fn of(since: Option<Since>) -> Self {
        since.map_or_else(Self::default, |since| Self {
            held_since_ms: since.0,
            with_gone_at_first: true,
        })
    }
}

impl Counted {
    pub(super) fn new(asked: Asked) -> Self {
        Self {
            asked,
            ..Self::default()
        }
    }

    /// Takes what one page says. Not every page says all.
    pub(super) fn take(&mut self, left_known_from_ms: i64, held_since_ms: i64, left_out: Option<LeftOut>) {
        self.left_known_from_ms = left_known_from_ms;
        if held_since_ms != 0 {
            self.held_since_ms = held_since_ms;
        }
        if let Some(left_out) = left_out {
            self.left_out = left_out;
        }
    }

    /// From when on it counts what the lockbox held. An older broker takes seven days, and does not say so.
    pub(super) fn since(&self) -> Since {
        match (self.held_since_ms, self.asked.held_since_ms) {
            (0, 0) => Since::default(),
            (0, since_ms) | (since_ms, _) => Since(since_ms),
        }
    }

    /// The same once more, whatever happens meanwhile.
    pub(super) fn again(&self) -> Asked {
        Asked {
            held_since_ms: self.since().0,
            ..self.asked
        }
    }

    /// On standard error: what is missing in the answer.
    pub(super) fn warn(&self) {
        for warning in self.warnings() {
            lockbox_host::say!("{warning}");
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let LeftOut {
            earlier_count,
            earliest_ms,
            gone_at_first_count,
            gone_at_first_ms,
        } = self.left_out;
        let keys = |count: u64| if count == 1 { "key" } else { "keys" };
        if earlier_count > 0 {
            let (keys, earliest) = (keys(earlier_count), rfc3339(earliest_ms));
            warnings.push(format!(
                "not counted: {earlier_count} {keys} that left the lockbox before that, the first at {earliest}; if it may have \
                 been taken over by then, say --since {earliest}"
            ));
        }
        if gone_at_first_count > 0 {
            let (keys, from) = (keys(gone_at_first_count), rfc3339(gone_at_first_ms));
            warnings.push(format!(
                "not counted: {gone_at_first_count} {keys} that were destroyed or moved away when the broker first heard of the \
                 lockbox, nobody knows when; if that may have been the thief, say --since {from}"
            ));
        }
        if self.left_known_from_ms == 0 {
            warnings.push(
                "the broker's version does not remember what a lockbox has no more: what it destroyed, moved away or reports no \
                 more is not looked at"
                    .to_owned(),
            );
        } else if self.since().0 < self.left_known_from_ms {
            warnings.push(format!(
                "the broker knows what a lockbox has no more since {} only (it remembers it for the inventory.left_days in \
                 broker.toml, and knows nothing of before its first report): what it destroyed, moved away or reported no more \
                 before that is not looked at",
                rfc3339(self.left_known_from_ms)
            ));
        }
        warnings
    }

    /// Adds it to an answer.
    pub(super) fn add_to(&self, answer: &mut Value) {
        let time = |at_ms: i64| (at_ms != 0).then_some(at_ms);
        answer["held_since_ms"] = self.since().0.into();
        answer["left_known_from_ms"] = time(self.left_known_from_ms).into();
        answer["left_earlier"] = json!({
            "count": self.left_out.earlier_count,
            "earliest_ms": time(self.left_out.earliest_ms),
        });
        answer["gone_at_first"] = json!({
            "count": self.left_out.gone_at_first_count,
            "earliest_ms": time(self.left_out.gone_at_first_ms),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An older broker says nothing, and its silence is no memory.
    #[test]
    fn a_broker_that_does_not_say_since_when_it_remembers_does_not() {
        let since_ms = 1_800_000_000_000;
        let warned = |known_from_ms: i64| {
            let mut counted = Counted::new(Asked::of(Some(Since(since_ms))));
            counted.take(known_from_ms, 0, None);
            assert_eq!(counted.since(), Since(since_ms));
            !counted.warnings().is_empty()
        };
        assert!(warned(0));
        assert!(warned(since_ms + 1));
        assert!(!warned(since_ms));
    }

    /// What is named to include them has to include them, though it is written without milliseconds.
    #[test]
    fn keys_that_left_too_early_are_told_with_the_time_that_includes_them() {
        let mut counted = Counted::new(Asked::default());
        let left_out = LeftOut {
            earlier_count: 2,
            earliest_ms: 1_800_000_000_999,
            ..LeftOut::default()
        };
        counted.take(1, 1_800_000_100_000, Some(left_out));
        counted.take(1, 0, None);
        let [warning] = &counted.warnings()[..] else {
            panic!("one")
        };
        assert!(
            warning.contains("2 keys") && warning.ends_with("--since 2027-01-15T08:00:00Z"),
            "{warning}"
        );
    }
}
