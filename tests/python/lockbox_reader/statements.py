"""The rules of the fields of every statement, as the comments in proto/lockbox/authz/v1 state them."""

import re
import unicodedata

from . import keys
from .refused import demand

_DAY_MS = 24 * 60 * 60 * 1_000
# They print as nothing, and break a line or turn its direction.
_MOVES_TEXT = frozenset(
    map(chr, [0x61C, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF])
)
_LABEL_KEY = re.compile(r"[a-z0-9./_-]{1,63}", re.ASCII)


def field(kept: bool, name: str) -> None:
    demand(kept, "field", name)


def text(fields: dict, name: str, least: int, most: int) -> None:
    value = fields[name]
    field(least <= len(value) <= most, name)
    field(not any(unicodedata.category(character) == "Cc" or character in _MOVES_TEXT for character in value), name)


def length(fields: dict, name: str, expected: int) -> None:
    field(len(fields[name]) == expected, name)


def version(fields: dict) -> None:
    field(fields["version"] == 1, "version")


def time(fields: dict, name: str) -> None:
    field(fields[name] > 0, name)


def key(fields: dict, name: str) -> None:
    field(keys.is_key(fields[name]), name)


def present(fields: dict, name: str) -> dict:
    field(fields[name] is not None, name)
    return fields[name]


def labels(found: list[dict]) -> None:
    field(len(found) <= 32, "labels")
    names = [label["key"] for label in found]
    field(names == sorted(set(names)), "labels")
    for label in found:
        field(_LABEL_KEY.fullmatch(label["key"]) is not None, "label key")
        text(label, "value", 0, 63)


def ascending(items: list[bytes]) -> bool:
    return all(a < b for a, b in zip(items, items[1:]))


def head(fields: dict) -> None:
    length(present(fields, "roster_head"), "hash", 32)


def party(fields: dict, name: str) -> dict:
    found = present(fields, name)
    length(found, "lockbox_id", 16)
    key(found, "identity_key")
    return found


def selection(fields: dict) -> None:
    chosen = present(fields, "selection")
    if chosen["ids"] is not None:
        ids = chosen["ids"]["ids"]
        field(1 <= len(ids) <= 1_024, "selection")
        field(all(len(id) == 16 for id in ids) and ascending(ids), "selection")
    elif chosen["labels"] is not None:
        labels(chosen["labels"]["labels"])
        field(len(chosen["labels"]["labels"]) > 0, "selection")
    else:
        field(chosen["all"] is not None, "selection")


def authorization(fields: dict) -> None:
    version(fields)
    length(fields, "authorization_id", 16)
    length(fields, "cluster_id", 32)
    text(fields, "request_id", 1, 128)
    text(fields, "requester", 1, 256)
    text(fields, "reason", 0, 256)
    source, target = party(fields, "source"), party(fields, "target")
    field(source["lockbox_id"] != target["lockbox_id"], "target")
    field(source["identity_key"] != target["identity_key"], "target")
    certificate = present(fields, "target_wrapping_certificate")
    field(1 <= len(certificate["signatures"]) <= 16, "target_wrapping_certificate")
    field(fields["operation"] in (1, 2), "operation")
    selection(fields)
    time(fields, "not_before_ms")
    time(fields, "expires_at_ms")
    field(0 < fields["expires_at_ms"] - fields["not_before_ms"] <= _DAY_MS, "expires_at_ms")
    head(fields)


def revocation(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "authorization_id", 16)
    text(fields, "reason", 0, 256)
    time(fields, "expires_at_ms")


def compromise_notice(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "notice_id", 16)
    time(fields, "issued_at_ms")
    ids = fields["material_ids"]
    field(1 <= len(ids) <= 1_024, "material_ids")
    field(all(len(id) == 16 for id in ids) and ascending(ids), "material_ids")
    text(fields, "reason", 0, 256)


def wrapping_certificate(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "lockbox_id", 16)
    field(fields["kem_id"] == 0x647A, "kem_id")
    length(fields, "wrapping_key", 1_216)
    field(fields["generation"] > 0, "generation")


def session_offer(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "authorization_hash", 32)
    length(fields, "session_id", 16)
    length(fields, "encapsulated_key", 1_120)
    field(1 <= fields["chunk_count"] <= 65_536, "chunk_count")
    field(fields["first_chunk"] <= fields["chunk_count"], "first_chunk")
    head(fields)


