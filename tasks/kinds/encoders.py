"""The frozen encoder of tables, applied with numpy alone: a row of columns becomes one unit-norm vector.

Three blocks stand beside each other in a unit:
  leaves      which leaf the row falls into in every tree of a boosted forest (He et al. 2014, "Practical lessons from
              predicting clicks on ads at Facebook": boosted trees as learned interactions, a linear model on top)
  categories  one-hot, with a place for "not seen in the trusted rows, or missing"
  numbers     hat functions between quantiles of the trusted rows: piecewise linear, flat outside, so no outlier can shout
The forest is grown once (`truing.tasks.kinds.tabular`) and never changes: heads may be updated and undone at will below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from truing.tasks.errors import DataError
from truing.tasks.seal import canonical, tree_digest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class NumberColumn(msgspec.Struct, frozen=True, kw_only=True):
    """`knots` rise strictly; `fill` stands in for a missing value (the median of the trusted rows)."""

    name: str
    optional: bool
    knots: tuple[float, ...]
    fill: float


class CategoryColumn(msgspec.Struct, frozen=True, kw_only=True):
    """`rates[i]` is what the forest reads for `values[i]` (smoothed share of the positive label), `other` for the rest."""

    name: str
    optional: bool
    values: tuple[str, ...]
    rates: tuple[float, ...]
    other: float


class TableSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the columns are. `blocks` scales (leaves, categories, numbers) before a unit is brought to norm 1.

    `unread` columns may come with a row and change nothing: protected attributes that only thresholds by group may look at.
    """

    numbers: tuple[NumberColumn, ...]
    categories: tuple[CategoryColumn, ...]
    leaves: int
    depth: int
    blocks: tuple[float, float, float]
    unread: tuple[str, ...] = ()


