"""`truing gate explain` and `truing gate rebuild` on a data folder without any server, and what `verify` says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence
import msgspec
import pytest
from evidence import PROBLEM, Folder, text
from sealed import NOW, Rule, asked, lenient, sealed_rows

from truing.infra.settings import Settings
from truing.tasks import seal
from truing.tasks.evaluation.answers import Answers
from truing.tasks.evaluation.kept import DECISION, Decision, pack, store, unpack
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Verdict
from truing.tasks.release.book import open_book

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evidence.template(tmp_path_factory.mktemp("mlflow") / "registry")


@pytest.fixture(scope="module")
def answers(problem: Problem, policy: Policy) -> Answers:
    rule = Rule(problem, "occupation", where=lambda one: one["workclass"] == "Gov" and one["age"] >= 55)
    return asked(sealed_rows(problem, 4000), problem, policy, rule)


@pytest.fixture
def folder(
    tmp_path: Path, settings_in: Callable[..., Settings], policy: Policy, problem: Problem, template: Path, answers: Answers
) -> Folder:
    """Version 4 is judged on rows that are kept."""
    from dataclasses import replace

    made = Folder(settings_in(tmp_path), policy, template)
    payloads = answers.facts.payloads | {"candidate": made.payload("4")}
    own = replace(answers, facts=msgspec.structs.replace(answers.facts, payloads=payloads))
    how = Decision(version="4", dataset="d" * 64, key="gate", at=NOW, seed=1, made={"numpy": "2.4"})
    files = pack(own, problem, lenient(policy), how)
    evaluation, verdict = unpack(files).conclude()
    store(made.settings.desk / "evidence" / seal.digest(verdict), files, evaluation)
    envelope = seal.sign(verdict, seal.VERDICT_TYPE, made.ring.read("gate"))
    book = open_book(made.settings.desk / "book.jsonl", key=lambda: made.ring.read("release"), keys=made.ring.public())
    book.finish(book.add_verdict(envelope, at=made.now, version="4"), at=made.now)
    book.close()
    made.note("steward", "verdict", {"version": "4", "envelope": text(envelope)})
    made.tag("4", verdict=text(envelope), **{"verdict.outcome": str(verdict.outcome), "verdict.reason": verdict.reason})
    made.verdicts["4"] = verdict
    return made


@pytest.fixture
def truing(folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return evidence.command_line(folder.settings, capsys, monkeypatch)


def kept(folder: Folder) -> Path:
    return folder.settings.desk / "evidence" / seal.digest(folder.verdicts["4"])


def test_a_signed_verdict_is_made_again_from_the_steward_s_folder(truing: Any, folder: Folder) -> None:
    code, out, err = truing("gate", "rebuild", "4")
    assert code == 0 and out.startswith("adult version 4: the same verdict, byte for byte (block), from 4,000 rows"), out + err
    code, out, _ = truing("gate", "rebuild", "4", "--json")
    told = json.loads(out)
    assert code == 0 and told["same"] and told["faults"] == [] and told["verdict"] == seal.digest(folder.verdicts["4"])
    code, out, _ = truing("verify", "4")
    assert "4,000 rows give the same verdict, byte for byte" in out


def test_tampered_evidence_is_refused_by_name_there_and_in_verify(truing: Any, folder: Folder) -> None:
    file = kept(folder) / DECISION
    file.write_bytes(seal.canonical(msgspec.json.decode(file.read_bytes()) | {"seed": 9}))
    code, out, _ = truing("gate", "rebuild", "4")
    assert code == 3 and "not the verdict that was signed" in out and "decision.seed: expected" in out
    assert "it was made with numpy 2.4" in out
    code, out, _ = truing("verify", "4")
    assert code == 3 and "decision.seed" in out


def test_missing_evidence_and_strange_versions_are_said_in_one_line(truing: Any, folder: Folder) -> None:
    code, out, err = truing("gate", "rebuild", "3")
    assert code == 1 and not out and "expected the verdict's evidence, found no rows.parquet" in err
    code, _, err = truing("gate", "explain", "99")
    assert code == 2 and "expected one of the versions 1, 2, 3, 4, got 99" in err and err.count("\n") == 1


def test_explain_says_outcome_numbers_rows_needed_and_what_it_rests_on(truing: Any, folder: Folder) -> None:
    code, out, err = truing("gate", "explain", "4")
    verdict = folder.verdicts["4"]
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"{PROBLEM} version 4: block" and verdict.reason[1:] in lines[1]
    words = (
        "women's TPR", "Why", "Rows needed", "4,000 holdout rows judged", "look 1 at this candidate", "Gaps between groups",
        "TPR or FPR: highest − lowest", "AUROC champion", "workclass Gov", "accuracy fell by",
    )  # fmt: skip
    for said in words:
        assert said in out, said
    told = json.loads(truing("gate", "explain", "4", "--json")[1])
    assert msgspec.convert(told["verdict"], Verdict) == verdict
    assert told["evaluation"]["digest"] == verdict.evaluation and told["notes"] == []


def test_explain_goes_without_the_evaluation(truing: Any) -> None:
    """Version 2 was judged before evidence was kept, and MLflow holds no file of it."""
    code, out, _ = truing("gate", "explain", "2")
    assert code == 0 and out.startswith("adult version 2: pass") and "its evaluation is not at hand" in out
