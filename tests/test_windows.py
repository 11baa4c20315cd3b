"""Windows come from the same suite: what fails goes alone, a window that fails goes whole, and a mended suite judges again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from test_ingest import ROW

from truing.flows.cli.main import main
from truing.flows.curate import judge
from truing.tasks.errors import DataError, ProblemError
from truing.tasks.problem import Input, Problem, load_problem
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.validation import checks
from truing.tasks.validation.checks import BETWEEN, IN_SET, REGEX, expectation
from truing.tasks.validation.expectations import Validator, WindowReport, validate
from truing.tasks.validation.holdout import holdout_reports, may_judge, place, validate_holdout
from truing.tasks.validation.profile import ensure, profile
from truing.tasks.validation.rules import DELAY
from truing.tasks.validation.suite import (
    admit_window,
    admitted,
    judge_again,
    judgements,
    pending_window,
    rejected,
    reports,
    to_judge_again,
    validate_pending,
    validated_revision,
)
from truing.tasks.validation.window_page import page, summary

ROOT = Path(__file__).resolve().parent.parent
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
SUITE: checks.Suite = {
    "name": "toy",
    "meta": {},
    "expectations": [
        expectation(BETWEEN, column="pay", min_value=-3, max_value=50, strict_max=True),
        expectation(REGEX, column="job", regex="^[a-zé]+$"),
        expectation(IN_SET, column="size", value_set=["S", "M"]),
    ],
}
GOOD = {"age": 44, "pay": 10.5, "job": "baker", "size": "M"}


@pytest.fixture(scope="module")
def validator() -> Iterator[Validator]:
    yield Validator()


def frame(inputs: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{n}" for n in range(len(inputs))], "content": [msgspec.json.encode(one) for one in inputs]})


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
    for seed in (1, 2):
        report = validate(frame(people(600, seed=seed)), suite, TOY, now=0.0, validator=validator)
        assert (report.success, report.failed) == (True, {}), report.reason


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (people(600, seed=2, pay=40.0), "pay: expected a mean of"),
        (people(600, seed=2, jobs=("baker", "smith", "clerk", *["robot"] * 12)), "job: expected the profiled mix"),
        ([one | {"pay": None} for one in people(600)], "pay: expected a share of given values of at least 0.6"),
        (
            people(600, seed=2, jobs=("baker", "smith", "clerk", "robot")),
            "job: expected one of its listed values in at least 0.9",
        ),
        ([one | {"pay": n % 2 * 40.0} for n, one in enumerate(people(600))], "pay: expected a standard deviation of at most"),
        ([one | {"pay": 19.0 if n % 5 else 27.0} for n, one in enumerate(people(600))], "pay: expected quantile 0.1 of"),
    ],
    ids=["mean", "mix", "nulls", "new values", "spread", "quantiles"],
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
    assert out["train-3-0"].startswith("window toy:3-3: pay: expected a mean")
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
    assert "| age | values of 0 to 120 | - | 1 |" in summary(report)
    assert "admitted" in summary(report)

    admit_window(lake, report)
    (kept,) = reports(lake, "toy")
    assert kept.failed == report.failed and kept.asked == len(report.findings) > len(kept.findings)
    held = report.asked - len(kept.findings)
    assert f"{held} of {report.asked}" in page(kept) and f"{held} of {report.asked}" in shown, "what is kept says the same"


def late(n: int, delay_s: float) -> pl.DataFrame:
    return frame(people(n, seed=3)).with_columns(pl.lit(delay_s).alias(DELAY))


def test_a_window_that_landed_weeks_after_it_was_asked_is_stale(validator: Validator) -> None:
    suite = profile(frame(people(600)), TOY)
    report = validate(late(600, 8 * 86_400.0), suite, TOY, now=0.0, validator=validator)
    assert report.reason == "delay_s: expected a median of at most 604,800, got 691,200"
    assert validate(late(600, 3600.0), suite, TOY, now=0.0, validator=validator).success


def test_a_history_that_was_loaded_is_not_late(lake: Lake) -> None:
    """Trusted rows are of any age; the bound is four times what they took, where that is more than a week."""
    lake.append("rows", states(people(5), 2, landed_at=50 * 86_400.0))
    window = pending_window(lake, "toy", now=1e9)
    assert window is not None
    assert window.frame.filter(pl.col("id").str.starts_with("trusted"))[DELAY].null_count() == 600
    assert window.frame.filter(pl.col("id").str.starts_with("train"))[DELAY].to_list() == [50 * 86_400.0 - 1.0] * 5
    old = lake.rows("toy").with_columns(landed_at=pl.lit(10 * 86_400.0 + 1.0))
    found = [one["kwargs"] for one in profile(old, TOY)["expectations"] if one["kwargs"].get("column") == DELAY]
    assert found == [{"column": DELAY, "max_value": 40 * 86_400.0}]


def test_a_flood_fails_by_its_volume(validator: Validator) -> None:
    suite: checks.Suite = {"name": "toy", "expectations": [expectation("expect_table_row_count_to_be_between", max_value=5)]}
    report = validate(frame([GOOD] * 6), suite, TOY, now=0.0, validator=validator)
    assert report.reason == "expected at most 5 rows, got 6"


# --- judged again -------------------------------------------------------------------------------------------------------------


def suite_file(folder: Path, *expectations: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "expectations.json").write_bytes(msgspec.json.encode({"name": "toy", "expectations": list(expectations)}))
    return folder


def test_a_rejected_window_is_judged_again_under_a_mended_suite(lake: Lake, validator: Validator, tmp_path: Path) -> None:
    folder = suite_file(tmp_path / "toy", expectation("expect_column_mean_to_be_between", column="pay", max_value=1))
    first = validate_pending(lake, TOY, folder=folder, now=200.0, validator=validator)
    assert first is not None
    assert not first.success
    assert admitted(lake, TOY, lake.rows("toy")).height == 0
    assert to_judge_again(lake, TOY, folder=folder) == []
    suite_file(folder, expectation("expect_column_mean_to_be_between", column="pay", max_value=100))
    assert [one.id for one in to_judge_again(lake, TOY, folder=folder)] == ["toy:1-1"]
    second = judge_again(lake, TOY, "toy:1-1", folder=folder, now=300.0, validator=validator)
    assert second.success
    assert admitted(lake, TOY, lake.rows("toy")).height == 600
    assert [(one.at, one.success) for one in judgements(lake, "toy", "toy:1-1")] == [(200.0, False), (300.0, True)]
    assert [one.at for one in reports(lake, "toy")] == [300.0]
    assert to_judge_again(lake, TOY, folder=folder) == []


def test_rows_that_failed_alone_come_back_when_the_suite_lets_them(lake: Lake, validator: Validator, tmp_path: Path) -> None:
    folder = suite_file(tmp_path / "toy", expectation(IN_SET, column="job", value_set=["baker", "smith"]))
    validate_pending(lake, TOY, folder=folder, now=200.0, validator=validator)
    some = admitted(lake, TOY, lake.rows("toy")).height
    assert 300 < some < 500
    suite_file(folder, expectation(IN_SET, column="job", value_set=["baker", "smith", "clerk"]))
    judge_again(lake, TOY, "toy:1-1", folder=folder, now=300.0, validator=validator)
    assert admitted(lake, TOY, lake.rows("toy")).height == 600


def test_a_window_that_nobody_judged_is_not_judged_again(lake: Lake) -> None:
    with pytest.raises(DataError, match="got 'toy:7-9'; see `truing windows list`"):
        judge_again(lake, TOY, "toy:7-9", folder=None, now=0.0)


# --- plug-ins -----------------------------------------------------------------------------------------------------------------

PLUGIN = """
def iban(value, *, land):
    return None if value.startswith(land) else f"an IBAN of {land}, got another"

