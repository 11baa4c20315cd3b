"""What a kind of problem has to offer: everything that serving, selection and evaluation need, nothing about learning.

A *unit* is what one head answers about: for a table one unit a row; for intents with slots one for the text and one a word. So
learners see matrices only, and a new kind brings its own units without a new learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from truing.tasks.kinds.swaps import Swap

Inputs = Sequence[Mapping[str, Any]]


class Units(NamedTuple):
    """`matrix` (m, d) float32 of unit norm; `row` (m,) which input each unit belongs to; `head` (m,) which head answers it."""

    matrix: NDArray[np.float32]
    row: NDArray[np.int64]
    head: NDArray[np.int64]


class Answers(NamedTuple):
    """`labels` (n) as answered; `probabilities` (n, k) float64, columns as in the model's `problem_labels`, rows summing to 1;
    `confidence` (n,) the calibrated probability of the label answered."""

    labels: list[str]
    probabilities: NDArray[np.float64]
    confidence: NDArray[np.float64]


class Change(NamedTuple):
    """A counterfactual: with `column` set to `value`, the answer becomes `label` at `confidence`."""

    column: str
    value: Any
    label: str
    confidence: float


Predict = Callable[[Inputs], Answers]


class Kind(Protocol):
    """An encoder grown on trusted rows and frozen, with the heads, targets and answers that belong to it."""

    name: ClassVar[str]

    def heads(self) -> dict[str, tuple[str, ...]]:
        """Head → its labels, in the order of probability columns."""
        ...

    def encode(self, inputs: Inputs) -> Units: ...

    def targets(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Label index of each unit. Raises DataError on a label that the problem does not have."""
        ...

    def decode(self, units: Units, probabilities: NDArray[np.float64], thresholds: NDArray[np.float64]) -> Answers: ...

    def metrics(self) -> tuple[str, ...]:
        """Names of `truing.tasks.statistics.cells`: each a ratio of summed per-row cells."""
        ...

    def counterfactuals(self, one: Mapping[str, Any], predict: Predict) -> list[Change]:
        """Single changes of one input that turn the answer, most confident first."""
        ...

    def swaps(self, group: str, inputs: Inputs, buckets: Sequence[str]) -> list[Swap]:
        """Each case (in its bucket of a protected attribute, n) as it would stand for somebody of another bucket."""
        ...

    def attribute(self, one: Mapping[str, Any], predict: Predict) -> dict[str, float]:
        """Column → log-odds that the answered label loses when that column is made ordinary (> 0 speaks for it)."""
        ...

    def save(self) -> dict[str, bytes]:
        """The encoder as named files of data, byte-stable."""
        ...
