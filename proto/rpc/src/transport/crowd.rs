//! Which connection is closed when strangers take all places.
//!
//! Anybody can open a connection, and an unproved peer is known by its address alone. So a newcomer always gets a place,
//! and the place is taken from the crowd:
//!
//! 1. If the newcomer's address holds as many places as one address may, the oldest of that address gives way.
//! 2. If its network (an IPv4 /24, an IPv6 /64) holds as many as one network may, the oldest of the network's most crowded
//!    address gives way.
//! 3. If all places are taken, the oldest of the most crowded address of the most crowded network gives way.
//!
//! An address from which an authenticated peer came within the last day is exempt from rule 2, and gives way under rule 3
//! only if no other address is left. While more than half of the places are taken, handshakes get less time.
//!
//! [`AddressLimits`] is the rule, and is used for everything that strangers can fill; [`Room`] applies it to connections.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tracing::warn;

use super::limits::{MAX_RECENT_ADDRESSES, PRESSURE_WARNING_INTERVAL, RECENT_ADDRESS_KEPT};

/// How many places there are for strangers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressLimits {
    pub total: usize,
    /// Of these, for one address.
    pub per_address: usize,
    /// Of these, for one network.
    pub per_network: usize,
}

/// Who holds a place, or wants one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// `None`: it has no address, as on a Unix socket. Only the total counts for it.
    pub address: Option<IpAddr>,
    /// Whether an authenticated peer came from this address within the last day.
    pub is_recent: bool,
}

impl AddressLimits {
    /// No limits but the total.
    pub const fn total(total: usize) -> Self {
        Self {
            total,
            per_address: total,
            per_network: total,
        }
    }

    /// The index of the holder that gives its place to the newcomer, if one has to. The oldest holder is the first.
    pub fn giving_way(&self, holders: &[Holder], newcomer: Holder) -> Option<usize> {
        let mut of_address: HashMap<Option<IpAddr>, usize> = HashMap::new();
        let mut of_network: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for holder in holders {
            *of_address.entry(holder.address).or_default() += 1;
            if !holder.is_recent {
                *of_network.entry(holder.network()).or_default() += 1;
            }
        }
        let count = |counts: &HashMap<_, usize>, key| counts.get(&key).copied().unwrap_or(0);
        let has_address = newcomer.address.is_some();
        let is_candidate: &dyn Fn(&Holder) -> bool =
            if has_address && count(&of_address, newcomer.address) >= self.per_address {
                &|holder| holder.address == newcomer.address
            } else if has_address && !newcomer.is_recent && count(&of_network, newcomer.network()) >= self.per_network {
                &|holder| !holder.is_recent && holder.network() == newcomer.network()
            } else if holders.len() >= self.total {
                &|_| true
            } else {
                return None;
            };
        let crowd = |holder: &Holder| {
            let network = count(&of_network, holder.network());
            (
                holder.is_recent,
                Reverse(network),
                Reverse(count(&of_address, holder.address)),
            )
        };
        let candidates = holders.iter().enumerate().filter(|(_, holder)| is_candidate(holder));
        // Of equal ones the first, which is the oldest.
        candidates
            .min_by_key(|(_, holder)| crowd(holder))
            .map(|(index, _)| index)
    }
}

impl Holder {
    /// What one owner is likely to have at its disposal: an IPv4 /24, an IPv6 /64.
    pub fn network(&self) -> Option<IpAddr> {
        self.address.map(|address| match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Ipv4Addr::from([a, b, c, 0]).into()
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::from([a, b, c, d, 0, 0, 0, 0]).into()
            }
        })
    }
}

/// The places of one kind of connection.
pub(super) struct Room {
    /// Names the kind in the log.
    kind: &'static str,
    limits: AddressLimits,
    /// What a connection may take while more than half of the places are taken.
    pressed_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The oldest first.
    held: Vec<Held>,
    last_number: u64,
    /// Connections that gave way since the last warning.
    gave_way: u64,
    warned_at: Option<Instant>,
}

struct Held {
    number: u64,
    holder: Holder,
    since: Instant,
    /// Dropped with its place.
    _seat: oneshot::Sender<()>,
}

