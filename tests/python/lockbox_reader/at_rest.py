"""What a lockbox keeps: SPEC section 9."""

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from . import wire
from .hpke import hkdf_expand, hkdf_extract
from .refused import Refused, demand

_SEALED = "lockbox.sealed.v1."
_PASSPHRASE, _KEY_FILE = 1, 2
_MAX_MEMORY_KIB, _MAX_PASSES = 4 * 1024 * 1024, 64
FAN_OUT, LEAF_DEPTH = 32, 3


def open_sealed(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """nonce ‖ ciphertext ‖ tag, by ChaCha20-Poly1305 (RFC 8439)."""
    demand(len(sealed) >= 12 + 16, "does-not-open")
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], aad)
    except InvalidTag as error:
        raise Refused("does-not-open") from error


def derive(salt: bytes, key: bytes, label: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return hkdf_expand(hkdf_extract(salt, key), label, 32)


def parse_header(data: bytes) -> dict:
    try:
        header = wire.decode_canonical(_SEALED + "Header", data)
    except Refused as refused:
        raise Refused("malformed") from refused
    demand(header["version"] == 1, "malformed")
    demand(len(header["store_id"]) == 16 and len(header["lockbox_id"]) == 16, "malformed")
    demand(1 <= len(header["slots"]) <= 8, "malformed")
    return header


def open_header(data: bytes, passphrase: bytes | None, key_file: bytes | None) -> tuple[int, bytes]:
    """9.1 The number of the slot that opens, and the root key."""
    header = parse_header(data)
    if passphrase is not None:
        kind, secret, least, most = _PASSPHRASE, passphrase, 12, 1_024
    else:
        kind, secret, least, most = _KEY_FILE, key_file, 32, 65_536
    demand(least <= len(secret) <= most, "length")
    refused = Refused("does-not-open")
    for slot in header["slots"]:
        if slot["kind"] != kind:
            continue
        try:
            return slot["slot_id"], _open_slot(header, slot, secret)
        except Refused as error:
            # A damaged slot does not shut the others.
            refused = error if error.reason == "cost" else refused
    raise refused


def _open_slot(header: dict, slot: dict, secret: bytes) -> bytes:
    if slot["kind"] == _PASSPHRASE:
        key = _argon2id(slot, secret)
    else:
        key = derive(slot["salt"], secret, b"lockbox/v1/slot/key-file")
    without_slots = wire.encode(_SEALED + "Header", {**header, "slots": []})
    without_root = wire.encode(_SEALED + "SealSlot", {**slot, "sealed_root": b""})
    aad = b"lockbox/v1/slot/root" + wire.length_delimited(without_slots) + wire.length_delimited(without_root)
    root = open_sealed(key, slot["sealed_root"], aad)
    demand(len(root) == 32, "does-not-open")
    return root


def _argon2id(slot: dict, passphrase: bytes) -> bytes:
    memory, passes, lanes, salt = slot["memory_kib"], slot["passes"], slot["lanes"], slot["salt"]
    demand(memory <= _MAX_MEMORY_KIB and 1 <= passes <= _MAX_PASSES, "cost")
    demand(1 <= lanes and 8 * lanes <= memory and len(salt) >= 8, "cost")
    kdf = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory)
    return kdf.derive(passphrase)


