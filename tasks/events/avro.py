"""Events as Avro, with the schema's id from a Confluent-compatible registry in front; what is believed of them is JSON.

Wire form (Confluent): byte 0, the schema's id (u32, big-endian), the Avro body. The reader turns it into the JSON message it
stands for, and the one door judges that: same proofs, same checks, same bytes in the lake.

**What is signed.** A MAC covers the raw bytes of `data`, and Avro has none: maps have no order, and one number has two types.
So sender and reader both sign `data` as canonical JSON (RFC 8785, which most languages have a library for): numbers as
ECMAScript writes them, keys in order, no spaces. Fields without a value are left out; entries of `inputs` and `groups` stay,
null too. These bytes are what lands.

**What is read.** Only schemas of the topic's own subject, and only what events need: `id` first, then records, maps of scalars,
unions, scalars. No arrays, no recursion, few nodes: a body of a few bytes can't then ask for much work or memory.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from truing.tasks.contract import KINDS
from truing.tasks.errors import DataError, Unavailable
from truing.tasks.events.schema import MAX_BYTES, compose

HEAD: Final = struct.Struct(">BI")
NODES: Final = 400  # of a schema with all its names written out: ours has about 100
LONGEST: Final = 64 * 1024  # characters of a schema
ATTRIBUTES: Final = ("id", "source", "type", "time", "problem", "subject", "predictionid", "actor", "actorkind", "proof")
SCALARS: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "string"})
_NAMESPACE: Final = "truing.events.v1"
_UNREADABLE: Final = (EOFError, LookupError, ValueError, TypeError, OverflowError, MemoryError, RecursionError, AttributeError)

Versions = Callable[[], Mapping[int, str]]
"""All schemas of the topic's subject by id, as JSON text. Raises Unavailable."""


class Codec:
    """Reads and writes one topic's Avro. One thread at a time reads; `versions` and `register` ask the registry."""

    def __init__(self, versions: Versions, register: Callable[[str], int]) -> None:
        """`register` returns the id of a schema (JSON text), new or not. Raises Unavailable without fastavro."""
        try:
            import fastavro
        except ImportError:
            raise Unavailable("expected fastavro for a schema registry, found none; install truing[avro]") from None
        self._avro: Any = fastavro
        self._versions = versions
        self._register = register
        self._schemas: dict[int, Any] = {}  # parsed, or in words why not
        self._asked: float | None = None
        self._writer: tuple[int, Any] | None = None

    # --- reading
    def read(self, value: bytes, now: float) -> bytes:
        """The message as JSON. Raises ValueError for what is none, Unavailable when its schema can't be asked for now.

        `now` is the time of the batch: an id that is not known is asked for once a batch. Whoever wrote it had registered it
        before, so after that one look it is unknown for good, and a flood of made-up ids costs one question a batch.
        """
        if len(value) < HEAD.size:
            raise ValueError("expected a schema's id behind byte 0, got fewer than 5 bytes")
        _, id = HEAD.unpack_from(value)
        if id not in self._schemas and self._asked != now:
            for known, text in self._versions().items():
                if known not in self._schemas:
                    self._schemas[known] = self._parsed(text)
            self._asked = now
        schema = self._schemas.get(id)
        if schema is None:
            raise ValueError(f"expected the id of a schema of this topic's subject, got {id}")
        if isinstance(schema, str):
            raise ValueError(f"schema {id}: {schema}")
        body = io.BytesIO(value)
        body.seek(HEAD.size)
        try:
            datum = self._avro.schemaless_reader(body, schema, None)
        except _UNREADABLE as error:
            raise ValueError(f"expected a body that reads by schema {id}, got: {_flat(error)}") from None
        if body.tell() != len(value):
            raise ValueError(f"expected a body that reads by schema {id}, got {len(value) - body.tell()} bytes behind it")
        return as_json(datum)

    def _parsed(self, text: str) -> Any:
        try:
            if len(text) > LONGEST:
                return f"expected at most {LONGEST} characters, got {len(text)}"
            plain = json.loads(text)
            wrong = unfit(plain)
            return wrong or self._avro.parse_schema(plain, named_schemas={})
        except (*_UNREADABLE, self._avro.schema.SchemaParseException) as error:
            return f"expected an Avro schema, got: {_flat(error)}"

    # --- writing
    def write(self, kind: str, *, data: Mapping[str, Any], **given: Any) -> tuple[bytes, bytes]:
        """(key, value) of one message; arguments as of `encode_event`. Raises DataError, or Unavailable at the first one."""
        if self._writer is None:
            text = json.dumps(avro_schema())
            self._writer = self._register(text), self._avro.parse_schema(json.loads(text), named_schemas={})
        id, schema = self._writer
        try:
            slim = without_nulls(msgspec.to_builtins(msgspec.convert(dict(data), KINDS[kind])))  # Avro writes defaults out
            raw = canonical(slim)
        except (KeyError, ValueError):  # said better there
            slim, raw = dict(data), b""
        message = compose(kind, data=slim, raw=raw, **given)
        if (many := len(msgspec.json.encode(message))) > MAX_BYTES:  # the door reads it as JSON, which is longer
            raise DataError(f"expected an event of at most {MAX_BYTES} bytes as JSON, got {many}; shorten its texts")
        datum = {name: getattr(message, name) for name in ATTRIBUTES} | {"data": (f"{_NAMESPACE}.{kind.title()}", slim)}
        body = io.BytesIO()
        body.write(HEAD.pack(0, id))
        try:
            self._avro.schemaless_writer(body, schema, datum)
        except _UNREADABLE as error:
            raise DataError(f"data of a {kind}: expected what Avro can carry, got: {_flat(error)}; mend it") from None
        return (message.predictionid or message.id).encode(), body.getvalue()


