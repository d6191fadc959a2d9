//! What a lockbox keeps: records in clear, sealed records that were changed, and records that are sealed rightly but hold
//! anything.

use std::sync::LazyLock;

use lockbox::two_slots;
use lockbox_authz::{AuthorizationId, KeyId};
use lockbox_core::primitives::{aead_open, aead_seal, hkdf_sha256};
use lockbox_core::record::{Key, Tombstone};
use lockbox_core::rows::Row;
use lockbox_core::slots::Header;
use lockbox_core::{labels, wire};
use lockbox_store::Batch;
use prost::Message;

use super::stable;
use crate::testkit::attacker::rng;
use crate::vectors::{Corpus, Vector, judge, open_changed, read_all};

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
    if let Ok(payload) = wire::ChunkPayload::decode(bytes) {
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

/// Every message of `lockbox.sealed.v1` that stands for itself.
pub fn sealed_message(bytes: &[u8]) {
    fn one<M: Message + Default + PartialEq>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            stable(&message);
        }
    }
    one::<wire::KeyRecord>(bytes);
    one::<wire::ChunkPayload>(bytes);
    one::<wire::Tombstone>(bytes);
    one::<wire::SelfRecord>(bytes);
    one::<wire::MembershipRecord>(bytes);
    one::<wire::OutgoingRecord>(bytes);
    one::<wire::OutgoingChunk>(bytes);
    one::<wire::IncomingRecord>(bytes);
    one::<wire::IncomingChunk>(bytes);
    one::<wire::OutboxRecord>(bytes);
    one::<wire::AlarmRecord>(bytes);
    one::<wire::Header>(bytes);
}

/// A header is written as it was read.
pub fn header(bytes: &[u8]) {
    if let Ok(header) = Header::from_bytes(bytes) {
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(header.slots().count().clamp(1, 8), header.slots().count());
    }
}

/// The file of the effaceable root yields only what stands whole in one of its slots. An input that is too short is padded
/// as the file is.
pub fn root_file(bytes: &[u8]) {
    let mut file = [0; two_slots::FILE_BYTES];
    let length = bytes.len().min(file.len());
    file[..length].copy_from_slice(&bytes[..length]);
    let images = two_slots::images_in(&file);
    assert!(images.len() <= 2 && (images.len() < 2 || images[0] != images[1]));
    for image in images {
        let slots = file.chunks(two_slots::FILE_BYTES / 2);
        let stands = |slot: &[u8]| slot[4..].starts_with(&image) && slot[..4] == (image.len() as u32).to_be_bytes();
        assert!(!image.is_empty() && slots.into_iter().any(stands));
    }
}

static VECTORS: LazyLock<Corpus> = LazyLock::new(|| read_all().expect("the folder can be read"));

/// The vectors with a record of a store that opens.
const SEALED: [&str; 3] = ["book-record", "key-record", "root-image"];

