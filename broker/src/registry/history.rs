//! Dropping what is kept no longer. SPEC section 8.6 says what is kept for how long.
//!
//! | index | dropped with it | when |
//! |---|---|---|
//! | `expired-at/` | authorization and revocation of a transfer that came to nothing | 7 days after the expiry |
//! | `all/`, which sorts by age | a transfer that has ended, with its request id, receipts and erasure records | after `history_days` |
//! | `destruction-at/` | a destruction record | after `history_days` |

use lockbox_authz::limits::KEPT_AFTER_EXPIRY_MS;
use lockbox_authz::{AuthorizationId, LockboxId};
use lockbox_rpc::api::node::TransferStage;
use lockbox_store::Batch;

use super::clock::Clock;
use super::transfer::{EndReport, Transfer, is_ended};
use super::{Registry, Turn, keys};
use crate::limits::SCAN_PAGE;
use crate::refusal::Refusal;

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// Changes of one batch after which the next turn goes on: a transfer can have 65,536 receipts.
const MAX_CHANGES: usize = 4_096;

impl Registry {
    /// Keeps receipts, erasure and destruction records and request ids for so many days.
    #[must_use]
    pub fn with_history_days(mut self, days: u32) -> Self {
        self.history_ms = i64::from(days) * DAY_MS;
        self
    }
}

