"""Where each version came from and what became of it, for whom: what `truing lineage` prints and draws.

Facts come from the audit (who registered, decided, asked), the steward's releases, its signed verdicts and the evaluations that
those bind by digest. Parent, learner and dataset are the trainer's words; `vouched` says that the steward judged them as they
stand here. Nothing is taken from a tag that anybody may edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Cause, DatasetVersion, Evaluation, Outcome, Record, Release, Verdict
from truing.tasks.release.acts import Docket
from truing.tasks.release.disparity import Disparity, buckets, chosen_gap, disparities

SERVES, RELEASED, BLOCKED, PASSED, OPEN, REJECTED, UNJUDGED = (
    "serves", "released", "blocked", "passed", "open", "rejected", "not judged",
)  # fmt: skip


class Word(Record, frozen=True):
    """A person's decision on a version."""

    decision: str
    by: tuple[str, ...]
    at: float
    reason: str
    expires: float | None = None
    override: bool = False


class Served(Record, frozen=True):
    """One release. `ended` is when the next one replaced it; `by` who approved or asked for it, () where that is not known."""

    sequence: int
    version: str
    cause: str
    at: float
    ended: float | None
    by: tuple[str, ...]
    reason: str


class Member(Record, frozen=True):
    """One version in the family. `generation` counts steps from a version without a known parent (0)."""

    version: str
    payload: str
    trained_by: str
    registered: float
    state: str  # serves | released | blocked | passed | open | rejected | not judged
    parent: str | None = None
    vouched: bool = False
    origin: str = ""
    repairs: str | None = None  # version of the blocked one that it is to mend
    dataset: str = ""
    rows: int = 0
    generation: int = 0
    outcome: str | None = None
    reason: str = ""
    judged: float | None = None
    judged_rows: int = 0
    policy: str = ""
    blocked_by: tuple[str, ...] = ()
    champion: str | None = None  # version that served when it was judged
    gaps: tuple[Disparity, ...] = ()
    flips: float | None = None
    importance_shift: float | None = None
    words: tuple[Word, ...] = ()
    served: tuple[Served, ...] = ()
    anchor: bool = False
    taught: DatasetVersion | None = None

    def gap(self, wanted: tuple[str, str]) -> Disparity | None:
        """The disparity of a group and metric."""
        return next((one for one in self.gaps if (one.group, one.metric) == wanted), None)


class Family(Record, frozen=True):
    """All versions of a problem, oldest first, and its releases. `wanted`: the (group, metric) that is drawn."""

    problem: str
    title: str
    members: tuple[Member, ...]
    served: tuple[Served, ...]
    wanted: tuple[str, str]
    frozen: bool = False
    notes: tuple[str, ...] = ()

    def member(self, version: str) -> Member | None:
        return next((one for one in self.members if one.version == version), None)

    def ancestors(self, version: str) -> list[str]:
        """Its parents, nearest first."""
        parents = {one.version: one.parent for one in self.members}
        found: list[str] = []
        while (parent := parents.get(version)) is not None:
            found.append(parent)
            version = parent
        return found


