"""An independent implementation says of each vector what it states, and the vectors tell one story."""

import hashlib

import pytest
from cryptography.hazmat.primitives import hpke as library
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from lockbox_reader import at_rest, envelope, hpke, vector_file, wire
from verify_vectors import judge

VECTORS = vector_file.read_all()


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name):
    vector = VECTORS[name]
    assert judge(vector) == vector.stated, vector.value("about")


def test_there_are_vectors_and_most_must_be_refused():
    accepted = sum(vector.stated == "accepted" for vector in VECTORS.values())
    assert len(VECTORS) > 200 and accepted * 3 < len(VECTORS)


def payload(name: str) -> envelope.Statement:
    vector = VECTORS[name]
    return envelope.peek(envelope.parse(vector.body), vector.value("statement"))


def test_the_accepted_vectors_are_one_transfer():
    """Each statement names the one before it, and the chunk is sealed to the key that was certified."""
    authorization, offer = payload("authorization"), payload("session-offer")
    receipt, erasure_record = payload("receipt"), payload("erasure-record")
    chunk = VECTORS["chunk"]
    for later in (offer, receipt, erasure_record):
        assert later.fields["authorization_hash"] == authorization.hash
        assert later.fields["cluster_id"] == authorization.fields["cluster_id"]
    assert offer.fields["encapsulated_key"] == chunk.bytes("encapsulated-key")
    assert offer.fields["session_id"] == receipt.fields["session_id"] == chunk.bytes("session-id")
    assert receipt.fields["chunk_hash"] == hashlib.sha256(chunk.body).digest()
    assert receipt.fields["key_ids"] == erasure_record.fields["key_ids"] == [chunk.bytes("yields-key-id")]
    assert authorization.fields["selection"]["ids"]["ids"] == receipt.fields["key_ids"]
    assert erasure_record.fields["receipt_hash"] == receipt.hash
    source, target = authorization.fields["source"], authorization.fields["target"]
    assert (source["lockbox_id"], target["lockbox_id"]) == (chunk.bytes("source"), chunk.bytes("target"))
    assert VECTORS["receipt"].bytes("trusted") == target["identity_key"]
    assert VECTORS["erasure-record"].bytes("trusted") == source["identity_key"]


def test_the_authorization_carries_the_targets_wrapping_certificate():
    authorization = payload("authorization").fields
    embedded = wire.encode(envelope.ENVELOPE, authorization["target_wrapping_certificate"])
    assert embedded == VECTORS["wrapping-certificate"].body
    target = authorization["target"]
    certificate = envelope.verify_certificate(
        embedded, target["identity_key"], authorization["cluster_id"], target["lockbox_id"]
    )
    assert certificate.fields["wrapping_key"] == VECTORS["chunk"].bytes("wrapping-key")
    assert certificate.fields["wrapping_key"] == hpke.XWingKey(VECTORS["chunk"].bytes("wrapping-seed")).public


def test_the_key_arrives_with_every_attribute_that_it_had_at_rest():
    (arrived,) = at_rest.decode_chunk(VECTORS["chunk"].bytes("yields-plaintext"))
    assert arrived == at_rest.decode_key(VECTORS["key-record"].bytes("yields-plaintext"))
    assert arrived["transfer_policy"]["deny_copy"] == 1
    assert [label["key"] for label in arrived["labels"]] == ["env", "tier"]


def test_our_hpke_is_the_librarys():
    """What `cryptography` seals by its own HPKE opens by the key schedule that is written out here."""
    chunk = VECTORS["chunk"]
    public = chunk.bytes("wrapping-key")
    recipient = library.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:1184]), X25519PublicKey.from_public_bytes(public[1184:])
    )
    suite = library.Suite(library.KEM.MLKEM768_X25519, library.KDF.HKDF_SHA256, library.AEAD.CHACHA20_POLY1305)
    sealed = suite.encrypt(b"a volume key", recipient, info=b"info")
    encapsulated_key, ciphertext = sealed[:1120], sealed[1120:]
    shared_secret = hpke.XWingKey(chunk.bytes("wrapping-seed")).decapsulate(encapsulated_key)
    assert hpke.ReceiverContext(shared_secret, b"info").open(0, b"", ciphertext) == b"a volume key"
