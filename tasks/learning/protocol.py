"""What a learner has to offer. It sees units, targets and weights; which kind of problem they come from is not its business.

A learner's *state* is whatever it can be continued from; `head` turns it into the arrays that are served. All functions are
deterministic in their arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from truing.tasks.kinds.model import Head
from truing.tasks.records import Trial

Progress = Callable[[int, int, str], None]  # (done, of, what)
Params = dict[str, float]


class Batch(NamedTuple):
    """`units` (n, d) float32, `targets` (n,) label index, `weights` (n,) > 0: 1 is one ordinary row."""

    units: NDArray[np.float32]
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Batch:
        return Batch(self.units[chosen], self.targets[chosen], self.weights[chosen])


class Range(NamedTuple):
    """Where a parameter may lie; `log` = searched on a log scale."""

    low: float
    high: float
    log: bool = False


class Found(NamedTuple):
    """What a search found: the head, its parameters, uncalibrated `scores` (n, k) of the rows that judged, none of which had
    taught the score it got, and what was tried."""

    head: Head
    params: Params
    scores: NDArray[np.float64]
    trials: tuple[Trial, ...] = ()


S = TypeVar("S")


class Learner(Protocol[S]):
    name: str  # fast | slow

    def space(self) -> dict[str, Range]: ...

    def fit(self, batch: Batch, *, labels: int, params: Params, seed: int, threads: int) -> S: ...

    def update(self, state: S, batch: Batch, *, params: Params, seed: int, threads: int) -> S:
        """The state after seeing these rows too."""
        ...

    def subtract(self, state: S, batch: Batch) -> S | None:
        """The state as if these rows had never been seen; None where that can't be had without fitting again."""
        ...

    def head(self, state: S, params: Params) -> Head: ...

    def tune(self, state: S, batch: Batch, evidence: Batch, *, trials: int, seed: int, threads: int) -> Found:
        """The best that `state` can become by learning `batch`, judged by Brier score on `evidence`."""
        ...
