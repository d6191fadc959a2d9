//! Since when a stolen lockbox is thought to have been in strangers' hands. SPEC sections 13.5 and 13.6.

use lockbox_authz::LockboxId;
use lockbox_authz::field;
use lockbox_authz::roster::{Change, Roster, RosterEntry};
use lockbox_rpc::api::control;

use crate::broker::Broker;
use crate::clock::now_ms;
use crate::decide::find_lockbox;
use crate::limits::HELD_WITHIN_MS;
use crate::refusal::Refusal;
use crate::registry::Theft;

impl Broker {
    /// A lockbox of the roster, and since when it is thought to be taken over; 0 if nobody says.
    pub(crate) fn theft(
        &self,
        name_or_id: &str,
        held_since_ms: i64,
        with_gone_at_first: bool,
    ) -> Result<Theft, Refusal> {
        let roster = self.roster();
        let member = find_lockbox(&roster, name_or_id).ok_or_else(|| Refusal::unknown_lockbox(name_or_id))?;
        let lockbox_id = member.lockbox.lockbox_id;
        let since_ms = match held_since_ms {
            0 => {
                let retired_at_ms = member.retired.then(|| retired_at_ms(&roster, lockbox_id)).flatten();
                default_since_ms(now_ms(), [retired_at_ms, self.last_seen_ms(lockbox_id)])
            }
            since_ms => field::time_ms("held_since_ms", since_ms)?,
        };
        Ok(Theft {
            lockbox_id,
            since_ms,
            with_gone_at_first,
        })
    }

    /// What does not count of what is remembered of the lockbox.
    pub(crate) async fn left_out(&self, theft: Theft) -> Result<control::LeftOut, Refusal> {
        let left_out = self.registry().left_out(theft).await?;
        Ok(control::LeftOut {
            earlier_count: left_out.earlier.count,
            earliest_ms: left_out.earlier.from_ms.unwrap_or(0),
            gone_at_first_count: left_out.gone_at_first.count,
            gone_at_first_ms: left_out.gone_at_first.from_ms.unwrap_or(0),
        })
    }
}

/// A thief may have wiped it as soon as it was taken, and the theft may be acted on long after: the days count back from when
/// the lockbox was last at work, and not from now. A time that is not known, or to come, does not matter.
fn default_since_ms(now_ms: i64, ends_ms: [Option<i64>; 2]) -> i64 {
    let known = ends_ms.into_iter().flatten().filter(|at_ms| *at_ms > 0);
    let end_ms = known.fold(now_ms, i64::min);
    end_ms.saturating_sub(HELD_WITHIN_MS).max(1)
}

/// By the clock of the admin who signed it, which may have been long before the entry was submitted.
fn retired_at_ms(roster: &Roster, lockbox_id: LockboxId) -> Option<i64> {
    let entries = roster.entries_from(0, usize::MAX);
    let made = entries.filter_map(|entry| entry.unverified_statement::<RosterEntry>().ok());
    let mut retirements = made.filter(
        |made| matches!(&made.change, Change::RetireLockbox { lockbox_id: retired, .. } if *retired == lockbox_id),
    );
    retirements.next().map(|made| made.signed_at_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    const NOW_MS: i64 = 1_800_000_000_000;

    /// Stolen and wiped on day 0, retired on day 1, compromised on day 9: what was wiped counts.
    #[test]
    fn the_days_count_back_from_when_the_lockbox_was_last_at_work() {
        let since = |ends: [Option<i64>; 2]| (NOW_MS - default_since_ms(NOW_MS, ends)) / DAY_MS;
        let ago = |days: i64| Some(NOW_MS - days * DAY_MS);
        assert_eq!(since([None, None]), 7);
        assert_eq!(since([ago(8), None]), 15, "retired");
        assert_eq!(since([None, ago(9)]), 16, "never heard of again");
        assert_eq!(since([ago(8), ago(9)]), 16);
        assert_eq!(
            since([ago(8), ago(0)]),
            15,
            "the retirement was signed before it was submitted"
        );
        assert_eq!(
            since([ago(-1), Some(0)]),
            7,
            "a clock was wrong, and it never connected"
        );
    }
}
