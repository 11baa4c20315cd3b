"""Who may ask for a run: the operator and the sources that a problem names, each by its key; nobody else, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from truing.flows.errands import Asked, decide
from truing.infra.control import AHEAD_S, Askers, signed
from truing.infra.keys import Keyring
from truing.tasks.errors import ProblemError
from truing.tasks.problem import Problem, Source, load_problem

NOW, OPERATOR, CLOCK = 1000.0, b"o" * 32, b"c" * 32
ASKERS = Askers(operator=OPERATOR, sources={"adult": {"clock": (CLOCK, frozenset({"curate"}))}, "other": {}})
WISH = {"type": "run.requested", "problem": "adult", "run": "curate", "time": NOW}
BLOCKED = {"type": "model.ready", "problem": "adult", "version": "3", "outcome": "block", "time": NOW}


def decided(message: dict[str, Any]) -> Asked:
    return decide(json.dumps(message).encode(), ["adult", "other"], askers=ASKERS, now=NOW)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (WISH, "got no proof"),
        (WISH | {"by": "operator"}, "got no proof"),
        (WISH | {"by": "operator", "proof": "mac:" + "0" * 64, "id": "x"}, "not by the key of operator"),
        (signed(WISH, b"x" * 32), "not by the key of operator"),
        (signed(WISH, OPERATOR) | {"run": "improve"}, "the message was altered"),
        (signed(WISH, OPERATOR) | {"problem": "other"}, "the message was altered"),
        (signed(WISH, OPERATOR) | {"id": "another"}, "the message was altered"),
        (signed(WISH, OPERATOR) | {"time": NOW - 1}, "the message was altered"),
        (signed(WISH | {"run": "improve"}, OPERATOR) | {"repair": "3"}, "the message was altered"),
        (signed(WISH, OPERATOR) | {"by": "clock"}, "not by the key of clock"),
        (signed(WISH, CLOCK), "not by the key of operator"),
        (signed(WISH | {"run": "improve"}, CLOCK, "clock"), "clock may ask for curate, not for this"),
        (signed(WISH | {"problem": "other"}, CLOCK, "clock"), "got another"),
        (signed(WISH, CLOCK, "nobody"), "got another"),
        (signed(WISH | {"time": NOW + AHEAD_S + 1}, OPERATOR), "301 s ahead"),
        (signed(WISH | {"time": None}, OPERATOR), "expected an id and a time"),
        (BLOCKED, "got no proof"),
        (signed(BLOCKED, CLOCK, "clock"), "not announce a verdict"),
    ],
)
def test_a_request_that_nobody_allowed_proves_is_refused_and_noted(message: dict[str, Any], why: str) -> None:
    asked = decided(message)
    assert (asked.act, asked.deployment, asked.parameters) == ("refused", None, {}), asked
    assert why in asked.word and "\n" not in asked.word


def test_the_operator_and_a_source_that_the_problem_names_are_believed() -> None:
    for message in (signed(WISH, OPERATOR), signed(WISH, CLOCK, "clock")):
        assert (decided(message).act, decided(message).deployment) == ("start", "curate/adult")
    repair = decided(signed(BLOCKED, OPERATOR))
    assert (repair.deployment, repair.parameters) == ("improve/adult", {"repair": "3"})


def test_the_same_request_again_is_the_same_run_and_another_is_another() -> None:
    one, two = signed(WISH, OPERATOR), signed(WISH, OPERATOR)
    assert decided(one).key == decided(json.loads(json.dumps(one))).key != decided(two).key


def test_what_starts_nothing_needs_no_proof() -> None:
    assert decided(BLOCKED | {"outcome": "pass"}).act == "noted"
    assert decided({"type": "alert.raised", "problem": "adult"}).act == "noted"


def test_the_keys_of_a_stack_prove_what_its_problems_allow(tmp_path: Path, problem: Problem) -> None:
    clocked = msgspec.structs.replace(
        problem, sources={**problem.sources, "clock": Source(types=())}, control={"curate": ("clock",)}
    )
    ring = Keyring(tmp_path)
    ring.create([f"adult.{source}" for source in clocked.sources])
    askers = Askers.of(ring, {"adult": clocked})
    for key, by in ((ring.read("control"), "operator"), (ring.source("adult", "clock"), "clock")):
        value = json.dumps(signed(WISH, key, by)).encode()
        assert decide(value, ["adult"], askers=askers, now=NOW).act == "start"
    assert Keyring(tmp_path, "steward").read("control") == Keyring(tmp_path, "ingest").read("control")
    assert not (tmp_path / "trainer" / "control").exists(), "who trains may not ask as the operator"


def test_a_problem_that_lets_a_stranger_ask_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "adult"
    folder.mkdir()
    known = Path(__file__).resolve().parent.parent / "problems" / "adult" / "problem.toml"
    (folder / "problem.toml").write_text(f"{known.read_text()}\n[control]\ncurate = ['clock']\n")
    with pytest.raises(
        ProblemError, match=r"control\.curate: expected sources out of backfill, history, outcomes, got"
    ) as caught:
        load_problem(folder)
    assert "\n" not in str(caught.value)