def chunk_keys(fields: dict) -> None:
    field(fields["chunk"] < 65_536, "chunk")
    field(1 <= len(fields["key_ids"]) <= 1_024, "key_ids")
    field(all(len(id) == 16 for id in fields["key_ids"]), "key_ids")


def receipt(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "authorization_hash", 32)
    length(fields, "session_id", 16)
    length(fields, "chunk_hash", 32)
    chunk_keys(fields)
    time(fields, "stored_at_ms")


def erasure_record(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "authorization_hash", 32)
    length(fields, "receipt_hash", 32)
    chunk_keys(fields)
    field(fields["erasure_class"] in (1, 2), "erasure_class")
    time(fields, "erased_at_ms")


def lockbox(fields: dict) -> None:
    length(fields, "lockbox_id", 16)
    text(fields, "name", 1, 64)
    key(fields, "identity_key")
    labels(fields["labels"])


def join_request(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    lockbox(present(fields, "lockbox"))
    time(fields, "requested_at_ms")


def join_token(fields: dict) -> None:
    version(fields)
    text(fields, "broker_address", 1, 262)
    length(fields, "cluster_id", 32)
    key(fields, "broker_key")


def admins(found: dict) -> None:
    field(1 <= len(found["keys"]) <= 16, "admins")
    field(all(keys.is_key(admin) for admin in found["keys"]) and ascending(found["keys"]), "admins")
    field(1 <= found["threshold"] <= len(found["keys"]), "admin threshold")
    field(1 <= found["broker_threshold"] <= 8, "broker threshold")


def genesis(fields: dict) -> None:
    text(fields, "cluster_name", 1, 64)
    admins(present(fields, "admins"))
    length(fields, "nonce", 32)


def retire_lockbox(fields: dict) -> None:
    length(fields, "lockbox_id", 16)
    text(fields, "reason", 0, 256)


def admit_broker(fields: dict) -> None:
    text(fields, "name", 1, 64)
    key(fields, "signing_key")


def retire_broker(fields: dict) -> None:
    key(fields, "signing_key")
    text(fields, "reason", 0, 256)


def allow_join(fields: dict) -> None:
    key(fields, "join_key")
    time(fields, "expires_at_ms")
    labels(fields["labels"])
    text(fields, "name", 0, 64)


CHANGES = {
    "genesis": genesis,
    "admit_lockbox": lambda fields: lockbox(present(fields, "lockbox")),
    "retire_lockbox": retire_lockbox,
    "admit_broker": admit_broker,
    "retire_broker": retire_broker,
    "change_admins": lambda fields: admins(present(fields, "admins")),
    "allow_join": allow_join,
    "revoke_join": lambda fields: key(fields, "join_key"),
}


def change_of(fields: dict) -> str:
    """Which change an entry makes."""
    made = [name for name in CHANGES if fields[name] is not None]
    field(len(made) == 1, "change")
    return made[0]


def roster_entry(fields: dict) -> None:
    version(fields)
    time(fields, "signed_at_ms")
    change = change_of(fields)
    CHANGES[change](fields[change])
    field((change == "genesis") == (fields["index"] == 0), "index")
    expected = 0 if change == "genesis" else 32
    length(fields, "cluster_id", expected)
    length(fields, "previous", expected)


_AUTHZ = "lockbox.authz.v1."

RULES = {
    "authorization": (_AUTHZ + "Authorization", authorization),
    "compromise-notice": (_AUTHZ + "CompromiseNotice", compromise_notice),
    "erasure-record": (_AUTHZ + "ErasureRecord", erasure_record),
    "join-request": (_AUTHZ + "JoinRequest", join_request),
    "receipt": (_AUTHZ + "Receipt", receipt),
    "revocation": (_AUTHZ + "Revocation", revocation),
    "roster-entry": (_AUTHZ + "RosterEntry", roster_entry),
    "session-offer": (_AUTHZ + "SessionOffer", session_offer),
    "wrapping-certificate": (_AUTHZ + "WrappingCertificate", wrapping_certificate),
}
"""The message and the check of each statement, by the NAME of its payload type."""