def broken(value):
    raise RuntimeError("no")
"""
CLASSES = """
from great_expectations.expectations import ExpectColumnMaxToBeBetween

class ExpectColumnToStaySmall(ExpectColumnMaxToBeBetween):
    max_value: float = 3
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as pip leaves it: two modules and a dist-info that names them."""
    (tmp_path / "toy_rules.py").write_text(PLUGIN)
    (tmp_path / "toy_classes.py").write_text(CLASSES)
    info = tmp_path / "toy_rules-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-rules\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[truing.expectations]\nexpect_column_values_to_be_iban = toy_rules:iban\n"
        "expect_column_values_to_be_well = toy_rules:broken\n"
        "expect_column_to_stay_small = toy_classes:ExpectColumnToStaySmall\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_plugged_in_function_judges_rows_at_the_door_and_in_windows(validator: Validator) -> None:
    suite: checks.Suite = {
        "name": "toy",
        "expectations": [expectation("expect_column_values_to_be_iban", column="job", land="DE")],
    }
    rows = [GOOD, GOOD | {"job": "DE89"}, GOOD | {"job": "FR76"}]
    reasons = checks.compile(suite, TOY)(rows)
    assert reasons == ["job: expected an IBAN of DE, got another", None, "job: expected an IBAN of DE, got another"]
    report = validate(frame(rows), suite, TOY, now=0.0, validator=validator)
    assert (report.success, list(report.failed)) == (True, ["r0", "r2"])
    suite["expectations"][0]["kwargs"]["mostly"] = 0.5
    assert checks.compile(suite, TOY)(rows) == [None] * 3
    share = validate(frame(rows), suite, TOY, now=0.0, validator=validator)
    assert share.reason == "job: expected values to be iban (land DE) in at least 0.5 of the rows, got 0.333"


@pytest.mark.usefixtures("installed")
def test_a_plugged_in_function_that_raises_is_a_reason_and_no_crash() -> None:
    suite: checks.Suite = {"name": "toy", "expectations": [expectation("expect_column_values_to_be_well", column="job")]}
    assert checks.compile(suite, TOY)([GOOD]) == ["job: expected expect_column_values_to_be_well to answer, got RuntimeError"]


@pytest.mark.usefixtures("installed")
def test_a_plugged_in_class_judges_windows_and_is_not_imported_at_the_door(validator: Validator) -> None:
    import sys

    suite: checks.Suite = {"name": "toy", "expectations": [expectation("expect_column_to_stay_small", column="pay")]}
    assert checks.compile(suite, TOY)([GOOD]) == [None]
    assert "toy_classes" not in sys.modules
    report = validate(frame([GOOD]), suite, TOY, now=0.0, validator=validator)
    assert report.reason == "pay: expected to stay small, got 10.5"


@pytest.mark.usefixtures("installed")
def test_another_version_of_a_plugin_is_another_suite(tmp_path: Path) -> None:
    suite: checks.Suite = {
        "name": "toy",
        "expectations": [expectation("expect_column_values_to_be_iban", column="job", land="DE")],
    }
    before = checks.fingerprint(suite)
    assert checks.fingerprint(suite) == before
    (tmp_path / "toy_rules-1.2.dist-info").rename(tmp_path / "toy_rules-1.3.dist-info")
    (tmp_path / "toy_rules-1.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-rules\nVersion: 1.3\n")
    assert checks.fingerprint(suite) != before


# --- the vault's rows ---------------------------------------------------------------------------------------------------------


def test_rows_that_fail_a_window_do_not_judge(lake: Lake, tmp_path: Path) -> None:
    """Before the suite was mended all 600 were out; later three rows fail alone, and the others judge."""
    vault, desk = Vault(tmp_path / "vault"), tmp_path / "desk"
    rows = [*people(597, seed=5), *[GOOD | {"job": "robot"}] * 3]
    vault.append("holdout", states(rows, 4, split="holdout"))
    folder = suite_file(tmp_path / "toy", expectation("expect_column_mean_to_be_between", column="pay", max_value=1))
    out = validate_holdout(vault, lake, TOY, desk=desk, folder=folder, now=200.0)
    assert len(out) == 600
    assert may_judge(vault.holdout("toy", now=0.0, matured=False), out).height == 0
    suite_file(folder, expectation(IN_SET, column="job", value_set=["baker", "smith", "clerk"]))
    out = validate_holdout(vault, lake, TOY, desk=desk, folder=folder, now=300.0)
    assert out == {f"holdout-4-{n}": "job: expected one of its listed values, got another" for n in (597, 598, 599)}
    assert len((place(desk) / "toy.jsonl").read_bytes().splitlines()) == 2
    assert [one.at for one in holdout_reports(desk, "toy")] == [300.0]
    assert validate_holdout(vault, lake, TOY, desk=desk, folder=folder, now=400.0) == out
    assert len((place(desk) / "toy.jsonl").read_bytes().splitlines()) == 2


def test_what_the_trainer_can_write_does_not_choose_who_judges(lake: Lake, tmp_path: Path) -> None:
    """The suite in the lake is the trainer's to edit: it must not put rows out of the holdout."""
    vault, desk = Vault(tmp_path / "vault"), tmp_path / "desk"
    vault.append("holdout", states(people(20, seed=5), 4, split="holdout"))
    ensure(lake, TOY, folder=None)
    (Path(lake.root) / "expectations" / "toy.json").write_bytes(
        msgspec.json.encode({"expectations": [expectation(IN_SET, column="job", value_set=["nobody"])]})
    )
    assert validate_holdout(vault, lake, TOY, desk=desk, folder=None, now=200.0) == {}


