"""Lineage: descent, gaps, pictures and answers, from acts signed as they would be."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import polars as pl
import pytest
from clerk import Clerk
from ports import free_ports
from test_gate import NOW, RULES, Reader, rows, weigh

from truing.flows.cli.lineage import do_lineage
from truing.flows.cli.main import parser
from truing.infra.keys import Keyring
from truing.infra.past import bound
from truing.infra.settings import Ports, Settings
from truing.tasks import seal
from truing.tasks.errors import DataError, Unavailable, UsageError
from truing.tasks.evaluation.answers import ask
from truing.tasks.evaluation.kept import Case, Decision, pack, unpack
from truing.tasks.evaluation.meeting import meet
from truing.tasks.events.schema import pseudonym
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Cause, Cell, DatasetVersion, Estimate, Evaluation, Outcome, Release, Verdict
from truing.tasks.records import Clause as Decided
from truing.tasks.release.disparity import chosen_gap
from truing.tasks.release.lineage import Family, family
from truing.tasks.release.lineage_answers import Taught, changed, learned_from
from truing.tasks.release.lineage_page import family_html, picture_file
from truing.tasks.release.lineage_picture import family_svg
from truing.tasks.release.lineage_strip import strip_svg
from truing.tasks.statistics.intervals import gap as interval_of
from truing.tasks.statistics.intervals import rate_interval
from truing.tasks.tables.lake import Lake

PROBLEMS = Path(__file__).parents[1] / "problems"
DAY = 86_400.0
NOTHING = Estimate(value=None)


def payload(number: int | str) -> str:
    return seal.digest(f"payload {number}")


def cell(slice_: str, metric: str, n: int, **values: float | None) -> Cell:
    """A cell whose drops have intervals of three standard errors' width at 3 % discordance."""
    known = {name: values.get(name) for name in ("champion", "candidate", "none", "anchor")}
    sign = -1.0 if metric in ("fpr", "brier") else 1.0

    def drop(name: str) -> Estimate:
        if known[name] is None or known["candidate"] is None:
            return NOTHING
        value = sign * (float(known[name] or 0.0) - float(known["candidate"] or 0.0))
        half = 1.96 * (0.03 / n) ** 0.5
        return Estimate(value=value, low=value - half, high=value + half, n=n)

    return Cell(
        slice=slice_, metric=metric, n=n, base_rate=0.3, delta=drop("champion"), delta_none=drop("none"),
        delta_anchor=drop("anchor"), **known,
    )  # fmt: skip


