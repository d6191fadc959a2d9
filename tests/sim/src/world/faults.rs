//! What the network and the power do to a session.

use super::World;
use super::session::ToSource;

impl World {
    pub(super) fn duplicate(&mut self, number: u64, to_source: bool) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        if to_source {
            if let Some(message) = session.to_source.front().cloned() {
                session.to_source.push_front(message);
            }
        } else if let Some(message) = session.to_target.front().cloned() {
            session.to_target.push_front(message);
        }
    }

    pub(super) fn lose(&mut self, number: u64, to_source: bool) {
        if let Some(session) = self.sessions.get_mut(&number) {
            session.is_broken = true;
            if to_source {
                session.to_source.pop_front();
            } else {
                session.to_target.pop_front();
            }
        }
    }

    /// A receipt of the same target arrives that is for something else.
    pub(super) fn replay(&mut self, number: u64, pick: usize) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        let target = self.issued[session.authorization].target;
        let given: Vec<&Vec<u8>> = self
            .receipts
            .iter()
            .filter(|(by, _)| *by == target)
            .map(|(_, receipt)| receipt)
            .collect();
        if let Some(receipt) = given.get(pick % given.len().max(1)) {
            session.to_source.push_front(ToSource::Receipt((*receipt).clone()));
        }
    }

    pub(super) fn reorder(&mut self, number: u64, to_source: bool) {
        if let Some(session) = self.sessions.get_mut(&number) {
            if to_source && session.to_source.len() > 1 {
                session.to_source.swap(0, 1);
            } else if !to_source && session.to_target.len() > 1 {
                session.to_target.swap(0, 1);
            }
        }
    }

    /// Every session with a lockbox that lost its power is gone.
    pub(super) fn crash(&mut self, node: usize) {
        let issued = &self.issued;
        self.sessions.retain(|_, session| {
            let issued = &issued[session.authorization];
            issued.source != node && issued.target != node
        });
        let now_ms = self.time_at(node);
        self.nodes[node].crash(now_ms, &mut self.rng);
        self.limit_chunks();
    }
}
