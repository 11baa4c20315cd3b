"""Peer of the intake: Quix Streams, Kafka topic → parsed and validated JSON → Delta table, in batches of 50,000 rows.

    python quix_to_delta.py HOST:PORT TOPIC OUTDIR ROWS

Runs in an environment of its own (quixstreams, deltalake, pyarrow, msgspec). Like the Spark peer it proves, hashes, redacts and
seals nothing; offsets are committed by Quix after each batch (at least once). Prints one JSON line: rows, seconds.
"""

from __future__ import annotations

import json
import sys
import time
import uuid

import msgspec
import pyarrow as pa
from deltalake import write_deltalake
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch


class Event(msgspec.Struct):
    specversion: str
    id: str
    type: str
    source: str
    time: str
    data: msgspec.Raw
    subject: str | None = None


SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "type", "source", "time", "subject", "data")])
decode = msgspec.json.Decoder(Event).decode


class Delta(BatchingSink):
    def __init__(self, out: str, rows: int) -> None:
        super().__init__()
        self.out, self.rows, self.done, self.first = out, rows, 0, 0.0

    def write(self, batch: SinkBatch) -> None:
        columns: dict[str, list[str | None]] = {name: [] for name in SCHEMA.names}
        for item in batch:
            try:
                event = decode(item.value)
            except (msgspec.DecodeError, UnicodeDecodeError):
                event = Event(specversion="", id="", type="", source="", time="", data=msgspec.Raw(b""))
            for name in ("id", "type", "source", "time", "subject"):
                columns[name].append(getattr(event, name))
            columns["data"].append(bytes(event.data).decode("utf-8", "replace"))
        write_deltalake(self.out, pa.table(columns, schema=SCHEMA), mode="append")
        self.done += len(columns["id"])


def main() -> None:
    bootstrap, topic, out, rows = sys.argv[1:]
    app = Application(
        broker_address=bootstrap, consumer_group=f"peer-{uuid.uuid4()}", auto_offset_reset="earliest",
        commit_every=50_000, commit_interval=5.0, loglevel="ERROR",
    )  # fmt: skip
    sink = Delta(out, int(rows))
    app.dataframe(app.topic(topic, value_deserializer="bytes", key_deserializer="bytes")).sink(sink)
    began = time.perf_counter()
    app.run(count=int(rows), timeout=60.0)
    print(json.dumps({"peer": "quix", "rows": sink.done, "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
