"""The registry behind its guard, tried from outside with MLflow's own client and with bare HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from guarded import NAMES, POLICY, World, mlflow_refusal, refused
from ports import free_port

from truing.infra import settings as settings_module
from truing.infra.registry_guard import audit as audit_log
from truing.infra.registry_guard.acts import looks_like_champion
from truing.infra.registry_guard.routes import CLOSED, NATIVE_CLOSED, NATIVE_OURS, NATIVE_READS, READS, RULED
from truing.infra.settings import Settings
from truing.tasks.errors import DataError, Refused, Unavailable
from truing.tasks.records import (
    Approval,
    Candidate,
    Cause,
    Estimate,
    Evaluation,
    Outcome,
    Refusal,
    Release,
    Verdict,
)
from truing.tasks.release.audit import Broken, verify
from truing.tasks.release.promotion import plan_rollback
from truing.tasks.release.registry import Registry
from truing.tasks.seal import (
    APPROVAL_TYPE,
    RELEASE_TYPE,
    VERDICT_TYPE,
    Facts,
    canonical,
    digest,
    new_key,
    open_envelope,
    public_key,
    sign,
    tree_digest,
)

pytestmark = pytest.mark.services


@pytest.fixture(scope="session")
def world(registry: World) -> World:
    return registry


# --- champion -----------------------------------------------------------------------------------------------------------------

PEOPLE = pytest.mark.parametrize("user", ["trainer", "approver"])


@PEOPLE
def test_a_blocked_version_cannot_become_champion(world: World, user: str) -> None:
    problem, version = world.standing(Outcome.BLOCK)
    with world.mlflow(user) as client:
        said = mlflow_refusal(lambda: client.set_registered_model_alias(problem, "champion", version))
    assert f"version {version} is blocked: women's TPR fell 12.1 points" in said
    assert world.steward.champion(problem) is None


@PEOPLE
def test_an_inconclusive_version_cannot_become_champion(world: World, user: str) -> None:
    problem, version = world.standing(Outcome.INCONCLUSIVE)
    with world.mlflow(user) as client:
        said = mlflow_refusal(lambda: client.set_registered_model_alias(problem, "champion", version))
    assert f"version {version} is not approved and its verdict is inconclusive: no champion" in said


@PEOPLE
def test_an_unapproved_version_cannot_become_champion(world: World, user: str) -> None:
    problem, version = world.standing(Outcome.PASS)
    with world.mlflow(user) as client:
        said = mlflow_refusal(lambda: client.set_registered_model_alias(problem, "champion", version))
    assert f"version {version} is not approved; an approver sets its tag approval = approved" in said


@PEOPLE
def test_a_self_approved_version_cannot_become_champion(world: World, user: str) -> None:
    """Even if the trainer had got hold of the registry's key and of its database: only what the audit holds is an approval."""
    problem, version = world.judged(Outcome.PASS)
    with world.mlflow("trainer") as client:
        said = mlflow_refusal(lambda: client.set_model_version_tag(problem, version, "approval", "approved"))
        assert "trainer is not an approver" in said
    verdict = open_envelope(world.steward.version(problem, version).verdict, Verdict, VERDICT_TYPE, world.keys.gate)
    assert isinstance(verdict, Verdict)
    for by in ("trainer", "approver"):
        own = Approval(
            problem=problem, version=version, verdict=digest(verdict), decision="approved", by=(by,), at=1.0,
            expires=None, reason="",
        )  # fmt: skip
        world.put(
            problem, version, "approval.stamp", canonical(sign(own, APPROVAL_TYPE, world.keyring.read("registry"))).decode()
        )
        with world.mlflow(user) as client:
            said = mlflow_refusal(lambda: client.set_registered_model_alias(problem, "champion", version))
        assert f"version {version} is not approved" in said


@PEOPLE
def test_nobody_but_the_steward_moves_champion_even_when_all_is_well(world: World, user: str) -> None:
    problem, version = world.judged(Outcome.PASS)
    world.approver.approve(problem, version)
    with world.mlflow(user) as client:
        said = mlflow_refusal(lambda: client.set_registered_model_alias(problem, "champion", version))
    assert "only the steward moves champion" in said


def test_the_steward_is_bound_by_the_same_reasons(world: World) -> None:
    for outcome, word in (
        (Outcome.BLOCK, "is blocked"),
        (Outcome.INCONCLUSIVE, "is not approved"),
        (Outcome.PASS, "not approved"),
    ):
        problem, version = world.judged(outcome)
        with pytest.raises(Refused, match=word):
            world.steward.move_champion(problem, version)
    world.approver.approve(problem, version)
    with pytest.raises(Refused, match="no signed release"):
        world.steward.move_champion(problem, version)


def test_an_approved_version_becomes_champion_by_the_steward(world: World) -> None:
    problem, version = world.judged(Outcome.INCONCLUSIVE)
    with world.mlflow("approver") as client:
        client.set_model_version_tag(problem, version, "approval.reason", "first release")
        client.set_model_version_tag(problem, version, "approval", "approved")
    first = world.release(problem, version)
    assert (first.sequence, first.cause, first.replaces) == (1, Cause.GENESIS, None)
    assert world.steward.champion(problem) == version
    second, _ = world.candidate(problem, parent=first.payload)
    world.judge(problem, second, Outcome.PASS)
    world.approver.approve(problem, second)
    again = world.release(problem, second)
    assert (again.sequence, again.cause, again.replaces) == (2, Cause.PROMOTE, 1)
    assert world.steward.champion(problem) == second
    with pytest.raises(Refused, match="another champion"):
        world.steward.move_champion(problem, version)


