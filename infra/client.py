"""For applications: ask the gateway, say what people thought of the answer, and send what became true later.

    from truing.client import Client

    with Client("adult") as client:
        answer = client.predict([row], subjects=["person-17"], groups=[{"sex": "Female"}])[0]
        client.correct(answer, ">50K", actor="clerk-4")          # a person's word, believed for the answer's token

    with Client("adult", source="outcomes", source_key=key, kafka={"bootstrap_servers": "broker:9092"}) as client:
        client.outcome(answer.prediction_id, ">50K")             # a source's word; with the brokers when flush returns

    client = Client("adult", source="outcomes", source_key=key, kafka=kafka, outbox=Path("/var/lib/app/outbox"))
    client.outcome(answer.prediction_id, ">50K")                 # on the disk when this returns; sent by a thread

Questions and people's words go through the gateway, over HTTP. A registered source (problem.toml) signs with a key of its own
and writes to Kafka itself. Sending the same thing again is safe: an event is named after its content, and lands once.
With asyncio: `await asyncio.to_thread(client.predict, rows)`.
"""

from __future__ import annotations

import threading
import time as clock
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from truing.infra.asking import Asker, answers, tensor, tensors
from truing.infra.queues import InMemory, OnDisk, Queue, WordsOut, on_disk
from truing.infra.sender import Sender
from truing.infra.words import Answer, Declined, Receipt, Scalar, Word, correction, interaction, rating
from truing.tasks.errors import DataError, UsageError
from truing.tasks.events.schema import MAX_BYTES, encode_event

if TYPE_CHECKING:
    from types import TracebackType

    from truing.infra.settings import Settings
    from truing.tasks.events.avro import Codec

__all__ = ["Answer", "Client", "Declined", "Receipt", "Word", "correction", "interaction", "rating"]

BATCH = 5000  # rows or words in one request


