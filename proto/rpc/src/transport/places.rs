//! Limits on the connections of one listener.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::Caller;
use super::crowd::{Holder, Room, Seat};
use super::{PeerIdentity, ServerLimits};

/// The connections of one listener.
pub(super) struct Places {
    limits: ServerLimits,
    known: Arc<Semaphore>,
    /// `None`: whoever gets in is known.
    strange: Option<Arc<Room>>,
    peers: Arc<Tally<PeerName>>,
}

/// Taken for as long as a connection is open.
pub(super) struct Place {
    _peer: Option<Taken<PeerName>>,
    _known: Option<OwnedSemaphorePermit>,
    strange: Option<Seat>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("as many connections as allowed are open")]
    Listener,
    #[error("this peer has as many connections as one may have")]
    Peer,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum PeerName {
    Key([u8; 32]),
    Certificate(Arc<[u8]>),
    User(u32),
}

impl Places {
    pub(super) fn new(limits: &ServerLimits) -> Self {
        let strange = limits.strangers.as_ref();
        Self {
            known: Arc::new(Semaphore::new(limits.connections)),
            strange: strange.map(|strangers| Room::new("connections", strangers.connections, strangers.lifetime)),
            peers: Tally::new(),
            limits: limits.clone(),
        }
    }

    /// A stranger takes no place of those that are known.
    pub(super) fn take(&self, caller: &Caller) -> Result<Place, Full> {
        let peer = match self.is_exempt(caller) {
            true => None,
            false => {
                let taken = self.peers.take(name(caller), self.limits.connections_per_peer);
                Some(taken.ok_or(Full::Peer)?)
            }
        };
        let mut place = Place {
            _peer: peer,
            _known: None,
            strange: None,
        };
        match (&self.limits.strangers, &self.strange) {
            (Some(strangers), Some(room)) if !strangers.knows(caller) => {
                let address = caller.address();
                let is_recent = false;
                place.strange = Some(room.enter(Holder { address, is_recent }));
            }
            _ => {
                let permit = Arc::clone(&self.known).try_acquire_owned();
                place._known = Some(permit.map_err(|_| Full::Listener)?);
            }
        }
        Ok(place)
    }

    /// No other user of the machine may keep its owner and root from reaching the daemon.
    fn is_exempt(&self, caller: &Caller) -> bool {
        matches!(caller, Caller::Local(peer) if self.limits.exempt_uids.contains(&peer.uid))
    }
}

impl Place {
    pub(super) fn is_strangers(&self) -> bool {
        self.strange.is_some()
    }

    /// Returns when a stranger's place was given to another.
    pub(super) async fn lost(&mut self) {
        match &mut self.strange {
            Some(seat) => seat.lost().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn is_lost(&mut self) -> bool {
        self.strange.as_mut().is_some_and(Seat::is_lost)
    }

    /// The peer has become known meanwhile: strangers are not counted for it any more.
    pub(super) fn settle(&mut self) {
        self.strange = None;
    }
}

fn name(caller: &Caller) -> PeerName {
    match caller {
        Caller::Remote { identity, .. } => match identity {
            PeerIdentity::RawKey(key) => PeerName::Key(*key),
            PeerIdentity::Certificate(certificate) => PeerName::Certificate(Arc::clone(certificate)),
        },
        Caller::Local(peer) => PeerName::User(peer.uid),
    }
}

/// How many of something each key has now.
pub(super) struct Tally<K> {
    counts: Mutex<HashMap<K, usize>>,
}

/// Gives it back when it is dropped.
pub(super) struct Taken<K: Eq + Hash> {
    tally: Arc<Tally<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Tally<K> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            counts: Mutex::default(),
        })
    }

    pub(super) fn take(self: &Arc<Self>, key: K, limit: usize) -> Option<Taken<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.get(&key).copied().unwrap_or(0) >= limit {
            return None;
        }
        *counts.entry(key.clone()).or_default() += 1;
        drop(counts);
        Some(Taken {
            tally: Arc::clone(self),
            key,
        })
    }
}

impl<K: Eq + Hash> Drop for Taken<K> {
    fn drop(&mut self) {
        let mut counts = self.tally.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}
