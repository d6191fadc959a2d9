//! What the tests of the whole are made of.

pub use lockbox_sim as sim;
pub mod storefaults;
pub mod testkit;
pub mod vectors;