@pytest.mark.parametrize(
    "alias", ["Champion", "CHAMPION", "champion_", "champ1on", "champions", "ｃｈａｍｐｉｏｎ", "champlon"]
)
def test_a_lookalike_of_champion_is_refused_to_all(world: World, alias: str) -> None:
    assert looks_like_champion(alias)
    problem, version = world.standing(Outcome.PASS)
    for user in ("trainer", "approver", "steward", "admin"):
        with world.http(user) as http:
            body = {"name": problem, "alias": alias, "version": version}
            refused(http.post("/api/2.0/mlflow/registered-models/alias", json=body))


@pytest.mark.parametrize("alias", ["7", "v7", "latest", "чампион", "cһampion"])
def test_an_alias_that_is_no_plain_word_is_refused(world: World, alias: str) -> None:
    problem, version = world.standing(Outcome.PASS)
    with world.http("steward") as http:
        body = {"name": problem, "alias": alias, "version": version}
        assert "[alias" in refused(http.post("/api/2.0/mlflow/registered-models/alias", json=body))


def test_every_spelling_of_the_alias_route_is_guarded(world: World) -> None:
    problem, version = world.standing(Outcome.BLOCK)
    body = {"name": problem, "alias": "champion", "version": version}
    with world.http("trainer") as http:
        for path in ("/api/2.0/mlflow/registered-models/alias", "/ajax-api/2.0/mlflow/registered-models/alias"):
            assert "is blocked" in refused(http.post(path, json=body))
            assert "is blocked" in refused(
                http.post(path, content=json.dumps(json.dumps(body)), headers={"content-type": "application/json"})
            )
            refused(http.request("DELETE", path, json={"name": problem, "alias": "champion"}))
        for path in ("//api/2.0/mlflow/registered-models/alias", "/api/2.0/mlflow/registered-models/alias/"):
            assert http.post(path, json=body).status_code in (308, 403, 404)
    assert world.steward.champion(problem) is None


def test_the_admin_promotes_nothing_and_makes_no_logins(world: World) -> None:
    problem, version = world.standing(Outcome.PASS)
    admin = world.users["admin"]
    for act in (
        lambda: admin.approve(problem, version),
        lambda: admin.move_champion(problem, version),
        lambda: admin.set_tag(problem, version, "note", "x"),
        lambda: admin.accept_policy(problem, POLICY),
    ):
        with pytest.raises(Refused):
            act()
    for user in ("admin", "trainer", "steward", "approver"):
        with world.http(user) as http:
            for method, path, body in (
                ("POST", "users/create", {"username": "visitor", "password": "a-long-password"}),
                ("PATCH", "users/update-password", {"username": "steward", "password": "a-long-password"}),
                ("PATCH", "users/update-admin", {"username": user, "is_admin": True}),
                ("DELETE", "users/delete", {"username": "steward"}),
                ("GET", "users/list", {}),
                ("POST", "roles/create", {"role_name": "approver", "workspace": "default"}),
                ("POST", "users/permissions/grant", {"username": user}),
                ("POST", "webhooks", {"name": "x", "url": "https://example.org", "events": []}),
            ):
                answer = http.request(method, f"/api/{'3.0' if 'roles' in path else '2.0'}/mlflow/{path}", json=body)
                assert answer.status_code == 403, (user, path, answer.status_code, answer.text)


def test_a_row_in_mlflows_table_of_users_opens_nothing(world: World) -> None:
    """Not even one that says admin, or that the steward's password is another one."""
    from werkzeug.security import generate_password_hash

    problem, version = world.standing(Outcome.BLOCK)
    mark = generate_password_hash("a-long-password")
    world.behind("update users set password_hash=? where username='steward'", mark, base="auth.db")
    world.behind("update users set is_admin=1 where username='trainer'", base="auth.db")
    with pytest.raises(Unavailable, match="does not know steward"):
        Registry(world.url, "steward", "a-long-password").model(problem)
    with pytest.raises(Refused, match="is blocked"):
        world.trainer.move_champion(problem, version)


# --- forgeries ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["trainer", "approver", "steward", "admin"])
@pytest.mark.parametrize(
    "key", ["approval.stamp", "approval.by", "trainer", "Approval", " approval", "APPROVAL.STAMP", "payload"]
)
def test_a_stamp_is_nobodys_to_write(world: World, user: str, key: str) -> None:
    problem, version = world.standing(Outcome.PASS)
    with pytest.raises(Refused):
        world.users[user].set_tag(problem, version, key, "approved")
    with world.http(user) as http:
        refused(
            http.request(
                "DELETE", "/api/2.0/mlflow/model-versions/delete-tag", json={"name": problem, "version": version, "key": key}
            )
        )


@pytest.mark.parametrize("key", ["approval", "approval.reason", "verdict", "verdict.outcome", "release", "release.1", "frozen"])
def test_the_trainer_writes_none_of_the_evidence(world: World, key: str) -> None:
    problem, version = world.standing(Outcome.BLOCK)
    with pytest.raises(Refused):
        world.trainer.set_tag(problem, version, key, "approved")
    with pytest.raises(Refused):
        world.trainer.set_model_tag(problem, key, "1")


