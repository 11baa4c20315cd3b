"""Repair in the loop: a version that a fairness clause blocked → one more candidate, registered like any other.

Run by the trainer: it sees the signed verdict and the rows that taught, no holdout row and no key. What it makes of them is
judged by the steward, beside the version that was blocked. A version is repaired once; asked again, the candidate is the same.
"""

from __future__ import annotations

import base64
from importlib.metadata import version as installed
from typing import TYPE_CHECKING

import msgspec

from truing.flows.loop import Progress, model, silent, teachable_rows
from truing.tasks import seal
from truing.tasks.errors import Refused
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Outcome, Refusal, Split, Verdict

if TYPE_CHECKING:
    import polars as pl

    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Version
    from truing.tasks.tables.lake import Lake


def mend(
    lake: Lake,
    registry: Registry,
    problem: Problem,
    policy: Policy,
    version: str,
    *,
    now: float,
    progress: Progress = silent,
) -> Candidate | None:
    """A registered repair of a blocked version, the one that was made of it before, or None when no correction helps.

    Raises Refused where there is nothing to repair: the policy says no, it is a repair itself, or no clause about a group
    blocked it.
    """
    import polars as pl

    from truing.tasks.evaluation.repair import attribute_of, harmed, repair

    seen = registry.version(problem.name, version)
    verdict = repairable(seen, policy)
    blocked = seen.candidate
    if blocked is None:
        raise _refused("candidate.none", f"version {version} does not name its candidate", "see `truing verify`")
    known = repair_of(registry.versions(problem.name), blocked.payload)
    if known is not None and known.candidate is not None:
        return known.candidate
    samples = taught(lake, problem, blocked.dataset)
    if samples.is_empty():
        raise _refused(
            "dataset.gone", f"no row of dataset {blocked.dataset[:12]} is left", "let the loop learn a new candidate"
        )
    validation = teachable_rows(lake, problem).filter(pl.col("split") == str(Split.VALIDATION))
    serving = registry.champion(problem.name)
    champion, before = model(registry, problem, serving), model(registry, problem, version)
    if before is None or before.payload != blocked.payload:
        raise _refused("payload.other", f"version {version} holds other bytes than its candidate names", "register it again")
    progress(1, 3, f"{samples.height} rows had taught version {version}")
    asked = harmed(verdict.clauses)
    made = repair(
        problem, samples, validation, before,
        attribute=attribute_of(asked), champion=champion, clauses=verdict.clauses,
        methods=policy.repair.methods, by_group_thresholds=policy.repair.by_group_thresholds,
    )  # fmt: skip
    if made is None:
        progress(3, 3, "no correction does better")
        return None
    progress(2, 3, made.note)
    files = made.model.to_files()
    candidate = Candidate(
        problem=problem.name,
        payload=seal.tree_digest(files),
        parent=champion.payload if champion else blocked.parent,
        base=made.model.base,
        code=installed("truing"),
        kind=problem.kind,
        dataset=blocked.dataset,
        trial=None,
        seed=blocked.seed,
        origin="repair",
        registered=now,
        rows=samples.height,
        repairs=blocked.payload,
        note=made.note,
    )
    run = registry.log_run(
        problem.name,
        f"repair of version {version}",
        {"method": made.method, "attribute": made.attribute, "dataset": blocked.dataset, "tried": str(made.tried)},
        {f"{name}_{side}": float(getattr(values, name)) for side, values in (("before", made.before), ("after", made.after))
         for name in ("gap", "accuracy", "brier")},
        {"truing.act": "repair", "truing.version": version},
    )  # fmt: skip
    registry.register(problem.name, files, candidate, run=run)
    progress(3, 3, "registered")
    return candidate


def repairable(seen: Version, policy: Policy) -> Verdict:
    """The verdict that asks for a repair. Raises Refused where none does.

    Its signature is not asked for: whatever it says, what comes of it has to pass the gate.
    """
    from truing.tasks.evaluation.repair import harmed

    number, verdict = seen.version, verdict_of(seen)
    if not policy.repair.enabled:
        raise _refused(
            "repair.off", "the policy does not want repairs", "set repair.enabled in policy.toml, and have it accepted"
        )
    if verdict is None:
        raise _refused("verdict.none", f"version {number} has no verdict yet", "wait for the steward")
    if seen.candidate is not None and seen.candidate.origin == "repair":
        raise _refused("repair.twice", f"version {number} is a repair itself", "let the loop learn a new candidate")
    if verdict.outcome is not Outcome.BLOCK or not harmed(verdict.clauses):
        why = "is not blocked" if verdict.outcome is not Outcome.BLOCK else "is blocked by no clause about a group"
        raise _refused("repair.nothing", f"version {number} {why}", "repair only what harms a group")
    return verdict


def repair_of(history: list[Version], payload: str) -> Version | None:
    """The version that repairs this payload, if there is one."""
    found = [one for one in history if one.candidate is not None and one.candidate.repairs == payload]
    return found[-1] if found else None


def verdict_of(seen: Version) -> Verdict | None:
    """What the version's envelope says, its signature unchecked."""
    from truing.tasks.release.acts import envelope_of

    envelope = envelope_of(seen.verdict or "")
    try:
        return msgspec.json.decode(base64.b64decode(envelope.payload), type=Verdict) if envelope else None
    except (msgspec.DecodeError, ValueError):
        return None


def taught(lake: Lake, problem: Problem, dataset: str) -> pl.DataFrame:
    """The rows of a dataset version as they taught: content and groups of today, target, origin and weight of then.

    Rows that were erased since, or whose content is another by now, are left out.
    """
    import polars as pl

    said = lake.read("samples", predicate=(pl.col("problem") == problem.name) & (pl.col("dataset") == dataset))
    said = said.select(pl.col("row").alias("id"), pl.col("content").alias("content_hash"), "target", "origin", "weight")
    rows = lake.rows(problem.name).filter(pl.col("content").is_not_null())
    return rows.select("id", "content", "content_hash", "groups", "split").join(said, on=["id", "content_hash"]).sort("id")


def _refused(code: str, reason: str, remedy: str) -> Refused:
    return Refused(Refusal(code=code, reason=reason, remedy=remedy))
