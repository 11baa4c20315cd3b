"""`truing send FILE`: rows of a CSV, JSONL or parquet file as events of a registered source.

Each row becomes a prediction (its inputs and protected attributes) and, where it has a label, an outcome. A file with `id`
and a label only is a file of outcomes. Everything is checked before the first message goes out; sending twice lands once.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import Bar, result
from truing.tasks.errors import DataError
from truing.tasks.problem import Problem

if TYPE_CHECKING:
    from truing.infra.settings import Settings

BATCH = 2000  # messages between acknowledgements
OWN = ("id", "subject", "time", "outcome", "outcome_time")

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who sends: problem, source name, its key, and the time given to rows that carry none."""

    problem: Problem
    source: str
    key: bytes
    now: float


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    send = verbs.add_parser("send", parents=[common], help="send a file's rows as events of a registered source")
    send.add_argument("file", type=Path, help="CSV, JSONL or parquet with the problem's inputs, and optionally its label")
    send.add_argument("--source", required=True, help="a name below [sources] in problem.toml")
    send.add_argument("--problem", help="which problem (default: the only one)")
    send.add_argument("--check", action="store_true", help="check the whole file and send nothing")
    send.set_defaults(do=do_send)


def do_send(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.broker import connection, ensure_topics
    from truing.infra.catalog import chosen
    from truing.infra.keys import keyring
    from truing.tasks.events.stream import Publisher

    problem, _ = chosen(settings.problems, args.problem)
    if args.source not in problem.sources:
        raise DataError(f"--source: expected one of {', '.join(problem.sources) or 'none'}, got {args.source!r}; name one")
    lines = read(args.file)
    check_columns(lines, problem, args.source, args.file)
    key = keyring(settings).source(problem.name, args.source)
    sender = Sender(problem=problem, source=args.source, key=key, now=time.time())
    messages = [message for line in events(lines, sender, args.file) for message in line]
    found: dict[str, Any] = {"file": str(args.file), "rows": len(lines), "events": len(messages), "source": args.source}
    if args.check:
        result(found | {"sent": 0}, f"{args.file}: {len(lines)} rows are {len(messages)} events; none sent", as_json=args.json)
        return 0
    ensure_topics(settings)
    publisher, bar = Publisher(connection(settings), settings.kafka.topic), Bar(len(messages), f"sending {args.file.name}")
    try:
        for start in range(0, len(messages), BATCH):
            publisher.publish(messages[start : start + BATCH])
            bar(min(start + BATCH, len(messages)))
    finally:
        publisher.close()
    text = f"{args.file}: {len(lines)} rows sent as {len(messages)} events of {problem.name}/{args.source}"
    result(found | {"sent": len(messages)}, text, as_json=args.json)
    return 0


def read(path: Path) -> list[Line]:
    """The rows of a file by its ending. Raises DataError for what is no such file, or empty."""
    import polars as pl

    readers = {
        ".csv": lambda: pl.read_csv(path, infer_schema_length=None, null_values=["", "?"]),
        ".parquet": lambda: pl.read_parquet(path),
        ".jsonl": lambda: pl.read_ndjson(path, infer_schema_length=None),
        ".ndjson": lambda: pl.read_ndjson(path, infer_schema_length=None),
    }
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path}: expected a file that ends in {', '.join(readers)}, got {path.suffix or 'no ending'}; convert it"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: expected rows, got an empty file; send one with rows")
        frame = readers[path.suffix.lower()]()
    except OSError as error:
        raise DataError(
            f"{path}: expected a readable file, got: {error.strerror or error}; check path and permissions"
        ) from None
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{path}: expected {path.suffix[1:].upper()}, got: {' '.join(str(error).split())[:160]}; mend it"
        ) from None
    if not frame.height:
        raise DataError(f"{path}: expected rows, got a header only; send one with rows")
    return list(frame.to_dicts())


def check_columns(lines: list[Line], problem: Problem, source: str, path: Path) -> None:
    """Raises DataError if the columns don't fit the problem, or the source may not send what they say."""
    columns = set(lines[0])
    known = {*problem.inputs, *problem.groups, *OWN, problem.label}
    unknown = sorted(columns - known)
    if unknown:
        raise DataError(
            f"{path}: expected columns out of {', '.join(sorted(known))}, got also {', '.join(unknown)}; leave them out"
        )
    types = set(problem.sources[source].types)
    if columns & set(problem.inputs):
        missing = sorted(name for name, spec in problem.inputs.items() if name not in columns and not spec.optional)
        if missing:
            raise DataError(f"{path}: expected the inputs {', '.join(missing)} too, got {', '.join(sorted(columns))}; add them")
        wanted = {"prediction"}
    elif "id" in columns and columns & {"outcome", problem.label}:
        wanted = set()
    else:
        raise DataError(f"{path}: expected inputs, or id and {problem.label}, got {', '.join(sorted(columns))}; add them")
    if columns & {"outcome", problem.label}:
        wanted.add("outcome")
    refused = sorted(wanted - types)
    if refused:
        raise DataError(
            f"{path}: expected what source {source} may send ({', '.join(sorted(types))}), got {', '.join(refused)}; "
            "name another source or leave those columns out"
        )


def events(lines: list[Line], sender: Sender, path: Path) -> Iterator[list[tuple[bytes, bytes]]]:
    """The messages of each row. Rows without id are named after their content, so the same file names them alike."""
    from truing.tasks.events.schema import encode_event
    from truing.tasks.seal import canonical, mac

    seen: dict[str, int] = {}
    problem, key = sender.problem, sender.key
    for number, line in enumerate(lines, 1):
        try:
            id = line.get("id")
            if id is None:
                name = mac(key, canonical({k: str(v) for k, v in line.items()}))[:24]
                seen[name] = seen.get(name, 0) + 1
                id = f"{name}-{seen[name]}"
            at = _time(line.get("time"), sender.now)
            common: dict[str, Any] = {
                "problem": problem.name,
                "source": sender.source,
                "prediction_id": str(id),
                "subject": str(line["subject"]) if line.get("subject") is not None else str(id),
                "actor_kind": "source",
                "source_key": key,
            }
            out = []
            if any(name in line for name in problem.inputs):
                data = {
                    "inputs": {name: _plain(line.get(name)) for name in problem.inputs},
                    "groups": {name: _plain(line[name]) for name in problem.groups if line.get(name) is not None},
                }
                out.append(encode_event("prediction", data=data, time=at, id=f"{id}-p", **common))
            label = line.get("outcome") if line.get("outcome") is not None else line.get(problem.label)
            if label is not None:
                if str(label) not in problem.labels:
                    raise DataError(f"{problem.label}: expected one of {', '.join(problem.labels)}, got {label!r}; mend it")
                when = _time(line.get("outcome_time"), at)
                out.append(encode_event("outcome", data={"label": str(label)}, time=when, id=f"{id}-o", **common))
            yield out
        except DataError as error:
            raise DataError(f"{path}: row {number}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _time(value: Any, default: float) -> float:
    """Unix seconds from a number, a datetime or RFC 3339 text; without zone it is UTC."""
    if value is None:
        return default
    if isinstance(value, (int, float)):
        return float(value)
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise DataError(f"time: expected Unix seconds or 2026-11-23T03:40:00Z, got {value!r}; mend it") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
