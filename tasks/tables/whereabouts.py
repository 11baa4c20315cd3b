"""Which data files of a table hold a value: hashes in memory, so that a small batch does not read the whole lake.

Ids are random, so Delta's smallest and largest value of a file prune nothing. Files never change: each is read once, one
column of it, and remembered as sorted 32-bit hashes (4 bytes a row). A hash that meets by chance costs one look into a file
(200 ids against 100,000 rows: one in 200), never a wrong answer: the caller filters by the values themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

Hashes = NDArray[np.uint32]


class Whereabouts:
    """Files of one column of one table. `read` gives that column of one file."""

    def __init__(self, read: Callable[[str], pl.Series]) -> None:
        self._read = read
        self._known: dict[str, Hashes] = {}

    def holding(self, files: Sequence[str], values: pl.Series) -> list[str]:
        """Those of `files` that may hold any of `values`, in their order; files that are gone are forgotten."""
        self._known = {file: self._known[file] if file in self._known else hashes(self._read(file)) for file in files}
        wanted = hashes(values)
        return [file for file in files if _meet(self._known[file], wanted)]


def hashes(values: pl.Series) -> Hashes:
    """Sorted, each once, nulls left out."""
    return np.unique(values.drop_nulls().hash().to_numpy().astype(np.uint32))


def _meet(known: Hashes, wanted: Hashes) -> bool:
    if not len(known) or not len(wanted):
        return False
    few, many = (wanted, known) if len(wanted) < len(known) else (known, wanted)
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return bool((many[at] == few).any())
