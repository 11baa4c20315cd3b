"""For applications: ask the gateway, say what people thought of the answer, and send what became true later.

    with Client("adult") as client:
        answer = client.predict([row], subjects=["person-17"], groups=[{"sex": "Female"}])[0]
        client.correct(answer, ">50K", actor="clerk-4")

    with Client("adult", source="outcomes", source_key=key, kafka={"bootstrap_servers": "broker:9092"}) as client:
        client.outcome(answer.prediction_id, ">50K")     # batched; arrived when flush returns

Questions and people's words go through the gateway, over HTTP. A registered source (problem.toml) signs with a key of its own
and writes to Kafka itself. Sending the same thing again is safe: an event is named after its content, and lands once.
"""

from __future__ import annotations

import time as clock
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from truing.infra.sender import Message, Sender
from truing.infra.words import Answer, Declined, Receipt, Scalar, Word, correction, interaction, rating
from truing.tasks.errors import DataError, Unavailable, UsageError
from truing.tasks.events.schema import MAX_BYTES, encode_event
from truing.tasks.release.trust import authority, untrusted

if TYPE_CHECKING:
    from types import TracebackType

    from truing.infra.settings import Settings

__all__ = ["Answer", "Client", "Declined", "Receipt", "Word", "correction", "interaction", "rating"]

BATCH = 5000  # rows or words in one request
CHUNK = 2000  # messages sent to Kafka at once


