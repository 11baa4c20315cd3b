"""What people and the steward decide at the guard: overrides, reasons, standing approvals, heads; and who hears of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import httpx
import msgspec
import pytest
from guarded import NAMES, World, refused

from truing.infra.keys import APPROVERS
from truing.infra.registry_guard.knocks import Knocks
from truing.tasks.errors import Refused
from truing.tasks.policy import load_policy
from truing.tasks.problem import load_problem
from truing.tasks.records import Approval, Cause, Head, Outcome, Release, Standing
from truing.tasks.release.audit import follow
from truing.tasks.release.rest import NotFound
from truing.tasks.seal import (
    APPROVAL_TYPE,
    HEAD_TYPE,
    STANDING_TYPE,
    VERDICT_TYPE,
    canonical,
    new_key,
    open_envelope,
    sign,
)

pytestmark = pytest.mark.services
DAY_S = 86_400.0


@pytest.fixture(scope="session")
def world(registry: World) -> World:
    return registry


@pytest.fixture(scope="session")
def twoeyes(world: World) -> str:
    """Digest of the policy under which two persons may release what is blocked; problem `twoeyes` has accepted it."""
    folder = world.server.problems / "twoeyes"
    policy = load_policy(folder, load_problem(folder))
    assert policy.approvals.block_persons == 2
    world.problem("twoeyes", policy.digest)
    return policy.digest


def blocked(world: World, policy: str) -> str:
    version, _ = world.candidate("twoeyes")
    world.judge("twoeyes", version, Outcome.BLOCK, policy=policy)
    return version


def decided(world: World, problem: str, version: str) -> Approval:
    """The decision that stands, from the audit."""
    decision = world.docket(problem).decision(version)
    assert decision is not None
    approval = open_envelope(decision.envelope, Approval, APPROVAL_TYPE, world.keys.registry)
    assert isinstance(approval, Approval)
    return approval


# --- two persons --------------------------------------------------------------------------------------------------------------


def test_a_blocked_version_goes_out_when_two_persons_each_give_a_reason(world: World, twoeyes: str) -> None:
    version = blocked(world, twoeyes)
    with pytest.raises(Refused, match=r"is blocked .* no approval\.reason is given"):
        world.approver.approve("twoeyes", version)
    world.approver.approve("twoeyes", version, "the drop is in eleven rows")
    first = decided(world, "twoeyes", version)
    assert (first.by, first.override, first.reason) == (("approver",), True, "approver: the drop is in eleven rows")
    assert first.expires == pytest.approx(first.at + 3 * DAY_S), "as its policy says"
    with pytest.raises(Refused, match="1 of 2 approvers"):
        world.steward.move_champion("twoeyes", version)
    with pytest.raises(Refused, match=r"approver has approved the blocked version .* already"):
        world.approver.approve("twoeyes", version, "and once more")
    world.second.approve("twoeyes", version, "I have read them too")
    both = decided(world, "twoeyes", version)
    assert both.by == ("approver", "approver2")
    assert both.reason == "approver: the drop is in eleven rows; approver2: I have read them too"
    assert both.expires == first.expires, "it ends when the first of them does"
    assert world.steward.version("twoeyes", version).tags["approval.by"] == "approver, approver2"
    assert world.release("twoeyes", version).version == version
    assert world.steward.champion("twoeyes") == version


def test_a_no_in_between_starts_the_count_anew(world: World, twoeyes: str) -> None:
    version = blocked(world, twoeyes)
    world.approver.approve("twoeyes", version, "yes")
    world.second.reject("twoeyes", version, "no")
    world.approver.approve("twoeyes", version, "still yes")
    assert decided(world, "twoeyes", version).by == ("approver",)
    with pytest.raises(Refused, match="1 of 2 approvers"):
        world.steward.move_champion("twoeyes", version)


def test_a_reason_counts_once_and_for_its_giver_only(world: World) -> None:
    problem, version = world.judged(Outcome.INCONCLUSIVE)
    world.approver.set_tag(problem, version, "approval.reason", "mine alone")
    with pytest.raises(Refused, match=r"no approval\.reason is given"):
        world.second.approve(problem, version)
    world.put(problem, version, "approval.reason", "put into the database")
    world.approver.approve(problem, version)
    assert decided(world, problem, version).reason == "mine alone"
    world.approver.revoke(problem, version)
    assert decided(world, problem, version).reason == ""
    with pytest.raises(Refused, match=r"no approval\.reason is given"):
        world.approver.approve(problem, version)


def test_who_is_no_approver_any_more_only_reads(world: World) -> None:
    """The keyring knows more logins than the settings name as approvers: here the gateway's."""
    problem, version = world.standing(Outcome.PASS)
    assert "gateway" not in APPROVERS
    with world.http("gateway") as http:
        assert http.get("/api/2.0/mlflow/registered-models/get", params={"name": problem}).status_code == 200
        body = {"name": problem, "version": version, "key": "approval", "value": "approved"}
        assert "is not an approver" in refused(http.post("/api/2.0/mlflow/model-versions/set-tag", json=body))


