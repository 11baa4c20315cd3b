"""The kind for tables of numbers and categories: grows the encoder on the trusted rows, then freezes it.

Why leaves of a boosted forest: a linear head on them comes within a point of AUROC of boosting on all data, while every row can
be added to that head, and taken out again, exactly. The forest is kept shallow and slow so that the few thousand rows it was
grown on do not fall into leaves made for them alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from truing.tasks.errors import DataError
from truing.tasks.kinds.encoders import CategoryColumn, NumberColumn, TableEncoder, TableSpec
from truing.tasks.kinds.protocol import Answers, Change, Inputs, Predict, Units
from truing.tasks.kinds.swaps import Swap, table_swaps
from truing.tasks.problem import Problem

TREES = 150
DEPTH = 2
KNOTS = 24
SMOOTHING = 10.0  # a category's rate is drawn to the mean as if this many ordinary rows had been seen
MOST_VALUES = 64  # rarer values of a category share the place of unseen ones
NO_FOREST = {name: np.zeros((0, 1)) for name in TableEncoder.ARRAYS}


class Tabular:
    """Implements `truing.tasks.kinds.protocol.Kind`; one head, one unit a row."""

    name: ClassVar[str] = "tabular"

    def __init__(self, problem: Problem, encoder: TableEncoder) -> None:
        self.problem = problem
        self.encoder = encoder

    @classmethod
    def grow(cls, problem: Problem, inputs: Inputs, labels: Sequence[str], *, seed: int, trees: int = TREES) -> Tabular:
        """Fit the encoder on trusted rows. Raises DataError when there are too few rows or only one label.

        Forest of `trees` × depth 2 (≤ 4 leaves each), shrinkage 0.1, half of the rows a tree, leaves of ≥ 20 rows.
        """
        if len(inputs) < 50 or len(set(labels)) < 2:
            raise DataError(
                f"expected at least 50 trusted rows with two labels, got {len(inputs)} rows with {len(set(labels))}; load more"
            )
        positive = np.array([label == problem.positive for label in labels])
        read = {name: spec for name, spec in problem.inputs.items() if name not in problem.unread}
        numbers = tuple(_number(problem, name, inputs) for name, spec in read.items() if spec.type == "number")
        categories = tuple(_category(problem, name, inputs, positive) for name, spec in read.items() if spec.type == "category")
        blocks = (1.0, 1.0, 1.0)
        spec = TableSpec(numbers=numbers, categories=categories, leaves=0, depth=0, blocks=blocks, unread=problem.unread)
        bare = TableEncoder(spec, NO_FOREST)
        forest, leaves = _forest(bare.trees_see(*bare.read(inputs)), np.asarray(labels), seed=seed, trees=trees)
        spec = msgspec.structs.replace(spec, leaves=leaves, depth=DEPTH)
        return cls(problem, TableEncoder(spec, forest))

    def heads(self) -> dict[str, tuple[str, ...]]:
        return {self.problem.label: self.problem.labels}

    def encode(self, inputs: Inputs) -> Units:
        matrix = self.encoder.encode(inputs)
        return Units(matrix, np.arange(len(matrix)), np.zeros(len(matrix), np.int64))

    def targets(self, labels: Sequence[str]) -> NDArray[np.int64]:
        index = {label: i for i, label in enumerate(self.problem.labels)}
        unknown = sorted({label for label in labels if label not in index})
        if unknown:
            raise DataError(
                f"{self.problem.label}: expected one of {list(self.problem.labels)}, got {unknown[0]!r}; mend the row"
            )
        return np.array([index[label] for label in labels], np.int64)

    def decode(self, units: Units, probabilities: NDArray[np.float64], thresholds: NDArray[np.float64]) -> Answers:
        return decode(self.problem.labels, probabilities, thresholds)

    def metrics(self) -> tuple[str, ...]:
        return ("brier", "accuracy", "tpr", "fpr", "selection_rate")

    def counterfactuals(self, one: Mapping[str, Any], predict: Predict) -> list[Change]:
        """Tries every value of a category and every quantile knot of a number, one column at a time."""
        tries: list[tuple[str, Any]] = [
            (c.name, value) for c in self.encoder.spec.categories for value in c.values if value != one.get(c.name)
        ]
        tries += [(n.name, knot) for n in self.encoder.spec.numbers for knot in n.knots if knot != one.get(n.name)]
        if not tries:
            return []
        before = predict([one]).labels[0]
        after = predict([{**one, column: value} for column, value in tries])
        found = [
            Change(column, value, label, float(confidence))
            for (column, value), label, confidence in zip(tries, after.labels, after.confidence, strict=True)
            if label != before
        ]
        return sorted(found, key=lambda change: (-change.confidence, change.column, str(change.value)))

    def swaps(self, group: str, inputs: Inputs, buckets: Sequence[str]) -> list[Swap]:
        return table_swaps(self.problem, group, inputs, buckets)

    def attribute(self, one: Mapping[str, Any], predict: Predict) -> dict[str, float]:
        """Occlusion: each column in turn takes its median, or a value never seen, which the encoder reads as "other"."""
        spec = self.encoder.spec
        blanks: list[dict[str, Any]] = [{**one, number.name: number.fill} for number in spec.numbers]
        blanks += [{**one, category.name: "\0other"} for category in spec.categories]
        answers = predict([one, *blanks])
        answered = self.problem.labels.index(answers.labels[0])
        p = np.clip(answers.probabilities[:, answered], 1e-9, 1 - 1e-9)
        odds = np.log(p) - np.log1p(-p)
        return {name: float(odds[0] - odds[i + 1]) for i, name in enumerate(self.encoder.columns)}

    def save(self) -> dict[str, bytes]:
        return self.encoder.to_files()


def decode(labels: Sequence[str], probabilities: NDArray[np.float64], thresholds: NDArray[np.float64]) -> Answers:
    """The label with the largest probability over its threshold; with two at (1 - t, t) that is "positive where p >= t".

    `thresholds` (k,), or (n, k) where rows have their own.
    """
    chosen = np.argmax(probabilities / thresholds, axis=1)
    return Answers([labels[i] for i in chosen], probabilities, probabilities[np.arange(len(chosen)), chosen])


def _number(problem: Problem, name: str, inputs: Inputs) -> NumberColumn:
    cells = np.array([row[name] for row in inputs if row.get(name) is not None], float)
    if not len(cells):
        raise DataError(f"{name}: expected numbers in the trusted rows, got none; load rows that have it or drop the column")
    knots = np.unique(np.quantile(cells, np.linspace(0, 1, KNOTS)))
    spread = np.unique(cells[cells > knots[-2]]) if len(knots) > 1 else knots
    if len(knots) <= KNOTS // 2 and len(spread) > 2:  # mostly one value and a long tail: give the tail knots of its own
        knots = np.unique(np.concatenate([knots, np.quantile(spread, np.linspace(0, 1, KNOTS // 2))]))
    optional = problem.inputs[name].optional
    return NumberColumn(name=name, optional=optional, knots=tuple(map(float, knots)), fill=float(np.median(cells)))


def _category(problem: Problem, name: str, inputs: Inputs, positive: NDArray[np.bool_]) -> CategoryColumn:
    cells = np.array([row.get(name) or "" for row in inputs], dtype=object)
    found, counts = np.unique(cells[cells != ""].astype(str), return_counts=True)
    values = tuple(sorted(str(value) for value in found[np.argsort(-counts, kind="stable")][:MOST_VALUES]))
    mean = float(positive.mean())
    rates = []
    for value in values:
        here = cells == value
        rates.append(float((positive[here].sum() + SMOOTHING * mean) / (here.sum() + SMOOTHING)))
    rest = ~np.isin(cells.astype(str), values)
    other = float((positive[rest].sum() + SMOOTHING * mean) / (rest.sum() + SMOOTHING))
    optional = problem.inputs[name].optional
    return CategoryColumn(name=name, optional=optional, values=values, rates=tuple(rates), other=other)


def _forest(seen: NDArray[np.float32], labels: NDArray[Any], *, seed: int, trees: int) -> tuple[dict[str, NDArray[Any]], int]:
    """Grow, then keep nothing but arrays (trees, nodes) and the number of leaves."""
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(
        n_estimators=trees, max_depth=DEPTH, learning_rate=0.1, subsample=0.5, min_samples_leaf=20, max_features=0.5,
        random_state=seed,
    ).fit(seen, labels)  # fmt: skip
    grown = [estimator.tree_ for estimator in model.estimators_.ravel()]
    nodes = max(tree.node_count for tree in grown)
    feature = np.full((len(grown), nodes), -1, np.int32)
    threshold = np.zeros((len(grown), nodes))
    left, right = np.zeros_like(feature), np.zeros_like(feature)
    leaf = np.full_like(feature, -1)
    leaves = 0
    for i, tree in enumerate(grown):
        n = tree.node_count
        is_leaf = tree.children_left < 0
        feature[i, :n] = np.where(is_leaf, -1, tree.feature)
        threshold[i, :n] = np.where(is_leaf, 0.0, tree.threshold)
        left[i, :n] = np.where(is_leaf, 0, tree.children_left)
        right[i, :n] = np.where(is_leaf, 0, tree.children_right)
        leaf[i, :n][is_leaf] = leaves + np.arange(int(is_leaf.sum()))
        leaves += int(is_leaf.sum())
    return {"feature": feature, "threshold": threshold, "left": left, "right": right, "leaf": leaf}, leaves
