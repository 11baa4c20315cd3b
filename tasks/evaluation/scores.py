"""Per-row answers of all models on the same rows: what the gate draws its pairs from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from truing.tasks.statistics.cells import HIGHER_IS_BETTER, PROPORTIONS, UNLABELLED, Bools, Floats, cells, ratio
from truing.tasks.statistics.paired import Cells, Codes, Paired, pair, pair_pool
from truing.tasks.statistics.weighted import Labels, check, error_bounds, guessed

PRIOR = "prior"  # answers every row with the base rate


@dataclass(frozen=True, eq=False)
class Scores:
    """Per-row answers of every model, for the gate: rows sorted by id, subjects as codes 0..S−1.

    `probability` and `answer` hold one (n,) array a model: candidate, prior, and champion, none, anchor where there are such.

    With `weights`, the labels are those of a sample with known inclusion probabilities from a pool that all models answered,
    and everything is estimated for the pool (`statistics.weighted`). The last five fields then say what is known of it.
    """

    rows: str
    positive: Bools
    judged: Bools
    subjects: Codes
    slices: dict[str, Bools]
    probability: dict[str, Floats]
    answer: dict[str, Bools]
    weights: Floats | None = None  # 1/inclusion probability; 0 = outside the pool. None = each judged row counts once
    drawn: Bools | None = None  # was to be labelled; drawn and not judged counts as the worst label there could be
    given: Floats | None = None  # mean of the labels given, 0..1; None = `positive`
    noisy: Bools | None = None  # labelled by a reviewer, who may err
    doubles: tuple[int, int] = (0, 0)  # rows read by two reviewers, of these read differently

    @property
    def subject_count(self) -> int:
        return int(self.subjects.max()) + 1 if len(self.subjects) else 0

    @property
    def n(self) -> int:
        """Rows that may judge."""
        return int(self.judged.sum())

    @property
    def pool(self) -> Bools:
        """Rows that the labels speak for."""
        return self.judged if self.weights is None else self.weights > 0

    @property
    def error_unknown(self) -> bool:
        """Are labels of the sample read by people, and no row by two of them?"""
        read = self.noisy is not None and bool((self.noisy & self.judged).any())
        return self.weights is not None and read and not self.doubles[0]

    def base_rate(self, mask: Bools) -> float | None:
        """Share of positives on some rows, estimated for the pool where labels are a sample; None where nothing is known."""
        if self.labels is None:
            rows = mask & self.judged
            return float(self.positive[rows].mean()) if rows.any() else None
        rows = mask & self.pool
        share = self.labels.pseudo(error_bounds(self.labels.doubles, 0.5)[0])[rows].mean() if rows.any() else 0.0
        return float(np.clip(share, 0.0, 1.0)) if (rows & self.judged).any() else None

    def cells(self, model: str, metric: str) -> tuple[Floats, Floats]:
        """Numerator and denominator (n,) of one model; rows without a label count for selection rates only."""
        num, den = cells(metric, self.positive, self.probability[model], self.answer[model])
        if metric in UNLABELLED:
            return num, den
        return np.where(self.judged, num, 0.0), den * self.judged

    def mask(self, name: str) -> Bools:
        """The rows of a slice; a slice that nobody has heard of is empty."""
        found = self.slices.get(name)
        return found if found is not None else np.zeros(len(self.positive), dtype=bool)

    @cached_property
    def labels(self) -> Labels | None:
        """The pool's labels, with the guess that serves as control variate; None where every judged row counts once."""
        if self.weights is None:
            return None
        inside = self.weights > 0
        known = self.judged & inside
        labels = Labels(
            given=self.given if self.given is not None else self.positive.astype(float),
            known=known,
            drawn=(self.drawn & inside) | known if self.drawn is not None else known,
            weights=np.where(inside, self.weights, 1.0),
            noisy=self.noisy if self.noisy is not None else np.zeros(len(known), dtype=bool),
            guess=np.zeros(len(known)),
            doubles=self.doubles,
        )
        check(labels)
        return replace(labels, guess=guessed(self._kinds(), labels))

    def _kinds(self) -> Codes:
        """Rows alike to the models: the same answers, and a probability in the same tenth. (n,) codes from 0."""
        known = [name for name in ("candidate", "champion", "anchor") if name in self.answer]
        codes = np.zeros(len(self.positive), dtype=np.int64)
        for name in known:
            codes = codes * 2 + self.answer[name]
        p = np.nan_to_num(np.mean([self.probability[name] for name in known], axis=0), nan=0.5)
        cuts = np.unique(np.quantile(p, np.linspace(0, 1, 11)[1:-1])) if len(p) else np.zeros(0)
        return np.unique(codes * 11 + np.searchsorted(cuts, p, side="right"), return_inverse=True)[1].astype(np.int64)

    def value(self, model: str, metric: str, mask: Bools) -> float | None:
        """One model's metric on some rows, estimated for the pool where labels are a sample; None where nothing counts."""
        labels = self.labels
        if labels is None or metric in UNLABELLED:
            return ratio(*self.cells(model, metric), mask)
        inside = mask & self.pool
        label = labels.pseudo(error_bounds(labels.doubles, 0.5)[0])[inside]
        (num0, den0), (num1, den1) = ((num[inside], den[inside]) for num, den in self._both(model, metric))
        mass = float((den0 + (den1 - den0) * label).sum())
        value = float((num0 + (num1 - num0) * label).sum()) / mass if mass > 0 else float("nan")
        return value if np.isfinite(value) else None

    def _both(self, model: str, metric: str) -> tuple[Cells, Cells]:
        """Cells of each row if its label were negative, and if it were positive."""
        never, p, answer = np.zeros(len(self.positive), dtype=bool), self.probability[model], self.answer[model]
        return cells(metric, never, p, answer), cells(metric, ~never, p, answer)

    def pair(self, name: str, metric: str, against: str, *, allowance: float = 0.0) -> Paired:
        """The candidate's paired drop against another model on one slice."""
        labels = self.labels
        if labels is not None and metric not in UNLABELLED:
            return pair_pool(
                self._both(against, metric),
                self._both("candidate", metric),
                mask=self.mask(name) & self.pool,
                subjects=self.subjects,
                labels=labels,
                higher_is_better=HIGHER_IS_BETTER[metric],
                allowance=allowance,
            )
        return pair(
            self.cells(against, metric),
            self.cells("candidate", metric),
            mask=self.mask(name),
            subjects=self.subjects,
            higher_is_better=HIGHER_IS_BETTER[metric],
            proportion=metric in PROPORTIONS,
            allowance=allowance,
        )

    def unsound(self, model: str) -> int:
        """Judging rows on which a model's probability is none."""
        p = self.probability[model]
        return int((self.judged & ~((p >= 0.0) & (p <= 1.0))).sum())