# --- a no is always heard, a yes only to what the steward wrote ---------------------------------------------------------------


def test_a_page_that_was_altered_is_not_approved(world: World) -> None:
    problem = world.problem()
    version, _ = world.candidate(problem)
    world.steward.describe(problem, version, "# Inconclusive\nThe women's TPR may have fallen.")
    world.steward.set_tag(problem, version, "verdict.outcome", "inconclusive")
    world.judge(problem, version, Outcome.INCONCLUSIVE)
    world.put(problem, version, "verdict.outcome", "pass")
    world.behind("update model_versions set description='# Pass' where name=? and version=?", problem, int(version))
    with pytest.raises(Refused, match=r"was altered behind the registry's back: description, verdict\.outcome"):
        world.approver.approve(problem, version, "looks like a pass")
    world.steward.describe(problem, version, "# Inconclusive\nThe women's TPR may have fallen.")
    world.steward.set_tag(problem, version, "verdict.outcome", "inconclusive")
    world.approver.approve(problem, version, "seen as it is")


def test_an_earlier_verdict_put_back_into_the_database_is_no_verdict(world: World) -> None:
    problem = world.problem()
    version, _ = world.candidate(problem)
    earlier = world.judge(problem, version, Outcome.PASS)
    world.judge(problem, version, Outcome.BLOCK)
    envelope = canonical(sign(earlier, VERDICT_TYPE, world.keyring.read("gate"))).decode()
    world.put(problem, version, "verdict", envelope)
    with pytest.raises(Refused, match="is blocked"):
        world.approver.approve(problem, version, "it says pass")
    with pytest.raises(Refused, match="a later verdict stands"):
        world.steward.set_tag(problem, version, "verdict", envelope)


def test_a_revocation_needs_neither_the_files_nor_the_page(world: World) -> None:
    problem, version = world.released()
    root = world.trainer.rest.get("/model-versions/get-download-uri", name=problem, version=version)["artifact_uri"]
    (world.data / "registry" / "artifacts" / root.split(":/")[1] / "model.json").write_bytes(b"evil")
    world.put(problem, version, "verdict", "{}")
    with pytest.raises(Refused, match="the verdict judged payload"):
        world.second.approve(problem, version, "again")
    world.second.revoke(problem, version, "its bytes were altered")
    assert decided(world, problem, version).decision == "revoked"


def test_a_revoked_release_gives_way_to_an_earlier_one_or_to_nothing(world: World) -> None:
    """Each such statement names the revocation: it moves the alias without anybody asking for a rollback."""
    problem, first = world.released()
    second, _ = world.candidate(problem)
    world.judge(problem, second, Outcome.PASS)
    world.approver.approve(problem, second)
    world.release(problem, second)

    def successor(version: str, cause: Cause, revoked: str) -> Release:
        past, decision = world.past(problem), world.docket(problem).decision(revoked)
        assert decision is not None
        own = next(release for release in reversed(past) if release.version == version)
        number = past[-1].sequence + 1
        return msgspec.structs.replace(
            own, sequence=number, name=f"{problem}-{number}", cause=cause, replaces=number - 1, asked=decision.line
        )

    world.second.revoke(problem, second, "wrong labels")
    world.attach(successor(first, Cause.ROLLBACK, second))
    world.steward.move_champion(problem, first)
    with pytest.raises(Refused, match=f"version {second} was revoked"):
        world.approver.request_rollback(problem, second, "it was better")
    world.second.revoke(problem, first, "the same labels")
    wrong = successor(first, Cause.WITHDRAW, second)  # the other version's revocation
    world.attach(wrong)
    with pytest.raises(Refused, match="no approver has revoked version"):
        world.steward.move_champion(problem, first)
    world.attach(successor(first, Cause.WITHDRAW, first))
    world.steward.move_champion(problem, first)
    third, _ = world.candidate(problem)
    world.judge(problem, third, Outcome.PASS, champion=None)
    world.approver.approve(problem, third)
    with pytest.raises(Refused, match="no signed release"):  # nothing serves, so nothing is compared with it
        world.steward.move_champion(problem, third)


