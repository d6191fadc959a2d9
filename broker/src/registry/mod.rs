//! What the broker remembers: the roster, the lockboxes, the transfers.
//!
//! Everything is in the store; the roster and the facts about lockboxes are in memory as well. All changes are made in
//! [turns](Registry::turn), one at a time. A turn ends when its change is submitted to the store, so that many turns share
//! one sync; its answer is held back until everything that the turn could have seen is durable. So nobody is ever told of
//! a change that a power cut could undo, and a reader needs no lock against the sync.

mod changes;
mod clock;
mod evidence;
mod history;
mod inventory;
mod joins;
mod keys;
mod left;
mod left_out;
mod lockboxes;
mod names;
mod notices;
mod open;
mod preview;
mod readings;
mod records;
mod reports;
mod roster;
mod transfer;
mod transfers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockbox_authz::roster::Roster;
use lockbox_authz::{LockboxId, UnverifiedEnvelope};
use lockbox_store::{Batch, Store, StoreFailure};
use tokio::sync::watch;
use tokio::task::JoinError;

use crate::limits::DEFAULT_HISTORY_DAYS;
use crate::refusal::Refusal;

pub use evidence::{HeldPage, RecordPage, TransferPage};
pub use inventory::{Exposed, Impact, Theft};
pub use joins::{JoinOutcome, PendingJoin};
pub use keys::LeftPlace;
pub use left::InventoryBounds;
pub use left_out::{Group, LeftOut};
pub use lockboxes::LockboxFacts;
pub use notices::{Notice, NoticeAnswer, NoticesToHear};
use open::OpenTransfers;
pub use preview::{Named, Subject};
use readings::Readings;
pub use reports::Reported;
pub use roster::{OpenError, SyncOutcome, founding_batch, is_founded, refusal, screen};
pub use transfer::{EndReport, Place, Revoked, Transfer, is_ended, lapses_at_ms};
pub use transfers::{Authorized, Evidence, Offer, OpenOffer, Page, ToHear};

/// See the module.
pub struct Registry {
    store: Arc<dyn Store>,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    readings: Readings,
    inventory_bounds: InventoryBounds,
    /// For how long receipts, erasure and destruction records and request ids are kept.
    history_ms: i64,
}

/// What is in memory. It is never behind the store.
struct State {
    roster: Arc<Roster>,
    lockboxes: BTreeMap<LockboxId, LockboxFacts>,
    /// The certificates among those facts, in the form in which the decision needs them.
    wrapping_certificates: BTreeMap<LockboxId, UnverifiedEnvelope>,
    open: OpenTransfers,
    /// How many batches the store has taken.
    submitted: u64,
}

/// How far the store has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// How many batches are durable.
    durable: u64,
    /// Set once, when the store stopped for good.
    failure: Option<StoreFailure>,
}

/// One turn: whatever is read and changed in it belongs to one state.
pub struct Turn<'a> {
    registry: &'a Registry,
    state: MutexGuard<'a, State>,
}

