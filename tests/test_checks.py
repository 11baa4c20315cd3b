"""The row checks at the door come from the suite: what Great Expectations says of a row, they said before it landed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from truing.tasks.errors import ProblemError, Unavailable
from truing.tasks.problem import Input, Problem
from truing.tasks.validation import checks
from truing.tasks.validation.checks import BETWEEN, IN_SET, LENGTHS, NOT_IN_SET, REGEX, expectation
from truing.tasks.validation.expectations import Validator

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import checks_agree

TOY = Problem(
    name="toy",
    kind="tabular",
    label="answer",
    labels=("no", "yes"),
    positive="yes",
    inputs={
        "age": Input(type="number", min=0, max=120),
        "pay": Input(type="number", optional=True),
        "job": Input(type="category"),
        "size": Input(type="category", values=("S", "M", "L"), optional=True),
    },
)
GOOD = {"age": 44, "pay": 10.5, "job": "baker", "size": "M"}
SUITE: checks.Suite = {
    "name": "toy",
    "meta": {},
    "expectations": [
        expectation(BETWEEN, column="pay", min_value=-3, max_value=50, strict_max=True),
        expectation(REGEX, column="job", regex="^[a-zé]+$"),
        expectation(LENGTHS, column="job", min_value=2, max_value=6),
        expectation(NOT_IN_SET, column="age", value_set=[13, 14.5]),
        expectation(IN_SET, column="size", value_set=["S", "M"]),
        expectation(checks.TYPES[0], column="age", type_list=["int"]),
    ],
}


@pytest.fixture(scope="module")
def validator() -> Iterator[Validator]:
    yield Validator()


def why(inputs: dict[str, Any], suite: checks.Suite | None = None) -> str | None:
    return checks.compile(suite, TOY)([inputs])[0]


# --- at the door --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"age": 44.0}, None),
        ({"pay": None}, None),
        ({"age": None}, "age: expected a value, got none"),
        ({"age": "44"}, "age: expected int or float, got another type"),
        ({"age": True}, "age: expected int or float, got another type"),
        ({"job": 7}, "job: expected str, got another type"),
        ({"age": 120}, None),
        ({"age": 120.5}, "age: expected at least 0 and at most 120, got more"),
        ({"age": -1}, "age: expected at least 0 and at most 120, got less"),
        ({"size": "XL"}, "size: expected one of its listed values, got another"),
        ({"colour": "red"}, "expected columns of age, pay, job, size, got another"),
    ],
)
def test_before_there_is_a_suite_the_problem_decides(change: dict[str, Any], reason: str | None) -> None:
    assert why(GOOD | change) == reason


def test_an_absent_column_is_a_missing_value() -> None:
    assert why({"age": 1}) == "job: expected a value, got none"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"pay": 49.9}, None),
        ({"pay": 50}, "pay: expected at least -3 and below 50, got more"),
        ({"job": "Baker"}, "job: expected a match"),
        ({"job": "b"}, "job: expected at least 2 and at most 6, got less"),
        ({"age": 13.0}, "age: expected int, got another type"),
        ({"age": 13}, "age: expected none of the excluded values"),
        ({"size": "L"}, "size: expected one of its listed values"),
        ({"age": 500}, "age: expected at least 0 and at most 120"),
    ],
)
def test_a_suite_adds_to_what_the_problem_demands(change: dict[str, Any], word: str | None) -> None:
    reason = why(GOOD | change, SUITE)
    assert reason is None if word is None else (reason or "").startswith(word)


def test_a_reason_never_carries_the_value() -> None:
    for secret in ("secret name", 987654321, ["secret name"]):
        for column in GOOD:
            assert str(secret) not in (why(GOOD | {column: secret}, SUITE) or "")


def test_what_speaks_of_shares_or_conditions_is_for_windows_only() -> None:
    loose = expectation(IN_SET, column="size", value_set=["S"], mostly=0.9)
    conditional = expectation(IN_SET, column="size", value_set=["S"], row_condition="age>1", condition_parser="pandas")
    for one in (loose, conditional, expectation("expect_column_mean_to_be_between", column="age", max_value=3)):
        assert not checks.about_rows(one)
        assert why(GOOD, {"name": "toy", "expectations": [one]}) is None


# --- the file -----------------------------------------------------------------------------------------------------------------


def test_a_kept_suite_reads_back_the_same(tmp_path: Path) -> None:
    checks.keep(SUITE, tmp_path / "expectations")
    again = checks.load(TOY, folder=None, kept=tmp_path / "expectations")
    assert again is not None
    assert checks.effective(again, TOY)["expectations"][len(checks.structural(TOY)["expectations"]) :] == [
        one | {"severity": "critical"} for one in SUITE["expectations"]
    ]


def test_what_people_wrote_wins_over_what_was_profiled(tmp_path: Path) -> None:
    checks.keep(SUITE, tmp_path / "kept")
    (tmp_path / "toy").mkdir()
    assert checks.load(TOY, folder=tmp_path / "toy", kept=tmp_path / "kept") is not None
    (tmp_path / "toy" / "expectations.json").write_text('{"name": "by hand", "expectations": []}')
    suite = checks.load(TOY, folder=tmp_path / "toy", kept=tmp_path / "kept")
    assert suite is not None
    assert suite["name"] == "by hand"


def _file(type: str, **kwargs: Any) -> str:
    return msgspec.json.encode({"expectations": [expectation(type, **kwargs)]}).decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected a suite"),
        ('{"name": "x"}', "expectations"),
        (_file("drop table"), "expectations[0].type"),
        (_file(BETWEEN, column="colour"), "got 'colour'"),
        (_file(BETWEEN, column="job", min_value=1), "a category"),
        (_file(BETWEEN, column="age", min_value="1"), "min_value: expected a number"),
        (_file(BETWEEN, column="age", min_value=1).replace(":1}", ":1" + "0" * 400 + "}"), "min_value: expected a number"),
        (_file(BETWEEN, column="age", min_value=3, max_value=1), "min_value at most max_value, got 3 and 1"),
        (_file(BETWEEN, column="age"), "min_value or max_value, got neither"),
        (_file(IN_SET, column="age", value_set=["S"]), "value_set: expected a list of numbers"),
        (_file(IN_SET, column="age", value_set=[2**53]), "value_set: expected numbers below 2^53"),
        (_file(REGEX, column="job", regex="("), "regex"),
        (_file(IN_SET, column="job", value_set="S"), "value_set"),
        (_file(checks.NOT_NULL), "expected kwargs with a column"),
    ],
)
def test_a_bad_suite_file_is_one_line_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "expectations.json").write_text(text)
    with pytest.raises(ProblemError) as caught:
        checks.load(TOY, folder=tmp_path, kept=None)
    assert words in str(caught.value)
    assert str(tmp_path / "expectations.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_hold_the_suite_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="can't be written"):
        checks.keep(SUITE, tmp_path / "file" / "expectations")


# --- one source ---------------------------------------------------------------------------------------------------------------


def test_compiled_checks_and_great_expectations_agree_row_by_row(validator: Validator) -> None:
    """A slice of what tests/benchmarks/checks_agree.py asks of 10,000 windows. Many rows fail, many hold."""
    failing = rows = 0
    for seed in (194, 438, 2828, 3236, *range(500_000, 500_020)):
        many, refused, _, wrong = checks_agree.compared(seed, validator)
        assert wrong == []
        failing, rows = failing + refused, rows + many
    assert 0.2 * rows < failing < 0.8 * rows


@pytest.mark.parametrize("value", [float("nan"), None])
def test_not_a_number_is_a_missing_value(value: float | None) -> None:
    assert why(GOOD | {"age": value}) == "age: expected a value, got none"
    assert why(GOOD | {"pay": value}) is None


def test_a_strict_end_without_a_bound_excludes_nothing() -> None:
    """Found by checks_agree: `strict_max` without `max_value` refused infinity at the door only."""
    suite = {"name": "toy", "expectations": [expectation(BETWEEN, column="pay", min_value=0, strict_max=True)]}
    assert why(GOOD | {"pay": float("inf")}, suite) is None


@pytest.mark.parametrize("given", [10**400, -(10**400)])
def test_an_int_beyond_any_float_is_out_of_range_not_an_error(given: int) -> None:
    assert (why(GOOD | {"age": given}) or "").startswith("age: expected at least 0 and at most 120")


def test_the_first_look_never_lets_through_what_the_tests_refuse() -> None:
    """Two hundred generated suites, with rows of one column more, less, or another one."""
    for seed in range(200):
        problem, suite, rows = checks_agree.drawn(np.random.default_rng(seed))
        check = checks.compile(suite, problem)
        assert check(rows) == [check([row])[0] for row in rows]
        for row in rows:
            if len(row) == 2:
                absent = {"age": row.get("age"), "colour": 1}
                assert check([absent])[0] == check([{**absent, "job": None}])[0]
