"""Ed25519 keys: strict verification, and fingerprints. Numbers and letters are those of RFC 8032."""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")


def fingerprint(public: bytes) -> str:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 8410), in hexadecimal digits: the key id of a signature."""
    return hashlib.sha256(_SPKI_PREFIX + public).hexdigest()


def public_of(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def is_key(public: bytes) -> bool:
    """Whether these are 32 bytes of a point, in its one encoding, and not of small order."""
    point = _decode(public) if len(public) == 32 else None
    return point is not None and not _is_small_order(point)


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Strictly: A and R are points in their one encoding and not of small order, and S is reduced."""
    if not is_key(public) or not is_key(signature[:32]):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _decode(encoded: bytes) -> tuple[int, int] | None:
    """Section 5.1.3, with the checks that it allows a decoder to leave out."""
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= _P:
        return None
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if (v * x * x - u) % _P != 0:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
        if (v * x * x - u) % _P != 0:
            return None
    if x == 0 and sign:
        return None
    return (_P - x if x & 1 != sign else x), y


def _is_small_order(point: tuple[int, int]) -> bool:
    for _ in range(3):
        point = _double(point)
    return point == (0, 1)


def _double(point: tuple[int, int]) -> tuple[int, int]:
    """The addition law of the curve (section 5.1.4), for a point and itself."""
    x, y = point
    t = _D * x * x * y * y % _P
    return (2 * x * y * pow(1 + t, -1, _P) % _P, (y * y + x * x) * pow(1 - t, -1, _P) % _P)
