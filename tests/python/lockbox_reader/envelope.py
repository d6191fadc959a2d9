"""DSSE envelopes: SPEC section 4; the numbers are its steps."""

import hashlib
from dataclasses import dataclass

from . import evidence, keys, statements, wire
from .refused import demand

ENVELOPE = "lockbox.authz.v1.Envelope"
MAX_BYTES = 48 * 1024
MAX_SIGNATURES = 16
RULES = statements.RULES | evidence.RULES


@dataclass(frozen=True)
class Statement:
    """A payload whose signatures were verified, or, after `peek`, one of which nothing is proved."""

    fields: dict
    hash: bytes


def payload_type(name: str) -> str:
    return f"application/vnd.lockbox.{name}.v1+protobuf"


def pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def parse(data: bytes) -> dict:
    """1 to 3. An envelope within its bounds, in its one encoding."""
    demand(len(data) <= MAX_BYTES, "too-large")
    envelope = wire.decode_canonical(ENVELOPE, data)
    demand(1 <= len(envelope["signatures"]) <= MAX_SIGNATURES, "signature-count")
    return envelope


def hash_of(envelope: dict) -> bytes:
    return hashlib.sha256(pae(envelope["payload_type"], envelope["payload"])).digest()


def verify(envelope: dict, name: str, trusted: list[bytes], threshold: int) -> Statement:
    """4 to 7. Every signature is by somebody who is trusted, and there are enough of them."""
    demand(envelope["payload_type"] == payload_type(name), "wrong-payload-type")
    message = pae(envelope["payload_type"], envelope["payload"])
    by_keyid = {keys.fingerprint(key): key for key in trusted}
    signers = set()
    for signature in envelope["signatures"]:
        demand(len(signature["sig"]) == 64, "signature-length")
        signer = by_keyid.get(signature["keyid"])
        demand(signer is not None, "untrusted-signer", signature["keyid"][:64])
        demand(keys.verifies(signer, message, signature["sig"]), "bad-signature")
        demand(signer not in signers, "repeated-signer")
        signers.add(signer)
    demand(len(signers) >= threshold, "too-few-signers")
    return peek(envelope, name)


def peek(envelope: dict, name: str) -> Statement:
    """4, 6 and 7. The statement, with nothing proved about who made it."""
    demand(envelope["payload_type"] == payload_type(name), "wrong-payload-type")
    message, check = RULES[name]
    fields = wire.decode_canonical(message, envelope["payload"])
    check(fields)
    return Statement(fields, hash_of(envelope))


def verify_certificate(data: bytes, identity_key: bytes, cluster_id: bytes, lockbox_id: bytes) -> Statement:
    """SPEC section 5: a wrapping certificate speaks for one lockbox in one cluster."""
    certificate = verify(parse(data), "wrapping-certificate", [identity_key], 1)
    demand(certificate.fields["cluster_id"] == cluster_id, "other-cluster")
    demand(certificate.fields["lockbox_id"] == lockbox_id, "other-lockbox")
    return certificate
