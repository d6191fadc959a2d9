//! What an operator finds in the log of a server that refused someone.
//!
//! One test in a program of its own: `tracing` may miss an event of a call site that another thread meets for the first
//! time just when a subscriber is set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "transport/common.rs"]
#[allow(dead_code, reason = "shared with the program that tests the transports")]
mod common;

use std::io;
use std::sync::{Arc, Mutex};

use common::{Admitted, connect, node, raw_key_server};

#[tokio::test]
async fn refusal_is_logged_with_the_peers_fingerprint() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (server_key, stranger) = (node(1), node(3));
    let server = raw_key_server(&server_key, &Admitted::these(&[&node(2)])).await;

    connect(&server, &stranger, &server_key).await.unwrap_err();

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let fingerprint = stranger.public_key().fingerprint();
    assert!(
        text.contains("handshake refused") && text.contains(&fingerprint),
        "{text}"
    );
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
