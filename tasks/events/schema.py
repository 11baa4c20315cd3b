"""One contract for every message: CloudEvents 1.0 JSON, believed for one of two proofs, or a dead letter with its reason.

A person's act carries the **token** of its prediction (made by the gateway with the wire key, expires). A registered **source**
signs with a key of its own (`mac:` + HMAC-SHA256 over every attribute that is used and the raw bytes of `data`); the gateway is
the built-in source "gateway" whose key is the wire key. Only sources may judge. Names of people never pass this door: actor and
subject leave it as keyed hashes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from truing.tasks import seal
from truing.tasks.contract import (
    DECODERS,
    ENVELOPE,
    KINDS,
    PEOPLE,
    TIME,
    Answer,
    Attribute,
    Correction,
    Envelope,
    Interaction,
    Out,
    Outcome,
    Prediction,
    Preference,
    Rating,
    Reason,
    Review,
)
from truing.tasks.errors import DataError
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import DeadLetter, Event, Position, Record

__all__ = [
    "FUTURE_S",
    "GATEWAY",
    "KINDS",
    "MAX_BYTES",
    "PEOPLE",
    "Answer",
    "Attribute",
    "Correction",
    "Interaction",
    "Known",
    "Message",
    "Outcome",
    "Prediction",
    "Preference",
    "Proofs",
    "Rating",
    "Reason",
    "Review",
    "check_token",
    "claimed_id",
    "compose",
    "encode_event",
    "fits",
    "identity",
    "identity_text",
    "judge",
    "pseudonym",
    "read_message",
    "rfc3339",
    "token",
]

GATEWAY: Final = "gateway"
MAX_BYTES: Final = 256 * 1024  # of one message
FUTURE_S: Final = 300.0  # how far a sender's clock may run ahead
_MAC: Final = "mac:"

# --- writing ------------------------------------------------------------------------------------------------------------------


def rfc3339(time: float) -> str:
    """Unix seconds as `2026-11-23T03:40:00.123456Z`."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode_event(
    kind: str,
    *,
    problem: str,
    source: str,
    data: Mapping[str, Any],
    time: float,
    id: str | None = None,
    prediction_id: str | None = None,
    actor: str | None = None,
    actor_kind: str = "person",
    subject: str | None = None,
    token: str | None = None,
    source_key: bytes | None = None,
) -> tuple[bytes, bytes]:
    """(key, value) of one message. `kind` is the short type; give `token` (a person's act) or `source_key` (a source's word).

    Without `id` the message is named after its content, so sending the same thing twice lands once. `actor` and `subject` are
    the plain names: the reader hashes them. Raises DataError when `data` is not what `kind` wants.
    """
    message = compose(
        kind,
        problem=problem,
        source=source,
        data=data,
        time=time,
        id=id,
        prediction_id=prediction_id,
        actor=actor,
        actor_kind=actor_kind,
        subject=subject,
        token=token,
        source_key=source_key,
    )
    return (prediction_id or message.id).encode(), msgspec.json.encode(message)


