"""Compromise notices: SPEC section 13.8."""

from . import envelope
from .refused import demand
from .roster import Roster


def verify(data: bytes, roster: Roster) -> envelope.Statement:
    """1 to 3. Enough of the roster's present admins signed it, and nobody else, for this cluster."""
    parsed = envelope.parse(data)
    notice = envelope.verify(parsed, "compromise-notice", roster.admins["keys"], roster.admins["threshold"])
    demand(notice.fields["cluster_id"] == roster.cluster_id, "other-cluster")
    return notice
