"""Do the row checks at the door and Great Expectations say the same, row by row, on generated windows?

    python tests/benchmarks/checks_agree.py [--windows 10000] [--first SEED] [--processes N]

Every window has a problem and a suite of its own, and up to twenty rows: types, nulls and absent columns, edges of bounds and
strict ones, regular expressions, lengths, value sets, shares (`mostly`), Unicode, NaN, infinities, numbers beyond a float's,
booleans, unknown columns. A row on which only one of the two finds a fault is a disagreement, and so is a window that Great
Expectations can't compute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import numpy as np
from harness import Measured, main, say

from truing.infra.settings import quiet
from truing.tasks.problem import Input, Problem
from truing.tasks.validation import checks, rules
from truing.tasks.validation.rules import expectation
from truing.tasks.validation.validator import Validator
from truing.tasks.validation.window_rows import judge_rows

MANY = (0.45, 0.4, 0.15)  # shares of columns with no, one and two expectations beside those of their problem
BLOCK = 25  # windows a process is given at a time
NUMBERS = (
    *(None, True, False, "", "44", "nan", -1, -0.0, 0, 0.5, 1, 13, 13.0, 14.5, 49.99999999999999, 50, 50.00000000000001, 120),
    *(121, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, -(2**63), 10**25, 10**400, -(10**400), 1e300, 1e-300, 5e-324),
    *(1.7976931348623157e308, float("nan"), float("inf"), float("-inf")),
)
WORDS = (
    *(None, True, 0, 5, 1.5, float("nan"), "", " ", "b", "baker", "Baker", "BAKER", "baker ", "a b", "x\n", "\n", "x\ny"),
    *("a\tb", "été", "e\u0301te\u0301", "Straße", "İ", "ﬁ", "٣", "１２", "42", "😀", "👩\u200d👩\u200d👧", "\u200b", "\x00"),
    *("null", "nan", "None", "NaN", "abcdef", "abcdefg", "S", "M", "x" * 300, "a.b", "a|b", "[a]", "中文", "\u202eabc", "1e5"),
)
BOUNDS = (-3, -0.0, 0, 0.5, 13, 14.5, 50, 120, 2**53, 2**53 + 1, 1e300, -(10**25))
PATTERNS = (
    *("^[a-zé]+$", "x$", r"^\w+$", r"\d", r"^\S+$", "(?i)baker", "^.$", "^.{2,6}$", r"\bb", "^(?!bak)", "(a)", "^$"),
    *(r"[^\x00-\x7f]", r"\.", "a|b", r"\Ax", r"x\Z", "(?s)x.y", r"(.)\1", "^[A-Z]", "ß|ss", r"\s$", "(?m)^y"),
)


def drawn(rng: np.random.Generator) -> tuple[Problem, checks.Suite | None, list[dict[str, Any]]]:
    """A problem of a number and a word column, a suite or none, and rows that mostly hold."""

    def one_of(values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    low, high = sorted((one_of(BOUNDS), one_of(BOUNDS)))
    age = Input(
        type="number", optional=chance(0.5), min=float(low) if chance(0.3) else None, max=float(high) if chance(0.3) else None
    )
    listed = (*dict.fromkeys(w for w in (one_of(WORDS) for _ in range(4)) if isinstance(w, str)), "baker")
    job = Input(type="category", optional=chance(0.5), values=listed if chance(0.3) else None)
    problem = Problem(
        name="drawn", kind="tabular", label="answer", labels=("no", "yes"), positive="yes", inputs={"age": age, "job": job}
    )
    asked = [expectation_on(rng, column) for column in ("age", "job") for _ in range(int(rng.choice(3, p=MANY)))]
    rows = []
    for _ in range(int(rng.integers(1, 21))):
        row: dict[str, Any] = {"age": one_of((20, 30.5, 44, 13, 50)), "job": one_of(("baker", "S", "smith"))}
        for column, odd in (("age", NUMBERS), ("job", WORDS)):
            if (draw := rng.random()) < 0.15:
                row[column] = one_of(odd)
            elif draw < 0.17:
                del row[column]
        if chance(0.04):
            row["colour"] = one_of((None, "red", 1))
        rows.append(row)
    suite = {"name": "drawn", "expectations": asked, "meta": {}} if asked else None
    return problem, suite and rules.parse(msgspec.json.encode(suite), problem, where="drawn"), rows


def expectation_on(rng: np.random.Generator, column: str) -> dict[str, Any]:
    """One expectation about rows of that column; one in ten with a share, which then is about windows only."""

    def one_of(values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    more: dict[str, Any] = {"column": column, "mostly": one_of((0.5, 0.9)) if rng.random() < 0.1 else None}
    strict = {f"strict_{side}": bool(rng.random() < 0.5) for side in ("min", "max") if rng.random() < 0.5}
    ends = [{"min_value": 0}, {"max_value": 1}, {"min_value": 0, "max_value": 1}][int(rng.integers(3))]
    kind = int(rng.integers(6))
    if kind == 0:
        return expectation(rules.NOT_NULL if rng.random() < 0.95 else rules.NULL, **more)
    if column == "age":
        if kind < 4:
            found = sorted((one_of(BOUNDS), one_of(BOUNDS)))
            return expectation(rules.BETWEEN, **more, **strict, **{end: found[which] for end, which in ends.items()})
        if kind == 4:
            names = [["int"], ["float"], ["int", "float"]][int(rng.integers(3))]
            return expectation(rules.TYPES[0], **more, type_list=names)
        values = [v for v in (one_of(NUMBERS) for _ in range(5)) if type(v) in (int, float) and abs(v) < 2**53]
        return listing(rng, values, (20, 30.5, 44, 13, 50), more)
    if kind == 1:
        return expectation(one_of((rules.REGEX, rules.NOT_REGEX)), **more, regex=one_of(PATTERNS))
    if kind == 2:
        found = sorted((int(rng.integers(0, 7)), int(rng.integers(0, 9))))
        return expectation(rules.LENGTHS, **more, **strict, **{end: found[which] for end, which in ends.items()})
    if kind == 3:
        return expectation(rules.LENGTH, **more, value=5 if rng.random() < 0.7 else int(rng.integers(0, 7)))
    if kind == 4:
        return expectation(rules.TYPES[1], **more, type_="str")
    values = [value for value in (one_of(WORDS) for _ in range(5)) if isinstance(value, str)]
    return listing(rng, values, ("baker", "S", "smith"), more)


def listing(rng: np.random.Generator, values: list[Any], usual: tuple[Any, ...], more: dict[str, Any]) -> dict[str, Any]:
    """Values wanted, the usual ones among them, or excluded, seldom one of these."""
    if rng.random() < 0.5:
        return expectation(rules.IN_SET, **more, value_set=[*values, *usual])
    return expectation(rules.NOT_IN_SET, **more, value_set=[*values, *(usual[:1] if rng.random() < 0.2 else ())])


def compared(seed: int, validator: Validator) -> tuple[int, int, float, list[str]]:
    """One window: rows, rows with a fault, seconds that Great Expectations took, and what they disagree about."""
    problem, suite, rows = drawn(np.random.default_rng(seed))
    at_the_door = {f"r{n}" for n, why in enumerate(checks.compile(suite, problem)(rows)) if why is not None}
    began = time.perf_counter()
    failed, _, findings = judge_rows([f"r{n}" for n in range(len(rows))], rows, suite, problem, validator)
    took = time.perf_counter() - began
    wrong = [
        f"seed {seed}: {'the door' if row in at_the_door else 'Great Expectations'} alone refuses {rows[int(row[1:])]!r:.200} "
        f"({failed.get(row, '')}) with {problem.inputs} {suite and suite['expectations']}"
        for row in sorted(at_the_door ^ failed.keys())
    ]
    wrong += [
        f"seed {seed}: not computed: {one.type} {one.expected} of {rows!r:.300}"
        for one in findings
        if not one.success and not one.failed
    ]
    return len(rows), len(at_the_door), took, wrong


_own: list[Validator] = []


def block(seeds: range) -> tuple[int, int, int, float, list[str]]:
    """Windows of these seeds in this process."""
    if not _own:
        quiet()
        os.nice(10)
        _own.append(Validator())
    done = [compared(seed, _own[0]) for seed in seeds]
    return (
        len(seeds),
        *(sum(one[n] for one in done) for n in range(2)),
        sum(d[2] for d in done),
        [w for d in done for w in d[3]],
    )


def measure(arguments: argparse.Namespace) -> Measured:
    windows = min(arguments.windows, 400) if arguments.quick else arguments.windows
    first, end = arguments.first, arguments.first + windows
    blocks = [range(start, min(start + BLOCK, end)) for start in range(first, end, BLOCK)]
    count = rows = failing = 0
    seconds, wrong = 0.0, list[str]()
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        found: Iterator[tuple[int, int, int, float, list[str]]] = pool.imap_unordered(block, blocks)
        for number, (n, some, refused, took, disagreed) in enumerate(found, 1):
            count, rows, failing, seconds = count + n, rows + some, failing + refused, seconds + took
            wrong += disagreed
            for line in disagreed:
                say(line)
            if number % 20 == 0 or number == len(blocks):
                say(f"{count:,} of {windows:,} windows, {rows:,} rows, {len(wrong)} disagreements")
    figures = {
        "windows": count, "rows": rows, "rows_refused": failing, "disagreements": len(wrong),
        "great_expectations_ms_a_window": 1000 * seconds / count,
    }  # fmt: skip
    return Measured(figures, {}, [f"{failing / rows:.0%} of the rows have a fault"], wrong[:50])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, default=10_000, help="how many windows (default: 10,000; --quick: at most 400)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first window (default: 0)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")


if __name__ == "__main__":
    sys.exit(main("checks_agree", measure, options=options))