class Town:
    """A problem's history written by hand: versions with parents, verdicts, decisions and releases, all signed."""

    def __init__(self, problem: Problem, policy: Policy) -> None:
        self.problem, self.policy = problem, policy
        self.clerk = Clerk(seal.new_key(), seal.new_key(), seal.new_key())
        self.releases: list[Release] = []
        self.verdicts: dict[str, Verdict] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.candidates: dict[str, Candidate] = {}
        self.datasets: dict[str, DatasetVersion] = {}
        self.rates: dict[str, tuple[float, float]] = {}
        self.anchor: str | None = None
        self.now = 1_760_000_000.0

    def add(self, parent: str | None, outcome: Outcome, rates: tuple[float, float], **more: Any) -> str:
        """A version with (men's, women's) TPR, judged against what serves."""
        version = str(len(self.candidates) + 1)
        self.now += DAY
        self.rates[version] = rates
        self.clerk.write("version", "trainer", at=self.now, version=version, payload=payload(version), trainer="trainer")
        dataset, mends = seal.digest(f"dataset {version}"), more.pop("repairs", None)
        self.candidates[version] = Candidate(
            problem="adult", payload=payload(version), parent=payload(parent) if parent else None, base="b", code="1",
            kind="tabular", dataset=dataset, trial=None, seed=1, origin=more.pop("origin", "fast"), registered=self.now,
            rows=2000 + 500 * int(version), repairs=payload(mends) if mends else None,
        )  # fmt: skip
        self.datasets[dataset] = DatasetVersion(
            digest=dataset, problem="adult", tables={"rows": int(version)}, samples=2000 + 500 * int(version),
            by_reason={"outcome": 500, "rating": 1500 + 500 * int(version)}, by_label={}, by_group={"sex=Female": 900},
            raters={"a" * 32: 0.1, "b" * 32: 0.05}, selection="s", seed=1,
        )  # fmt: skip
        serving = self.releases[-1] if self.releases else None
        known = {"champion": serving.version if serving else None, "none": parent, "anchor": self.anchor, "candidate": version}
        cells = []
        for at, bucket in enumerate(("Male", "Female")):
            values = {name: self.rates[one][at] for name, one in known.items() if one}
            cells += [
                cell(f"sex={bucket}", "tpr", (2000, 1000)[at], **values),
                cell(
                    f"sex={bucket}", "accuracy", (9000, 4000)[at], **{name: 0.8 + value / 10 for name, value in values.items()}
                ),
            ]
        evaluation = Evaluation(
            digest="", problem="adult", candidate=payload(version), rows="r", n=13_000, coverage=1.0, cells=tuple(cells),
            champion=payload(serving.version) if serving else None, none=payload(parent) if parent else None,
            anchor=payload(self.anchor) if self.anchor else None, forgetting=NOTHING, flips=0.03, shift={}, latency_ms=1.0,
            size_mb=1.0, at=self.now, **more,
        )  # fmt: skip
        self.evaluations[version] = evaluation
        blocked = Decided(
            name="women's TPR", slice="sex=Female", metric="tpr", outcome=outcome, deciding=True, against="champion",
            delta=NOTHING, limit=0.07, reason="women's TPR fell by 14.1 points (limit 7.0, joint lower bound 9.3)",
        )  # fmt: skip
        reason = {"block": blocked.reason, "pass": "all 9 deciding comparisons are inside the limits on 13,000 rows"}
        self.verdicts[version] = Verdict(
            problem="adult", outcome=outcome, clauses=(blocked,), candidate=payload(version), evaluation="e", policy="p" * 64,
            dataset=dataset, champion=evaluation.champion, look=1, at=self.now + 60, key="gate",
            reason=reason.get(outcome.value, "no champion"),
        )  # fmt: skip
        return version

    def approve(self, version: str, reason: str = "gaps and gains reviewed", decision: str = "approved") -> str:
        line = self.clerk.decide(version, self.verdicts[version], decision, at=self.now + 120, reason=reason)
        return line.digest

    def release(
        self, version: str, cause: Cause = Cause.PROMOTE, reason: str = "gaps and gains reviewed", asked: str = ""
    ) -> None:
        self.now += DAY / 4
        sequence = len(self.releases) + 1
        one = Release(
            problem="adult", name=f"adult@{sequence}", version=version, sequence=sequence, payload=payload(version),
            verdict=None, approval=None, dataset="d", policy="p", environment={}, cause=cause,
            replaces=sequence - 1 or None, at=self.now, expires=None, reason=reason, asked=asked or None,
        )  # fmt: skip
        self.releases.append(one)
        self.clerk.attach(one)

    def pin(self, version: str) -> None:
        self.anchor = version
        self.clerk.write("anchor", version=version, reason="the first that people trust")

    def family(self, **more: Any) -> Family:
        facts: dict[str, Any] = {
            "verdicts": self.verdicts, "evaluations": self.evaluations, "candidates": self.candidates,
            "vouched": frozenset(self.verdicts), "datasets": self.datasets,
            "asked": {line.digest: line.entry.user for line in self.clerk.lines},
        }  # fmt: skip
        return family(self.problem, self.policy, self.clerk.docket(), self.releases, **{**facts, **more})


def small(problem: Problem, policy: Policy) -> Town:
    """v1 genesis and anchor, v2 released, v3 blocked, v4 released, back to v2, v5 waits."""
    town = Town(problem, policy)
    one = town.add(None, Outcome.INCONCLUSIVE, (0.60, 0.45))
    town.release(one, Cause.GENESIS, "better than the prior predictor", town.approve(one, "first release"))
    town.pin(one)
    two = town.add(one, Outcome.PASS, (0.60, 0.54))
    town.release(two, asked=town.approve(two))
    town.approve(town.add(two, Outcome.BLOCK, (0.62, 0.40), origin="slow"), "harms women", "rejected")
    four = town.add(two, Outcome.PASS, (0.63, 0.60), importance_shift=0.12)
    town.release(four, asked=town.approve(four))
    back = town.clerk.ask_back(two, "complaints from branch 12", at=town.now)
    town.release(two, Cause.ROLLBACK, "complaints from branch 12", back.digest)
    town.add(two, Outcome.PASS, (0.62, 0.58))
    return town


