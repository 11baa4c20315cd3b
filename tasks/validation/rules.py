"""The suite: plain JSON in Great Expectations' own types and kwargs, for people to edit; where it lies, and what is none.

Two kinds of expectations stand in it. About rows: single values, each alone, with no `mostly` below 1; these are compiled for
the door (`checks`) and asked again of windows. About windows: all others. What `problem.toml` demands (columns, types, nulls,
ranges, values) always holds, with a suite or without. A plug-in (entry point `truing.expectations`, named like its expectation)
is a function of one value, `(value, **kwargs) -> what was expected, or None`, or a Great Expectations class, for windows only.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from truing.tasks import plugins
from truing.tasks.errors import ProblemError, Unavailable
from truing.tasks.problem import Problem
from truing.tasks.seal import digest

Suite = dict[str, Any]  # {"name": …, "expectations": [{"type", "kwargs", "meta"}], "meta": {…}}
RowFunction = Callable[..., str | None]

# synthetic columns of a window
EXTRA = "unknown_columns"  # names of inputs that the problem does not know, else null
DELAY = "delay_s"  # seconds from the question to its landing; null for rows that were loaded, not asked
COLUMNS = (EXTRA, DELAY)

TYPES = ("expect_column_values_to_be_in_type_list", "expect_column_values_to_be_of_type")
NOT_NULL, NULL = "expect_column_values_to_not_be_null", "expect_column_values_to_be_null"
BETWEEN = "expect_column_values_to_be_between"
IN_SET, NOT_IN_SET = "expect_column_values_to_be_in_set", "expect_column_values_to_not_be_in_set"
REGEX, NOT_REGEX = "expect_column_values_to_match_regex", "expect_column_values_to_not_match_regex"
LENGTHS, LENGTH = "expect_column_value_lengths_to_be_between", "expect_column_value_lengths_to_equal"
ROW_TYPES = (*TYPES, NOT_NULL, NULL, BETWEEN, IN_SET, NOT_IN_SET, REGEX, NOT_REGEX, LENGTHS, LENGTH)
_EXACT = 2**53
FIRST = (*TYPES, NOT_NULL, NULL)  # judged before the others: what has not its type has no range

_BOUNDS = ("min_value", "max_value", "strict_min", "strict_max")
_ROW_KWARGS = frozenset(("column", "mostly", "type_", "type_list", *_BOUNDS, "value_set", "regex", "value"))
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


def row_plugins(rules: Suite) -> dict[str, RowFunction]:
    """The functions of one value that a suite names, loaded. Raises ProblemError for one that is none."""
    found = plugins.plugins(plugins.EXPECTATIONS)
    wanted = {one["type"] for one in rules["expectations"]} & found.keys()
    functions: dict[str, RowFunction] = {}
    for name in sorted(wanted):
        if plugins.is_class(found[name]):
            continue
        function = plugins.load(found[name])
        if not callable(function) or isinstance(function, type):
            raise ProblemError(
                f"plug-in {name}: expected a function of one value, got {function!r}; or spell a class in capitals"
            )
        functions[name] = function
    return functions


def fingerprint(rules: Suite) -> str:
    """Digest of what a window is judged by: the effective expectations and the versions of their plug-ins."""
    found = plugins.plugins(plugins.EXPECTATIONS)
    wanted = sorted({one["type"] for one in rules["expectations"]} & found.keys())
    said = [[one["type"], one["kwargs"], one.get("meta", {})] for one in rules["expectations"]]
    return digest([said, [plugins.version(found[name]) for name in wanted]])


def about_rows(one: Mapping[str, Any], functions: Mapping[str, RowFunction] | None = None) -> bool:
    """True if the expectation judges single rows, each alone: no share, no condition, nothing that can't be compiled.

    `functions` are the suite's row plug-ins: of these any kwargs are taken.
    """
    kwargs = one["kwargs"]
    if float(kwargs.get("mostly", 1)) < 1:
        return False
    return one["type"] in (functions or ()) or (one["type"] in ROW_TYPES and _ROW_KWARGS.issuperset(kwargs))


# --- where a suite lives ------------------------------------------------------------------------------------------------------


def parse(data: bytes, problem: Problem, *, where: str) -> Suite:
    """A suite's JSON, checked as far as possible without Great Expectations. Raises ProblemError: file, key, expected, got."""
    try:
        suite = msgspec.json.decode(data, type=_Suite)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(
            f"{where}: expected a suite {{name, expectations: [{{type, kwargs}}]}}, got {error}; mend it"
        ) from None
    for number, one in enumerate(suite.expectations):
        at, column = f"{where}: expectations[{number}]", one.kwargs.get("column")
        if not re.fullmatch(r"expect_[a-z0-9_]+", one.type):
            raise ProblemError(f"{at}.type: expected a type like {BETWEEN}, got {one.type!r}; mend it")
        if column is not None and column not in problem.inputs and column not in COLUMNS:
            raise ProblemError(f"{at}: expected a column of {list(problem.inputs)}, got {column!r}; mend it")
        mostly = one.kwargs.get("mostly", 1)
        if isinstance(mostly, bool) or not isinstance(mostly, int | float) or not 0 <= mostly <= 1:
            raise ProblemError(f"{at}: mostly: expected a share between 0 and 1, got {mostly!r}; mend it")
        if one.type in ROW_TYPES:
            _parse_row(one, problem, at)
    return msgspec.to_builtins(suite)  # type: ignore[no-any-return]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _parse_row(one: _Expectation, problem: Problem, at: str) -> None:
    column, kwargs = one.kwargs.get("column"), one.kwargs
    if column is None:
        raise ProblemError(f"{at}: expected kwargs with a column, got none; name one of {list(problem.inputs)}")
    if column == EXTRA:
        return
    number = column == DELAY or problem.inputs[column].type == "number"
    if one.type == BETWEEN and not number:
        raise ProblemError(f"{at}: expected a number column, got {column!r}, a category; use {IN_SET} or {LENGTHS}")
    if one.type in (REGEX, NOT_REGEX, LENGTHS, LENGTH) and number:
        raise ProblemError(f"{at}: expected a category column, got {column!r}, a number; use {BETWEEN}")
    if one.type in TYPES:
        names = kwargs.get("type_list") or [kwargs.get("type_")]
        if not isinstance(names, list) or not names or not all(name in ("int", "float", "str") for name in names):
            raise ProblemError(f"{at}: expected types of int, float, str, got {names!r}; mend it")
    if one.type in (BETWEEN, LENGTHS):
        low, high = kwargs.get("min_value"), kwargs.get("max_value")
        for key in ("min_value", "max_value"):
            if not (kwargs.get(key) is None or _number(kwargs[key])):
                raise ProblemError(f"{at}: {key}: expected a number or null, got {kwargs[key]!r}; mend it")
        if low is None and high is None:
            raise ProblemError(f"{at}: expected min_value or max_value, got neither; give one or drop the expectation")
        if low is not None and high is not None and low > high:
            raise ProblemError(f"{at}: expected min_value at most max_value, got {low:g} and {high:g}; swap them")
    if one.type == LENGTH and not _number(kwargs.get("value")):
        raise ProblemError(f"{at}: value: expected a length, got {kwargs.get('value')!r}; mend it")
    if one.type in (IN_SET, NOT_IN_SET):
        values = kwargs.get("value_set")
        if not isinstance(values, list) or not all(_number(one) if number else isinstance(one, str) for one in values):
            raise ProblemError(
                f"{at}: value_set: expected a list of {'numbers' if number else 'strings'}, got another; mend it"
            )
        if number and any(abs(one) >= _EXACT for one in values):
            raise ProblemError(
                f"{at}: value_set: expected numbers below 2^53, which floats tell apart, got more; use {BETWEEN}"
            )
    if one.type in (REGEX, NOT_REGEX):
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
