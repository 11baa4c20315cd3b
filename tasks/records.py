"""The nouns, in the order in which the river runs.

    event → row → sample → dataset version → trial → candidate → evaluation → verdict → approval → release → alert → event

Every record is frozen and keyword-only. Its digest is the sha256 of its canonical JSON (`truing.tasks.seal.digest`), so two
machines that hold the same facts name them alike. Times are Unix seconds (float, UTC); digests are lower-case hex; shares and
probabilities lie in 0..1. A field that may be unknown is `None`, never a magic number.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, comparable by value, encodable as canonical JSON."""


class Split(StrEnum):
    """Where a row may be used. Fixed at the join; a holdout subject is never anything else."""

    TRUSTED = "trusted"  # by source: a load that people vouch for
    TRAIN = "train"
    VALIDATION = "validation"
    HOLDOUT = "holdout"  # in the vault only: judges, never teaches


class Origin(StrEnum):
    """What the row's target comes from. Only `outcome` and `review` may judge; the others may teach."""

    OUTCOME = "outcome"
    REVIEW = "review"
    CORRECTION = "correction"
    RATING = "rating"
    PREFERENCE = "preference"
    INTERACTION = "interaction"
    SELF = "self"


class Outcome(StrEnum):
    """What a gate, or one clause of it, says."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    BLOCK = "block"
    INCONCLUSIVE = "inconclusive"


class Cause(StrEnum):
    """Why a release exists."""

    GENESIS = "genesis"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    WITHDRAW = "withdraw"  # its approval was revoked and no earlier release stands: nothing serves


class Estimate(Record, frozen=True):
    """A number with its interval: `low <= value <= high` at confidence `level` (0..1) over `n` rows; None = not estimable."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    level: float = 0.95


class Position(Record, frozen=True):
    """Where a message stood. `epoch` grows when a broker lost its tail, so an offset is never read twice under one name."""

    topic: str
    partition: int
    offset: int
    epoch: int = 0


class Event(Record, frozen=True):
    """One believed message: a user's act, or a source's. `actor` and `subject` are keyed hashes by the time it is a record."""

    id: str
    type: str  # truing.<kind>.v1
    source: str
    time: float
    problem: str
    prediction_id: str | None
    data: dict[str, Any]
    actor: str | None = None  # who acted
    actor_kind: str = "person"  # person | source
    subject: str | None = None  # who was judged
    seq: int = 0


class DeadLetter(Record, frozen=True):
    """A message that can't be used: why, and what it was. `original` is the untouched bytes, base64."""

    reason: str  # a code: see truing.tasks.events.schema.Reason
    detail: str
    original: str
    position: Position
    first_seen: float


class Row(Record, frozen=True):
    """One prediction joined with what came back about it. `id` is the prediction id; `input` is JSON of the model's inputs."""

    id: str
    problem: str
    subject: str
    input: dict[str, Any]
    groups: dict[str, str]  # protected attribute → bucket; "unknown" is a bucket
    prediction: dict[str, Any] | None  # {"label": str, "probability": float, "confidence": float} as served, or None
    release: str | None
    variant: str | None
    propensity: float | None  # probability that this row was sampled for audit
    target: str | None
    origin: Origin | None
    actor: str | None
    feedback: dict[str, Any]  # what was said, by type: {"rating": 0.9, "correction": ">50K", "outcome": …}
    asked_at: float
    labelled_at: float | None
    matured_at: float | None  # when an outcome may judge
    split: Split
    audit: bool = False  # the gateway's random sampler drew it
    revision: int = 0  # landing version this state was derived from; the highest wins


class Tag(Record, frozen=True):
    """A selector's word on one row: keep it or not, how sure (0..1), and why in words that a person can read."""

    name: str
    score: float
    keep: bool
    reason: str


class Sample(Record, frozen=True):
    """A row admitted to learning. `content` is the sha256 of its input, so a dataset version can be checked without it."""

    row: str
    content: str
    target: str
    weight: float
    tags: tuple[Tag, ...] = ()


