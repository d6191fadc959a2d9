//! Session offers, receipts and erasure records: each field's rule.

mod support;

use lockbox_authz::envelope::{EnvelopeError, Statement, Verified};
use lockbox_authz::id::{Hash, KeyId, SessionId};
use lockbox_authz::labels;
use lockbox_authz::limits::{ENCAPSULATED_KEY_BYTES, MAX_CHUNK_KEYS, MAX_CHUNKS, MAX_ENVELOPE_BYTES};
use lockbox_authz::roster::Head;
use lockbox_authz::transfer::{ErasureClass, ErasureRecord, Receipt, SessionOffer};
use lockbox_authz::wire;
use prost::Message;
use support::{BROKER, CLUSTER, NOW_MS, accepted, read, refused_field, secret, sign_payload};

fn offer() -> SessionOffer {
    SessionOffer {
        cluster_id: CLUSTER,
        authorization_hash: Hash([1; 32]),
        session_id: SessionId([2; 16]),
        encapsulated_key: vec![3; ENCAPSULATED_KEY_BYTES].into_boxed_slice(),
        chunk_count: 4,
        first_chunk: 1,
        key_count: 5,
        withheld_count: 6,
        roster_head: Head {
            index: 7,
            hash: Hash([8; 32]),
        },
    }
}

fn receipt() -> Receipt {
    Receipt {
        cluster_id: CLUSTER,
        authorization_hash: Hash([1; 32]),
        session_id: SessionId([2; 16]),
        chunk: 3,
        chunk_hash: Hash([4; 32]),
        key_ids: vec![KeyId([6; 16]), KeyId([5; 16])],
        stored_at_ms: NOW_MS,
    }
}

fn erasure_record() -> ErasureRecord {
    ErasureRecord {
        cluster_id: CLUSTER,
        authorization_hash: Hash([1; 32]),
        chunk: 3,
        receipt_hash: Hash([4; 32]),
        key_ids: vec![KeyId([6; 16]), KeyId([5; 16])],
        erasure_class: ErasureClass::Software,
        erased_at_ms: NOW_MS,
    }
}

fn refused_offer(change: impl FnOnce(&mut wire::SessionOffer)) -> &'static str {
    let mut wire = offer().to_wire();
    change(&mut wire);
    refused_field::<SessionOffer>(wire)
}

fn refused_receipt(change: impl FnOnce(&mut wire::Receipt)) -> &'static str {
    let mut wire = receipt().to_wire();
    change(&mut wire);
    refused_field::<Receipt>(wire)
}

fn refused_erasure_record(change: impl FnOnce(&mut wire::ErasureRecord)) -> &'static str {
    let mut wire = erasure_record().to_wire();
    change(&mut wire);
    refused_field::<ErasureRecord>(wire)
}

fn comes_back<S: Statement + Clone + PartialEq + std::fmt::Debug>(statement: S) {
    let bytes = Verified::sign(statement.clone(), &secret(BROKER)).envelope().to_bytes();
    let read = read::<S>(&bytes, BROKER).expect("it is good");
    assert_eq!(read.statement(), &statement);
}

#[test]
fn each_is_read_as_it_was_written() {
    comes_back(offer());
    comes_back(receipt());
    for erasure_class in [ErasureClass::Software, ErasureClass::Hardware] {
        comes_back(ErasureRecord {
            erasure_class,
            ..erasure_record()
        });
    }
}

#[test]
fn rejects_a_version_that_is_not_known() {
    assert_eq!(refused_offer(|wire| wire.version = 2), "version");
    assert_eq!(refused_receipt(|wire| wire.version = 2), "version");
    assert_eq!(refused_erasure_record(|wire| wire.version = 2), "version");
}

#[test]
fn rejects_a_cluster_id_of_another_length() {
    assert_eq!(refused_offer(|wire| wire.cluster_id.clear()), "cluster_id");
    assert_eq!(refused_receipt(|wire| wire.cluster_id.push(0)), "cluster_id");
    assert_eq!(refused_erasure_record(|wire| wire.cluster_id.clear()), "cluster_id");
}

#[test]
fn rejects_an_authorization_hash_of_another_length() {
    assert_eq!(
        refused_offer(|wire| wire.authorization_hash.clear()),
        "authorization_hash"
    );
    assert_eq!(
        refused_receipt(|wire| wire.authorization_hash.push(0)),
        "authorization_hash"
    );
    assert_eq!(
        refused_erasure_record(|wire| wire.authorization_hash.clear()),
        "authorization_hash"
    );
}

#[test]
fn rejects_a_session_id_of_another_length() {
    assert_eq!(refused_offer(|wire| wire.session_id.clear()), "session_id");
    assert_eq!(refused_receipt(|wire| wire.session_id.push(0)), "session_id");
}

