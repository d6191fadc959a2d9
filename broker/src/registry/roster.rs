//! The roster in the store.

use std::sync::Arc;

use lockbox_authz::limits::{MAX_CLOCK_SKEW_MS, MAX_ROSTER_PAGE};
use lockbox_authz::roster::{Applied, Change, Head, HeadComparison, JoinAllowance, Roster, RosterEntry, RosterError};
use lockbox_authz::{EnvelopeError, SecretKey, UnverifiedEnvelope};
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

/// What a peer's entries would make of a roster.
struct Trial {
    /// `None` if the roster has every entry.
    grown: Option<Roster>,
    new: Vec<UnverifiedEnvelope>,
    /// Why the entry after those was refused.
    refused: Option<RosterError>,
}

/// The roster is copied, and an entry verified, only for an entry that it does not have.
fn try_entries(roster: &Roster, entries: &[UnverifiedEnvelope]) -> Trial {
    let mut trial = Trial {
        grown: None,
        new: Vec::new(),
        refused: None,
    };
    for entry in entries.iter().filter(|entry| !has(roster, entry)) {
        let grown = trial.grown.get_or_insert_with(|| Roster::clone(roster));
        match grown.apply(entry) {
            Ok(Applied::New) => trial.new.push(entry.clone()),
            Ok(Applied::Known) => {}
            Err(error) => {
                trial.refused = Some(error);
                break;
            }
        }
    }
    trial
}

/// Whether the roster has an entry. No signature is looked at: what the roster has, it has verified.
fn has(roster: &Roster, entry: &UnverifiedEnvelope) -> bool {
    let Ok(made) = entry.unverified_statement::<RosterEntry>() else {
        return false;
    };
    let known = roster.entries_from(made.index, 1).next();
    known.is_some_and(|known| known.hash() == entry.hash())
}

/// Looks at a peer's entries without taking a turn. Gives those that a turn would change something with, and the error of
/// the one after them.
pub fn screen(roster: &Roster, entries: &[UnverifiedEnvelope]) -> (Vec<UnverifiedEnvelope>, Option<RosterError>) {
    let trial = try_entries(roster, entries);
    (trial.new, trial.refused)
}

/// A fork is everybody's concern.
pub fn refusal(error: RosterError) -> Refusal {
    if matches!(error, RosterError::Fork { .. }) {
        tracing::error!(%error, "ALARM: a peer has another roster; find out which admins signed two entries");
    }
    Refusal::Roster(error)
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
    /// the same time are no fork as long as only one of their entries is ever taken. [`Refusal::FromTheFuture`] if it is
    /// dated so far ahead that every later entry would have to be, too.
    pub fn append(&mut self, entry: &UnverifiedEnvelope, now_ms: i64) -> Result<Applied, Refusal> {
        let made: RosterEntry = entry.unverified_statement().map_err(Refusal::Envelope)?;
        let known = self.state.roster.entries_from(made.index, 1).next();
        if known.is_some_and(|known| known.hash() == entry.hash()) {
            return Ok(Applied::Known);
        }
        self.check_next(&made, now_ms)?;
        let mut grown = Roster::clone(&self.state.roster);
        grown.apply(entry).map_err(Refusal::Roster)?;
        self.adopt(grown, std::slice::from_ref(entry))?;
        Ok(Applied::New)
    }

    /// Appends an admission that a join key alone has signed, with the broker's signature added. SPEC section 3.2.
    ///
    /// The turn is the only one at work and stores the entry before anybody is told of it; so the broker signs at most one
    /// entry for each place.
    pub(super) fn append_by_join_key(
        &mut self,
        entry: &UnverifiedEnvelope,
        broker_key: &SecretKey,
        now_ms: i64,
    ) -> Result<Applied, Refusal> {
        let made: RosterEntry = entry.unverified_statement().map_err(Refusal::Envelope)?;
        self.check_next(&made, now_ms)?;
        let roster = &self.state.roster;
        let join_key = roster.check_join_entry(entry).map_err(Refusal::Roster)?;
        // The moment in the entry is its maker's claim: an expired token is not saved by an old date.
        let expired = |join: &JoinAllowance| now_ms.saturating_sub(MAX_CLOCK_SKEW_MS) > join.expires_at_ms;
        if roster.join(&join_key).is_none_or(expired) {
            return Err(Refusal::Roster(RosterError::Rule("the join key has expired")));
        }
        let mut countersigned = entry.clone();
        countersigned.add_signature(broker_key).map_err(Refusal::Envelope)?;
        self.append(&countersigned, now_ms)
    }

    fn check_next(&self, made: &RosterEntry, now_ms: i64) -> Result<(), Refusal> {
        let head = self.state.roster.head();
        if made.index != head.index + 1 || made.previous != Some(head.hash) {
            return Err(Refusal::NotNext { due: head.index + 1 });
        }
        // An entry can't be dated before the head. One that was made while clocks were ahead must not stop those that follow.
        let dated_as_head = made.signed_at_ms == self.state.roster.head_signed_at_ms();
        let ahead_ms = made.signed_at_ms.saturating_sub(now_ms);
        if ahead_ms > MAX_CLOCK_SKEW_MS && !dated_as_head {
            return Err(Refusal::FromTheFuture { ahead_ms });
        }
        Ok(())
    }

    /// Applies the entries of another party's roster, and finds those that it lacks.
    ///
    /// With another entry at a place that we know, the answer begins with ours at that place, which proves the fork.
    pub fn sync_roster(
        &mut self,
        their_head: Option<Head>,
        their_entries: &[UnverifiedEnvelope],
    ) -> Result<SyncOutcome, Refusal> {
        let trial = try_entries(&self.state.roster, their_entries);
        if let Some(grown) = trial.grown.filter(|_| !trial.new.is_empty()) {
            self.adopt(grown, &trial.new)?;
        }
        if let Some(error) = trial.refused {
            return Err(refusal(error));
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
            grown: !trial.new.is_empty(),
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