/// No other bytes open in the place of a sealed record: one of the book, a key, or the effaceable root.
pub fn sealed_record(bytes: &[u8]) {
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

const AUTHORIZATION: AuthorizationId = AuthorizationId([3; 16]);
const GONE: KeyId = KeyId([4; 16]);

/// Where a record is put by its first byte; the rest is what is sealed there.
const PLACES: [Place; 17] = [
    Place::Book(Row::Identity),
    Place::Book(Row::Membership),
    Place::Book(Row::RosterEntry(0)),
    Place::Book(Row::Alarm(1)),
    Place::Book(Row::Tombstone(GONE)),
    Place::Book(Row::OutgoingKey(GONE)),
    Place::Book(Row::Outgoing(AUTHORIZATION)),
    Place::Book(Row::OutgoingChunk(AUTHORIZATION, 0)),
    Place::Book(Row::Revoked(AUTHORIZATION)),
    Place::Book(Row::Incoming(AUTHORIZATION)),
    Place::Book(Row::IncomingChunk(AUTHORIZATION, 0)),
    Place::Book(Row::OutgoingReport(AUTHORIZATION)),
    Place::Book(Row::IncomingReport(AUTHORIZATION)),
    Place::Key,
    Place::TreeRoot,
    Place::NextEpoch,
    Place::Image,
];

#[derive(Clone, Copy)]
enum Place {
    Book(Row),
    Key,
    TreeRoot,
    NextEpoch,
    Image,
}

/// A record that was sealed with the right key, by an earlier version or by a thief with the root key, may hold anything:
/// the lockbox says so, and does not fall over.
///
/// The input is one record, or several one after another, each as place (1 byte), length (2 bytes), and content.
pub fn authentic_record(bytes: &[u8]) {
    let mut batch = Batch::new();
    let mut image = VECTORS["store"].bytes("root-image");
    let mut rest = bytes;
    while let Some(([place, high, low], tail)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (content, tail) = tail.split_at(length);
        rest = tail;
        match PLACES.get(usize::from(*place)) {
            Some(Place::Image) => image = StoreKeys::read().image(content),
            Some(place) => {
                let (place, sealed) = StoreKeys::read().sealed(*place, content);
                batch.put(place, sealed);
            }
            None => return,
        }
    }
    let Ok(mut lockbox) = open_changed(&VECTORS, batch, image) else {
        return;
    };
    // Whatever each of them says: an answer or an error.
    let key_id = KeyId(VECTORS["store"].bytes("yields-key-id").try_into().expect("16 bytes"));
    let _ = lockbox.reveal_key(key_id);
    let _ = (lockbox.keys_after(None, 10), lockbox.tombstones_after(None, 10));
    let _ = (lockbox.standing(), lockbox.alarms(), lockbox.roster());
    let _ = (lockbox.reports(10), lockbox.open_incoming());
    let _ = lockbox.begin_session(AUTHORIZATION);
    if let Ok(Some(status)) = lockbox.transfer_status(AUTHORIZATION) {
        let _ = lockbox.evidence(&status, 0);
    }
    let _ = lockbox.end_with_retired(1, &mut rng());
    let _ = lockbox.destroy_key(key_id, true, 1, &mut rng());
}

/// The input of [`authentic_record`] that puts one content into one place.
pub(super) fn record(place: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a small record");
    [&[place][..], &length.to_be_bytes(), content].concat()
}

/// The keys that the vectors state of one store.
struct StoreKeys {
    store_id: Vec<u8>,
    root: Vec<u8>,
    epoch: u64,
    epoch_key: [u8; 32],
    data_key: [u8; 32],
}

impl StoreKeys {
    fn read() -> &'static Self {
        static KEYS: LazyLock<StoreKeys> = LazyLock::new(|| {
            let key = |name: &str, header: &str| VECTORS[name].bytes(header).try_into().expect("32 bytes");
            StoreKeys {
                store_id: VECTORS["store"].bytes("store-id"),
                root: VECTORS["store"].bytes("root-key"),
                epoch: VECTORS["root-image"].number("yields-epoch"),
                epoch_key: key("root-image", "yields-epoch-key"),
                data_key: key("key-record", "yields-data-key"),
            }
        });
        &KEYS
    }

    fn derived(&self, label: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        hkdf_sha256(&self.store_id, &self.root, &[label], &mut key);
        key
    }

    fn aad(&self, label: &[u8], rest: &[u8]) -> Vec<u8> {
        [label, &self.store_id, rest].concat()
    }

    fn image(&self, content: &[u8]) -> Vec<u8> {
        let aad = self.aad(labels::EPOCH_KEY, &[]);
        aead_seal(&self.derived(labels::EPOCH_SEALING), content, &aad, &mut rng())
    }

    /// The place in the store, and what stands there.
    fn sealed(&self, place: Place, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
        const VERSION: [u8; 8] = 1_u64.to_be_bytes();
        let under = |key: &[u8; 32], aad: Vec<u8>| aead_seal(key, content, &aad, &mut rng());
        match place {
            Place::Book(row) => {
                let (salt, mut key) = ([7; 16], [0; 32]);
                hkdf_sha256(&salt, &self.derived(labels::BOOK), &[labels::BOOK_RECORD_KEY], &mut key);
                let aad = self.aad(labels::BOOK_RECORD, &[&VERSION[..], &row.key()].concat());
                (row.key(), [&VERSION[..], &salt, &under(&key, aad)].concat())
            }
            Place::Key => {
                let place = [b"R", &VECTORS["key-record"].bytes("key-id")[..]].concat();
                let aad = self.aad(labels::KEY_RECORD, &[&VERSION[..], &place].concat());
                (place, [&VERSION[..], &under(&self.data_key, aad)].concat())
            }
            Place::TreeRoot => {
                let place = [&b"T"[..], &[0; 3]].concat();
                let sealed = under(&self.epoch_key, self.aad(labels::TREE_NODE, &place));
                (place, sealed)
            }
            Place::NextEpoch => {
                let epoch = self.epoch.to_be_bytes();
                let place = [&b"N"[..], &epoch].concat();
                (place, under(&self.epoch_key, self.aad(labels::NEXT_EPOCH_KEY, &epoch)))
            }
            Place::Image => unreachable!("it is not in the store"),
        }
    }

    /// What is in the image of the store's vector.
    fn image_content(&self) -> Vec<u8> {
        let image = VECTORS["store"].bytes("root-image");
        let aad = self.aad(labels::EPOCH_KEY, &[]);
        let opened = aead_open(&self.derived(labels::EPOCH_SEALING), &image, &aad);
        opened.expect("a good vector").to_vec()
    }
}

