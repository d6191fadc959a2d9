//! The fuzz targets over their kept corpus and over changes of it: what a short run of a fuzzer would find, on every run of
//! the tests. A failure prints the bytes.

use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

use lockbox_authz::{AuthorizationId, KeyId, LockboxId, MaterialId};
use lockbox_core::record::{Departure, Tombstone};
use lockbox_core::wire::ChunkPayload;
use lockbox_rpc::api::peer;
use lockbox_tests::fuzzing::{TARGETS, Target, folder};
use lockbox_tests::vectors::{Expect, Vector, read_all};
use prost::Message;

/// Set it to make the files anew that come from the vectors.
const BLESS: &str = "LOCKBOX_BLESS";

/// Changed inputs for each target.
const CHANGES: u64 = 4_000;
/// The same for a target that opens a store three times for each of them.
const SLOW_CHANGES: u64 = 400;

/// Bytes of one file of the corpus, at most: a fuzzer gets further with small ones.
const MOST_BYTES: usize = 6 * 1024;
/// Refused vectors of each kind in the corpus.
const MOST_REFUSED: usize = 6;

#[test]
fn every_target_keeps_its_promises_over_its_corpus_and_changes_of_it() {
    if std::env::var_os(BLESS).is_some() {
        bless();
    }
    for target in &TARGETS {
        let corpus = corpus(target);
        let changes = if target.name == "sealed_record" {
            SLOW_CHANGES
        } else {
            CHANGES
        };
        for bytes in &corpus {
            run(target, bytes);
        }
        for seed in 0..changes {
            run(target, &changed(&corpus, &mut Random(seed)));
        }
    }
}

/// A target that nobody runs finds nothing.
#[test]
fn cargo_fuzz_has_every_target() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("a readable file");
    for target in &TARGETS {
        let file = format!("fuzz_targets/{}.rs", target.name);
        assert!(manifest.contains(&format!("path = \"{file}\"")), "{file} is not built");
        let body = fs::read_to_string(folder().join(&file)).expect("a readable file");
        assert!(
            body.contains(&format!("fuzzing::{}(", target.name)),
            "{file} runs something else"
        );
    }
}

fn run(target: &Target, bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(
        catch_unwind(|| (target.run)(bytes)).is_ok(),
        "{} breaks a promise over {hex}",
        target.name
    );
}

fn corpus_folder(target: &str) -> PathBuf {
    folder().join("corpus").join(target)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = corpus_folder(target.name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a readable folder").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no corpus", target.name);
    paths
        .iter()
        .map(|path| fs::read(path).expect("a readable file"))
        .collect()
}

/// An input of the corpus with a few changes: bits, lengths, pieces of another input.
fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let place = random.below(bytes.len() + 1);
        match random.below(7) {
            0 | 1 if place < bytes.len() => bytes[place] ^= 1 << random.below(8),
            2 if place < bytes.len() => bytes[place] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.truncate(place),
            4 => bytes.insert(place, random.below(256) as u8),
            5 if place < bytes.len() => {
                bytes.remove(place);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let piece = &other[from..(from + random.below(64)).min(other.len())];
                let end = (place + random.below(piece.len() + 1)).min(bytes.len());
                bytes.splice(place..end, piece.iter().copied());
            }
        }
    }
    bytes
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Writes the files that the vectors yield.
fn bless() {
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for vector in read_all().expect("the folder can be read").values() {
        let is_refused = vector.expect != Expect::Accepted;
        for (target, bytes) in inputs(vector) {
            let count = refused.entry(format!("{target} {}", vector.kind)).or_default();
            *count += usize::from(is_refused);
            if bytes.len() <= MOST_BYTES && (!is_refused || *count <= MOST_REFUSED) {
                write(target, &vector.name, &bytes);
            }
        }
    }
    write("tombstone", "destroyed", &tombstone(None).encode());
    let moved = Some((AuthorizationId([3; 16]), LockboxId([4; 16])));
    write("tombstone", "moved", &tombstone(moved).encode());
    let resume = peer::Resume {
        receipts: vec![vec![1; 40], vec![2; 40]],
        last: true,
        next_settled_chunk: 7,
        declines: true,
    };
    let resume = peer::transfer_request::Message::Resume(resume);
    write(
        "peer_message",
        "resume",
        &peer::TransferRequest { message: Some(resume) }.encode_to_vec(),
    );
}

/// The targets that a vector is an input of.
fn inputs(vector: &Vector) -> Vec<(&'static str, Vec<u8>)> {
    let body = vector.body.clone();
    let statement = vector.all("statement").next().unwrap_or_default();
    match (vector.kind.as_str(), statement) {
        ("envelope", "authorization") => vec![("authorization", body.clone()), ("peer_message", present(body))],
        ("envelope", "receipt" | "erasure-record" | "session-offer") => {
            vec![("transfer_statement", body.clone()), ("peer_message", stored(body))]
        }
        ("envelope", _) | ("wrapping-certificate", _) => vec![("envelope", body)],
        ("roster", _) => vec![("roster_file", body.clone()), ("roster_chain", body)],
        ("join-token", _) => vec![("join_token", body)],
        ("header", _) => vec![("header", body)],
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

fn present(authorization: Vec<u8>) -> Vec<u8> {
    let head = lockbox_authz::wire::RosterHead {
        index: 3,
        hash: vec![5; 32],
    };
    let present = peer::Present {
        authorization,
        roster_head: Some(head),
    };
    let message = Some(peer::transfer_request::Message::Present(present));
    peer::TransferRequest { message }.encode_to_vec()
}

fn stored(receipt: Vec<u8>) -> Vec<u8> {
    let message = Some(peer::transfer_request::Message::StoredChunk(peer::StoredChunk {
        receipt,
    }));
    peer::TransferRequest { message }.encode_to_vec()
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

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = corpus_folder(target);
    fs::create_dir_all(&folder).expect("the folder can be written");
    fs::write(folder.join(name), bytes).expect("the folder can be written");
}
