"""What every model said on the rows that judge it: one line a model and row, kept by the steward.

The steward may only read the vault, so the table lies below its own desk; trainers read neither. Each evaluation is one commit
under its own name, so that a verdict made again after a crash adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from truing.tasks.tables.columns import type_
from truing.tasks.tables.store import Store

PREDICTIONS: dict[str, type_] = {
    "problem": pl.String,
    "evaluation": pl.String,  # digest of the evaluation they were made for
    "model": pl.String,  # payload digest
    "roles": pl.String,  # candidate | champion | none | anchor; several with commas
    "release": pl.String,  # the release that served this payload by then, or null
    "row": pl.String,  # the row's id
    "label": pl.String,
    "probability": pl.Float64,  # of the positive label, 0..1
    "at": pl.Float64,
}


class Predictions(Store):
    """Table `predictions` below the steward's folder."""

    tables: ClassVar[Mapping[str, Mapping[str, type_]]] = {"predictions": PREDICTIONS}

    def keep(
        self,
        problem: str,
        evaluation: str,
        rows: Sequence[str],
        *,
        payloads: Mapping[str, str],
        probability: Mapping[str, npt.NDArray[np.float64]],
        label: Mapping[str, npt.NDArray[np.str_]],
        releases: Mapping[str, str],
        at: float,
    ) -> int:
        """Append all answers of an evaluation, once. `payloads`, `probability` (n,) and `label` (n,) are by role; `releases`
        gives a payload's release. Returns the table's version. Raises Unavailable.
        """
        roles: dict[str, list[str]] = {}
        for role, payload in payloads.items():
            roles.setdefault(payload, []).append(role)
        frames = [
            pl.DataFrame(
                {
                    "row": list(rows),
                    "label": label[names[0]].tolist(),
                    "probability": probability[names[0]],
                }
            ).with_columns(
                problem=pl.lit(problem), evaluation=pl.lit(evaluation), model=pl.lit(payload), roles=pl.lit(",".join(names)),
                release=pl.lit(releases.get(payload), dtype=pl.String), at=pl.lit(at),
            )
            for payload, names in roles.items()
        ]  # fmt: skip
        return self.append("predictions", pl.concat(frames), app=(f"predictions:{evaluation}", 1))

    def of(self, evaluation: str) -> pl.DataFrame:
        """The answers of one evaluation, schema PREDICTIONS."""
        return self.read("predictions", predicate=pl.col("evaluation") == evaluation)