@pytest.mark.parametrize("key", ["approval", "approval.stamp", "trainer", "verdict", "Release.1", "mlflow.note"])
def test_no_evidence_rides_in_on_a_new_version(world: World, key: str) -> None:
    problem = world.problem()
    with world.mlflow("trainer") as client:
        model = client.create_logged_model(world.trainer.experiment(problem), name="x")
        world.trainer.rest.upload(f"{model.artifact_location.split(':/')[1]}/model.json", b"{}")
        said = mlflow_refusal(
            lambda: client.create_model_version(
                problem, source=f"models:/{model.model_id}", model_id=model.model_id, tags={key: "approved"}
            )
        )
    assert f"the tags {key} can't be brought along" in said


def test_the_registry_stamps_trainer_and_payload_itself(world: World) -> None:
    problem = world.problem()
    with world.mlflow("trainer") as client:
        model = client.create_logged_model(world.trainer.experiment(problem), name="x")
        world.trainer.rest.upload(f"{model.artifact_location.split(':/')[1]}/model.json", b"{}")
        for claimed in ({"trainer": "approver"}, {"payload": "00" * 32}):
            mlflow_refusal(
                lambda claimed=claimed: client.create_model_version(
                    problem, source=f"models:/{model.model_id}", model_id=model.model_id, tags=claimed
                )
            )
        made = client.create_model_version(problem, source=f"models:/{model.model_id}", model_id=model.model_id)
        tags = client.get_model_version(problem, made.version).tags
    assert tags["trainer"] == "trainer"
    assert tags["payload"] == tree_digest({"model.json": b"{}"})


def test_only_the_trainer_registers(world: World) -> None:
    problem = world.problem()
    for user in ("steward", "approver", "admin"):
        with world.http(user) as http:
            refused(
                http.post(
                    "/api/2.0/mlflow/model-versions/create", json={"name": problem, "source": "models:/m-1", "model_id": "m-1"}
                )
            )


def test_a_copy_is_not_a_new_version(world: World) -> None:
    problem, version = world.standing(Outcome.BLOCK)
    other = world.problem()
    with world.mlflow("trainer") as client:
        from mlflow.exceptions import MlflowException

        with pytest.raises(MlflowException, match=r"PERMISSION_DENIED: the tags .* can't be brought along"):
            client.copy_model_version(f"models:/{problem}/{version}", other)
    body = {"name": problem, "source": f"models:/{problem}/{version}"}
    with world.http("trainer") as http:
        assert "a copy of a version is not a new one" in refused(http.post("/api/2.0/mlflow/model-versions/create", json=body))


def test_the_same_bytes_are_not_judged_twice(world: World) -> None:
    problem, version = world.standing(Outcome.BLOCK)
    files = world.trainer.payload(problem, version)
    with world.mlflow("trainer") as client:
        model = client.create_logged_model(world.trainer.experiment(problem), name="again")
        for name, data in files.items():
            world.trainer.rest.upload(f"{model.artifact_location.split(':/')[1]}/{name}", data)
        said = mlflow_refusal(
            lambda: client.create_model_version(problem, source=f"models:/{model.model_id}", model_id=model.model_id)
        )
    assert f"these bytes are version {version} already" in said


def test_stages_deletes_and_renames_are_closed(world: World) -> None:
    problem, version = world.standing(Outcome.PASS)
    for user in ("trainer", "approver", "steward", "admin"):
        with world.mlflow(user) as client:
            mlflow_refusal(lambda client=client: client.transition_model_version_stage(problem, version, "Production"))
            mlflow_refusal(lambda client=client: client.delete_model_version(problem, version))
            mlflow_refusal(lambda client=client: client.delete_registered_model(problem))
            mlflow_refusal(lambda client=client: client.rename_registered_model(problem, "other"))


def test_a_verdict_needs_the_gate_key_the_bytes_and_its_turn(world: World) -> None:
    problem, version = world.standing(Outcome.BLOCK)
    gate = world.keyring.read("gate")
    forged = sign(world.verdict(problem, version, Outcome.PASS), VERDICT_TYPE, new_key())
    older = sign(world.verdict(problem, version, Outcome.PASS, at=1.0), VERDICT_TYPE, gate)
    other = sign(world.verdict(problem, version, Outcome.PASS, candidate="00" * 32), VERDICT_TYPE, gate)
    for envelope, word in ((forged, "no signature"), (older, "a later verdict"), (other, "holds other bytes")):
        with pytest.raises(Refused, match=word):
            world.steward.set_tag(problem, version, "verdict", canonical(envelope).decode())
    with pytest.raises(Refused, match="not a signed envelope"):
        world.steward.set_tag(problem, version, "verdict", "pass")


def test_a_release_statement_needs_the_release_key_and_the_next_sequence(world: World) -> None:
    problem, version = world.released()
    release = world.past(problem)[-1]
    key = world.keyring.read("release")
    with pytest.raises(Refused, match="no signature"):
        world.steward.attach_release(problem, version, sign(release, RELEASE_TYPE, new_key()))
    with pytest.raises(Refused, match="is taken"):
        changed = msgspec.structs.replace(release, reason="another text under the same number")
        world.steward.attach_release(problem, version, sign(changed, RELEASE_TYPE, key))
    with pytest.raises(Refused, match="can't stand under"):
        world.steward.set_tag(problem, version, "release.9", canonical(sign(release, RELEASE_TYPE, key)).decode())
    world.steward.attach_release(problem, version, sign(release, RELEASE_TYPE, key))  # the same again changes nothing


