"""`truing init`, `demo`: how one begins."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import result

if TYPE_CHECKING:
    from truing.infra.settings import Settings

PROBLEM = """# What is kept true: what the model reads, what it answers, who may judge it.
name = "{name}"
kind = "tabular"
title = "{name}"
label = "answer"
labels = ["no", "yes"]
positive = "yes"

[inputs]
amount = {{ type = "number", min = 0 }}
channel = {{ type = "category", optional = true }}

# Protected attributes: they travel with the prediction, are judged, and never reach the model.
[groups.sex]
values = ["Female", "Male"]

# Who may send what, each with a key of its own (<data>/keys/sources/source-{name}.<source>).
[sources.history]
types = ["prediction", "outcome"]
split = "trusted"

[sources.outcomes]
types = ["outcome"]
"""

POLICY = """# What blocks a release. It counts once an approver has accepted it: `truing policy accept`.
version = 1

[evidence]
min_rows = 2000

[[clause]]
name = "Brier score"
slice = "all"
metric = "brier"
limit = 0.005
anchor_limit = 0.01

[[clause]]
name = "accuracy"
slice = "all"
metric = "accuracy"
limit = 0.01
anchor_limit = 0.02

[[clause]]
name = "women's accuracy"
slice = "sex=Female"
metric = "accuracy"
limit = 0.02
anchor_limit = 0.04

[[absolute]]
name = "better than the prior predictor"
slice = "all"
metric = "brier"
at_least = 0.01
"""


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    init = verbs.add_parser("init", parents=[common], help="write a problem to fill in, make the keys, check all problems")
    init.add_argument("name", nargs="?", help="name of the new problem; without it only keys and checks")
    init.set_defaults(do=do_init)
    demo = verbs.add_parser("demo", parents=[common], help="the whole loop on census data, from nothing to signed releases")
    demo.add_argument("--approve-yourself", action="store_true", help="wait for your approvals in MLflow's page")
    demo.add_argument("--keep", action="store_true", help="leave the stack running, with its pages to look at")
    demo.add_argument("--rounds", type=int, metavar="N", help="rounds of traffic (default: the scenario's)")
    demo.add_argument("--seed", type=int, default=1, help="seed of the simulated world (default: 1)")
    demo.add_argument("--report", type=Path, default=Path("demo-report/index.html"), help="where the page goes")
    demo.set_defaults(do=do_demo, rest=[])


def do_init(args: argparse.Namespace, settings: Settings) -> int:
    """Never overwrites."""
    from truing.infra.accounts import create_keys
    from truing.infra.catalog import catalog
    from truing.tasks.errors import ProblemError, Unavailable

    made: list[str] = []
    if args.name:
        folder = settings.problems / args.name
        if folder.exists():
            raise ProblemError(f"{folder}: expected no such folder yet, found one; edit it or choose another name")
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", args.name):
            raise ProblemError(f"name: expected a-z, 0-9, - and _, got {args.name!r}; choose another")
        try:
            folder.mkdir(parents=True)
            for file, text in (("problem.toml", PROBLEM.format(name=args.name)), ("policy.toml", POLICY)):
                (folder / file).write_text(text)
                made.append(str(folder / file))
        except OSError as error:
            raise Unavailable(f"expected to write {folder}, got: {error.strerror}; check its permissions") from None
    problems = catalog(settings.problems)
    try:
        create_keys(settings, {name: problem for name, (problem, _) in problems.items()})
    except OSError as error:
        raise Unavailable(f"expected to write {settings.keys}, got: {error.strerror}; mend it or set TRUING_DATA") from None
    text = "\n".join([*(f"wrote {one}" for one in made), f"problems: {', '.join(problems)}", f"keys in {settings.keys}"])
    result({"made": made, "problems": list(problems), "keys": str(settings.keys)}, text, as_json=args.json)
    return 0


def do_demo(args: argparse.Namespace, settings: Settings) -> int:
    """In a folder of its own (`--data`, default .truing/demo), emptied first."""
    from truing.flows.demo.main import play

    return play(args, settings if getattr(args, "data", None) else settings.model_copy(update={"data": settings.data / "demo"}))
