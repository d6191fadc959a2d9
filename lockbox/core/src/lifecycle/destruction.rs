//! Scheduled destruction: a key that is erased after a grace time, unless an operator cancels that. SPEC section 13.9.
//!
//! | a key | accepts | does | next |
//! |---|---|---|---|
//! | in any state | the end of its rotation | puts what scheduled it, and when it is due | scheduled |
//! | scheduled | cancel; the same key by a transfer | removes both | the state that it had |
//! | scheduled | compromise, destroy | as in any state | scheduled; destroyed |
//! | scheduled and due | the next tick | erases it | destroyed |
//!
//! The grace time is counted in run time: how long daemons have run with this store unsealed. The caller says it with each call,
//! as it says the time. A tick notes it in the store, so that after a restart the count goes on from the last tick.

use lockbox_authz::id::KeyId;
use prost::Message;
use rand_core::CryptoRng;

use super::LifecycleError;
use super::family::unindex;
use crate::custody;
use crate::ledger::damaged;
use crate::lockbox::{Lockbox, LockboxError};
use crate::record::{Destruction, DestructionOrigin, Key, KeyInfo, Tombstone};
use crate::rows::{self, Row};
use crate::step::Step;
use crate::vault::{Changes, Vault, VaultError};
use crate::wire;

/// Run time that a restart loses at most.
const MAX_UNNOTED_MS: u64 = 60_000;

/// Shorter, when the next key is due soon: a tenth of what remains, but no less than this.
const MIN_UNNOTED_MS: u64 = 1_000;

/// Keys that one tick erases.
const ERASED_PER_TICK: usize = 256;

/// Until a key is tried again that could not be erased when it was due.
const RETRY_MS: u64 = 3_600_000;

/// When a key is to be erased that its volume needs no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    Now,
    /// After a grace time that begins at this run time.
    Later {
        grace_ms: u64,
        run_ms: u64,
    },
}

/// The keys that are scheduled for destruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduled {
    /// At most [`Scheduled::MOST`].
    pub count: usize,
    /// The run time at which the first of them is erased.
    pub next_due_ms: Option<u64>,
}

/// What a tick did.
#[derive(Debug, Default)]
pub struct Tick {
    pub erased: Vec<Tombstone>,
    /// Keys that were due and could not be erased, and why. They are tried again an hour later.
    pub postponed: Vec<(KeyId, LockboxError)>,
}

impl Scheduled {
    /// The largest number that is counted.
    pub const MOST: usize = 10_000;
}

impl KeyInfo {
    /// Refuses to use a key that is scheduled for destruction.
    pub(crate) fn check_not_scheduled(&self) -> Result<(), LifecycleError> {
        match self.destruction {
            Some(_) => Err(LifecycleError::Scheduled(self.key_id)),
            None => Ok(()),
        }
    }
}

impl Destruction {
    /// How long the daemon has yet to run until the key is erased.
    pub fn remaining_ms(&self, run_ms: u64) -> u64 {
        self.due_run_ms.saturating_sub(run_ms)
    }
}

/// Has a key erased with other changes, and the broker told of it.
pub(crate) fn erase(info: &KeyInfo, now_ms: i64, vault: &Vault, changes: &mut Changes) -> Tombstone {
    let tombstone = Tombstone::destroyed(info, now_ms);
    unindex(info, vault, changes);
    custody::note_destroyed(info.key_id, changes);
    changes.erase_key(tombstone.clone());
    tombstone
}

impl Lockbox {
    /// The run time as of the last tick: where counting goes on when the lockbox is opened.
    pub fn run_time_ms(&self) -> Result<u64, LockboxError> {
        let Some(bytes) = self.vault.read(Row::RunTime)? else {
            return Ok(0);
        };
        let record = wire::RunTimeRecord::decode(&bytes[..]).map_err(|_| damaged("the run time"))?;
        Ok(record.run_ms)
    }

    /// The keys that are scheduled for destruction, as far as they are counted.
    pub fn scheduled(&self) -> Result<Scheduled, LockboxError> {
        let due = self.due_rows(Scheduled::MOST)?;
        Ok(Scheduled {
            count: due.len(),
            next_due_ms: due.first().map(|(due_ms, _)| *due_ms),
        })
    }

