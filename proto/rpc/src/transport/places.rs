//! Who may have how many of a listener's connections.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::Caller;
use super::{PeerIdentity, ServerLimits};

/// The connections of one listener.
pub(super) struct Places {
    limits: ServerLimits,
    known: Arc<Semaphore>,
    strange: Arc<Semaphore>,
    peers: Arc<Tally<PeerName>>,
    strange_addresses: Arc<Tally<IpAddr>>,
}

/// Taken for as long as a connection is open.
pub(super) struct Place {
    _peer: Option<Taken<PeerName>>,
    _known: Option<OwnedSemaphorePermit>,
    strange: Option<(OwnedSemaphorePermit, Option<Taken<IpAddr>>)>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("as many connections as allowed are open")]
    Listener,
    #[error("this peer has as many connections as one may have")]
    Peer,
    #[error("as many connections of unknown peers as allowed are open")]
    Strangers,
    #[error("this address has as many connections of unknown peers as one may have")]
    Address,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum PeerName {
    Key([u8; 32]),
    Certificate(Arc<[u8]>),
    User(u32),
}

impl Places {
    pub(super) fn new(limits: &ServerLimits) -> Self {
        let strange = limits.strangers.as_ref().map_or(0, |strangers| strangers.connections);
        Self {
            known: Arc::new(Semaphore::new(limits.connections)),
            strange: Arc::new(Semaphore::new(strange)),
            peers: Tally::new(),
            strange_addresses: Tally::new(),
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
        match &self.limits.strangers {
            Some(strangers) if !strangers.knows(caller) => {
                let address = match address(caller) {
                    None => None,
                    Some(address) => {
                        let limit = strangers.connections_per_address;
                        Some(self.strange_addresses.take(address, limit).ok_or(Full::Address)?)
                    }
                };
                let permit = Arc::clone(&self.strange).try_acquire_owned();
                place.strange = Some((permit.map_err(|_| Full::Strangers)?, address));
            }
            Some(_) | None => {
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

fn address(caller: &Caller) -> Option<IpAddr> {
    match caller {
        Caller::Remote { connection, .. } => connection.remote_addr.map(|address| network(address.ip())),
        Caller::Local(_) => None,
    }
}

/// One machine has a whole /64 of IPv6 addresses at its disposal, so that is what counts.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
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
