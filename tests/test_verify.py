"""`truing verify` and `truing audit verify` hold what MLflow shows against signatures, audit and book, and say what differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence
import pytest
from evidence import PROBLEM, Folder, inside, text

from truing.infra.settings import Settings
from truing.tasks import seal
from truing.tasks.policy import Policy

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evidence.template(tmp_path_factory.mktemp("mlflow") / "registry")


@pytest.fixture
def folder(tmp_path: Path, settings_in: Callable[..., Settings], policy: Policy, template: Path) -> Folder:
    return Folder(settings_in(tmp_path), policy, template)


@pytest.fixture
def truing(folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return evidence.command_line(folder.settings, capsys, monkeypatch)


def checks(out: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["about"], one["name"]): one for one in json.loads(out)["checks"]}


def test_an_untouched_folder_holds_without_any_server(truing: Any) -> None:
    code, out, err = truing("verify")
    assert code == 0 and out.startswith("adult: all 16 checks hold"), out + err
    assert "2 files" in out and "pass, signed, named by the release" in out and "approved by approver" in out


def test_every_version_is_checked_and_says_what_it_is(truing: Any) -> None:
    code, out, err = truing("verify", "--all", "--json")
    found = checks(out)
    assert code == 0 and json.loads(out)["whole"] and json.loads(out)["unread"] == 0, err
    assert found["version 1", "release"]["note"].startswith("1, signed, genesis, ends in 20 days")
    assert found["version 2", "release"]["note"] == "2, signed, promote"
    assert found["version 3", "approval"]["note"] == "not decided yet"
    assert found["version 3", "release"]["note"] == "never released"
    assert found["version 4", "verdict"]["note"] == "block, signed"


def test_before_anything_has_happened_nothing_is_missing(
    tmp_path: Path, settings_in: Callable[..., Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    truing = evidence.command_line(settings, capsys, monkeypatch)
    assert truing("keys", "create")[0] == 0
    settings.guard.mkdir()
    code, out, _ = truing("verify")
    assert code == 0 and "nothing recorded yet" in out
    assert truing("audit", "verify")[0] == 0


def forged(folder: Folder, version: str, tag: str, kind: str, **changed: Any) -> str:
    """A record of that tag, changed and signed by a key of the attacker's own."""
    import base64

    import msgspec

    outer = msgspec.json.decode(folder.read_tag(version, tag), type=dict[str, Any])
    record = msgspec.json.decode(base64.b64decode(outer["payload"]), type=dict[str, Any]) | changed
    made = seal.sign(record, kind, seal.new_key())  # type: ignore[arg-type]  # any JSON signs alike
    return text(made)


def cut(folder: Folder) -> None:
    folder.write_audit(folder.lines[:-1])


def rewritten(folder: Folder) -> None:
    """The audit made anew from its first record on by somebody who holds the registry's own key."""
    lines, folder.lines = folder.lines, []
    for line in lines:
        folder.note("mallory", line.entry.act, dict(line.entry.facts))


