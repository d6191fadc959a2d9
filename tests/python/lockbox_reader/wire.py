"""Protocol Buffers, as far as the protocol needs them: decoding, and the one canonical encoding.

The messages are those of the .proto files of this repository. Decoding is as lenient as proto3 asks for; what is refused
is refused because encoding the result again gives other bytes (SPEC section 4).
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from .refused import Refused, demand

PROTO = Path(__file__).resolve().parents[3] / "proto"
FILES = [
    *(
        f"lockbox/authz/v1/{name}.proto"
        for name in ("authorization", "envelope", "evidence", "inventory", "join", "notice", "roster", "transfer")
    ),
    "lockbox/sealed/v1/sealed.proto",
]

_TYPE = descriptor_pb2.FieldDescriptorProto
_VARINTS = {_TYPE.TYPE_UINT32: 32, _TYPE.TYPE_UINT64: 64, _TYPE.TYPE_INT64: -64, _TYPE.TYPE_ENUM: -32, _TYPE.TYPE_BOOL: 1}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Field:
    number: int
    name: str
    type: int
    repeated: bool
    message: str
    oneof: int | None

    @property
    def default(self):
        if self.repeated:
            return []
        if self.type == _TYPE.TYPE_MESSAGE:
            return None
        return {_TYPE.TYPE_STRING: "", _TYPE.TYPE_BYTES: b""}.get(self.type, 0)


@functools.cache
def _schema() -> dict[str, dict[int, Field]]:
    with tempfile.NamedTemporaryFile() as out:
        status = protoc.main(["protoc", f"-I{PROTO}", f"--descriptor_set_out={out.name}", *FILES])
        assert status == 0, "the .proto files do not compile"
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes())
    messages = {}
    for file in files.file:
        for message in file.message_type:
            fields = [_field(field) for field in message.field]
            messages[f"{file.package}.{message.name}"] = {field.number: field for field in fields}
    return messages


def _field(field) -> Field:
    return Field(
        number=field.number,
        name=field.name,
        type=field.type,
        repeated=field.label == _TYPE.LABEL_REPEATED,
        message=field.type_name.lstrip("."),
        oneof=field.oneof_index if field.HasField("oneof_index") else None,
    )


def decode(message: str, data: bytes) -> dict:
    """The fields of a message by name; what is absent has its default, an absent message is None."""
    fields = _schema()[message]
    found = {field.name: field.default for field in fields.values()}
    place = 0
    while place < len(data):
        key, place = _take_varint(data, place)
        number, wire_type = key >> 3, key & 7
        demand(number > 0, "malformed", "field number 0")
        raw, place = _take(data, place, wire_type)
        field = fields.get(number)
        if field is None:
            continue
        for other in fields.values():
            if field.oneof is not None and other.oneof == field.oneof:
                found[other.name] = None
        value = _value(field, wire_type, raw)
        if field.repeated:
            found[field.name] = found[field.name] + value
        else:
            (found[field.name],) = value
    return found


def encode(message: str, found: dict) -> bytes:
    """The canonical encoding: ascending by number, defaults left out, no unknown fields."""
    out = b""
    for _, field in sorted(_schema()[message].items()):
        value = found[field.name]
        if field.repeated and field.type in _VARINTS:
            packed = b"".join(_varint(item) for item in value)
            out += _delimited(field.number, packed) if value else b""
            continue
        values = value if field.repeated else [value]
        for item in values:
            if field.repeated or item != field.default:
                out += _encode_one(field, item)
    return out


def decode_canonical(message: str, data: bytes) -> dict:
    """Refuses every spelling of a message but one."""
    found = decode(message, data)
    demand(encode(message, found) == data, "not-canonical", message)
    return found


def length_delimited(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _encode_one(field: Field, value) -> bytes:
    if field.type == _TYPE.TYPE_MESSAGE:
        return _delimited(field.number, encode(field.message, value))
    if field.type == _TYPE.TYPE_STRING:
        return _delimited(field.number, value.encode())
    if field.type == _TYPE.TYPE_BYTES:
        return _delimited(field.number, value)
    return _varint(field.number << 3) + _varint(value)


def _delimited(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + length_delimited(data)


def _value(field: Field, wire_type: int, raw) -> list:
    """A field's value; of a repeated field one occurrence may hold several."""
    if field.type in _VARINTS:
        if wire_type == _BYTES and field.repeated:
            values, place = [], 0
            while place < len(raw):
                value, place = _take_varint(raw, place)
                values.append(_number(field, value))
            return values
        demand(wire_type == _VARINT, "malformed", f"{field.name} is no number")
        return [_number(field, raw)]
    demand(wire_type == _BYTES, "malformed", f"{field.name} is no string of bytes")
    if field.type == _TYPE.TYPE_MESSAGE:
        return [decode(field.message, raw)]
    if field.type == _TYPE.TYPE_STRING:
        try:
            return [raw.decode()]
        except UnicodeDecodeError as error:
            raise Refused("malformed", f"{field.name} is not UTF-8") from error
    return [raw]


def _number(field: Field, value: int) -> int:
    bits = _VARINTS[field.type]
    if bits == 1:
        return int(value != 0)
    value &= (1 << abs(bits)) - 1
    if bits < 0 and value >> (-bits - 1):
        value -= 1 << -bits
    return value


def _take(data: bytes, place: int, wire_type: int):
    if wire_type == _VARINT:
        return _take_varint(data, place)
    if wire_type == _BYTES:
        length, place = _take_varint(data, place)
    else:
        demand(wire_type in (_FIXED32, _FIXED64), "malformed", f"wire type {wire_type}")
        length = 4 if wire_type == _FIXED32 else 8
    demand(length <= len(data) - place, "malformed", "it ends within a field")
    return data[place : place + length], place + length


def _take_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        demand(place < len(data), "malformed", "it ends within a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, place
    raise Refused("malformed", "a number of more than 64 bits")


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
