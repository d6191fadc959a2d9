//! The lockboxes that are connected now.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockbox_authz::roster::{Head, Roster};
use lockbox_authz::{AuthorizationId, LockboxId};
use tokio::sync::{mpsc, oneshot};

use crate::limits::{MAX_DISPLACED_ORIGINS, MAX_WAITING_SIGNALS, SHARED_IDENTITY_SHOWN_MS};

/// Something that a connected lockbox has to hear. What exactly is read when it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    Transfer(AuthorizationId),
    Roster(Head),
    /// There are notices that it was not told of.
    Notice,
    /// Among the notices that it was told of are such as it has to be told again.
    NoticesAgain,
}

/// Why a connection ends from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    Replaced,
    Retired,
    FellBehind,
}

/// Where a connection comes from: one run of a daemon at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Made anew by each start of a lockbox's daemon.
    pub(crate) instance_id: [u8; 16],
    /// `None`: the transport did not know it.
    pub(crate) address: Option<SocketAddr>,
}

/// Two machines with one lockbox's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedIdentity {
    /// The one that is connected now, and the one that it displaced.
    pub(crate) origins: [Origin; 2],
    pub(crate) last_at_ms: i64,
}

/// One connection's end of the wire. Dropping it takes the lockbox off the list, unless a newer connection is there.
pub(crate) struct Session<'a> {
    sessions: &'a Sessions,
    lockbox_id: LockboxId,
    number: u64,
    pub(crate) signals: mpsc::Receiver<Signal>,
    pub(crate) closing: oneshot::Receiver<Closing>,
}

#[derive(Default)]
pub(crate) struct Sessions {
    connected: Mutex<Connected>,
}

#[derive(Default)]
struct Connected {
    by_lockbox: BTreeMap<LockboxId, Wire>,
    displaced: BTreeMap<LockboxId, Displaced>,
    last_number: u64,
}

/// The origins of one lockbox whose connection was closed for another origin's.
///
/// A daemon that ended never comes back as the same origin. One that was displaced and comes back therefore runs beside
/// another one.
#[derive(Default)]
struct Displaced {
    /// When each was displaced; the newest last.
    origins: VecDeque<(Origin, i64)>,
    shared: Option<SharedIdentity>,
}

struct Wire {
    number: u64,
    origin: Origin,
    signals: mpsc::Sender<Signal>,
    close: oneshot::Sender<Closing>,
    roster_head: Head,
    last_seen_ms: i64,
}