class Client:
    """One problem, one application. May be used by several threads at once; not across a fork."""

    def __init__(
        self,
        problem: str,
        *,
        gateway: str = "http://127.0.0.1:8480",
        source: str | None = None,
        source_key: bytes | None = None,
        kafka: Mapping[str, Any] | None = None,
        topic: str = "user-events",
        group: str = "truing",
        embedded: bool = False,
        avro: Codec | None = None,
        outbox: Path | None = None,
        sync: bool = True,
        timeout_s: float = 10.0,
        ca: Path | None = None,
    ) -> None:
        """`source`, its key and `kafka` (kafka-python's connection options) are needed by sources only.

        `outbox` is a folder of this process alone: what is said is in it before the call returns (`sync`: on the disk itself,
        so a power cut takes nothing), is sent from there, again after a crash of this process or of the broker, and leaves it
        when the lake has it, which the keepers of `group` tell. `embedded`: the broker is the one of `truing up`, which forgets
        its last second when it is killed. `timeout_s` bounds one request, and how long a gateway that restarts is waited for.
        `ca` is the PEM authority that an https gateway proves itself by, if it is not a public one. `avro` writes a source's
        events as Avro. Raises Unavailable when the outbox is not ours to write.
        """
        self.problem = problem
        self._source = source
        self._source_key = source_key
        self._encode = encode_event if avro is None else avro.write
        self._asker = Asker(gateway, timeout_s=timeout_s, ca=ca)
        self._guard = threading.Lock()
        self._events: Queue | None = None
        self._words: OnDisk | None = None
        self._said: WordsOut | None = None
        self._watermark: Any = None
        self._events_box: OnDisk | None = None
        if kafka and outbox is None:
            self._events = InMemory(Sender(topic, dict(kafka), timeout_s=timeout_s))
        elif kafka and outbox is not None:
            from truing.infra.watermark import Watermark

            self._watermark = Watermark(kafka, group, topic)
            self._events = self._events_box = on_disk(
                outbox / "events",
                Sender(topic, dict(kafka), timeout_s=timeout_s, knocks=True),
                keep_s=60.0,
                sync=sync,
                sentinel=_address(kafka) if embedded else None,
                watermark=self._watermark,
            )
        if outbox is not None:
            self._said = WordsOut(Asker(gateway, timeout_s=timeout_s, ca=ca))
            self._words = on_disk(outbox / "words", self._said, keep_s=0.0, sync=sync)

    @classmethod
    def of(
        cls,
        settings: Settings,
        problem: str,
        *,
        source: str | None = None,
        outbox: Path | None = None,
        timeout_s: float = 10.0,
    ) -> Client:
        """The client of a stack on this machine; with `source`, its key is read from the stack's keyring."""
        from truing.infra.broker import connection
        from truing.infra.keys import keyring
        from truing.infra.schema_registry import codec_of

        return cls(
            problem,
            gateway=settings.gateway_url,
            source=source,
            source_key=keyring(settings).source(problem, source) if source else None,
            kafka=connection(settings),
            topic=settings.kafka.topic,
            group=settings.kafka.group,
            embedded=settings.kafka.broker == "embedded",
            avro=codec_of(settings),
            outbox=outbox,
            timeout_s=timeout_s,
            ca=settings.tls.ca,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Send what is waiting, then let go of the connections. Raises Unavailable if it could not be sent.

        With an outbox nothing is raised: what could not be sent in five seconds stays there, for the next client of it.
        """
        try:
            if self._events is not None:
                self._events.close()
        finally:
            if self._words is not None:
                self._words.close()
            if self._watermark is not None:
                self._watermark.close()
            self._asker.close()

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
        found: list[Answer] = []
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            columns = [*tensors(rows[part]), tensor("prediction_id", names[part])]
            if subjects is not None:
                columns.append(tensor("subject", list(subjects[part])))
            if groups is not None:
                columns += tensors(groups[part], prefix="group:")
            found += answers(self._asker.post(f"/v2/models/{self.problem}/infer", {"inputs": columns}))
        return found

    # --- people's words
    def rate(self, answer: Answer, value: float, actor: str, *, time: float | None = None) -> None:
        """`value` 0 (useless) .. 1 (right). Raises DataError when the gateway does not believe it (see `refused`)."""
        self._say(rating(answer, value, actor, time=time))

    def correct(self, answer: Answer, label: str, actor: str, *, time: float | None = None) -> None:
        """`label` is what it should have been. Raises DataError when the gateway does not believe it (see `refused`)."""
        self._say(correction(answer, label, actor, time=time))

    def interact(self, answer: Answer, kind: str, actor: str, *, value: float | None = None, time: float | None = None) -> None:
        """What somebody did with the answer. Raises DataError when the gateway does not believe it (see `refused`)."""
        self._say(interaction(answer, kind, actor, value=value, time=time))

    def feedback(self, words: Sequence[Word]) -> Receipt:
        """Many words at once, past any outbox: how many were taken, and why the others were not. Raises Unavailable."""
        accepted, refusals = 0, []
        for start in range(0, len(words), BATCH):
            part = [msgspec.structs.replace(word, problem=self.problem) for word in words[start : start + BATCH]]
            told = msgspec.convert(self._asker.post("/feedback", part), Receipt)
            accepted += told.accepted
            refusals += [msgspec.structs.replace(one, item=one.item + start) for one in told.refusals]
        return Receipt(accepted, refusals)

    def refused(self) -> list[tuple[Word, Declined]]:
        """Words that left the outbox and were not believed, with the reason; the last thousand, each told once."""
        taken = []
        while self._said is not None and self._said.refused:
            taken.append(self._said.refused.popleft())
        return taken

    def _say(self, word: Word) -> None:
        if self._words is not None:
            self._words.put([(b"", msgspec.json.encode(msgspec.structs.replace(word, problem=self.problem)))])
            return
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

    def prefer(
        self,
        prompt: str,
        chosen: str,
        rejected: str,
        *,
        actor: str | None = None,
        subject: str | None = None,
        prediction_id: str | None = None,
        time: float | None = None,
    ) -> None:
        """Of two answers to one prompt `actor` chose one. Needs no prediction; `subject` is whom the texts are about."""
        data = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        self._queue("preference", data, prediction_id, time, subject=subject, actor=actor)

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
        """Returns when the brokers hold every event queued (acks=all): how many since the last flush. With an outbox, also
        when the gateway has every word.

        Raises Unavailable when that takes longer than `timeout_s`; what was not acknowledged stays queued, so flush can be
        called again.
        """
        end = clock.monotonic() + timeout_s
        done = self._events.flush(timeout_s) if self._events is not None else 0
        return done + (self._words.flush(max(0.0, end - clock.monotonic())) if self._words is not None else 0)

    @property
    def waiting(self) -> int:
        """Events and words queued here and not acknowledged yet."""
        return sum(queue.waiting for queue in (self._events, self._words) if queue is not None)

    @property
    def kept(self) -> int:
        """Events that the outbox still holds, because the lake does not have them as far as is known. 0 without an outbox."""
        return self._events_box.box.kept if self._events_box is not None else 0

    def _queue(
        self,
        kind: str,
        data: Mapping[str, Any],
        prediction_id: str | None,
        time: float | None,
        *,
        subject: str | None = None,
        actor: str | None = None,
    ) -> None:
        if self._source is None or self._source_key is None:
            raise UsageError(
                f"expected a Client with source and source_key to send a {kind}, got none; see [sources] in problem.toml"
            )
        if self._events is None:
            raise UsageError("expected a Client with kafka={'bootstrap_servers': …}, got none; a source writes to Kafka itself")
        message = self._encode(
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
        self._events.put([message])


def _address(kafka: Mapping[str, Any]) -> tuple[str, int]:
    """Host and port of the (first) broker."""
    servers = kafka["bootstrap_servers"]
    first = servers.split(",")[0] if isinstance(servers, str) else servers[0]
    host, _, port = str(first).strip().rpartition(":")
    return host.strip("[]"), int(port)