class Client:
    """One problem, one application. Not for several threads at once."""

    def __init__(
        self,
        problem: str,
        *,
        gateway: str = "http://127.0.0.1:8480",
        source: str | None = None,
        source_key: bytes | None = None,
        kafka: Mapping[str, Any] | None = None,
        topic: str = "user-events",
        timeout_s: float = 10.0,
        ca: Path | None = None,
    ) -> None:
        """`source`, its key and `kafka` (kafka-python's connection options) are needed by sources only.

        `timeout_s` bounds one request, and how long a gateway that restarts is waited for. `ca` is the PEM authority that an
        https gateway proves itself by, if it is not a public one.
        """
        self.problem = problem
        self._gateway = gateway.rstrip("/")
        self._timeout_s = timeout_s
        self._ca = ca
        self._source = source
        self._source_key = source_key
        self._sender = Sender(topic, dict(kafka), timeout_s=timeout_s) if kafka else None
        self._http: Any = None
        self._waiting: list[Message] = []
        self._acknowledged = 0

    @classmethod
    def of(cls, settings: Settings, problem: str, *, source: str | None = None, timeout_s: float = 10.0) -> Client:
        """The client of a stack on this machine; with `source`, its key is read from the stack's keyring."""
        from truing.infra.broker import connection
        from truing.infra.keys import keyring

        return cls(
            problem,
            gateway=settings.gateway_url,
            source=source,
            source_key=keyring(settings).source(problem, source) if source else None,
            kafka=connection(settings),
            topic=settings.kafka.topic,
            timeout_s=timeout_s,
            ca=settings.tls.ca,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Send what is waiting, then let go of the connections. Raises Unavailable if it could not be sent."""
        try:
            self.flush()
        finally:
            if self._sender is not None:
                self._sender.close()
            if self._http is not None:
                self._http.close()
                self._http = None

    # --- asking
    def predict(
        self,
        rows: Sequence[Mapping[str, Scalar]],
        *,
        subjects: Sequence[str | None] | None = None,
        groups: Sequence[Mapping[str, Scalar]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Answer]:
        """Answers in the order of `rows`; lists beside it have the same length.

        `subjects` are the people judged, `groups` their protected attributes: kept beside the question, never shown to the
        model. `ids` name the predictions (default: made here), so that a question asked again after a broken connection
        counts once. Raises DataError when the gateway refuses the rows, Unavailable when there is no answer.
        """
        for name, beside in (("subjects", subjects), ("groups", groups), ("ids", ids)):
            if beside is not None and len(beside) != len(rows):
                raise DataError(f"{name}: expected {len(rows)} like the rows, got {len(beside)}; give one for each row")
        names = list(ids) if ids is not None else [uuid.uuid4().hex for _ in rows]
        answers: list[Answer] = []
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            tensors = [*_tensors(rows[part]), _tensor("prediction_id", names[part])]
            if subjects is not None:
                tensors.append(_tensor("subject", list(subjects[part])))
            if groups is not None:
                tensors += _tensors(groups[part], prefix="group:")
            answers += _answers(self._post(f"/v2/models/{self.problem}/infer", {"inputs": tensors}))
        return answers

    # --- people's words
    def rate(self, answer: Answer, value: float, actor: str, *, time: float | None = None) -> None:
        """`value` 0..1. Raises DataError when the gateway does not believe it."""
        self._say(rating(answer, value, actor, time=time))

    def correct(self, answer: Answer, label: str, actor: str, *, time: float | None = None) -> None:
        """`label` is what it should have been. Raises DataError when the gateway does not believe it."""
        self._say(correction(answer, label, actor, time=time))

    def interact(self, answer: Answer, kind: str, actor: str, *, value: float | None = None, time: float | None = None) -> None:
        """What somebody did with the answer. Raises DataError when the gateway does not believe it."""
        self._say(interaction(answer, kind, actor, value=value, time=time))

    def feedback(self, words: Sequence[Word]) -> Receipt:
        """Many words at once: how many were taken, and why the others were not. Raises Unavailable."""
        accepted, refusals = 0, []
        for start in range(0, len(words), BATCH):
            part = [msgspec.structs.replace(word, problem=self.problem) for word in words[start : start + BATCH]]
            told = msgspec.convert(self._post("/feedback", part), Receipt)
            accepted += told.accepted
            refusals += [msgspec.structs.replace(one, item=one.item + start) for one in told.refusals]
        return Receipt(accepted, refusals)

    def _say(self, word: Word) -> None:
        for refusal in self.feedback([word]).refusals:
            raise DataError(refusal.error)

    # --- a source's word
    def outcome(self, prediction_id: str, label: str, *, time: float | None = None) -> None:
        """What became true of a prediction; `time` is when (Unix seconds, default now). Queued: see `flush`."""
        self._queue("outcome", {"label": label}, prediction_id, time)

    def review(self, prediction_id: str, label: str, *, reviewer: str | None = None, time: float | None = None) -> None:
        """A blind audit's label: the reviewer saw no answer of a model."""
        self._queue("review", {"label": label}, prediction_id, time, actor=reviewer)

    def attribute(self, prediction_id: str, groups: Mapping[str, Scalar], *, time: float | None = None) -> None:
        """Protected attributes that came late."""
        self._queue("attribute", {"groups": dict(groups)}, prediction_id, time)

    def backfill_prediction(
        self,
        prediction_id: str,
        inputs: Mapping[str, Scalar],
        *,
        subject: str | None = None,
        groups: Mapping[str, Scalar] | None = None,
        answer: Mapping[str, Any] | None = None,
        time: float | None = None,
    ) -> None:
        """A case from elsewhere: asked at `time`, answered by nobody, or by another system with
        `answer` {"label", "confidence", "probabilities": {label: p}}."""
        data = {"inputs": dict(inputs), "groups": dict(groups or {}), "answer": dict(answer) if answer else None}
        self._queue("prediction", data, prediction_id, time, subject=subject)

    def flush(self, *, timeout_s: float = 30.0) -> int:
        """Returns when the brokers hold everything queued (acks=all): how many messages since the last flush.

        Raises Unavailable when that takes longer than `timeout_s`; what was not acknowledged stays queued, so flush can be
        called again.
        """
        end = clock.monotonic() + timeout_s
        while self._waiting:
            try:
                self._push()
            except Unavailable as error:
                if clock.monotonic() + 0.5 > end:
                    raise Unavailable(f"{error} ({len(self._waiting)} events wait; call flush again)") from None
                clock.sleep(0.5)
        done, self._acknowledged = self._acknowledged, 0
        return done

    @property
    def waiting(self) -> int:
        """Events queued here and not acknowledged yet."""
        return len(self._waiting)

    def _push(self) -> None:
        if self._sender is None:
            raise UsageError("expected a Client with kafka={'bootstrap_servers': …}, got none; a source writes to Kafka itself")
        chunk = self._waiting[:CHUNK]
        self._sender.publish(chunk)
        del self._waiting[: len(chunk)]
        self._acknowledged += len(chunk)

    def _queue(
        self,
        kind: str,
        data: Mapping[str, Any],
        prediction_id: str,
        time: float | None,
        *,
        subject: str | None = None,
        actor: str | None = None,
    ) -> None:
        if self._source is None or self._source_key is None:
            raise UsageError(
                f"expected a Client with source and source_key to send a {kind}, got none; see [sources] in problem.toml"
            )
        message = encode_event(
            kind,
            problem=self.problem,
            source=self._source,
            data=data,
            time=clock.time() if time is None else time,
            prediction_id=prediction_id,
            subject=subject,
            actor=actor,
            actor_kind="person" if actor else "source",
            source_key=self._source_key,
        )
        if len(message[1]) > MAX_BYTES:
            raise DataError(f"expected an event of at most {MAX_BYTES} bytes, got {len(message[1])}; shorten its texts")
        self._waiting.append(message)
        if len(self._waiting) >= CHUNK:
            self._push()

    # --- HTTP
    def _post(self, path: str, body: Any) -> Any:
        import httpx

        if self._http is None:
            verify = True if self._ca is None else authority(self._ca)
            self._http = httpx.Client(base_url=self._gateway, timeout=self._timeout_s, trust_env=False, verify=verify)
        content = msgspec.json.encode(body)
        end = clock.monotonic() + self._timeout_s
        while True:
            try:
                response = self._http.post(path, content=content, headers={"Content-Type": "application/json"})
                break
            except httpx.HTTPError as error:  # asking twice is safe: prediction ids and times are in the body
                if (doubt := untrusted(error)) is not None:
                    raise Unavailable(f"expected to trust the gateway at {self._gateway}, got: {doubt}; correct `ca`") from None
                if isinstance(error, httpx.TimeoutException) or clock.monotonic() > end:
                    raise Unavailable(
                        f"expected an answer of the gateway at {self._gateway}, got {type(error).__name__}; see `truing status`"
                    ) from None
                clock.sleep(0.2)
        if response.status_code == 200:
            return msgspec.json.decode(response.content)
        try:
            told = str(msgspec.json.decode(response.content, type=dict[str, Any])["error"])
        except (msgspec.DecodeError, KeyError):
            told = f"the gateway at {self._gateway} answered {response.status_code}; see `truing status`"
        raise (DataError if 400 <= response.status_code < 500 else Unavailable)(told)


def _tensor(name: str, data: list[Any]) -> dict[str, Any]:
    """A column with the datatype of its values; nulls take part in none."""
    kinds = {type(value) for value in data if value is not None}
    datatype = "BYTES" if kinds <= {str} else "INT64" if kinds <= {int} else "FP64"
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


def _tensors(rows: Sequence[Mapping[str, Scalar]], *, prefix: str = "") -> list[dict[str, Any]]:
    """Rows as columns. A key that some rows lack is null there; a column of nulls is left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return [_tensor(prefix + name, data) for name, data in columns.items() if any(value is not None for value in data)]


def _answers(told: Any) -> list[Answer]:
    """The response's tensors as records. Raises Unavailable when it is none of ours."""
    try:
        outputs = {tensor["name"]: tensor["data"] for tensor in told["outputs"]}
        names = ("prediction_id", "token", "label", "probability", "confidence")
        version, sequence = told["model_version"], told["parameters"]["sequence"]
        return [
            Answer(**dict(zip(names, row, strict=True)), version=version, sequence=sequence)
            for row in zip(*(outputs[name] for name in names), strict=True)
        ]
    except (KeyError, TypeError, ValueError):
        raise Unavailable(
            "expected label, probability and token of each row, got another answer; is this the gateway?"
        ) from None
