"""The contract for others: JSON Schema, AsyncAPI 3 and the Avro schema, made from the very types that the door decodes with.

The schemas say what a message looks like. What only the door can know is not in them: whether the proof holds, whether problem,
source and labels exist, whether the time is credited, that probabilities sum to 1, and sizes over the whole message. So what a
schema refuses is a dead letter for certain, and what it takes is one only for a reason of those. A test holds both together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from truing.tasks.contract import KINDS, PEOPLE, Envelope
from truing.tasks.events.avro import avro_schema
from truing.tasks.events.schema import FUTURE_S, MAX_BYTES

__all__ = ["asyncapi", "avro_schema", "json_schema"]

# RFC 3339 with a zone, as the door reads it: a space for T, lower case and +0100 pass too; leap seconds and 24:00 don't
_TIME: Final = (
    r"^(?!0000)\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt ]"
    r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):?[0-5]\d)$"
)
_WORDS: Final = {
    "prediction": "A question and, if a model answered it, the answer.",
    "rating": "A person rates an answer, 0 (useless) to 1 (right).",
    "correction": "A person says what the answer should have been.",
    "outcome": "What became true of a prediction, by a registered source.",
    "review": "A blind audit's label: the reviewer saw no model's answer.",
    "attribute": "Protected attributes that came late, by a registered source.",
    "preference": "Of two answers to one prompt somebody chose one; needs no prediction.",
    "interaction": "What somebody did with an answer: clicks, dwell.",
}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a message of the events topic: one of eight types."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:truing:events:v1",
        "title": "An event of Truing",
        "description": f"CloudEvents 1.0, structured JSON in UTF-8, at most {MAX_BYTES} bytes. The Kafka key is the "
        "predictionid (the id of a preference without one). Any order is believed; with `data` last it is read fastest.",
        "oneOf": [{"$ref": f"#/$defs/{_event(kind)}"} for kind in KINDS],
        "$defs": _components("#/$defs/"),
    }


def asyncapi(version: str, *, says: Sequence[str], runs: Sequence[str]) -> dict[str, Any]:
    """AsyncAPI 3.0: both topics, who sends what. `says` = types of control messages, `runs` = what may be asked for there."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Truing",
            "version": version,
            "description": "What people and sources say about answers goes in by `user-events`; what became of the model comes "
            "out by `truing-control`. Seen from Truing: it receives events and requests, and sends announcements.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "events": {
                "address": "user-events",
                "description": "Key: predictionid. Believed for one of two proofs: the token of the prediction (people), or "
                "`mac:` and an HMAC-SHA256 by a registered source. Avro (Confluent wire form) is read too when a schema "
                "registry is set. What can't be used becomes a dead letter with its reason; nothing is dropped silently.",
                "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in KINDS},
                "bindings": {"kafka": {"topic": "user-events", "bindingVersion": "0.5.0"}},
            },
            "control": {
                "address": "truing-control",
                "description": "Announcements, and requests for runs: never for a gate, a release or a rollback.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in ("announcement", "request")},
                "bindings": {"kafka": {"topic": "truing-control", "partitions": 1, "bindingVersion": "0.5.0"}},
            },
        },
        "operations": {
            "hear": {
                "action": "receive",
                "channel": {"$ref": "#/channels/events"},
                "summary": "Predictions, and what people and sources say of them.",
                "messages": [{"$ref": f"#/channels/events/messages/{kind}"} for kind in KINDS],
            },
            "announce": {
                "action": "send",
                "channel": {"$ref": "#/channels/control"},
                "summary": "What became of the model.",
                "messages": [{"$ref": "#/channels/control/messages/announcement"}],
            },
            "beAsked": {
                "action": "receive",
                "channel": {"$ref": "#/channels/control"},
                "summary": "A run now: signed by the operator, or by a source that [control] of the problem names.",
                "messages": [{"$ref": "#/channels/control/messages/request"}],
            },
        },
        "components": {
            "messages": {kind: _message(kind) for kind in KINDS}
            | {
                "announcement": _control("announcement", "Something was decided, released or found.", "Announcement"),
                "request": _control("request", "A run is asked for.", "Request"),
            },
            "schemas": _components("#/components/schemas/") | _control_schemas(says, runs),
        },
    }


