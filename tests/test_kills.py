"""The benchmark of kills in its short form: two keepers and their broker die a dozen times, and every event is there once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent / "benchmarks" / "intake_crash.py"


@pytest.mark.services
def test_kills_at_named_points_lose_nothing_and_double_nothing() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARK), "--quick", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)["figures"]
    assert figures["lost"] == figures["doubled"] == 0
    assert figures["kills"] >= 10 and figures["restarts"] >= figures["kills"], "a kill did not hit"
    assert all(kills >= 1 for kills in figures["broker_kills"].values())
    assert figures["events"] > 1000 and figures["invalid"] > 10, "too little came in for the kills to matter"
