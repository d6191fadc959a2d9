"""HPKE in base mode (RFC 9180) with X-Wing, HKDF-SHA256 and ChaCha20-Poly1305: SPEC section 7.3.

The key schedule and X-Wing's combiner are written out; ML-KEM-768, X25519 and the cipher are those of `cryptography`.
"""

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .refused import Refused, demand

KEM_X_WING, KDF_HKDF_SHA256, AEAD_CHACHA20_POLY1305 = 0x647A, 0x0001, 0x0003
SUITE_ID = b"HPKE" + b"".join(i.to_bytes(2, "big") for i in (KEM_X_WING, KDF_HKDF_SHA256, AEAD_CHACHA20_POLY1305))

_ML_KEM_CIPHERTEXT_BYTES = 1_088
_ENCAPSULATED_KEY_BYTES = 1_120
_X_WING_LABEL = b"\\.//^\\"


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """RFC 5869, section 2.2."""
    return hmac.digest(salt or bytes(32), ikm, hashlib.sha256)


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2.3."""
    okm = block = b""
    counter = 1
    while len(okm) < length:
        block = hmac.digest(prk, block + info + bytes([counter]), hashlib.sha256)
        okm += block
        counter += 1
    return okm[:length]


class XWingKey:
    """A decapsulation key: draft-connolly-cfrg-xwing-kem, section 5.2."""

    def __init__(self, seed: bytes):
        expanded = hashlib.shake_256(seed).digest(96)
        self._sk_m = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self._sk_x = X25519PrivateKey.from_private_bytes(expanded[64:])

    @property
    def public(self) -> bytes:
        """The encapsulation key, 1,216 bytes."""
        return self._sk_m.public_key().public_bytes_raw() + self._pk_x

    @property
    def _pk_x(self) -> bytes:
        return self._sk_x.public_key().public_bytes_raw()

    def decapsulate(self, encapsulated_key: bytes) -> bytes:
        """Sections 5.3 and 5.5: the combiner."""
        demand(len(encapsulated_key) == _ENCAPSULATED_KEY_BYTES, "does-not-open")
        ct_m, ct_x = encapsulated_key[:_ML_KEM_CIPHERTEXT_BYTES], encapsulated_key[_ML_KEM_CIPHERTEXT_BYTES:]
        ss_m = self._sk_m.decapsulate(ct_m)
        ss_x = self._sk_x.exchange(X25519PublicKey.from_public_bytes(ct_x))
        return hashlib.sha3_256(ss_m + ss_x + ct_x + self._pk_x + _X_WING_LABEL).digest()


class ReceiverContext:
    """RFC 9180, section 5.1: `KeySchedule(mode_base, shared_secret, info, "", "")`."""

    def __init__(self, shared_secret: bytes, info: bytes):
        mode_base = b"\x00"
        context = mode_base + _labeled_extract(b"", b"psk_id_hash", b"") + _labeled_extract(b"", b"info_hash", info)
        secret = _labeled_extract(shared_secret, b"secret", b"")
        self._cipher = ChaCha20Poly1305(_labeled_expand(secret, b"key", context, 32))
        self._base_nonce = _labeled_expand(secret, b"base_nonce", context, 12)

    def open(self, sequence: int, aad: bytes, ciphertext: bytes) -> bytes:
        """Section 5.2. The nonce is the base nonce, with the sequence number laid over it."""
        number = sequence.to_bytes(12, "big")
        nonce = bytes(a ^ b for a, b in zip(self._base_nonce, number))
        try:
            return self._cipher.decrypt(nonce, ciphertext, aad)
        except InvalidTag as error:
            raise Refused("does-not-open") from error


def _labeled_extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + SUITE_ID + label + ikm)


def _labeled_expand(prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled_info = length.to_bytes(2, "big") + b"HPKE-v1" + SUITE_ID + label + info
    return hkdf_expand(prk, labeled_info, length)


def session_info(authorization_hash: bytes, session_id: bytes, source: bytes, target: bytes) -> bytes:
    """SPEC section 7.3."""
    return b"lockbox/v1/transfer/session" + authorization_hash + session_id + source + target


def chunk_aad(chunk: int, chunk_count: int) -> bytes:
    """SPEC section 7.4."""
    return b"lockbox/v1/transfer/chunk" + chunk.to_bytes(4, "big") + chunk_count.to_bytes(4, "big")
