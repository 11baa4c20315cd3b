"""The common form of all benchmarks: progress on stderr, a table on stdout, or one JSON object with --json.

    python tests/benchmarks/NAME.py [--quick] [--json]

Exit 0 = measured, 1 = a guarantee broke (a loss, a passed attack, a crash), never for speed. Limit and peer are measured in the
same run; a peer that can't run is None with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Measured:
    """`figures` and `beside` by the names of the design page; `table` = lines for people; `broken` = guarantees that broke."""

    figures: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)
    table: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def main(
    name: str,
    measure: Callable[[argparse.Namespace], Measured],
    *,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse, measure, print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="less work, at most 50 s; same checks")
    parser.add_argument("--json", action="store_true", help="one object on stdout instead of the table")
    if options is not None:
        options(parser)
    arguments = parser.parse_args()
    began = time.perf_counter()
    measured = measure(arguments)
    report = {
        "name": name,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "seconds": round(time.perf_counter() - began, 1),
        "quick": arguments.quick,
        "figures": measured.figures,
        "beside": measured.beside,
    }
    if arguments.json:
        print(json.dumps(report, allow_nan=False))
    else:
        print(f"{name}: commit {report['commit']}, {report['date']}, {report['machine']}, {report['seconds']} s")
        print("\n".join(measured.table))
        width = max(map(len, [*measured.figures, *measured.beside, ""]))
        for title, values in (("figures", measured.figures), ("beside", measured.beside)):
            if values:
                print(f"{title}:")
            for key, value in values.items():
                shown = f"{value:.5g}" if isinstance(value, float) else "in --json" if isinstance(value, list | dict) else value
                print(f"  {key:<{width}}  {shown}")
    for line in measured.broken:
        say(f"broken: {line}")
    return 1 if measured.broken else 0


def commit() -> str:
    """Short commit of the checkout, with + when it has changes; `unknown` outside one."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores {platform.machine()}, Python {platform.python_version()}"
