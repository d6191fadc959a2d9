//! What of a stolen lockbox's past does not count, and since when the broker remembers any of it: whoever decides on a notice
//! must not take silence for innocence. SPEC section 13.6.

use std::sync::Arc;

use lockbox_authz::{FieldError, LockboxId};
use lockbox_store::Batch;

use super::inventory::Reader;
use super::left::Left;
use super::{Registry, Theft, Turn, joined, keys};
use crate::refusal::Refusal;

/// What is remembered of a lockbox and does not count as held by whoever took it over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// What left before the time of the theft.
    pub earlier: Group,
    /// What was gone when the broker met the lockbox.
    pub gone_at_first: Group,
}

/// Some keys that a lockbox has no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub count: u64,
    /// When the first of them was heard of as gone; `None` if there is none.
    pub from_ms: Option<i64>,
}

impl Registry {
    /// What left before this may be forgotten, or was never heard of: the broker was not there, or its database was lost.
    pub fn left_known_from_ms(&self, now_ms: i64) -> Result<i64, Refusal> {
        let from_ms = self.remembers_from_ms()?;
        let kept_from_ms = self.left_kept_from_ms(now_ms)?;
        Ok(from_ms.map_or(now_ms, |from_ms| from_ms.max(kept_from_ms)))
    }

    /// Since when everything that left was heard of and is not forgotten; `None`: nothing was reported yet.
    pub(super) fn remembers_from_ms(&self) -> Result<Option<i64>, Refusal> {
        let damaged = |_| Refusal::Record(FieldError::new("left-known-from", "is not what the broker writes"));
        let bytes = self.store.get(keys::LEFT_KNOWN_FROM).map_err(Refusal::Store)?;
        let number = bytes.map(|bytes| bytes.try_into().map(i64::from_be_bytes).map_err(damaged));
        number.transpose()
    }

    /// When a lockbox was last connected to this broker, as far as it is written down.
    pub fn last_seen_ms(&self, lockbox_id: LockboxId) -> Option<i64> {
        self.lock().lockboxes.get(&lockbox_id).map(|facts| facts.last_seen_ms)
    }

    /// Reads everything that is remembered of the lockbox, and holds up nobody.
    pub async fn left_out(self: &Arc<Self>, theft: Theft) -> Result<LeftOut, Refusal> {
        let place = self.readings.begin()?;
        let reader = Reader {
            store: Arc::clone(&self.store),
        };
        let read = tokio::task::spawn_blocking(move || {
            let _place = place;
            reader.left_out(theft)
        });
        joined(read.await)?
    }
}

impl Reader {
    fn left_out(&self, theft: Theft) -> Result<LeftOut, Refusal> {
        let mut left_out = LeftOut::default();
        self.each(&keys::lefts(theft.lockbox_id), |(_, bytes)| {
            let left = Left::decode(bytes)?;
            match theft.counts(&left) {
                true => {}
                false if left.left_at_ms < theft.since_ms => left_out.earlier.add(&left),
                false => left_out.gone_at_first.add(&left),
            }
            Ok(())
        })?;
        Ok(left_out)
    }
}

impl Group {
    fn add(&mut self, left: &Left) {
        self.count += 1;
        let from_ms = self.from_ms.unwrap_or(left.left_at_ms);
        self.from_ms = Some(from_ms.min(left.left_at_ms));
    }
}

impl Theft {
    /// Whether a key that the lockbox has no more was known to whoever took it over.
    pub(super) fn counts(self, left: &Left) -> bool {
        left.left_at_ms >= self.since_ms && (self.with_gone_at_first || !left.gone_at_first)
    }
}

impl Turn<'_> {
    /// With the first report of all: of what was before, a broker knows nothing.
    pub(super) fn begin_to_remember(&self, left_at_ms: i64, batch: &mut Batch) -> Result<(), Refusal> {
        if self.get(keys::LEFT_KNOWN_FROM)?.is_none() {
            batch.put(keys::LEFT_KNOWN_FROM.to_vec(), left_at_ms.to_be_bytes().to_vec());
        }
        Ok(())
    }

    /// What left then is forgotten. It stays so when more days are kept later.
    pub(super) fn note_forgotten(&self, left_at_ms: i64, batch: &mut Batch) -> Result<(), Refusal> {
        let from_ms = self.registry.remembers_from_ms()?;
        let after_ms = left_at_ms.saturating_add(1);
        if from_ms.is_some_and(|from_ms| from_ms < after_ms) {
            batch.put(keys::LEFT_KNOWN_FROM.to_vec(), after_ms.to_be_bytes().to_vec());
        }
        Ok(())
    }
}
