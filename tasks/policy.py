"""The gate's rules as data: `problems/<name>/policy.toml`. Nothing counts before an approver has accepted its digest."""

from __future__ import annotations

from pathlib import Path

from truing.tasks.errors import ProblemError
from truing.tasks.problem import Problem, read_toml, seconds
from truing.tasks.records import Record
from truing.tasks.seal import digest

METRICS = ("brier", "accuracy", "tpr", "fpr", "selection_rate")
EXITS = ("hold", "targeted", "canary", "sign")  # what may follow when a clause stays open: see Clause.exit
METHODS = ("reweighing", "constrained", "thresholds")  # how a blocked version may be repaired


class Selection(Record, frozen=True):
    """Which feedback may teach."""

    min_rating: float = 0.8
    min_confidence: float = 0.6  # calibrated confidence of the served answer
    people_weight: float = 0.5  # of a rating or correction, where an outcome weighs 1; 0 = people's words never teach
    interaction_weight: float = 0.0  # of a click or a stay that confirms (problem.toml [interactions]); 0 = they never teach
    actor_share: float = 0.1  # most of the weight of what is learned that one actor's words may have
    subject_share: float = 0.1  # and people's words about one subject, whoever says them


class Evidence(Record, frozen=True):
    """How much must be known before a verdict can be a pass."""

    min_rows: int = 2000
    min_coverage: float = 0.8  # share of holdout predictions old enough to have an outcome that do have one
    max_looks: int = 1  # looks at one candidate; each gets an equal part of the levels
    free_candidates: int = 5  # candidates judged at full level since the champion was released; the k-th after has (free/k)²


class Audit(Record, frozen=True):
    """Labels asked for on purpose, from people who see neither model's answer. Nothing is asked for by default."""

    share: float = 0.0  # of all predictions, drawn at random by the gateway
    groups: tuple[str, ...] = ()  # protected attributes whose buckets are strata, so that small ones get labels too
    budget: int = 0  # labels of one plan aimed at the rows where champion and candidate disagree; 0 = no such plans
    reviewers_source: str = ""  # the registered source whose reviews answer; "" = any that may send reviews
    double: float = 0.05  # share of the labels given twice, by different people: the labels' own error


class Discovery(Record, frozen=True):
    """The worst slices found by themselves on one half of the rows and tested on the other."""

    block: bool = False  # a slice that holds on the second half blocks; else it is only told
    depth: int = 2  # conditions a slice may combine
    slices: int = 5  # how many found slices are tested


class Repair(Record, frozen=True):
    """Whether a version blocked by a fairness clause is answered by repaired candidates, and by which."""

    enabled: bool = True
    by_group_thresholds: bool = False  # thresholds read the protected attribute when serving: a decision for people to take
    methods: tuple[str, ...] = ("reweighing", "constrained")


class Levels(Record, frozen=True):
    """One-sided error levels. `block` is joint over all clauses (max-T), `pass` per deciding clause (intersection-union)."""

    block: float = 0.02
    passing: float = 0.008
    resamples: int = 20_000


class Clause(Record, frozen=True):
    """`metric` on `slice` may not drop by more than `limit` against the champion, nor `anchor_limit` against the anchor.

    A drop is in the metric's own points, > 0 is worse (so a higher Brier score is a drop). `slice` is `all` or `group=bucket`.
    With `relative`, limits are shares of the champion's value; allowed only where that value is at least 0.1.

    `exit` says what may follow when the clause stays open: `hold` (wait for labels), `targeted` (an audit of the rows where
    the models disagree, within `audit.budget`), `canary` (a capped share of traffic that stops at harm) or `sign` (a person
    signs the named risk, with expiry). It moves no verdict.
    """

    name: str
    slice: str
    metric: str
    limit: float
    anchor_limit: float | None = None
    deciding: bool = True
    relative: bool = False
    exit: str = "hold"
    power: float = 0.8  # chance to pass that an equal candidate must have, for which rows needed are named


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
    audit: Audit = Audit()
    discovery: Discovery = Discovery()
    repair: Repair = Repair()

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
    least = {name: getattr(policy.evidence, name) for name in ("max_looks", "min_rows", "free_candidates")}
    if min(least.values()) < 1:
        raise ProblemError(f"{path}: evidence: expected {', '.join(least)} of at least 1, got {least}; raise the one below")
    seconds(policy.approvals.inconclusive_expires)
    if policy.approvals.block_persons not in (0, *range(2, 10)):
        raise ProblemError(
            f"{path}: approvals.block_persons: expected 0 (never) or 2 to 9, got {policy.approvals.block_persons}; choose one"
        )
    _check_choices(path, problem, policy)
    return policy


def _check_choices(path: Path, problem: Problem, policy: Policy) -> None:
    """What people may choose beyond clauses: audits, discovery, repair, exits and power."""
    audit, discovery = policy.audit, policy.discovery
    for name, at in ((name, getattr(policy.selection, name)) for name in Selection.__struct_fields__):
        if not 0 <= at <= 1 or (at == 0 and name.endswith("_share")):
            raise ProblemError(
                f"{path}: selection.{name}: expected {'above 0' if name.endswith('_share') else '0'} to 1, got {at}; correct it"
            )
    reviewers = sorted(name for name, source in problem.sources.items() if "review" in source.types)
    for name in ("share", "double"):
        if not 0 <= getattr(audit, name) <= 1:
            raise ProblemError(f"{path}: audit.{name}: expected a share of 0 to 1, got {getattr(audit, name)}; correct it")
    if audit.budget < 0:
        raise ProblemError(f"{path}: audit.budget: expected 0 (none) or a number of labels, got {audit.budget}; raise it")
    strangers = sorted(set(audit.groups) - set(problem.groups))
    if strangers:
        raise ProblemError(f"{path}: audit.groups: expected groups of {sorted(problem.groups)}, got {strangers}; drop them")
    if audit.reviewers_source and audit.reviewers_source not in reviewers:
        raise ProblemError(
            f"{path}: audit.reviewers_source: expected a source that may send reviews ({reviewers}), "
            f"got {audit.reviewers_source!r}; register it in problem.toml"
        )
    if not 1 <= discovery.depth <= 4 or not 1 <= discovery.slices <= 100:
        raise ProblemError(
            f"{path}: discovery: expected depth of 1 to 4 and slices of 1 to 100, "
            f"got {discovery.depth} and {discovery.slices}; correct the one outside"
        )
    methods = sorted(set(policy.repair.methods) - set(METHODS))
    if methods:
        raise ProblemError(f"{path}: repair.methods: expected some of {', '.join(METHODS)}, got {methods}; drop them")
    if "thresholds" in policy.repair.methods and not policy.repair.by_group_thresholds:
        raise ProblemError(
            f"{path}: repair.methods: expected no thresholds while repair.by_group_thresholds is false, got them; "
            "set it to true, which serves people by their protected group, or drop them"
        )
    for clause in policy.clause:
        where = f"{path}: {clause.name}"
        if clause.exit not in EXITS:
            raise ProblemError(f"{where}: exit: expected one of {', '.join(EXITS)}, got {clause.exit!r}; choose one")
        if clause.exit == "targeted" and audit.budget == 0:
            raise ProblemError(
                f"{where}: exit: expected audit.budget above 0 for targeted, got 0; set it or choose another exit"
            )
        if not 0.5 <= clause.power < 1:
            raise ProblemError(f"{where}: power: expected at least 0.5 and below 1, got {clause.power}; correct it")