/// A place that is held until it is dropped, or given to another.
pub(super) struct Seat {
    room: Arc<Room>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Room {
    pub(super) fn new(kind: &'static str, limits: AddressLimits, pressed_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            kind,
            limits,
            pressed_timeout,
            state: Mutex::default(),
        })
    }

    /// Takes a place; another connection may lose its own by that.
    pub(super) fn enter(self: &Arc<Self>, newcomer: Holder) -> Seat {
        let now = Instant::now();
        let mut state = self.lock();
        let before = state.held.len();
        if before > self.limits.total / 2 {
            state
                .held
                .retain(|held| now.duration_since(held.since) < self.pressed_timeout);
        }
        let holders: Vec<Holder> = state.held.iter().map(|held| held.holder).collect();
        if let Some(index) = self.limits.giving_way(&holders, newcomer) {
            state.held.remove(index);
        }
        state.gave_way += (before - state.held.len()) as u64;
        self.warn(&mut state, now);
        state.last_number += 1;
        let (seat, lost) = oneshot::channel();
        let number = state.last_number;
        state.held.push(Held {
            number,
            holder: newcomer,
            since: now,
            _seat: seat,
        });
        Seat {
            room: Arc::clone(self),
            number,
            lost,
        }
    }

    /// Tells the operator, seldom enough that strangers can't fill the log.
    fn warn(&self, state: &mut State, now: Instant) {
        let is_due = state
            .warned_at
            .is_none_or(|warned_at| now.duration_since(warned_at) >= PRESSURE_WARNING_INTERVAL);
        if state.gave_way > 0 && is_due {
            warn!(
                closed = state.gave_way,
                kind = self.kind,
                "unknown peers hold many connections; the oldest of them were closed"
            );
            state.gave_way = 0;
            state.warned_at = Some(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Returns when the place was given to another connection.
    pub(super) async fn lost(&mut self) {
        // Nothing is ever sent: the other half is dropped.
        let _ = (&mut self.lost).await;
    }

    pub(super) fn is_lost(&mut self) -> bool {
        self.lost.try_recv() != Err(TryRecvError::Empty)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.lock().held.retain(|held| held.number != self.number);
    }
}

/// The addresses from which authenticated peers came, and when each last did.
#[derive(Default)]
pub(super) struct RecentAddresses {
    seen: Mutex<HashMap<IpAddr, Instant>>,
}

impl RecentAddresses {
    /// To be called when a peer that has proved who it is connects or leaves. With too many, the oldest is forgotten.
    pub(super) fn note(&self, address: IpAddr) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(address.to_canonical(), Instant::now());
        if seen.len() > MAX_RECENT_ADDRESSES {
            let oldest = seen.iter().min_by_key(|(_, seen_at)| **seen_at);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                seen.remove(&oldest);
            }
        }
    }

    /// A new handshake with this address.
    pub(super) fn holder(&self, address: IpAddr) -> Holder {
        let address = address.to_canonical();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Holder {
            address: Some(address),
            is_recent: seen
                .get(&address)
                .is_some_and(|seen_at| seen_at.elapsed() < RECENT_ADDRESS_KEPT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AddressLimits = AddressLimits {
        total: 6,
        per_address: 3,
        per_network: 4,
    };

    fn holder(address: &str) -> Holder {
        Holder {
            address: Some(address.parse().expect("an address")),
            is_recent: false,
        }
    }

    fn recent(address: &str) -> Holder {
        Holder {
            is_recent: true,
            ..holder(address)
        }
    }

    fn giving_way(holders: &[Holder], newcomer: Holder) -> Option<usize> {
        LIMITS.giving_way(holders, newcomer)
    }

    #[test]
    fn nobody_gives_way_while_there_is_room() {
        let few = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(holder);
        assert_eq!(giving_way(&few, holder("192.0.2.1")), None);
    }

    #[test]
    fn an_address_with_all_its_places_gives_its_oldest() {
        let held = ["198.51.100.1", "192.0.2.1", "192.0.2.1", "192.0.2.1"].map(holder);
        assert_eq!(giving_way(&held, holder("192.0.2.1")), Some(1));
    }

    #[test]
    fn a_network_with_all_its_places_gives_the_oldest_of_its_most_crowded_address() {
        let held = ["192.0.2.9", "192.0.2.1", "192.0.2.1", "192.0.2.1"].map(holder);
        assert_eq!(giving_way(&held, holder("192.0.2.2")), Some(1));
        let v6 = ["2001:db8::9", "2001:db8::1", "2001:db8::1", "2001:db8::1"].map(holder);
        assert_eq!(giving_way(&v6, holder("2001:db8::2")), Some(1));
        assert_eq!(giving_way(&v6, holder("2001:db8:0:1::2")), None, "another /64");
    }

    /// Else a newcomer that is slower than a flood would lose its place to the flood.
    #[test]
    fn the_most_crowded_network_gives_way_to_all_others() {
        let held = [
            "198.51.100.1",
            "192.0.2.1",
            "192.0.2.1",
            "192.0.2.2",
            "203.0.113.1",
            "203.0.113.1",
        ]
        .map(holder);
        assert_eq!(giving_way(&held, holder("198.51.100.2")), Some(1));
    }

    #[test]
    fn an_address_of_an_authenticated_peer_gives_way_last() {
        let mut held = vec![recent("192.0.2.1"); 3];
        held.extend(["198.51.100.1", "198.51.100.2", "203.0.113.1"].map(holder));
        assert_eq!(giving_way(&held, holder("203.0.113.9")), Some(3));
        // It is not counted with its network, whose other addresses may be strangers'.
        assert_eq!(giving_way(&held[..5], recent("192.0.2.9")), None);
        assert_eq!(giving_way(&held[..5], holder("192.0.2.9")), None);
        assert_eq!(giving_way(&held, recent("192.0.2.1")), Some(0), "of its own address");
    }

    #[test]
    fn what_has_no_address_is_bounded_by_the_total() {
        let local = Holder {
            address: None,
            is_recent: false,
        };
        assert_eq!(giving_way(&[local; 5], local), None);
        assert_eq!(giving_way(&[local; 6], local), Some(0));
    }

    #[test]
    fn the_addresses_of_authenticated_peers_are_bounded() {
        let recent = RecentAddresses::default();
        let addresses = (0..=MAX_RECENT_ADDRESSES as u32).map(|number| IpAddr::from(Ipv4Addr::from(number)));
        for address in addresses.clone() {
            recent.note(address);
        }
        let known = addresses.filter(|address| recent.holder(*address).is_recent);
        assert_eq!(known.count(), MAX_RECENT_ADDRESSES);
    }
}
