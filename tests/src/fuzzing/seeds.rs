//! What the targets start from: the kept corpus, as far as it is made from the vectors.

use std::collections::BTreeMap;

use lockbox::root_file::RootFile;
use lockbox::two_slots::FILE_BYTES;
use lockbox_authz::{AuthorizationId, KeyId, LockboxId, MaterialId};
use lockbox_core::record::{Departure, Lineage, Tombstone};
use lockbox_core::wire::{self, ChunkPayload};
use lockbox_rpc::api::peer::{self, transfer_request, transfer_response};
use lockbox_store::EffaceableRoot;
use prost::Message;

use super::at_rest::records;
use super::backup::BACKUP;
use crate::vectors::{Corpus, Expect, Vector, read_all};

/// Bytes of one input, at most: a fuzzer gets further with small ones.
const MOST_BYTES: usize = 6 * 1024;
/// Refused vectors of each kind.
const MOST_REFUSED: usize = 4;

/// Target, name and bytes of each input.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let vectors = read_all().expect("the folder can be read");
    let mut seeds = from_vectors(&vectors);
    let mut add = |target, name: &str, bytes| seeds.push((target, name.to_owned(), bytes));
    add("tombstone", "destroyed", tombstone(None).encode());
    let moved = Some((AuthorizationId([3; 16]), LockboxId([4; 16])));
    add("tombstone", "moved", tombstone(moved).encode());
    let lineage = Some(Lineage {
        parent_key_id: KeyId([5; 16]),
        relation: "snapshot".to_owned(),
        stated_lies_on: Some(KeyId([6; 16])),
    });
    let lies_on = Tombstone {
        lineage,
        ..tombstone(None)
    };
    add("tombstone", "lies-on", lies_on.encode());
    for (name, bytes) in messages(&vectors) {
        add("peer_message", name, bytes);
    }
    for (name, bytes) in sealed_messages(&vectors) {
        add("sealed_message", name, bytes);
    }
    for (name, bytes) in records() {
        add("authentic_record", name, bytes);
    }
    for (name, bytes) in backups() {
        add("backup_file", name, bytes);
    }
    for (name, bytes) in backup_frames(&vectors) {
        add("backup_frame", name, bytes);
    }
    for (name, bytes) in root_files(&vectors["root-image"].body) {
        add("root_file", name, bytes);
    }
    seeds
}

fn from_vectors(vectors: &Corpus) -> Vec<(&'static str, String, Vec<u8>)> {
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut seeds = Vec::new();
    for vector in vectors.values() {
        let is_refused = vector.expect != Expect::Accepted;
        for (target, bytes) in inputs(vector) {
            let count = refused.entry(format!("{target} {}", vector.kind)).or_default();
            *count += usize::from(is_refused);
            if bytes.len() <= MOST_BYTES && (!is_refused || *count <= MOST_REFUSED) {
                seeds.push((target, vector.name.clone(), bytes));
            }
        }
    }
    seeds
}

/// The targets that a vector is an input of.
fn inputs(vector: &Vector) -> Vec<(&'static str, Vec<u8>)> {
    let body = vector.body.clone();
    let statement = vector.all("statement").next().unwrap_or_default();
    match (vector.kind.as_str(), statement) {
        ("envelope", "authorization") => vec![("authorization", body)],
        ("envelope", "receipt" | "erasure-record" | "session-offer") => vec![("transfer_statement", body)],
        ("envelope", _) | ("wrapping-certificate", _) => vec![("envelope", body)],
        ("compromise-notice", _) => vec![("compromise_notice", body)],
        ("roster", _) => vec![
            ("roster_file", body.clone()),
            ("evidence", body.clone()),
            ("roster_chain", body),
        ],
        ("join-token", _) => vec![("join_token", body)],
        ("header", _) => vec![("header", body)],
        // Other contents under the same data-encryption key: `sealed_record` promises that no other bytes open.
        ("key-record", _) if vector.name != vector.kind && vector.expect == Expect::Accepted => {
            vec![("key_record", vector.bytes("yields-plaintext"))]
        }
        ("book-record" | "key-record" | "root-image", _) => vec![("sealed_record", body)],
        ("chunk", _) if vector.expect == Expect::Accepted => {
            let payload = vector.bytes("yields-plaintext");
            let keys = ChunkPayload::decode(&payload[..]).expect("it is accepted").keys;
            let records = keys.iter().map(|key| ("key_record", key.encode_to_vec()));
            records.chain([("chunk_payload", payload.clone())]).collect()
        }
        _ => Vec::new(),
    }
}

