"""Reads every vector under tests/vectors with an independent implementation, and compares the verdicts.

    target/python-venv/bin/python tests/python/verify_vectors.py
"""

import sys

from lockbox_reader import at_rest, envelope, hpke, join, keys, notice, roster, vector_file
from lockbox_reader.refused import Refused
from lockbox_reader.vector_file import Vector


def judge(vector: Vector) -> str:
    """`accepted`, or the reason of the refusal.

    An accepted vector yields what its headers say; an AssertionError tells that it does not.
    """
    try:
        JUDGES[vector.kind](vector)
    except Refused as refused:
        return refused.reason
    return "accepted"


def yields(vector: Vector, name: str, found: bytes | int) -> None:
    """Compares what was found with what an accepted vector says. A vector that should be refused says nothing."""
    if vector.stated == "accepted":
        expected = vector.value(f"yields-{name}")
        assert expected == (str(found) if isinstance(found, int) else found.hex()), f"{vector.name}: {name}"


def judge_envelope(vector: Vector) -> None:
    trusted = [bytes.fromhex(key) for key in vector.all("trusted")]
    parsed = envelope.parse(vector.body)
    statement = envelope.verify(parsed, vector.value("statement"), trusted, vector.number("threshold"))
    yields(vector, "hash", statement.hash)


def judge_certificate(vector: Vector) -> None:
    expected = [vector.bytes(name) for name in ("trusted", "cluster-id", "lockbox-id")]
    yields(vector, "hash", envelope.verify_certificate(vector.body, *expected).hash)


def judge_notice(vector: Vector) -> None:
    read = roster.read(roster.frames(vector.bytes("roster")), vector.bytes("cluster-id"))
    yields(vector, "hash", notice.verify(vector.body, read).hash)


def judge_roster(vector: Vector) -> None:
    read = roster.read(roster.frames(vector.body), vector.bytes("cluster-id"))
    index, head = read.head
    yields(vector, "head-index", index)
    yields(vector, "head-hash", head)
    brokers = [broker["signing_key"].hex() for broker in read.brokers if not broker["retired"]]
    lockboxes = [
        lockbox["identity_key"].hex() for _, lockbox in sorted(read.lockboxes.items()) if not lockbox["retired"]
    ]
    assert brokers == vector.all("yields-broker") and lockboxes == vector.all("yields-lockbox"), vector.name


def judge_join_token(vector: Vector) -> None:
    token = join.read(vector.body)
    yields(vector, "cluster-id", token["cluster_id"])
    yields(vector, "broker-key", token["broker_key"])
    yields(vector, "join-key", token["join_key"])
    assert token["broker_address"] == vector.value("yields-broker-address")


def judge_chunk(vector: Vector) -> None:
    bound = [vector.bytes(name) for name in ("authorization-hash", "session-id", "source", "target")]
    info = hpke.session_info(*bound)
    aad = hpke.chunk_aad(vector.number("chunk"), vector.number("chunk-count"))
    assert (info, aad) == (vector.bytes("info"), vector.bytes("aad")), vector.name
    key = hpke.XWingKey(vector.bytes("wrapping-seed"))
    context = hpke.ReceiverContext(key.decapsulate(vector.bytes("encapsulated-key")), info)
    sequence = 0
    if vector.has("earlier-aad"):
        context.open(sequence, vector.bytes("earlier-aad"), vector.bytes("earlier-ciphertext"))
        sequence += 1
    plaintext = context.open(sequence, aad, vector.body)
    yields(vector, "plaintext", plaintext)
    assert key.public == vector.bytes("wrapping-key")
    (record,) = at_rest.decode_chunk(plaintext)
    yields(vector, "key-id", record["key_id"])
    yields(vector, "material", record["material"])


def judge_header(vector: Vector) -> None:
    passphrase = vector.value("passphrase").encode() if vector.has("passphrase") else None
    key_file = vector.bytes("key-file") if vector.has("key-file") else None
    slot, root_key = at_rest.open_header(vector.body, passphrase, key_file)
    yields(vector, "slot", slot)
    yields(vector, "root-key", root_key)


def store_keys(vector: Vector) -> at_rest.Keys:
    return at_rest.Keys(vector.bytes("root-key"), vector.bytes("store-id"))


def judge_root_image(vector: Vector) -> None:
    epoch, key = store_keys(vector).open_image(vector.body)
    yields(vector, "epoch", epoch)
    yields(vector, "epoch-key", key)


def judge_book_record(vector: Vector) -> None:
    plaintext = store_keys(vector).open_book_record(vector.bytes("place"), vector.body)
    yields(vector, "plaintext", plaintext)


def judge_key_record(vector: Vector) -> None:
    bound = [vector.bytes(name) for name in ("store-id", "placing-key", "leaf-key", "key-id", "sealed-data-key")]
    data_key, record = at_rest.open_key_record(*bound, vector.body)
    at_rest.decode_key(record)
    yields(vector, "data-key", data_key)
    yields(vector, "plaintext", record)


def judge_store(vector: Vector) -> None:
    """From the root key to every single row of a store."""
    opened = store_keys(vector)
    epoch, epoch_key = opened.open_image(vector.bytes("root-image"))
    rows = at_rest.parse_rows(vector.body)
    opened.check_anchor(rows)
    rows.pop(b"A")
    nodes = opened.open_tree(epoch, epoch_key, rows)
    # What leads on from an epoch that is over opens no more.
    assert all(int.from_bytes(place[1:], "big") < epoch for place in list(rows) if place[:1] == b"N" and rows.pop(place))
    data_keys = {place[3:]: rows.pop(place) for place in list(rows) if place[:1] == b"W"}
    records = {place[1:]: rows.pop(place) for place in list(rows) if place[:1] == b"R"}
    assert data_keys.keys() == records.keys()
    (key_id,) = records
    leaf_key = opened.leaf_key(epoch_key, nodes, at_rest.leaf_of(opened.placing, key_id))
    store_id = vector.bytes("store-id")
    _, record = at_rest.open_key_record(
        store_id, opened.placing, leaf_key, key_id, data_keys[key_id], records[key_id]
    )
    yields(vector, "key-id", at_rest.decode_key(record)["key_id"])
    yields(vector, "material", at_rest.decode_key(record)["material"])
    # All that is left is the book.
    book = {place: opened.open_book_record(place, stored) for place, stored in rows.items()}
    yields(vector, "identity-key", keys.public_of(at_rest.decode_self(book[b"i"])["identity_seed"]))
    chain = [envelope.parse(book[place]) for place in sorted(book) if place[:1] == b"e"]
    read = roster.read(chain, at_rest.decode_membership(book[b"m"])["cluster_id"])
    assert read.head[0] == len(chain) - 1


JUDGES = {
    "book-record": judge_book_record,
    "chunk": judge_chunk,
    "compromise-notice": judge_notice,
    "envelope": judge_envelope,
    "header": judge_header,
    "join-token": judge_join_token,
    "key-record": judge_key_record,
    "root-image": judge_root_image,
    "roster": judge_roster,
    "store": judge_store,
    "wrapping-certificate": judge_certificate,
}


def main() -> int:
    vectors = vector_file.read_all()
    wrong = 0
    for name, vector in vectors.items():
        verdict = judge(vector)
        if verdict != vector.stated:
            wrong += 1
            print(f"{name}: {verdict}, and it states {vector.stated}", file=sys.stderr)
    print(f"{len(vectors) - wrong} of {len(vectors)} vectors are as they state")
    return 1 if wrong or not vectors else 0


if __name__ == "__main__":
    sys.exit(main())