def family(
    problem: Problem,
    policy: Policy,
    docket: Docket,
    releases: Sequence[Release],
    *,
    verdicts: Mapping[str, Verdict],
    evaluations: Mapping[str, Evaluation],
    candidates: Mapping[str, Candidate],
    vouched: frozenset[str] = frozenset(),
    datasets: Mapping[str, DatasetVersion] | None = None,
    asked: Mapping[str, str] | None = None,
    wanted: tuple[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Family:
    """The family as known. All mappings but `datasets` (by digest) and `asked` (audit record → user) are by version."""
    order = sorted(docket.versions, key=int)
    payloads: dict[str, str] = {}
    for version in order:
        payloads.setdefault(docket.versions[version].payload, version)
    serving = releases[-1] if releases and releases[-1].cause is not Cause.WITHDRAW else None
    served = _served(docket, releases, asked or {})
    pairs = buckets(problem, [evaluations[one] for one in order if one in evaluations])
    members: list[Member] = []
    generation: dict[str, int] = {}
    for version in order:
        known, verdict, evaluation = docket.versions[version], verdicts.get(version), evaluations.get(version)
        candidate = candidates.get(version)
        parent = payloads.get(candidate.parent) if candidate and candidate.parent else None
        if parent is not None and int(parent) >= int(version):
            parent = None  # a parent is older; anything else is a false word
        generation[version] = generation[parent] + 1 if parent else 0
        dataset = verdict.dataset if verdict else candidate.dataset if candidate else ""
        own = tuple(one for one in served if one.version == version and one.cause != Cause.WITHDRAW.value)
        words = tuple(
            Word(decision=a.decision, by=a.by, at=a.at, reason=a.reason, expires=a.expires, override=a.override)
            for a in (one.approval for one in docket.decisions.get(version, ()))
        )
        members.append(
            Member(
                version=version,
                payload=known.payload,
                trained_by=known.trainer,
                registered=known.at,
                state=_state(version, serving, own, verdict, words),
                parent=parent,
                vouched=version in vouched,
                origin=candidate.origin if candidate else "",
                repairs=payloads.get(candidate.repairs) if candidate and candidate.repairs else None,
                dataset=dataset,
                rows=candidate.rows if candidate else 0,
                generation=generation[version],
                outcome=verdict.outcome.value if verdict else None,
                reason=verdict.reason if verdict else "",
                judged=verdict.at if verdict else None,
                judged_rows=evaluation.n if evaluation else 0,
                policy=verdict.policy if verdict else "",
                blocked_by=_blockers(verdict),
                champion=payloads.get(verdict.champion) if verdict and verdict.champion else None,
                gaps=tuple(disparities(evaluation, pairs)) if evaluation else (),
                flips=evaluation.flips if evaluation and evaluation.champion else None,
                importance_shift=evaluation.importance_shift if evaluation else None,
                words=words,
                served=own,
                anchor=docket.anchor is not None and docket.anchor.version == version,
                taught=(datasets or {}).get(dataset),
            )
        )
    return Family(
        problem=problem.name,
        title=problem.title or problem.name,
        members=tuple(members),
        served=served,
        wanted=wanted or chosen_gap(problem, policy),
        frozen=docket.frozen,
        notes=tuple(notes),
    )


def _served(docket: Docket, releases: Sequence[Release], asked: Mapping[str, str]) -> tuple[Served, ...]:
    found = []
    for at, one in enumerate(releases):
        approvers = {each.line: each.approval.by for each in docket.decisions.get(one.version, ())}
        last = docket.decision(one.version)
        by: tuple[str, ...] = ()
        if one.asked is not None:
            by = approvers.get(one.asked) or ((asked[one.asked],) if one.asked in asked else ())
        elif last is not None and last.approval.decision == "approved":
            by = last.approval.by
        found.append(
            Served(
                sequence=one.sequence,
                version=one.version,
                cause=one.cause.value,
                at=one.at,
                ended=releases[at + 1].at if at + 1 < len(releases) else None,
                by=by,
                reason=one.reason,
            )
        )
    return tuple(found)


def _state(version: str, serving: Release | None, own: Sequence[Served], verdict: Verdict | None, words: Sequence[Word]) -> str:
    if serving is not None and serving.version == version:
        return SERVES
    if own:
        return RELEASED
    if verdict is None:
        return UNJUDGED
    if verdict.outcome is Outcome.BLOCK:
        return BLOCKED
    if words and words[-1].decision in ("rejected", "revoked"):
        return REJECTED
    return PASSED if verdict.outcome is Outcome.PASS else OPEN


def _blockers(verdict: Verdict | None) -> tuple[str, ...]:
    clauses = verdict.clauses if verdict else ()
    return tuple(dict.fromkeys(one.name for one in clauses if one.outcome is Outcome.BLOCK))
