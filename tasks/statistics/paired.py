"""The drop of a candidate against a reference on the same rows, with one-sided bounds.

A drop is in the metric's own points and > 0 is worse, whichever way the metric points: a TPR that falls from 0.60 to 0.55
and a Brier score that rises from 0.10 to 0.15 are both a drop of 0.05. What two models do on the same row is strongly
correlated, so everything here is a function of the row-by-row difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from truing.tasks.errors import DataError
from truing.tasks.statistics.cells import Bools, Floats
from truing.tasks.statistics.means import mean_upper
from truing.tasks.statistics.proportions import EXACT_BELOW, UNSEEN_HARM, drop_upper, z_of
from truing.tasks.statistics.weighted import Design, Labels, drop_of, error_bounds, weighted_upper

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Paired:
    """One slice × metric, candidate against reference. `drop` is NaN where it can't be estimated; `why` then says why.

    `units` holds one value per subject, scaled so that their mean is the drop; `members` are the subjects' codes. Rows of
    one subject are not independent, so the subject is what is counted and resampled (`repeats` says that some subject has
    several rows).
    """

    drop: float
    reference: float
    candidate: float
    n: int
    units: Floats
    members: Codes
    worse: int | None = None  # proportions: rows right under the reference, wrong under the candidate
    better: int | None = None
    repeats: bool = False
    worst: float = 1.0  # the largest value a unit can have
    span: float = 2.0  # width of the range that units can have
    why: str = ""
    design: Design | None = None  # labels of a sample with known inclusion probabilities: bounds come from `weighted`
    slack: float = 0.0  # half of what labels that should be there and are not leave open; `drop` is the middle

    @property
    def estimable(self) -> bool:
        return not math.isnan(self.drop)

    @property
    def few(self) -> bool:
        """Too little is known for a bound that relies on large numbers."""
        if self.design is None:
            return len(self.units) < EXACT_BELOW
        return self.design.few(0.0)

    @property
    def se(self) -> float:
        """Cluster-robust standard error of the drop; NaN below two subjects."""
        count = len(self.units)
        return float(self.units.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan

    def influence(self, subjects: int) -> Floats:
        """What each of all `subjects` adds to the drop's error (subjects,), zero outside the slice. Sums to zero."""
        out = np.zeros(subjects)
        if self.estimable:
            out[self.members] = (self.units - self.drop) / len(self.units)
        return out

    def reversed(self) -> Paired:
        """The same rows with the roles of candidate and reference exchanged."""
        return replace(
            self,
            drop=-self.drop,
            reference=self.candidate,
            candidate=self.reference,
            units=-self.units,
            worse=self.better,
            better=self.worse,
            worst=self.span - self.worst,
            design=self.design.reversed() if self.design else None,
        )


@dataclass(frozen=True)
class Bound:
    """A one-sided bound of a drop and the method that gave it."""

    value: float
    method: str


def pair(
    reference: tuple[Floats, Floats],
    candidate: tuple[Floats, Floats],
    *,
    mask: Bools,
    subjects: Codes,
    higher_is_better: bool,
    proportion: bool,
    allowance: float = 0.0,
) -> Paired:
    """The paired drop on the rows of `mask`.

    Args:
        reference, candidate: (numerator, denominator) per row, as from `cells.cells`; denominators must agree.
        subjects: (n,) code of each row's subject, 0..S−1.
        proportion: numerators and denominators are 0 or 1, so the exact and likelihood-ratio bounds apply.
        allowance: with a relative limit r, the units become drop − r·reference, whose upper bound has to be at most 0.
    """
    chosen = np.flatnonzero(mask & ((reference[1] != 0) | (candidate[1] != 0)))
    den = reference[1][chosen]
    if not np.array_equal(den, candidate[1][chosen]):
        raise DataError("paired drop: expected one denominator per row for both models, got two; pair them on the same rows")
    total = float(den.sum())
    if total <= 0.0:
        return _nothing("no row of this slice counts")
    base, new = reference[0][chosen], candidate[0][chosen]
    difference = (base - new) * (1.0 if higher_is_better else -1.0)
    unsound = int((~np.isfinite(difference)).sum())
    if unsound:
        return replace(_nothing(f"a model's answer is not a probability on {unsound} rows"), n=len(chosen))
    value = difference - allowance * base if allowance else difference
    drop = float(value.sum()) / total
    codes = subjects[chosen]
    members, first = np.unique(codes, return_inverse=True)
    repeats = len(members) < len(chosen)
    worse = better = None
    if proportion and not allowance:
        worse, better = int((difference > 0).sum()), int((difference < 0).sum())
    scale = 1.0
    units: Floats = np.zeros(len(members))
    if repeats:
        weight = np.bincount(first, weights=den)
        scale = float(weight.max()) * len(members) / total
        lost = np.bincount(first, weights=value - drop * den)
        units = np.asarray(drop + lost * (len(members) / total), dtype=np.float64)
    else:
        units[first] = value / den if not proportion else value
    return Paired(
        drop=drop,
        reference=float(base.sum()) / total,
        candidate=float(new.sum()) / total,
        n=len(chosen),
        units=units,
        members=members.astype(np.int64),
        worse=worse,
        better=better,
        repeats=repeats,
        span=(2.0 + allowance) * scale,
    )


Cells = tuple[Floats, Floats]  # numerator, denominator a row