# --- approvals ----------------------------------------------------------------------------------------------------------------


def test_an_approval_is_stamped_with_who_when_and_which_verdict(world: World) -> None:
    problem, version = world.judged(Outcome.PASS)
    before = time.time()
    seen = world.approver.approve(problem, version, "looks right")
    stamp = open_envelope(seen.stamp, Approval, APPROVAL_TYPE, world.keys.registry)
    verdict = open_envelope(seen.verdict, Verdict, VERDICT_TYPE, world.keys.gate)
    assert isinstance(stamp, Approval)
    assert isinstance(verdict, Verdict)
    assert (stamp.by, stamp.decision, stamp.verdict, stamp.reason, stamp.expires) == (
        ("approver",), "approved", digest(verdict), "looks right", None,
    )  # fmt: skip
    assert before <= stamp.at <= time.time()
    assert seen.tags["approval.by"] == "approver"


def test_an_inconclusive_version_needs_a_reason_and_its_approval_ends(world: World) -> None:
    problem, version = world.judged(Outcome.INCONCLUSIVE)
    with pytest.raises(Refused, match=r"no approval\.reason is given"):
        world.approver.approve(problem, version)
    seen = world.approver.approve(problem, version, "small but wanted")
    stamp = open_envelope(seen.stamp, Approval, APPROVAL_TYPE, world.keys.registry)
    assert isinstance(stamp, Approval)
    assert stamp.expires is not None
    assert stamp.expires - stamp.at == pytest.approx(30 * 86400)


def test_a_blocked_version_cannot_be_approved_and_can_be_rejected(world: World) -> None:
    problem, version = world.judged(Outcome.BLOCK)
    with pytest.raises(Refused, match="is blocked"):
        world.approver.approve(problem, version, "I want it all the same")
    assert world.approver.reject(problem, version, "harm").approval == "rejected"


def test_a_version_without_verdict_cannot_be_approved(world: World) -> None:
    problem = world.problem()
    version, _ = world.candidate(problem)
    with pytest.raises(Refused, match="has no verdict yet"):
        world.approver.approve(problem, version)


def test_a_revoked_approval_promotes_nothing(world: World) -> None:
    problem, version = world.judged(Outcome.PASS)
    world.approver.approve(problem, version)
    world.approver.revoke(problem, version, "second thoughts")
    with pytest.raises(Refused, match="was revoked by approver: second thoughts"):
        world.steward.move_champion(problem, version)


def test_the_approver_writes_nothing_else(world: World) -> None:
    problem, version = world.standing(Outcome.PASS)
    for act in (
        lambda: world.approver.set_tag(problem, version, "note", "x"),
        lambda: world.approver.set_model_tag(problem, "note", "x"),
        lambda: world.approver.set_model_tag(problem, "policy.proposed", POLICY),
        lambda: world.approver.set_tag(problem, version, "verdict.outcome", "pass"),
        lambda: world.approver.describe(problem, version, "x"),
        lambda: world.approver.log_run(problem, "x", {}, {}),
    ):
        with pytest.raises(Refused):
            act()


def test_a_policy_counts_only_as_proposed_and_accepted(world: World) -> None:
    problem = next(NAMES)
    world.steward.propose_policy(problem, POLICY)
    version, _ = world.candidate(problem)
    world.judge(problem, version, Outcome.PASS)
    with pytest.raises(Refused, match="no approver has accepted a policy"):
        world.approver.approve(problem, version)
    with pytest.raises(Refused, match="only the approver"):
        world.steward.set_model_tag(problem, "policy.accepted", POLICY)
    with pytest.raises(Refused, match="expected the proposed policy"):
        world.approver.accept_policy(problem, "00" * 32)
    world.put_model(problem, "policy.accepted", POLICY)
    with pytest.raises(Refused, match="no approver has accepted a policy"):
        world.approver.approve(problem, version)
    assert world.steward.facts(problem, version, keys=world.keys).policy is None
    world.approver.accept_policy(problem)
    assert world.steward.facts(problem, version, keys=world.keys).policy == POLICY
    world.approver.approve(problem, version)


def test_the_anchor_is_a_released_version_pinned_by_the_approver(world: World) -> None:
    problem, version = world.released()
    second, _ = world.candidate(problem)
    with pytest.raises(Refused, match="was never released"):
        world.approver.set_anchor(problem, second, "too early")
    for user in ("trainer", "steward", "admin"):
        with pytest.raises(Refused, match="only the approver"):
            world.users[user].set_anchor(problem, version, "mine")
    world.approver.set_anchor(problem, version, "first release")
    assert world.steward.anchor(problem) == version
    assert world.steward.model(problem).tags["anchor.by"] == "approver"