TAMPERED: dict[str, tuple[Callable[[Folder], object], tuple[str, str], str]] = {
    "bytes changed": (
        lambda f: (f.files("2") / "heads.safetensors").write_bytes(b"other"), ("version 2", "files"), "got "),
    "a file added": (lambda f: (f.files("2") / "more.json").write_text("{}"), ("version 2", "files"), "got "),
    "files gone": (lambda f: [path.unlink() for path in f.files("2").iterdir()], ("version 2", "files"), "got none"),
    "a link in place of a file": (
        lambda f: ((f.files("2") / "model.json").unlink(), (f.files("2") / "model.json").symlink_to("/etc/hostname")),
        ("version 2", "files"), "got the link model.json"),
    "a place outside": (
        lambda f: f.sql("UPDATE model_versions SET source = 'mlflow-artifacts:/../../keys/steward', storage_location = NULL "
                        "WHERE version = 2"),
        ("version 2", "files"), "expected a plain folder below"),
    "payload tag moved along": (lambda f: f.tag("2", payload="a" * 64), ("version 2", "registration"), "in its tag payload"),
    "verdict edited": (
        lambda f: f.tag("2", verdict=inside(f.read_tag("2", "verdict"), outcome="block")),
        ("version 2", "verdict"), "no signature on the verdict is by a trusted key"),
    "verdict by another key": (
        lambda f: f.tag("2", verdict=forged(f, "2", "verdict", seal.VERDICT_TYPE, outcome="inconclusive")),
        ("version 2", "verdict"), "no signature on the verdict is by a trusted key"),
    "verdict of another version": (
        lambda f: f.tag("2", verdict=f.read_tag("1", "verdict")), ("version 2", "verdict"), "got one on"),
    "outcome tag edited": (
        lambda f: f.tag("1", **{"verdict.outcome": "pass"}), ("version 1", "verdict"), "got pass"),
    "verdict gone": (
        lambda f: f.sql("DELETE FROM model_version_tags WHERE version = 2 AND key = 'verdict'"),
        ("version 2", "verdict"), "got none"),
    "approval tag edited": (
        lambda f: f.tag("3", approval="approved"), ("version 3", "approval"), "got approved in its tag approval"),
    "stamp forged": (
        lambda f: f.tag("2", **{"approval.stamp": forged(f, "2", "approval.stamp", seal.APPROVAL_TYPE, by=["mallory"])}),
        ("version 2", "approval"), "got one that does not open in its tag approval.stamp"),
    "stamp of another version": (
        lambda f: f.tag("3", approval="approved", **{"approval.stamp": f.read_tag("2", "approval.stamp")}),
        ("version 3", "approval"), "the audit has none"),
    "an older statement in front": (
        lambda f: f.tag("2", release=f.read_tag("1", "release")), ("version 2", "release"), "got adult@1"),
    "a statement with a made-up number": (
        lambda f: f.tag("2", **{"release.9": f.read_tag("2", "release")}), ("version 2", "release"), "also release.9"),
    "a number above all": (
        lambda f: f.tag("1", **{"release.9": f.read_tag("2", "release")}), ("adult", "sequence"), "release 9 in MLflow's tags"),
    "a statement on a version that was never released": (
        lambda f: f.tag("3", release=f.read_tag("2", "release")), ("version 3", "release"), "never released, got one in its"),
    "champion moved": (
        lambda f: f.sql("UPDATE registered_model_aliases SET version = 1"), ("adult", "champion"), "expected version 2"),
    "champion gone": (lambda f: f.sql("DELETE FROM registered_model_aliases"), ("adult", "champion"), "got version none"),
    "a version deleted": (
        lambda f: f.sql("DELETE FROM model_versions WHERE version = 3"), ("adult", "versions"), "got no version 3"),
    "a version put in": (
        lambda f: f.sql("UPDATE model_versions SET version = 7 WHERE version = 3"), ("adult", "versions"), "got no version 3"),
    "the whole model gone": (lambda f: f.sql("DELETE FROM registered_models"), ("adult", "champion"), "got version none"),
    "policy tag edited": (
        lambda f: f.model_tag("policy.accepted", "b" * 64), ("adult", "accepted policy"), "got bbbbbbbbbbbb (MLflow's tag)"),
    "anchor put in": (lambda f: f.model_tag("anchor", "1"), ("adult", "anchor"), "expected none (audit), got 1"),
    "freeze put in": (lambda f: f.model_tag("frozen", "stop"), ("adult", "frozen"), "got frozen"),
    "head gone": (
        lambda f: f.sql("DELETE FROM registered_model_tags WHERE key = 'release.head'"), ("adult", "head"), "no signed head"),
    "head of another key": (
        lambda f: f.model_tag("release.head", text(seal.sign(f.book.head(PROBLEM), seal.HEAD_TYPE, seal.new_key()))),  # type: ignore[arg-type]
        ("adult", "head"), "no signature on the head is by a trusted key"),
    "audit's tail cut": (cut, ("registry", "audit"), "the tail was cut"),
    "audit rewritten with the registry's own key": (rewritten, ("registry", "audit"), "another one than was countersigned"),
    "audit line edited": (
        lambda f: (path := f.settings.guard / "audit.jsonl").write_text(path.read_text().replace('"approver"', '"mallory"', 1)),
        ("registry", "audit"), "record 1 was changed"),
    "audit gone": (lambda f: (f.settings.guard / "audit.jsonl").unlink(), ("registry", "audit"), "the tail was cut"),
    "book edited": (
        lambda f: (path := f.settings.desk / "book.jsonl").write_text(path.read_text().replace("adult@1", "adult@7", 1)),
        ("steward", "book"), "was changed"),
    "book gone": (lambda f: (f.settings.desk / "book.jsonl").unlink(), ("steward", "book"), "got no such file"),
    "database is none": (
        lambda f: (f.settings.store / "mlflow.db").write_bytes(b"not a database" * 100), ("adult", "store"),
        "file is not a database"),
    "database with a table missing": (
        lambda f: f.sql("DROP TABLE model_version_tags"), ("adult", "store"), "no such table"),
    "a view that never ends": (
        lambda f: (f.sql("DROP TABLE registered_model_aliases"),
                   f.sql("CREATE VIEW registered_model_aliases AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) "
                         "SELECT x AS name, x AS alias, x AS version FROM n")),
        ("adult", "store"), "interrupted"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_found_and_named(what: str, folder: Folder, truing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing.infra.stored.QUERY_S", 0.5)
    tamper, where, says = TAMPERED[what]
    tamper(folder)
    code, out, err = truing("verify", "--all", "--json")
    assert code == 3, err
    found = checks(out)[where]
    assert not found["ok"], out
    assert says in f"expected {found['expected']}, got {found['got']}", found
    shown = truing("verify", "--all")
    assert shown[0] == 3 and "checks fail" in shown[1].splitlines()[0] and "Traceback" not in shown[2]


def test_what_an_attacker_writes_can_not_steer_the_terminal(folder: Folder, truing: Any) -> None:
    folder.tag("2", **{"verdict.outcome": "\x1b[2J\x1b]0;all well\x07\r\nversion 2  files  ok"})
    code, out, err = truing("verify", "2")
    assert code == 3 and "[2J" in out and not {"\x1b", "\x07", "\r"} & set(out + err)
    assert sum(line.startswith("version 2  files") for line in out.splitlines()) == 1


def test_a_head_that_has_expired_is_found(folder: Folder, truing: Any) -> None:
    """The steward has been away for two hours: nothing says any more what is newest."""
    from truing.tasks.release.book import open_book

    folder.book = open_book(
        folder.settings.desk / "book.jsonl", key=lambda: folder.ring.read("release"), keys=folder.ring.public()
    )
    folder.head(now=time.time() - 7200)
    folder.book.close()
    code, out, _ = truing("verify", "--json")
    assert code == 3 and "has expired" in checks(out)["adult", "head"]["got"]


def test_a_revoked_approval_of_what_serves_is_found(folder: Folder, truing: Any) -> None:
    folder.approve("2", decision="revoked", by=("approver2",), at=time.time())
    code, out, _ = truing("verify", "2", "--json")
    found = checks(out)["version 2", "approval"]
    assert code == 3 and found["got"] == "revoked by approver2; the steward takes it back", found


def test_a_gateway_that_went_further_or_lags_is_found(folder: Folder, truing: Any) -> None:
    state = folder.settings.data / "gateway" / PROBLEM / "state.json"
    state.write_text(state.read_text().replace('"floor":2', '"floor":5'))
    code, out, _ = truing("verify", "--json")
    assert code == 3 and checks(out)["adult", "gateway"]["got"] == "floor 5"


def test_an_unknown_version_is_one_line(truing: Any) -> None:
    code, out, err = truing("verify", "9")
    assert (code, out) == (2, "") and err == "truing verify: adult: expected one of the versions 1, 2, 3, 4, got 9; name one\n"


# --- audit --------------------------------------------------------------------------------------------------------------------


def test_a_whole_audit_says_how_far_it_was_countersigned(folder: Folder, truing: Any) -> None:
    code, out, err = truing("audit", "verify")
    n = len(folder.lines)
    assert code == 0 and out == (
        f"audit whole: {n} records, chained and signed; 1 heads countersigned by the steward, the last at {n}; "
        "no open findings, 0 put right so far\n"
    ), err


def test_an_open_finding_is_the_first_break_and_a_closed_one_is_none(folder: Folder, truing: Any) -> None:
    from truing.tasks.release.findings import Findings
    from truing.tasks.release.reconcile import Finding

    path, ring = folder.settings.desk / "findings.jsonl", folder.ring
    one = Finding(problem=PROBLEM, version="", part="champion", what="alias champion", expected="2", got="1", at=folder.now)
    findings = Findings(path, key=lambda: ring.read("release"), keys=ring.public())
    findings.settle([one], looked=lambda each: True, at=folder.now, sure=True)
    code, out, err = truing("audit", "verify")
    assert (code, out) == (3, "")
    assert err == "truing audit: finding adult/champion: expected 2, got 1 (1 open; see `truing status`)\n"
    assert json.loads(truing("audit", "verify", "--json")[1])["findings"][0]["got"] == "1"
    findings.settle([], looked=lambda each: True, at=folder.now)
    code, out, _ = truing("audit", "verify")
    assert code == 0 and out.endswith("no open findings, 1 put right so far\n")
    findings.close()


@pytest.mark.parametrize(
    "what", ["audit's tail cut", "audit rewritten with the registry's own key", "audit line edited", "book edited"]
)
def test_the_first_break_is_one_line_and_exit_3(what: str, folder: Folder, truing: Any) -> None:
    tamper, (about, name), says = TAMPERED[what]
    tamper(folder)
    code, out, err = truing("audit", "verify")
    assert (code, out) == (3, "") and err.count("\n") == 1 and says in err and f"{about}'s {name}: expected" in err, err
    assert json.loads(truing("audit", "verify", "--json")[1])["whole"] is False


def test_the_acts_are_shown_by_user_act_and_number(folder: Folder, truing: Any) -> None:
    folder.note(
        "trainer", "_set_registered_model_alias", {}, outcome="refused", reason="only the steward moves \x1b[31mchampion"
    )
    code, out, err = truing("audit", "show", "--user", "approver", "--act", "decision")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3 and lines[0].split()[:2] == ["n", "when"], err
    assert "approver  decision  adult/1" in lines[1]
    refused = truing("audit", "show", "--outcome", "refused", "--last", "1")[1]
    assert "only the steward moves [31mchampion" in refused and "\x1b" not in refused
    found = json.loads(truing("audit", "show", "--json", "--last", "2")[1])
    assert [one["n"] for one in found] == [len(folder.lines) - 1, len(folder.lines)]
    assert truing("audit", "show", "--user", "nobody")[1] == "no act recorded\n"


def test_what_follows_a_break_is_not_shown(folder: Folder, truing: Any) -> None:
    path = folder.settings.guard / "audit.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], *lines[4:]]))
    code, out, err = truing("audit", "show", "--json")
    assert code == 3 and len(json.loads(out)) == 3 and "records are missing; nothing after it is shown" in err


# --- as a person who may not open the files -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; CI runs as root")
def test_another_user_is_told_what_could_not_be_read(
    settings_in: Callable[..., Settings], policy: Policy, template: Path
) -> None:
    """Nothing of the stack runs, and its folders are closed: no traceback, no false alarm, and no claim either."""
    home = Path(tempfile.mkdtemp())  # pytest's own folders can't be passed by others
    home.chmod(0o711)
    try:
        settings = settings_in(home)
        Folder(settings, policy, template)
        settings.data.chmod(0o711)
        for closed in (settings.store, settings.guard, settings.desk, settings.data / "gateway"):
            closed.chmod(0o700)

        def truing(*argv: str) -> subprocess.CompletedProcess[str]:
            user = ("setpriv", "--reuid=truing-attacker", "--regid=truing-attacker", "--init-groups", "--")
            command = (*user, sys.executable, "-m", "truing.flows.cli.main", *argv)
            done = subprocess.run(
                ["bash", str(ROOT / "tests" / "other_users.sh"), *command, "--data", str(settings.data), "--problems",
                 str(ROOT / "problems")],
                capture_output=True, text=True, check=False, cwd="/",
                env={**os.environ, "TRUING_PORTS__REGISTRY": str(settings.ports.registry),
                     "TRUING_PORTS__GATEWAY": str(settings.ports.gateway)},
            )  # fmt: skip
            if done.returncode == 77:
                pytest.skip(done.stderr.strip())
            return done

        done = truing("verify", "--json")
        found = json.loads(done.stdout)
        assert done.returncode == 1 and not found["whole"] and found["unread"] == 4, done.stderr
        assert {one["name"] for one in found["checks"]} == {"book", "audit", "store", "gateway"}
        assert truing("verify").stdout.startswith("adult: nothing could be checked; 4 could not be made")
        done = truing("audit", "verify")
        assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
        assert "guard/audit.jsonl: not readable for this user, and the registry gives none" in done.stderr
        lines = truing("keys", "list").stdout.splitlines()
        assert next(line for line in lines if line.startswith("steward")).endswith("closed to you")
    finally:
        shutil.rmtree(home)
