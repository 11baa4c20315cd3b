"""Checks and windows come from one suite: what Great Expectations says of a row, the compiled check said before it landed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from truing.tasks.errors import ProblemError, Unavailable
from truing.tasks.events import checks
from truing.tasks.events.checks import BETWEEN, IN_SET, LENGTHS, NOT_IN_SET, REGEX, expectation
from truing.tasks.events.expectations import Validator, validate
from truing.tasks.events.lake import Lake
from truing.tasks.events.suite import (
    admitted,
    ensure,
    pending_window,
    profile,
    rejected,
    reports,
    validate_pending,
    validated_revision,
)
from truing.tasks.events.window_page import page, summary
from truing.tasks.problem import Input, Problem

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


def frame(inputs: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{n}" for n in range(len(inputs))], "content": [msgspec.json.encode(one) for one in inputs]})


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

_NUMBERS = [None, "44", True, False, -1, -0.0, 0, 13, 13.0, 14.5, 120, 121, 2**53 + 1, 1e300, 1e-300, -(2**40), "", "x"]
_WORDS = [None, 5, 1.5, True, "", "b", "abcdef", "abcdefg", "Baker", "été", "a b", "x\n", "😀😀", "S", "baker"]
_NUMBER_RULES = [
    expectation(BETWEEN, column="age", min_value=-3, max_value=50),
    expectation(BETWEEN, column="age", min_value=13, strict_min=True),
    expectation(BETWEEN, column="age", max_value=120, strict_max=True),
    expectation(NOT_IN_SET, column="age", value_set=[13, 14.5]),
    expectation(IN_SET, column="age", value_set=[0, 13, 44]),
    expectation(checks.TYPES[0], column="age", type_list=["int"]),
    expectation(checks.NOT_NULL, column="age"),
]
_WORD_RULES = [
    expectation(REGEX, column="job", regex="^[a-zé]+$"),
    expectation(LENGTHS, column="job", min_value=2, max_value=6),
    expectation(LENGTHS, column="job", min_value=1, strict_min=True),
    expectation(NOT_IN_SET, column="job", value_set=["baker", "x"]),
    expectation(IN_SET, column="job", value_set=["baker", "S", "été"]),
    expectation(checks.TYPES[1], column="job", type_="str"),
]


def _drawn(rng: np.random.Generator) -> tuple[Problem, checks.Suite | None, list[dict[str, Any]]]:
    """A problem of two columns, a suite or none, and up to twelve rows: mostly good, some odd, absent or unknown columns."""
    age = Input(type="number", optional=bool(rng.random() < 0.5), min=0 if rng.random() < 0.5 else None, max=120)
    job = Input(type="category", optional=bool(rng.random() < 0.5), values=("S", "baker") if rng.random() < 0.3 else None)
    problem = msgspec.structs.replace(TOY, inputs={"age": age, "job": job})
    chosen = [rules[int(rng.integers(len(rules)))] for rules in (_NUMBER_RULES, _WORD_RULES) if rng.random() < 0.7]
    rows = []
    for _ in range(int(rng.integers(1, 13))):
        row: dict[str, Any] = {"age": 44, "job": "baker"}
        for column, odd in (("age", _NUMBERS), ("job", _WORDS)):
            if (draw := rng.random()) < 0.25:
                row[column] = odd[int(rng.integers(len(odd)))]
            elif draw < 0.28:
                del row[column]
        if rng.random() < 0.05:
            row["colour"] = None if rng.random() < 0.5 else "red"
        rows.append(row)
    return problem, {"name": "drawn", "expectations": chosen} if chosen else None, rows


def test_compiled_checks_and_great_expectations_agree_row_by_row(validator: Validator) -> None:
    """220 generated windows, each with a problem and a suite of its own. A good share of rows fails, and a good share holds."""
    rng = np.random.default_rng(11)
    failing = rows = 0
    for _ in range(220):
        problem, suite, window = _drawn(rng)
        compiled = {f"r{n}" for n, reason in enumerate(checks.compile(suite, problem)(window)) if reason is not None}
        report = validate(frame(window), suite, problem, now=0.0, validator=validator)
        assert set(report.failed) == compiled, (problem.inputs, suite, window)
        failing, rows = failing + len(compiled), rows + len(window)
    assert 0.2 * rows < failing < 0.8 * rows


# --- windows ------------------------------------------------------------------------------------------------------------------


def people(
    n: int, *, seed: int = 0, pay: float = 20.0, jobs: tuple[str, ...] = ("baker", "smith", "clerk")
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "age": int(rng.integers(18, 80)),
            "pay": None if rng.random() < 0.1 else round(float(rng.normal(pay, 5)), 2),
            "job": jobs[int(rng.integers(len(jobs)))],
            "size": "SML"[int(rng.integers(3))],
        }
        for _ in range(n)
    ]


def states(inputs: list[dict[str, Any]], revision: int, *, split: str = "train", landed_at: float = 100.0) -> pl.DataFrame:
    ids = [f"{split}-{revision}-{n}" for n in range(len(inputs))]
    return pl.DataFrame({"id": ids, "content": [msgspec.json.encode(one) for one in inputs]}).with_columns(
        pl.lit("toy").alias("problem"),
        pl.lit(split).alias("split"),
        pl.lit(revision).alias("revision"),
        pl.lit(landed_at).alias("landed_at"),
        pl.lit(1.0).alias("asked_at"),
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.append("rows", states(people(600), 1, split="trusted"))
    return lake


def test_rows_like_the_trusted_ones_pass_a_profiled_suite(validator: Validator) -> None:
    suite = profile(frame(people(600)), TOY)
    for seed in range(1, 6):
        report = validate(frame(people(600, seed=seed)), suite, TOY, now=0.0, validator=validator)
        assert (report.success, report.failed) == (True, {}), report.reason


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (people(600, seed=2, pay=40.0), "pay: expected mean"),
        (people(600, seed=2, jobs=("baker", "smith", "clerk", *["robot"] * 12)), "job: expected kl divergence"),
        ([one | {"pay": None} for one in people(600)], "pay: expected proportion of non null"),
    ],
    ids=["mean", "mix", "nulls"],
)
def test_a_window_that_drifted_beyond_its_bounds_fails_whole(validator: Validator, rows: list[Any], words: str) -> None:
    report = validate(frame(rows), profile(frame(people(600)), TOY), TOY, now=0.0, validator=validator)
    assert not report.success
    assert words in report.reason
    assert report.failed == {}


def test_a_small_window_is_not_judged_by_its_means(validator: Validator) -> None:
    suite = profile(frame(people(600)), TOY)
    assert validate(frame(people(20, pay=40.0)), suite, TOY, now=0.0, validator=validator).success


def test_a_window_without_one_good_row_fails_whole(validator: Validator) -> None:
    report = validate(frame([GOOD | {"age": "x"}] * 3), None, TOY, now=0.0, validator=validator)
    assert (report.success, report.reason, len(report.failed)) == (False, "no row of it holds", 3)


def test_an_expectation_unknown_to_great_expectations_is_one_line(validator: Validator) -> None:
    suite: checks.Suite = {"name": "toy", "expectations": [expectation("expect_the_unexpected", column="age")]}
    with pytest.raises(ProblemError, match="suite toy: expected types and kwargs of Great Expectations") as caught:
        validate(frame([GOOD]), suite, TOY, now=0.0, validator=validator)
    assert "\n" not in str(caught.value)


def test_the_suite_is_profiled_once_from_trusted_rows_and_then_belongs_to_people(lake: Lake) -> None:
    lake.append("rows", states(people(50, pay=500.0), 2))
    suite = ensure(lake, TOY, folder=None)
    path = Path(lake.root) / "expectations" / "toy.json"
    assert suite is not None
    assert suite["meta"]["profiled_rows"] == 600
    path.write_text('{"name": "mine", "expectations": []}')
    assert (ensure(lake, TOY, folder=None) or {})["name"] == "mine"


def test_a_window_is_due_by_age_by_force_or_by_size(lake: Lake) -> None:
    assert pending_window(lake, "toy", now=109.0) is None
    assert pending_window(lake, "toy", now=109.0, force=True) is not None
    window = pending_window(lake, "toy", now=110.0)
    assert window is not None
    assert (window.first, window.last, window.frame.height) == (1, 1, 600)
    lake.append("rows", states(people(9400), 2, landed_at=108.0))
    assert pending_window(lake, "toy", now=109.0) is not None


def test_learning_uses_judged_rows_only(lake: Lake, validator: Validator) -> None:
    assert admitted(lake, TOY, lake.rows("toy")).height == 0
    assert validate_pending(lake, TOY, folder=None, now=200.0, validator=validator) is not None
    assert admitted(lake, TOY, lake.rows("toy")).height == 600
    lake.append("rows", states(people(10), 5))
    assert admitted(lake, TOY, lake.rows("toy")).height == 600
    assert validated_revision(lake, "toy") == 1


def test_what_fails_goes_alone_and_a_failed_window_goes_whole(lake: Lake, validator: Validator) -> None:
    validate_pending(lake, TOY, folder=None, now=200.0, validator=validator)
    bad_row = [*people(10), GOOD | {"age": 300}]
    lake.append("rows", states(bad_row, 2))
    first = validate_pending(lake, TOY, folder=None, now=200.0, validator=validator)
    lake.append("rows", states(people(600, pay=40.0), 3))
    second = validate_pending(lake, TOY, folder=None, now=200.0, validator=validator)
    assert first is not None
    assert second is not None
    assert (first.success, list(first.failed)) == (True, ["train-2-10"])
    assert not second.success
    out = rejected(lake, "toy")
    assert len(out) == 601
    assert out["train-3-0"].startswith("window toy:3-3: pay: expected mean")
    assert admitted(lake, TOY, lake.rows("toy")).height == 610
    assert validate_pending(lake, TOY, folder=None, now=200.0, force=True, validator=validator) is None


def test_feedback_to_a_judged_row_needs_no_new_window(lake: Lake, validator: Validator) -> None:
    validate_pending(lake, TOY, folder=None, now=200.0, validator=validator)
    lake.append("rows", states(people(600), 1, split="trusted").with_columns(revision=pl.lit(9), target=pl.lit("yes")))
    assert pending_window(lake, "toy", now=200.0, force=True) is None
    assert admitted(lake, TOY, lake.rows("toy", labelled=True)).height == 600


def test_a_report_shows_everything_and_loads_nothing(lake: Lake, validator: Validator) -> None:
    report = validate(frame([GOOD, GOOD | {"age": 300}, GOOD | {"job": "<b>"}]), SUITE, TOY, now=0.0, validator=validator)
    shown = page(report)
    assert "r1" in shown
    assert "at" in shown
    assert "<script" not in shown
    assert "http" not in shown
    assert "| age | expect_column_values_to_be_between" in summary(report)
    assert "admitted" in summary(report)
    from truing.tasks.events.suite import admit_window

    admit_window(lake, report)
    assert [one.failed for one in reports(lake, "toy")] == [report.failed]