def test_a_report_cut_short_by_a_crash_is_made_again(lake: Lake, tmp_path: Path) -> None:
    vault, desk = Vault(tmp_path / "vault"), tmp_path / "desk"
    vault.append("holdout", states(people(20, seed=5), 4, split="holdout"))
    validate_holdout(vault, lake, TOY, desk=desk, folder=None, now=200.0)
    path = place(desk) / "toy.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert holdout_reports(desk, "toy") == []
    validate_holdout(vault, lake, TOY, desk=desk, folder=None, now=300.0)
    assert [one.at for one in holdout_reports(desk, "toy")] == [300.0]
    assert path.read_bytes()[-2:] == b"}\n"


ODD = [
    GOOD,
    GOOD | {"age": 300},
    GOOD | {"job": "<b>"},
    GOOD | {"job": 7, "age": 300},
    GOOD | {"colour": 1},
    GOOD | {"age": None},
]


def test_small_windows_need_no_great_expectations_for_the_same_answer(validator: Validator) -> None:
    quick, slow = (validate(frame(ODD), SUITE, TOY, now=0.0, validator=one) for one in (None, validator))
    assert isinstance(quick, WindowReport)
    assert (quick.success, set(quick.failed)) == (slow.success, set(slow.failed))
    told = [{(one.type, one.column, one.failed, one.expected) for one in report.findings} for report in (quick, slow)]
    assert told[0] == told[1]