class Keys:
    """What hangs on a root key."""

    def __init__(self, root_key: bytes, store_id: bytes):
        self._store_id = store_id
        self._book = derive(store_id, root_key, b"lockbox/v1/derive/book")
        self._epoch_sealing = derive(store_id, root_key, b"lockbox/v1/derive/epoch-sealing")
        self._digest = derive(store_id, root_key, b"lockbox/v1/derive/digest")
        self.placing = derive(store_id, root_key, b"lockbox/v1/derive/placing")

    def open_book_record(self, place: bytes, stored: bytes) -> bytes:
        """9.2 version (8) ‖ salt (16) ‖ sealed."""
        demand(len(stored) >= 8 + 16, "does-not-open")
        version, salt, sealed = stored[:8], stored[8:24], stored[24:]
        key = derive(salt, self._book, b"lockbox/v1/derive/record")
        return open_sealed(key, sealed, b"lockbox/v1/seal/book-record" + self._store_id + version + place)

    def open_image(self, image: bytes) -> tuple[int, bytes]:
        """The epoch and its key."""
        opened = open_sealed(self._epoch_sealing, image, b"lockbox/v1/seal/epoch-key" + self._store_id)
        demand(len(opened) == 40, "does-not-open")
        return int.from_bytes(opened[:8], "big"), opened[8:]

    def open_tree(self, epoch: int, epoch_key: bytes, rows: dict[bytes, bytes]) -> dict[tuple[int, int], list[bytes]]:
        """9.3 Takes the rows of the nodes that have one: by depth and number, the keys of their children."""
        nodes = {}
        waiting = [(0, 0, epoch_key)] if epoch > 1 else []
        while waiting:
            depth, number, key = waiting.pop()
            place = b"T" + bytes([depth]) + number.to_bytes(2, "big")
            demand(place in rows, "does-not-open")
            opened = open_sealed(key, rows.pop(place), b"lockbox/v1/seal/tree-node" + self._store_id + place)
            demand(len(opened) == FAN_OUT * 32 + 4, "malformed")
            keys = [opened[start : start + 32] for start in range(0, FAN_OUT * 32, 32)]
            stored = int.from_bytes(opened[-4:], "big")
            demand(depth + 1 < LEAF_DEPTH or stored == 0, "malformed")
            nodes[depth, number] = keys
            waiting += [
                (depth + 1, number * FAN_OUT + index, keys[index]) for index in range(FAN_OUT) if stored >> index & 1
            ]
        return nodes

    def leaf_key(self, epoch_key: bytes, nodes: dict[tuple[int, int], list[bytes]], leaf: int) -> bytes:
        """9.3 By the nodes that have rows, and derived below them."""
        key = epoch_key
        for depth in range(LEAF_DEPTH):
            number = leaf // FAN_OUT ** (LEAF_DEPTH - depth)
            child = leaf // FAN_OUT ** (LEAF_DEPTH - depth - 1)
            if (depth, number) in nodes:
                key = nodes[depth, number][child % FAN_OUT]
            else:
                place = bytes([depth + 1]) + child.to_bytes(2, "big")
                key = derive(self._store_id, key, b"lockbox/v1/derive/child" + place)
        return key

    def check_anchor(self, rows: dict[bytes, bytes]) -> dict:
        """9.9 The anchor's record, which must fit all rows of the store that it spans."""
        anchor = wire.decode_canonical(_SEALED + "AnchorRecord", self.open_book_record(b"A", rows[b"A"]))
        spanned = {place: stored for place, stored in rows.items() if place[:1] not in (b"A", b"N", b"T", b"W")}
        total = 0
        for place, stored in spanned.items():
            message = len(place).to_bytes(2, "big") + place + stored
            total += int.from_bytes(hmac.digest(self._digest, message, "sha256"), "little")
        demand(anchor["digest"] == (total % 2**256).to_bytes(32, "little"), "does-not-open")
        demand(anchor["records"] == len(spanned), "does-not-open")
        demand(anchor["keys"] == sum(place[:1] == b"R" for place in spanned), "does-not-open")
        return anchor


def leaf_of(placing: bytes, key_id: bytes) -> int:
    """9.3 Where a key's data-encryption key is."""
    return int.from_bytes(derive(placing, key_id, b"lockbox/v1/derive/leaf")[:2], "big") >> 1


def open_key_record(
    store_id: bytes, placing: bytes, leaf_key: bytes, key_id: bytes, data_key: bytes, stored: bytes
) -> tuple[bytes, bytes]:
    """9.3 The data-encryption key, and the key record that it seals."""
    place = b"W" + leaf_of(placing, key_id).to_bytes(2, "big") + key_id
    opened = open_sealed(leaf_key, data_key, b"lockbox/v1/seal/data-key" + store_id + place)
    demand(len(opened) == 32 and len(stored) >= 8, "does-not-open")
    aad = b"lockbox/v1/seal/key-record" + store_id + stored[:8] + b"R" + key_id
    return opened, open_sealed(opened, stored[8:], aad)


def parse_rows(data: bytes) -> dict[bytes, bytes]:
    """The rows of a `store` vector: length and key, length and value."""
    parts, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        parts.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    return dict(zip(parts[::2], parts[1::2], strict=True))


def decode_key(record: bytes) -> dict:
    key = wire.decode_canonical(_SEALED + "KeyRecord", record)
    if key["lineage"] is not None:
        _check_lineage(key["key_id"], key["lineage"])
    if key["destruction"] is not None:
        _check_destruction(key["destruction"])
    return key


def _check_lineage(key_id: bytes, lineage: dict) -> None:
    """8.5 What the relation says is not said again, nor contradicted."""
    parent, lies_on = lineage["parent_key_id"], lineage["lies_on_key_id"]
    demand(len(parent) == 16 and parent != key_id, "field")
    demand(1 <= len(lineage["relation"]) <= 32, "field")
    if lies_on:
        demand(lineage["relation"] not in ("layer", "rekey"), "field")
        demand(len(lies_on) == 16 and lies_on not in (parent, key_id), "field")


def _check_destruction(destruction: dict) -> None:
    """13.9 The one origin is a rotation."""
    demand(len(destruction["rotation"]) == 16, "field")
    demand(destruction["scheduled_at_ms"] > 0, "field")


def decode_self(record: bytes) -> dict:
    return wire.decode_canonical(_SEALED + "SelfRecord", record)


def decode_membership(record: bytes) -> dict:
    return wire.decode_canonical(_SEALED + "MembershipRecord", record)


def decode_chunk(plaintext: bytes) -> list[dict]:
    return wire.decode_canonical(_SEALED + "ChunkPayload", plaintext)["keys"]
