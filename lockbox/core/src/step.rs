//! One step of a state machine: durable changes, and what may be said once they are durable.

use lockbox_store::{Batch, Durable};

/// What a transition produced. The caller submits the batches, in order and before any other step's, and unlocks the
/// message with the proof for the last of them.
#[must_use = "a step changes nothing until its batches are submitted"]
pub struct Step<M> {
    batches: Vec<Batch>,
    locked: Locked<M>,
}

/// A message that must not be heard before the changes that it speaks of are durable.
#[must_use = "a locked message is unlocked with the proof that its step is durable"]
pub struct Locked<M> {
    ticket: u64,
    message: M,
}

impl<M> Step<M> {
    /// A step always has a batch, if an empty one: what it says may rest on changes that an earlier step submitted and
    /// that are not durable yet, and a proof for a batch proves every batch before it.
    pub(crate) fn new(mut batches: Vec<Batch>, message: M) -> Self {
        if batches.is_empty() {
            batches.push(Batch::new());
        }
        let ticket = batches.last().map_or(0, Batch::ticket);
        Self {
            batches,
            locked: Locked { ticket, message },
        }
    }

    pub fn into_parts(self) -> (Vec<Batch>, Locked<M>) {
        (self.batches, self.locked)
    }

    pub(crate) fn map<N>(self, convert: impl FnOnce(M) -> N) -> Step<N> {
        Step {
            batches: self.batches,
            locked: Locked {
                ticket: self.locked.ticket,
                message: convert(self.locked.message),
            },
        }
    }
}

impl<M> Locked<M> {
    /// # Panics
    ///
    /// If the proof is for another step: that is a fault of the program, and saying the message would break a promise.
    pub fn unlock(self, proof: &Durable) -> M {
        assert_eq!(proof.ticket(), self.ticket, "the proof is for another step");
        self.message
    }
}
