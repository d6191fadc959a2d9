//! Sealing, key lifecycle and the transfer protocol of a lockbox, without input or output.
//!
//! Time and randomness are arguments. A transition of a state machine yields a [`step::Step`]: durable changes, and a message
//! that stays locked until a store has proved them. The normative text is `proto/SPEC.md`; section numbers refer to it.

pub mod backup;
pub mod custody;
pub mod damaged;
pub mod expired;
pub mod keys;
pub mod labels;
mod ledger;
pub mod lifecycle;
pub mod limits;
pub mod lockbox;
pub mod permit;
pub mod primitives;
pub mod record;
pub mod report;
pub mod rows;
pub mod secrets;
pub mod slots;
pub mod step;
pub mod transfer;
pub mod vault;

#[cfg(test)]
mod testing;

/// The sealed types, generated from `proto/lockbox/sealed/v1`.
#[allow(missing_docs, unreachable_pub)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/lockbox.sealed.v1.rs"));
}