def compose(
    kind: str,
    *,
    problem: str,
    source: str,
    data: Mapping[str, Any],
    time: float,
    id: str | None = None,
    prediction_id: str | None = None,
    actor: str | None = None,
    actor_kind: str = "person",
    subject: str | None = None,
    token: str | None = None,
    source_key: bytes | None = None,
    raw: bytes | None = None,
) -> Out:
    """The message of `encode_event` before it is written; `raw` is `data` as the JSON that is to be signed, if it is known."""
    if kind not in KINDS:
        raise DataError(f"expected an event type of {', '.join(KINDS)}, got {kind!r}; name one of them")
    try:
        typed = msgspec.convert(dict(data), KINDS[kind])
    except msgspec.ValidationError as error:
        raise DataError(f"data of a {kind}: {_one_line(error)}; mend that field") from None
    if not _finite(typed):  # would be written as null
        raise DataError(f"data of a {kind}: expected finite numbers, got NaN or infinity; leave the field out or null")
    raw = msgspec.json.encode(data) if raw is None else raw
    at = rfc3339(time)
    name = f"truing.{kind}.v1"
    if id is None:
        secret = source_key or (token or "").encode()  # ids lie open in the lake: nobody may guess names from them
        id = seal.mac(secret, problem, source, name, at, prediction_id or "", actor or "", subject or "", raw)[:32]
    proof = token
    if source_key is not None:
        parts = _signed(id, source, name, at, problem, prediction_id, subject, actor, actor_kind, raw)
        proof = _MAC + seal.mac(source_key, *parts)
    return Out(
        specversion="1.0",
        id=id,
        source=source,
        type=name,
        time=at,
        datacontenttype="application/json",
        problem=problem,
        subject=subject,
        predictionid=prediction_id,
        actor=actor,
        actorkind=actor_kind,
        proof=proof,
        data=msgspec.Raw(raw),
    )


def _signed(
    id: str,
    source: str,
    name: str,
    time: str,
    problem: str,
    prediction_id: str | None,
    subject: str | None,
    actor: str | None,
    actor_kind: str,
    raw: bytes,
) -> tuple[str | bytes, ...]:
    """All that is used, for the MAC. "event" keeps it apart from tokens, which share the wire key."""
    return "event", id, source, name, time, problem, prediction_id or "", subject or "", actor or "", actor_kind, raw


def token(wire_key: bytes, problem: str, prediction_id: str, expires: float) -> str:
    """What lets a person speak about one prediction until `expires` (Unix seconds)."""
    until = str(math.ceil(expires))
    return f"{until}.{seal.mac(wire_key, 'token', problem, prediction_id, until)}"


def check_token(wire_key: bytes, given: str, problem: str, prediction_id: str, now: float) -> Reason | None:
    """None = it holds; else TOKEN (forged, or of another prediction) or EXPIRED."""
    until, _, code = given.partition(".")
    if (
        not seal.mac_matches(wire_key, code, "token", problem, prediction_id, until)
        or not until.isascii()
        or not until.isdigit()
    ):
        return Reason.TOKEN
    return Reason.EXPIRED if int(until) <= now else None


# --- reading ------------------------------------------------------------------------------------------------------------------


class Known(Record, frozen=True):
    """One problem as the door needs it."""

    problem: Problem
    labels: frozenset[str]
    groups: frozenset[str]
    sources: dict[str, tuple[bytes, frozenset[str]]]  # name → (key, short types it may send)
    credit_s: float
    token_s: float


class Proofs(Record, frozen=True):
    """All that is needed to believe a message: the wire key, the salt of names, and what each known problem allows."""

    wire: bytes
    salt: bytes
    known: dict[str, Known]
    avro: Callable[[bytes, float], bytes] | None = None  # an Avro message as JSON (`avro.Codec.read`)

    @classmethod
    def of(
        cls,
        problems: list[Problem],
        *,
        wire: bytes,
        salt: bytes,
        keys: Mapping[str, Mapping[str, bytes]],
        avro: Callable[[bytes, float], bytes] | None = None,
    ) -> Proofs:
        """`keys` is {problem: {source: key}} for every source that a problem names."""
        known = {}
        for problem in problems:
            sources = {name: (keys[problem.name][name], frozenset[str](s.types)) for name, s in problem.sources.items()}
            sources[GATEWAY] = (wire, frozenset[str]({"prediction"}))
            known[problem.name] = Known(
                problem=problem,
                labels=frozenset(problem.labels),
                groups=frozenset(problem.groups),
                sources=sources,
                credit_s=seconds(problem.maturity.credit),
                token_s=seconds(problem.maturity.token),
            )
        return cls(wire=wire, salt=salt, known=known, avro=avro)


