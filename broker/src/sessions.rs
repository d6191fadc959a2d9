//! The lockboxes that are connected now.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockbox_authz::roster::{Head, Roster};
use lockbox_authz::{AuthorizationId, LockboxId};
use tokio::sync::{mpsc, oneshot};

use crate::limits::MAX_WAITING_SIGNALS;

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
    last_number: u64,
}

struct Wire {
    number: u64,
    signals: mpsc::Sender<Signal>,
    close: oneshot::Sender<Closing>,
    roster_head: Head,
    last_seen_ms: i64,
}

impl Sessions {
    /// Enters a lockbox that has said Hello; an older connection of it is closed.
    pub(crate) fn enter(&self, lockbox_id: LockboxId, roster_head: Head, now_ms: i64) -> Session<'_> {
        let (signals, received) = mpsc::channel(MAX_WAITING_SIGNALS);
        let (close, closing) = oneshot::channel();
        let mut connected = self.lock();
        connected.last_number += 1;
        let number = connected.last_number;
        let wire = Wire {
            number,
            signals,
            close,
            roster_head,
            last_seen_ms: now_ms,
        };
        if let Some(older) = connected.by_lockbox.insert(lockbox_id, wire) {
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

    fn lock(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
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
