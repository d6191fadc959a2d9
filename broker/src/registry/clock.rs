//! The broker's clock, as far as it dates what leaves and has it forgotten: one that is wrong for a while must not have a theft
//! dated before it, nor anything forgotten for good. SPEC section 13.6.

use lockbox_store::Store;
use prost::Message;

use super::records::{self, ClockRecord};
use super::{Registry, Turn, keys};
use crate::refusal::Refusal;

/// Time that goes by before it is written down again. As much may be lost of it.
const WRITTEN_EVERY_MS: i64 = 60 * 1_000;

/// What the broker's clock has said, at the reports that it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    /// The latest time, but for that of a jump that was taken back.
    newest_ms: i64,
    jump: Option<Jump>,
}

/// The clock went ahead by more than a broker is likely to hear of nobody: it was put right, or it is wrong now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Jump {
    from_ms: i64,
    to_ms: i64,
}

impl Clock {
    pub(super) fn read(store: &dyn Store) -> Result<Option<Self>, Refusal> {
        let bytes = store.get(keys::CLOCK).map_err(Refusal::Store)?;
        let record = bytes.map(|bytes| records::decode("clock record", &bytes));
        let record: Option<ClockRecord> = record.transpose().map_err(Refusal::Record)?;
        Ok(record.map(|record| Self {
            newest_ms: record.newest_ms,
            jump: (record.jumped_to_ms != 0).then_some(Jump {
                from_ms: record.jumped_from_ms,
                to_ms: record.jumped_to_ms,
            }),
        }))
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let jump = self.jump.unwrap_or(Jump { from_ms: 0, to_ms: 0 });
        let record = ClockRecord {
            newest_ms: self.newest_ms,
            jumped_from_ms: jump.from_ms,
            jumped_to_ms: jump.to_ms,
        };
        record.encode_to_vec()
    }

    /// With what it says now, if what left is kept for so long.
    pub(super) fn after(before: Option<Self>, now_ms: i64, kept_ms: i64) -> Self {
        let Some(Self {
            mut newest_ms,
            mut jump,
        }) = before
        else {
            return Self {
                newest_ms: now_ms,
                jump: None,
            };
        };
        if let Some(undone) = jump.take_if(|jump| now_ms < jump.to_ms) {
            newest_ms = undone.from_ms;
        }
        if now_ms > newest_ms.saturating_add(kept_ms / 2) {
            jump = Some(Jump {
                from_ms: jump.map_or(newest_ms, |jump| jump.from_ms),
                to_ms: now_ms,
            });
        }
        Self {
            newest_ms: newest_ms.max(now_ms),
            jump: jump.filter(|jump| now_ms < jump.to_ms.saturating_add(kept_ms)),
        }
    }

    /// When something left of which is heard now: no earlier than anything that was heard of before.
    pub(super) fn left_at_ms(self) -> i64 {
        self.newest_ms.max(0)
    }

    /// What left before this is forgotten: nothing, until a jump has stood for as long as what left is kept.
    pub(super) fn forgets_until_ms(self, now_ms: i64, kept_ms: i64) -> i64 {
        match self.jump {
            Some(_) => i64::MIN,
            None => now_ms.saturating_sub(kept_ms),
        }
    }

    fn is_worth_writing(self, before: Option<Self>) -> bool {
        before.is_none_or(|before| {
            self.jump != before.jump || self.newest_ms.abs_diff(before.newest_ms) >= WRITTEN_EVERY_MS.unsigned_abs()
        })
    }
}

impl Registry {
    /// What left before this may be forgotten by now.
    pub(super) fn left_kept_from_ms(&self, now_ms: i64) -> Result<i64, Refusal> {
        let kept_ms = self.inventory_bounds.left_kept_ms;
        let clock = Clock::after(Clock::read(self.store.as_ref())?, now_ms, kept_ms);
        Ok(clock.newest_ms.saturating_sub(kept_ms))
    }

    /// What left before this may be forgotten already, or was never heard of.
    pub(super) fn forgotten_until_ms(&self) -> Result<i64, Refusal> {
        let clock = Clock::read(self.store.as_ref())?;
        let kept_ms = self.inventory_bounds.left_kept_ms;
        let until_ms = clock.map_or(i64::MIN, |clock| {
            clock.newest_ms.saturating_add(WRITTEN_EVERY_MS).saturating_sub(kept_ms)
        });
        Ok(self
            .remembers_from_ms()?
            .map_or(until_ms, |from_ms| from_ms.max(until_ms)))
    }
}

impl Turn<'_> {
    /// The clock at this report, and whether it is to be written down with it.
    pub(super) fn clock(&self, now_ms: i64) -> Result<(Clock, bool), Refusal> {
        let before = Clock::read(self.registry.store.as_ref())?;
        let clock = Clock::after(before, now_ms, self.registry.inventory_bounds.left_kept_ms);
        Ok((clock, clock.is_worth_writing(before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    const KEPT_MS: i64 = 30 * DAY_MS;

    /// What it says at each of these days: when something leaves then, and what is forgotten.
    fn told(days: &[i64]) -> Vec<(i64, Option<i64>)> {
        let mut clock = None;
        let told = days.iter().map(|day| {
            let now_ms = day * DAY_MS;
            let after = Clock::after(clock, now_ms, KEPT_MS);
            clock = Some(after);
            let until = after.forgets_until_ms(now_ms, KEPT_MS);
            (
                after.left_at_ms() / DAY_MS,
                (until != i64::MIN).then_some(until / DAY_MS),
            )
        });
        told.collect()
    }

    #[test]
    fn a_clock_that_is_right_forgets_what_is_old() {
        assert_eq!(
            told(&[100, 110, 124]),
            [(100, Some(70)), (110, Some(80)), (124, Some(94))]
        );
    }

    #[test]
    fn a_clock_that_is_set_back_dates_nothing_before_what_was_heard_before() {
        assert_eq!(
            told(&[100, 80, 101]),
            [(100, Some(70)), (100, Some(50)), (101, Some(71))]
        );
    }

    #[test]
    fn a_jump_forgets_nothing_however_many_reports_there_are_after_it() {
        assert_eq!(
            told(&[100, 200, 200, 215, 229, 230]),
            [
                (100, Some(70)),
                (200, None),
                (200, None),
                (215, None),
                (229, None),
                (230, Some(200))
            ]
        );
    }

    #[test]
    fn a_jump_that_is_taken_back_is_as_if_it_had_not_been() {
        assert_eq!(
            told(&[100, 900, 101, 102]),
            [(100, Some(70)), (900, None), (101, Some(71)), (102, Some(72))]
        );
    }

    /// In two steps it is no smaller, and put half right it is one still.
    #[test]
    fn a_jump_in_steps_is_one() {
        assert_eq!(
            told(&[100, 900, 1_800, 500, 101]),
            [
                (100, Some(70)),
                (900, None),
                (1_800, None),
                (500, None),
                (101, Some(71))
            ]
        );
    }
}
