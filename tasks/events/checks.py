"""Row checks compiled from the Great Expectations suite: they decide, before the commit, whether a prediction's inputs land.

The suite is plain JSON in Great Expectations' own types and kwargs, so that people can edit it and `truing.tasks.events.suite`
can run the very same on windows of landed rows; a test holds both equal, row by row. Only expectations about single values with
no `mostly` below 1 speak about rows; the others speak about windows. What `problem.toml` demands (columns, types, nulls,
ranges, values) always holds, with a suite or without. Reasons name column and rule, never the value: it is a person's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from truing.tasks.errors import ProblemError, Unavailable
from truing.tasks.problem import Problem

Suite = dict[str, Any]  # {"name": …, "expectations": [{"type", "kwargs", "meta"}], "meta": {…}}
Check = Callable[[Sequence[Mapping[str, Any]]], list[str | None]]  # inputs → None, or why not

EXTRA = "unknown_columns"  # synthetic column of a window: names of inputs that the problem does not know, else null
TYPES = ("expect_column_values_to_be_in_type_list", "expect_column_values_to_be_of_type")
NOT_NULL, NULL = "expect_column_values_to_not_be_null", "expect_column_values_to_be_null"
BETWEEN = "expect_column_values_to_be_between"
IN_SET, NOT_IN_SET = "expect_column_values_to_be_in_set", "expect_column_values_to_not_be_in_set"
REGEX, LENGTHS = "expect_column_values_to_match_regex", "expect_column_value_lengths_to_be_between"
ROW_TYPES = (*TYPES, NOT_NULL, NULL, BETWEEN, IN_SET, NOT_IN_SET, REGEX, LENGTHS)
FIRST = (*TYPES, NOT_NULL, NULL)  # judged before the others: what has not its type has no range

_ROW_KWARGS = frozenset(
    ("column", "mostly", "type_", "type_list", "min_value", "max_value", "strict_min", "strict_max", "value_set", "regex")
)
_KINDS = {"number": ["int", "float"], "category": ["str"]}


class _Expectation(msgspec.Struct, frozen=True):
    type: str
    kwargs: dict[str, Any]
    meta: dict[str, Any] = {}
    severity: str = "critical"


class _Suite(msgspec.Struct, frozen=True):
    expectations: list[_Expectation]
    name: str = ""
    meta: dict[str, Any] = {}


def expectation(type: str, *, meta: Mapping[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    """One expectation as in a suite's JSON; kwargs that are None are left out."""
    return {"type": type, "kwargs": {k: v for k, v in kwargs.items() if v is not None}, "meta": dict(meta or {})}


def structural(problem: Problem) -> Suite:
    """What `problem.toml` alone demands of a row's inputs, as a suite."""
    found = [expectation(NULL, column=EXTRA)]
    for name, spec in problem.inputs.items():
        found.append(expectation(TYPES[0], column=name, type_list=_KINDS[spec.type]))
        if not spec.optional:
            found.append(expectation(NOT_NULL, column=name))
        if spec.min is not None or spec.max is not None:
            found.append(expectation(BETWEEN, column=name, min_value=spec.min, max_value=spec.max))
        if spec.values is not None:
            found.append(expectation(IN_SET, column=name, value_set=list(spec.values)))
    return {"name": problem.name, "expectations": found, "meta": {}}


def effective(suite: Suite | None, problem: Problem) -> Suite:
    """The suite with what `problem.toml` demands in front; types and unknown columns can't be edited away."""
    base = structural(problem)
    if suite is None:
        return base
    have = [(one["type"], one["kwargs"]) for one in base["expectations"]]
    more = [one for one in suite["expectations"] if (one["type"], one["kwargs"]) not in have]
    return {
        "name": suite.get("name") or problem.name,
        "expectations": base["expectations"] + more,
        "meta": suite.get("meta", {}),
    }


def about_rows(one: Mapping[str, Any]) -> bool:
    """True if the expectation judges single rows, each alone: no share, no condition, nothing that can't be compiled."""
    kwargs = one["kwargs"]
    return one["type"] in ROW_TYPES and float(kwargs.get("mostly", 1)) >= 1 and _ROW_KWARGS.issuperset(kwargs)


def compile(suite: Suite | None, problem: Problem) -> Check:
    """A function of a batch of inputs (JSON objects): per row None, or the reason against it.

    About 3 µs a row and ten columns. Raises ProblemError when the suite asks for what its columns can't answer.
    """
    tests: list[tuple[str, Callable[[Any], str | None]]] = []
    for early in (True, False):
        for one in effective(suite, problem)["expectations"]:
            if about_rows(one) and (one["type"] in FIRST) is early and one["kwargs"].get("column") != EXTRA:
                tests.append((one["kwargs"]["column"], _test(one, problem)))
    columns = [
        (column, [test for name, test in tests if name == column]) for column in dict.fromkeys(name for name, _ in tests)
    ]
    known = frozenset(problem.inputs)

    def check(batch: Sequence[Mapping[str, Any]]) -> list[str | None]:
        reasons: list[str | None] = []
        for inputs in batch:
            reason: str | None = None
            if not known.issuperset(inputs):
                reason = f"expected columns of {', '.join(problem.inputs)}, got another"
            else:
                for column, column_tests in columns:
                    value = inputs.get(column)
                    for test in column_tests:
                        if (fault := test(value)) is not None:
                            reason = f"{column}: expected {fault}"
                            break
                    if reason is not None:
                        break
            reasons.append(reason)
        return reasons

    return check


