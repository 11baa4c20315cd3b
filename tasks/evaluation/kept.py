"""The evidence of a verdict: kept before the verdict is booked, and enough to make it again, byte for byte, with nothing else.

    rows.parquet     a row a line: id, subject's code, groups, label, every model's probability and answer, slices found
    facts.json       what is no column (answers.Facts), measured once: latency, shift, counterfactuals
    decision.json    dataset, key, time and seed of the verdict, and what it was made with
    policy.json      problem.json     the rules and the names
    evaluation.json  what came of it; manifest.json the digest of every part

No content and no subject's name is in it. The chain that binds it: the signed verdict names the evaluation by digest, the
evaluation names the manifest, and the manifest names each part: every column, fact and rule by its own digest. So a change is
found and said by name, whoever made it and however well it fits. The steward judges what it reads back from these very files.

Another processor's BLAS adds in another order, and the last of sixteen digits come out otherwise. So whatever was worked out is
rounded to ten before it is signed; where a number falls on the edge all the same, rebuilding names the field that differs.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import polars as pl

from truing.tasks.errors import DataError, Unavailable
from truing.tasks.evaluation.answers import MODELS, Answers, Facts
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.scores import Scores
from truing.tasks.flush import flush
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Evaluation, Record, Verdict
from truing.tasks.seal import canonical, digest, digest_bytes

ROWS, FACTS, DECISION, POLICY, PROBLEM = "rows.parquet", "facts.json", "decision.json", "policy.json", "problem.json"
EVALUATION, MANIFEST = "evaluation.json", "manifest.json"
PARTS = (ROWS, FACTS, DECISION, POLICY, PROBLEM)
DIGITS = 10
SAMPLE = ("weights", "drawn", "given", "noisy")

Files = dict[str, bytes]
R = TypeVar("R", bound=Record)


class Decision(Record, frozen=True):
    """What a verdict holds that doesn't follow from the answers. `made`: versions of what did the arithmetic."""

    version: str
    dataset: str
    key: str
    at: float
    seed: int
    made: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """Evidence as it was read back. `digest` is that of its manifest as it is now."""

    answers: Answers
    decision: Decision
    problem: Problem
    policy: Policy
    digest: str

    def assess(self, policy: Policy | None = None) -> tuple[Evaluation, Scores]:
        evaluation, scores = assess(self.answers, self.problem, policy or self.policy, evidence=self.digest)
        rounded: Evaluation = steady(msgspec.structs.replace(evaluation, digest=""))
        return msgspec.structs.replace(rounded, digest=digest(rounded)), scores

    def conclude(self, policy: Policy | None = None) -> tuple[Evaluation, Verdict]:
        """Evaluation and verdict; under another policy, what that one would have said of the same rows."""
        rules, how = policy or self.policy, self.decision
        evaluation, scores = self.assess(rules)
        verdict = judge(
            evaluation, scores, self.problem, rules, dataset=how.dataset, key=how.key, now=how.at, seed=how.seed
        )  # fmt: skip
        return evaluation, steady(verdict)