def test_a_rollback_is_a_new_release_that_a_person_asked_for(world: World) -> None:
    problem, first = world.released()
    second, _ = world.candidate(problem)
    world.judge(problem, second, Outcome.PASS)
    world.approver.approve(problem, second)
    world.release(problem, second)

    def plan() -> Release | Refusal:
        docket = world.docket(problem)
        assert docket.rollback is not None
        assert (docket.rollback.by, docket.rollback.reason) == ("approver", "complaints about the new one")
        facts = Facts(problem=problem, version=first, payload=docket.versions[first].payload)
        return plan_rollback(docket.rollback, facts, past=world.past(problem), environment={"name": "test"}, now=time.time())

    with pytest.raises(Refused, match=r"rollback\.reason first"):
        world.approver.set_model_tag(problem, "rollback.to", first)
    with pytest.raises(Refused, match="serves already"):
        world.approver.request_rollback(problem, second, "no")
    with pytest.raises(Refused, match="only the approver"):
        world.steward.request_rollback(problem, first, "mine")
    world.approver.request_rollback(problem, first, "complaints about the new one")
    world.approver.freeze(problem, "look into it")  # a freeze stops promotions, never the way back
    release = plan()
    assert isinstance(release, Release)
    assert (release.sequence, release.cause, release.version, release.replaces) == (3, Cause.ROLLBACK, first, 2)
    world.attach(release)
    world.steward.move_champion(problem, first)
    assert world.steward.champion(problem) == first
    assert plan() == release, "the same request makes no second release"
    assert world.steward.version(problem, first).statements().keys() == {1, 3}


def test_a_rollback_nobody_asked_for_is_refused(world: World) -> None:
    problem, first = world.released()
    second, _ = world.candidate(problem)
    world.judge(problem, second, Outcome.PASS)
    world.approver.approve(problem, second)
    world.release(problem, second)
    world.put_model(problem, "rollback.to", first)
    world.put_model(problem, "rollback.by", "approver")
    world.put_model(problem, "rollback.at", repr(time.time()))
    for sequence, asked in ((3, None), (4, world.audit()[-1].digest)):
        forged = msgspec.structs.replace(
            world.past(problem)[0], sequence=sequence, cause=Cause.ROLLBACK, replaces=2, asked=asked, at=time.time()
        )
        world.attach(forged)
        with pytest.raises(Refused, match="no approver has asked"):
            world.steward.move_champion(problem, first)
    assert world.steward.champion(problem) == second


def test_a_frozen_problem_promotes_nothing(world: World) -> None:
    problem, version = world.judged(Outcome.PASS)
    world.approver.approve(problem, version)
    world.approver.freeze(problem, "audit week")
    with pytest.raises(Refused, match="is frozen"):
        world.steward.move_champion(problem, version)
    with pytest.raises(Refused, match="only the approver"):
        world.steward.thaw(problem)
    world.approver.thaw(problem)
    world.release(problem, version)


# --- files --------------------------------------------------------------------------------------------------------------------


def test_files_can_be_replaced_before_registration_and_never_after(world: World) -> None:
    problem = world.problem()
    with world.mlflow("trainer") as client:
        model = client.create_logged_model(world.trainer.experiment(problem), name="x")
        root = model.artifact_location.split(":/")[1]
        world.trainer.rest.upload(f"{root}/model.json", b"first")
        world.trainer.rest.upload(f"{root}/model.json", b"second")
        made = client.create_model_version(problem, source=f"models:/{model.model_id}", model_id=model.model_id)
    with pytest.raises(Refused, match="belong to a registered version"):
        world.trainer.rest.upload(f"{root}/model.json", b"third")
    with pytest.raises(Refused, match="belong to a registered version"):
        world.trainer.rest.upload(f"{root}/another.json", b"new")
    assert world.trainer.payload(problem, made.version) == {"model.json": b"second"}


def test_no_detour_reaches_a_registered_file(world: World) -> None:
    problem, version = world.standing(Outcome.PASS)
    with world.http("trainer") as http:
        found = http.get("/api/2.0/mlflow/model-versions/get-download-uri", params={"name": problem, "version": version})
        root = found.json()["artifact_uri"].split(":/")[1]
        model = root.split("/")[2]
        before = world.trainer.payload(problem, version)
        for api in ("/api/2.0", "/ajax-api/2.0"):
            base = f"{api}/mlflow-artifacts/artifacts"
            for path in (
                f"{root}/model.json", f"{root}/./model.json", f"{root}//model.json", f"{root}/deep/../model.json",
                root.replace("models", "%6dodels") + "/model.json", root.replace("models", "%256dodels") + "/model.json",
                f"x/../{root}/model.json", f"{root}/model.json%00", f"{root}%2Fmodel.json",
            ):  # fmt: skip
                for method in ("PUT", "DELETE", "POST", "PATCH"):
                    status = http.request(method, f"{base}/{path}", content=b"evil").status_code
                    assert 400 <= status < 500 or status == 308, (method, path, status)
            for path in (root, root.rsplit("/", 1)[0], root.split("/")[0]):
                assert http.request("DELETE", f"{base}/{path}").status_code == 403
            refused(
                http.post(f"{api}/mlflow-artifacts/mpu/create/{root}/model.json", json={"path": "model.json", "num_parts": 1})
            )
        refused(http.request("DELETE", f"/api/2.0/mlflow/logged-models/{model}"))
        refused(http.post("/ajax-api/2.0/mlflow/upload-artifact", params={"run_uuid": "x", "path": "y"}, content=b"z"))
        refused(
            http.post(
                "/api/2.0/mlflow/experiments/create", json={"name": "detour", "artifact_location": f"mlflow-artifacts:/{root}"}
            )
        )
    assert world.trainer.payload(problem, version) == before