def pair_pool(
    reference: tuple[Cells, Cells],
    candidate: tuple[Cells, Cells],
    *,
    mask: Bools,
    subjects: Codes,
    labels: Labels,
    higher_is_better: bool,
    allowance: float = 0.0,
) -> Paired:
    """The paired drop on the pool rows of `mask`, of which only a sample has a label (`weighted`).

    Args:
        reference, candidate: cells of each row if its label were negative, and if it were positive.
        labels: of all n rows; those of `mask` are used.
    """
    chosen = np.flatnonzero(mask)
    if not len(chosen):
        return _nothing("no row of this slice counts")
    sign = 1.0 if higher_is_better else -1.0
    lost = [
        (ref[0] - new[0])[chosen] * sign - allowance * ref[0][chosen] for ref, new in zip(reference, candidate, strict=True)
    ]
    den = [ref[1][chosen] for ref in reference]
    unsound = int((~np.isfinite(lost[0]) | ~np.isfinite(lost[1])).sum())
    if unsound:
        return replace(_nothing(f"a model's answer is not a probability on {unsound} rows"), n=len(chosen))
    members, codes = np.unique(subjects[chosen], return_inverse=True)
    sample = Labels(
        given=labels.given[chosen], known=labels.known[chosen], drawn=labels.drawn[chosen], weights=labels.weights[chosen],
        noisy=labels.noisy[chosen], guess=labels.guess[chosen], doubles=labels.doubles,
    )  # fmt: skip
    design = Design(
        a=lost[0], b=lost[1] - lost[0], c=den[0], d=den[1] - den[0], labels=sample, subject=codes.astype(np.int64),
        subjects=len(members),
    )  # fmt: skip
    error = error_bounds(labels.doubles, 0.5)[0]
    counts = int((sample.known & (den[0] + (den[1] - den[0]) * sample.given > 0.0)).sum())
    mass = design.mass(error)
    if mass <= 0.0 or not counts:
        return replace(_nothing("no labelled row of this slice counts"), n=counts)
    low, high = drop_of(design, error, best=True), drop_of(design, error, best=False)
    drop = (low + high) / 2.0
    pseudo = sample.pseudo(error)
    rate = [
        float((one[0][0][chosen] * (1.0 - pseudo) + one[1][0][chosen] * pseudo).sum()) / mass for one in (reference, candidate)
    ]
    per_subject = mass / len(members)
    return Paired(
        drop=drop,
        reference=rate[0],
        candidate=rate[1],
        n=counts,
        units=np.asarray(drop + design.units(low, error, best=True) / per_subject, dtype=np.float64),
        members=members.astype(np.int64),
        repeats=len(members) < len(chosen),
        worst=design.worst(drop, error) / per_subject,
        design=design,
        slack=(high - low) / 2.0,
    )


def _nothing(why: str) -> Paired:
    nan = math.nan
    return Paired(drop=nan, reference=nan, candidate=nan, n=0, units=np.zeros(0), members=np.zeros(0, dtype=np.int64), why=why)


def upper(paired: Paired, level: float) -> Bound:
    """One-sided upper bound of the drop at `level`; NaN where the drop is not estimable.

    Proportions with one row a subject: exact below 250 rows, else the likelihood ratio. Everything else, and proportions whose
    subjects repeat: empirical likelihood over subjects, or the empirical Bernstein bound below 250 of them.
    """
    if not paired.estimable:
        return Bound(math.nan, "not estimable")
    if paired.design is not None:
        return Bound(*weighted_upper(paired.design, level))
    if paired.worse is not None and paired.better is not None and not paired.repeats:
        return Bound(*drop_upper(paired.worse, paired.better, paired.n, level))
    value, method = mean_upper(paired.units, level, worst=paired.worst, span=paired.span)
    return Bound(min(value, max(1.0, paired.worst)), f"{method} by subject" if paired.repeats else method)


def lower(paired: Paired, level: float) -> Bound:
    """One-sided lower bound of the drop: minus the upper bound with the roles exchanged."""
    bound = upper(paired.reversed(), level)
    return Bound(-bound.value, bound.method)


def interval(paired: Paired, level: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the drop at confidence `level`: both one-sided bounds at half of what is left."""
    each = (1.0 - level) / 2.0
    return lower(paired, each).value, upper(paired, each).value


def needed(paired: Paired, limit: float, level: float, *, drop: float = 0.0, power: float = 0.8) -> float | None:
    """Rows in the denominator from which a candidate with a true `drop` passes `limit` with this power.

    Normal approximation: (z(level) + z(1−power))²·σ²/(limit − drop)². σ² is the variance of the units at the discordance
    seen, when nothing is lost on average (half a discordant row is added, so that "no discordance yet" is not taken for
    none). None where no number of rows would do.
    """
    room = limit - drop
    if not paired.estimable or room <= 0.0 or not len(paired.units):
        return None
    per_row = len(paired.units) / paired.n  # subjects a row
    if paired.worse is not None and paired.better is not None and not paired.repeats:
        variance = (paired.worse + paired.better + UNSEEN_HARM) / paired.n
    else:
        variance = float(((paired.units - paired.drop) ** 2).mean()) / per_row if len(paired.units) > 1 else 1.0
    rows = (z_of(level) + z_of(1.0 - power)) ** 2 * variance / room**2
    return max(rows, float(EXACT_BELOW)) if paired.design is None and paired.n < EXACT_BELOW else rows