def steady(value: Any) -> Any:
    """The same record with every number worked out rounded to `DIGITS` significant digits; times stay as they are."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Record):
        names = [name for name in value.__struct_fields__ if name != "at"]
        return msgspec.structs.replace(value, **{name: steady(getattr(value, name)) for name in names})
    if isinstance(value, tuple):
        return tuple(steady(one) for one in value)
    return {name: steady(one) for name, one in value.items()} if isinstance(value, dict) else value


# --- keeping ------------------------------------------------------------------------------------------------------------------


def pack(answers: Answers, problem: Problem, policy: Policy, decision: Decision) -> Files:
    """Everything that the verdict will follow from, as files; `unpack` gives it back exactly."""
    columns: dict[str, Any] = {
        "id": answers.ids, "subject": answers.subjects, "groups": pl.Series(answers.groups, dtype=pl.String),
        "positive": answers.positive, "judged": answers.judged, "due": answers.due, "held": answers.held,
    }  # fmt: skip
    for name in _asked(answers.facts):
        columns[f"probability.{name}"], columns[f"label.{name}"] = answers.probability[name], answers.label[name].tolist()
    for name in SAMPLE:
        if getattr(answers, name) is not None:
            columns[name] = getattr(answers, name)
    columns |= {f"found.{i}": mask for i, mask in enumerate(answers.found)}
    table = io.BytesIO()
    pl.DataFrame(columns).write_parquet(table)
    return {
        ROWS: table.getvalue(), FACTS: canonical(answers.facts), DECISION: canonical(decision), POLICY: canonical(policy),
        PROBLEM: canonical(problem),
    }  # fmt: skip


def _asked(facts: Facts) -> list[str]:
    """One name of each payload: models of one payload say the same."""
    first: dict[str, str] = {}
    for name in MODELS:
        if name in facts.payloads:
            first.setdefault(facts.payloads[name], name)
    return list(first.values())


def manifest(files: Mapping[str, bytes]) -> dict[str, str]:
    """Digest of every part by name, `rows.<column>` or `facts.<field>`: of what is said, not of how a file writes it."""
    parts = {f"rows.{name}": hashlib.sha256(_column(column)).hexdigest() for name, column in _table(files).to_dict().items()}
    for name in (FACTS, DECISION):
        fields = decoded(files, name, dict[str, Any])
        parts |= {f"{name.removesuffix('.json')}.{field}": digest(value) for field, value in fields.items()}
    return parts | {name.removesuffix(".json"): digest_bytes(files[name]) for name in (POLICY, PROBLEM)}


def _column(column: pl.Series) -> bytes:
    if column.dtype == pl.String:
        return canonical(column.to_list())
    return f"{column.dtype}:".encode() + np.ascontiguousarray(column.to_numpy()).tobytes()


def store(folder: Path, files: Mapping[str, bytes], evaluation: Evaluation) -> None:
    """Write the evidence below `folder`, wholly or not at all. What is there already stays. Raises Unavailable."""
    if folder.exists():
        return
    whole = {**files, EVALUATION: canonical(evaluation), MANIFEST: canonical(manifest(files))}
    begun = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        for name, data in whole.items():
            with (begun / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        begun.rename(folder)
        flush(folder)
        flush(folder.parent)
    except OSError as error:
        shutil.rmtree(begun, ignore_errors=True)
        raise Unavailable(f"{folder}: expected to keep the evidence, got {error.strerror}; check the space left") from None


# --- reading back -------------------------------------------------------------------------------------------------------------


def load(folder: Path) -> Files:
    """The files of one verdict's evidence. Raises Unavailable when there is none, or it is closed to this user."""
    try:
        return {name: (folder / name).read_bytes() for name in (*PARTS, EVALUATION, MANIFEST)}
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise Unavailable(
            f"{folder}: expected the verdict's evidence, found no {missing}; restore it from a backup of the steward's folder"
        ) from None
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}; run as root or as the steward's account") from None


def unpack(files: Mapping[str, bytes]) -> Case:
    """Raises DataError on what is no evidence."""
    facts, table = decoded(files, FACTS, Facts), _table(files)
    found = {name: table[name] for name in table.columns}
    first = {facts.payloads[name]: name for name in reversed(_asked(facts))}
    try:
        said = {  # models of one payload share their arrays: nothing is counted twice
            of: (found[f"probability.{of}"].to_numpy().astype(float), np.array(found[f"label.{of}"].to_list(), dtype=str))
            for of in first.values()
        }
        answers = Answers(
            ids=found["id"].to_list(),
            subjects=found["subject"].to_numpy().astype(np.int64),
            groups=found["groups"].to_list(),
            positive=_bools(found["positive"]), judged=_bools(found["judged"]), due=_bools(found["due"]),
            held=_bools(found["held"]),
            probability={name: said[first[payload]][0] for name, payload in facts.payloads.items()},
            label={name: said[first[payload]][1] for name, payload in facts.payloads.items()},
            facts=facts,
            found=[_bools(found[f"found.{i}"]) for i in range(len(facts.found))],
            **{name: found[name].to_numpy() for name in SAMPLE if name in found},
        )  # fmt: skip
    except (KeyError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{ROWS}: expected a column for every model and slice of {FACTS}, got {error!r}; restore it") from None
    return Case(
        answers=answers,
        decision=decoded(files, DECISION, Decision),
        problem=decoded(files, PROBLEM, Problem),
        policy=decoded(files, POLICY, Policy),
        digest=digest(manifest(files)),
    )


def _bools(column: pl.Series) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return column.to_numpy().astype(bool)


def _table(files: Mapping[str, bytes]) -> pl.DataFrame:
    try:
        return pl.read_parquet(io.BytesIO(files[ROWS]))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{ROWS}: expected a parquet table, got {' '.join(str(error).split())[:120]}; restore it") from None


def decoded(files: Mapping[str, bytes], name: str, kind: type[R] | Any) -> Any:
    try:
        return msgspec.json.decode(files[name], type=kind)
    except msgspec.MsgspecError as error:
        raise DataError(f"{name}: expected {getattr(kind, '__name__', kind)} as JSON, got {error}; restore it") from None