def large(problem: Problem, policy: Policy, count: int = 300, seed: int = 4) -> Town:
    """So many versions, every third released, some blocked, some rolled back."""
    town, rng = Town(problem, policy), random.Random(seed)
    town.release(town.add(None, Outcome.INCONCLUSIVE, (0.60, 0.45)), Cause.GENESIS, "first")
    town.pin("1")
    while len(town.candidates) < count:
        serving = town.releases[-1].version
        men, women = town.rates[serving]
        outcome = rng.choices([Outcome.PASS, Outcome.BLOCK, Outcome.INCONCLUSIVE], [0.5, 0.3, 0.2])[0]
        step = -0.12 if outcome is Outcome.BLOCK else rng.uniform(-0.012, 0.016)
        rates = (min(0.75, men + rng.uniform(-0.01, 0.011)), max(0.3, min(0.72, women + step)))
        version = town.add(serving, outcome, rates)
        if outcome is Outcome.PASS and rng.random() < 0.7:
            town.release(version, asked=town.approve(version))
            if rng.random() < 0.06:
                town.release(serving, Cause.ROLLBACK, "complaints")
    return town


# --- the family ---------------------------------------------------------------------------------------------------------------


def test_descent_releases_and_states_are_those_of_the_audit(problem: Problem, policy: Policy) -> None:
    found = small(problem, policy).family()
    by = {one.version: one for one in found.members}
    assert [by[n].parent for n in "12345"] == [None, "1", "2", "2", "2"]
    assert [by[n].generation for n in "12345"] == [0, 1, 2, 2, 2]
    assert [by[n].state for n in "12345"] == ["released", "serves", "blocked", "released", "passed"]
    assert [one.sequence for one in by["2"].served] == [2, 4] and by["2"].served[-1].cause == "rollback"
    assert by["1"].anchor and not by["2"].anchor and found.ancestors("5") == ["2", "1"]
    assert (by["3"].blocked_by, by["3"].words[-1].decision) == (("women's TPR",), "rejected")
    assert [one.by for one in found.served] == [("approver",)] * 4
    assert found.served[1].ended == found.served[2].at and found.served[-1].ended is None
    assert by["4"].champion == "2" and by["4"].importance_shift == 0.12
    assert by["4"].taught is not None and by["4"].taught.raters["a" * 32] == 0.1


def test_a_parent_that_is_younger_or_unknown_is_no_parent(problem: Problem, policy: Policy) -> None:
    town = small(problem, policy)
    town.candidates["1"] = msgspec.structs.replace(town.candidates["1"], parent=payload("2"))
    town.candidates["2"] = msgspec.structs.replace(town.candidates["2"], parent=payload("elsewhere"))
    by = {one.version: one for one in town.family(vouched=frozenset()).members}
    assert by["1"].parent is by["2"].parent is None and not by["4"].vouched


def test_a_repair_names_what_it_mends(problem: Problem, policy: Policy) -> None:
    town = small(problem, policy)
    town.add("2", Outcome.PASS, (0.61, 0.59), origin="repair", repairs="3")
    found = town.family()
    assert found.members[-1].repairs == "3" and ">repairs v3 · 5,000 rows<" in family_svg(found)


def test_a_gap_and_its_changes_are_between_the_same_two_buckets_on_the_same_rows(problem: Problem, policy: Policy) -> None:
    found = small(problem, policy).family()
    assert found.wanted == ("sex", "tpr")
    gap = found.members[3].gap(found.wanted)
    assert gap is not None and (gap.over, gap.under) == ("Male", "Female")
    assert gap.gap.value == pytest.approx(0.03) and gap.parent.value == pytest.approx(0.06)
    assert gap.against_parent.value == pytest.approx(-0.03) and gap.against_anchor.value == pytest.approx(-0.12)
    assert gap.against_parent.low is not None and gap.against_parent.high is not None
    each = 1.96 * math.sqrt(0.03 / 2000 + 0.03 / 1000)  # both buckets' paired intervals together
    assert gap.against_parent.high - gap.against_parent.low == pytest.approx(2 * each)
    newcombe = interval_of(rate_interval(0.63 * 2000, 2000), rate_interval(0.6 * 1000, 1000))
    assert (gap.gap.low, gap.gap.high) == (newcombe.low, newcombe.high)


def test_the_gap_that_is_shown_is_the_policys_first(problem: Problem, policy: Policy) -> None:
    race = msgspec.structs.replace(policy.clause[3], slice="race=Black", metric="fpr")
    other = msgspec.structs.replace(policy, clause=(race, *policy.clause))
    assert chosen_gap(problem, policy) == ("sex", "tpr") and chosen_gap(problem, other) == ("race", "fpr")
    assert chosen_gap(problem, msgspec.structs.replace(policy, clause=policy.clause[:1])) == ("sex", "tpr")


def test_nothing_released_and_nothing_at_all(problem: Problem, policy: Policy) -> None:
    town = Town(problem, policy)
    assert "no version yet" in family_svg(town.family()) and "Nothing serves" in family_html(town.family(), now=0.0)
    town.add(None, Outcome.BLOCK, (0.5, 0.5))
    assert "Nothing serves" in family_html(town.family(evaluations={}, candidates={}), now=0.0)


