"""The demo's page: self-contained, escaped, and its picture shows what was stopped."""

from __future__ import annotations

import re
from pathlib import Path

from truing.flows.demo.report import number, write
from truing.flows.demo.summary import Line, Summary
from truing.tasks.records import Estimate


def rate(value: float, spread: float = 0.03) -> Estimate:
    return Estimate(value=value, low=value - spread, high=value + spread, n=400)


def summary() -> Summary:
    lines = [
        Line(version="1", parent=None, learner="fast", rows=2000, outcome="inconclusive", reason="no champion", approver="ada",
             sequences=[1], groups={"Male": rate(0.65), "Female": rate(0.6)}, gap=rate(0.05),
             followed={"brier": rate(0.1, 0.01), "accuracy": rate(0.85)}),
        Line(version="2", parent="1", learner="slow", rows=5000, outcome="block", reason="women's TPR <fell> by 19.1 points",
             groups={"Male": rate(0.66), "Female": rate(0.41)}, gap=rate(0.25)),
        Line(version="3", parent="1", learner="fast", rows=5100, outcome="pass", reason="inside", approver="ada", sequences=[2],
             groups={"Male": rate(0.66), "Female": rate(0.61)}, gap=rate(0.05),
             gained={"brier against parent": rate(0.002, 0.001), "brier against never updated": rate(0.003, 0.001)}),
    ]  # fmt: skip
    return Summary(
        problem="adult", title="Income & more", lines=lines, group="sex", buckets=("Male", "Female"), metric="tpr",
        judged=12000,
        events={"landed": 100}, rows={"train": 50},
    )  # fmt: skip


def test_the_page_loads_nothing_and_escapes_what_it_shows(tmp_path: Path) -> None:
    page = write(summary(), tmp_path / "report" / "index.html", links={"MLflow <x>": "http://127.0.0.1:1/"}, now=0.0)
    text = page.read_text()
    assert not re.search(r"<script|<link|<img|src=|@import|url\((?!#)", text)
    assert "women&#x27;s TPR &lt;fell&gt; by 19.1 points" in text and "MLflow &lt;x&gt;" in text
    assert text.count("<tr>") == 1 + 3 and "Income &amp; more" in text


def test_the_picture_is_the_same_for_the_same_summary(tmp_path: Path) -> None:
    one = write(summary(), tmp_path / "a" / "index.html", links={}, now=0.0).with_suffix(".svg").read_text()
    two = write(summary(), tmp_path / "b" / "index.html", links={}, now=9.0).with_suffix(".svg").read_text()
    assert one == two and one.startswith("<svg")


def test_numbers_are_told_with_their_interval_and_the_missing_as_a_dash() -> None:
    assert number(Estimate(value=0.714, low=0.66, high=0.762, n=9)) == "71.4 (66.0 to 76.2)"
    assert number(Estimate(value=-0.002, low=-0.004, high=0.001, n=9), sign=True) == "−0.2 (−0.4 to +0.1)"
    assert number(None) == number(Estimate(value=None)) == "–"
