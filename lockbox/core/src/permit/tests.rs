//! One test for each refusal of SPEC section 6.3. Every one also asserts that the refused request changed nothing.

use lockbox_authz::Verified;
use lockbox_authz::authorization::{Authorization, Operation, Selection};
use lockbox_authz::id::{Hash, KeyId};
use lockbox_authz::keys::PublicKey;
use lockbox_authz::roster::Head;

use super::*;
use crate::lifecycle::derive::{DeriveRequest, Relation};
use crate::record::{Key, TransferPolicy};
use crate::testing::Cluster;
use crate::transfer::Present;
use crate::transfer::source::{AwaitPresent, SourceError};
use crate::vault::Changes;

mod envelope;
mod layers;
mod statement;
mod veto;

struct Case {
    cluster: Cluster,
    key_id: KeyId,
    statement: Authorization,
    /// The identity key that the peer proves on the wire.
    peer: PublicKey,
}

impl Case {
    /// A transfer from a to b that is in order.
    fn new() -> Self {
        Self::with_policy(TransferPolicy::default())
    }

    fn with_policy(policy: TransferPolicy) -> Self {
        let mut cluster = Cluster::new();
        let key_id = cluster.a.create("volume", policy);
        let statement = cluster.statement(Operation::Move, Selection::Ids(vec![key_id]));
        let peer = cluster.b.lockbox().identity().public_key();
        Self {
            cluster,
            key_id,
            statement,
            peer,
        }
    }

    fn signed(&self) -> Vec<u8> {
        let signed = Verified::sign(self.statement.clone(), &self.cluster.broker);
        signed.envelope().to_bytes()
    }

    fn present(&mut self, authorization: Vec<u8>, roster_head: Head) -> Result<(), SourceError> {
        let message = Present {
            authorization,
            roster_head,
        };
        let peer = self.peer;
        self.cluster
            .a
            .step(|lockbox, now, rng| AwaitPresent::new(peer).present(lockbox, &message, now, rng))
            .map(|_| ())
    }

    /// Presents bytes that must be refused, and gives the reason.
    fn refusal_of(&mut self, authorization: Vec<u8>) -> Refusal {
        let head = self.cluster.roster.head();
        let before = self.cluster.a.stored();
        let refusal = match self.present(authorization, head) {
            Err(SourceError::Refused(refusal)) => refusal,
            Err(other) => panic!("it failed in another way: {other}"),
            Ok(()) => panic!("it was not refused"),
        };
        assert!(self.cluster.a.stored() == before, "a refused request changed something");
        refusal
    }

    fn refusal(&mut self) -> Refusal {
        let bytes = self.signed();
        self.refusal_of(bytes)
    }

    /// Changes the key as no command does yet.
    fn change_key(&mut self, change: impl FnOnce(&mut Key)) {
        let key_id = self.key_id;
        self.cluster
            .a
            .step(|lockbox, _, rng| {
                let mut key = lockbox.reveal_key(key_id)?;
                change(&mut key);
                let mut changes = Changes::default();
                changes.put_key(key);
                let batches = lockbox.vault.stage(changes, rng)?;
                Ok::<_, LockboxError>(crate::step::Step::new(batches, ()))
            })
            .expect("memory does not fail");
    }
}

#[test]
fn what_is_in_order_is_permitted() {
    let mut case = Case::new();
    let (bytes, head) = (case.signed(), case.cluster.roster.head());
    case.present(bytes, head).expect("nothing is wrong with it");
}

#[test]
fn rejects_everything_while_an_alarm_stands() {
    let mut case = Case::new();
    case.cluster
        .a
        .step(|lockbox, now, rng| lockbox.raise_alarm("a fork".to_owned(), b"", now, rng))
        .expect("memory does not fail");
    assert!(matches!(case.refusal(), Refusal::Alarm));
}

fn bonded(relation: Relation) -> (Case, KeyId) {
    let mut case = Case::new();
    case.change_key(|key| {
        key.info.clone_policy = crate::record::ClonePolicy {
            share: true,
            rekey: true,
            layer: true,
        };
    });
    let request = DeriveRequest {
        parent: case.key_id,
        relation,
        key_id: None,
        name: None,
        labels: None,
    };
    let step = case
        .cluster
        .a
        .step(|lockbox, now, rng| lockbox.derive_key(request, now, rng));
    (case, step.expect("its policy allows it").key_id)
}

fn end_job(case: &mut Case, job: KeyId) {
    let cancelled = case
        .cluster
        .a
        .step(|lockbox, now, rng| lockbox.job_cancel(job, false, now, rng));
    cancelled.expect("it is open");
}

#[test]
fn a_peer_learns_nothing_but_whether_to_come_again() {
    let mut case = Case::new();
    case.statement.cluster_id = ClusterId(Hash([9; 32]));
    assert_eq!(case.refusal().peer_text(), "refused");
    assert_eq!(case.refusal().requester_text(), "refused");
}
