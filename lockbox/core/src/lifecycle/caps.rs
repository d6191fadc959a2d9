//! What leaves a lockbox at most, whatever a broker signs. SPEC sections 6.3 and 13.7.

use lockbox_authz::id::KeyId;
use prost::Message;
use rand_core::CryptoRng;

use crate::ledger::damaged;
use crate::lockbox::{Lockbox, LockboxError};
use crate::rows::Row;
use crate::step::Step;
use crate::vault::Changes;
use crate::wire;

/// What the hour of [`Caps::transfers_per_hour`] is, in milliseconds.
pub const HOUR_MS: i64 = 3_600_000;

/// The largest cap of transfers per hour: each is 9 bytes of one record.
pub const MAX_TRANSFERS_PER_HOUR: u32 = 4_096;

/// The caps of one lockbox. They are its operator's, in its configuration, and no broker can raise them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// New authorizations that are acted on as source in any hour, 1 to 4,096; `None` for as many as come.
    pub transfers_per_hour: Option<u32>,
    /// Keys that leave under one authorization; `None` for as many as are selected.
    pub keys_per_authorization: Option<u64>,
}

/// Start of the text of a canary's alarm. The rest names the key and stays on this machine: a thief who learns which key is the
/// canary does not ask for it again.
pub const CANARY_ALARM: &str = "an authorization asked for a canary key";

impl Lockbox {
    /// Sets what the configuration says.
    pub fn set_caps(&mut self, caps: Caps) {
        self.caps = caps;
    }

    /// Raises the alarm that an authorization selected a canary: until an operator clears it, nothing leaves. `authorization`
    /// is kept as the evidence.
    pub fn raise_canary_alarm(
        &mut self,
        key_id: KeyId,
        authorization: &[u8],
        now_ms: i64,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<()>, LockboxError> {
        let what = format!("{CANARY_ALARM}: {key_id}");
        self.raise_alarm(what, authorization, now_ms, rng)
    }

    /// When authorizations were spent within an hour of now, ascending. A clock that went back by minutes frees nothing; one
    /// that was years ahead must not block for years.
    pub(crate) fn spent_in_last_hour(&self, now_ms: i64) -> Result<Vec<i64>, LockboxError> {
        let Some(bytes) = self.vault.read(Row::Spent)? else {
            return Ok(Vec::new());
        };
        let record = wire::SpentRecord::decode(&bytes[..]).map_err(|_| damaged("the last hour's transfers"))?;
        let mut spent = record.spent_at_ms;
        spent.retain(|at_ms| at_ms.abs_diff(now_ms) < HOUR_MS.unsigned_abs());
        Ok(spent)
    }

    /// Counts one more, in the step that spends the authorization; also while there is no cap, for there may be one within the
    /// hour. No more are kept than the largest cap needs.
    pub(crate) fn note_spent(&self, now_ms: i64, changes: &mut Changes) -> Result<(), LockboxError> {
        let mut spent_at_ms = self.spent_in_last_hour(now_ms)?;
        spent_at_ms.push(now_ms);
        spent_at_ms.sort_unstable();
        let surplus = spent_at_ms.len().saturating_sub(MAX_TRANSFERS_PER_HOUR as usize);
        spent_at_ms.drain(..surplus);
        let record = wire::SpentRecord {
            version: 1,
            spent_at_ms,
        };
        changes.put(Row::Spent, record.encode_to_vec());
        Ok(())
    }
}