def test_a_large_window_gets_the_same_answer_from_checks_and_a_sample(validator: Validator) -> None:
    """Past a thousand rows the checks answer for the rows; the window's own expectations see the good ones."""
    rows = people(1500, seed=8) + ODD
    suite = profile(frame(people(600)), TOY)
    large = validate(frame(rows), suite, TOY, now=0.0, validator=validator)
    assert (large.success, list(large.failed)) == (True, ["r1501", "r1503", "r1504", "r1505"])
    assert all(not one.failed or one.rows for one in large.findings)


def test_where_checks_and_great_expectations_differ_it_decides_and_says_so(
    validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from truing.tasks.validation import window_rows

    monkeypatch.setattr(window_rows, "compile", lambda suite, problem: lambda batch: [None for _ in batch])
    rows = people(1500, seed=8) + [GOOD | {"age": 300}] * 40
    report = validate(frame(rows), SUITE, TOY, now=0.0, validator=validator)
    assert len(report.failed) >= 40
    assert [one.expected for one in report.findings if one.type == "row_checks"] == [
        "the checks at the door to agree with Great Expectations"
    ]


# --- for people ---------------------------------------------------------------------------------------------------------------


def test_a_person_sees_what_is_out_mends_the_suite_and_has_it_judged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems, data = tmp_path / "problems", tmp_path / "data"
    shutil.copytree(ROOT / "problems" / "adult", problems / "adult")
    rows = [ROW | {"age": 20 + n} for n in range(40)]
    lake = Lake(data / "lake")
    lake.append("rows", states(rows, 7).with_columns(pl.lit("adult").alias("problem")))
    suite_file(problems / "adult", expectation("expect_column_mean_to_be_between", column="age", max_value=30))
    (first,) = judge(lake, load_problem(problems / "adult"), problems / "adult", force=True)
    assert first.reason == "age: expected a mean of at most 30, got 39.5"

    def truing(*words: str) -> str:
        assert main(["windows", *words, "--data", str(data), "--problems", str(problems)]) == 0
        return capsys.readouterr().out

    assert "1 windows judged, 1 rejected" in truing("list", "--rejected")
    assert "age: expected a mean of at most 30" in truing("list")
    suite_file(problems / "adult", expectation("expect_column_mean_to_be_between", column="age", max_value=50))
    assert truing("again") == "adult:7-7: in, 0 rows alone\n"
    assert truing("again") == "no window left rows out under another suite than today's\n"
    shown = truing("show", "7-7", "--html", str(tmp_path / "window.html"))
    assert shown.index("admitted") < shown.index("rejected")
    assert "Judged before" in (tmp_path / "window.html").read_text()
    assert [one["success"] for one in json.loads(truing("show", "7-7", "--json"))["judgements"]] == [False, True]
    assert main(["windows", "show", "1-2", "--data", str(data), "--problems", str(problems)]) == 2
    assert "see `truing windows list`" in capsys.readouterr().err


def test_curate_judges_again_by_itself_what_a_mended_suite_may_let_in(lake: Lake, tmp_path: Path) -> None:
    folder = suite_file(tmp_path / "toy", expectation("expect_column_mean_to_be_between", column="pay", max_value=1))
    assert [one.success for one in judge(lake, TOY, folder, force=True)] == [False]
    assert judge(lake, TOY, folder, force=True) == []
    suite_file(folder, expectation("expect_column_mean_to_be_between", column="pay", max_value=100))
    assert [one.success for one in judge(lake, TOY, folder, force=True)] == [True]
