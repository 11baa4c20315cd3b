"""The README knows every verb."""

from __future__ import annotations

import argparse
import re
import shlex
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


def test_every_act_of_a_verb_is_documented() -> None:
    missing = [
        f"{verb} {choice}"
        for verb, one in verbs().items()
        for action in one._actions
        if not action.option_strings and action.choices and verb != "policy"
        for choice in action.choices
        if not re.search(rf"truing {verb} {choice}\b", README)
    ]
    assert not missing, f"README.md says nothing of {', '.join(missing)}"


def test_every_documented_command_is_one_that_the_command_line_takes() -> None:
    """Those in blocks, and those in a sentence that name more than the verb. `…` stands for anything."""
    lines = re.findall(r"^ +(truing [a-z].*)$", README, re.MULTILINE) + re.findall(r"`(truing [a-z]+ [^`]+)`", README)
    assert len(lines) > 20
    for line in lines:
        words = shlex.split(line, comments=True)
        try:
            parser().parse_args(words[1:])
        except SystemExit:
            raise AssertionError(f"README.md: `{line}` is no command") from None


def test_every_verb_says_what_it_does() -> None:
    for verb, one in verbs().items():
        assert "--json" in one.format_help(), verb