def as_json(datum: Any) -> bytes:
    """What was read by any schema of the subject as a message in JSON. Raises ValueError."""
    if not isinstance(datum, dict) or not isinstance(datum.get("data"), dict):
        raise ValueError("expected a record with a record in `data`")
    message = {name: datum[name] for name in ATTRIBUTES if datum.get(name) is not None}
    raw = canonical(without_nulls(datum["data"]))
    return msgspec.json.encode(
        {"specversion": "1.0", **message, "datacontenttype": "application/json", "data": msgspec.Raw(raw)}
    )


def without_nulls(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without a value left out, here and in `answer`; what stands in `inputs` and `groups` stays."""
    slim = {name: value for name, value in data.items() if value is not None}
    if isinstance(answer := slim.get("answer"), Mapping):
        slim["answer"] = {name: value for name, value in answer.items() if value is not None}
    return slim


# --- canonical JSON (RFC 8785) ------------------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """RFC 8785, except that whole numbers beyond 2^53 keep their digits. Raises ValueError for NaN, infinity, other types."""
    try:
        return msgspec.json.encode(_simple(value), order="sorted")  # five times as fast, and the same for nearly all
    except _Rare:
        return _written(value).encode()


class _Rare(Exception):  # never leaves this module
    pass


def _simple(value: Any) -> Any:
    """The same value in types that msgspec writes as the RFC does; _Rare where it would not."""
    kind = type(value)
    if kind is float:
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
        if 1e-3 <= abs(value) < 1e15:
            return value
        raise _Rare
    if kind is dict:
        if any(type(key) is not str or not key.isascii() for key in value):
            raise _Rare
        return {key: _simple(each) for key, each in value.items()}
    if kind is str or kind is int or kind is bool or value is None:
        return value
    raise _Rare


def _written(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return msgspec.json.encode(value).decode()
    if value is None or kind is bool:
        return {None: "null", True: "true", False: "false"}[value]
    if kind is int:
        return str(value)
    if kind is float:
        return number(value)
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: str(key).encode("utf-16-be"))  # by UTF-16 units, as the RFC has it
        return "{" + ",".join(f"{_written(str(key))}:{_written(value[key])}" for key in keys) + "}"
    raise ValueError(f"expected text, number, truth value, null or a map, got {kind.__name__}")


def number(value: float) -> str:
    """As ECMAScript's Number::toString writes it: 5.0 is 5, 1e21 is 1e+21. Raises ValueError for NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError("expected finite numbers, got NaN or infinity")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, power = repr(abs(value)).partition("e")
    whole, _, part = mantissa.partition(".")
    digits = (whole + part).lstrip("0")
    point = len(whole) + int(power or 0) - (len(whole + part) - len(digits))  # where the point stands among the digits
    digits = digits.rstrip("0")
    many = len(digits)
    if many <= point <= 21:
        return sign + digits + "0" * (point - many)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if many > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1:+d}"


