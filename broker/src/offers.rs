//! Whose turn it is: what is offered to one target, and what waits here.
//!
//! A target pulls what it has been offered in the order of the offers. So it is offered a few transfers of each requester at a
//! time, and a requester with one transfer does not wait behind all of another's. While a source can't be reached, a few of a
//! requester's transfers from it are tried, and those from other sources go on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use lockbox_authz::{AuthorizationId, LockboxId};

use crate::limits::{MAX_OFFERED, MAX_TRIED};
use crate::registry::Place;

/// A transfer in its requester's queue: the oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Queued {
    pub(crate) created_at_ms: i64,
    pub(crate) id: AuthorizationId,
    pub(crate) source_id: LockboxId,
}

/// The open transfers to one target, by requester.
#[derive(Default)]
pub(crate) struct Offers {
    lanes: BTreeMap<String, Lane>,
    /// Whose turn it was last.
    last: String,
}

#[derive(Default)]
struct Lane {
    queue: BTreeSet<Queued>,
    /// What the target works on.
    works: BTreeSet<AuthorizationId>,
    /// What it tries again and again, by source.
    tries: BTreeMap<LockboxId, BTreeSet<AuthorizationId>>,
}

impl Offers {
    /// Takes a transfer that the target does not have.
    pub(crate) fn queue(&mut self, requester: String, transfer: Queued) {
        self.lanes.entry(requester).or_default().queue.insert(transfer);
    }

    /// Notes where a transfer stands that the target was offered.
    pub(crate) fn note(&mut self, requester: &str, source_id: LockboxId, id: AuthorizationId, place: Place) {
        self.remove(id);
        if place == Place::None {
            return;
        }
        let lane = self.lanes.entry(requester.to_owned()).or_default();
        match place {
            Place::Tries => lane.tries.entry(source_id).or_default().insert(id),
            _ => lane.works.insert(id),
        };
    }

    /// Forgets a transfer that has ended.
    pub(crate) fn remove(&mut self, id: AuthorizationId) {
        for lane in self.lanes.values_mut() {
            if !lane.works.remove(&id) {
                lane.queue.retain(|queued| queued.id != id);
            }
            lane.tries.retain(|_, tries| {
                tries.remove(&id);
                !tries.is_empty()
            });
        }
        self.lanes.retain(|_, lane| !lane.is_empty());
    }

    pub(crate) fn is_offered(&self, id: AuthorizationId) -> bool {
        self.lanes.values().any(|lane| lane.works.contains(&id))
    }

    /// What is to be offered now: each requester in its turn. `None` if nothing is, until more is queued or noted.
    pub(crate) fn next(&mut self) -> Option<AuthorizationId> {
        let due = |(requester, lane): (&String, &Lane)| Some((requester.clone(), lane.due()?));
        let after = (Excluded(self.last.as_str()), Unbounded);
        let next = self.lanes.range::<str, _>(after).find_map(due);
        let (requester, queued) = next.or_else(|| self.lanes.iter().find_map(due))?;
        let lane = self.lanes.get_mut(&requester)?;
        lane.queue.remove(&queued);
        lane.works.insert(queued.id);
        self.last = requester;
        Some(queued.id)
    }
}

impl Lane {
    /// The oldest that may be offered.
    fn due(&self) -> Option<Queued> {
        let is_tried = |source: &LockboxId| self.tries.get(source).is_some_and(|tries| tries.len() >= MAX_TRIED);
        let due = || self.queue.iter().find(|queued| !is_tried(&queued.source_id)).copied();
        (self.works.len() < MAX_OFFERED).then(due).flatten()
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.works.is_empty() && self.tries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: LockboxId = LockboxId([1; 16]);
    const OTHER: LockboxId = LockboxId([2; 16]);

    fn id(number: u16) -> AuthorizationId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        AuthorizationId(id)
    }

    fn queue(offers: &mut Offers, requester: &str, source_id: LockboxId, numbers: std::ops::Range<u16>) {
        for number in numbers {
            let queued = Queued {
                created_at_ms: i64::from(number),
                id: id(number),
                source_id,
            };
            offers.queue(requester.to_owned(), queued);
        }
    }

    /// Everything that may be offered now.
    fn all(offers: &mut Offers) -> Vec<AuthorizationId> {
        std::iter::from_fn(|| offers.next()).collect()
    }

    #[test]
    fn requesters_take_turns_and_each_ones_oldest_comes_first() {
        let mut offers = Offers::default();
        queue(&mut offers, "a", SOURCE, 0..100);
        queue(&mut offers, "b", SOURCE, 100..102);
        let first: Vec<_> = (0..5).filter_map(|_| offers.next()).collect();
        assert_eq!(first, [0, 100, 1, 101, 2].map(id));
    }

    #[test]
    fn a_full_requester_keeps_no_other_from_its_turn() {
        let mut offers = Offers::default();
        queue(&mut offers, "a", SOURCE, 0..600);
        assert_eq!(all(&mut offers).len(), MAX_OFFERED);
        queue(&mut offers, "b", SOURCE, 700..701);
        assert_eq!(all(&mut offers), [id(700)]);
    }

    #[test]
    fn what_ends_makes_room_for_the_next_of_its_requester() {
        let mut offers = Offers::default();
        queue(&mut offers, "a", SOURCE, 0..600);
        let offered = all(&mut offers);
        offers.remove(offered[0]);
        assert_eq!(all(&mut offers), [id(u16::try_from(MAX_OFFERED).unwrap())]);
        // A key that a job needs, at the source, may be needed for days.
        offers.note("a", SOURCE, offered[1], Place::None);
        assert_eq!(all(&mut offers).len(), 1);
        // It goes on: the target has one more than it would be offered.
        offers.note("a", SOURCE, offered[1], Place::Works);
        offers.remove(offered[2]);
        assert_eq!(all(&mut offers), []);
    }

    #[test]
    fn a_source_that_can_not_be_reached_holds_up_only_what_comes_from_it() {
        let mut offers = Offers::default();
        queue(&mut offers, "a", SOURCE, 0..100);
        while let Some(offered) = offers.next() {
            offers.note("a", SOURCE, offered, Place::Tries);
        }
        assert_eq!(offers.lanes["a"].tries[&SOURCE].len(), MAX_TRIED);
        queue(&mut offers, "a", OTHER, 200..202);
        assert_eq!(all(&mut offers), [200, 201].map(id));
        offers.note("a", SOURCE, id(0), Place::Works);
        assert_eq!(offers.next(), Some(id(u16::try_from(MAX_TRIED).unwrap())));
    }

    #[test]
    fn what_is_revoked_while_it_waits_for_its_turn_is_never_offered() {
        let mut offers = Offers::default();
        queue(&mut offers, "a", SOURCE, 0..2);
        offers.remove(id(0));
        assert_eq!(all(&mut offers), [id(1)]);
    }
}
