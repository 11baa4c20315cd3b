"""What the gateway does with a question and with feedback: answer, prove, record. No HTTP in here."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np

from truing.infra.broker import address, connection
from truing.infra.catalog import catalog
from truing.infra.gateway.feedback import check, read_items
from truing.infra.gateway.loader import Loader
from truing.infra.gateway.sampler import Sampler
from truing.infra.gateway.served import Served, Shelf
from truing.infra.gateway.shelf import RegistryShelf
from truing.infra.gateway.tensors import OWN, Question, column, read_question
from truing.infra.keys import Keyring, following_password, following_public
from truing.infra.outbox import Outbox
from truing.infra.sender import Message, Sender
from truing.infra.settings import Settings
from truing.infra.watermark import Watermark
from truing.tasks import seal
from truing.tasks.errors import TruingError, Unavailable
from truing.tasks.events.schema import GATEWAY, encode_event, token
from truing.tasks.kinds.protocol import Answers
from truing.tasks.problem import Problem, seconds
from truing.tasks.release.registry import Registry

OFFICE = "gateway"  # whose keys this is, and its login at the registry
VARIANT = "champion"


def registry_shelf(settings: Settings, keyring: Keyring) -> RegistryShelf:
    """The registry's, under a login whose password is asked before each request: a rotation needs no restart."""
    password = following_password(keyring, OFFICE)
    password()
    return RegistryShelf(Registry(settings.registry_url, OFFICE, password, timeout_s=10.0, ca=settings.tls.ca))