# --- schemas ------------------------------------------------------------------------------------------------------------------


def unfit(schema: Any) -> str | None:
    """Why this schema (plain JSON) is not one for events, or None."""
    fields = schema.get("fields") if isinstance(schema, dict) and schema.get("type") == "record" else None
    first = fields[0] if isinstance(fields, list) and fields else {}
    if first.get("name") != "id" or _scalar(first.get("type")) != "string":
        return "expected a record whose first field is the string `id`"
    count = 0

    def walk(one: Any, named: dict[str, Any], inside: tuple[str, ...]) -> str | None:
        nonlocal count
        count += 1
        if count > NODES:
            return f"expected at most {NODES} nodes with all names written out"
        if isinstance(one, list):
            return next((wrong for branch in one if (wrong := walk(branch, named, inside))), None)
        if isinstance(one, str) and one not in SCALARS:
            short = one.rpartition(".")[2]
            if short in inside or short not in named:
                return f"expected no recursion and no other names, got {one}"
            return walk(named[short], named, inside)
        kind = one if isinstance(one, str) else one.get("type") if isinstance(one, dict) else None
        if isinstance(kind, (list, dict)):  # {"type": {"type": …}}
            return walk(kind, named, inside)
        if kind in SCALARS:
            return None
        if kind == "enum":
            named[str(one["name"]).rpartition(".")[2]] = "string"
            return None
        if kind == "map":
            values = one.get("values")
            plain = values if isinstance(values, list) else [values]
            return None if all(_scalar(each) for each in plain) else "expected maps of scalars only"
        if kind == "record":
            name = str(one["name"]).rpartition(".")[2]
            wrong = next((w for field in one["fields"] if (w := walk(field["type"], named, (*inside, name)))), None)
            named[name] = one
            return wrong
        return f"expected records, maps, unions and scalars, got {str(kind)[:40]}"

    return walk(schema, {}, ())


def _scalar(one: Any) -> str | None:
    """Its name, also where it is written with properties, as Java's tools do: {"type": "string", "avro.java.string": …}."""
    name = one.get("type") if isinstance(one, dict) else one
    return name if isinstance(name, str) and name in SCALARS else None


def avro_schema() -> dict[str, Any]:
    """The schema that we write by, made from the contract's types."""
    optional = {"subject", "predictionid", "actor", "proof"}
    fields: list[dict[str, Any]] = [
        {"name": name, "type": ["null", "string"], "default": None} if name in optional else {"name": name, "type": "string"}
        for name in ATTRIBUTES
    ]
    data = [_avro_of(msgspec.inspect.type_info(kind), name.title()) for name, kind in KINDS.items()]
    return {
        "type": "record",
        "name": "Event",
        "namespace": _NAMESPACE,
        "doc": "CloudEvents 1.0 attributes, flat; the MAC in `proof` covers `data` as canonical JSON (RFC 8785)",
        "fields": [*fields, {"name": "data", "type": data}],
    }


def _avro_of(kind: msgspec.inspect.Type, name: str = "") -> Any:
    """Avro for one of the contract's types."""
    types = msgspec.inspect
    if isinstance(kind, types.StructType):
        fields = []
        for field in kind.fields:
            made: dict[str, Any] = {"name": field.name, "type": _avro_of(field.type, field.name.title())}
            if not field.required:
                made["default"] = {} if field.default_factory is not msgspec.NODEFAULT else field.default
            fields.append(made)
        return {"type": "record", "name": name, "fields": fields}
    if isinstance(kind, types.DictType):
        return {"type": "map", "values": _avro_of(kind.value_type)}
    if isinstance(kind, types.UnionType):
        parts = [_avro_of(part, name) for part in kind.types]
        order = ["null", "boolean", "long", "double", "string"]
        return sorted(parts, key=lambda part: order.index(part) if part in order else len(order))
    plain = {
        types.NoneType: "null",
        types.BoolType: "boolean",
        types.IntType: "long",
        types.FloatType: "double",
        types.StrType: "string",
    }
    return plain[type(kind)]


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