impl Registry {
    /// Reads what the store has.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, OpenError> {
        let roster = Arc::new(roster::load(store.as_ref())?);
        let lockboxes = lockboxes::load(store.as_ref())?;
        let open = OpenTransfers::load(store.as_ref())?;
        let wrapping_certificates = lockboxes
            .iter()
            .map(|(id, facts)| (*id, facts.wrapping_certificate.clone()))
            .collect();
        Ok(Self {
            store,
            state: Mutex::new(State {
                roster,
                lockboxes,
                wrapping_certificates,
                open,
                submitted: 0,
            }),
            progress: watch::Sender::default(),
            readings: Readings::default(),
            inventory_bounds: InventoryBounds::default(),
            history_ms: i64::MAX,
        }
        .with_history_days(DEFAULT_HISTORY_DAYS))
    }

    /// Keeps this much of what the lockboxes report, instead of what is kept else.
    #[must_use]
    pub fn with_inventory_bounds(mut self, bounds: InventoryBounds) -> Self {
        self.inventory_bounds = bounds;
        self
    }

    /// Takes a turn, and answers when everything that it could have seen is durable.
    pub async fn turn<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let registry = Arc::clone(self);
        // Submitting to a store may block for the time of a flush.
        let taken = tokio::task::spawn_blocking(move || {
            let mut turn = Turn {
                registry: &registry,
                state: registry.lock(),
            };
            let answer = work(&mut turn);
            (answer, turn.state.submitted)
        });
        let (answer, submitted) = joined(taken.await)?;
        self.wait_until_durable(submitted).await?;
        answer
    }

    /// The roster at this moment, which may be ahead of what is durable: for refusing, not for promising.
    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.lock().roster)
    }

    /// Returns when the store has stopped for good.
    pub async fn failed(&self) -> StoreFailure {
        let mut progress = self.progress.subscribe();
        match progress.wait_for(|progress| progress.failure.is_some()).await {
            Ok(progress) => progress.failure.clone().unwrap_or_else(stopped),
            Err(_) => stopped(),
        }
    }

    async fn wait_until_durable(&self, submitted: u64) -> Result<(), Refusal> {
        let mut progress = self.progress.subscribe();
        let reached = progress
            .wait_for(|progress| progress.durable >= submitted || progress.failure.is_some())
            .await;
        match reached {
            Ok(progress) if progress.durable >= submitted => Ok(()),
            Ok(progress) => Err(Refusal::Store(progress.failure.clone().unwrap_or_else(stopped))),
            Err(_) => Err(Refusal::Store(stopped())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Memory is changed after the store has taken the change, in steps that don't panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    pub fn roster(&self) -> &Arc<Roster> {
        &self.state.roster
    }

    /// Hands a batch to the store. After `Ok` readers see it, and the turn's answer waits until it is durable.
    ///
    /// # Errors
    ///
    /// The batch was refused and nothing has changed, or the store has stopped for good.
    fn commit(&mut self, batch: Batch) -> Result<(), Refusal> {
        if batch.is_empty() {
            return Ok(());
        }
        let number = self.state.submitted + 1;
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let progress = self.registry.progress.clone();
        let done = move |outcome: Result<_, StoreFailure>| {
            match &outcome {
                Ok(_) => progress.send_modify(|progress| progress.durable = progress.durable.max(number)),
                Err(failure) if is_refusal(failure) => {}
                Err(failure) => progress.send_modify(|progress| {
                    progress.failure.get_or_insert_with(|| failure.clone());
                }),
            }
            // Nobody listens any more once the batch was taken.
            let _ = answer.try_send(outcome.map(drop));
        };
        self.registry.store.submit(batch, Box::new(done));
        match answered.try_recv() {
            Ok(Err(failure)) => Err(Refusal::Store(failure)),
            Ok(Ok(())) | Err(_) => {
                self.state.submitted = number;
                Ok(())
            }
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        self.registry.store.get(key).map_err(Refusal::Store)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<lockbox_store::Pair>, Refusal> {
        self.registry.store.scan(prefix, after, limit).map_err(Refusal::Store)
    }
}

/// Whether the store refused one batch and goes on.
fn is_refusal(failure: &StoreFailure) -> bool {
    matches!(
        failure,
        StoreFailure::NearlyFull
            | StoreFailure::BatchTooLarge { .. }
            | StoreFailure::KeyTooLarge { .. }
            | StoreFailure::ValueTooLarge { .. }
    )
}

/// What a task on a thread of its own gave. A fault in it goes on here. One that was never begun, since this program is ending,
/// is as if the store had stopped.
pub(crate) fn joined<T>(joined: Result<T, JoinError>) -> Result<T, Refusal> {
    joined.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_cancelled) => Refusal::Store(stopped()),
    })
}

fn stopped() -> StoreFailure {
    StoreFailure::Stopped {
        promise: "that what was answered is still known after a power cut",
    }
}

#[cfg(test)]
mod tests;
