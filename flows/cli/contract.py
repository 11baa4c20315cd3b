"""`truing contract`: the shape of every message for those who write them in other languages, made from our own types."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import result
from truing.tasks.errors import UsageError

if TYPE_CHECKING:
    from truing.infra.settings import Settings

FILES = {"json": "events.schema.json", "asyncapi": "asyncapi.json", "avro": "events.avsc"}


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    one = verbs.add_parser("contract", parents=[common], help="print the messages' schema, or write it to a folder")
    one.add_argument("--form", choices=tuple(FILES), default="json", help="JSON Schema, AsyncAPI 3 or Avro (default: json)")
    one.add_argument("--write", type=Path, metavar="FOLDER", help=f"write {', '.join(FILES.values())} there")
    one.set_defaults(do=do_contract)


def do_contract(args: argparse.Namespace, _settings: Settings) -> int:
    made = documents()
    if args.write is None:
        print(made[args.form], end="")
        return 0
    try:
        for form, name in FILES.items():
            (args.write / name).write_text(made[form], encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--write: expected a folder to write to, got: {error.strerror}; name another") from None
    names = [str(args.write / name) for name in FILES.values()]
    result({"written": names}, "\n".join(names), as_json=args.json)
    return 0


def documents() -> dict[str, str]:
    """The text of each form. The contract's version is that of its types (`truing.<kind>.v1`), not the package's."""
    from truing.infra.control import RUNS, SAYS
    from truing.tasks.events.published import asyncapi, avro_schema, json_schema

    made = {"json": json_schema(), "asyncapi": asyncapi("1.0.0", says=SAYS, runs=RUNS), "avro": avro_schema()}
    return {form: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for form, document in made.items()}
