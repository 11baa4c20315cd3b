"""How long do 10,000 resamples of 100,000 rows take over 48 cells (12 slices × 4 metrics), of two models at once?

*The gate*: from the rows' answers to 48 paired drops with joint lower bounds, as `judge` does it (multiplier draws of the
joint limit). *Resampled*: the same critical value from 10,000 true resamples of the rows (multinomial counts of the kinds of
rows); both must agree. *Subjects*: the multiplier draws again where five rows share a subject. Beside it fairlearn's bootstrap
(`MetricFrame(n_boot=…)`) of *one* model on the same slices and metrics, in the same run; its time is taken for a few resamples
and multiplied.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from harness import Measured, main, say

from truing.tasks.statistics.cells import HIGHER_IS_BETTER, cells
from truing.tasks.statistics.multiplicity import critical_value, joint_lower
from truing.tasks.statistics.paired import Paired, pair
from truing.tasks.statistics.resampling import joint_critical, kinds, resampled

ROWS, DRAWS, LEVEL, AGREE, LIMIT_S = 100_000, 10_000, 0.02, 0.08, 2.0
METRICS = ("accuracy", "tpr", "fpr", "selection_rate")
BUCKETS = {"sex": 2, "race": 5, "age": 5}


def made(rng: np.random.Generator) -> dict[str, Any]:
    z = rng.normal(size=ROWS)
    columns: dict[str, Any] = {
        name: rng.choice(many, size=ROWS, p=np.arange(many, 0, -1) / (many * (many + 1) / 2)) for name, many in BUCKETS.items()
    }
    columns["truth"] = z + rng.normal(0, 0.7, ROWS) > 0.8
    columns["champion"], columns["candidate"] = (z + rng.normal(0, 0.15, ROWS) > 0.8 for _ in range(2))
    return columns


def pairs_of(data: dict[str, Any], subjects: Any) -> list[Paired]:
    found = []
    for metric in METRICS:
        models = [
            cells(metric, data["truth"], np.where(data[name], 0.75, 0.25), data[name]) for name in ("champion", "candidate")
        ]
        better = HIGHER_IS_BETTER[metric]
        for name, many in BUCKETS.items():
            found += [
                pair(*models, mask=data[name] == bucket, subjects=subjects, higher_is_better=better, proportion=True)
                for bucket in range(many)
            ]  # fmt: skip
    return found


def directly(data: dict[str, Any], rng: np.random.Generator) -> tuple[Any, Any]:
    """True resamples of the rows: (draws, 48) drops, and the drops themselves."""
    kind, first = kinds(*(data[name] for name in (*BUCKETS, "truth", "champion", "candidate")))
    one = {name: values[first] for name, values in data.items()}
    nums, dens = [], []
    for metric in METRICS:
        champion, candidate = (
            cells(metric, one["truth"], np.full(len(first), 0.5), one[name]) for name in ("champion", "candidate")
        )
        drop = (champion[0] - candidate[0]) * (1.0 if HIGHER_IS_BETTER[metric] else -1.0)
        for name, many in BUCKETS.items():
            for bucket in range(many):
                nums.append(drop * (one[name] == bucket))
                dens.append(champion[1] * (one[name] == bucket))
    num, den, counts = np.stack(nums, axis=1), np.stack(dens, axis=1), np.bincount(kind)
    return resampled(num, den, counts, draws=DRAWS, rng=rng), counts @ num / (counts @ den)


def fairlearn_s(data: dict[str, Any], resamples: int) -> float:
    """Seconds a resample of one model over the same slices and metrics."""
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score

    metrics = {
        "accuracy": accuracy_score,
        "tpr": true_positive_rate,
        "fpr": false_positive_rate,
        "selection_rate": selection_rate,
    }
    began = time.perf_counter()
    for name in BUCKETS:
        MetricFrame(
            metrics=metrics, y_true=data["truth"].astype(int), y_pred=data["candidate"].astype(int),
            sensitive_features=data[name],
            n_boot=resamples, ci_quantiles=[0.025, 0.975], random_state=0,
        )  # fmt: skip
    return (time.perf_counter() - began) / resamples


def measure(arguments: argparse.Namespace) -> Measured:
    rng = np.random.default_rng(0)
    data, own = made(rng), np.arange(ROWS)
    shared = own // 5
    gate, tied, direct = [], [], []
    for _ in range(3 if arguments.quick else 7):
        began = time.perf_counter()
        pairs = pairs_of(data, own)
        joint = joint_lower(pairs, subjects=ROWS, level=LEVEL, draws=DRAWS, rng=np.random.default_rng(1))
        gate.append(time.perf_counter() - began)
        began = time.perf_counter()
        joint_lower(pairs_of(data, shared), subjects=ROWS // 5, level=LEVEL, draws=DRAWS, rng=np.random.default_rng(1))
        tied.append(time.perf_counter() - began)
        began = time.perf_counter()
        drops, estimate = directly(data, np.random.default_rng(2))
        critical = joint_critical(drops, estimate, LEVEL)
        direct.append(time.perf_counter() - began)
    assert np.allclose(estimate, [one.drop for one in pairs])
    fine = critical_value(pairs, subjects=ROWS, level=LEVEL, draws=200_000, rng=np.random.default_rng(3))
    errors = np.array([one.se for one in pairs])
    off = float(np.abs(drops.std(axis=0, ddof=1) / errors - 1).max())
    say("ours measured")
    beside: dict[str, Any] = {"limit_s": LIMIT_S}
    try:
        if arguments.quick:
            raise ImportError("left out by --quick: a resample takes it ten seconds and more")
        per = fairlearn_s(data, 5)
        beside |= {"fairlearn_seconds_a_resample": per, "fairlearn_seconds": per * DRAWS}
    except ImportError as error:
        beside |= {"fairlearn_seconds": None, "why": str(error)}
    seconds = median(gate)
    ratio = beside["fairlearn_seconds"] / seconds if beside["fairlearn_seconds"] else None
    figures = {
        "seconds": seconds, "seconds_worst": max(gate), "seconds_by_subject": median(tied), "seconds_resampled": median(direct),
        "over_fairlearn": ratio, "over_fairlearn_resampled": ratio * seconds / median(direct) if ratio else None,
        "critical": joint.critical, "critical_resampled": critical, "critical_fine": fine, "errors_differ": off,
    }  # fmt: skip
    lines = [
        f"{ROWS:,} rows × {len(pairs)} cells × {DRAWS:,} resamples, champion and candidate together; median of {len(gate)}",
        f"the gate, rows to joint bounds     {seconds:8.3f} s   (worst {max(gate):.3f})   critical value {joint.critical:.3f}",
        f"the same, five rows a subject      {median(tied):8.3f} s",
        f"true resamples of the rows         {median(direct):8.3f} s                    critical value {critical:.3f}, "
        f"standard errors within {off:.1%}",
    ]
    if ratio:
        lines.append(f"fairlearn's bootstrap, one model  {per * DRAWS:9.0f} s   ({per:.1f} s each): {ratio:,.0f} times as long")
    broken = []
    if abs(critical - fine) > AGREE or off > 0.05:
        broken.append(f"true resamples say {critical:.3f}, multiplier draws {fine:.3f}; standard errors differ by {off:.1%}")
    return Measured(figures, beside, lines, broken)


if __name__ == "__main__":
    sys.exit(main("gate_speed", measure))
