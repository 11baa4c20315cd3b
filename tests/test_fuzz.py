"""Anything may be sent: each message becomes one row with a reason, in blocks as alone. A million: intake_fuzz."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from intake_fuzz import Door, through_blocks
from mutations import MUTATIONS, PROBLEM, WIRE, Base

from truing.tasks.events.schema import encode_event, token
from truing.tasks.problem import load_problem
from truing.tasks.tables.lake import Vault


@pytest.fixture
def door(tmp_path: Path) -> Door:
    (tmp_path / "loan").mkdir()
    (tmp_path / "vault").mkdir()
    (tmp_path / "loan" / "problem.toml").write_text(PROBLEM)
    return Door(load_problem(tmp_path / "loan"), Vault(tmp_path / "vault"), time.time())


@pytest.mark.parametrize("seed", [1, 2])
def test_six_thousand_mutated_messages_become_six_thousand_rows_each_with_its_reason(door: Door, seed: int) -> None:
    through_blocks(door, Base(seed, door.now), 6000)
    assert (door.events, door.crashes, door.unexplained) == (6000, 0, [])
    assert set(door.fates) == {*MUTATIONS, "again, twice"}
    assert (
        len({reason for fates in door.fates.values() for reason in fates} - {"landed", "duplicate"}) >= 12
    )  # it got everywhere


@pytest.mark.parametrize("field", ["id", "actor", "subject", "source", "predictionid"])
@pytest.mark.parametrize("length", [1, 127, 128, 256, 257, 512, 513, 5000])
def test_no_attribute_is_longer_in_blocks_than_alone_signed_or_not(door: Door, field: str, length: int) -> None:
    """A person's id and actor are not in his token's MAC, so only their length keeps them small."""
    given = {"problem": "loan", "time": door.now, "source": "app", "id": "e", "prediction_id": "p", "data": {"value": 0.5}}
    given["actor"] = given["subject"] = "a"
    given["prediction_id" if field == "predictionid" else field] = "x" * length
    proof = token(WIRE, "loan", str(given["prediction_id"]), door.now + 60)
    door.block([("long", encode_event("rating", token=proof, **given)[1])], commit=True, check=1)
    assert (door.crashes, door.unexplained) == (0, [])
    most = {"actor": 512, "subject": 512}.get(field, 256)
    assert dict(door.fates["long"]) == {"landed" if length <= most else "envelope": 1}