# --- approvals in advance, freezes, the anchor --------------------------------------------------------------------------------


def test_a_standing_approval_is_stamped_with_its_terms_and_ends_when_it_is_revoked(world: World) -> None:
    problem = world.problem()
    terms = {"days": 7, "max_drift": 0.02, "per_day": 3}
    with pytest.raises(Refused, match=r"set the tag standing\.reason first"):
        world.approver.set_model_tag(problem, "standing", json.dumps(terms))
    world.approver.set_model_tag(problem, "standing.reason", "small steps over the holidays")
    for wrong in (
        "yes", "{}", json.dumps(terms | {"days": 365}), json.dumps(terms | {"max_drift": 1.0}),
        json.dumps(terms | {"per_day": 0}), json.dumps(terms | {"more": 1}), '{"days":1e999,"max_drift":0.0,"per_day":1}',
    ):  # fmt: skip
        with pytest.raises(Refused, match="standing"):
            world.approver.set_model_tag(problem, "standing", wrong)
    for user in ("trainer", "steward", "admin"):
        with pytest.raises(Refused, match="only the approver sets standing"):
            world.users[user].set_model_tag(problem, "standing", json.dumps(terms))
    world.approver.set_model_tag(problem, "standing", json.dumps(terms))
    given = world.docket(problem).standing
    assert given is not None
    standing = open_envelope(world.steward.model(problem).tags["standing.stamp"], Standing, STANDING_TYPE, world.keys.registry)
    assert isinstance(standing, Standing)
    assert standing == given.standing
    assert (standing.by, standing.max_drift, standing.per_day, standing.reason) == (
        ("approver",), 0.02, 3, "small steps over the holidays",
    )  # fmt: skip
    assert standing.expires == pytest.approx(standing.at + 7 * DAY_S)
    version, _ = world.candidate(problem)
    world.judge(problem, version, Outcome.PASS)
    assert world.release(problem, version).cause is Cause.GENESIS, "no fresh decision was needed"
    inconclusive, _ = world.candidate(problem)
    world.judge(problem, inconclusive, Outcome.INCONCLUSIVE)
    with pytest.raises(Refused, match="a standing approval covers a pass only"):
        world.steward.move_champion(problem, inconclusive)
    world.second.set_model_tag(problem, "standing", "revoked")
    assert world.docket(problem).standing is None


def test_a_freeze_is_the_audits_and_not_the_tags(world: World) -> None:
    problem, version = world.judged(Outcome.PASS)
    world.approver.approve(problem, version)
    world.approver.set_model_tag(problem, "frozen.reason", "audit week")
    world.approver.set_model_tag(problem, "frozen", "true")
    assert (world.docket(problem).frozen, world.docket(problem).frozen_by) == (True, "approver")
    assert [line.entry.facts["reason"] for line in world.audit() if line.entry.act == "frozen"][-1] == "audit week"
    world.put_model(problem, "frozen", "false")
    with pytest.raises(Refused, match="is frozen"):
        world.steward.move_champion(problem, version)
    world.approver.thaw(problem)
    world.put_model(problem, "frozen", "true")
    world.release(problem, version)


def test_the_anchor_needs_a_reason(world: World) -> None:
    problem, version = world.released()
    with pytest.raises(Refused, match=r"set the tag anchor\.reason first"):
        world.approver.set_model_tag(problem, "anchor", version)
    world.approver.set_anchor(problem, version, "the first that people saw")
    pinned = world.docket(problem).anchor
    assert pinned is not None
    assert (pinned.version, pinned.by, pinned.reason) == (version, "approver", "the first that people saw")


# --- the steward --------------------------------------------------------------------------------------------------------------


