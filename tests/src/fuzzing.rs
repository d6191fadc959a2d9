//! What is fuzzed: each parser of bytes that come from somewhere else. One function for each target; it takes any bytes and
//! panics if a promise is broken.
//!
//! Two drivers call them: `tests/fuzz` (cargo-fuzz, which needs a nightly toolchain), and `tests/tests/fuzz_corpus.rs`, which
//! repeats the kept corpus and changes of it on every run of the tests.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lockbox_authz::authorization::{Authorization, Revocation};
use lockbox_authz::certificate::WrappingCertificate;
use lockbox_authz::envelope::Statement;
use lockbox_authz::join::{JoinRequest, JoinToken};
use lockbox_authz::roster::file::{decode_entries, encode_entries};
use lockbox_authz::roster::{Roster, RosterEntry};
use lockbox_authz::transfer::{ErasureRecord, Receipt, SessionOffer};
use lockbox_authz::{Head, UnverifiedEnvelope};
use lockbox_core::record::{Key, Tombstone};
use lockbox_core::slots::Header;
use lockbox_core::wire::ChunkPayload;
use lockbox_rpc::api::peer::{TransferRequest, TransferResponse, transfer_request};
use prost::Message;

use crate::vectors::{Corpus, Vector, judge, read_all};

/// A target by its name, which is also that of its folder in the corpus and of its file in `fuzz_targets`.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: [Target; 12] = [
    target("envelope", envelope),
    target("authorization", authorization),
    target("transfer_statement", transfer_statement),
    target("roster_file", roster_file),
    target("roster_chain", roster_chain),
    target("join_token", join_token),
    target("peer_message", peer_message),
    target("key_record", key_record),
    target("chunk_payload", chunk_payload),
    target("tombstone", tombstone),
    target("header", header),
    target("sealed_record", sealed_record),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// The folder of cargo-fuzz.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// An envelope is written as it was read, and so is every statement that it may hold.
pub fn envelope(bytes: &[u8]) {
    let Ok(envelope) = UnverifiedEnvelope::from_bytes(bytes) else {
        return;
    };
    assert_eq!(envelope.to_bytes(), bytes);
    statement::<RosterEntry>(&envelope);
    statement::<JoinRequest>(&envelope);
    statement::<WrappingCertificate>(&envelope);
    statement::<Revocation>(&envelope);
}

pub fn authorization(bytes: &[u8]) {
    if let Ok(envelope) = UnverifiedEnvelope::from_bytes(bytes) {
        statement::<Authorization>(&envelope);
    }
}

/// What the two ends of a transfer sign.
pub fn transfer_statement(bytes: &[u8]) {
    if let Ok(envelope) = UnverifiedEnvelope::from_bytes(bytes) {
        statement::<SessionOffer>(&envelope);
        statement::<Receipt>(&envelope);
        statement::<ErasureRecord>(&envelope);
    }
}

/// A statement is written as it was read, and nothing that nobody trusts verifies.
fn statement<S: Statement>(envelope: &UnverifiedEnvelope) {
    assert!(envelope.verify::<S>(&[], 1).is_err());
    if let Ok(statement) = envelope.unverified_statement::<S>() {
        assert_eq!(statement.to_wire().encode_to_vec(), envelope.to_wire().payload);
    }
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

/// What lockboxes say to each other, up to the envelopes in it.
pub fn peer_message(bytes: &[u8]) {
    if let Ok(request) = TransferRequest::decode(bytes) {
        stable(&request);
        if let Some(transfer_request::Message::Present(present)) = request.message
            && let Some(head) = present.roster_head
            && let Ok(read) = Head::from_wire(&head)
        {
            assert_eq!(read.to_wire(), head);
        }
    }
    if let Ok(response) = TransferResponse::decode(bytes) {
        stable(&response);
    }
}

/// A message is read as it was written.
fn stable<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M) {
    assert_eq!(M::decode(&message.encode_to_vec()[..]).as_ref(), Ok(message));
}

/// A key is read as it was written. Its bytes are sealed, so nobody relies on there being one encoding.
pub fn key_record(bytes: &[u8]) {
    if let Ok(key) = Key::decode(bytes) {
        let written = key.encode();
        let again = Key::decode(&written).expect("what is written can be read");
        assert_eq!(again.info, key.info);
        assert!(again.material.equals(&key.material));
        assert_eq!(again.encode(), written);
    }
}

/// Each key of a chunk.
pub fn chunk_payload(bytes: &[u8]) {
    if let Ok(payload) = ChunkPayload::decode(bytes) {
        for key in &payload.keys {
            key_record(&key.encode_to_vec());
        }
    }
}

/// What remains of a key is read as it was written.
pub fn tombstone(bytes: &[u8]) {
    if let Ok(tombstone) = Tombstone::decode(bytes) {
        assert_eq!(Tombstone::decode(&tombstone.encode()), Ok(tombstone));
    }
}

/// A header is written as it was read.
pub fn header(bytes: &[u8]) {
    if let Ok(header) = Header::from_bytes(bytes) {
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(header.slots().count().clamp(1, 8), header.slots().count());
    }
}

/// The vectors with a record of a store that opens.
const SEALED: [&str; 3] = ["book-record", "key-record", "root-image"];

/// No other bytes open in the place of a sealed record: one of the book, a key, or the effaceable root.
pub fn sealed_record(bytes: &[u8]) {
    static VECTORS: LazyLock<Corpus> = LazyLock::new(|| read_all().expect("the folder can be read"));
    for name in SEALED {
        let good = &VECTORS[name];
        let changed = Vector {
            body: bytes.to_vec(),
            ..good.clone()
        };
        if judge(&changed, &VECTORS).is_ok() {
            assert_eq!(bytes, good.body, "{name}");
        }
    }
}