def _test(one: Mapping[str, Any], problem: Problem) -> Callable[[Any], str | None]:
    """One expectation as a function of a value (None = absent): None, or what was expected. Nulls pass all but NOT_NULL."""
    kind, kwargs = one["type"], one["kwargs"]
    number = problem.inputs[kwargs["column"]].type == "number"
    if kind in TYPES:
        names = list(kwargs.get("type_list") or [kwargs.get("type_")])
        types = tuple({"int": int, "float": float, "str": str}[name] for name in names)
        word = f"{' or '.join(names)}, got another type"
        return lambda value: None if value is None or type(value) in types else word
    if kind == NOT_NULL:
        return lambda value: "a value, got none" if value is None else None
    if kind == NULL:
        return lambda value: None if value is None else "no value, got one"
    if kind in (IN_SET, NOT_IN_SET):
        values = frozenset(kwargs.get("value_set") or ())
        if kind == IN_SET:
            return lambda value: None if value is None or value in values else "one of its listed values, got another"
        return lambda value: "none of the excluded values, got one" if value is not None and value in values else None
    if kind == REGEX:
        pattern = re.compile(kwargs["regex"])
        return lambda value: None if value is None or pattern.search(value) else f"a match of {pattern.pattern}, got none"
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    low = float("-inf") if low is None else low
    high = float("inf") if high is None else high
    above, below = bool(kwargs.get("strict_min")), bool(kwargs.get("strict_max"))
    measure: Callable[[Any], float] = float if number else len
    word = f"{'above' if above else 'at least'} {low:g} and {'below' if below else 'at most'} {high:g}, got "

    def between(value: Any) -> str | None:
        if value is None:
            return None
        size = measure(value)
        if size < low or (above and size == low):
            return word + "less"
        if size > high or (below and size == high):
            return word + "more"
        return None

    return between


# --- where a suite lives ------------------------------------------------------------------------------------------------------


def parse(data: bytes, problem: Problem, *, where: str) -> Suite:
    """A suite's JSON, checked as far as possible without Great Expectations. Raises ProblemError: file, key, expected, got."""
    try:
        suite = msgspec.json.decode(data, type=_Suite)
    except msgspec.DecodeError as error:
        raise ProblemError(
            f"{where}: expected a suite {{name, expectations: [{{type, kwargs}}]}}, got {error}; mend it"
        ) from None
    for number, one in enumerate(suite.expectations):
        at, column = f"{where}: expectations[{number}]", one.kwargs.get("column")
        if not re.fullmatch(r"expect_[a-z_]+", one.type):
            raise ProblemError(f"{at}.type: expected a type like {BETWEEN}, got {one.type!r}; mend it")
        if column is not None and column not in problem.inputs and column != EXTRA:
            raise ProblemError(f"{at}: expected a column of {list(problem.inputs)}, got {column!r}; mend it")
        if one.type in ROW_TYPES:
            _parse_row(one, problem, at)
    return msgspec.to_builtins(suite)  # type: ignore[no-any-return]


def _parse_row(one: _Expectation, problem: Problem, at: str) -> None:
    column, kwargs = one.kwargs.get("column"), one.kwargs
    if column is None:
        raise ProblemError(f"{at}: expected kwargs with a column, got none; name one of {list(problem.inputs)}")
    if not isinstance(kwargs.get("mostly", 1), int | float):
        raise ProblemError(f"{at}: mostly: expected a share between 0 and 1, got {kwargs['mostly']!r}; mend it")
    if column == EXTRA:
        return
    number = problem.inputs[column].type == "number"
    if one.type == BETWEEN and not number:
        raise ProblemError(f"{at}: expected a number column, got {column!r}, a category; use {IN_SET} or {LENGTHS}")
    if one.type in (REGEX, LENGTHS) and number:
        raise ProblemError(f"{at}: expected a category column, got {column!r}, a number; use {BETWEEN}")
    if one.type in TYPES:
        names = kwargs.get("type_list") or [kwargs.get("type_")]
        if not isinstance(names, list) or not names or not all(name in ("int", "float", "str") for name in names):
            raise ProblemError(f"{at}: expected types of int, float, str, got {names!r}; mend it")
    if one.type in (BETWEEN, LENGTHS):
        for key in ("min_value", "max_value"):
            if isinstance(kwargs.get(key), bool) or not isinstance(kwargs.get(key), int | float | None):
                raise ProblemError(f"{at}: {key}: expected a number or null, got {kwargs[key]!r}; mend it")
    if one.type in (IN_SET, NOT_IN_SET):
        values = kwargs.get("value_set")
        if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
            raise ProblemError(f"{at}: value_set: expected a list of strings or numbers, got another; mend it")
    if one.type == REGEX:
        try:
            re.compile(str(kwargs["regex"]))
        except (re.error, KeyError) as error:
            raise ProblemError(f"{at}: regex: expected a regular expression, got {error}; mend it") from None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"{path}: can't be read ({error.strerror}); check its permissions") from None


def load(problem: Problem, *, folder: Path | None, kept: Path | None) -> Suite | None:
    """The suite of a problem: `folder/expectations.json`, written by people, wins over `kept/<name>.json`, profiled.

    `folder` is the problem's, `kept` usually `<lake>/expectations`. None while neither exists. Raises ProblemError.
    """
    for path in (folder and folder / "expectations.json", kept and kept / f"{problem.name}.json"):
        data = _read(path) if path else None
        if data is not None:
            return parse(data, problem, where=str(path))
    return None


def keep(suite: Suite, kept: Path) -> Path:
    """Write `kept/<name>.json`, indented for people to edit; whole or not at all."""
    path = kept / f"{suite['name']}.json"
    try:
        kept.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(suite), indent=2) + b"\n")
        draft.replace(path)
    except OSError as error:
        raise Unavailable(f"{path}: can't be written ({error.strerror}); check the folder's permissions") from None
    return path