#[test]
fn rejects_an_encapsulated_key_of_another_length() {
    assert_eq!(
        refused_offer(|wire| wire.encapsulated_key.truncate(1_119)),
        "encapsulated_key"
    );
    assert_eq!(refused_offer(|wire| wire.encapsulated_key.push(0)), "encapsulated_key");
}

#[test]
fn rejects_a_session_of_no_or_too_many_chunks() {
    assert_eq!(refused_offer(|wire| wire.chunk_count = 0), "chunk_count");
    assert_eq!(refused_offer(|wire| wire.chunk_count = MAX_CHUNKS + 1), "chunk_count");
    let mut wire = offer().to_wire();
    wire.chunk_count = MAX_CHUNKS;
    accepted::<SessionOffer>(wire);
}

#[test]
fn rejects_a_session_that_begins_after_its_last_chunk() {
    assert_eq!(refused_offer(|wire| wire.first_chunk = 5), "first_chunk");
    let mut wire = offer().to_wire();
    wire.first_chunk = wire.chunk_count;
    accepted::<SessionOffer>(wire);
}

#[test]
fn rejects_an_offer_without_a_roster_head() {
    assert_eq!(refused_offer(|wire| wire.roster_head = None), "roster_head");
    let short = wire::RosterHead {
        index: 1,
        hash: vec![0; 31],
    };
    assert_eq!(refused_offer(|wire| wire.roster_head = Some(short)), "roster_head");
}

#[test]
fn rejects_a_chunk_that_no_transfer_has() {
    assert_eq!(refused_receipt(|wire| wire.chunk = MAX_CHUNKS), "chunk");
    assert_eq!(refused_erasure_record(|wire| wire.chunk = u32::MAX), "chunk");
    let mut wire = receipt().to_wire();
    wire.chunk = MAX_CHUNKS - 1;
    accepted::<Receipt>(wire);
}

#[test]
fn rejects_a_chunk_hash_of_another_length() {
    assert_eq!(refused_receipt(|wire| wire.chunk_hash.truncate(31)), "chunk_hash");
}

#[test]
fn rejects_a_receipt_hash_of_another_length() {
    assert_eq!(
        refused_erasure_record(|wire| wire.receipt_hash.truncate(31)),
        "receipt_hash"
    );
}

#[test]
fn rejects_no_key_ids() {
    assert_eq!(refused_receipt(|wire| wire.key_ids.clear()), "key_ids");
    assert_eq!(refused_erasure_record(|wire| wire.key_ids.clear()), "key_ids");
}

#[test]
fn rejects_too_many_key_ids() {
    let many = vec![vec![7; 16]; MAX_CHUNK_KEYS + 1];
    assert_eq!(refused_receipt(|wire| wire.key_ids = many.clone()), "key_ids");
    assert_eq!(refused_erasure_record(|wire| wire.key_ids = many), "key_ids");
}

#[test]
fn rejects_a_key_id_of_another_length() {
    assert_eq!(refused_receipt(|wire| wire.key_ids[1].truncate(15)), "key_ids");
    assert_eq!(refused_erasure_record(|wire| wire.key_ids[0].push(0)), "key_ids");
}

#[test]
fn rejects_times_before_1970() {
    assert_eq!(refused_receipt(|wire| wire.stored_at_ms = 0), "stored_at_ms");
    assert_eq!(refused_erasure_record(|wire| wire.erased_at_ms = -5), "erased_at_ms");
}

#[test]
fn rejects_an_erasure_class_that_is_not_known() {
    for class in [0, 3, -1] {
        assert_eq!(
            refused_erasure_record(|wire| wire.erasure_class = class),
            "erasure_class"
        );
    }
}

/// A full chunk must be one that can be acknowledged.
#[test]
fn the_receipt_of_a_full_chunk_fits_in_an_envelope() {
    let receipt = Receipt {
        key_ids: vec![KeyId([7; 16]); MAX_CHUNK_KEYS],
        ..receipt()
    };
    let bytes = Verified::sign(receipt, &secret(BROKER)).envelope().to_bytes();
    assert!(bytes.len() < MAX_ENVELOPE_BYTES / 2, "{} bytes", bytes.len());
    assert!(read::<Receipt>(&bytes, BROKER).is_ok());
}

/// A source that took one for the other would erase on its own word.
#[test]
fn rejects_an_erasure_record_as_a_receipt() {
    let bytes = Verified::sign(erasure_record(), &secret(BROKER)).envelope().to_bytes();
    assert_eq!(
        read::<Receipt>(&bytes, BROKER).err(),
        Some(EnvelopeError::WrongPayloadType {
            expected: labels::RECEIPT
        })
    );
    let renamed = sign_payload(labels::RECEIPT, erasure_record().to_wire().encode_to_vec(), &[BROKER]);
    assert!(read::<Receipt>(&renamed.encode_to_vec(), BROKER).is_err());
}