# --- pictures -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small, large])
def test_pictures_are_whole_xml_that_loads_nothing(problem: Problem, policy: Policy, make: Any) -> None:
    found = make(problem, policy).family()
    page = family_html(found, now=0.0)
    ElementTree.fromstring(picture_file(found))  # noqa: S314 - our own text
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)  # noqa: S314
    assert not re.search(r"<script|<link|src=|@import|url\(", page)
    assert page.count("<details") == len(found.members)


def test_three_hundred_versions_are_folded_but_none_that_was_released_or_is_new(problem: Problem, policy: Policy) -> None:
    found = large(problem, policy).family()
    svg = family_svg(found)
    named = set(re.findall(r">v(\d+)</text>", svg))
    assert {one.version for one in found.members if one.served} <= named
    assert {str(number) for number in range(293, 301)} <= named
    folded = re.findall(r">v(\d+) – v(\d+): ([^<]+)<", svg)
    counted = sum(int(count) for _, _, said in folded for count in re.findall(r"(\d+) ", f"{said} "))
    assert len(named) + counted == 300 and len(folded) > 20
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)', svg).group(1))  # type: ignore[union-attr]
    assert height < 300 * 24
    assert 'class="band"' in strip_svg(found)


def test_what_people_write_is_text_and_nothing_else(problem: Problem, policy: Policy) -> None:
    town = small(problem, policy)
    town.approve("5", '<img src=x onerror="alert(1)">')
    page = family_html(town.family(), now=0.0)
    assert "<img" not in page and "&lt;img" in page and "<img" not in picture_file(town.family())


# --- questions ----------------------------------------------------------------------------------------------------------------


def test_who_was_taught_by_somebody_and_who_inherited_it(problem: Problem, policy: Policy) -> None:
    town = small(problem, policy)
    given = {town.candidates["2"].dataset: Taught(samples=7, weight=0.1)}
    found = learned_from(town.family(), given)
    assert [(one.version, one.through) for one in found] == [("2", "2"), ("3", "2"), ("4", "2"), ("5", "2")]
    assert [one.version for one in found if one.releases] == ["2", "4"]
    assert found[0].taught.samples == 7 and found[1].taught.samples == 0
    assert not learned_from(town.family(), {})


def test_what_changed_between_two_versions_and_for_whom(problem: Problem, policy: Policy) -> None:
    town = small(problem, policy)
    samples = {
        "2": {"r1": ("<=50K", "a", 1.0), "r2": (">50K", "b", 1.0), "r3": (">50K", None, 1.0)},
        "4": {"r1": (">50K", "a", 1.0), "r3": (">50K", None, 1.0), "r4": (">50K", "a", 1.0), "r5": (">50K", None, 1.0)},
    }
    said = changed(town.family(), "2", "4", evaluations=town.evaluations, samples=samples)
    assert said.rows is not None and msgspec.structs.astuple(said.rows) == (3, 4, 2, 1, 1)
    assert said.path == ("4", "2") and said.met == "champion" and said.importance_shift == 0.12
    assert said.raters["b"] == pytest.approx((1 / 3, 0.0)) and said.raters["a"] == pytest.approx((1 / 3, 0.5))
    women = next(one for one in said.changes if (one.slice, one.metric) == ("sex=Female", "tpr"))
    assert women.gain is not None and women.gain.value == pytest.approx(0.06) and women.sure == 1
    assert (women.old.value, women.new.value) == (pytest.approx(0.54), pytest.approx(0.60))
    apart = changed(town.family(), "3", "5", evaluations=town.evaluations)
    assert apart.met == "" and apart.path == () and all(one.gain is None for one in apart.changes) and apart.rows is None
    assert changed(town.family(), "1", "5", evaluations=town.evaluations).met == "anchor"


def test_two_versions_that_never_met_are_compared_on_the_rows_of_both(problem: Problem) -> None:
    """Judged on different days: rows 0-4,999 and 1,000-5,999. It says what a comparison of these 4,000 says."""

    def kept(frame: pl.DataFrame, name: str, champion: str) -> Case:
        answers = ask(
            frame, problem, RULES, candidate=Reader(name, problem), champion=Reader(champion, problem), none=None, anchor=None,
            digests={"candidate": f"payload-{name}", "champion": f"payload-{champion}"}, look=1, now=NOW,
        )  # fmt: skip
        return unpack(pack(answers, problem, RULES, Decision(version="1", dataset="d", key="k", at=NOW, seed=1)))

    frame = rows(problem, 6000, harm=0.3)
    first, second = kept(frame[:5000], "old", "far"), kept(frame[1000:], "new", "far")
    met = meet(first, second)
    assert met is not None and (met.n, met.champion, met.candidate) == (4000, "payload-old", "payload-new")
    direct, _ = weigh(frame[1000:5000], problem)
    assert [one.delta for one in met.cells] == [one.delta for one in direct.cells]
    assert meet(kept(frame[:1000], "old", "far"), kept(frame[1000:], "new", "far")) is None


