//! The shared TLS and transports, through real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod certificates;
mod common;
mod impostor;
mod listener;
mod local;
mod raw_key;
mod x509;
