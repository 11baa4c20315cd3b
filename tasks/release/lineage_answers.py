"""Two questions to the family: which versions learned from somebody, and what changed between two of them, for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truing.tasks.evaluation.gaps import FEWEST, rate
from truing.tasks.records import Cell, DatasetVersion, Estimate, Evaluation, Record
from truing.tasks.release.lineage import Family
from truing.tasks.statistics.cells import PROPORTIONS

STORED = "stored answers"  # not compared by a verdict, but both were asked about these rows


class Taught(Record, frozen=True):
    """What one person gave to a dataset: samples that they labelled, the share (0..1) of its weight, samples about them."""

    samples: int = 0
    weight: float = 0.0
    about: int = 0
    erased: int = 0  # of these samples, rows that the dataset names as erased


class Learned(Record, frozen=True):
    """A version that learned from somebody. `through`: the nearest version that did so itself; its own number if it did."""

    version: str
    state: str
    releases: tuple[int, ...]
    through: str
    taught: Taught


def learned_from(family: Family, given: Mapping[str, Taught]) -> list[Learned]:
    """Oldest first: versions whose dataset (`given` by digest) holds samples of the person, and all that descend from them."""
    direct = {one.version: given[one.dataset] for one in family.members if one.dataset in given}
    found = []
    for one in family.members:
        through = next((name for name in (one.version, *family.ancestors(one.version)) if name in direct), None)
        if through is not None:
            found.append(
                Learned(
                    version=one.version,
                    state=one.state,
                    releases=tuple(each.sequence for each in one.served),
                    through=through,
                    taught=direct[through] if through == one.version else Taught(),
                )
            )
    return found


# --- between two versions -----------------------------------------------------------------------------------------------------


class Change(Record, frozen=True):
    """One slice × metric. `gain` (> 0: the newer one is better) is paired on the same rows; None where they never met there."""

    slice: str
    metric: str
    n: int
    old: Estimate
    new: Estimate
    gain: Estimate | None

    @property
    def sure(self) -> int:
        """1: better, −1: worse, each outside the 95 % interval; 0: can't be told."""
        if self.gain is None or self.gain.low is None or self.gain.high is None:
            return 0
        return 1 if self.gain.low > 0 else -1 if self.gain.high < 0 else 0


class Rows(Record, frozen=True):
    """What came into a dataset and what went. Counts of samples; `relabelled` have another target now."""

    old: int
    new: int
    added: int
    gone: int
    relabelled: int


class Between(Record, frozen=True):
    """What changed from `old` to `new`. `path`: versions from the new one back to the old one, () if it is no ancestor.

    `met`: how the models were compared on the same rows: champion | parent | anchor | stored answers | "" (never).
    """

    old: str
    new: str
    path: tuple[str, ...]
    met: str
    rows: Rows | None
    reasons: dict[str, tuple[int, int]]
    groups: dict[str, tuple[int, int]]
    raters: dict[str, tuple[float, float]]
    changes: tuple[Change, ...]
    importance: dict[str, tuple[float, float]]
    importance_shift: float | None


Samples = Mapping[str, tuple[str, str | None, float]]  # row → target, actor, weight


def changed(
    family: Family,
    old: str,
    new: str,
    *,
    evaluations: Mapping[str, Evaluation],
    samples: Mapping[str, Samples] | None = None,
    stored: Evaluation | None = None,
) -> Between:
    """What changed. Raises KeyError for a version that is not in the family.

    Args:
        evaluations: by version.
        samples: of both versions' datasets, by version.
        stored: the newer one against the older one on the rows of both (`meeting.meet`); asked if their verdicts never did.
    """
    members = {one.version: one for one in family.members}
    first, second = members[old], members[new]
    back = family.ancestors(new)
    before, after = evaluations.get(old), evaluations.get(new)
    met = _met(first.payload, after)
    rows = after
    if not met and stored is not None:
        met, rows = STORED, stored
    ours = samples or {}
    known = (ours.get(old), ours.get(new))
    importance = (getattr(before, "importance", {}) or {}, getattr(after, "importance", {}) or {})
    return Between(
        old=old,
        new=new,
        path=(new, *back[: back.index(old) + 1]) if old in back else (),
        met=met,
        rows=None if known[0] is None or known[1] is None else _rows(known[0], known[1]),
        reasons=_both(first.taught, second.taught, "by_reason"),
        groups=_both(first.taught, second.taught, "by_group"),
        raters=_raters(known[0] or {}, known[1] or {}),
        changes=tuple(_changes(before, rows, met)),
        importance={
            name: (importance[0].get(name, 0.0), importance[1].get(name, 0.0))
            for name in sorted(set(importance[0]) | set(importance[1]))
        }
        if all(importance)
        else {},
        importance_shift=after.importance_shift if after is not None and second.parent == old else None,
    )


