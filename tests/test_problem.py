"""Problem and policy files: a mistake is one line with file, key, expected and got."""

from __future__ import annotations

from pathlib import Path

import pytest

from truing.tasks.errors import ProblemError
from truing.tasks.policy import load_policy
from truing.tasks.problem import Problem, Splits, load_problem, seconds, split_of
from truing.tasks.records import Split

ROOT = Path(__file__).resolve().parent.parent / "problems" / "adult"


def edited(tmp_path: Path, old: str, new: str, *, file: str = "problem.toml") -> Path:
    folder = tmp_path / "adult"
    folder.mkdir()
    for name in ("problem.toml", "policy.toml"):
        text = (ROOT / name).read_text()
        if name == file:
            assert old in text
            text = text.replace(old, new, 1)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "adult"', 'name = "other"', "name: expected 'adult' like its folder, got 'other'"),
        ('positive = ">50K"', 'positive = "rich"', "positive: expected one of"),
        ('kind = "tabular"', "kind = 3", "kind: expected `str`, got `int`"),
        ('kind = "tabular"', 'kind = "tabular"\ncolour = "red"', "unknown field `colour`"),
        ('title = "', "title = ", "expected TOML"),
        ("holdout = 0.3", "holdout = 1.5", "splits: expected shares"),
        ('outcome = "5s"', 'outcome = "5 seconds"', "expected a duration like 30s"),
        ("edges = [30, 45, 60]", "edges = [45, 30]", "expected rising numbers"),
        ('relationship = { type = "category" }', 'sex = { type = "category" }', "protected groups"),
    ],
)
def test_a_bad_problem_file_is_told_in_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ProblemError) as caught:
        load_problem(edited(tmp_path, old, new))
    message = str(caught.value)
    assert says in message and "problem.toml" in message and "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('metric = "brier"', 'metric = "beauty"', "metric: expected one of brier"),
        ('slice = "sex=Female"', 'slice = "sex=Woman"', "expected a bucket of sex"),
        ('slice = "sex=Female"', 'slice = "women"', "slice: expected all or group=bucket"),
        ("resamples = 20000", "resamples = 100", "expected at least 10000"),
        ("passing = 0.008", "passing = 0.5", "levels.passing"),
    ],
)
def test_a_bad_policy_file_is_told_in_one_line(tmp_path: Path, problem: Problem, old: str, new: str, says: str) -> None:
    with pytest.raises(ProblemError) as caught:
        load_policy(edited(tmp_path, old, new, file="policy.toml"), problem)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="expected a file, found none"):
        load_problem(tmp_path / "nothing")


def test_a_subject_keeps_its_split_for_ever_and_shares_hold() -> None:
    splits = Splits(holdout=0.3, validation=0.1)
    found = [split_of(f"subject-{i}", b"salt", splits) for i in range(20_000)]
    assert found == [split_of(f"subject-{i}", b"salt", splits) for i in range(20_000)]
    assert abs(found.count(Split.HOLDOUT) / 20_000 - 0.3) < 0.015  # five standard errors
    assert abs(found.count(Split.VALIDATION) / 20_000 - 0.1) < 0.011
    assert found != [split_of(f"subject-{i}", b"other", splits) for i in range(20_000)]


def test_buckets_name_the_unknown(problem: Problem) -> None:
    assert problem.buckets({"sex": "Female", "age": 29.9}) == {"sex": "Female", "race": "unknown", "age": "<30"}
    assert problem.bucket("age", 45) == "45-60"
    assert problem.bucket("age", 60) == ">=60"
    assert problem.bucket("age", "old") == "unknown"
    assert problem.bucket("sex", "X") == "unknown"


def test_durations_have_units() -> None:
    assert [seconds(text) for text in ("5s", "15m", "24h", "90d")] == [5, 900, 86_400, 7_776_000]