class TableEncoder:
    """Spec + forest arrays. `encode` is pure and row-wise: a row's unit depends on nothing but that row.

    Forest arrays have shape (trees, nodes): `feature` (-1 at a leaf), `threshold`, `left`, `right`, `leaf` (column of the leaf
    among all leaves, -1 at inner nodes). A row goes left where value <= threshold, as in scikit-learn.
    """

    ARRAYS = ("feature", "threshold", "left", "right", "leaf")

    def __init__(self, spec: TableSpec, forest: Mapping[str, NDArray[Any]]) -> None:
        self.spec = spec
        self.feature = np.asarray(forest["feature"], np.int32)
        self.threshold = np.asarray(forest["threshold"], np.float64)
        self.left = np.asarray(forest["left"], np.int32)
        self.right = np.asarray(forest["right"], np.int32)
        self.leaf = np.asarray(forest["leaf"], np.int32)
        shapes = {getattr(self, name).shape for name in self.ARRAYS}
        if len(shapes) != 1 or self.feature.ndim != 2:
            raise DataError(f"expected forest arrays of one shape (trees, nodes), got {sorted(shapes)}; the encoder is damaged")
        self._lookup = [{value: i for i, value in enumerate(column.values)} for column in spec.categories]
        self._known = {*self.columns, *spec.unread}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(number.name for number in self.spec.numbers), *(category.name for category in self.spec.categories))

    @property
    def width(self) -> int:
        """d: length of a unit."""
        categories = sum(len(column.values) + 1 for column in self.spec.categories)
        return self.spec.leaves + categories + sum(len(column.knots) for column in self.spec.numbers)

    def read(self, inputs: Sequence[Mapping[str, Any]]) -> tuple[Floats, Ints]:
        """Rows as (numbers (n, a) float64, category codes (n, b)); code = len(values) where unseen or missing.

        Raises DataError: unknown column, missing required column, text where a number belongs, a number that is not finite.
        """
        unknown = {name for row in inputs for name in row.keys() - self._known}
        if unknown:
            raise DataError(
                f"expected the columns {', '.join(sorted(self._known))}, got also {', '.join(sorted(map(str, unknown)))}; "
                "leave out what problem.toml does not name"
            )
        numbers = np.empty((len(inputs), len(self.spec.numbers)))
        for j, number in enumerate(self.spec.numbers):
            cells = [row.get(number.name) for row in inputs]
            self._require(number.name, number.optional, cells)
            wrong = next((cell for cell in cells if cell is not None and not _is_number(cell)), None)
            if wrong is not None:
                raise DataError(f"{number.name}: expected a number, got {wrong!r}; send it as a JSON number")
            numbers[:, j] = [number.fill if cell is None else cell for cell in cells]
        if not np.isfinite(numbers).all():
            bad = self.spec.numbers[int(np.argwhere(~np.isfinite(numbers))[0][1])]
            raise DataError(f"{bad.name}: expected a finite number, got nan or infinity; leave unknown values out")
        codes = np.empty((len(inputs), len(self.spec.categories)), np.int64)
        for j, category in enumerate(self.spec.categories):
            cells = [row.get(category.name) for row in inputs]
            self._require(category.name, category.optional, cells)
            wrong = next((cell for cell in cells if cell is not None and not isinstance(cell, str)), None)
            if wrong is not None:
                raise DataError(f"{category.name}: expected text, got {wrong!r}; send the category's name")
            lookup, other = self._lookup[j], len(category.values)
            codes[:, j] = [other if cell is None else lookup.get(cell, other) for cell in cells]
        return numbers, codes

    def _require(self, name: str, optional: bool, cells: list[Any]) -> None:
        if not optional and any(cell is None for cell in cells):
            raise DataError(f"{name}: expected a value in every row, got none in row {cells.index(None)}; it is not optional")

    def trees_see(self, numbers: Floats, codes: Ints) -> NDArray[np.float32]:
        """The forest's own inputs (n, a + b) float32: numbers as they are, categories as their rates."""
        rates = [np.array((*c.rates, c.other))[codes[:, j]] for j, c in enumerate(self.spec.categories)]
        return np.column_stack([numbers, *rates]).astype(np.float32)

    def leaves(self, seen: NDArray[np.float32]) -> Ints:
        """Leaf column of every row in every tree, (n, trees). All trees step down together, `depth` times."""
        trees = np.arange(self.feature.shape[0])[None, :]
        node = np.zeros((len(seen), self.feature.shape[0]), np.int32)
        rows = np.arange(len(seen))[:, None]
        for _ in range(self.spec.depth):
            feature = self.feature[trees, node]
            goes_left = seen[rows, np.maximum(feature, 0)] <= self.threshold[trees, node]
            below = np.where(goes_left, self.left[trees, node], self.right[trees, node])
            node = np.where(feature < 0, node, below).astype(np.int32)
        return self.leaf[trees, node].astype(np.int64)

    def encode(self, inputs: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Units (n, d) float32, each of norm 1. Raises DataError (see `read`)."""
        numbers, codes = self.read(inputs)
        units = np.zeros((len(inputs), self.width), np.float32)
        rows = np.arange(len(inputs))
        leaf_scale, category_scale, number_scale = self.spec.blocks
        at = 0
        if self.spec.leaves:
            units[rows[:, None], self.leaves(self.trees_see(numbers, codes))] = leaf_scale / np.sqrt(len(self.feature))
            at = self.spec.leaves
        for j, category in enumerate(self.spec.categories):
            units[rows, at + codes[:, j]] = category_scale / np.sqrt(len(self.spec.categories))
            at += len(category.values) + 1
        for j, number in enumerate(self.spec.numbers):
            units[:, at : at + len(number.knots)] = (
                number_scale / np.sqrt(len(self.spec.numbers)) * _hats(number, numbers[:, j])
            )
            at += len(number.knots)
        norms: NDArray[np.float32] = np.linalg.norm(units, axis=1, keepdims=True)
        np.divide(units, norms, out=units, where=norms > 0)
        return units

    def to_files(self) -> dict[str, bytes]:
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in sorted(self.ARRAYS)}
        return {"encoder.json": canonical(self.spec), "encoder.safetensors": save(arrays)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> TableEncoder:
        """Raises DataError where the files are not an encoder."""
        try:
            return cls(msgspec.json.decode(files["encoder.json"], type=TableSpec), load_arrays(files, "encoder.safetensors"))
        except (msgspec.DecodeError, KeyError) as error:
            raise DataError(f"expected the files of a table encoder, got {error}; the payload is damaged") from None

    @property
    def digest(self) -> str:
        """The `base` of every candidate that stands on this encoder."""
        return tree_digest(self.to_files())


def load_arrays(files: Mapping[str, bytes], name: str) -> dict[str, NDArray[Any]]:
    """The arrays of one safetensors file. Raises DataError where it can't be read, KeyError where it is absent."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, NDArray[Any]] = load(files[name])
        return arrays
    except SafetensorError as error:
        raise DataError(f"{name}: expected safetensors, got {error}; the payload is damaged") from None


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _hats(column: NumberColumn, values: Floats) -> Floats:
    """Piecewise-linear basis (n, knots): rows sum to 1, constant beyond the outer knots."""
    knots = np.array(column.knots)
    basis = np.zeros((len(values), len(knots)))
    rows = np.arange(len(values))
    if len(knots) == 1:
        basis[:, 0] = 1.0
        return basis
    inside = np.clip(values, knots[0], knots[-1])
    low = np.clip(np.searchsorted(knots, inside, side="right") - 1, 0, len(knots) - 2)
    share = (inside - knots[low]) / (knots[low + 1] - knots[low])
    basis[rows, low] = 1 - share
    basis[rows, low + 1] += share
    return basis
