//! The roster: a hash chain of entries, signed by admins, that says who belongs to a cluster. SPEC section 2.
//!
//! A [`Roster`] is what follows from a chain of verified entries. It only ever grows: an entry that is applied is never
//! taken back, and a second, properly signed entry at a place that is taken is a fork, the one thing that only a dishonest
//! or careless majority of admins can make. A fork is told apart from rubbish, because it stops transfers.

mod chain;
mod entry;
pub mod file;
mod members;

pub use chain::{Applied, HeadComparison, Roster, RosterError};
pub use entry::{Admins, Change, Genesis, Head, Lockbox, RosterEntry};
pub use members::{BrokerMember, JoinAllowance, JoinState, LockboxMember};