    /// Schedules a key for destruction with other changes. The caller has checked that it may be destroyed.
    pub(crate) fn schedule(
        &self,
        mut key: Key,
        origin: DestructionOrigin,
        (grace_ms, run_ms): (u64, u64),
        now_ms: i64,
        changes: &mut Changes,
    ) -> Result<KeyInfo, LockboxError> {
        self.note_run_time(run_ms, changes)?;
        let destruction = Destruction {
            origin,
            scheduled_at_ms: now_ms,
            due_run_ms: run_ms.saturating_add(grace_ms),
        };
        key.info.destruction = Some(destruction);
        let info = key.info.clone();
        changes.put(Row::Due(destruction.due_run_ms, info.key_id), Vec::new());
        changes.put_key(key);
        Ok(info)
    }

    /// Gives a scheduled key the state back that it had.
    pub fn cancel_destruction(
        &mut self,
        key_id: KeyId,
        rng: &mut dyn CryptoRng,
    ) -> Result<Step<KeyInfo>, LockboxError> {
        let mut key = self.held_key(key_id)?;
        let destruction = key.info.destruction.take();
        let destruction = destruction.ok_or(LifecycleError::NotScheduled(key_id))?;
        let info = key.info.clone();
        let mut changes = Changes::default();
        changes.remove(Row::Due(destruction.due_run_ms, key_id));
        changes.put_key(key);
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, info))
    }

    /// Whether [`Lockbox::tick`] has something to do: a key is due, or run time is to be noted. While no key is scheduled, run
    /// time need not be counted.
    pub fn needs_tick(&self, run_ms: u64) -> Result<bool, LockboxError> {
        let Some((due_ms, _)) = self.due_rows(1)?.pop() else {
            return Ok(false);
        };
        let interval = (due_ms.saturating_sub(run_ms) / 10).clamp(MIN_UNNOTED_MS, MAX_UNNOTED_MS);
        Ok(due_ms <= run_ms || run_ms.saturating_sub(self.run_time_ms()?) >= interval)
    }

    /// Notes the run time, and erases the keys that are due.
    pub fn tick(&mut self, run_ms: u64, now_ms: i64, rng: &mut dyn CryptoRng) -> Result<Step<Tick>, LockboxError> {
        let mut changes = Changes::default();
        let mut tick = Tick::default();
        self.note_run_time(run_ms, &mut changes)?;
        for (due_ms, key_id) in self.due_rows(ERASED_PER_TICK)? {
            if due_ms > run_ms {
                break;
            }
            let row = Row::Due(due_ms, key_id);
            match self.key_due(due_ms, key_id) {
                Ok(info) => {
                    let own_row = info
                        .as_ref()
                        .and_then(|info| info.destruction)
                        .map(|own| own.due_run_ms);
                    if own_row != Some(due_ms) {
                        changes.remove(row);
                    }
                    tick.erased
                        .extend(info.map(|info| erase(&info, now_ms, &self.vault, &mut changes)));
                }
                Err(LockboxError::Vault(VaultError::Store(failure))) => return Err(VaultError::from(failure).into()),
                Err(error) => {
                    changes.remove(row);
                    changes.put(Row::Due(run_ms.saturating_add(RETRY_MS), key_id), Vec::new());
                    tick.postponed.push((key_id, error));
                }
            }
        }
        let batches = self.vault.stage(changes, rng)?;
        Ok(Step::new(batches, tick))
    }

    /// A key whose row is due; `None` if it is gone, or that schedule was cancelled.
    fn key_due(&self, due_ms: u64, key_id: KeyId) -> Result<Option<KeyInfo>, LockboxError> {
        let key = self.key_or_lost(key_id)?;
        let is_due = |info: &KeyInfo| info.destruction.is_some_and(|own| own.due_run_ms <= due_ms);
        let Some(info) = key.map(|key| key.info).filter(is_due) else {
            return Ok(None);
        };
        self.check_destroy(key_id, None)?;
        Ok(Some(info))
    }

    /// The rows of scheduled keys, those that are due first at the front.
    fn due_rows(&self, limit: usize) -> Result<Vec<(u64, KeyId)>, LockboxError> {
        let kind = Row::Due(0, KeyId([0; 16])).kind();
        let places = self.vault.places(&[kind], None, limit)?;
        Ok(places.iter().filter_map(|place| rows::due(place)).collect())
    }

    /// Run time never goes back, whatever the caller says.
    fn note_run_time(&self, run_ms: u64, changes: &mut Changes) -> Result<(), LockboxError> {
        let record = wire::RunTimeRecord {
            version: 1,
            run_ms: run_ms.max(self.run_time_ms()?),
        };
        changes.put(Row::RunTime, record.encode_to_vec());
        Ok(())
    }
}
