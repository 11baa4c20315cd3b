"""Types made from a problem, so tight that what msgspec decodes into them holds for certain: row checks at the cost of reading.

What does not fit one of them may still be good (a number beyond 2^53, a label that only the looser type knows): it is judged by
`schema` and `checks`. So these may be narrower than the law and never wider.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from keyword import iskeyword
from typing import Annotated, Any, Final, Literal

import msgspec

from truing.tasks.contract import KINDS
from truing.tasks.problem import Problem
from truing.tasks.validation.rules import (
    BETWEEN,
    EXTRA,
    IN_SET,
    NOT_NULL,
    NULL,
    TYPES,
    Suite,
    about_rows,
    effective,
    row_plugins,
)

_EXACT: Final = 2**53  # beyond, a JSON integer has no float of its own


def tight(problem: Problem, suite: Suite | None) -> dict[str, msgspec.json.Decoder[Any]]:
    """Decoders by kind that read a body only if it holds for certain. A kind that can't be told so is left out.

    `suite` are the problem's row checks; what msgspec can't check while reading (regular expressions, plug-ins) leaves
    predictions out, and so do texts that are to be redacted (`redacts`).
    """
    label = Literal[tuple(problem.labels)]  # type: ignore[valid-type]
    said = msgspec.defstruct("Said", [("label", label)], frozen=True, gc=False, forbid_unknown_fields=True)
    types: dict[str, Any] = {"outcome": said, "correction": said, "review": said, "rating": KINDS["rating"]}
    inputs = _inputs(problem, suite)
    if inputs is not None:
        share = Annotated[float, msgspec.Meta(ge=0, le=1)]
        scalar = str | Annotated[int, msgspec.Meta(ge=-_EXACT, le=_EXACT)] | float | bool | None
        groups = _struct("Groups", dict.fromkeys(problem.groups, scalar), optional=problem.groups)
        given = {"label": label, "confidence": share, "probabilities": dict[label, share]}  # type: ignore[valid-type]
        answer = _struct("Answer", given, optional=("probabilities",))
        body: dict[str, Any] = {
            "inputs": inputs, "groups": groups, "answer": answer | None, "release": str | None, "variant": str | None,
            "propensity": share | None, "schema": str | None, "audit": bool,
        }  # fmt: skip
        types["prediction"] = _struct("Asked", body, optional=[name for name in body if name != "inputs"])
    return {kind: msgspec.json.Decoder(type_) for kind, type_ in types.items()}


def _struct(name: str, fields: Mapping[str, Any], *, optional: Collection[str]) -> Any:
    """A struct of these JSON names, which may be no Python names; None where an optional one is absent."""
    made = []
    for number, one in enumerate(sorted(fields, key=lambda one: one in optional)):
        python = one if one.isidentifier() and not iskeyword(one) and not one.startswith("_") else f"c{number}_"
        given = msgspec.field(name=one, default=None) if one in optional else msgspec.field(name=one)
        made.append((python, fields[one], given))
    return msgspec.defstruct(name, made, frozen=True, gc=False, forbid_unknown_fields=True)


def _inputs(problem: Problem, suite: Suite | None) -> Any | None:
    """A struct of the columns that holds exactly what the row checks let through, or less; None if msgspec can't say it."""
    rules = effective(suite, problem)
    functions = row_plugins(rules)
    asked: dict[str, list[Mapping[str, Any]]] = {name: [] for name in problem.inputs}
    for one in rules["expectations"]:
        if not about_rows(one, functions) or (one["type"] == NULL and one["kwargs"].get("column") == EXTRA):
            continue  # about windows; and unknown columns are forbidden anyway
        if one["type"] not in (*TYPES, NOT_NULL, BETWEEN, IN_SET) or one["kwargs"].get("column") not in asked:
            return None
        asked[one["kwargs"]["column"]].append(one)
    optional = [name for name, ones in asked.items() if not any(one["type"] == NOT_NULL for one in ones)]
    columns: dict[str, Any] = {}
    for name, ones in asked.items():
        type_ = _number(ones) if problem.inputs[name].type == "number" else _word(ones)
        if type_ is None:
            return None
        columns[name] = type_ | None if name in optional else type_
    return _struct("Inputs", columns, optional=optional)


def _kinds(ones: Sequence[Mapping[str, Any]]) -> set[str]:
    named = [set(one["kwargs"].get("type_list") or [one["kwargs"].get("type_")]) for one in ones if one["type"] in TYPES]
    return set.intersection(*named) if named else set()


def _word(ones: Sequence[Mapping[str, Any]]) -> Any | None:
    listed = [set(one["kwargs"]["value_set"]) for one in ones if one["type"] == IN_SET]
    if _kinds(ones) != {"str"} or any(one["type"] == BETWEEN for one in ones):
        return None
    if not listed:
        return str
    values = sorted(value for value in set.intersection(*listed) if type(value) is str)
    return Literal[tuple(values)] if values else None


def _number(ones: Sequence[Mapping[str, Any]]) -> Any | None:
    if any(one["type"] == IN_SET for one in ones):
        return None
    floats: dict[str, Any] = {}
    least, most = -_EXACT, _EXACT
    for kwargs in (one["kwargs"] for one in ones if one["type"] == BETWEEN):
        low, high = kwargs.get("min_value"), kwargs.get("max_value")
        if low is not None:
            strict = bool(kwargs.get("strict_min"))
            floats["ge"] = max(floats.get("ge", -math.inf), math.nextafter(low, math.inf) if strict else float(low))
            least = max(least, math.floor(low) + 1 if strict else math.ceil(low))
        if high is not None:
            strict = bool(kwargs.get("strict_max"))
            floats["le"] = min(floats.get("le", math.inf), math.nextafter(high, -math.inf) if strict else float(high))
            most = min(most, math.ceil(high) - 1 if strict else math.floor(high))
    kinds = _kinds(ones)
    if least > most or not kinds <= {"int", "float"} or not kinds:
        return None
    whole = Annotated[int, msgspec.Meta(ge=least, le=most)]
    broken = Annotated[float, msgspec.Meta(**floats)] if floats else float
    return whole | broken if kinds == {"int", "float"} else whole if kinds == {"int"} else None
