"""What goes between an application and the gateway: the answer to a row, and what one person said of it."""

from __future__ import annotations

import time as clock
from typing import Literal

import msgspec

Scalar = str | int | float | bool | None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answered row. `probability` is of the positive label; `token` lets people speak about it until it expires."""

    prediction_id: str
    token: str
    label: str
    probability: float
    confidence: float
    version: str
    sequence: int


class Word(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one person said of one answer; see `rating`, `correction`, `interaction`. `time` in Unix seconds."""

    type: Literal["rating", "correction", "interaction"]
    prediction_id: str
    token: str
    actor: str
    value: float | None = None
    label: str | None = None
    kind: str | None = None
    time: float | None = None
    problem: str | None = None


class Declined(msgspec.Struct, frozen=True):
    """A word that was not believed: its place in the list, a reason code, and the reason in one line."""

    item: int
    code: str
    error: str


class Receipt(msgspec.Struct, frozen=True):
    accepted: int
    refusals: list[Declined]


def rating(answer: Answer, value: float, actor: str, *, time: float | None = None) -> Word:
    """`value` 0 (useless) .. 1 (right)."""
    return Word(
        type="rating",
        prediction_id=answer.prediction_id,
        token=answer.token,
        actor=actor,
        value=value,
        time=time or clock.time(),
    )


def correction(answer: Answer, label: str, actor: str, *, time: float | None = None) -> Word:
    """`label` is what the answer should have been."""
    return Word(
        type="correction",
        prediction_id=answer.prediction_id,
        token=answer.token,
        actor=actor,
        label=label,
        time=time or clock.time(),
    )


def interaction(answer: Answer, kind: str, actor: str, *, value: float | None = None, time: float | None = None) -> Word:
    """What somebody did with the answer: `kind` like click or dwell, `value` its amount."""
    return Word(
        type="interaction",
        prediction_id=answer.prediction_id,
        token=answer.token,
        actor=actor,
        kind=kind,
        value=value,
        time=time or clock.time(),
    )