/// One of each message that lockboxes say to each other.
fn messages(vectors: &Corpus) -> Vec<(&'static str, Vec<u8>)> {
    let body = |name: &str| vectors[name].body.clone();
    let head = lockbox_authz::wire::RosterHead {
        index: 3,
        hash: vec![5; 32],
    };
    let request = |message| peer::TransferRequest { message: Some(message) }.encode_to_vec();
    let response = |message| peer::TransferResponse { message: Some(message) }.encode_to_vec();
    let sync = peer::SyncRosterRequest {
        head: Some(head.clone()),
        entries: vec![body("join-request"), body("revocation")],
    };
    vec![
        ("sync-roster", sync.encode_to_vec()),
        (
            "present",
            request(transfer_request::Message::Present(peer::Present {
                authorization: body("authorization"),
                roster_head: Some(head),
            })),
        ),
        (
            "resume",
            request(transfer_request::Message::Resume(peer::Resume {
                receipts: vec![body("receipt"), vec![2; 40]],
                last: true,
                next_settled_chunk: 7,
                declines: true,
            })),
        ),
        (
            "stored-chunk",
            request(transfer_request::Message::StoredChunk(peer::StoredChunk {
                receipt: body("receipt"),
            })),
        ),
        (
            "offer",
            response(transfer_response::Message::Offer(peer::Offer {
                session_offer: body("session-offer"),
            })),
        ),
        (
            "chunk",
            response(transfer_response::Message::Chunk(peer::Chunk {
                chunk: 1,
                ciphertext: body("chunk"),
            })),
        ),
        (
            "confirmed",
            response(transfer_response::Message::Confirmed(peer::Confirmed { chunk: 1 })),
        ),
        (
            "erased",
            response(transfer_response::Message::Erased(peer::Erased {
                erasure_record: body("erasure-record"),
            })),
        ),
        (
            "finished",
            response(transfer_response::Message::Finished(peer::Finished {})),
        ),
    ]
}

fn sealed_messages(vectors: &Corpus) -> Vec<(&'static str, Vec<u8>)> {
    let mut messages: Vec<(&'static str, Vec<u8>)> = vec![
        ("header", vectors["header"].body.clone()),
        ("self", vectors["book-record"].bytes("yields-plaintext")),
        ("key", vectors["key-record"].bytes("yields-plaintext")),
        ("chunk", vectors["chunk"].bytes("yields-plaintext")),
        ("tombstone", tombstone(None).encode()),
    ];
    // Each is place, length and content.
    for (name, input) in records() {
        if ["membership", "alarm", "source", "target"].contains(&name) {
            let length = usize::from(u16::from_be_bytes([input[1], input[2]]));
            messages.push((name, input[3..3 + length].to_vec()));
        }
    }
    messages
}

/// As a replacement leaves the file, and as a power cut may.
fn root_files(image: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = folder.path().join("root");
    let mut file = RootFile::create(&path).expect("the folder is ours");
    file.replace(image).expect("it is small");
    let whole = std::fs::read(&path).expect("it was just written");
    let mut torn = whole.clone();
    torn[FILE_BYTES / 2 + 20] ^= 1;
    // The target pads with zeros, as the file is padded.
    let cut = |bytes: &[u8]| {
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes[..end].to_vec()
    };
    vec![
        ("whole", cut(&whole)),
        ("second-slot-torn", cut(&torn)),
        ("one-slot", cut(&whole[..FILE_BYTES / 2])),
    ]
}

fn backups() -> [(&'static str, Vec<u8>); 3] {
    let whole = BACKUP.clone();
    let cut = whole[..whole.len() - 9].to_vec();
    let header = whole[..200].to_vec();
    [("whole", whole), ("cut-short", cut), ("header", header)]
}

fn backup_frames(vectors: &Corpus) -> Vec<(&'static str, Vec<u8>)> {
    let payload = vectors
        .values()
        .find(|vector| vector.kind == "chunk" && vector.expect == Expect::Accepted);
    let payload = payload.expect("one is accepted").bytes("yields-plaintext");
    let keys = ChunkPayload::decode(&payload[..]).expect("it is accepted").keys;
    let entry = |what| wire::BackupEntry {
        what: Some(what),
        ..wire::BackupEntry::default()
    };
    let entries = keys
        .into_iter()
        .map(|key| entry(wire::backup_entry::What::Key(key)))
        .collect();
    let gone = wire::Tombstone::decode(&tombstone(None).encode()[..]).expect("it was just written");
    let frames = [
        ("keys", entries, None),
        ("gone", vec![entry(wire::backup_entry::What::Tombstone(gone))], None),
        (
            "end",
            Vec::new(),
            Some(wire::BackupEnd {
                entries: 2,
                as_of_ms: 1_800_000_000_000,
            }),
        ),
    ];
    let frame = |(name, entries, end)| {
        let frame = wire::BackupFrame {
            version: 1,
            entries,
            end,
        };
        (name, frame.encode_to_vec())
    };
    frames.into_iter().map(frame).collect()
}

fn tombstone(moved: Option<(AuthorizationId, LockboxId)>) -> Tombstone {
    Tombstone {
        key_id: KeyId([1; 16]),
        material_id: MaterialId([2; 16]),
        name: "volume".to_owned(),
        departure: if moved.is_some() {
            Departure::Moved
        } else {
            Departure::Destroyed
        },
        departed_at_ms: 1_800_000_000_000,
        moved,
        lineage: None,
    }
}