# --- the verb -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, problem: Problem, policy: Policy) -> Settings:
    """The small town on disk: its audit, and a lake with samples of two people. No MLflow, no book."""
    given = Settings(data=tmp_path / "data", problems=PROBLEMS, ports=Ports(registry=free_ports(1)[0]))
    ring = Keyring(given.keys)
    ring.create([])
    town = Town(problem, policy)
    town.clerk = Clerk(ring.read("registry"), ring.read("gate"), ring.read("release"))
    one = town.add(None, Outcome.INCONCLUSIVE, (0.6, 0.5))
    town.clerk.write(
        "verdict", version=one, envelope=town.clerk.envelope(town.verdicts[one], seal.VERDICT_TYPE, town.clerk.gate)
    )
    town.release(one, Cause.GENESIS, "first", town.approve(one))
    given.guard.mkdir(parents=True)
    (given.guard / "audit.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in town.clerk.lines))
    anna = pseudonym(ring.read("actor-salt"), "adult", "anna")
    lake = Lake(given.lake)
    lake.record("datasets", list(town.datasets.values()))
    lines = {"problem": "adult", "dataset": town.candidates[one].dataset, "row": ["r1", "r2", "r3", "r4"], "target": ">50K"}
    lake.append("samples", pl.DataFrame(lines | {"origin": "rating", "actor": [anna, anna, "b" * 32, None], "weight": 0.5}))
    lake.append(
        "rows", pl.DataFrame({"id": ["r1", "r2", "r9"], "problem": "adult", "actor": [anna, anna, "c" * 32], "revision": 1})
    )
    return given


def run(settings: Settings, *words: str) -> int:
    return do_lineage(parser().parse_args(["lineage", *words]), settings)


def test_the_verb_tells_writes_and_answers(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture = tmp_path / "out" / "l.html", tmp_path / "out" / "l.svg"
    assert run(settings, "--html", str(page), "--svg", str(picture)) == 0
    told = capsys.readouterr().out
    assert "v1" in told and "genesis" in told and "approver" in told and str(page) in told
    assert page.read_text().startswith("<!doctype html>") and picture.read_text().startswith("<svg xmlns")
    assert run(settings, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["members"][0]["state"] == "serves" and said["members"][0]["taught"]["samples"] == 2500


def test_a_person_is_found_by_name_and_by_hash(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings, "--actor", "anna", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["released"] == ["1"] and said["labels"] == 2
    assert said["versions"][0]["taught"] == {"samples": 2, "weight": 0.5, "about": 0, "erased": 0}
    assert run(settings, "--actor", said["actor"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["versions"] == said["versions"]
    run(settings, "--actor", "c" * 32)
    assert "1 labels of theirs landed, none was taken" in capsys.readouterr().out
    run(settings, "--actor", "nobody")
    assert "nothing of theirs is in the lake" in capsys.readouterr().out


def test_what_can_not_be_asked_is_told_in_one_line(settings: Settings) -> None:
    with pytest.raises(DataError, match="expected two of the versions 1, got 9"):
        run(settings, "--between", "1", "9")
    with pytest.raises(UsageError, match="expected a group of sex, race, age"):
        run(settings, "--gap", "hair:tpr")
    (settings.keys / "ingest" / "actor-salt").unlink()
    with pytest.raises(Unavailable, match="expected a keyed hash"):
        run(settings, "--actor", "anna")


def test_an_evaluation_counts_only_if_it_is_the_one_that_was_signed(problem: Problem) -> None:
    evaluation = weigh(rows(problem, 500), problem)[0]
    raw = seal.canonical(evaluation)
    assert bound(raw, evaluation.digest) == evaluation
    older = {key: value for key, value in msgspec.json.decode(raw).items() if key not in ("indicators", "worst", "evidence")}
    old = seal.digest(older | {"digest": ""})  # written before the record grew
    assert bound(seal.canonical(older | {"digest": old}), old).n == 500
    for forged in (raw.replace(b'"n":500', b'"n":501', 1), raw + b" ", b"{}"):
        with pytest.raises(ValueError, match="expected"):
            bound(forged, evaluation.digest)