def test_everybody_writes_only_their_own_runs(world: World) -> None:
    problem = world.problem()
    run = world.steward.log_run(problem, "verdict", {"a": "1"}, {"b": 2.0}, {"c": "d"}, {"report.html": b"<p>"})
    raw = world.trainer.rest.get("/runs/get", run_id=run)["run"]
    assert {tag["key"]: tag["value"] for tag in raw["data"]["tags"]}["truing.by"] == "steward"
    for act in (
        lambda: world.trainer.rest.upload(f"{raw['info']['artifact_uri'].split(':/')[1]}/report.html", b"mine"),
        lambda: world.trainer.rest.send("POST", "/runs/set-tag", run_id=run, key="c", value="e"),
        lambda: world.trainer.rest.send("POST", "/runs/log-batch", run_id=run, metrics=[]),
        lambda: world.steward.rest.send("POST", "/runs/set-tag", run_id=run, key="truing.by", value="trainer"),
        lambda: world.steward.rest.send("POST", "/runs/delete-tag", run_id=run, key="truing.by"),
        lambda: world.trainer.log_run(problem, "mine", {}, {}, {"truing.by": "steward"}),
        lambda: world.trainer.rest.send("POST", "/runs/delete", run_id=run),
    ):
        with pytest.raises(Refused):
            act()


def test_bytes_changed_on_disk_are_not_promoted(world: World) -> None:
    problem, version = world.judged(Outcome.PASS)
    world.approver.approve(problem, version)
    root = world.trainer.rest.get("/model-versions/get-download-uri", name=problem, version=version)["artifact_uri"].split(
        ":/"
    )[1]
    (world.data / "registry" / "artifacts" / root / "model.json").write_bytes(b"evil")
    with pytest.raises(Refused, match="the verdict judged payload"):
        world.steward.move_champion(problem, version)


# --- the whole surface --------------------------------------------------------------------------------------------------------

_LIST = """
import json, os, sys
from pathlib import Path
os.environ["_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN"] = "a password for any login"
from truing.infra.keys import Keyring
from truing.infra.registry_guard.app import guarded
from truing.infra.registry_guard.asgi import native_routes
from truing.infra.settings import Settings
data = Path(sys.argv[1])
keyring = Keyring(data / "keys"); keyring.create([])
app, _ = guarded(Settings(data=data), keyring)
from mlflow.server import app as flask
print(json.dumps({
    "flask": [[r.endpoint, r.rule, sorted(r.methods)] for r in flask.url_map.iter_rules()],
    "native": [[r.function, r.path, sorted(r.methods)] for r in native_routes(app)],
    "token": [[os.environ.get("_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN", ""), "", []]],
}))
"""


