"""A verdict is made again from its evidence, byte for byte, with nothing else; what was changed is found and named."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from sealed import NOW, Rule, asked, lenient, sealed_rows

from truing.tasks.errors import Unavailable
from truing.tasks.evaluation.answers import Answers, Measured
from truing.tasks.evaluation.kept import (
    DECISION,
    EVALUATION,
    FACTS,
    MANIFEST,
    POLICY,
    PROBLEM,
    ROWS,
    Decision,
    load,
    manifest,
    pack,
    store,
    unpack,
)
from truing.tasks.evaluation.rebuild import rebuild
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Estimate, Evaluation, Outcome, Verdict
from truing.tasks.seal import canonical, digest
from truing.tasks.tables.predictions import Predictions

Files = dict[str, bytes]
HOW = Decision(version="7", dataset="d" * 64, key="gate", at=NOW, seed=3, made={"numpy": "2"})
MEASURED = Measured(
    counterfactual={"flip:sex": Estimate(value=0.01, low=0.005, high=0.02, n=900)},
    importance={"age": 1.0},
    importance_shift=0.25,
)


@pytest.fixture(scope="module")
def answers(problem: Problem, policy: Policy) -> Answers:
    frame = sealed_rows(problem, 2500).with_columns(
        target=pl.when(pl.int_range(pl.len()) % 9 == 0).then(None).otherwise(pl.col("target"))
    )
    candidate = Rule(problem, "occupation", where=lambda one: one["workclass"] == "Gov" and one["age"] > 40)
    return asked(frame, problem, policy, candidate, measured=MEASURED, size_mb=0.5)


@pytest.fixture(scope="module")
def kept(answers: Answers, problem: Problem, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, Verdict]:
    files = pack(answers, problem, lenient(policy), HOW)
    evaluation, verdict = unpack(files).conclude()
    folder = tmp_path_factory.mktemp("evidence") / digest(verdict)
    store(folder, files, evaluation)
    return load(folder), verdict


def changed(files: Files, name: str, **fields: Any) -> Files:
    return files | {name: canonical(msgspec.json.decode(files[name]) | fields)}


def column(files: Files, name: str, values: pl.Expr) -> Files:
    table = io.BytesIO()
    pl.read_parquet(io.BytesIO(files[ROWS])).with_columns(values.alias(name)).write_parquet(table)
    return files | {ROWS: table.getvalue()}


def test_the_verdict_is_made_again_byte_for_byte_without_network_models_or_content(
    kept: tuple[Files, Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, verdict = kept
    monkeypatch.setattr(socket, "socket", None)
    again = rebuild(files, verdict)
    assert again.same and again.faults == () and again.verdict is not None
    assert canonical(again.verdict) == canonical(verdict)
    assert verdict.outcome is Outcome.BLOCK and len(verdict.clauses) > 8
    assert b"workclass" not in files[ROWS] and b"s000001" not in files[ROWS], "no content and no subject's name is kept"
    evaluation = msgspec.json.decode(files[EVALUATION], type=Evaluation)
    assert evaluation.counterfactual == MEASURED.counterfactual and evaluation.worst and evaluation.indicators


def test_what_was_measured_comes_from_the_evidence_and_models_of_one_payload_are_kept_once(kept: tuple[Files, Verdict]) -> None:
    case = unpack(kept[0])
    assert case.answers.probability["anchor"] is case.answers.probability["champion"]
    assert {name for name in manifest(kept[0]) if name.startswith("rows.probability")} == {
        "rows.probability.candidate", "rows.probability.champion",
    }  # fmt: skip
    assert case.conclude()[0].importance_shift == 0.25


@pytest.mark.parametrize(
    ("part", "tamper"),
    [
        ("decision.seed", lambda files: changed(files, DECISION, seed=4)),
        ("decision.at", lambda files: changed(files, DECISION, at=1.0)),
        ("facts.look", lambda files: changed(files, FACTS, look=2)),
        ("facts.latency_ms", lambda files: changed(files, FACTS, latency_ms=9.0)),
        ("policy", lambda files: changed(files, POLICY, version=2)),
        ("problem", lambda files: changed(files, PROBLEM, title="another")),
        ("rows.probability.candidate", lambda files: column(files, "probability.candidate", pl.lit(0.9))),
        ("rows.positive", lambda files: column(files, "positive", pl.col("label.candidate") == ">50K")),
        ("rows.judged", lambda files: column(files, "judged", pl.lit(True))),
        ("rows.groups", lambda files: column(files, "groups", pl.lit('{"sex": "Male"}'))),
        (ROWS, lambda files: files | {ROWS: b"nothing"}),
        (MANIFEST, lambda files: files | {MANIFEST: canonical({**json.loads(files[MANIFEST]), "policy": "0" * 64})}),
        (EVALUATION, lambda files: changed(files, EVALUATION, n=1_000_000)),
    ],
)
def test_what_was_changed_is_named(kept: tuple[Files, Verdict], part: str, tamper: Any) -> None:
    files, verdict = kept
    again = rebuild(tamper(files), verdict)
    assert not again.same
    assert any(fault.startswith(f"{part}:") for fault in again.faults), again.faults


def test_a_change_that_is_consistent_in_itself_still_fails_against_the_signed_verdict(
    kept: tuple[Files, Verdict], answers: Answers, problem: Problem, policy: Policy
) -> None:
    """Somebody rewrites everything, manifest and evaluation too: the signature names another evaluation."""
    softer = msgspec.structs.replace(lenient(policy), clause=policy.clause[:1])
    files = pack(answers, problem, softer, HOW)
    evaluation, _ = unpack(files).conclude()
    forged = files | {EVALUATION: canonical(evaluation), MANIFEST: canonical(manifest(files))}
    again = rebuild(forged, kept[1])
    assert not again.same
    assert any(fault.startswith(f"{EVALUATION}:") for fault in again.faults)
    assert any(fault.startswith("policy:") for fault in again.faults)


def test_a_verdict_signed_on_other_numbers_is_told_by_its_fields(kept: tuple[Files, Verdict]) -> None:
    files, verdict = kept
    other = msgspec.structs.replace(verdict, outcome=Outcome.PASS, look=3)
    faults = rebuild(files, other).faults
    assert any(fault.startswith('verdict.outcome: expected "pass", got "block"') for fault in faults)
    assert any(fault.startswith("verdict.look") for fault in faults)


def test_evidence_is_written_wholly_or_not_at_all_and_never_again(
    kept: tuple[Files, Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, verdict = kept
    evaluation = msgspec.json.decode(files[EVALUATION], type=Evaluation)
    bare = {name: data for name, data in files.items() if name not in (EVALUATION, MANIFEST)}
    folder = tmp_path / "evidence" / digest(verdict)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(Unavailable, match="No space left"):
            store(folder, bare, evaluation)
    assert list(tmp_path.rglob("*.json")) == []
    store(folder, bare, evaluation)
    before = (folder / ROWS).stat().st_mtime_ns
    store(folder, bare | {ROWS: b"other"}, evaluation)
    assert (folder / ROWS).stat().st_mtime_ns == before and load(folder) == files
    (folder / FACTS).unlink()
    with pytest.raises(Unavailable, match=r"found no facts\.json"):
        load(folder)


def test_rows_weighted_by_a_sample_come_back_too(problem: Problem, policy: Policy) -> None:
    few = asked(sealed_rows(problem, 400), problem, policy, Rule(problem, "occupation"))
    n = len(few.ids)
    weights = np.where(np.arange(n) % 3 == 0, 1.0, 4.0)
    given, noisy = few.positive.astype(float), np.zeros(n, dtype=bool)
    sampled = replace(few, weights=weights, drawn=few.judged, given=given, noisy=noisy)
    files = pack(sampled, problem, lenient(policy), HOW)
    evaluation, verdict = unpack(files).conclude()
    whole = files | {EVALUATION: canonical(evaluation), MANIFEST: canonical(manifest(files))}
    assert rebuild(whole, verdict).same
    heavier = column(whole, "weights", pl.col("weights") * 2)
    assert any(fault.startswith("rows.weights:") for fault in rebuild(heavier, verdict).faults)


def test_another_policy_on_the_same_rows(kept: tuple[Files, Verdict], policy: Policy) -> None:
    """What check-policy asks: would it have said otherwise?"""
    watched = tuple(msgspec.structs.replace(one, limit=0.9, anchor_limit=0.9) for one in policy.clause)
    loose = msgspec.structs.replace(lenient(policy), clause=watched, absolute=())
    assert unpack(kept[0]).conclude(loose)[1].outcome is Outcome.PASS


# --- predictions --------------------------------------------------------------------------------------------------------------


def test_answers_of_all_models_are_appended_once_an_evaluation(answers: Answers, tmp_path: Path) -> None:
    table = Predictions(tmp_path)
    facts = answers.facts
    for _ in range(2):
        table.keep(
            "adult", "e" * 64, answers.ids, payloads=facts.payloads, probability=answers.probability, label=answers.label,
            releases={"a" * 64: "adult@4"}, at=NOW,
        )  # fmt: skip
    found = table.of("e" * 64)
    assert found.height == 2 * len(answers.ids)
    assert set(found.select("model", "roles", "release").unique().iter_rows()) == {
        ("c" * 64, "candidate", None), ("a" * 64, "champion,none,anchor", "adult@4"),
    }  # fmt: skip
    mine = found.filter(pl.col("roles") == "candidate").sort("row")
    assert mine["probability"].to_list() == answers.probability["candidate"].tolist()
    assert table.of("f" * 64).is_empty()


def test_another_processors_arithmetic_gives_the_same_bytes(kept: tuple[Files, Verdict], tmp_path: Path) -> None:
    """OpenBLAS with the kernels of a processor of 2008, on one thread: other sums in the last digits, the same verdict."""
    files, verdict = kept
    for name, data in (files | {"signed.json": canonical(verdict)}).items():
        (tmp_path / name).write_bytes(data)
    script = (
        "import sys; from pathlib import Path; import msgspec\n"
        "from truing.tasks.evaluation.kept import load; from truing.tasks.evaluation.rebuild import rebuild\n"
        "from truing.tasks.records import Verdict\n"
        "here = Path(sys.argv[1]); signed = msgspec.json.decode((here / 'signed.json').read_bytes(), type=Verdict)\n"
        "print(rebuild(load(here), signed).faults)"
    )
    other = os.environ | {"OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=other, check=True)
    assert done.stdout.strip() == "()"