class Service:
    """State of one gateway process. All methods but start and stop may be called from any thread."""

    def __init__(
        self, settings: Settings, *, clock: Callable[[], float], log: Callable[[str], None], shelf: Shelf | None = None
    ) -> None:
        """`shelf` is where releases are looked for; by default the registry of the settings. Raises TruingError in one line."""
        self.settings = settings
        self.clock = clock
        self.version = version("truing")
        known = catalog(settings.problems)
        self.problems: dict[str, Problem] = {name: problem for name, (problem, _) in known.items()}
        self.policies = {name: policy for name, (_, policy) in known.items()}
        keyring = Keyring(settings.keys, OFFICE)
        public = following_public(keyring)
        public()  # a missing key ends the process now, not at the first release
        self._wire = keyring.read("wire")
        self.sampler = Sampler(self._wire)
        self._schemas = {name: seal.digest(problem.inputs)[:16] for name, problem in self.problems.items()}
        self.loader = Loader(
            self.problems,
            shelf or registry_shelf(settings, keyring),
            keys=public,
            folder=settings.data / "gateway",
            poll_s=settings.gateway.poll_s,
            clock=clock,
            log=log,
        )
        self._watermark = Watermark(connection(settings), settings.kafka.group, settings.kafka.topic)
        self.outbox = Outbox(
            settings.data / "outbox" / "gateway",
            Sender(settings.kafka.topic, connection(settings), knocks=True),
            keep_s=settings.gateway.keep_s,
            watermark=self._watermark,
            most_s=settings.gateway.keep_most_s,
            sync=settings.gateway.sync,
            sentinel=address(settings) if settings.kafka.broker == "embedded" else None,
            log=log,
        )
        self.started = clock()
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        self.outbox.start()
        self.loader.start()

    def stop(self) -> None:
        self.loader.stop()
        self.outbox.close()
        self._watermark.close()

    def alive(self) -> bool:
        return self.outbox.alive and self.loader.alive

    def ready(self, name: str) -> bool:
        served = self.loader.served(name)
        return served is not None and not served.expired(self.clock())

    def failed(self, status: int) -> None:
        """Count an answer that was none."""
        self._counts[f"errors.{status}"] += 1

    # --- predictions
    def infer(self, problem: Problem, body: bytes) -> bytes:
        """JSON of the answer. Its events are in the outbox when this returns; raises DataError, or Unavailable.

        With each answer goes the token that lets people speak about it. An id that was made here is never answered again, so
        its token goes to the one who asked. An id that the caller made is answered as often as it is asked (a resend needs
        its token too), so it is as secret as the caller keeps it: use ids that nobody can guess.
        """
        question = read_question(body, problem, max_rows=self.settings.gateway.max_rows)
        now = self.clock()
        served = self._served(problem, now)
        answers = served.model.predict(question.rows)
        if not np.isfinite(answers.probabilities).all():
            raise TruingError(f"release {served.name} answered with a number that is none; roll back with `truing rollback`")
        ids = [given or f"{OWN}{uuid.uuid4().hex}" for given in question.ids]
        self.outbox.append(self._events(served, question, answers, ids, now))
        expires = now + seconds(problem.maturity.token)
        positive = answers.probabilities[:, problem.labels.index(problem.positive)]
        self._counts["requests"] += 1
        self._counts["rows"] += len(ids)
        answer: dict[str, Any] = {
            "model_name": problem.name,
            "model_version": served.release.version,
            "parameters": {"sequence": served.release.sequence, "release": served.name, "variant": VARIANT},
            "outputs": [
                column("label", "BYTES", answers.labels),
                column("probability", "FP64", positive.tolist()),
                column("confidence", "FP64", answers.confidence.tolist()),
                column("prediction_id", "BYTES", ids),
                column("token", "BYTES", [token(self._wire, problem.name, name, expires) for name in ids]),
            ],
        }
        if question.id is not None:
            answer["id"] = question.id
        return msgspec.json.encode(answer)

    def _served(self, problem: Problem, now: float) -> Served:
        served = self.loader.served(problem.name)
        if served is None:
            withdrawn = self.loader.withdrawn(problem.name)
            if withdrawn is not None:
                raise Unavailable(f"{problem.name} is {withdrawn}; it answers again with the next release")
            why = self.loader.refusal(problem.name) or self.loader.registry_error or "the registry names no champion"
            raise Unavailable(f"no release of {problem.name} is served yet: {why}; see `truing status`")
        if served.expired(now):
            raise Unavailable(f"release {served.name} has expired; release it again with `truing release`")
        return served

    def _events(self, served: Served, question: Question, answers: Answers, ids: list[str], now: float) -> list[Message]:
        """One prediction event a row. The event is named after its prediction, so a repeated question lands once."""
        problem, labels = served.problem.name, served.model.problem_labels
        schema = self._schemas[problem]
        sampled = self.sampler.draw(served.problem, self.policies[problem], ids, question.groups)
        self._counts["audited"] += sum(drawn for _, drawn in sampled)
        return [
            encode_event(
                "prediction",
                problem=problem,
                source=GATEWAY,
                data={
                    "inputs": inputs,
                    "groups": groups,
                    "answer": {
                        "label": label,
                        "confidence": min(confidence, 1.0),
                        "probabilities": dict(zip(labels, probabilities, strict=True)),
                    },
                    "release": served.name,
                    "variant": VARIANT,
                    "propensity": chance,
                    "audit": drawn,
                    "schema": schema,
                },
                time=now,
                id=f"prediction:{name}",
                prediction_id=name,
                subject=subject,
                actor_kind="source",
                source_key=self._wire,
            )
            for inputs, groups, subject, name, label, confidence, probabilities, (chance, drawn) in zip(
                question.rows,
                question.groups,
                question.subjects,
                ids,
                answers.labels,
                answers.confidence.tolist(),
                np.clip(answers.probabilities, 0.0, 1.0).tolist(),
                sampled,
                strict=True,
            )
        ]

    # --- feedback
    def feedback(self, body: bytes) -> dict[str, Any]:
        """Publish what is believed; say of the rest why not. Raises DataError only when the body is no list."""
        now = self.clock()
        messages: list[Message] = []
        refusals: list[dict[str, Any]] = []
        items = read_items(body, most=self.settings.gateway.max_rows)
        for at, raw in enumerate(items):
            told = check(raw, problems=self.problems, wire=self._wire, now=now)
            if isinstance(told, tuple):
                messages.append(told)
            else:
                refusals.append({"item": at, "code": told.code, "error": str(told)})
        if messages:
            self.outbox.append(messages)
        self._counts["feedback"] += len(messages)
        self._counts["feedback.refused"] += len(refusals)
        return {"accepted": len(messages), "refused": len(refusals), "refusals": refusals}

    # --- status
    def status(self) -> dict[str, Any]:
        """What `truing status` and a dashboard want to know. Times are Unix seconds, sizes bytes."""
        return {
            "started": self.started,
            "problems": {name: self._problem_status(name) for name in self.problems},
            "requests": self._counts["requests"],
            "rows": self._counts["rows"],
            "audited": self._counts["audited"],
            "feedback": {"accepted": self._counts["feedback"], "refused": self._counts["feedback.refused"]},
            "errors": {key.partition(".")[2]: n for key, n in sorted(self._counts.items()) if key.startswith("errors.")},
            "outbox": {
                "waiting": self.outbox.waiting,
                "kept": self.outbox.kept,
                "bytes": self.outbox.kept_bytes,
                "published": self.outbox.published,
                "last_publish": self.outbox.last_publish,
                "error": self.outbox.last_error,
            },
            "registry": self.loader.registry_error or "ok",
        }

    def _problem_status(self, name: str) -> dict[str, Any]:
        served = self.loader.served(name)
        release = served.release if served else None
        return {
            "ready": self.ready(name),
            "release": served.name if served else None,
            "sequence": release.sequence if release else None,
            "version": release.version if release else None,
            "payload": release.payload if release else None,
            "cause": release.cause if release else None,
            "expires": release.expires if release else None,
            "since": served.since if served else None,
            "floor": self.loader.floor(name),
            "withdrawn": self.loader.withdrawn(name),
            "refusal": self.loader.refusal(name) or self.loader.withdrawn(name),
        }