/// Inputs of [`authentic_record`] that a lockbox takes, or nearly.
pub(super) fn records() -> Vec<(&'static str, Vec<u8>)> {
    let authorization = wire_envelope("authorization");
    let receipt = wire_envelope("receipt");
    let erasure_record = wire_envelope("erasure-record");
    let open = wire::TransferState::Open.into();
    let outgoing = wire::OutgoingRecord {
        version: 1,
        authorization: authorization.clone(),
        state: open,
        chunk_count: 1,
        next_chunk: 1,
        key_count: 1,
        waiting_chunks: 1,
        ..Default::default()
    };
    let outgoing_chunk = wire::OutgoingChunk {
        version: 1,
        key_ids: vec![vec![4; 16]],
        receipt: receipt.clone(),
        erasure_record: erasure_record.clone(),
        erased_with_next: true,
    };
    let incoming = wire::IncomingRecord {
        version: 1,
        authorization,
        source_address: "storage-a:7401".to_owned(),
        state: open,
        chunk_count: 1,
        next_chunk: 1,
        ..Default::default()
    };
    let incoming_chunk = wire::IncomingChunk {
        version: 1,
        receipt,
        erasure_record,
    };
    let outbox = wire::OutboxRecord {
        version: 1,
        next_chunk: 1,
        unsettled_chunks: 1,
    };
    let alarm = wire::AlarmRecord {
        version: 1,
        what: "a fork".to_owned(),
        raised_at_ms: 1,
        evidence: vec![1; 8],
        warns_only: false,
    };
    let membership = wire::MembershipRecord {
        version: 1,
        cluster_id: vec![2; 32],
        brokers: vec![wire::BrokerAddress {
            address: "broker1:7400".to_owned(),
            signing_key: vec![3; 32],
        }],
    };
    let source = [
        record(6, &outgoing.encode_to_vec()),
        record(7, &outgoing_chunk.encode_to_vec()),
        record(11, &outbox.encode_to_vec()),
    ];
    let target = [
        record(9, &incoming.encode_to_vec()),
        record(10, &incoming_chunk.encode_to_vec()),
        record(12, &outbox.encode_to_vec()),
    ];
    vec![
        ("identity", record(0, &VECTORS["book-record"].bytes("yields-plaintext"))),
        ("membership", record(1, &membership.encode_to_vec())),
        ("alarm", record(3, &alarm.encode_to_vec())),
        ("outgoing-key", record(5, &AUTHORIZATION.0)),
        ("revoked", record(8, &[])),
        ("source", source.concat()),
        ("target", target.concat()),
        ("key", record(13, &VECTORS["key-record"].bytes("yields-plaintext"))),
        ("tree-root", record(14, &[0x5a; 32 * 32 + 4])),
        ("tree-root-short", record(14, &[0x5a; 32])),
        ("next-epoch", record(15, &[9; 32])),
        ("next-epoch-short", record(15, &[9; 31])),
        ("image", record(16, &StoreKeys::read().image_content())),
        ("image-of-the-last-epoch", record(16, &[0xff; 40])),
    ]
}

fn wire_envelope(name: &str) -> Option<lockbox_authz::wire::Envelope> {
    let envelope = lockbox_authz::UnverifiedEnvelope::from_bytes(&VECTORS[name].body);
    Some(envelope.expect("a good vector").to_wire())
}