def _met(payload: str, after: Evaluation | None) -> str:
    if after is None:
        return ""
    pairs = (("champion", after.champion), ("parent", after.none), ("anchor", after.anchor))
    return next((name for name, known in pairs if known == payload), "")


def _rows(old: Samples, new: Samples) -> Rows:
    both = old.keys() & new.keys()
    return Rows(
        old=len(old),
        new=len(new),
        added=len(new.keys() - old.keys()),
        gone=len(old.keys() - new.keys()),
        relabelled=sum(old[row][0] != new[row][0] for row in both),
    )


def _both(old: DatasetVersion | None, new: DatasetVersion | None, field: str) -> dict[str, tuple[int, int]]:
    if old is None or new is None:
        return {}
    first, second = getattr(old, field), getattr(new, field)
    return {name: (first.get(name, 0), second.get(name, 0)) for name in sorted(set(first) | set(second))}


def _raters(old: Samples, new: Samples, most: int = 10) -> dict[str, tuple[float, float]]:
    """Shares of the samples by person, those whose share changed most first."""
    shares = []
    for samples in (old, new):
        counts: dict[str, int] = {}
        for _, actor, _ in samples.values():
            if actor is not None:
                counts[actor] = counts.get(actor, 0) + 1
        shares.append({actor: count / len(samples) for actor, count in counts.items()})
    both = {actor: (shares[0].get(actor, 0.0), shares[1].get(actor, 0.0)) for actor in set(shares[0]) | set(shares[1])}
    order = sorted(both, key=lambda actor: (-abs(both[actor][1] - both[actor][0]), actor))
    return {actor: both[actor] for actor in order[:most]}


def _changes(before: Evaluation | None, after: Evaluation | None, met: str) -> Sequence[Change]:
    if after is None:
        return []
    olds = {(cell.slice, cell.metric): cell for cell in before.cells} if before else {}
    found = []
    for cell in after.cells:
        old = olds.get((cell.slice, cell.metric))
        value, drop = _of(cell, met)
        if cell.n < FEWEST or cell.candidate is None or (not met and (old is None or old.n < FEWEST)):
            continue
        found.append(
            Change(
                slice=cell.slice,
                metric=cell.metric,
                n=cell.n,
                old=_value(cell, value) if met else _value(old, old.candidate) if old else Estimate(value=None),
                new=_value(cell, cell.candidate),
                gain=_minus(drop) if drop is not None else None,
            )
        )
    return found


def _of(cell: Cell, met: str) -> tuple[float | None, Estimate | None]:
    """The older model's value and the newer one's drop against it, on the rows where they met."""
    known = {
        "champion": (cell.champion, cell.delta),
        STORED: (cell.champion, cell.delta),
        "parent": (cell.none, cell.delta_none),
        "anchor": (cell.anchor, cell.delta_anchor),
    }
    return known.get(met, (None, None))


def _value(cell: Cell, value: float | None) -> Estimate:
    return rate(cell, value) if cell.metric in PROPORTIONS else Estimate(value=value, n=cell.n)


def _minus(drop: Estimate) -> Estimate:
    if drop.value is None or drop.low is None or drop.high is None:
        return Estimate(value=None, n=drop.n, level=drop.level)
    return Estimate(value=-drop.value, low=-drop.high, high=-drop.low, n=drop.n, level=drop.level)
