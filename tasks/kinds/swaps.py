"""The same case, had the person been another: what counterfactual checks ask a model instead of the case itself.

For tables: a protected column that is among the inputs takes another bucket's value, and columns that the problem names as
going with it change along (`[counterfactual.sex] relationship = {Husband = "Wife", Wife = "Husband"}`). For text: identity
terms are exchanged within their group. These are swaps of what is written down, not of what would have happened to that person
(Kusner et al. 2017, arXiv:1703.06856, need a causal model for that); a model that ignores the swapped words passes whatever
else it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from truing.tasks.problem import UNKNOWN, Problem


class Swap(NamedTuple):
    """`inputs` of row `row` (index), as they would stand for somebody in bucket `to` of the protected attribute."""

    row: int
    to: str
    inputs: Any


def table_swaps(problem: Problem, group: str, inputs: Sequence[Mapping[str, Any]], buckets: Sequence[str]) -> list[Swap]:
    """Every row (with its `buckets` entry, n) as it would stand in each other bucket; rows that nothing can be swapped in are
    left out.

    A named value takes each other value, a number the median of each other bucket's rows. Columns that go along change where
    their value has a counterpart; with more than two buckets they can't say for which, so they change for each.
    """
    beside = problem.counterfactual.get(group, {})
    given = group in problem.inputs
    spec = problem.groups[group]
    others: dict[str, Any] = {}
    if given and spec.values:
        others = {value: value for value in spec.values}
    elif given:
        for name in sorted(set(buckets) - {UNKNOWN}):
            seen = [
                float(row[group])
                for row, own in zip(inputs, buckets, strict=True)
                if own == name and row.get(group) is not None
            ]
            if seen:
                others[name] = float(np.median(seen))
    found = []
    for at, (row, own) in enumerate(zip(inputs, buckets, strict=True)):
        if own == UNKNOWN:
            continue
        along = {column: values[row[column]] for column, values in beside.items() if row.get(column) in values}
        if given and row.get(group) is not None:
            found += [Swap(at, name, {**row, **along, group: value}) for name, value in others.items() if name != own]
        elif along:
            found.append(Swap(at, "other", {**row, **along}))
    return found


class Terms:
    """Identity terms by group, `{"religion": ["christian", "muslim"], …}`, matched as whole words of any case."""

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self.groups = {name: tuple(dict.fromkeys(term.lower() for term in terms)) for name, terms in groups.items()}
        self._of = {term: name for name, terms in self.groups.items() for term in terms}
        longest = sorted(self._of, key=lambda term: (-len(term), term))
        self._pattern = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, longest)) + r")(?!\w)", re.IGNORECASE)

    def found(self, text: str) -> list[str]:
        """The terms in a text, in order, in lower case."""
        return [match[1].lower() for match in self._pattern.finditer(text)] if self._of else []

    def swaps(self, text: str, group: str) -> list[tuple[str, str, str]]:
        """(term, its replacement, the text with it) for each term of the group in the text and each other term of it.

        All places of one term change together; capitals stay where they were: Muslim → Christian, MUSLIM → CHRISTIAN.
        """
        here = dict.fromkeys(one for one in self.found(text) if self._of[one] == group)
        pairs = [(term, other) for term in here for other in self.groups[group] if other != term]
        return [(term, other, self._pattern.sub(partial(_exchanged, term, other), text)) for term, other in pairs]


def fill(template: str, fillings: Mapping[str, str]) -> str:
    """A template with its places ($NOM_PRONOUN) filled; longer names first, so that $NOM is not taken for $NOM_PRONOUN."""
    for name in sorted(fillings, key=len, reverse=True):
        template = template.replace(f"${name}", fillings[name])
    return template


def text_swaps(texts: Sequence[str], terms: Terms, group: str) -> tuple[list[Swap], list[str]]:
    """Every text with one of the group's terms exchanged, and the term each swap replaces (the bucket it comes from)."""
    found, came = [], []
    for at, text in enumerate(texts):
        for term, other, made in terms.swaps(text, group):
            found.append(Swap(at, other, made))
            came.append(term)
    return found, came


def _exchanged(term: str, other: str, match: re.Match[str]) -> str:
    word = match[1]
    if word.lower() != term:
        return word
    return other.upper() if word.isupper() and len(word) > 1 else other.capitalize() if word[0].isupper() else other
