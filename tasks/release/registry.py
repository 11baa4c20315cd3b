"""The registry as the loop sees it: versions of data-only models, their tags, and the acts of each office.

A registered model is a problem. Its versions carry files (safetensors and JSON) that come back byte-identical, and tags that
say everything else; the guard decides who may write which. Facts collected here are believed only after `seal.admit`.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from truing.tasks.errors import DataError, Refused, Unavailable
from truing.tasks.records import Candidate, Envelope, Evaluation, Record, Refusal, Release, Verdict
from truing.tasks.release.acts import envelope_of
from truing.tasks.release.audit import Line
from truing.tasks.release.rest import NotFound, Rest
from truing.tasks.release.versions import Model, Version, accepted_policy, open_releases, read_model, read_version
from truing.tasks.seal import Facts, Keys, canonical, tree_digest

T = TypeVar("T", bound=Record)

_FILE = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*"
)  # MLflow decodes % in names, so names stay plain
DESCRIPTION = 5000  # characters: the column's width in MLflow's database


class Registry:
    """One login at the registry. Every method may raise Unavailable, and the writes Refused with the guard's reason."""

    def __init__(
        self, url: str, user: str, password: str | Callable[[], str], *, timeout_s: float = 30.0, ca: Path | None = None
    ) -> None:
        self.rest = Rest(url, user, password, timeout_s=timeout_s, ca=ca)
        self.user = user
        self._experiments: dict[str, str] = {}

    def close(self) -> None:
        self.rest.close()

    def wait(self, seconds: float) -> None:
        """Return once the registry answers this login; raises Unavailable after `seconds`."""
        end = time.monotonic() + seconds
        while not self.rest.alive():
            if time.monotonic() > end:
                raise Unavailable(
                    f"expected the registry at {self.rest.url} within {seconds:g} s, it does not answer; see `truing status`"
                )
            time.sleep(0.1)

    # --- the trainer's act
    def register(self, problem: str, files: Mapping[str, bytes], candidate: Candidate, *, run: str | None = None) -> str:
        """A new version holding exactly `files`, with the candidate's facts as tags. Returns its number.

        Repeatable: bytes that are a version already give that version's number and change nothing.
        Raises DataError when the candidate names another payload than these files.
        """
        payload = tree_digest(files)
        if payload != candidate.payload or problem != candidate.problem:
            raise DataError(
                f"expected files of {candidate.problem} payload {candidate.payload[:12]}, got {problem} {payload[:12]}; "
                "build the candidate from these very files"
            )
        for name in files:
            if not _FILE.fullmatch(name) or ".." in name.split("/"):
                raise DataError(f"expected file names of letters, digits, . _ - and /, got {name!r}; rename it")
        self._ensure_model(problem)
        known = [version for version in self.versions(problem) if version.payload == payload]
        if known:
            return known[-1].version
        experiment = self.experiment(problem)
        body = {"experiment_id": experiment, "name": f"{problem}-{payload[:12]}", "model_type": candidate.kind}
        model = self.rest.send("POST", "/logged-models", **body, **({"source_run_id": run} if run else {}))["model"]["info"]
        root = artifact_path(model["artifact_uri"])
        for name, data in files.items():
            self.rest.upload(f"{root}/{name}", data)
        self.rest.send("PATCH", f"/logged-models/{model['model_id']}", model_id=model["model_id"], status="LOGGED_MODEL_READY")
        tags = {
            "payload": payload,
            "parent": candidate.parent or "",
            "origin": candidate.origin,
            "dataset": candidate.dataset,
            "rows": str(candidate.rows),
            "candidate": canonical(candidate).decode(),
        }
        answer = self.rest.send(
            "POST",
            "/model-versions/create",
            name=problem,
            source=f"models:/{model['model_id']}",
            model_id=model["model_id"],
            tags=[{"key": key, "value": value} for key, value in tags.items()],
        )["model_version"]
        return str(answer["version"])

    # --- reading
    def changes(self, since: str = "", wait_s: float = 0.0) -> str:
        """A word that stays the same until somebody writes (or the registry restarts): ask it before reading all again.

        With `since` and `wait_s` the answer comes at the next write, or after so many seconds. An edit behind the guard's back
        does not change the word, so look in full now and then all the same.
        """
        return self.rest.changes(since, wait_s)

    def audit(self, after: int, until: int | None = None) -> list[Line]:
        """Audit records with a number above `after`, unchecked: `audit.follow` checks them. `until` says how far at least."""
        return self.rest.audit(after, until)

    def model(self, problem: str) -> Model:
        """Tags and aliases of the problem's registered model. Raises NotFound (a DataError) before the first version."""
        return read_model(problem, self.rest.get("/registered-models/get", name=problem)["registered_model"])

    def versions(self, problem: str) -> list[Version]:
        """All versions, oldest first; [] when the problem has none yet."""
        found: list[Version] = []
        token = ""
        while True:
            page = self.rest.get(
                "/model-versions/search",
                filter=f"name='{problem}'",
                max_results=200,
                **({"page_token": token} if token else {}),
            )
            found += [read_version(problem, raw) for raw in page.get("model_versions", [])]
            token = page.get("next_page_token", "")
            if not token:
                return sorted(found, key=lambda version: version.number)

    def version(self, problem: str, version: str) -> Version:
        raw = self.rest.get("/model-versions/get", name=problem, version=version)["model_version"]
        return read_version(problem, raw)

    def payload(self, problem: str, version: str) -> dict[str, bytes]:
        """The version's files, byte for byte. Check `tree_digest` against what was signed before using them."""
        uri = self.rest.get("/model-versions/get-download-uri", name=problem, version=version)["artifact_uri"]
        return self.rest.tree(artifact_path(uri))

    def champion(self, problem: str) -> str | None:
        """The version now served, or None."""
        model = self._model(problem)
        return model.champion if model else None

    def anchor(self, problem: str) -> str | None:
        model = self._model(problem)
        return model.anchor if model else None

    def releases(self, problem: str, keys: Keys) -> list[Release]:
        """Every release whose signature holds, by rising sequence."""
        return open_releases(self.versions(problem), keys)

    def facts(self, problem: str, version: str, *, keys: Keys | None = None, files: Mapping[str, bytes] | None = None) -> Facts:
        """What this login sees of a version, freshly: bytes hashed now (or `files` already at hand), tags as they stand.

        With `keys`, an accepted policy counts only under the registry's stamp.
        """
        seen = self.version(problem, version)
        model = self.model(problem)
        held = files if files is not None else self.payload(problem, version)
        champion = self.version(problem, model.champion).payload if model.champion else None
        return Facts(
            problem=problem,
            version=version,
            payload=tree_digest(held) if held else None,
            verdict=seen.verdict,
            approval=seen.stamp,
            release=seen.release,
            policy=accepted_policy(problem, model.tags, keys) if keys else model.tags.get("policy.accepted"),
            trainer=seen.trainer,
            frozen=model.frozen,
            champion=champion,
        )

    # --- the steward's acts
    def propose_policy(self, problem: str, digest: str) -> None:
        """Put the policy before the approver. Makes the model if there is none yet."""
        self._ensure_model(problem)
        self.set_model_tag(problem, "policy.proposed", digest)

    def attach_verdict(
        self,
        problem: str,
        version: str,
        envelope: Envelope,
        evaluation: Evaluation,
        description: str,
        html: str,
        *,
        indicators: Mapping[str, str] | None = None,
    ) -> str:
        """The signed verdict and all that explains it; returns the run that holds report and evaluation as files."""
        run = self.log_verdict(problem, version, envelope, evaluation, html)
        lines = canonical(indicators or {}).decode()
        self.show_verdict(problem, version, canonical(envelope).decode(), description=description, indicators=lines, run=run)
        return run

    def log_verdict(self, problem: str, version: str, envelope: Envelope, evaluation: Evaluation, html: str) -> str:
        """A run with the verdict's report, its evaluation and the envelope as files. Returns its id."""
        verdict = _inside(envelope, Verdict)
        return self.log_run(
            problem,
            f"verdict on version {version}",
            {"version": version, "outcome": verdict.outcome.value, "look": str(evaluation.look)},
            {"rows": float(evaluation.n), "coverage": evaluation.coverage, "flips": evaluation.flips},
            {"truing.act": "verdict", "truing.version": version},
            {"verdict.html": html.encode(), "evaluation.json": canonical(evaluation), "verdict.json": canonical(envelope)},
        )

    def show_verdict(
        self,
        problem: str,
        version: str,
        envelope: str,
        *,
        description: str,
        indicators: str,
        run: str,
        seen: Version | None = None,
    ) -> None:
        """A verdict on the page where people decide: description, reason, outcome, and the envelope last.

        Whoever sees the envelope finds the rest already there. `indicators` is JSON {name: line}. What `seen` shows already is
        not written again.
        """
        verdict = _inside(envelope_of(envelope), Verdict)
        if seen is None or seen.description != fitting(description):
            self.describe(problem, version, description)
        tags = {
            "verdict.indicators": indicators,
            "verdict.run": run,
            "verdict.reason": verdict.reason,
            "verdict.outcome": verdict.outcome.value,
            "verdict": envelope,
        }
        self._show(problem, version, tags, seen)

    def attach_release(
        self,
        problem: str,
        version: str,
        envelope: Envelope | str,
        *,
        newest: bool = True,
        seen: Version | None = None,
    ) -> None:
        """The signed statement: as `release.<sequence>`, kept for ever, and as `release` if it is the version's newest."""
        text = envelope if isinstance(envelope, str) else canonical(envelope).decode()
        name = f"release.{_inside(envelope_of(text), Release).sequence}"
        self._show(problem, version, {name: text, "release": text} if newest else {name: text}, seen)

    def attach_head(self, problem: str, envelope: Envelope | str) -> None:
        """The steward's word for what is newest."""
        self.set_model_tag(problem, "release.head", envelope if isinstance(envelope, str) else canonical(envelope).decode())

    def _show(self, problem: str, version: str, tags: Mapping[str, str], seen: Version | None) -> None:
        for key, value in tags.items():
            if seen is None or seen.tags.get(key) != value:
                self.set_tag(problem, version, key, value)

    def move_champion(self, problem: str, version: str) -> None:
        """Serve this version. The guard asks `admit` once more and refuses with its reason."""
        self.rest.send("POST", "/registered-models/alias", name=problem, alias="champion", version=version)

    def describe(self, problem: str, version: str, text: str) -> None:
        """The version's description (Markdown), as much of it as fits."""
        self.rest.send("PATCH", "/model-versions/update", name=problem, version=version, description=fitting(text))

    # --- a person's acts
    def approve(self, problem: str, version: str, reason: str = "") -> Version:
        """Approve the version's present verdict. Raises Refused with the reason when it can't be."""
        return self._decide(problem, version, "approved", reason)

    def reject(self, problem: str, version: str, reason: str = "") -> Version:
        return self._decide(problem, version, "rejected", reason)

    def revoke(self, problem: str, version: str, reason: str = "") -> Version:
        return self._decide(problem, version, "revoked", reason)

    def _decide(self, problem: str, version: str, decision: str, reason: str) -> Version:
        if reason:
            self.set_tag(problem, version, "approval.reason", reason)
        self.set_tag(problem, version, "approval", decision)
        return self.version(problem, version)

    def accept_policy(self, problem: str, digest: str | None = None) -> str:
        """Accept the proposed policy. With `digest`, only if it is that one. Returns the digest."""
        proposed = self.model(problem).tags.get("policy.proposed")
        if not proposed:
            raise Refused(
                Refusal(code="policy.none", reason=f"no policy of {problem} is proposed", remedy="wait for the steward")
            )
        self.set_model_tag(problem, "policy.accepted", digest or proposed)
        return digest or proposed

    def set_anchor(self, problem: str, version: str, reason: str) -> None:
        """Pin the version against which many small steps are summed."""
        self.set_model_tag(problem, "anchor.reason", reason)
        self.set_model_tag(problem, "anchor", version)

    def request_rollback(self, problem: str, version: str, reason: str) -> None:
        """Ask the steward to serve an earlier version again."""
        self.set_model_tag(problem, "rollback.reason", reason)
        self.set_model_tag(problem, "rollback.to", version)

    def freeze(self, problem: str, reason: str) -> None:
        self.set_model_tag(problem, "frozen", reason or "true")

    def thaw(self, problem: str) -> None:
        self.set_model_tag(problem, "frozen", "false")

    # --- tags and runs
    def set_tag(self, problem: str, version: str, key: str, value: str) -> None:
        self.rest.send("POST", "/model-versions/set-tag", name=problem, version=version, key=key, value=value)

    def set_model_tag(self, problem: str, key: str, value: str) -> None:
        self.rest.send("POST", "/registered-models/set-tag", name=problem, key=key, value=value)

    def experiment(self, name: str) -> str:
        """Id of the experiment of that name, made on first use."""
        if name not in self._experiments:
            try:
                found = self.rest.get("/experiments/get-by-name", experiment_name=name)["experiment"]
            except NotFound:
                found = self.rest.send("POST", "/experiments/create", name=name)
            self._experiments[name] = str(found["experiment_id"])
        return self._experiments[name]

    def log_run(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> str:
        """A finished run with what is given: the study's summary, a verdict's report. Returns its id."""
        experiment_id = self.experiment(experiment)
        now = int(self.rest.clock() * 1000)
        info = self.rest.send(
            "POST",
            "/runs/create",
            experiment_id=experiment_id,
            run_name=name,
            start_time=now,
            tags=[{"key": key, "value": value} for key, value in (tags or {}).items()],
        )["run"]["info"]
        self.rest.send(
            "POST",
            "/runs/log-batch",
            run_id=info["run_id"],
            params=[{"key": key, "value": str(value)[:6000]} for key, value in params.items()],
            metrics=[{"key": key, "value": value, "timestamp": now, "step": 0} for key, value in metrics.items()],
        )
        root = artifact_path(info["artifact_uri"])
        for path, data in (files or {}).items():
            self.rest.upload(f"{root}/{path}", data)
        self.rest.send("POST", "/runs/update", run_id=info["run_id"], status="FINISHED", end_time=int(self.rest.clock() * 1000))
        return str(info["run_id"])

    # --- inside
    def _model(self, problem: str) -> Model | None:
        try:
            return self.model(problem)
        except NotFound:
            return None

    def _ensure_model(self, problem: str) -> None:
        if self._model(problem) is None:
            try:
                self.rest.send("POST", "/registered-models/create", name=problem)
            except DataError:  # another process made it in between
                self.model(problem)


def fitting(text: str) -> str:
    """A description cut at the last whole line that fits."""
    return text if len(text) <= DESCRIPTION else text[: DESCRIPTION - 40].rsplit("\n", 1)[0] + "\n\n(more in the report)"


def _inside(envelope: Envelope | None, kind: type[T]) -> T:
    """The record in an envelope of our own making, unchecked. Raises DataError if it is another record."""
    if envelope is None:
        raise DataError(f"expected an envelope with a {kind.__name__}, got other text; sign the right record")
    try:
        return msgspec.json.decode(base64.b64decode(envelope.payload), type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(f"expected an envelope with a {kind.__name__}, got {error}; sign the right record") from None


def artifact_path(uri: str) -> str:
    """`mlflow-artifacts:/1/models/m-x/artifacts` → `1/models/m-x/artifacts`. Raises Unavailable for other stores."""
    scheme, _, path = uri.partition(":")
    if scheme != "mlflow-artifacts":
        raise Unavailable(f"expected artifacts served by the registry, got {scheme}:…; start it with `truing up`")
    return path.lstrip("/")
