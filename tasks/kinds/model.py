"""A model as it is served: encoder + heads + calibration + thresholds. numpy only; in and out as files of data, never code.

    p = softmax(temperature · f(u) + bias),   f(u) = u·W + b [+ relu(u·A + a)·B]

The linear part is what the fast learner solves for; the hidden part, where there is one, is what the slow learner added.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from truing.tasks.errors import DataError
from truing.tasks.kinds.encoders import TableEncoder, load_arrays
from truing.tasks.kinds.protocol import Answers, Inputs
from truing.tasks.kinds.tabular import decode
from truing.tasks.seal import canonical, tree_digest

FORMAT = 1
CHUNK = 8192  # rows encoded at once: bounds memory at about 64 MB


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Arrays of one head, float32: `weight` (d, k), `bias` (k,); with a hidden layer also `hidden` (d, h), `hidden_bias` (h,),
    `out` (h, k)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    hidden: NDArray[np.float32] | None = None
    hidden_bias: NDArray[np.float32] | None = None
    out: NDArray[np.float32] | None = None

    def scores(self, units: NDArray[np.float32]) -> NDArray[np.float64]:
        """f(u), shape (n, k), uncalibrated."""
        linear = units @ self.weight + self.bias
        if self.hidden is not None and self.hidden_bias is not None and self.out is not None:
            linear = linear + np.maximum(units @ self.hidden + self.hidden_bias, 0) @ self.out
        scores: NDArray[np.float64] = linear.astype(np.float64)
        return scores

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        named = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: np.ascontiguousarray(value, np.float32) for name, value in sorted(named.items()) if value is not None}


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Temperature and one bias a label, in the order of the labels."""

    temperature: float
    bias: tuple[float, ...]

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = self.temperature * scores + np.array(self.bias)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float64)


class ByGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds (one a label) for each bucket of a protected attribute that the policy allows to be read while serving.

    Buckets are `values`, or what `edges` cut: below the first, between two, from the last on. Rows of any other bucket, and
    rows without the column, keep the card's own thresholds.
    """

    column: str
    thresholds: tuple[tuple[float, ...], ...]
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def buckets(self) -> int:
        return len(self.values) or len(self.edges) + 1

    def bucket(self, cell: Any) -> int:
        """Which bucket a raw value lies in; -1 for none."""
        if self.edges:
            sound = isinstance(cell, (int, float)) and not isinstance(cell, bool)
            return int(np.searchsorted(self.edges, cell, side="right")) if sound else -1
        return self.values.index(cell) if cell in self.values else -1


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """model.json: what the arrays mean."""

    format: int
    kind: str
    problem: str
    head: str
    labels: tuple[str, ...]
    positive: str
    thresholds: tuple[float, ...]
    calibration: Calibration
    learned_until: float = 0.0  # newest label it learned from: what the next fine-tuning counts as new
    by_group: ByGroup | None = None


class Model:
    """Predicts; immutable. Same model, same bytes: `seal.tree_digest(model.to_files())` is its payload digest."""

    def __init__(self, card: Card, encoder: TableEncoder, head: Head, reference: Head | None = None) -> None:
        """`reference` is the linear head that the fast learner steps from, frozen at genesis; serving never uses it.

        Raises DataError where the parts do not fit each other.
        """
        k = len(card.labels)
        shapes = {name: value.shape for name, value in head.arrays().items()}
        width = shapes["hidden"][1] if "hidden" in shapes else 0
        wanted: dict[str, tuple[int, ...]] = {"weight": (encoder.width, k), "bias": (k,)}
        if width:
            wanted |= {"hidden": (encoder.width, width), "hidden_bias": (width,), "out": (width, k)}
        if shapes != wanted or len(card.thresholds) != k or len(card.calibration.bias) != k:
            raise DataError(f"expected head arrays {wanted} for {k} labels, got {shapes}; the payload is damaged")
        frozen = {} if reference is None else {name: value.shape for name, value in reference.arrays().items()}
        if frozen not in ({}, {"weight": (encoder.width, k), "bias": (k,)}):
            raise DataError(f"expected a linear reference of width {encoder.width} for {k} labels, got {frozen}; it is damaged")
        rules = card.by_group
        if rules is not None and (len(rules.thresholds) != rules.buckets or any(len(row) != k for row in rules.thresholds)):
            raise DataError(f"expected {rules.buckets} rows of {k} thresholds by {rules.column}; the payload is damaged")
        parts = [*head.arrays().values(), *(reference.arrays().values() if reference is not None else ())]
        if not all(np.isfinite(value).all() for value in parts):
            raise DataError("expected finite weights, got nan or infinity; the payload is damaged")
        self.card = card
        self.encoder = encoder
        self.head = head
        self.reference = reference

    @property
    def problem_labels(self) -> tuple[str, ...]:
        return self.card.labels

    @property
    def positive(self) -> int:
        """Column of the positive label."""
        return self.card.labels.index(self.card.positive)

    def predict(self, inputs: Inputs) -> Answers:
        """Answers to n ≥ 0 rows. Raises DataError on unknown columns, missing required ones or wrong types."""
        if not len(inputs):
            return Answers([], np.zeros((0, len(self.card.labels))), np.zeros(0))
        parts = [self.probabilities(self.encoder.encode(inputs[i : i + CHUNK])) for i in range(0, len(inputs), CHUNK)]
        return decode(self.card.labels, np.concatenate(parts), self.thresholds(inputs))

    def thresholds(self, inputs: Inputs) -> NDArray[np.float64]:
        """Thresholds (k,), or (n, k) where they differ by group."""
        own, rules = np.array(self.card.thresholds), self.card.by_group
        if rules is None:
            return own
        return np.array([*rules.thresholds, own])[[rules.bucket(row.get(rules.column)) for row in inputs]]

    def probabilities(self, units: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities (n, k) of rows that are already encoded."""
        return self.card.calibration.probabilities(self.head.scores(units))

    def to_files(self) -> dict[str, bytes]:
        return {**self._frozen(), "head.safetensors": _save(self.head), "model.json": canonical(self.card)}

    def _frozen(self) -> dict[str, bytes]:
        reference = {} if self.reference is None else {"reference.safetensors": _save(self.reference)}
        return {**self.encoder.to_files(), **reference}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Model:
        """The model in `files`; files that are not its own are ignored. Raises DataError where it is not one."""
        try:
            card = msgspec.json.decode(files["model.json"], type=Card)
            head = _load(files, "head.safetensors")
            reference = _load(files, "reference.safetensors") if "reference.safetensors" in files else None
            encoder = TableEncoder.from_files(files)
        except (KeyError, msgspec.DecodeError) as error:
            raise DataError(f"expected the files of a model, got {error}; the payload is damaged") from None
        if card.format != FORMAT or card.kind != "tabular":
            raise DataError(f"expected a tabular model of format {FORMAT}, got {card.kind} {card.format}; match versions")
        return cls(card, encoder, head, reference)

    @cached_property
    def payload(self) -> str:
        """Digest over all files: the name under which verdict, approval and release speak of this model."""
        return tree_digest(self.to_files())

    @cached_property
    def base(self) -> str:
        """Digest of what is frozen at genesis: encoder and reference."""
        return tree_digest(self._frozen())


def _save(head: Head) -> bytes:
    from safetensors.numpy import save

    data: bytes = save(head.arrays())
    return data


def _load(files: Mapping[str, bytes], name: str) -> Head:
    arrays: dict[str, Any] = load_arrays(files, name)
    if not {"weight", "bias"} <= arrays.keys() <= set(Head.__struct_fields__):
        raise DataError(f"{name}: expected the arrays of a head, got {sorted(arrays)}; the payload is damaged")
    return Head(**arrays)