@pytest.fixture(scope="session")
def surface(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str, list[str]]]]:
    data = tmp_path_factory.mktemp("surface")
    done = subprocess.run([sys.executable, "-c", _LIST, str(data)], capture_output=True, text=True, check=True)
    found: dict[str, list[tuple[str, str, list[str]]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_route_of_this_mlflow_is_known(surface: dict[str, list[tuple[str, str, list[str]]]]) -> None:
    assert surface["token"] == [["", "", []]], "what MLflow gives its own jobs opens nothing here"
    flask = {function for function, _, _ in surface["flask"]}
    native = {function for function, _, _ in surface["native"]}
    assert len(flask) > 200
    assert len(native) > 40
    known = RULED.keys() | READS | CLOSED
    assert flask - known == set(), "routes without a rule"
    assert native - (NATIVE_OURS | NATIVE_READS | NATIVE_CLOSED) == set(), "native routes without a rule"
    assert known - flask - {"static"} == set(), "rules for routes that are gone"
    assert not (RULED.keys() & READS) and not (RULED.keys() & CLOSED) and not (READS & CLOSED)


def test_reads_have_no_writing_method(surface: dict[str, list[tuple[str, str, list[str]]]]) -> None:
    """What passes unasked is GET, or one of the searches that MLflow sends as POST."""
    posts = {f for f, _, methods in surface["flask"] if f in READS and set(methods) & {"POST", "PUT", "PATCH", "DELETE"}}
    assert all("search" in f or "get" in f or "query" in f or "calculate" in f or f == "serve_post_ui_telemetry" for f in posts)


def test_no_request_makes_the_registry_fail(world: World, surface: dict[str, list[tuple[str, str, list[str]]]]) -> None:
    """Junk on every guarded route: a 5xx would make MLflow's clients try again for minutes."""
    junk: list[dict[str, Any]] = [
        {"content": b""}, {"content": b"{"}, {"json": []}, {"json": "x"}, {"json": {"name": 7, "version": {}, "key": None}},
        {"json": {"name": "no-such", "version": "1", "key": "approval", "value": "approved", "alias": "champion"}},
    ]  # fmt: skip
    with world.http("trainer") as http, world.http("approver") as other:
        for function, rule, methods in surface["flask"]:
            if function in RULED and rule.startswith("/api/"):
                path = rule
                for part in ("<model_id>", "<webhook_id>", "<tag_key>", "<path:artifact_path>"):
                    path = path.replace(part, "none")
                for method in set(methods) & {"POST", "PUT", "PATCH", "DELETE"}:
                    for n, body in enumerate(junk):
                        headers = {"content-type": "application/json"}
                        status = (http, other)[n % 2].request(method, path, headers=headers, **body).status_code
                        assert 400 <= status < 500, (method, path, body, status)


def test_what_is_not_ours_is_closed(world: World) -> None:
    with world.http("steward") as http:
        for method, path in (
            ("POST", "/api/3.0/mlflow/gateway/secrets/create"), ("POST", "/api/3.0/mlflow/traces"), ("POST", "/v1/traces"),
            ("POST", "/ajax-api/3.0/jobs/"), ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
            ("PUT", "/ajax-api/3.0/mlflow/assistant/config"), ("POST", "/api/3.0/mlflow/mcp-servers"),
            ("POST", "/gateway/openai/v1/embeddings"), ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"),
            ("POST", "/api/2.0/mlflow/experiments/delete"), ("POST", "/no/such/route"), ("PUT", "/signup"),
        ):  # fmt: skip
            assert http.request(method, path, json={}).status_code in (403, 405), path
        assert http.post("/graphql", json={"query": "{ __typename }"}).status_code == 200
        assert "reads only" in refused(
            http.post("/graphql", json={"query": 'mutation { testMutation(inputString: "x") { output } }'})
        )


def test_without_a_login_nothing_is_told(world: World) -> None:
    bare = httpx.Client(base_url=world.url, trust_env=False)
    assert bare.get("/health").status_code == 200
    assert (
        bare.post("/api/2.0/mlflow/registered-models/set-tag", json={"name": "x", "key": "frozen", "value": "1"}).status_code
        == 401
    )
    assert bare.put("/api/2.0/mlflow-artifacts/artifacts/1/x", content=b"x").status_code == 401
    assert bare.get("/api/2.0/mlflow/registered-models/search").status_code == 401
    with pytest.raises(Unavailable, match="does not know trainer"):
        Registry(world.url, "trainer", "wrong-password").model("adult")


# --- audit --------------------------------------------------------------------------------------------------------------------


def test_the_audit_holds_acts_and_refusals_and_its_chain_verifies(world: World) -> None:
    problem, version = world.standing(Outcome.BLOCK)
    with pytest.raises(Refused):
        world.trainer.move_champion(problem, version)
    lines = [line.entry for line in world.audit() if line.entry.target.startswith(f"{problem}/{version}")]
    assert lines[-1].outcome == "refused"
    assert (lines[-1].user, lines[-1].act) == ("trainer", "_set_registered_model_alias")
    assert "is blocked" in lines[-1].reason
    done = [(line.user, line.act) for line in lines if line.outcome == "done"]
    assert done == [("trainer", "version"), ("steward", "verdict")], "one line an act"
    mark = verify(world.data / "guard" / "audit.jsonl", world.keys.registry)
    assert mark.n == len(world.audit())


def test_the_audit_breaks_when_a_line_is_edited_removed_or_written_by_another(tmp_path: Path) -> None:
    key, path = new_key(), tmp_path / "audit.jsonl"
    keys = (public_key(key),)
    log = open_audit(path, key)
    for n in range(4):
        log.add("trainer", "act", f"t{n}", "done", "", float(n))
    head = log.head()
    with pytest.raises(Unavailable, match="another registry holds it"):
        open_audit(path, key)
    log.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert verify(path, keys, heads=[head]) == head

    def broken(data: bytes, words: str) -> None:
        """For whoever reads it, and for the registry that would go on with it."""
        path.write_bytes(data)
        with pytest.raises(Broken, match=words):
            verify(path, keys)
        with pytest.raises(Broken, match=words):
            open_audit(path, key)

    broken(whole.replace(b'"t1"', b'"t9"'), "record 2 was changed")
    broken(lines[0] + lines[2] + lines[3], "expected record 2 .* records are missing")
    path.write_bytes(b"")
    forger = open_audit(path, new_key())
    forger.add("trainer", "act", "t0", "done", "", 0.0)
    forger.close()
    broken(path.read_bytes(), "record 1 is not signed by the registry")

    path.write_bytes(b"".join(lines[:-1]))
    assert verify(path, keys).n == 3, "a chain alone can't show a cut tail"
    with pytest.raises(Broken, match="the tail was cut"):
        verify(path, keys, heads=[head])


def test_a_torn_last_line_is_cut_and_said(tmp_path: Path) -> None:
    key, path = new_key(), tmp_path / "audit.jsonl"
    log = open_audit(path, key)
    log.add("trainer", "act", "t", "done", "", 0.0)
    log.close()
    for rest in (b'{"entry":{"n":2', b"x" * 200_000):
        with path.open("ab") as file:
            file.write(rest)
        open_audit(path, key).close()
    assert verify(path, (public_key(key),)).n == 3
    assert [line.entry.act for line in audit_log.read(path)] == ["act", "audit.mend", "audit.mend"]


def test_an_audit_record_that_the_disk_does_not_take_was_never_there(tmp_path: Path) -> None:
    """A limit on the file's size stands in for a full disk: the kernel takes a part of the line, then says no."""
    code = """
import resource, signal, sys
from pathlib import Path
from truing.infra.registry_guard.audit import Audit
from truing.tasks.seal import new_key, public_key
key = new_key()
log = Audit(Path(sys.argv[1]), lambda: key, lambda: (public_key(key),))
log.add("trainer", "act", "t", "done", "", 0.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
try:
    log.add("trainer", "act", "lost", "done", "", 0.0)
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.add("trainer", "act", "kept", "done", "", 0.0)
log.close()
from truing.tasks.release.audit import read
print([line.entry.target for line in read(Path(sys.argv[1]))])
Audit(Path(sys.argv[1]), lambda: key, lambda: (public_key(key),)).close()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['t', 'kept']"


def open_audit(path: Path, key: bytes) -> audit_log.Audit:
    return audit_log.Audit(path, lambda: key, lambda: (public_key(key),))


# --- the light client ---------------------------------------------------------------------------------------------------------


def test_files_come_back_byte_for_byte_and_registering_again_changes_nothing(world: World) -> None:
    problem = world.problem()
    files = {
        "model.json": b'{"a":1}\n',
        "deep/er/w.safetensors": bytes(range(256)) * 50,
        "empty": b"",
    }
    made = Candidate(
        problem=problem, payload=tree_digest(files), parent=None, base="b", code="0", kind="tabular", dataset="d",
        trial=None, seed=1, origin="fast", registered=1.0,
    )  # fmt: skip
    version = world.trainer.register(problem, files, made)
    assert world.trainer.payload(problem, version) == files
    assert world.trainer.register(problem, files, made) == version
    seen = world.steward.version(problem, version)
    assert seen.candidate == made
    assert (seen.trainer, seen.payload) == ("trainer", made.payload)
    with pytest.raises(DataError, match="expected files of"):
        world.trainer.register(problem, {"other.json": b""}, made)
    for name in ("a%41.json", "../x", "/x", "a//b", "ü", "", "a/../b"):
        odd = {name: b""}
        with pytest.raises(DataError, match="file names"):
            world.trainer.register(problem, odd, msgspec.structs.replace(made, payload=tree_digest(odd)))


def test_a_verdict_comes_with_report_numbers_and_words(world: World) -> None:
    problem = world.problem()
    version, _ = world.candidate(problem)
    verdict = world.verdict(problem, version, Outcome.BLOCK)
    none = Estimate(value=None)
    seen = Evaluation(
        digest="ee" * 32, problem=problem, candidate=verdict.candidate, champion=None, none=None, anchor=None,
        rows="00", n=9000, coverage=0.95, cells=(), forgetting=none, flips=0.01, shift={}, latency_ms=1.0, size_mb=0.1,
    )  # fmt: skip
    envelope = sign(verdict, VERDICT_TYPE, world.keyring.read("gate"))
    long = "# Blocked\n" + "a line of words\n" * 1000
    run = world.steward.attach_verdict(
        problem, version, envelope, seen, long, "<p>report</p>", indicators={"womens_tpr": "-0.121"}
    )
    found = world.steward.version(problem, version)
    assert (found.outcome, found.tags["verdict.reason"], found.tags["verdict.run"]) == ("block", verdict.reason, run)
    assert json.loads(found.tags["verdict.indicators"]) == {"womens_tpr": "-0.121"}
    assert found.description.startswith("# Blocked")
    assert len(found.description) <= 5000
    info = world.steward.rest.get("/runs/get", run_id=run)["run"]["info"]
    files = world.steward.rest.tree(info["artifact_uri"].split(":/")[1])
    assert files["verdict.html"] == b"<p>report</p>"
    assert msgspec.json.decode(files["evaluation.json"], type=Evaluation) == seen


def test_a_problem_without_versions_is_empty_and_an_absent_registry_is_one_line(world: World) -> None:
    assert world.steward.versions("none-yet") == []
    assert world.steward.champion("none-yet") is None
    gone = Registry(f"http://127.0.0.1:{free_port()}", "trainer", "x")
    with pytest.raises(Unavailable, match="truing up") as caught:
        gone.versions("adult")
    assert "\n" not in str(caught.value)
    with pytest.raises(Unavailable, match=r"within 0\.2 s"):
        gone.wait(0.2)


def test_a_registry_that_cannot_start_says_why_in_one_line(world: World, tmp_path: Path) -> None:
    """A second one on the same folder, and one without keys."""
    for data, word in ((world.data, "another registry holds it"), (tmp_path, "found none; run `truing up`")):
        done = subprocess.run(
            [sys.executable, "-m", "uvicorn", "--factory", "truing.infra.registry_guard.app:create_app", "--port", "1"],
            env=settings_module.child_environment(Settings(data=data)), cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1
        assert word in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_the_word_for_changes_changes_with_every_line_of_the_audit_and_only_then(world: World) -> None:
    problem, version = world.standing(Outcome.PASS)
    before = world.steward.changes()
    world.steward.versions(problem)
    world.trainer.log_run(world.problem(), "x", {}, {})
    before = world.steward.changes()
    world.trainer.log_run(problem, "x", {}, {"a": 1.0}, files={"f": b"x"})
    assert world.steward.changes() == before, "runs and files carry no power"
    world.steward.set_tag(problem, version, "note", "x")
    written = world.steward.changes()
    assert written != before
    with pytest.raises(Refused):
        world.trainer.move_champion(problem, version)
    assert world.steward.changes() != written


def test_a_plain_mlflow_user_can_register_too(world: World) -> None:
    """No client of ours: log files as a logged model, register it."""
    problem = world.problem()
    with world.mlflow("trainer") as client:
        import mlflow

        model = client.create_logged_model(world.trainer.experiment(problem), name="plain")
        world.trainer.rest.upload(f"{model.artifact_location.split(':/')[1]}/model.json", b"plain")
        made = mlflow.register_model(f"models:/{model.model_id}", problem)
    assert world.steward.version(problem, str(made.version)).trainer == "trainer"
