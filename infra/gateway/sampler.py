"""Which predictions a blind reviewer may get to read: a random share, stratified by group, each with its known probability.

A prediction is drawn when a keyed hash of its id falls below its probability: whoever asks can't know or choose it, and asking
again with the same id draws the same. Strata are the joint buckets of the policy's `audit.groups`; rare ones are drawn more
often, in inverse proportion to the square root of what they made up so far, such that the whole share is kept (Σ√ ≤ √(k·n)).
The probability goes into the event, so that it never has to be guessed from what was drawn.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable

from truing.tasks.policy import Policy
from truing.tasks.problem import Problem

WARM = 100  # predictions of a problem before its strata are told apart


class Sampler:
    """State of one gateway: how many predictions each stratum had. Safe between threads."""

    def __init__(self, key: bytes) -> None:
        self._key = key[:64]
        self._seen: defaultdict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
        self._turn = threading.Lock()

    def draw(
        self, problem: Problem, policy: Policy, ids: Iterable[str], groups: Iterable[dict[str, object]]
    ) -> list[tuple[float, bool]]:
        """(probability, drawn) of each prediction; `groups` are their raw protected attributes. All (0, False) at share 0."""
        share = policy.audit.share
        if share <= 0.0:
            return [(0.0, False) for _ in ids]
        out = []
        for id, raw in zip(ids, groups, strict=True):
            stratum = tuple(problem.bucket(name, raw.get(name)) for name in policy.audit.groups)
            chance = self._chance(problem.name, stratum, share)
            out.append((chance, self._point(problem.name, id) < chance))
        return out

    def _chance(self, problem: str, stratum: tuple[str, ...], share: float) -> float:
        with self._turn:
            seen = self._seen[problem]
            seen[stratum] += 1
            n, each, strata = seen.total(), seen[stratum], len(seen)
        if n < WARM or strata < 2:
            return share
        return round(min(1.0, share * math.sqrt(n / (strata * each))), 6)

    def _point(self, problem: str, id: str) -> float:
        name = f"audit:{len(problem)}:{problem}{id}".encode()
        return int.from_bytes(hashlib.blake2b(name, key=self._key, digest_size=8).digest(), "big") / 2.0**64
