"""Join tokens: SPEC section 3.1."""

import base64
import binascii

from . import keys, wire
from .refused import Refused, demand
from .statements import join_token

_PREFIX = "lbxjoin1."


def read(text: bytes) -> dict:
    """The fields of a token, and the public half of its join key."""
    demand(len(text) <= 1_024 and text.startswith(_PREFIX.encode()), "malformed")
    encoded = text[len(_PREFIX) :]
    try:
        data = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise Refused("malformed") from error
    # Only the one spelling: no padding, and no bits behind the last byte.
    demand(base64.urlsafe_b64encode(data).rstrip(b"=") == encoded, "malformed")
    try:
        fields = wire.decode_canonical("lockbox.authz.v1.JoinToken", data)
    except Refused as refused:
        raise Refused("malformed") from refused
    join_token(fields)
    demand(len(fields["join_secret"]) == 32, "malformed")
    return {**fields, "join_key": keys.public_of(fields["join_secret"])}
