"""`truing review`: the labelling queue. Blind: a row's inputs and the labels to choose from, never what a model answered.

Words go out as `truing.review.v1` events of the registered source that the policy names, signed with its key, through Kafka
like everything else. One reviewer reads a row once; some rows come to two.
"""

from __future__ import annotations

import argparse
import getpass
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import note, printable, result
from truing.tasks.errors import DataError, Unavailable
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.evaluation.reading import Question


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    review = verbs.add_parser("review", parents=[common], help="label rows blindly: what random and targeted audits ask for")
    review.add_argument("--problem", help="which problem (default: the only one)")
    review.add_argument("--as", dest="reader", metavar="NAME", help="who reads (default: this login)")
    review.add_argument("--list", action="store_true", help="print what waits to be read and ask nothing")
    review.add_argument("--from", dest="file", type=Path, metavar="FILE", help="CSV, JSONL or parquet of answers: id, label")
    review.add_argument("--limit", type=int, default=50, help="at most so many rows (default 50)")
    review.set_defaults(do=do_review)


def do_review(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.infra.keys import keyring

    problem, policy = chosen(settings.problems, args.problem)
    reader = args.reader or getpass.getuser()
    source = source_of(problem, policy)
    ring = keyring(settings)
    key = ring.source(problem.name, source)
    waiting = waiting_for(settings, problem, policy, reader, salt=ring.read("actor-salt"))
    if args.list:
        shown = waiting[: args.limit]
        lines = [f"{len(waiting)} rows of {problem.name} wait for {reader}", *(f"{one.id}  {_line(one)}" for one in shown)]
        found = {"problem": problem.name, "reader": reader, "waiting": len(waiting), "labels": list(problem.labels)}
        questions = [{"id": one.id, "inputs": one.inputs} for one in shown]
        result(found | {"questions": questions}, "\n".join(lines), as_json=args.json)
        return 0
    if args.file is not None:
        words = from_file(args.file, problem, {one.id for one in waiting})
    else:
        words = list(ask(waiting[: args.limit], problem))
    sent = send(settings, problem, source, key, reader, words)
    left = len(waiting) - sent
    text = f"{sent} labels of {reader} sent as {problem.name}/{source}; {left} rows wait"
    result({"problem": problem.name, "reader": reader, "sent": sent, "waiting": left}, text, as_json=args.json)
    return 0


def source_of(problem: Problem, policy: Policy) -> str:
    """The source whose reviews count: the policy's, or the only one that may send reviews. Raises DataError."""
    able = [name for name, source in problem.sources.items() if "review" in source.types]
    named = policy.audit.reviewers_source
    if named and named not in able:
        raise DataError(f"audit.reviewers_source: expected a source that may send reviews, got {named!r}; mend [sources]")
    if not named and len(able) != 1:
        raise DataError(
            f"{problem.name}: expected one source that may send reviews, got {', '.join(able) or 'none'}; "
            'add [sources.reviewers] types = ["review"] to problem.toml and name it in [audit] reviewers_source of policy.toml'
        )
    return named or able[0]


def waiting_for(settings: Settings, problem: Problem, policy: Policy, reader: str, *, salt: bytes) -> list[Question]:
    """What this reviewer may be asked, mixed. Raises Unavailable where the vault or the plans are closed to this account."""
    from truing.infra.keys import keyring
    from truing.tasks.evaluation.audit import read_plans
    from truing.tasks.evaluation.reading import questions
    from truing.tasks.events.schema import pseudonym
    from truing.tasks.tables.lake import Vault

    rows = Vault(settings.vault).holdout(problem.name, now=time.time(), matured=False)
    try:
        plans = read_plans(settings.desk / "audits", problem.name, keyring(settings).public().gate)
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}; run as the account that may read the audit's plans") from None
    name = pseudonym(salt, problem.name, reader)
    return questions(rows, problem, plans, reader=name, double=policy.audit.double)


def from_file(path: Path, problem: Problem, waiting: set[str]) -> list[tuple[str, str]]:
    """(id, label) of each line, all checked before the first goes out. Raises DataError."""
    from truing.flows.cli.events import read

    words = []
    for number, line in enumerate(read(path), 1):
        id, label = str(line.get("id")), str(line.get("label"))
        if id not in waiting:
            raise DataError(f"{path}: row {number}: expected a row that waits for this reader, got {id}; see `review --list`")
        if label not in problem.labels:
            raise DataError(f"{path}: row {number}: expected a label of {', '.join(problem.labels)}, got {label!r}; mend it")
        words.append((id, label))
    return words


def ask(questions: Iterable[Question], problem: Problem) -> Iterable[tuple[str, str]]:
    """Ask at the terminal, a row at a time: a number chooses the label, s skips, q or end of input ends."""
    keys = {str(number): label for number, label in enumerate(problem.labels, 1)}
    offered = "  ".join(f"{number} {label}" for number, label in keys.items())
    for one in questions:
        width = max(map(len, one.inputs), default=0)
        note("\n" + "\n".join(f"  {name:<{width}}  {printable(str(value))}" for name, value in one.inputs.items()))
        said = ""
        while said not in (*keys, "s", "q"):
            note(f"{problem.title or problem.label}  {offered}  s skip  q quit")
            try:
                said = input().strip().lower()
            except EOFError:
                return
        if said == "q":
            return
        if said in keys:
            yield one.id, keys[said]


def messages(
    problem: Problem, source: str, key: bytes, reader: str, words: Iterable[tuple[str, str]], *, now: float
) -> list[Any]:
    """One signed event a word, named after row and reader: sent twice it lands once."""
    from truing.tasks.events.schema import encode_event
    from truing.tasks.seal import mac

    return [
        encode_event(
            "review", problem=problem.name, source=source, data={"label": label}, time=now, prediction_id=id, actor=reader,
            id=f"review:{mac(key, problem.name, id, reader)[:24]}", source_key=key,
        )
        for id, label in words
    ]  # fmt: skip


def send(settings: Settings, problem: Problem, source: str, key: bytes, reader: str, words: list[tuple[str, str]]) -> int:
    from truing.infra.broker import connection, ensure_topics
    from truing.tasks.events.stream import Publisher

    if not words:
        return 0
    ensure_topics(settings)
    publisher = Publisher(connection(settings), settings.kafka.topic)
    try:
        publisher.publish(messages(problem, source, key, reader, words, now=time.time()))
    finally:
        publisher.close()
    return len(words)


def _line(one: Question) -> str:
    return printable(", ".join(f"{name} {value}" for name, value in one.inputs.items()))