impl Turn<'_> {
    /// Drops a part of what is kept no longer. Gives whether there may be more.
    ///
    /// `is_connected` says whether a lockbox is connected now. Nothing is dropped while this machine's clock may be wrong.
    pub fn drop_history(&mut self, now_ms: i64, is_connected: &dyn Fn(LockboxId) -> bool) -> Result<bool, Refusal> {
        let (clock, _) = self.clock(now_ms)?;
        if clock.is_in_doubt() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        self.drop_expired(now_ms, is_connected, &mut batch)?;
        let kept_from_ms = now_ms.saturating_sub(self.registry.history_ms);
        self.drop_transfers(kept_from_ms, now_ms, &mut batch)?;
        self.drop_destructions(kept_from_ms, &mut batch)?;
        let has_more = !batch.is_empty();
        self.commit(batch)?;
        Ok(has_more)
    }

    fn drop_expired(
        &self,
        now_ms: i64,
        is_connected: &dyn Fn(LockboxId) -> bool,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        for (row, _) in self.scan(keys::EXPIRED_AT, None, SCAN_PAGE)? {
            let Some((expired_at_ms, id)) = keys::from_expired_at(&row) else {
                return Err(Refusal::Record(keys::damaged("expiry record")));
            };
            if now_ms <= expired_at_ms.saturating_add(KEPT_AFTER_EXPIRY_MS) {
                break;
            }
            batch.remove(row);
            let Some(transfer) = self.transfer(id)? else { continue };
            let is_told = |lockbox_id| self.has_told(lockbox_id, transfer.expires_at_ms, is_connected);
            if !self.is_settled(&transfer, now_ms) || !is_told(transfer.source_id) || !is_told(transfer.target_id) {
                // It is looked at again in a day.
                batch.put(keys::expired_at(now_ms - KEPT_AFTER_EXPIRY_MS + DAY_MS, id), Vec::new());
                continue;
            }
            batch.remove(keys::revocation(id));
            for lockbox_id in [transfer.source_id, transfer.target_id] {
                batch.remove(keys::end_transfer(lockbox_id, id));
            }
            // Under any other, keys may have moved: that it says which is part of the history.
            if !has_begun(&transfer) {
                batch.remove(keys::authorization(id));
            }
        }
        Ok(())
    }

    fn drop_transfers(&self, kept_from_ms: i64, now_ms: i64, batch: &mut Batch) -> Result<(), Refusal> {
        let mut after = Some(keys::all_before(kept_from_ms));
        loop {
            let page = self.scan(keys::ALL, after.as_deref(), SCAN_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (row, _) in page {
                let id = row.get(keys::ALL.len() + 8..).unwrap_or_default();
                let id = AuthorizationId::from_slice("place in a list", id).map_err(Refusal::Record)?;
                let transfer = self.transfer(id)?.ok_or(Refusal::UnknownTransfer)?;
                let newest_ms = transfer.changed_at_ms.max(transfer.expires_at_ms);
                if newest_ms >= kept_from_ms || !self.is_settled(&transfer, now_ms) {
                    continue;
                }
                self.drop_transfer(&transfer, batch)?;
                if batch.operations().len() > MAX_CHANGES {
                    return Ok(());
                }
            }
        }
    }

    fn drop_transfer(&self, transfer: &Transfer, batch: &mut Batch) -> Result<(), Refusal> {
        let id = transfer.authorization_id;
        for evidence in [keys::receipts(id), keys::erasures(id)] {
            for (row, _) in self.scan(&evidence, None, MAX_CHANGES)? {
                batch.remove(row);
            }
            // The rest of it goes with the next turns, and the transfer itself last.
            if batch.operations().len() > MAX_CHANGES {
                return Ok(());
            }
        }
        let place = keys::place(transfer.created_at_ms, id);
        for row in [
            keys::transfer(id),
            keys::authorization(id),
            keys::revocation(id),
            keys::request(&transfer.requester, &transfer.request_id),
            keys::open(id),
            [keys::ALL, &place].concat(),
            [&keys::own(&transfer.requester)[..], &place].concat(),
            keys::end_transfer(transfer.source_id, id),
            keys::end_transfer(transfer.target_id, id),
        ] {
            batch.remove(row);
        }
        Ok(())
    }

    fn drop_destructions(&self, kept_from_ms: i64, batch: &mut Batch) -> Result<(), Refusal> {
        for (row, _) in self.scan(keys::DESTRUCTION_AT, None, SCAN_PAGE)? {
            let Some((at_ms, destruction)) = keys::from_destruction_at(&row) else {
                return Err(Refusal::Record(keys::damaged("destruction record")));
            };
            if at_ms >= kept_from_ms {
                break;
            }
            batch.remove(destruction);
            batch.remove(row);
        }
        Ok(())
    }

    /// Whether a transfer has ended, and neither end has anything to do any more. A MOVE that an end has begun and not ended
    /// may still have keys to erase.
    fn is_settled(&self, transfer: &Transfer, now_ms: i64) -> bool {
        let is_idle = |lockbox_id: LockboxId, end: &EndReport| {
            end.is_over() || end.stage == TransferStage::Unspecified || self.roster().admitted(&lockbox_id).is_none()
        };
        is_ended(transfer.state(now_ms))
            && is_idle(transfer.source_id, &transfer.source)
            && is_idle(transfer.target_id, &transfer.target)
    }

    /// Whether a lockbox has had the occasion to tell what it did under an authorization that expired then: where there is no
    /// route to the broker, transfers go by hand.
    fn has_told(&self, lockbox_id: LockboxId, expired_at_ms: i64, is_connected: &dyn Fn(LockboxId) -> bool) -> bool {
        let seen = self.lockbox_facts(lockbox_id).map_or(0, |facts| facts.last_seen_ms);
        seen > expired_at_ms || is_connected(lockbox_id) || self.roster().admitted(&lockbox_id).is_none()
    }
}

/// Whether an end has said that keys are, or were, on their way.
fn has_begun(transfer: &Transfer) -> bool {
    let is_begun = |end: &EndReport| {
        matches!(
            end.stage,
            TransferStage::Running | TransferStage::Complete | TransferStage::Ended
        )
    };
    transfer.keys_received > 0 || transfer.keys_erased > 0 || is_begun(&transfer.source) || is_begun(&transfer.target)
}

impl Clock {
    /// Whether this machine's clock went ahead by so much lately that it may be wrong.
    fn is_in_doubt(self) -> bool {
        self.forgets_until_ms(i64::MAX, 0) == i64::MIN
    }
}
