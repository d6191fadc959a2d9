"""The roster: SPEC section 2, and what a join key may sign (section 3.2)."""

from dataclasses import dataclass, field

from . import envelope, keys
from .refused import Refused, demand
from .statements import change_of


@dataclass
class Entry:
    """An entry that was applied, and who could sign at its place."""

    hash: bytes
    admins: dict
    join_key: bytes | None = None
    brokers: list[bytes] = field(default_factory=list)


@dataclass
class Roster:
    """What follows from a chain of verified entries."""

    cluster_id: bytes
    admins: dict
    signed_at_ms: int
    entries: list[Entry] = field(default_factory=list)
    lockboxes: dict[bytes, dict] = field(default_factory=dict)
    brokers: list[dict] = field(default_factory=list)
    former_admins: set[bytes] = field(default_factory=set)
    joins: dict[bytes, dict] = field(default_factory=dict)

    @property
    def head(self) -> tuple[int, bytes]:
        return len(self.entries) - 1, self.entries[-1].hash


def frames(file: bytes) -> list[dict]:
    """The envelopes of a file: each after its length, 4 bytes, big-endian."""
    found = []
    while file:
        size = int.from_bytes(file[:4], "big")
        demand(len(file) >= 4, "truncated")
        demand(size <= envelope.MAX_BYTES, "too-large")
        demand(len(file) >= 4 + size, "truncated")
        found.append(envelope.parse(file[4 : 4 + size]))
        file = file[4 + size :]
    return found


def read(entries: list[dict], cluster_id: bytes) -> Roster:
    """Founds a roster whose cluster id is known, and applies the rest of the chain."""
    demand(len(entries) > 0, "not-genesis")
    roster = found(entries[0], cluster_id)
    for entry in entries[1:]:
        apply(roster, entry)
    return roster


def found(genesis: dict, cluster_id: bytes) -> Roster:
    """2.1 The genesis entry is signed by its own admins, and its hash is the cluster id."""
    demand(envelope.hash_of(genesis) == cluster_id, "other-cluster")
    founding = envelope.peek(genesis, "roster-entry").fields
    demand(change_of(founding) == "genesis", "not-genesis")
    admins = founding["genesis"]["admins"]
    verified = by_admins(genesis, admins)
    roster = Roster(cluster_id, admins, founding["signed_at_ms"])
    roster.entries.append(Entry(verified.hash, admins))
    return roster


def apply(roster: Roster, entry: dict) -> None:
    """2.2 The next entry is verified and applied; a known one is passed over."""
    peeked = envelope.peek(entry, "roster-entry")
    fields = peeked.fields
    due = len(roster.entries)
    if fields["index"] < due:
        compare_known(roster, entry, peeked)
        return
    demand(fields["index"] == due, "gap")
    demand(fields["cluster_id"] == roster.cluster_id, "other-cluster")
    demand(fields["previous"] == roster.entries[-1].hash, "broken-chain")
    demand(fields["signed_at_ms"] >= roster.signed_at_ms, "back-in-time")
    join_key = join_key_of(roster, entry, fields)
    brokers = [known["signing_key"] for known in roster.brokers if not known["retired"]]
    if join_key is None:
        by_admins(entry, roster.admins)
    else:
        by_join_key_and_broker(entry, join_key, brokers)
    change = change_of(fields)
    check(roster, change, fields[change])
    roster.entries.append(Entry(peeked.hash, roster.admins, join_key, brokers))
    roster.signed_at_ms = fields["signed_at_ms"]
    make(roster, change, fields[change], join_key)


def compare_known(roster: Roster, entry: dict, peeked: envelope.Statement) -> None:
    """At a place that is taken stands the known entry, another cluster's, a fork, or rubbish."""
    known = roster.entries[peeked.fields["index"]]
    if peeked.hash == known.hash:
        return
    demand((peeked.fields["cluster_id"] or peeked.hash) == roster.cluster_id, "other-cluster")
    if known.join_key is None or not is_by_join(entry, known):
        by_admins(entry, known.admins)
    raise Refused("fork")


def is_by_join(entry: dict, known: Entry) -> bool:
    try:
        by_join_key_and_broker(entry, known.join_key, known.brokers)
    except Refused:
        return False
    return True


