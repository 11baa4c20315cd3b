"""What people say on the command line reaches the real guard, and what comes of it is said in words they can act on.

The registry is the stack's own, over a data folder of two released versions, one that waits and one that is blocked; two
approvers together may release a blocked one. The steward is away, so nothing happens between two acts.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evidence
import pytest
from evidence import PROBLEM, Folder

from truing.flows.cli.main import main
from truing.flows.cli.telling import told
from truing.infra.evidence import standing_acts, visitor
from truing.infra.pending import SOON_S, expiring, pending
from truing.infra.settings import Settings
from truing.infra.stack import Stack
from truing.tasks.policy import load_policy
from truing.tasks.problem import load_problem

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, settings_in: Callable[..., Settings]) -> Iterator[Folder]:
    """The folder behind a running registry."""
    root = tmp_path_factory.mktemp("people")
    problem = root / "problems" / PROBLEM
    shutil.copytree(ROOT / "problems" / PROBLEM, problem)
    text = (problem / "policy.toml").read_text()
    (problem / "policy.toml").write_text(text.replace("[approvals]\n", "[approvals]\nblock_persons = 2\n"))
    settings = settings_in(root, problems=root / "problems")
    template = evidence.template(root / "template")
    folder = Folder(settings, load_policy(problem, load_problem(problem)), template)
    stack = Stack(settings, parts=("registry",))
    stack.up()
    try:
        yield folder
    finally:
        stack.down()


@pytest.fixture
def truing(registry: Folder, capsys: pytest.CaptureFixture[str]) -> Any:
    def go(*argv: str) -> tuple[int, str, str]:
        settings = registry.settings
        code = main([*argv, "--data", str(settings.data), "--problems", str(settings.problems)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return go


def test_an_approval_is_the_first_approvers_if_nobody_is_named(truing: Any) -> None:
    code, out, err = truing("approve", "3", "--reason", "gaps and gains reviewed")
    assert (code, out) == (0, "adult version 3: approved by approver\n"), err
    found = json.loads(truing("audit", "show", "--act", "decision", "--last", "1", "--json")[1])[0]
    assert found["user"] == "approver" and found["reason"].endswith("by approver: gaps and gains reviewed")


def test_a_blocked_version_needs_two_different_people(registry: Folder, truing: Any) -> None:
    code, out, err = truing("approve", "4", "--reason", "the old model is worse")
    assert (code, out) == (0, "adult version 4: approved by approver; 1 of 2 approvals: another approver has to\n"), err
    waiting = now_pending(registry)["waiting"]
    assert [(one["version"], one["by"], one["wanted"]) for one in waiting] == [("4", ["approver"], 2)]
    shown = told(status_of(registry))
    assert "version 4 waits since" in shown and "block, 1 of 2 approvals (approver): another approver has to" in shown

    code, out, err = truing("approve", "4", "--reason", "again")
    assert (code, out) == (3, "") and "approver has approved the blocked version 4 already" in err
    code, out, err = truing("approve", "4", "--as", "approver2", "--reason", "agreed")
    assert code == 0 and out.startswith("adult version 4: approved by approver and approver2; it ends in 30 days"), err
    assert now_pending(registry)["waiting"] == []


def test_a_refusal_is_the_guards_reason_in_one_line(truing: Any) -> None:
    code, out, err = truing("approve", "3", "--as", "trainer")
    assert (
        (code, out) == (3, "")
        and err.startswith("truing approve: trainer is not an approver of adult")
        and err.count("\n") == 1
    )
    assert truing("approve", "3", "--as", "nobody")[0] == 1
    assert "if it serves, `truing revoke` takes it back" in truing("reject", "1", "--reason", "not any more")[1]
    assert truing("approve", "1", "--reason", "on second thoughts")[0] == 0


def test_a_revocation_says_what_it_brings(truing: Any) -> None:
    """2 serves, 1 served before: first 2 falls back to 1; with 1 revoked as well, nothing is left to serve."""
    code, out, err = truing("revoke", "2", "--reason", "complaints")
    assert code == 0 and "it serves: the steward goes back to version 1, the newest earlier one" in out, err
    assert truing("approve", "2", "--reason", "looked into")[0] == 0
    out = truing("revoke", "1", "--as", "approver2", "--reason", "outdated")[1]
    assert out == "adult version 1: revoked by approver2; it does not serve, and can't be released any more\n"
    code, out, _ = truing("revoke", "2", "--reason", "complaints again", "--json")
    found = json.loads(out)
    assert code == 0 and found["serves"] and found["next"] is None
    code, out, err = truing("rollback", "--reason", "anything before")
    assert (code, out) == (2, "") and "expected an earlier release to go back to, found none" in err
    for version in ("1", "2"):
        truing("approve", version, "--reason", "as it was")
    assert truing("rollback", "--reason", "anything before")[1] == "adult: rollback to version 1 is asked for\n"


def test_a_standing_approval_is_given_shown_and_ended(registry: Folder, truing: Any) -> None:
    assert truing("standing", "allow")[0] == 2  # a reason is asked for
    assert truing("standing", "show")[1] == "adult: no standing approval\n"
    code, out, err = truing("standing", "allow", "--days", "5", "--max-drift", "0.01", "--per-day", "2", "--reason", "holidays")
    assert code == 0 and "at most 1.0% of the rows, at most 2 releases in 24 hours" in out, err
    shown = truing("standing", "show", "--as", "approver2")[1]
    assert shown.startswith("adult: standing approval by approver, ends in 5 days") and shown.endswith("holidays\n")
    assert "standing approval by approver, ends in 5 days: drift at most 1.0%, 2 releases a day" in told(status_of(registry))
    code, out, err = truing("standing", "allow", "--days", "900", "--reason", "for ever")
    assert (code, out) == (3, "") and "at most 90 days" in err
    assert truing("standing", "revoke", "--reason", "back again")[0] == 0
    assert json.loads(truing("standing", "show", "--json")[1])["standing"] is None


def test_a_freeze_and_a_thaw_keep_their_reasons(registry: Folder, truing: Any) -> None:
    assert truing("freeze", "--as", "approver2", "--reason", "audit week")[1] == "adult: frozen by approver2\n"
    assert now_pending(registry)["frozen_by"] == "approver2"
    assert truing("thaw", "--reason", "audit done")[0] == 0
    found = json.loads(truing("audit", "show", "--act", "frozen", "--json")[1])
    assert [one["facts"]["reason"] for one in found[-2:]] == ["audit week", "audit done"]


def test_who_may_not_open_the_files_asks_the_registry(registry: Folder, truing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same audit over HTTP, with the person's login; of the steward's book it says that it was not read."""
    here = json.loads(truing("audit", "show", "--json")[1])
    for module in ("examined", "evidence"):  # in this order: first imported while the other is patched, it would keep the patch
        monkeypatch.setattr(f"truing.infra.{module}.closed", lambda path: True)
    assert json.loads(truing("audit", "show", "--json")[1]) == here
    code, out, err = truing("audit", "verify", "--as", "approver2")
    assert code == 0 and "the steward's countersigned heads could not be read: run as root" in out, err
    code, out, err = truing("verify", "1", "--json")
    found = {(one["about"], one["name"]): one for one in json.loads(out)["checks"]}
    assert found["version 1", "files"]["state"] == "ok" and found["adult", "book"]["state"] == "unread", err
    assert standing_acts(registry.settings, user="approver").of(PROBLEM).versions