def _event(kind: str) -> str:
    return f"{kind.title()}Event"


def _components(prefix: str) -> dict[str, Any]:
    """The eight messages and their data. Keywords that JSON Schema has in every draft since 7."""
    _, found = msgspec.json.schema_components([*KINDS.values(), Envelope], ref_template=f"{prefix}{{name}}")
    envelope: dict[str, Any] = found.pop("Envelope")
    parts: dict[str, Any] = {name: _tidy(part) for name, part in found.items()}
    for kind, data in KINDS.items():
        attributes = {name: _tidy(one) for name, one in envelope["properties"].items()}
        attributes |= {
            "specversion": {"const": "1.0"},
            "type": {"const": f"truing.{kind}.v1"},
            "time": {
                "type": "string",
                "pattern": _TIME,
                "description": f"RFC 3339 with zone, at most {FUTURE_S:.0f} s ahead, at most the problem's credit old",
            },
            "datacontenttype": {"type": "string", "pattern": "^application/json", "default": "application/json"},
            "actorkind": {"enum": ["person", "source"], "default": "person"},
            "proof": {
                "type": "string",
                "minLength": 1,
                "description": "The token of the prediction."
                if kind in PEOPLE
                else "mac: and the HMAC-SHA256 by the source's key, hex, over each part behind its length (8 bytes, "
                "big-endian): 'event', id, source, type, time, problem, predictionid, subject, actor, actorkind, and the raw "
                "bytes of data ('' for what is absent).",
            },
            "data": {"$ref": f"{prefix}{data.__name__}"},
        }
        required = [*envelope["required"], "proof"]
        if kind != "preference":
            attributes["predictionid"] = {"type": "string", "minLength": 1, "maxLength": 256}
            required.append("predictionid")
        parts[_event(kind)] = {
            "title": _event(kind),
            "description": f"{_WORDS[kind]} Further attributes are let through unread.",
            "type": "object",
            "properties": attributes,
            "required": sorted(required),
        }
    return parts


def _tidy(part: Any) -> Any:
    """Scalars as one list of types, and whole numbers only up to what the lake can hold."""
    if isinstance(part, list):
        return [_tidy(each) for each in part]
    if not isinstance(part, dict):
        return part
    options = part.get("anyOf", [])
    if {str(each.get("type")) for each in options if len(each) == 1} == {"string", "integer", "number", "boolean", "null"}:
        return {"type": ["string", "number", "boolean", "null"]} | {k: v for k, v in part.items() if k != "anyOf"}
    return {key: _tidy(value) for key, value in part.items()}


def _message(kind: str) -> dict[str, Any]:
    return {
        "name": f"truing.{kind}.v1",
        "title": kind.title(),
        "summary": _WORDS[kind],
        "contentType": "application/cloudevents+json",
        "payload": {"$ref": f"#/components/schemas/{_event(kind)}"},
        "bindings": {"kafka": {"key": {"type": "string"}, "bindingVersion": "0.5.0"}},
    }


def _control(name: str, summary: str, schema: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": schema,
        "summary": summary,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{schema}"},
    }


def _control_schemas(says: Sequence[str], runs: Sequence[str]) -> dict[str, Any]:
    common: dict[str, Any] = {
        "id": {"type": "string", "description": "Names what it starts: repeating it starts nothing."},
        "time": {"type": "number", "description": "Unix seconds"},
        "problem": {"type": "string"},
        "by": {"type": "string", "description": "operator, or a source"},
        "proof": {"type": "string", "description": "mac: and the HMAC-SHA256 by that one's key, hex"},
    }
    asked = {"type": {"const": "run.requested"}, "run": {"enum": list(runs)}, **common}
    said = {"type": {"enum": [name for name in says if name != "run.requested"]}, **common}
    for name in ("version", "outcome", "reason"):
        said[name] = {"type": ["string", "number", "null"]}
    return {
        "Announcement": {"type": "object", "properties": said, "required": ["type", "id", "time"]},
        "Request": {"type": "object", "properties": asked, "required": ["type", "run", "problem", "id", "time", "by", "proof"]},
    }
