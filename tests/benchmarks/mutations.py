"""Messages of every type and proof of a small problem, and what may become of them on the way: mutations by name."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from truing.tasks.events.schema import MAX_BYTES, encode_event, token

WIRE = b"w" * 32
KEYS = {name: bytes([n]) * 32 for n, name in enumerate(("loans", "reviewers", "registry"), 1)}
PROBLEM = """
name = "loan"
kind = "tabular"
label = "repaid"
labels = ["no", "yes"]
positive = "yes"

[inputs]
age = { type = "number", min = 18, max = 120 }
income = { type = "number", min = 0, max = 10000000 }
purpose = { type = "category", values = ["car", "home", "study", "other"] }
note = { type = "category", optional = true }

[groups.sex]
values = ["Female", "Male"]

[sources.loans]
types = ["prediction", "outcome", "preference"]

[sources.reviewers]
types = ["review"]

[sources.registry]
types = ["attribute"]
"""
SENDER = {"prediction": "loans", "outcome": "loans", "preference": "loans", "review": "reviewers", "attribute": "registry"}
KINDS = (*SENDER, "rating", "correction", "interaction")


class Base:
    """Valid messages number 0, 1, 2, …, and what mutations need of them."""

    def __init__(self, seed: int, now: float) -> None:
        self.random, self.now, self.number = random.Random(seed), now, 0

    def valid(self) -> bytes:
        self.number += 1
        n, dice = self.number, self.random
        kind = dice.choice(KINDS)
        prediction = f"p{n if kind == 'prediction' else dice.randrange(max(1, n))}"
        data: dict[str, Any] = {
            "prediction": {
                "inputs": {"age": dice.randint(18, 90), "income": dice.random() * 1e5, "purpose": "car", "note": "Ünï ☃"},
                "groups": {"sex": "Female"}, "answer": {"label": "yes", "confidence": 0.75},
            },
            "outcome": {"label": "yes"}, "review": {"label": "no"}, "attribute": {"groups": {"sex": "Male"}},
            "preference": {"prompt": "why?", "chosen": "because " * dice.randint(1, 20), "rejected": "no"},
            "rating": {"value": 0.75}, "correction": {"label": "no"}, "interaction": {"kind": "dwell", "value": 3.5},
        }[kind]  # fmt: skip
        given: dict[str, Any] = {"problem": "loan", "time": self.now - dice.random() * 1e5, "data": data, "id": f"e{n}"}
        given["prediction_id"] = None if kind == "preference" else prediction
        if kind in SENDER:
            given |= {"source": SENDER[kind], "source_key": KEYS[SENDER[kind]], "subject": f"customer {n % 5000}"}
        else:
            given |= {"source": "app", "token": token(WIRE, "loan", prediction, self.now + 9e4), "actor": f"person {n % 5000}"}
        return encode_event(kind, **given)[1]


# --- mutations: one valid message and some luck → what is sent ----------------------------------------------------------------

Mutation = Callable[[Base, bytes], bytes | None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(name: str) -> Callable[[Mutation], Mutation]:
    def add(one: Mutation) -> Mutation:
        MUTATIONS[name] = one
        return one

    return add


def _changed(base: Base, value: bytes, where: list[Any] | None = None) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The message as plain data, one of its objects, and one of the names in it."""
    message = json.loads(value)
    inside = message["data"]
    objects = [message, inside, *(one for one in inside.values() if isinstance(one, dict))]
    chosen = base.random.choice([one for one in objects if one])
    return message, chosen, base.random.choice(list(chosen))


def _text(message: Any) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _spliced(base: Base, value: bytes, literal: str) -> bytes:
    """A literal that no writer of JSON would give out, in the place of some field."""
    message, chosen, name = _changed(base, value)
    chosen[name] = "\x00here"
    return _text(message).replace(b'"\\u0000here"', literal.encode("utf-8", "surrogatepass"), 1)


@mutation("bits flipped")
def _(base: Base, value: bytes) -> bytes:
    changed = bytearray(value)
    for _ in range(base.random.randint(1, 3)):
        changed[base.random.randrange(len(changed))] ^= 1 << base.random.randrange(8)
    return bytes(changed)


@mutation("bytes cut, doubled or put in")
def _(base: Base, value: bytes) -> bytes:
    at, length = base.random.randrange(len(value)), base.random.randint(1, 12)
    more = base.random.choice((b"", value[at : at + length] * 2, base.random.randbytes(length)))
    return value[:at] + more + value[at + length :]


@mutation("truncated")
def _(base: Base, value: bytes) -> bytes:
    return value[: base.random.randrange(len(value))]


@mutation("deep nesting")
def _(base: Base, value: bytes) -> bytes:
    depth, (start, end) = base.random.choice((10, 500, 5000, 60_000)), base.random.choice((("[", "]"), ('{"a":', "}")))
    closed = base.random.random() < 0.7
    return _spliced(base, value, start * depth + "1" + (end * depth if closed else ""))


@mutation("huge numbers")
def _(base: Base, value: bytes) -> bytes:
    huge = (
        "1e999",
        "-1e999",
        "1e-999",
        "9" * 400,
        "-" + "9" * 5000,
        str(2**63),
        str(-(2**63) - 1),
        str(2**64),
        "1E+400",
        "0." + "0" * 999 + "1",
    )
    return _spliced(base, value, base.random.choice((*huge, "-0", "00", "1.", ".5", "+1", "0x10", "1_000")))


@mutation("NaN and Infinity")
def _(base: Base, value: bytes) -> bytes:
    return _spliced(base, value, base.random.choice(("NaN", "Infinity", "-Infinity", "nan", "null", "inf")))


