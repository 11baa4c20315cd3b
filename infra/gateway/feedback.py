"""People's words on an answer: rating, correction, interaction. Believed for the token of their prediction. Pure.

The gateway looks first so that a person hears at once what is wrong; the reader of the topic checks the same token again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from truing.tasks.errors import DataError
from truing.tasks.events.schema import FUTURE_S, GATEWAY, Reason, check_token, encode_event
from truing.tasks.problem import Problem
from truing.tasks.records import Refusal


class Item(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One word. `value` 0..1 with a rating, `label` with a correction, `kind` (and a `value`) with an interaction.

    Give `time` (Unix seconds) when the same thing may be sent twice: what is equal in everything lands once.
    """

    type: Literal["rating", "correction", "interaction"]
    prediction_id: str
    token: str
    actor: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    value: float | None = None
    label: str | None = None
    kind: str | None = None
    time: float | None = None
    problem: str | None = None


_list = msgspec.json.Decoder(list[msgspec.Raw])
_item = msgspec.json.Decoder(Item)


def read_items(body: bytes, *, most: int) -> list[msgspec.Raw]:
    """Raises DataError when the body is no JSON list of at most `most` items."""
    try:
        items = _list.decode(body)
    except msgspec.DecodeError as error:
        raise DataError(
            f"expected a JSON list of {{type, prediction_id, token, actor, ...}}, got: {error}; mend the body"
        ) from None
    if len(items) > most:
        raise DataError(f"expected at most {most} items, got {len(items)}; split the list")
    return items


def check(raw: msgspec.Raw, *, problems: Mapping[str, Problem], wire: bytes, now: float) -> tuple[bytes, bytes] | Refusal:
    """The message (key, value) of one item, or why it is not believed."""
    try:
        item = _item.decode(raw)
    except msgspec.DecodeError as error:
        return Refusal(code=Reason.DATA, reason=f"the item does not read: {error}", remedy="mend that field")
    if item.problem is None and len(problems) > 1:
        return Refusal(code=Reason.PROBLEM, reason=f"no problem named among {', '.join(problems)}", remedy="give problem")
    problem = problems.get(item.problem if item.problem is not None else next(iter(problems)))
    if problem is None:
        return Refusal(
            code=Reason.PROBLEM, reason=f"expected a problem of {', '.join(problems)}, got another", remedy="name one"
        )
    wrong = check_token(wire, item.token, problem.name, item.prediction_id, now)
    if wrong is Reason.EXPIRED:
        return Refusal(
            code=wrong, reason="the token of this prediction has expired", remedy="an outcome may still come by a source"
        )
    if wrong is not None:
        return Refusal(
            code=wrong, reason="the token is not of this prediction", remedy="send the token that came with the answer"
        )
    if item.time is not None and item.time > now + FUTURE_S:
        return Refusal(
            code=Reason.FUTURE, reason=f"time is {item.time - now:.0f} s ahead of this clock", remedy="send Unix seconds, UTC"
        )
    data: dict[str, Any]
    if item.type == "rating":
        data = {"value": item.value}
    elif item.type == "correction":
        if item.label not in problem.labels:
            return Refusal(
                code=Reason.LABEL,
                reason=f"expected a label of {', '.join(problem.labels)}, got {str(item.label)[:80]!r}",
                remedy="name one of them",
            )
        data = {"label": item.label}
    else:
        data = {"kind": item.kind, "value": item.value}
    try:
        return encode_event(
            item.type,
            problem=problem.name,
            source=GATEWAY,
            data=data,
            time=now if item.time is None else item.time,
            prediction_id=item.prediction_id,
            actor=item.actor,
            token=item.token,
        )
    except DataError as error:
        reason, _, remedy = str(error).rpartition("; ")
        return Refusal(code=Reason.DATA, reason=reason, remedy=remedy)
