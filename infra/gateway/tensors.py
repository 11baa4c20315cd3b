"""Open Inference Protocol v2, JSON form: request tensors → rows, answers → response tensors. Pure.

One tensor per input column, shape [n]; `subject`, `prediction_id` and `group:<name>` ride beside them. What is protected is
parted from what the model reads here, once: `Question.rows` holds the problem's inputs and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from truing.tasks.errors import DataError
from truing.tasks.problem import Input, Problem
from truing.tasks.records import Record

FLOATS = ("FP64", "FP32")
INTEGERS = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8")
GROUP = "group:"
OWN = "truing-"  # how prediction ids begin that the gateway made; no caller may
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LONGEST = 4096  # characters of one text cell


class Tensor(msgspec.Struct):
    """One column. Keys that the protocol may add are ignored."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Request(msgspec.Struct):
    inputs: list[Tensor]
    id: str | None = None


class Question(Record, frozen=True):
    """n rows, asked at once. Lists are parallel, length n; a subject or id that was not given is None."""

    id: str | None
    rows: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    subjects: list[str | None]
    ids: list[str | None]


_decoder = msgspec.json.Decoder(Request)


def read_question(body: bytes, problem: Problem, *, max_rows: int) -> Question:
    """The rows asked about. Raises DataError (expected, got; remedy) on anything that the problem's inputs don't allow."""
    try:
        request = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise DataError(f"expected JSON with inputs [{{name, shape, datatype, data}}], got: {error}; mend the body") from None
    columns: dict[str, Tensor] = {}
    for tensor in request.inputs:
        if tensor.name in columns:
            raise DataError(f"expected each tensor once, got {tensor.name!r} twice; send one tensor per column")
        columns[tensor.name] = tensor
    n = _length(columns, max_rows)
    names = set(problem.inputs) | {GROUP + name for name in problem.groups} | {"subject", "prediction_id"}
    unknown = sorted(set(columns) - names)
    if unknown:
        raise DataError(
            f"expected tensors {', '.join(problem.inputs)} (beside them subject, prediction_id, "
            f"{', '.join(GROUP + name for name in problem.groups)}), got {unknown[0]!r}; leave it out or mend its name"
        )
    missing = [name for name, spec in problem.inputs.items() if name not in columns and not spec.optional]
    if missing:
        raise DataError(f"expected a tensor for every column, got none for {', '.join(missing)}; send it with shape [{n}]")
    blank = [None] * n
    values = [_values(columns[name], spec) if name in columns else blank for name, spec in problem.inputs.items()]
    inputs = list(problem.inputs)
    rows = [dict(zip(inputs, row, strict=True)) for row in zip(*values, strict=True)]
    groups: list[dict[str, Any]] = [{} for _ in range(n)]
    for name in problem.groups:
        given = columns.get(GROUP + name)
        if given is None:  # a group by edges may be an input as well (age)
            given = columns.get(name)
        if given is not None:
            for group, value in zip(groups, _scalars(given), strict=True):
                if value is not None:
                    group[name] = value
    return Question(
        id=request.id,
        rows=rows,
        groups=groups,
        subjects=_subjects(columns["subject"]) if "subject" in columns else list(blank),
        ids=_ids(columns["prediction_id"]) if "prediction_id" in columns else list(blank),
    )


def _length(columns: dict[str, Tensor], max_rows: int) -> int:
    if not columns:
        raise DataError("expected one tensor per input column, got none; see GET /v2/models/<name> for the columns")
    first = next(iter(columns.values()))
    n = len(first.data)
    for name, tensor in columns.items():
        if tensor.shape != [len(tensor.data)]:
            raise DataError(
                f"{name}: expected shape [{len(tensor.data)}] for its {len(tensor.data)} values, got {tensor.shape}; "
                "send one flat list per column"
            )
        if len(tensor.data) != n:
            raise DataError(
                f"{name}: expected {n} values like {first.name}, got {len(tensor.data)}; all tensors need the same length"
            )
    if not 1 <= n <= max_rows:
        raise DataError(f"expected 1 to {max_rows} rows, got {n}; split the batch")
    return n


