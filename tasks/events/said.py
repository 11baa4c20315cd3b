"""What one row of a file, or one line of a stream, says: the events of a registered source.

Two forms. A *row* has the problem's inputs as columns, and its label: a prediction and an outcome (`id` and label alone: an
outcome). A *word* names its `type` and has the fields of that type's data beside it:

    {"type": "outcome", "prediction_id": "p-17", "label": ">50K", "time": "2026-11-23T03:40:00Z"}
    {"type": "preference", "prompt": "…", "chosen": "…", "rejected": "…", "actor": "anna"}

What was made is shown to the reader's own door before it goes out, so what the door would refuse is told here, with the field;
so is what problem.toml demands of an input. Further row checks (the problem's suite) are the keeper's alone.
Events are named after `id` or content, never after the time of sending: the same file sent twice lands once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from truing.tasks.contract import KINDS, PEOPLE
from truing.tasks.errors import DataError
from truing.tasks.events.schema import Proofs, Reason, encode_event, judge
from truing.tasks.problem import Problem
from truing.tasks.seal import canonical, mac

if TYPE_CHECKING:
    from truing.tasks.events.avro import Codec

OWN: Final = ("id", "subject", "time", "outcome", "outcome_time")  # of a row, beside inputs, groups and label
BESIDE: Final = ("type", "id", "prediction_id", "subject", "actor", "time")  # of a word, beside its data
_UNIX: Final = re.compile(r"^-?\d{9,11}(\.\d+)?$")
_NUMBER: Final = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$")


class Speaker:
    """A registered source of one problem, with its key. `now` (Unix seconds) is the time of rows that carry none."""

    def __init__(self, problem: Problem, source: str, key: bytes, *, now: float, avro: Codec | None = None) -> None:
        """With `avro` the events are written as Avro. Raises DataError when the problem does not know the source."""
        if source not in problem.sources:
            raise DataError(f"--source: expected one of {', '.join(problem.sources) or 'none'}, got {source!r}; name one")
        self.problem, self.source, self.now = problem, source, now
        self.types = frozenset[str](problem.sources[source].types)
        self._key = key
        self._encode = encode_event if avro is None else avro.write
        others = {name: key if name == source else b"-" for name in problem.sources}
        self._door = Proofs.of(
            [problem], wire=b"-", salt=b"-", keys={problem.name: others}, avro=None if avro is None else avro.read
        )
        self._known: set[tuple[str, ...]] = set()  # columns that were found good

    def messages(self, row: Mapping[str, Any], name: Callable[[bytes], str]) -> list[tuple[bytes, bytes]]:
        """(key, value) of each event. `name` makes an id out of content, for rows without one. Raises DataError: one line."""
        typed = "type" in row and "type" not in self.problem.inputs
        made = [self._word(row)] if typed else self._row(row, name)
        return [self._shown(kind, self._encode(kind, **given), given) for kind, given in made]

    def content(self, row: Mapping[str, Any]) -> bytes:
        """What names a row: its fields as texts, but for those without a value."""
        return mac(self._key, canonical({k: str(v) for k, v in row.items() if v is not None})).encode()

    # --- a word
    def _word(self, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        kind = row["type"]
        if kind in PEOPLE:
            raise DataError(
                f"type: expected {_list(self.types)}, got {kind}: that is people's word and needs the token of its prediction; "
                "send it through the gateway (truing.client)"
            )
        if kind not in KINDS or kind not in self.types:
            raise DataError(f"type: expected {_list(self.types)} of source {self.source}, got {_shown(kind)}; correct it")
        fields = KINDS[kind].__struct_fields__
        unknown = sorted(set(row) - {*fields, *BESIDE})
        if unknown:
            raise DataError(f"{unknown[0]}: expected fields out of {', '.join((*fields, *BESIDE))}, got it; leave it out")
        prediction = row.get("prediction_id")
        if prediction is None and kind == "prediction":
            prediction = row.get("id")
        if prediction is None and kind != "preference":
            raise DataError(f"prediction_id: expected the prediction that this {kind} is about, got none; add it")
        data = {field: row[field] for field in fields if row.get(field) is not None}
        self._sane(data)
        id = row.get("id")
        content = {k: v for k, v in row.items() if v is not None and k != "id"}
        given = self._common(prediction, row.get("subject"), row.get("actor")) | {
            "id": _own(kind, id) if id is not None else mac(self._key, canonical(content))[:32],
            "data": data,
            "time": self._time("time", row.get("time"), self.now),
        }
        return kind, given

    def _sane(self, data: dict[str, Any]) -> None:
        """The problem's own words, told by field; the rest is told by the door."""
        problem = self.problem
        if "label" in data and str(data["label"]) not in problem.labels:
            raise DataError(f"label: expected one of {', '.join(problem.labels)}, got {_shown(data['label'])}; mend it")
        if isinstance(data.get("groups"), dict) and (strange := sorted(set(data["groups"]) - set(problem.groups))):
            raise DataError(f"groups: expected {_list(problem.groups)}, got {', '.join(strange)}; leave it out")

    # --- a row
    def _row(self, row: Mapping[str, Any], name: Callable[[bytes], str]) -> list[tuple[str, dict[str, Any]]]:
        problem = self.problem
        self._columns(tuple(row))
        inputs = {field: self._input(field, row.get(field)) for field in problem.inputs} if self._asks(row) else {}
        groups = {field: self._group(field, row[field]) for field in problem.groups if row.get(field) is not None}
        label, given = row.get("outcome"), "outcome"
        if label is None:
            label, given = row.get(problem.label), problem.label
        if label is not None and str(label) not in problem.labels:
            raise DataError(f"{given}: expected one of {', '.join(problem.labels)}, got {_shown(label)}; mend it")
        at = self._time("time", row.get("time"), self.now)
        id = row.get("id")
        if id is None:
            if not inputs:
                raise DataError("id: expected the prediction that the label is about, got none; add it")
            id = name(self.content(dict(row) | inputs | groups))
        subject = row.get("subject")
        common = self._common(id, id if subject is None else subject, None)
        made = []
        if inputs:
            made.append(("prediction", common | {"data": {"inputs": inputs, "groups": groups}, "time": at, "id": f"{id}-p"}))
        if label is not None:
            known = row.get("outcome_time")
            when = self._time("outcome_time", known, at)
            # named after what it says, not only whom it is about: a corrected outcome is another event, and lands too
            word = mac(self._key, str(label), "" if known is None else str(when))[:12]
            made.append(("outcome", common | {"data": {"label": str(label)}, "time": when, "id": f"{id}-o-{word}"}))
        if not made:
            raise DataError(f"{problem.label}: expected a label, got none; add it or leave the row out")
        return made

    def _asks(self, row: Mapping[str, Any]) -> bool:
        return any(field in row for field in self.problem.inputs)

    def _columns(self, columns: tuple[str, ...]) -> None:
        """Raises DataError if they don't fit the problem, or the source may not send what they say."""
        if columns in self._known:
            return
        problem, named = self.problem, set(columns)
        known = {*problem.inputs, *problem.groups, *OWN, problem.label}
        if unknown := sorted(named - known):
            raise DataError(
                f"expected columns out of {', '.join(sorted(known))}, got also {', '.join(unknown)}; leave them out"
            )
        wanted = {"outcome"} if named & {"outcome", problem.label} else set()
        if named & set(problem.inputs):
            missing = sorted(name for name, spec in problem.inputs.items() if name not in named and not spec.optional)
            if missing:
                raise DataError(f"expected the inputs {', '.join(missing)} too, got {', '.join(sorted(named))}; add them")
            wanted.add("prediction")
        elif not wanted:
            raise DataError(f"expected inputs, or id and {problem.label}, got {', '.join(sorted(named))}; add them")
        if refused := sorted(wanted - self.types):
            raise DataError(
                f"expected what source {self.source} may send ({_list(self.types)}), got {', '.join(refused)}; "
                "name another source or leave those columns out"
            )
        if len(self._known) < 1000:
            self._known.add(columns)

    def _input(self, field: str, value: Any) -> str | int | float | None:
        spec = self.problem.inputs[field]
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            if not spec.optional:
                raise DataError(f"{field}: expected a {spec.type}, got none; fill it in")
            return None
        made = _number(field, value) if spec.type == "number" else _text(field, value)
        if isinstance(made, str):
            if spec.values is not None and made not in spec.values:
                raise DataError(f"{field}: expected one of {', '.join(spec.values)}, got {_shown(made)}; mend it")
        elif (spec.min is not None and made < spec.min) or (spec.max is not None and made > spec.max):
            low, high = ("any" if one is None else f"{one:g}" for one in (spec.min, spec.max))
            raise DataError(f"{field}: expected {low} to {high}, got {_shown(made)}; mend it")
        return made

    def _group(self, field: str, value: Any) -> str | int | float | bool | None:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return _number(field, value) if self.problem.groups[field].edges else _text(field, value)

    # --- both
    def _common(self, prediction: Any, subject: Any, actor: Any) -> dict[str, Any]:
        return {
            "problem": self.problem.name,
            "source": self.source,
            "prediction_id": None if prediction is None else str(prediction),
            "subject": None if subject is None else str(subject),
            "actor": None if actor is None else str(actor),
            "actor_kind": "source" if actor is None else "person",
            "source_key": self._key,
        }

    def _time(self, field: str, value: Any, default: float) -> float:
        """Unix seconds from a number, a datetime or RFC 3339 text; without zone it is UTC."""
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float, str, datetime)):
            raise _not_a_time(field, value)
        if isinstance(value, str) and _UNIX.match(value):
            value = float(value)
        if isinstance(value, (int, float)):
            if not abs(value) < 1e11:
                raise _not_a_time(field, value)
            return float(value)
        try:
            at = value if isinstance(value, datetime) else datetime.fromisoformat(value.replace("Z", "+00:00"))
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise _not_a_time(field, value) from None

    def _shown(self, kind: str, message: tuple[bytes, bytes], given: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """The message, as the door would take it. Raises DataError with the door's reason."""
        found = judge(message[1], proofs=self._door, now=max(self.now, 0.0))
        if found.reason:
            field = {Reason.FUTURE: "time: ", Reason.OLD: "time: ", Reason.TIME: "time: "}.get(Reason(found.reason), "")
            raise DataError(f"{field}{found.detail}; mend it or leave the {kind} out")
        return message


class Names:
    """Ids for rows without one. Of a file: content, and how many equal rows came before. Of a stream (whose equal rows nobody
    can count for ever): content and place. Either way the same rows sent again have the same names."""

    def __init__(self, *, endless: bool) -> None:
        self._endless = endless
        self._seen: dict[int, int] = {}
        self._place = 0

    def __call__(self, content: bytes) -> str:
        self._place += 1
        short = content[:24].decode()
        if self._endless:
            return f"{short}-at-{self._place}"
        key = int(content[:16], 16)
        self._seen[key] = count = self._seen.get(key, 0) + 1
        return f"{short}-{count}"


def _own(kind: str, id: Any) -> str:
    """The event's name where the line names only what it is about."""
    return f"{id}-p" if kind == "prediction" else str(id)


def _number(field: str, value: Any) -> int | float:
    if isinstance(value, bool):
        raise DataError(f"{field}: expected a number, got {_shown(value)}; mend it")
    if isinstance(value, (int, float)):
        return value
    text = str(value).strip()
    if not _NUMBER.match(text):
        raise DataError(f"{field}: expected a number, got {_shown(value)}; mend it")
    try:
        return int(text)
    except ValueError:
        return float(text)


def _text(field: str, value: Any) -> str:
    if isinstance(value, (str, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    raise DataError(f"{field}: expected a text, got {_shown(value)}; mend it")


def _not_a_time(field: str, value: Any) -> DataError:
    return DataError(f"{field}: expected Unix seconds or 2026-11-23T03:40:00Z, got {_shown(value)}; mend it")


def _shown(value: Any) -> str:
    """A value in an error, short: a line may hold a page."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…" + text[-1]


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
