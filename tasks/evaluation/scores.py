"""Per-row answers of all models on the same rows: what the gate draws its pairs from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from truing.tasks.statistics.cells import HIGHER_IS_BETTER, PROPORTIONS, UNLABELLED, Bools, Floats, cells
from truing.tasks.statistics.paired import Codes, Paired, pair

PRIOR = "prior"  # answers every row with the base rate


@dataclass(frozen=True, eq=False)
class Scores:
    """Per-row answers of every model, for the gate: rows sorted by id, subjects as codes 0..S−1.

    `probability` and `answer` hold one (n,) array a model: candidate, prior, and champion, none, anchor where there are such.
    """

    rows: str
    positive: Bools
    judged: Bools
    subjects: Codes
    slices: dict[str, Bools]
    probability: dict[str, Floats]
    answer: dict[str, Bools]

    @property
    def subject_count(self) -> int:
        return int(self.subjects.max()) + 1 if len(self.subjects) else 0

    @property
    def n(self) -> int:
        """Rows that may judge."""
        return int(self.judged.sum())

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

    def pair(self, name: str, metric: str, against: str, *, allowance: float = 0.0) -> Paired:
        """The candidate's paired drop against another model on one slice."""
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
