"""The rules of what lockboxes say of their keys outside of transfers, as the comments in the .proto files state them."""

from .statements import ascending, field, labels, length, text, time, version

_ACTIVE, _DESTROYED, _MOVED, _SCHEDULED_COMPROMISED = 1, 5, 6, 8
_CANCELLED = 5


def destruction_record(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "lockbox_id", 16)
    field(1 <= len(fields["key_ids"]) <= 1_024, "key_ids")
    field(all(len(id) == 16 for id in fields["key_ids"]), "key_ids")
    field(fields["erasure_class"] in (1, 2), "erasure_class")
    time(fields, "signed_at_ms")


def restoration_record(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    for name in ("lockbox_id", "predecessor_id", "backup_id"):
        length(fields, name, 16)
    time(fields, "as_of_ms")
    time(fields, "signed_at_ms")


def inventory_entry(fields: dict) -> None:
    length(fields, "key_id", 16)
    length(fields, "material_id", 16)
    field(_ACTIVE <= fields["state"] <= _SCHEDULED_COMPROMISED, "state")
    length(fields, "moved_to", 16 if fields["state"] == _MOVED else 0)
    if fields["parent_key_id"] or fields["relation"]:
        length(fields, "parent_key_id", 16)
        text(fields, "relation", 1, 32)
    lies_on = fields["lies_on_key_id"]
    if lies_on:
        field(fields["relation"] not in ("", "layer", "rekey"), "lies_on_key_id")
        length(fields, "lies_on_key_id", 16)
        field(lies_on not in (fields["parent_key_id"], fields["key_id"]), "lies_on_key_id")
    field(len(fields["consumers"]) <= 64, "consumers")
    for consumer in fields["consumers"]:
        text(consumer, "service", 1, 64)
        text(consumer, "resource_type", 1, 64)
        text(consumer, "resource_id", 1, 128)
    text(fields, "name", 0, 128)
    labels(fields["labels"])
    is_held = fields["state"] not in (_DESTROYED, _MOVED)
    field(is_held or not (fields["name"] or fields["labels"]), "name")
    field(0 <= fields["job"] <= _CANCELLED, "job")
    field(fields["job_percent"] <= (100 if fields["job"] else 0), "job_percent")


def inventory_report(fields: dict) -> None:
    version(fields)
    length(fields, "cluster_id", 32)
    length(fields, "lockbox_id", 16)
    time(fields, "reported_at_ms")
    after, last = fields["after_key_id"], fields["last_key_id"]
    field(len(after) in (0, 16), "after_key_id")
    field(len(last) in (0, 16), "last_key_id")
    field(len(fields["entries"]) <= 256, "entries")
    for entry in fields["entries"]:
        inventory_entry(entry)
    # The empty id, which stands for the beginning, is before every other.
    ids = [entry["key_id"] for entry in fields["entries"]]
    field(ascending([after, *ids]), "entries")
    if last:
        field(after < last and all(id <= last for id in ids), "entries")


_AUTHZ = "lockbox.authz.v1."

RULES = {
    "destruction-record": (_AUTHZ + "DestructionRecord", destruction_record),
    "inventory-report": (_AUTHZ + "InventoryReport", inventory_report),
    "restoration-record": (_AUTHZ + "RestorationRecord", restoration_record),
}
"""As in `statements`."""