class Message(msgspec.Struct, kw_only=True):
    """One message after the door, believed (`reason` is "") or not. What an unbelieved one says of itself is only a claim."""

    event_id: str = ""
    type: str = ""
    source: str = ""
    time: float = 0.0
    problem: str = ""
    prediction_id: str | None = None
    subject: str | None = None
    actor: str | None = None
    actor_kind: str = ""
    data: bytes = b""  # raw JSON of `data`; the whole message if it is not believed
    body: Any = None
    family: str = ""  # of keys that will seal its data
    reason: str = ""
    detail: str = ""

    @property
    def identity(self) -> bytes:
        """What makes it the same event when it comes again, 8 bytes. Scoped so that no sender can use up another's ids."""
        return identity(self.problem, self.type, self.source, self.prediction_id, self.event_id)


def identity(problem: str, kind: str, source: str, prediction_id: str | None, event_id: str) -> bytes:
    """Key of deduplication: of a source its own ids; of people, whose `source` is unproven, the ids of one prediction."""
    return hashlib.blake2b(identity_text(problem, kind, source, prediction_id, event_id).encode(), digest_size=8).digest()


def identity_text(problem: str, kind: str, source: str, prediction_id: str | None, event_id: str) -> str:
    """What `identity` is the hash of. It ends with the event's id; what stands before is the sender's or the asker's."""
    scope = (prediction_id or "") if kind in PEOPLE else ""
    return f"{len(scope)}:{scope}{len(source)}:{source}{len(problem)}:{problem}{kind in PEOPLE:d}{event_id}"


def pseudonym(salt: bytes, problem: str, name: str) -> str:
    """Keyed hash of a person's name, 32 hex digits: one for actor and subject, so erasing finds both; another per problem."""
    return hashlib.blake2b(f"{len(problem)}:{problem}{name}".encode(), key=salt[:64], digest_size=16).hexdigest()