class DatasetVersion(Record, frozen=True):
    """What a candidate learned from: (row, content, target) digests plus the Delta versions they were read at."""

    digest: str
    problem: str
    tables: dict[str, int]
    samples: int
    by_reason: dict[str, int]
    by_label: dict[str, int]
    by_group: dict[str, int]
    raters: dict[str, float]  # share of the samples taught by each of the most active actors
    selection: str  # digest of the selection rules
    seed: int
    erased: tuple[str, ...] = ()


class Trial(Record, frozen=True):
    """One try of the study. `score` is validation Brier (lower is better)."""

    problem: str
    number: int
    params: dict[str, float]
    score: float | None
    seconds: float
    state: str  # complete | pruned | failed


class Candidate(Record, frozen=True):
    """A registered model that asks to be released. `payload` is the digest over all its files."""

    problem: str
    payload: str
    parent: str | None  # payload digest it was tuned from
    base: str  # digest of the frozen encoder
    code: str  # package version that trained it
    kind: str
    dataset: str
    trial: Trial | None
    seed: int
    origin: str  # fast | slow | repair | adopted | none
    registered: float
    rows: int = 0  # samples in its dataset version
    version: str | None = None  # MLflow version, once registered
    repairs: str | None = None  # payload of the blocked candidate that this one is to mend (origin "repair")
    note: str = ""  # the trainer's words on it: what was repaired, how, and what it cost on rows that did not teach


class Cell(Record, frozen=True):
    """One slice × metric: the four models' values on the same rows, and the candidate's drop against each (> 0 is worse)."""

    slice: str
    metric: str
    n: int
    base_rate: float | None
    champion: float | None
    candidate: float | None
    none: float | None
    anchor: float | None
    delta: Estimate  # drop against the champion
    delta_none: Estimate
    delta_anchor: Estimate


class Found(Record, frozen=True):
    """A slice found on one half of the subjects and tested on the other. `drop` (> 0 is worse) and `n` are of the other half.

    `drop.low` is the joint lower bound over all slices found; `confirmed` says that it is above zero.
    """

    slice: str  # as people say it: `workclass Private and age ≥ 45`
    conditions: tuple[str, ...]
    metric: str
    n: int
    share: float  # of the judging rows of that half
    seen: float  # the drop on the half where it was found: too high, because it was chosen for it
    drop: Estimate
    confirmed: bool


class Sampled(Record, frozen=True):
    """How the labels came about where they are a sample of the pool: counts of rows, and why they were drawn."""

    why: str  # audit | plan | worst
    plan: str | None  # payload digest of the candidate that the plan was aimed at
    pool: int
    labelled: int
    drawn: int  # by chance
    read: int  # of these
    unreachable: int  # nobody could have drawn them: they count as the worst label there could be
    twice: int  # read by two reviewers
    differed: int  # of these, read differently


class Unseen(Record, frozen=True):
    """What rows say that no verdict under this champion has shown. Nothing else of them is told before the next release."""

    n: int
    holds: bool  # every deciding clause passes on them alone


class Evaluation(Record, frozen=True):
    """Champion, candidate, "no update" and anchor scored on the same holdout rows through the serving build."""

    digest: str
    problem: str
    candidate: str
    champion: str | None
    none: str | None
    anchor: str | None
    rows: str  # digest of the row ids that judged
    n: int
    coverage: float  # share of holdout predictions with a matured label
    cells: tuple[Cell, ...]
    forgetting: Estimate
    flips: float  # share of rows on which candidate and champion answer differently
    shift: dict[str, float]
    latency_ms: float
    size_mb: float
    look: int = 1
    at: float = 0.0
    drift: float | None = None  # share of all holdout rows (labelled or not) answered with another label than the anchor's
    indicators: dict[str, Estimate] = {}  # `auroc:sex=Female:drop`: see evaluation.indicators
    worst: tuple[Found, ...] = ()  # slices found by themselves, tested on rows that did not take part in finding them
    counterfactual: dict[str, Estimate] = {}  # `flip:sex`: answered differently with that column swapped; `shift:sex=Female`
    importance: dict[str, float] = {}  # share (0..1) of each input in the candidate's permutation importance
    importance_shift: float | None = None  # half the L1 distance to the parent's importance, 0 = the same .. 1
    looks: int = 1  # how many different candidates were judged since the champion was released, this one included
    sampled: Sampled | None = None  # None = every row with a matured label counts once
    evidence: str = ""  # digest of the manifest of what this was worked out from; "" = not kept
    looks_anchor: int = 1  # the same since the anchor was pinned
    unseen: Unseen | None = None  # once the free candidates are spent: does it hold on rows that none of them was shown?


