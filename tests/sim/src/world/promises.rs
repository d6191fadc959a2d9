//! What is checked while an event happens; `invariants.rs` checks what is so after it.

use lockbox_authz::UnverifiedEnvelope;
use lockbox_authz::transfer::Receipt;
use lockbox_core::rows::Row;
use lockbox_core::wire::OutgoingRecord;
use prost::Message;

use super::session::Session;
use super::{Outcome, World};
use crate::digest::{self, Digest};
use crate::invariants::Violation;

impl World {
    /// What is said of a step must be durable by then.
    pub(super) fn check_promise(&mut self, authorization: usize, outcome: &Outcome) {
        let issued = &self.issued[authorization];
        match outcome {
            Outcome::Offered(..) => {
                let row = Row::Outgoing(issued.statement.authorization_id);
                if self.nodes[issued.source].durable_row(row).is_none() {
                    self.breach(
                        "spent-before-it-is-answered",
                        "an offer went out, and the ledger does not have its authorization",
                    );
                }
            }
            Outcome::Stored(receipt, _) => {
                let receipt: Receipt = UnverifiedEnvelope::from_bytes(receipt)
                    .and_then(|envelope| envelope.unverified_statement())
                    .expect("the target has signed it");
                let target = &self.nodes[issued.target];
                let missing = receipt.key_ids.iter().find(|key_id| !target.holds_durably(**key_id));
                if let Some(key_id) = missing.copied() {
                    self.breach(
                        "stored-before-it-is-received",
                        &format!("a receipt for key {key_id} went out, and its target does not have it durably"),
                    );
                }
            }
            _ => {}
        }
    }

    /// A chunk leaves only when the ledger says that it may have left.
    pub(super) fn check_chunk(&mut self, authorization: usize, chunk: u32) {
        self.check_stranger(authorization, "a chunk was sent to");
        let issued = &self.issued[authorization];
        let row = Row::Outgoing(issued.statement.authorization_id);
        let record = self.nodes[issued.source].durable_row(row);
        let noted = record.is_some_and(|bytes| {
            let record = OutgoingRecord::decode(&bytes[..]).expect("the source has written it");
            chunk < record.next_unsent_chunk
        });
        if !noted {
            self.breach(
                "spent-before-it-is-answered",
                &format!("chunk {chunk} was sent, and the ledger does not know of it"),
            );
        }
    }

    pub(super) fn note(&self, session: &mut Session, end: usize, node: usize, message: Digest) {
        if self.takes_note {
            let id = self.issued[session.authorization].statement.authorization_id;
            let ledger = digest::of_ledger(&self.nodes[node], id);
            session.taken[end] = digest::of(&(session.taken[end], message, ledger));
        }
    }

    pub(super) fn breach(&mut self, invariant: &'static str, evidence: &str) {
        self.breach.get_or_insert_with(|| Violation {
            invariant,
            evidence: evidence.to_owned(),
        });
    }
}
