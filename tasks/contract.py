"""What a message may say: event types, their data as strict structs, the envelope's attributes, and reasons to refuse it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from truing.tasks.records import Record

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Long = Annotated[str, msgspec.Meta(max_length=200_000)]
Scalar = str | int | float | bool | None


class Reason(StrEnum):
    """Why a message is a dead letter."""

    OVERSIZE = "oversize"
    JSON = "json"  # not JSON, not UTF-8, NaN, half a surrogate pair, nested too deep
    AVRO = "avro"  # its schema is unknown or not one for events, or it does not read by it
    ENVELOPE = "envelope"  # an attribute of CloudEvents is missing or has the wrong type
    TYPE = "type.unknown"
    TIME = "time.format"
    FUTURE = "time.future"
    OLD = "time.old"
    PROBLEM = "problem.unknown"
    PREDICTION = "prediction.missing"
    SOURCE = "source.unknown"
    SOURCE_TYPE = "source.type"
    PROOF = "proof.missing"
    MAC = "proof.forged"
    TOKEN = "token.forged"  # noqa: S105 - a code
    EXPIRED = "token.expired"
    DATA = "data"
    LABEL = "label.unknown"
    GROUP = "group.unknown"
    INPUTS = "inputs"  # a row check of the suite failed
    CORRUPT = "corrupt"  # its batch has a wrong checksum on the broker
    LOST = "lost"  # deleted by the broker before it was read


# --- what `data` may be -------------------------------------------------------------------------------------------------------


class _Data(Record, frozen=True):
    pass


class Answer(_Data, frozen=True):
    """What was served. `probabilities` are by label and sum to 1 (± 0.01)."""

    label: Text
    confidence: Share
    probabilities: dict[str, Share] = msgspec.field(default_factory=dict)


class Prediction(_Data, frozen=True):
    """A question and, if a model answered it, the answer. `groups` are raw protected attributes; the join buckets them."""

    inputs: dict[str, Scalar]
    groups: dict[str, Scalar] = msgspec.field(default_factory=dict)
    answer: Answer | None = None
    release: str | None = None
    variant: str | None = None
    propensity: Share | None = None
    schema: str | None = None  # version of the feature schema
    audit: bool = False


class Rating(_Data, frozen=True):
    value: Share


class Correction(_Data, frozen=True):
    label: Text


class Outcome(_Data, frozen=True):
    label: Text


class Review(_Data, frozen=True):
    label: Text


class Attribute(_Data, frozen=True):
    groups: dict[str, Scalar]


class Preference(_Data, frozen=True):
    prompt: Long
    chosen: Long
    rejected: Long


class Interaction(_Data, frozen=True):
    kind: Text
    value: float | None = None


KINDS: Final[dict[str, type[_Data]]] = {
    "prediction": Prediction,
    "rating": Rating,
    "correction": Correction,
    "outcome": Outcome,
    "review": Review,
    "attribute": Attribute,
    "preference": Preference,
    "interaction": Interaction,
}
PEOPLE: Final = frozenset(
    {"rating", "correction", "interaction"}
)  # believed for the token of their prediction, never for a MAC
DECODERS: Final = {f"truing.{kind}.v1": (kind, msgspec.json.Decoder(data)) for kind, data in KINDS.items()}


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes as on the wire. Extensions that we don't know are let through unread: they are not signed."""

    specversion: str
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    type: str
    time: str
    data: msgspec.Raw
    problem: str
    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None
    datacontenttype: str = "application/json"
    predictionid: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    actor: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None
    actorkind: str = "person"
    proof: str | None = None


class Out(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The same for writing: what is absent is left out, as CloudEvents wants it."""

    specversion: str
    id: str
    source: str
    type: str
    time: str
    datacontenttype: str
    problem: str
    subject: str | None = None
    predictionid: str | None = None
    actor: str | None = None
    actorkind: str | None = None
    proof: str | None = None
    data: msgspec.Raw


ENVELOPE: Final = msgspec.json.Decoder(Envelope)
TIME: Final = Annotated[datetime, msgspec.Meta(tz=True)]