def _values(tensor: Tensor, spec: Input) -> list[Any]:
    """The column's data, or DataError naming the first value that is not allowed."""
    if spec.type == "category":
        texts = _texts(tensor)
        if not spec.optional and None in texts:
            raise DataError(f"{tensor.name}[{texts.index(None)}]: expected a text, got null; this column is not optional")
        return texts
    if tensor.datatype not in FLOATS + INTEGERS:
        raise DataError(f"{tensor.name}: expected datatype FP64 or INT64, got {tensor.datatype!r}; it is a number column")
    allowed: tuple[type, ...] = (int, float) if tensor.datatype in FLOATS else (int,)
    low = -math.inf if spec.min is None else spec.min
    high = math.inf if spec.max is None else spec.max
    for at, value in enumerate(tensor.data):
        if value is None:
            if not spec.optional:
                raise DataError(f"{tensor.name}[{at}]: expected a number, got null; this column is not optional")
        elif type(value) not in allowed:
            raise DataError(f"{tensor.name}[{at}]: expected {tensor.datatype}, got {_short(value)}; mend value or datatype")
        elif not low <= value <= high:
            raise DataError(f"{tensor.name}[{at}]: expected {low:g} to {high:g}, got {value!r}; mend that value")
    return tensor.data


def _texts(tensor: Tensor) -> list[str | None]:
    if tensor.datatype != "BYTES":
        raise DataError(f"{tensor.name}: expected datatype BYTES, got {tensor.datatype!r}; it is a text column")
    for at, value in enumerate(tensor.data):
        if value is not None and (type(value) is not str or len(value) > _LONGEST):
            raise DataError(
                f"{tensor.name}[{at}]: expected a text of at most {_LONGEST} characters, got {_short(value)}; mend it"
            )
    return tensor.data


def _scalars(tensor: Tensor) -> list[Any]:
    for at, value in enumerate(tensor.data):
        if value is not None and type(value) not in (str, int, float):
            raise DataError(f"{tensor.name}[{at}]: expected a text or a number, got {_short(value)}; mend that value")
    return tensor.data


def _subjects(tensor: Tensor) -> list[str | None]:
    subjects = _texts(tensor)
    for at, value in enumerate(subjects):
        if value is not None and not 1 <= len(value) <= 512:
            raise DataError(f"subject[{at}]: expected 1 to 512 characters, got {len(value)}; null where nobody is named")
    return subjects


def _ids(tensor: Tensor) -> list[str | None]:
    ids = _texts(tensor)
    for at, value in enumerate(ids):
        if value is not None and not _ID.fullmatch(value):
            raise DataError(
                f"prediction_id[{at}]: expected 1 to 128 of A-Z a-z 0-9 . _ : -, got {_short(value)}; leave it out to get one"
            )
        if value is not None and value.startswith(OWN):
            raise DataError(
                f"prediction_id[{at}]: expected an id of your own, got one that the gateway made; leave it out for a new one"
            )
    given = [value for value in ids if value is not None]
    if len(set(given)) != len(given):
        raise DataError("prediction_id: expected each id once, got one twice; one prediction, one id")
    return ids


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- answers ------------------------------------------------------------------------------------------------------------------


def column(name: str, datatype: str, data: Sequence[Any]) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


def metadata(problem: Problem, versions: list[str]) -> dict[str, Any]:
    """`GET /v2/models/{name}`: the columns asked for and the tensors answered; -1 = any number of rows."""
    return {
        "name": problem.name,
        "versions": versions,
        "platform": f"truing-{problem.kind}",
        "inputs": [
            {"name": name, "datatype": "FP64" if spec.type == "number" else "BYTES", "shape": [-1]}
            for name, spec in problem.inputs.items()
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in (
                ("label", "BYTES"),
                ("probability", "FP64"),
                ("confidence", "FP64"),
                ("prediction_id", "BYTES"),
                ("token", "BYTES"),
            )
        ],
        "parameters": {"positive": problem.positive, "labels": list(problem.labels)},
    }
