//! What the tests of the whole are made of.

pub mod fuzzing;
pub mod storefaults;
pub mod testkit;
pub mod vectors;
