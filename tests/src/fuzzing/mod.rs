//! What is fuzzed: each parser of bytes that come from somewhere else. One function for each target; it takes any bytes and
//! panics if a promise is broken.
//!
//! Two drivers call them: `tests/fuzz` (cargo-fuzz, which needs a nightly toolchain), and `tests/tests/fuzz_corpus.rs`, which
//! repeats the kept corpus and changes of it on every run of the tests.
//!
//! A new target is one line of [`TARGETS`], its function, and what it starts from in `seeds.rs`; the rest is written by
//! `LOCKBOX_BLESS=1 cargo test -p lockbox-tests --test fuzz_corpus`.

mod at_rest;
mod backup;
mod seeds;
mod statements;

use std::path::{Path, PathBuf};

use lockbox_authz::Head;
use lockbox_authz::join::JoinToken;
use lockbox_authz::roster::Roster;
use lockbox_authz::roster::file::{decode_entries, encode_entries};
use lockbox_rpc::api::peer::{self, transfer_request, transfer_response};
use prost::Message;

pub use at_rest::{
    authentic_record, chunk_payload, header, key_record, root_file, sealed_message, sealed_record, tombstone,
};
pub use backup::{backup_file, backup_frame, evidence};
pub use seeds::seeds;
pub use statements::{authorization, compromise_notice, envelope, transfer_statement};

/// A target by its name, which is also that of its folder in the corpus and of its file in `fuzz_targets`.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Whether each input costs the opening of a store.
    pub is_slow: bool,
}

pub const TARGETS: [Target; 19] = [
    target("envelope", envelope),
    target("authorization", authorization),
    target("compromise_notice", compromise_notice),
    target("transfer_statement", transfer_statement),
    target("roster_file", roster_file),
    target("roster_chain", roster_chain),
    target("join_token", join_token),
    target("peer_message", peer_message),
    target("key_record", key_record),
    target("chunk_payload", chunk_payload),
    target("tombstone", tombstone),
    target("sealed_message", sealed_message),
    target("header", header),
    target("root_file", root_file),
    target("backup_file", backup_file),
    target("backup_frame", backup_frame),
    target("evidence", evidence),
    slow_target("sealed_record", sealed_record),
    slow_target("authentic_record", authentic_record),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    let is_slow = false;
    Target { name, run, is_slow }
}

const fn slow_target(name: &'static str, run: fn(&[u8])) -> Target {
    let is_slow = true;
    Target { name, run, is_slow }
}

/// The folder of cargo-fuzz.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// A file of roster entries is written as it was read.
pub fn roster_file(bytes: &[u8]) {
    if let Ok(entries) = decode_entries(bytes) {
        assert_eq!(encode_entries(&entries), bytes);
    }
}

/// A chain that is accepted is accepted again from its own entries, and leads to the same head.
pub fn roster_chain(bytes: &[u8]) {
    let entries = decode_entries(bytes).unwrap_or_default();
    if let Ok(roster) = Roster::from_chain(&entries, None) {
        let kept: Vec<_> = roster.entries_from(0, usize::MAX).cloned().collect();
        let again = Roster::from_chain(&kept, Some(roster.cluster_id())).expect("it was accepted once");
        assert_eq!(again.head(), roster.head());
    }
}

/// A token is written as it was read, but for the space around it.
pub fn join_token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = JoinToken::decode(text)
    {
        assert_eq!(*token.encode(), text.trim());
    }
}

/// What lockboxes say to each other, with the envelopes in it.
pub fn peer_message(bytes: &[u8]) {
    if let Ok(request) = peer::TransferRequest::decode(bytes) {
        stable(&request);
        from_target(request);
    }
    if let Ok(response) = peer::TransferResponse::decode(bytes) {
        stable(&response);
        from_source(response);
    }
    if let Ok(request) = peer::SyncRosterRequest::decode(bytes) {
        stable(&request);
        for entry in &request.entries {
            envelope(entry);
        }
    }
    if let Ok(response) = peer::SyncRosterResponse::decode(bytes) {
        stable(&response);
    }
}

fn from_target(request: peer::TransferRequest) {
    match request.message {
        Some(transfer_request::Message::Present(present)) => {
            authorization(&present.authorization);
            if let Some(head) = present.roster_head
                && let Ok(read) = Head::from_wire(&head)
            {
                assert_eq!(read.to_wire(), head);
            }
        }
        Some(transfer_request::Message::Resume(resume)) => {
            for receipt in &resume.receipts {
                transfer_statement(receipt);
            }
        }
        Some(transfer_request::Message::StoredChunk(stored)) => transfer_statement(&stored.receipt),
        None => {}
    }
}

fn from_source(response: peer::TransferResponse) {
    match response.message {
        Some(transfer_response::Message::Offer(offer)) => transfer_statement(&offer.session_offer),
        Some(transfer_response::Message::Erased(erased)) => transfer_statement(&erased.erasure_record),
        _ => {}
    }
}

/// A message is read as it was written.
fn stable<M: Message + Default + PartialEq>(message: &M) {
    let again = M::decode(&message.encode_to_vec()[..]);
    assert!(again.is_ok_and(|again| again == *message));
}
