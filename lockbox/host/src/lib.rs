//! What both daemons and their command lines need of the machine they run on.
//!
//! | module | knows |
//! |---|---|
//! | [`log`] | the log on standard error, which never delays or fails the work that it reports |
//! | [`start`] | what is looked at before a daemon starts, and before `init` makes anything |
//! | [`signals`] | what a daemon does at which signal |
//! | [`console`] | messages of a command on standard error and its answer on standard output, when either may be gone |
//!
//! Nothing here knows keys, stores or peers.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod console;
pub mod log;
pub mod signals;
pub mod start;
