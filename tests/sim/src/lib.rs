//! A deterministic simulation of the protocol on the real state machines: broker, admins and lockboxes in one process,
//! weighted events, named invariants after each of them, and liveness when the faults end.
//!
//! A failure prints a seed and an event file. [`replay`] makes it happen again; files of failures that were mended stand
//! in `tests/sim/regressions/`.

mod book;
mod digest;
mod event;
pub mod explore;
mod invariants;
mod node;
mod outsider;
mod rng;
mod run;
mod world;

pub use event::Event;
pub use invariants::Violation;
pub use run::{Failure, Faults, Summary, replay, run, run_many};