impl Sessions {
    /// Enters a lockbox that has said Hello; an older connection of it is closed.
    pub(crate) fn enter(&self, lockbox_id: LockboxId, origin: Origin, roster_head: Head, now_ms: i64) -> Session<'_> {
        let (signals, received) = mpsc::channel(MAX_WAITING_SIGNALS);
        let (close, closing) = oneshot::channel();
        let mut connected = self.lock();
        connected.last_number += 1;
        let number = connected.last_number;
        let wire = Wire {
            number,
            origin,
            signals,
            close,
            roster_head,
            last_seen_ms: now_ms,
        };
        if let Some(older) = connected.by_lockbox.insert(lockbox_id, wire) {
            let displaced = connected.displaced.entry(lockbox_id).or_default();
            displaced.note(lockbox_id, origin, older.origin, now_ms);
            older.close(Closing::Replaced);
        }
        Session {
            sessions: self,
            lockbox_id,
            number,
            signals: received,
            closing,
        }
    }

    pub(crate) fn signal(&self, lockbox_id: LockboxId, signal: Signal) {
        let mut connected = self.lock();
        let fell_behind = match connected.by_lockbox.get(&lockbox_id) {
            Some(wire) => wire.signals.try_send(signal).is_err(),
            None => false,
        };
        if fell_behind && let Some(wire) = connected.by_lockbox.remove(&lockbox_id) {
            wire.close(Closing::FellBehind);
        }
    }

    /// Lets everybody know.
    pub(crate) fn signal_all(&self, signal: Signal) {
        let ids: Vec<LockboxId> = self.lock().by_lockbox.keys().copied().collect();
        for lockbox_id in ids {
            self.signal(lockbox_id, signal);
        }
    }

    /// Tells everybody of a roster that has grown, and closes the connections of those that it has retired.
    pub(crate) fn roster_grew(&self, roster: &Roster) {
        let ids: Vec<LockboxId> = self.lock().by_lockbox.keys().copied().collect();
        for lockbox_id in ids {
            if roster.admitted(&lockbox_id).is_some() {
                self.signal(lockbox_id, Signal::Roster(roster.head()));
            } else if let Some(wire) = self.lock().by_lockbox.remove(&lockbox_id) {
                wire.close(Closing::Retired);
            }
        }
    }

    /// Notes that a connected lockbox was heard of, and its roster head if it told it.
    pub(crate) fn heard(&self, lockbox_id: LockboxId, roster_head: Option<Head>, now_ms: i64) {
        if let Some(wire) = self.lock().by_lockbox.get_mut(&lockbox_id) {
            wire.last_seen_ms = now_ms;
            wire.roster_head = roster_head.unwrap_or(wire.roster_head);
        }
    }

    /// When a lockbox was last heard of, and its roster head, if it is connected.
    pub(crate) fn connected(&self, lockbox_id: LockboxId) -> Option<(i64, Head)> {
        let connected = self.lock();
        let wire = connected.by_lockbox.get(&lockbox_id)?;
        Some((wire.last_seen_ms, wire.roster_head))
    }

    /// The two machines that have a lockbox's identity, while they displace each other.
    pub(crate) fn shared_identity(&self, lockbox_id: LockboxId, now_ms: i64) -> Option<SharedIdentity> {
        let connected = self.lock();
        let shared = connected.displaced.get(&lockbox_id)?.shared?;
        (now_ms - shared.last_at_ms < SHARED_IDENTITY_SHOWN_MS).then_some(shared)
    }

    fn lock(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Displaced {
    fn note(&mut self, lockbox_id: LockboxId, newer: Origin, older: Origin, now_ms: i64) {
        if newer.is_same(&older) {
            return;
        }
        self.origins
            .retain(|(_, at_ms)| now_ms - at_ms < SHARED_IDENTITY_SHOWN_MS);
        if self.origins.iter().any(|(origin, _)| origin.is_same(&newer)) {
            tracing::warn!(
                lockbox = %lockbox_id,
                address = %newer,
                other_address = %older,
                "two machines connect with the identity of one lockbox; stop the copy, and give it a lockbox of its own"
            );
            self.shared = Some(SharedIdentity {
                origins: [newer, older],
                last_at_ms: now_ms,
            });
        }
        self.origins.push_back((older, now_ms));
        if self.origins.len() > MAX_DISPLACED_ORIGINS {
            self.origins.pop_front();
        }
    }
}

impl Origin {
    /// A machine that was cloned while it ran has the instance of the other one, and another address.
    fn is_same(&self, other: &Self) -> bool {
        let ip = |origin: &Self| origin.address.map(|address| address.ip().to_canonical());
        self.instance_id == other.instance_id && ip(self) == ip(other)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}

impl Wire {
    fn close(self, why: Closing) {
        // The connection may be at its end already.
        let _ = self.close.send(why);
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let mut connected = self.sessions.lock();
        let is_ours = connected
            .by_lockbox
            .get(&self.lockbox_id)
            .is_some_and(|wire| wire.number == self.number);
        if is_ours {
            connected.by_lockbox.remove(&self.lockbox_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_800_000_000_000;
    const LOCKBOX: LockboxId = LockboxId([1; 16]);

    fn origin(instance: u8, ip: u8) -> Origin {
        Origin {
            instance_id: [instance; 16],
            address: Some(([192, 0, 2, ip], 7_401).into()),
        }
    }

    /// Connects from each of these in turn, while the connection before is still open.
    fn shared(origins: &[Origin]) -> Option<SharedIdentity> {
        let sessions = Sessions::default();
        let head = Head {
            index: 0,
            hash: lockbox_authz::Hash([0; 32]),
        };
        let enter = |origin: &Origin| sessions.enter(LOCKBOX, *origin, head, NOW_MS);
        let _open: Vec<_> = origins.iter().map(enter).collect();
        let later = sessions.shared_identity(LOCKBOX, NOW_MS + SHARED_IDENTITY_SHOWN_MS);
        assert_eq!(later, None, "it is over");
        sessions.shared_identity(LOCKBOX, NOW_MS)
    }

    #[test]
    fn a_machine_that_comes_back_after_it_was_displaced_is_one_of_two() {
        let (one, other) = (origin(1, 1), origin(2, 2));
        let found = shared(&[one, other, one]).expect("two machines");
        assert_eq!(found.origins, [one, other]);
        let third = origin(3, 3);
        assert!(shared(&[one, other, third, one]).is_some());
        let cloned_while_it_ran = origin(1, 2);
        assert!(shared(&[one, cloned_while_it_ran, one]).is_some());
    }

    /// After a power cut, or on a bad line, the broker has the older connection until it notices.
    #[test]
    fn one_machine_that_connects_again_raises_no_warning() {
        let one = origin(1, 1);
        assert_eq!(shared(&[one, one, one]), None);
        assert_eq!(shared(&[one, origin(2, 1), origin(3, 1)]), None, "restarts");
        assert_eq!(shared(&[one, origin(1, 2), origin(1, 3)]), None, "it moves");
    }
}