def test_the_head_is_the_stewards_signed_and_never_an_older_one(world: World) -> None:
    problem = world.problem()

    def head(sequence: int, audit: int, key: bytes | None = None, about: str = problem, at: float = 5.0) -> str:
        made = Head(
            problem=about, sequence=sequence, release="aa" * 32, audit=audit, audit_digest="bb" * 32, at=at, expires=at + 3600
        )
        return canonical(sign(made, HEAD_TYPE, key or world.keyring.read("release"))).decode()

    for user in ("trainer", "approver", "admin"):
        with pytest.raises(Refused, match="only the steward signs the head"):
            world.users[user].set_model_tag(problem, "release.head", head(1, 10))
    with pytest.raises(Refused, match="no signature"):
        world.steward.set_model_tag(problem, "release.head", head(1, 10, new_key()))
    with pytest.raises(Refused, match="is about other"):
        world.steward.set_model_tag(problem, "release.head", head(1, 10, about="other"))
    world.steward.set_model_tag(problem, "release.head", head(2, 20))
    for older in (head(1, 30), head(2, 19)):
        with pytest.raises(Refused, match="a head of release 2 at audit record 20 stands"):
            world.steward.set_model_tag(problem, "release.head", older)
    world.steward.set_model_tag(problem, "release.head", head(2, 20, at=1.0))  # a clock may be set back
    world.steward.set_model_tag(problem, "release.head", head(3, 20))


def test_what_the_steward_wrote_it_may_write_again_and_nothing_older_in_its_place(world: World) -> None:
    """After an edit of the database it puts alias, statements and verdicts right through the guard."""
    problem, first = world.released()
    second, _ = world.candidate(problem)
    world.judge(problem, second, Outcome.PASS)
    world.approver.approve(problem, second)
    world.release(problem, second)
    world.behind("update registered_model_aliases set version=? where name=?", int(first), problem)
    world.approver.freeze(problem, "what was released still has to be shown")
    world.steward.move_champion(problem, second)
    for release in world.past(problem):
        world.attach(release)
    with pytest.raises(Refused, match=r"is frozen|is older than"):
        world.steward.move_champion(problem, first)
    assert world.steward.champion(problem) == second


# --- versions that only the database knows ------------------------------------------------------------------------------------


def test_a_row_put_into_the_database_is_no_version(world: World) -> None:
    problem, version = world.judged(Outcome.PASS)
    columns = "name, creation_time, last_updated_time, current_stage, source, run_id, status, workspace, storage_location"
    copied = f"insert into model_versions (version, {columns}) select 77, {columns} from model_versions"  # noqa: S608
    world.behind(f"{copied} where name=? and version=?", problem, int(version))
    for key, value in world.steward.version(problem, version).tags.items():
        world.put(problem, "77", key, value)
    assert world.steward.version(problem, "77").payload == world.steward.version(problem, version).payload
    for act in (
        lambda: world.approver.approve(problem, "77"),
        lambda: world.steward.move_champion(problem, "77"),
        lambda: world.steward.describe(problem, "77", "x"),
        lambda: world.trainer.set_tag(problem, "77", "note", "x"),
    ):
        with pytest.raises(Refused, match=r"version 77 .* was never registered here"):
            act()
    with pytest.raises(NotFound):
        world.approver.approve(problem, "78")
    with pytest.raises(Refused, match="expected a version number"):
        world.steward.move_champion(problem, f"0{version}")


def test_a_number_is_never_given_twice(world: World) -> None:
    """The last version's row is deleted, then all of them: the next would be called like one that the audit knows."""
    problem, first = world.released()
    second, _ = world.candidate(problem)
    for table in ("model_version_tags", "model_versions"):
        world.behind(f"delete from {table} where name=? and version=?", problem, int(second))  # noqa: S608
    with pytest.raises(Refused, match=f"would call it version {second} of {problem}, the audit knows versions up to {second}"):
        world.candidate(problem)
    for table in ("registered_model_aliases", "model_version_tags", "model_versions", "registered_model_tags"):
        world.behind(f"delete from {table} where name=?", problem)  # noqa: S608
    world.behind("delete from registered_models where name=?", problem)
    with pytest.raises(Refused, match="has 2 versions in the audit, and its row is gone"):
        world.candidate(problem)
    assert world.docket(problem).versions.keys() == {first, second}


# --- who hears of it ----------------------------------------------------------------------------------------------------------


def test_the_audit_is_read_over_http_in_pages_by_any_login_and_by_no_other(world: World) -> None:
    bare = httpx.Client(base_url=world.url, trust_env=False)
    assert bare.get("/truing/audit").status_code == 401
    assert bare.get("/truing/audit", auth=("trainer", "wrong")).status_code == 401
    with world.http("gateway") as http:
        whole = world.steward.rest.audit(0)
        assert [line.entry.n for line in whole] == list(range(1, len(whole) + 1))
        assert len(list(follow(whole, keys=world.keys.registry))) == len(whole)
        assert len(http.get("/truing/audit").json()["lines"]) == min(1000, len(whole))
        assert http.get("/truing/audit", params={"after": 10**9}).json() == {"lines": []}
        for odd in ("-5", "x", "nan", "1e400", ""):
            assert http.get("/truing/audit", params={"after": odd}).json()["lines"][0]["entry"]["n"] == 1
    last = world.steward.rest.audit(whole[-1].entry.n - 1)
    assert last[0] == whole[-1]


