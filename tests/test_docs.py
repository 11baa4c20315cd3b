"""The README knows every verb."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from truing.flows.cli.main import parser

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def verbs() -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))


def test_every_verb_is_documented() -> None:
    missing = [verb for verb in verbs() if not re.search(rf"`?truing {verb}\b", README)]
    assert not missing, f"README.md says nothing of {', '.join(missing)}"


def test_every_documented_verb_exists() -> None:
    named = set(re.findall(r"`truing ([a-z]+)\b", README)) | set(
        re.findall(r"^(?:\$ )?truing ([a-z]+)\b", README, re.MULTILINE)
    )
    assert not named - set(verbs()), f"README.md names verbs that are not there: {', '.join(sorted(named - set(verbs())))}"


def test_every_verb_says_what_it_does() -> None:
    for verb, one in verbs().items():
        assert "--json" in one.format_help(), verb
