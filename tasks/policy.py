"""The gate's rules as data: `problems/<name>/policy.toml`. Nothing counts before an approver has accepted its digest."""

from __future__ import annotations

from pathlib import Path

from truing.tasks.errors import ProblemError
from truing.tasks.problem import Problem, read_toml, seconds
from truing.tasks.records import Record
from truing.tasks.seal import digest

METRICS = ("brier", "accuracy", "tpr", "fpr", "selection_rate")


class Selection(Record, frozen=True):
    """Which feedback may teach."""

    min_rating: float = 0.8
    min_confidence: float = 0.6  # calibrated confidence of the served answer


class Evidence(Record, frozen=True):
    """How much must be known before a verdict can be a pass."""

    min_rows: int = 2000
    min_coverage: float = 0.8  # share of holdout predictions old enough to have an outcome that do have one
    max_looks: int = 1  # looks at one candidate; each gets an equal part of the levels


class Levels(Record, frozen=True):
    """One-sided error levels. `block` is joint over all clauses (max-T), `pass` per deciding clause (intersection-union)."""

    block: float = 0.02
    passing: float = 0.008
    resamples: int = 20_000


class Clause(Record, frozen=True):
    """`metric` on `slice` may not drop by more than `limit` against the champion, nor `anchor_limit` against the anchor.

    A drop is in the metric's own points, > 0 is worse (so a higher Brier score is a drop). `slice` is `all` or `group=bucket`.
    With `relative`, limits are shares of the champion's value; allowed only where that value is at least 0.1.
    """

    name: str
    slice: str
    metric: str
    limit: float
    anchor_limit: float | None = None
    deciding: bool = True
    relative: bool = False


class Absolute(Record, frozen=True):
    """A floor that needs no champion: `metric` on `slice` must be at least `at_least` better than the prior predictor."""

    name: str
    slice: str
    metric: str
    at_least: float


class Approvals(Record, frozen=True):
    """How people decide."""

    inconclusive_expires: str = "30d"
    release_expires: str | None = None
    block_persons: int = 0  # how many different approvers may together release a blocked version; 0 = never, else at least 2


class Policy(Record, frozen=True):
    version: int
    clause: tuple[Clause, ...]
    absolute: tuple[Absolute, ...] = ()
    selection: Selection = Selection()
    evidence: Evidence = Evidence()
    levels: Levels = Levels()
    approvals: Approvals = Approvals()

    @property
    def digest(self) -> str:
        return digest(self)


def load_policy(folder: Path, problem: Problem) -> Policy:
    """`folder/policy.toml`, checked against its problem. Raises ProblemError."""
    path = folder / "policy.toml"
    policy = read_toml(path, Policy)
    names = [clause.name for clause in policy.clause]
    if len(set(names)) != len(names):
        raise ProblemError(f"{path}: clause.name: expected each name once, got {names}; rename one")
    if not any(clause.deciding for clause in policy.clause):
        raise ProblemError(f"{path}: clause: expected at least one deciding clause, got none; mark one")
    rules: list[Clause | Absolute] = [*policy.clause, *policy.absolute]
    for rule in rules:
        where = f"{path}: {rule.name}"
        if rule.metric not in METRICS:
            raise ProblemError(f"{where}: metric: expected one of {', '.join(METRICS)}, got {rule.metric!r}")
        group, equals, bucket = rule.slice.partition("=")
        if rule.slice != "all" and (not equals or group not in problem.groups or not bucket):
            raise ProblemError(
                f"{where}: slice: expected all or group=bucket with a group of {sorted(problem.groups)}, got {rule.slice!r}"
            )
        known = problem.groups[group].values if equals else None
        if known and bucket not in known:
            raise ProblemError(f"{where}: slice: expected a bucket of {group} in {list(known)}, got {bucket!r}")
    for clause in policy.clause:
        if not 0 < clause.limit < 1 or (clause.anchor_limit is not None and not 0 < clause.anchor_limit < 1):
            raise ProblemError(f"{path}: {clause.name}: limit: expected a drop between 0 and 1, got {clause.limit}")
    for name in ("block", "passing"):
        if not 0 < getattr(policy.levels, name) <= 0.1:
            raise ProblemError(f"{path}: levels.{name}: expected above 0 and at most 0.1, got {getattr(policy.levels, name)}")
    if policy.levels.resamples < 10_000:
        raise ProblemError(f"{path}: levels.resamples: expected at least 10000, got {policy.levels.resamples}")
    if policy.evidence.max_looks < 1 or policy.evidence.min_rows < 1:
        raise ProblemError(f"{path}: evidence: expected max_looks and min_rows of at least 1, got {policy.evidence}")
    seconds(policy.approvals.inconclusive_expires)
    if policy.approvals.block_persons not in (0, *range(2, 10)):
        raise ProblemError(
            f"{path}: approvals.block_persons: expected 0 (never) or 2 to 9, got {policy.approvals.block_persons}; choose one"
        )
    return policy