def by_join_key_and_broker(entry: dict, join_key: bytes, brokers: list[bytes]) -> None:
    """3.2 The join key and at least one broker signed, and nobody else."""
    envelope.verify(entry, "roster-entry", [join_key, *brokers], 2)
    claimed = {signature["keyid"] for signature in entry["signatures"]}
    demand(keys.fingerprint(join_key) in claimed, "too-few-signers")


def by_admins(entry: dict, admins: dict) -> envelope.Statement:
    return envelope.verify(entry, "roster-entry", admins["keys"], admins["threshold"])


def join_key_of(roster: Roster, entry: dict, fields: dict) -> bytes | None:
    """3.2 The join key that signed an admission in the admins' stead, if it may."""
    if fields["admit_lockbox"] is None:
        return None
    claimed = {signature["keyid"] for signature in entry["signatures"]}
    join_key = next((key for key in sorted(roster.joins) if keys.fingerprint(key) in claimed), None)
    if join_key is None:
        return None
    join, lockbox = roster.joins[join_key], fields["admit_lockbox"]["lockbox"]
    rule(join["state"] == "allowed", "used or revoked")
    rule(fields["signed_at_ms"] <= max(join["expires_at_ms"], join["allowed_at_ms"]), "expired")
    rule(lockbox["labels"] == join["labels"], "other labels")
    rule(join["name"] in ("", lockbox["name"]), "another name")
    return join_key


def rule(kept: bool, detail: str) -> None:
    demand(kept, "rule", detail)


def check(roster: Roster, change: str, body: dict) -> None:
    """2.3 The rules of membership."""
    members = {lockbox["identity_key"] for lockbox in roster.lockboxes.values()}
    members |= {broker["signing_key"] for broker in roster.brokers} | set(roster.joins)
    everybody = members | set(roster.admins["keys"]) | roster.former_admins
    if change == "admit_lockbox":
        lockbox = body["lockbox"]
        rule(lockbox["lockbox_id"] not in roster.lockboxes, "a lockbox id twice")
        rule(lockbox["identity_key"] not in everybody, "a key twice")
        names = {known["name"] for known in roster.lockboxes.values() if not known["retired"]}
        rule(lockbox["name"] not in names, "a name twice")
    elif change == "admit_broker":
        rule(body["signing_key"] not in everybody, "a key twice")
        rule(body["name"] not in {known["name"] for known in roster.brokers if not known["retired"]}, "a name twice")
    elif change == "allow_join":
        rule(body["join_key"] not in everybody, "a key twice")
    elif change == "change_admins":
        rule(not members & set(body["admins"]["keys"]), "a member becomes an admin")
        rule(not roster.former_admins & set(body["admins"]["keys"]), "a former admin comes back")
    elif change == "retire_lockbox":
        known = roster.lockboxes.get(body["lockbox_id"])
        rule(known is not None and not known["retired"], "nobody to retire")
    elif change == "retire_broker":
        unretired = [known["signing_key"] for known in roster.brokers if not known["retired"]]
        rule(body["signing_key"] in unretired, "nobody to retire")
    elif change == "revoke_join":
        known = roster.joins.get(body["join_key"])
        rule(known is not None and known["state"] == "allowed", "nothing to revoke")


def make(roster: Roster, change: str, body: dict, join_key: bytes | None) -> None:
    """Makes a change that was checked."""
    if change == "admit_lockbox":
        roster.lockboxes[body["lockbox"]["lockbox_id"]] = {**body["lockbox"], "retired": False}
        if join_key is not None:
            roster.joins[join_key]["state"] = "used"
    elif change == "admit_broker":
        roster.brokers.append({**body, "retired": False})
    elif change == "allow_join":
        roster.joins[body["join_key"]] = {**body, "state": "allowed", "allowed_at_ms": roster.signed_at_ms}
    elif change == "change_admins":
        roster.former_admins |= set(roster.admins["keys"]) - set(body["admins"]["keys"])
        roster.admins = body["admins"]
    elif change == "retire_lockbox":
        roster.lockboxes[body["lockbox_id"]]["retired"] = True
    elif change == "retire_broker":
        for broker in roster.brokers:
            broker["retired"] |= broker["signing_key"] == body["signing_key"]
    elif change == "revoke_join":
        roster.joins[body["join_key"]]["state"] = "revoked"
