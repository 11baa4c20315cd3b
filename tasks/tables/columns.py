"""What the tables hold: columns, what of them is personal, and which of several states of a row counts."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from truing.tasks.errors import DataError

type_ = pl.DataType | type[pl.DataType]

LANDING: dict[str, type_] = {
    "topic": pl.String,
    "partition": pl.Int32,
    "offset": pl.Int64,
    "epoch": pl.Int32,
    "event_id": pl.String,
    "type": pl.String,  # prediction | rating | correction | preference | outcome | interaction | review | attribute; "" if dead
    "source": pl.String,
    "time": pl.Float64,  # when the sender says it happened
    "landed_at": pl.Float64,  # when it landed, by our clock
    "problem": pl.String,
    "prediction_id": pl.String,
    "subject": pl.String,  # keyed hash
    "actor": pl.String,  # keyed hash
    "actor_kind": pl.String,
    "data": pl.Binary,  # raw JSON of the event's data; of a dead letter the whole message; sealed for OWNER
    "disposition": pl.String,  # landed | dead | duplicate | erased
    "reason": pl.String,  # a code of schema.Reason, or ""
    "detail": pl.String,
}
ROWS: dict[str, type_] = {
    "id": pl.String,  # the prediction id
    "problem": pl.String,
    "subject": pl.String,
    "content": pl.Binary,  # canonical JSON of the inputs, sealed for the subject: the one column with a person's content
    "content_hash": pl.String,  # sha256 hex of content
    "groups": pl.String,  # JSON {protected attribute: bucket}
    "prediction": pl.String,  # JSON {"label", "confidence", "probabilities": {label: p}} as served, or null
    "answer_label": pl.String,
    "answer_confidence": pl.Float64,
    "release": pl.String,
    "variant": pl.String,
    "propensity": pl.Float64,
    "target": pl.String,
    "origin": pl.String,
    "actor": pl.String,
    "feedback": pl.String,  # JSON {type: value, "history": [[type, time, actor, value], …]}
    "asked_at": pl.Float64,
    "labelled_at": pl.Float64,
    "matured_at": pl.Float64,
    "split": pl.String,
    "audit": pl.Boolean,
    "revision": pl.Int64,  # version of `landing` that this state was derived from
    "landed_at": pl.Float64,  # when the newest event in this state landed
}
SAMPLES: dict[str, type_] = {  # what each dataset version holds: one line a row
    "problem": pl.String,
    "dataset": pl.String,
    "row": pl.String,
    "content": pl.String,
    "target": pl.String,
    "origin": pl.String,
    "actor": pl.String,
    "weight": pl.Float64,
}
RECORDS: dict[str, type_] = {"problem": pl.String, "id": pl.String, "seq": pl.Int64, "json": pl.String}

OWNER = (  # whose key `landing.data` is sealed under: see subjects.owner and subjects.day
    pl.when(pl.col("disposition") == "dead")
    .then(pl.from_epoch((pl.col("landed_at") * 1000).cast(pl.Int64), time_unit="ms").dt.strftime("%Y-%m-%d"))
    .otherwise(pl.coalesce("subject", "actor", pl.concat_str(pl.lit("source "), pl.col("source"))))
)
PERSONAL = frozenset({"subject", "actor", "detail", "feedback", "prediction", "groups", "json"})
OWNED_BY = ("subject", "actor", "source", "disposition", "landed_at")
RECORD_TABLES = ("releases", "alerts", "datasets", "trials", "windows", "requests", "dead_acts", "dead_sent")


def conform(frame: pl.DataFrame, schema: Mapping[str, type_], *, where: str = "the frame") -> pl.DataFrame:
    """The frame with exactly the schema's columns and types; absent ones are null. Raises DataError."""
    unknown = sorted(set(frame.columns) - set(schema))
    if unknown:
        raise DataError(f"{where}: expected columns of {list(schema)}, got also {unknown}; leave them out")
    columns = [
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name) for name, dtype in schema.items()
    ]
    if not frame.columns:
        return pl.DataFrame(schema=dict(schema))
    try:
        return frame.select(columns)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{where}: expected the types of its schema, got {' '.join(str(error).split())[:200]}; cast it"
        ) from None


def winners(states: pl.LazyFrame) -> pl.LazyFrame:
    """Of several states of a row the one with the highest revision, ordered by time of asking, then id."""
    return (
        states.sort("revision", descending=True)
        .unique(["problem", "id"], keep="first", maintain_order=True)
        .sort("asked_at", "id")
    )