def test_many_wait_for_the_next_write_and_are_answered_at_once(world: World) -> None:
    """200 waiters take no threads: a write in between is served, and wakes them all. Their patience ends before their wait."""
    problem, version = world.standing(Outcome.PASS)
    word = world.steward.changes()
    while (later := world.steward.rest.changes(since=word, wait_s=2)) != word:
        word = later  # a count of refused logins may still be on its way

    async def crowd() -> list[str]:
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(base_url=world.url, trust_env=False, timeout=25, limits=limits) as client:
            query = {"since": word, "wait": 30}
            waiting = [asyncio.ensure_future(client.get("/truing/changes", params=query)) for _ in range(200)]
            await asyncio.sleep(1.0)
            assert not any(one.done() for one in waiting)
            await asyncio.to_thread(world.steward.set_tag, problem, version, "note", "wake up")
            return [(await one).json()["changes"] for one in waiting]

    told = asyncio.run(crowd())
    assert set(told) == {told[0]} != {word}
    assert world.steward.rest.changes(since="another", wait_s=29) == told[0], "a word that differs is answered at once"
    assert world.steward.rest.changes(since=told[0], wait_s=0.2) == told[0], "and one that does not, when its time is over"


def test_failed_logins_are_told_once_a_second_with_their_count() -> None:
    told: list[tuple[int, str]] = []
    knocks = Knocks(lambda count, first: told.append((count, first)), every_s=0.2)
    threads = [threading.Thread(target=lambda: [knocks.knock("x") for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = time.monotonic() + 10
    while sum(count for count, _ in told) < 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert sum(count for count, _ in told) == 200
    assert told[0] == (1, "x")
    assert len(told) < 20


def test_what_mlflow_refuses_by_itself_is_in_the_audit_too(world: World) -> None:
    def refusals(since: int) -> list[tuple[str, str, str]]:
        return [
            (line.entry.user, line.entry.act, line.entry.target)
            for line in world.steward.rest.audit(since)
            if line.entry.outcome == "refused"
        ]

    def until(since: int, wanted: tuple[str, str]) -> bool:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if any(user == wanted[0] and wanted[1] in f"{act} {target}" for user, act, target in refusals(since)):
                return True
            time.sleep(0.1)
        return False

    since = len(world.steward.rest.audit(0))
    host = {"Host": "evil.example"}
    with world.http("trainer") as http:
        assert http.get("/api/2.0/mlflow/experiments/search", headers=host).status_code == 403
        assert until(since, ("?", "experiments"))
        assert http.get("/api/2.0/mlflow-artifacts/artifacts/1/x", headers=host).status_code == 403
        answer = http.post("/api/2.0/mlflow/runs/create", json={}, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert until(since, ("?", "runs/create"))
        assert http.put("/ajax-api/3.0/mlflow/assistant/config", json={}).status_code == 403
        assert until(since, ("trainer", "update_config"))
    httpx.get(f"{world.url}/api/2.0/mlflow/experiments/search", trust_env=False)
    assert until(since, ("?", "login"))
    httpx.get(f"{world.url}/ajax-api/3.0/mlflow/mcp-servers", auth=("steward", "wrong"), trust_env=False)
    assert until(since, ("?", "mcp-servers as 'steward'"))


def test_no_row_of_the_database_makes_the_registry_call_out(world: World) -> None:
    """A webhook put into MLflow's table: the registry would speak to whatever address it names."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    heard: list[str] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    ear = HTTPServer(("127.0.0.1", 0), Ear)
    thread = threading.Thread(target=ear.serve_forever, daemon=True)
    thread.start()
    world.behind(
        "insert into webhooks (webhook_id, name, url, status, creation_timestamp, last_updated_timestamp) "
        "values ('w1', 'w', ?, 'ACTIVE', 1, 1)", f"http://127.0.0.1:{ear.server_port}/hook",
    )  # fmt: skip
    world.behind("insert into webhook_events (webhook_id, entity, action) values ('w1', 'model_version', 'created')")
    problem = next(NAMES)
    world.problem(problem)
    world.candidate(problem)
    time.sleep(1.0)
    ear.shutdown()
    world.behind("delete from webhook_events")
    world.behind("delete from webhooks")
    assert heard == []
