//! What the tests of the whole are made of.

pub mod sim;
pub mod testkit;
pub mod vectors;