class Clause(Record, frozen=True):
    """One line of the policy, decided. `delta` is the drop (> 0 is worse) with the one-sided bounds the decision used."""

    name: str
    slice: str
    metric: str
    outcome: Outcome
    deciding: bool
    against: str  # champion | anchor | absolute
    delta: Estimate
    limit: float
    reason: str
    rows_needed: int | None = None


class Verdict(Record, frozen=True):
    """The gate's word on one candidate. It binds the payload, the evaluation and the policy by digest."""

    problem: str
    outcome: Outcome
    clauses: tuple[Clause, ...]
    candidate: str
    evaluation: str
    policy: str
    dataset: str
    champion: str | None
    look: int
    at: float
    key: str
    reason: str = ""


class Approval(Record, frozen=True):
    """A person's act on one verdict, stamped by the registry."""

    problem: str
    version: str
    verdict: str  # digest of the signed verdict's payload
    decision: str  # approved | rejected | revoked
    by: tuple[str, ...]
    at: float
    expires: float | None
    reason: str
    override: bool = False


class Release(Record, frozen=True):
    """What the gateway serves: everything named by digest, ordered by `sequence`, which only grows."""

    problem: str
    name: str
    version: str
    sequence: int
    payload: str
    verdict: str | None
    approval: str | None
    dataset: str
    policy: str
    environment: dict[str, str]
    cause: Cause
    replaces: int | None  # sequence it replaces
    at: float
    expires: float | None
    reason: str = ""
    asked: str | None = None  # digest of the audit record of the act that asked for it: its name, whatever clocks say


class Standing(Record, frozen=True):
    """A person's approval in advance: small steps of one problem may go out without a fresh click until it ends.

    Small: the verdict passed, only the heads changed (same base as the champion), and the answer differs from the anchor's on
    at most `max_drift` (a share, 0..1) of the holdout rows. At most `per_day` releases in any 24 hours.
    """

    problem: str
    decision: str  # approved | revoked
    by: tuple[str, ...]
    at: float
    expires: float
    max_drift: float
    per_day: int
    reason: str


class Head(Record, frozen=True):
    """The steward's word for what is newest: the release that may serve, and how far the audit goes.

    Signed anew every few minutes and valid until `expires`, so a gateway that starts with nothing can tell an old registry
    from the present one (the freshness role of TUF's timestamp).
    """

    problem: str
    sequence: int
    release: str  # digest of the release statement
    audit: int
    audit_digest: str
    at: float
    expires: float


class Signature(Record, frozen=True):
    """`bytes` is base64 over the envelope's pre-authentication encoding."""

    key: str
    algorithm: str
    bytes: str


class Envelope(Record, frozen=True):
    """DSSE: base64 payload, its type, and one or more signatures over both (`truing.tasks.seal`)."""

    payload: str
    type: str
    signatures: tuple[Signature, ...]


class Refusal(Record, frozen=True):
    """Why an act is not allowed, and what would make it so."""

    code: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy} [{self.code}]"


class Alert(Record, frozen=True):
    """Something a person should look at. Alerts of one `key` fold into one that stays open."""

    id: str
    problem: str
    key: str
    kind: str
    level: str  # info | warning | critical
    subject: str
    slice: str
    observed: float | None
    expected: float | None
    since: float
    closed_at: float | None
    folded: int
    act: str  # what a person should do
    runbook: str