class _Dead(Exception):  # never leaves this module
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def judge(value: bytes | None, *, proofs: Proofs, now: float) -> Message:
    """Decode and check one message; never raises for what a sender may do.

    Avro (first byte 0, as no JSON begins) is read by `proofs.avro`, then judged as the JSON it stands for. Raises Unavailable
    when its schema is not known here and the registry does not answer: judge it again later.
    """
    if value is None:
        return Message(reason=Reason.JSON, detail="expected JSON, got a tombstone (no value)")
    if len(value) > MAX_BYTES:
        return Message(data=value, reason=Reason.OVERSIZE, detail=f"expected at most {MAX_BYTES} bytes, got {len(value)}")
    try:
        envelope = ENVELOPE.decode(value)
    except msgspec.ValidationError as error:
        return Message(event_id=claimed_id(value), data=value, reason=Reason.ENVELOPE, detail=_one_line(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if value[:1] == b"\0" and proofs.avro is not None:
            return _judge_avro(value, proofs.avro, proofs, now)
        return Message(data=value, reason=Reason.JSON, detail=_one_line(error))
    try:
        return _believe(envelope, proofs, now)
    except _Dead as dead:
        return Message(
            event_id=envelope.id,
            source=envelope.source,
            problem=envelope.problem if envelope.problem in proofs.known else "",
            data=value,
            reason=dead.reason,
            detail=str(dead),
        )


def _judge_avro(value: bytes, avro: Callable[[bytes, float], bytes], proofs: Proofs, now: float) -> Message:
    try:
        text = avro(value, now)
    except ValueError as error:
        return Message(event_id=claimed_id(value), data=value, reason=Reason.AVRO, detail=_one_line(error))
    message = judge(text, proofs=proofs, now=now)
    if message.reason:
        message.data = value
    return message


def _believe(envelope: Envelope, proofs: Proofs, now: float) -> Message:
    if envelope.specversion != "1.0" or not envelope.datacontenttype.startswith("application/json"):
        raise _Dead(Reason.ENVELOPE, "expected specversion 1.0 and datacontenttype application/json")
    if envelope.actorkind not in ("person", "source"):
        raise _Dead(Reason.ENVELOPE, "expected actorkind person or source")
    known = proofs.known.get(envelope.problem)
    if known is None:
        raise _Dead(Reason.PROBLEM, f"expected a problem of {', '.join(sorted(proofs.known))}, got another")
    if envelope.type not in DECODERS:
        raise _Dead(Reason.TYPE, "expected truing.<kind>.v1 with a known kind")
    kind, decoder = DECODERS[envelope.type]
    if envelope.predictionid is None and kind != "preference":
        raise _Dead(Reason.PREDICTION, f"expected the predictionid of a {kind}, got none")
    raw = bytes(envelope.data)
    _prove(envelope, kind, raw, known, proofs, now)
    time = _time(envelope.time, now, known.credit_s)
    try:
        body = decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _Dead(Reason.DATA, _one_line(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Dead(Reason.JSON, _one_line(error)) from None
    _fits(body, known)
    subject = envelope.subject
    if subject is None and kind == "prediction":
        subject = f"prediction {envelope.predictionid}"  # nobody named: each question is a subject of its own
    salt, problem = proofs.salt, envelope.problem
    return Message(
        event_id=envelope.id,
        type=kind,
        source=envelope.source,
        time=time,
        problem=problem,
        prediction_id=envelope.predictionid,
        subject=None if subject is None else pseudonym(salt, problem, subject),
        actor=None if envelope.actor is None else pseudonym(salt, problem, envelope.actor),
        actor_kind=envelope.actorkind,
        data=raw,
        body=body,
    )


def _prove(envelope: Envelope, kind: str, raw: bytes, known: Known, proofs: Proofs, now: float) -> None:
    """Raises _Dead unless token or MAC holds and may say this."""
    proof = envelope.proof
    if not proof:
        raise _Dead(Reason.PROOF, "expected the token of the prediction or a source's mac, got no proof")
    source = known.sources.get(envelope.source)
    if proof.startswith(_MAC):
        if source is None:
            raise _Dead(Reason.SOURCE, f"expected a source that problem.toml of {envelope.problem} names, got another")
        key, types = source
        signed = _signed(
            envelope.id,
            envelope.source,
            envelope.type,
            envelope.time,
            envelope.problem,
            envelope.predictionid,
            envelope.subject,
            envelope.actor,
            envelope.actorkind,
            raw,
        )
        if not seal.mac_matches(key, proof[len(_MAC) :], *signed):
            raise _Dead(Reason.MAC, f"the mac is not by the key of source {envelope.source}, or the message was altered")
        if kind not in types:
            raise _Dead(Reason.SOURCE_TYPE, f"source {envelope.source} may send {', '.join(sorted(types))}, got {kind}")
        return
    if kind not in PEOPLE or envelope.actorkind != "person":
        raise _Dead(Reason.SOURCE_TYPE, f"a token lets people send {', '.join(sorted(PEOPLE))}; a {kind} needs a source's mac")
    if source is not None and envelope.source != GATEWAY:
        raise _Dead(Reason.PROOF, f"source {envelope.source} proves itself by its mac, got a token")
    refused = check_token(proofs.wire, proof, envelope.problem, envelope.predictionid or "", now)
    if refused is Reason.EXPIRED:
        raise _Dead(refused, "the token of this prediction has expired")
    if refused is not None:
        raise _Dead(refused, "the token is not of this prediction, or was altered")


def _time(text: str, now: float, credit_s: float) -> float:
    try:
        time = float(msgspec.convert(text, TIME).timestamp())
    except (msgspec.ValidationError, OverflowError, ValueError):
        raise _Dead(Reason.TIME, "expected an RFC 3339 time with zone like 2026-11-23T03:40:00Z") from None
    if time > now + FUTURE_S:
        raise _Dead(Reason.FUTURE, f"the event is {time - now:.0f} s ahead of the reader's clock, at most {FUTURE_S:.0f} s")
    if time < now - credit_s:
        raise _Dead(Reason.OLD, f"the event is {(now - time) / 86400:.0f} days old, credit is given for {credit_s / 86400:.0f}")
    return time


def _fits(body: Any, known: Known) -> None:
    """Labels, groups and numbers that only the problem can judge."""
    kind = type(body)
    if kind in (Outcome, Correction, Review):
        if body.label not in known.labels:
            raise _Dead(Reason.LABEL, f"expected a label of {', '.join(sorted(known.labels))}, got another")
        return
    if not _finite(body):
        raise _Dead(Reason.DATA, "expected finite numbers")
    if kind in (Prediction, Attribute) and not known.groups.issuperset(body.groups):
        raise _Dead(Reason.GROUP, f"expected groups of {', '.join(sorted(known.groups)) or 'none'}, got another")
    if kind is Prediction and (answer := body.answer) is not None:
        if answer.label not in known.labels or not known.labels.issuperset(answer.probabilities):
            raise _Dead(Reason.LABEL, f"expected answers of {', '.join(sorted(known.labels))}, got another")
        if answer.probabilities and abs(sum(answer.probabilities.values()) - 1) > 0.01:
            raise _Dead(Reason.DATA, f"expected probabilities that sum to 1, got {sum(answer.probabilities.values()):.3f}")


def fits(body: Any, known: Known) -> bool:
    """May this problem be told that? `body` is a type of `contract`."""
    try:
        _fits(body, known)
    except _Dead:
        return False
    return True


def _finite(body: Any) -> bool:
    """False if a number is NaN, infinite or too large for a float."""
    if isinstance(body, Prediction):
        values: list[Any] = [*body.inputs.values(), *body.groups.values()]
    elif isinstance(body, Attribute):
        values = list(body.groups.values())
    elif isinstance(body, Interaction):
        values = [body.value]
    else:
        return True
    for value in values:
        if type(value) is float:
            if not math.isfinite(value):
                return False
        elif type(value) is int and not -(2**63) <= value < 2**63:
            return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Id(msgspec.Struct, frozen=True):
    id: str = ""


_ID: Final = msgspec.json.Decoder(_Id)


def claimed_id(value: bytes | None) -> str:
    """The id that a message claims, "" if it has none or does not read. Cheap, and no proof of anything."""
    if not value or len(value) > MAX_BYTES:
        return ""
    if value[0] == 0:
        return _claimed_in_avro(value)
    try:
        return _ID.decode(value).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _claimed_in_avro(value: bytes) -> str:
    """`id` is the first field of every schema that is read (`avro.Codec`): a zigzag length behind magic byte and schema id."""
    at, length, shift = 5, 0, 0
    while at < len(value) and shift < 21:
        length |= (value[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not value[at - 1] & 0x80:
            text = value[at : at + (length >> 1)]
            return text.decode("utf-8", "replace") if not length & 1 and len(text) == length >> 1 else ""
    return ""


def read_message(value: bytes | None, position: Position, *, proofs: Proofs, now: float) -> Event | DeadLetter:
    """One message as the record it becomes. `now` (Unix seconds) is the reader's clock; never raises for what was sent."""
    message = judge(value, proofs=proofs, now=now)
    if message.reason:
        return DeadLetter(
            reason=message.reason,
            detail=message.detail,
            original=base64.b64encode(value or b"").decode(),
            position=position,
            first_seen=now,
        )
    return Event(
        id=message.event_id,
        type=f"truing.{message.type}.v1",
        source=message.source,
        time=message.time,
        problem=message.problem,
        prediction_id=message.prediction_id,
        data=msgspec.to_builtins(message.body),
        actor=message.actor,
        actor_kind=message.actor_kind,
        subject=message.subject,
        seq=position.offset,
    )