# --- status, as people read it ------------------------------------------------------------------------------------------------


def now_pending(registry: Folder) -> dict[str, Any]:
    one = visitor(registry.settings)
    try:
        return pending(registry.settings, one, PROBLEM, registry.policy, registry.ring.public())
    finally:
        one.close()


def status_of(registry: Folder, **more: Any) -> dict[str, Any]:
    """A status as it is, with some of it as it might be."""
    from truing.infra.status import status

    found = status(registry.settings)
    found["problems"][0] |= more
    return found


def test_an_approval_that_ends_soon_is_said_loudly(registry: Folder) -> None:
    now = time.time()
    served = {"release": "adult@1", "version": "1", "sequence": 1, "cause": "genesis", "floor": 1}
    late, soon, gone = (served | {"expires": now + seconds} for seconds in (SOON_S + 3600, SOON_S - 3600, -3600))
    assert expiring(served, now) is None
    assert not expiring(late, now)["soon"] and expiring(soon, now)["soon"]  # type: ignore[index]
    text = told(status_of(registry, served=soon, expiring=expiring(soon, now)))
    assert re.search(r"^! THE APPROVAL OF VERSION 1 ENDS in 7 days \(.* UTC\), and nothing serves then\.$", text, re.MULTILINE)
    assert "truing approve 1 --problem adult --reason …" in text
    assert "! THE APPROVAL OF VERSION 1 ENDED 6" in told(status_of(registry, served=gone, expiring=expiring(gone, now)))
    assert "!" not in told(status_of(registry, served=late, expiring=expiring(late, now), head=None))


def test_findings_and_an_old_head_are_said_loudly(registry: Folder) -> None:
    from truing.tasks.release.findings import Findings
    from truing.tasks.release.reconcile import Finding

    ring, desk = registry.ring, registry.settings.desk
    findings = Findings(desk / "findings.jsonl", key=lambda: ring.read("release"), keys=ring.public())
    one = Finding(problem=PROBLEM, version="3", part="verdict", what="its verdict", expected="a", got="b", at=time.time())
    findings.settle([one], looked=lambda each: True, at=time.time(), sure=True)
    text = told(status_of(registry, head={"at": 0.0, "expires": 1.0, "sequence": 2, "audit": 9}))
    assert "! finding adult/3/verdict: expected a, got b, since" in text
    assert "! the steward signed its last head" in text
    findings.settle([], looked=lambda each: True, at=time.time())
    findings.close()
