//! Those who are not meant: nobody serves them.

use lockbox_authz::Verified;
use lockbox_authz::authorization::{Authorization, Selection};
use lockbox_authz::keys::PublicKey;
use lockbox_core::transfer::Present;
use lockbox_core::transfer::source::AwaitPresent;

use super::World;

impl World {
    /// A thief presents what may be another's authorization, or a retired target its own: no session may come of it.
    pub(crate) fn steal(&mut self, authorization: usize, source: usize, thief: usize) {
        let issued = &self.issued[authorization];
        let is_meant = thief == issued.target && source == issued.source;
        if is_meant && !self.knows_retired(source, thief) {
            return;
        }
        let (bytes, peer) = (issued.bytes.clone(), self.nodes[thief].key());
        if self.is_served(source, bytes, peer) {
            let (invariant, whom) = if is_meant {
                ("nothing-for-strangers", "a target that is retired")
            } else {
                ("one-target", "another target")
            };
            self.breach(invariant, &format!("a session was opened for {whom}"));
        }
    }

    /// A stolen broker authorizes a machine that no admin admitted, and the machine presents that.
    pub(crate) fn intrude(&mut self, source: usize, moves: bool) {
        let party = self.outsider.party();
        let statement = Authorization {
            authorization_id: self.outsider.authorization_id,
            target: party,
            target_wrapping_certificate: self.outsider.certificate(self.roster.cluster_id()),
            selection: Selection::All,
            ..self.statement(source, source, moves)
        };
        let bytes = Verified::sign(statement, &self.broker).envelope().to_bytes();
        if self.is_served(source, bytes, party.identity_key) {
            self.breach(
                "nothing-for-strangers",
                "a session was opened for a machine that was never admitted",
            );
        }
    }

    pub(super) fn is_served(&mut self, source: usize, authorization: Vec<u8>, peer: PublicKey) -> bool {
        let present = Present {
            authorization,
            roster_head: self.roster.head(),
        };
        let now_ms = self.time_at(source);
        let lockbox = &mut self.nodes[source].lockbox;
        let served = AwaitPresent::new(peer).present(lockbox, &present, now_ms, &mut self.rng);
        served.is_ok()
    }

    pub(super) fn knows_retired(&self, node: usize, other: usize) -> bool {
        let known = self.nodes[node].roster_index();
        self.retired[other].is_some_and(|retired| retired <= known)
    }

    /// Nothing is done for a target that its source knows to be retired.
    pub(super) fn check_stranger(&mut self, authorization: usize, what: &str) {
        let issued = &self.issued[authorization];
        let (source, target) = (issued.source, issued.target);
        if self.knows_retired(source, target) {
            self.breach(
                "nothing-for-strangers",
                &format!("{what} node {target}, which node {source} knows to be retired"),
            );
        }
    }
}
