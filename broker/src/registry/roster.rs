//! The roster in the store.

use std::sync::Arc;

use lockbox_authz::limits::MAX_ROSTER_PAGE;
use lockbox_authz::roster::{Applied, Change, Head, HeadComparison, Roster, RosterEntry, RosterError};
use lockbox_authz::{EnvelopeError, UnverifiedEnvelope};
use lockbox_store::{Batch, Store, StoreFailure};

use super::{Turn, keys};
use crate::limits::SCAN_PAGE;
use crate::refusal::Refusal;

/// Why the registry can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreFailure),
    #[error(
        "the store has no roster yet; run `lockbox-broker roster found` with the founding entries that the admins signed"
    )]
    NoRoster,
    #[error("roster entry {index} in the store is damaged ({source}); restore the store from a backup")]
    Roster {
        index: usize,
        #[source]
        source: RosterError,
    },
    #[error("a record in the store is damaged ({0}); restore the store from a backup")]
    Record(#[from] lockbox_authz::FieldError),
}

/// What became of a comparison with another party's roster.
#[derive(Debug)]
pub struct SyncOutcome {
    /// Ours, after its entries were applied.
    pub head: Head,
    /// What the other party lacks.
    pub entries: Vec<UnverifiedEnvelope>,
    /// Whether ours has grown.
    pub grown: bool,
}

/// Reads and verifies the roster. It is verified again at each start, because a store can be changed by others.
pub(super) fn load(store: &dyn Store) -> Result<Roster, OpenError> {
    let mut entries = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.scan(keys::ROSTER, after.as_deref(), SCAN_PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (_, value) in &page {
            let index = entries.len();
            let damaged = |source: EnvelopeError| OpenError::Roster {
                index,
                source: source.into(),
            };
            entries.push(UnverifiedEnvelope::from_bytes(value).map_err(damaged)?);
        }
    }
    let (genesis, rest) = entries.split_first().ok_or(OpenError::NoRoster)?;
    let mut roster = Roster::found(genesis, None).map_err(|source| OpenError::Roster { index: 0, source })?;
    for (number, entry) in rest.iter().enumerate() {
        let index = number + 1;
        roster
            .apply(entry)
            .map_err(|source| OpenError::Roster { index, source })?;
    }
    Ok(roster)
}

/// The batch that founds a cluster in an empty store.
pub fn founding_batch(roster: &Roster) -> Batch {
    let mut batch = Batch::new();
    for (index, entry) in roster.entries_from(0, usize::MAX).enumerate() {
        batch.put(keys::roster(index as u64), entry.to_bytes());
    }
    batch
}

/// Whether the store has a roster.
pub fn is_founded(store: &dyn Store) -> Result<bool, StoreFailure> {
    Ok(!store.scan(keys::ROSTER, None, 1)?.is_empty())
}

impl Turn<'_> {
    /// Appends the next entry.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotNext`] if the chain has moved since the entry was made, whoever signed it: two admins at work at
    /// the same time are no fork as long as only one of their entries is ever taken.
    pub fn append(&mut self, entry: &UnverifiedEnvelope) -> Result<Applied, Refusal> {
        let made: RosterEntry = entry.unverified_statement().map_err(Refusal::Envelope)?;
        let head = self.state.roster.head();
        let known = self.state.roster.entries_from(made.index, 1).next();
        if known.is_some_and(|known| known.hash() == entry.hash()) {
            return Ok(Applied::Known);
        }
        if made.index != head.index + 1 || made.previous != Some(head.hash) {
            return Err(Refusal::NotNext { due: head.index + 1 });
        }
        let mut grown = Roster::clone(&self.state.roster);
        grown.apply(entry).map_err(Refusal::Roster)?;
        self.adopt(grown, std::slice::from_ref(entry))?;
        Ok(Applied::New)
    }

    /// Applies the entries of another party's roster, and finds those that it lacks.
    ///
    /// With another entry at a place that we know, the answer begins with ours at that place, which proves the fork.
    pub fn sync_roster(
        &mut self,
        their_head: Option<Head>,
        their_entries: &[UnverifiedEnvelope],
    ) -> Result<SyncOutcome, Refusal> {
        let mut grown = Roster::clone(&self.state.roster);
        let mut new = Vec::new();
        let mut refused = None;
        for entry in their_entries {
            match grown.apply(entry) {
                Ok(Applied::New) => new.push(entry.clone()),
                Ok(Applied::Known) => {}
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        if !new.is_empty() {
            self.adopt(grown, &new)?;
        }
        match refused {
            Some(error @ RosterError::Fork { .. }) => {
                tracing::error!(%error, "ALARM: a peer has another roster; find out which admins signed two entries");
                return Err(Refusal::Roster(error));
            }
            Some(error) => return Err(Refusal::Roster(error)),
            None => {}
        }
        let from = match their_head.map(|head| (head, self.state.roster.compare(head))) {
            None => 0,
            Some((head, HeadComparison::Forked)) => {
                // No alarm: a head is not signed by an admin, so anybody can claim one. SPEC section 2.4.
                tracing::warn!(index = head.index, "a peer claims another roster entry than ours");
                head.index
            }
            Some((head, _)) => head.index.saturating_add(1),
        };
        Ok(SyncOutcome {
            head: self.state.roster.head(),
            entries: self.state.roster.entries_from(from, MAX_ROSTER_PAGE).cloned().collect(),
            grown: !new.is_empty(),
        })
    }

    /// Stores new entries, and takes the roster that they make.
    fn adopt(&mut self, grown: Roster, new: &[UnverifiedEnvelope]) -> Result<(), Refusal> {
        let mut batch = Batch::new();
        let first = self.state.roster.head().index + 1;
        for (index, entry) in (first..).zip(new) {
            batch.put(keys::roster(index), entry.to_bytes());
            let made: RosterEntry = entry.unverified_statement().map_err(Refusal::Envelope)?;
            tracing::info!(index, change = made.change.describe(), "roster entry");
            if let Change::AdmitLockbox(lockbox) = made.change {
                batch.remove(keys::pending(&lockbox.identity_key));
            }
        }
        self.commit(batch)?;
        self.state.roster = Arc::new(grown);
        Ok(())
    }
}