@mutation("surrogates")
def _(base: Base, value: bytes) -> bytes:
    half = ('"\\ud800"', '"\\udfff\\ud800"', '"x\\udc00y"', '"\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\u2028\ufeff\u202e"')
    return _spliced(base, value, base.random.choice(half))


@mutation("duplicate keys")
def _(base: Base, value: bytes) -> bytes:
    message, chosen, name = _changed(base, value)
    other = base.random.choice((None, 1, "x", [], {}, chosen[name]))
    pair = json.dumps({name: other})[1:-1].encode()
    text = _text(message)
    return b"{" + pair + b"," + text[1:] if base.random.random() < 0.5 else text[:-1] + b"," + pair + b"}"


@mutation("long texts")
def _(base: Base, value: bytes) -> bytes:
    length = base.random.choices((300, 5000, 150_000, MAX_BYTES, 1 << 20), (40, 40, 10, 2, 2))[0]
    return _spliced(
        base, value, json.dumps(base.random.choice(("a", "\u00e9", "\U0001f600", "\\", '"')) * length, ensure_ascii=False)
    )


@mutation("wrong encodings")
def _(base: Base, value: bytes) -> bytes:
    text = value.decode()
    code = base.random.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037", "latin", "bom", "deflate"))
    if code == "latin":
        return text.replace("e", "\u00e9").encode("latin-1", "replace")
    return (
        b"\xef\xbb\xbf" + value
        if code == "bom"
        else zlib.compress(value)
        if code == "deflate"
        else text.encode(code, "replace")
    )


_TIMES = (
    *("0000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999999Z", "10000-01-01T00:00:00Z"),
    *("1969-12-31T23:59:60Z", "2026-02-30T00:00:00Z", "2026-11-23T24:00:00Z", "2026-11-23", "2026-11-23T00:00:00", "", "now"),
    *("2026-11-23t00:00:00z", "-2026-11-23T00:00:00Z", "2026-11-23T00:00:00-99:99"),
)


@mutation("far times")
def _(base: Base, value: bytes) -> bytes:
    message = json.loads(value)
    message["time"] = base.random.choice((*_TIMES, 1.79e9, None, "2026-11-23T00:00:00." + "9" * 300 + "Z"))
    return _text(message)


@mutation("wrong types")
def _(base: Base, value: bytes) -> bytes:
    message, chosen, name = _changed(base, value)
    chosen[name] = base.random.choice(
        (None, True, 0, -1, 1.5, "", "x", [], [[]], {}, {"a": None}, [chosen[name]], str(chosen[name]))
    )
    return _text(message)


@mutation("fields gone, new or renamed")
def _(base: Base, value: bytes) -> bytes:
    message, chosen, name = _changed(base, value)
    held = chosen.pop(name)
    if base.random.random() < 0.6:
        chosen[base.random.choice((name.upper(), name + "\u200b", "", "__proto__", "\u0000", name * 50))] = held
    return _text(message)


@mutation("swapped proofs")
def _(base: Base, value: bytes) -> bytes:
    message, other = json.loads(value), json.loads(base.valid())
    field = base.random.choice(("proof", "proof", "source", "id", "type", "predictionid", "actorkind", "subject"))
    message[field] = other.get(field)
    return _text(message)


@mutation("odd proofs")
def _(base: Base, value: bytes) -> bytes:
    message = json.loads(value)
    message["proof"] = base.random.choice(
        (
            "mac:",
            "mac:" + "0" * 64,
            "mac:\u0130",
            ".",
            "1.2",
            "9" * 5000 + ".a",
            "-5.x",
            "\u0661.x",
            "1e9.x",
            "mac",
            " ",
            "\u00df." + "f" * 64,
        )
    )
    return _text(message)


@mutation("no JSON object")
def _(base: Base, value: bytes) -> bytes | None:
    odd = (
        None,
        b"",
        b" " * 1000,
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{}",
        b"{" * 1000,
        value + value,
        value + b" \n",
        b"\x00" * 64,
        b"[" + value + b"]",
    )
    return base.random.choice((*odd, base.random.randbytes(base.random.randint(1, 300))))


@mutation("other labels, groups and inputs")
def _(base: Base, value: bytes) -> bytes:
    """Validly signed, and still not what the problem knows."""
    dice, n = base.random, base.number
    inputs: dict[str, Any] = {
        "age": dice.choice((17, 121, -0.0, 1e300, None, "40", True)),
        "income": 5,
        "purpose": dice.choice(("moon", "car", "")),
    }
    data: dict[str, Any] = {
        "inputs": inputs | {"x" * dice.choice((1, 300)): 1},
        "groups": {dice.choice(("sex", "caste")): dice.choice((None, 1, "\u0000"))},
    }
    data["answer"] = {
        "label": dice.choice(("yes", "maybe")),
        "confidence": 0.5,
        "probabilities": {"yes": 1.0, "no": dice.choice((0.0, 0.5))},
    }
    given: dict[str, Any] = {
        "problem": "loan",
        "time": base.now,
        "prediction_id": f"q{n}",
        "source": "loans",
        "source_key": KEYS["loans"],
    }
    return encode_event("prediction", data=data, id=f"o{n}", **given)[1]


@mutation("valid")
def _(base: Base, value: bytes) -> bytes:
    return value


@mutation("again")
def _(base: Base, value: bytes) -> bytes:
    return value  # and once more: see `blocks`


def mutated(base: Base) -> Iterator[tuple[str, bytes | None]]:
    """Without end; what is sent again comes twice."""
    names = list(MUTATIONS)
    while True:
        name = base.random.choice(names)
        value = MUTATIONS[name](base, base.valid())
        yield name, value
        if name == "again":
            yield "again, twice", value
