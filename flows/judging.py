"""Who takes part in a verdict, and what they answer: the two steps of `loop.decide` before anything is judged.

Every model is the one that was registered or released, by its hash: champion by the steward's book, anchor and parent by the
audit. What MLflow shows is used only for what a candidate says of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from truing.flows.audits import evidence_on, leak
from truing.flows.release import held
from truing.flows.repair import taught
from truing.tasks.errors import Refused
from truing.tasks.evaluation.answers import Answers, ask, rows_digest
from truing.tasks.evaluation.ledger import Look, candidates_since, look_at, shown_until
from truing.tasks.evaluation.probing import probe
from truing.tasks.evaluation.unseen import confirm, part
from truing.tasks.events.join import leaked
from truing.tasks.kinds.model import Model
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Refusal, Unseen
from truing.tasks.validation.holdout import may_judge, validate_holdout

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from truing.flows.loop import Offices
    from truing.tasks.release.acts import Docket
    from truing.tasks.release.book import Book
    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Version
    from truing.tasks.tables.lake import Lake, Vault


@dataclass(frozen=True, kw_only=True)
class Parties:
    """The models of one comparison. `digests` names their payloads; "none" is the candidate's parent ("no update")."""

    record: Candidate
    candidate: Model
    champion: Model | None
    none: Model | None
    anchor: Model | None
    digests: dict[str, str | None]
    size_mb: float  # of the candidate's files, 10^6 bytes

    @property
    def heads_only(self) -> bool:
        """Did the fast learner change heads on the champion's own encoder, and nothing else?"""
        same = self.champion is not None and self.candidate.base == self.champion.base == self.record.base
        return self.record.origin == "fast" and same


def parties(registry: Registry, problem: Problem, seen: Version, *, docket: Docket, book: Book) -> Parties:
    """Fetch the models by their hashes. Raises Refused if the candidate is not what was registered."""
    name, version = problem.name, seen.version
    payload = docket.versions[version].payload
    files = held(registry, name, version, payload)
    record = seen.candidate
    if record is None or record.payload != payload:
        raise Refused(
            Refusal(
                code="payload.other",
                reason=f"version {version} holds {payload[:12]}, not the payload its candidate names",
                remedy="register the candidate again",
            )
        )

    def fetched(version: str, payload: str) -> Model:
        return Model.from_files(held(registry, name, version, payload))

    serving, pinned = book.champion(name), docket.anchor and docket.versions.get(docket.anchor.version)
    versions = {known.payload: known.version for known in docket.versions.values()}
    parent = record.parent if record.parent in versions else None
    return Parties(
        record=record,
        candidate=Model.from_files(files),
        champion=fetched(serving.version, serving.payload) if serving else None,
        none=fetched(versions[parent], parent) if parent else None,
        anchor=fetched(pinned.version, pinned.payload) if pinned else None,
        digests={
            "candidate": payload,
            "champion": serving.payload if serving else None,
            "none": parent,
            "anchor": pinned.payload if pinned else None,
        },
        size_mb=sum(map(len, files.values())) / 1e6,
    )


def sealed_rows(vault: Vault, lake: Lake, problem: Problem, *, desk: Path, folder: Path, now: float) -> pl.DataFrame:
    """The holdout, the unmatured rows too, without what its windows reject (`validation/holdout`; `folder` is the problem's).

    Raises Refused if what judges has also taught, or looks as if it had.
    """
    both = leaked(vault, lake, problem.name)
    if both:
        raise Refused(
            Refusal(
                code="evidence.leaked",
                reason=f"{len(both)} subjects judge and teach at once, {both[0]} first",
                remedy="take their rows out of the lake; the split's salt must never change",
            )
        )
    out = validate_holdout(vault, lake, problem, desk=desk, folder=folder, now=now)
    rows = may_judge(vault.holdout(problem.name, now=now, matured=False), out)
    doubt = leak(rows, lake, problem)
    if doubt:
        raise Refused(
            Refusal(code="evidence.alike", reason=doubt, remedy="find who is known under two names, and erase one of them")
        )
    return rows


def answered(
    rows: pl.DataFrame,
    lake: Lake,
    problem: Problem,
    policy: Policy,
    models: Parties,
    *,
    known: tuple[Look, ...],
    desk: Path,
    offices: Offices,
    now: float,
    timer: Callable[[], float],
) -> tuple[Answers, Look]:
    """What all models answer on the sealed rows, and which look that is. `known`: the looks so far.

    Once the free candidates are spent the trainer may have learned from verdicts: then only rows shown so far judge, and
    those that no verdict has shown have to confirm. A sample speaks for its whole pool, no part of which was never shown.
    """
    payload, champion, anchor = (models.digests[each] for each in ("candidate", "champion", "anchor"))
    look = Look(
        problem=problem.name, candidate=str(payload), rows=rows_digest(rows, problem, now=now), at=now,
        champion=champion, anchor=anchor,
    )  # fmt: skip
    number = look_at(known, look.candidate, look.rows)
    looks = candidates_since(known, look.candidate, champion=champion)
    looks_anchor = candidates_since(known, look.candidate, anchor=anchor)
    sample = evidence_on(
        rows, problem, policy, desk=desk, offices=offices, candidate=look.candidate, champion=champion, now=now
    )  # fmt: skip
    unseen = coverage = None
    if models.champion is not None and looks > policy.evidence.free_candidates:
        if sample is not None:
            unseen = Unseen(n=0, holds=False)
        else:
            until = shown_until(known, champion=champion, free=policy.evidence.free_candidates)
            rows, later, coverage = part(rows, problem, until=until, now=now)
            unseen = confirm(
                later, problem, policy, candidate=models.candidate, champion=models.champion, anchor=models.anchor,
                digests={"candidate": payload, "champion": champion, "anchor": anchor},
                now=now, looks=looks, looks_anchor=looks_anchor,
            )  # fmt: skip
    answers = ask(
        rows, problem, policy,
        candidate=models.candidate, champion=models.champion, none=models.none, anchor=models.anchor, digests=models.digests,
        look=number, now=now, looks=looks, looks_anchor=looks_anchor, unseen=unseen, coverage=coverage, timer=timer,
        size_mb=models.size_mb, evidence=sample, reference=learned_from(lake, problem, models.record.dataset),
        measured=probe(rows, problem, candidate=models.candidate, parent=models.none, seed=number, now=now),
    )  # fmt: skip
    return answers, look


def learned_from(lake: Lake, problem: Problem, dataset: str, *, most: int = 2000) -> list[dict[str, Any]]:
    """Inputs of up to `most` rows of a dataset version, evenly spread: what the holdout's inputs are held against for shift."""
    rows = taught(lake, problem, dataset)
    step = max(1, -(-rows.height // most))
    return [msgspec.json.decode(content) for content in rows["content"].gather_every(step).to_list()]
