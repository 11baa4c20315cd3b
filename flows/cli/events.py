"""`truing send FILE|-`: rows of a CSV, JSONL or parquet file, or of a pipe, as events of a registered source.

    truing send history.parquet --source history
    tail -F -n +1 truth.jsonl | truing send - --source outcomes

What a row may say: `tasks/events/said.py`. A file is checked whole before the first message goes out. A pipe is sent as it
comes, when a batch is full or after a second, and may be of any length. Whatever happens on the way, send the same again: an
event is named after its id or content, so what arrived before lands once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import Bar, flat, note, result
from truing.tasks.errors import DataError, TruingError, Unavailable, UsageError

if TYPE_CHECKING:
    from truing.infra.lines import Line
    from truing.infra.sentinel import Sentinel
    from truing.infra.settings import Settings
    from truing.tasks.events.said import Names, Speaker

BATCH = 2000  # messages between acknowledgements
LINGER_S = 1.0  # how long a message of a pipe waits for company
PATIENCE_S = 60.0  # how long a broker that went away is waited for
FLUSH_S = 1.2  # the embedded broker writes to disk once a second: what it has said before may be gone with it
AGAIN = "send the same again: what arrived before lands once"
TOLD = 20  # bad lines named on the terminal; all of them stand in the file of reasons
STDIN = Path("-")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    send = verbs.add_parser("send", parents=[common], help="send a file's or a pipe's rows as events of a registered source")
    send.add_argument("file", type=Path, help="CSV, JSONL or parquet; - reads standard input as it comes")
    send.add_argument("--source", required=True, help="a name below [sources] in problem.toml")
    send.add_argument("--problem", help="which problem (default: the only one)")
    send.add_argument("--format", choices=("jsonl", "csv", "parquet"), help="default: by the file's ending; jsonl for -")
    send.add_argument("--rate", type=float, metavar="N", help="at most N events a second")
    send.add_argument("--rejects", type=Path, metavar="FILE", help="put bad rows there (why: FILE.reasons) and go on")
    send.add_argument("--check", action="store_true", help="check everything and send nothing")
    send.set_defaults(do=do_send)


def do_send(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.infra.keys import keyring
    from truing.infra.lines import format_of, length
    from truing.infra.schema_registry import codec_of
    from truing.tasks.events.said import Speaker

    if args.rate is not None and not args.rate > 0:
        raise UsageError(f"--rate: expected events a second above 0, got {args.rate:g}; leave it out for no limit")
    piped = args.file == STDIN
    problem, _ = chosen(settings.problems, args.problem)
    if args.source not in problem.sources:
        raise DataError(f"--source: expected one of {', '.join(problem.sources) or 'none'}, got {args.source!r}; name one")
    form = args.format or ("jsonl" if piped else format_of(args.file))
    if piped and form == "parquet":
        raise UsageError("--format: expected jsonl or csv of a pipe, got parquet, which is read from its end; name its file")
    size = None if piped else length(args.file, form)
    avro = codec_of(settings)
    key = keyring(settings).source(problem.name, args.source)
    job = Job(args, form, size, lambda: Speaker(problem, args.source, key, now=time.time(), avro=avro))
    if args.check:
        events = sum(len(messages or ()) for messages in job.messages("checking"))
        text = f"{job.name}: {job.rows} rows are {events} events; none sent{job.aside}"
        result(job.facts | {"events": events, "sent": 0}, text, as_json=args.json)
        return 0
    if not piped and args.rejects is None:
        for _ in job.messages("checking"):  # all of it, before the first message goes out
            pass
    return job.send(settings)


class Job:
    """One run of the verb: rows to messages, bad rows aside, and the counts that are told at the end."""

    def __init__(self, args: argparse.Namespace, form: str, size: int | None, speaker: Any) -> None:
        self.args, self.form, self.size, self.speaker = args, form, size, speaker
        self.piped = args.file == STDIN
        self.name = "standard input" if self.piped else str(args.file)
        self.rows = self.rejected = self.sent = self.events = 0

    @property
    def facts(self) -> dict[str, Any]:
        found = {"file": str(self.args.file), "rows": self.rows, "source": self.args.source}
        return found | ({"rejected": self.rejected} if self.args.rejects else {})

    @property
    def aside(self) -> str:
        return f"; {self.rejected} bad rows put into {self.args.rejects}" if self.rejected else ""

    def messages(self, what: str) -> Iterator[list[tuple[bytes, bytes]] | None]:
        """The events of each row; None when a pipe is quiet for a moment. Raises DataError at a bad row, unless put aside."""
        from truing.tasks.events.said import Names

        speaker: Speaker = self.speaker()
        names: Names = Names(endless=self.piped)
        self.rows = self.rejected = self.sent = 0
        bar = Bar(self.size, f"{what} {self.args.file.name}") if self.size else Ticker(what)
        unit = "row" if self.form == "parquet" else "line"
        with rejects(None if self.args.check else self.args.rejects) as aside:
            for line in self._lines():
                if line is None:
                    yield None
                    continue
                if self.piped:
                    speaker.now = time.time()
                try:
                    if line.error:
                        raise DataError(line.error)
                    made = speaker.messages(line.row, names)
                except DataError as error:
                    if self.args.rejects is None:
                        raise DataError(f"{self.name}: {unit} {line.number}: {error}") from None
                    aside.put(line, f"{unit} {line.number}: {error}", tell=self.rejected < TOLD)
                    self.rejected += 1
                    continue
                self.rows += 1
                bar(line.at if self.size else self.sent)
                yield made
        if not self.rows and not self.rejected:
            raise DataError(f"{self.name}: expected rows, got none; send some")
        if isinstance(bar, Ticker):
            bar.end()
        else:
            bar(bar.of)

    def _lines(self) -> Iterable[Line | None]:
        from truing.infra.lines import read, stream

        return stream(sys.stdin.fileno(), self.form) if self.piped else read(self.args.file, self.form)

    def send(self, settings: Settings) -> int:
        from truing.infra.broker import address, connection, ensure_topics, quiet_client
        from truing.infra.sender import Sender
        from truing.infra.sentinel import Sentinel

        quiet_client()
        ensure_topics(settings)
        sender = Sender(settings.kafka.topic, connection(settings))
        sentinel = Sentinel(address(settings)) if settings.kafka.broker == "embedded" else None
        try:
            while True:
                if sentinel:
                    sentinel.broken()  # from here on it watches
                self._send(sender)
                if sentinel is None or not self._forgotten(sentinel):
                    break
                if self.piped:
                    raise Unavailable(f"the broker went away and may have forgotten its last second; {AGAIN}")
                note("the broker went away and may have forgotten its last second; sending the file once more")
        except (DataError, Unavailable) as error:
            if not self.sent and not self.piped:
                raise
            again = "" if AGAIN in str(error) else f"; mend it and {AGAIN}" if isinstance(error, DataError) else f"; {AGAIN}"
            raise TruingError(f"{error} ({self.sent} events of {self.rows} rows were sent{again})") from None
        except KeyboardInterrupt:
            note(f"{self.sent} events were sent; {AGAIN}")
            raise
        finally:
            sender.close()
        text = f"{self.name}: {self.rows} rows sent as {self.sent} events of {self.args.source}{self.aside}"
        result(self.facts | {"events": self.sent, "sent": self.sent}, text, as_json=self.args.json)
        return 0

    def _forgotten(self, sentinel: Sentinel) -> bool:
        """Did the embedded broker die while we sent, or before its disk had the last of it?"""
        end = time.monotonic() + FLUSH_S
        while time.monotonic() < end:
            if sentinel.broken() or not sentinel.watching:
                while not sentinel.watching and time.monotonic() < end + PATIENCE_S:
                    sentinel.broken()
                    time.sleep(0.1)
                return True
            time.sleep(0.1)
        return False

    def _send(self, sender: Any) -> None:
        rate, began = self.args.rate, time.monotonic()
        most = BATCH if rate is None else max(1, min(BATCH, int(rate / 4)))
        waiting: list[tuple[bytes, bytes]] = []
        since = 0.0

        def go() -> None:
            for start in range(0, len(waiting), most):
                part = waiting[start : start + most]
                publish(sender, part)
                self.sent += len(part)
                if rate is not None:
                    time.sleep(max(0.0, self.sent / rate - (time.monotonic() - began)))
            waiting.clear()

        try:
            for made in self.messages("sending"):
                if made:
                    since = since if waiting else time.monotonic()
                    waiting += made
                if len(waiting) >= most or (self.piped and waiting and time.monotonic() - since >= LINGER_S):
                    go()
        except DataError:
            go()  # of a pipe: what stood before the bad line
            raise
        go()


def publish(sender: Any, messages: list[tuple[bytes, bytes]]) -> None:
    """Send until the broker has them all. Raises Unavailable after PATIENCE_S."""
    end, pause = time.monotonic() + PATIENCE_S, 0.2
    while True:
        try:
            sender.publish(messages)
            return
        except Unavailable as error:
            if time.monotonic() + pause > end:
                raise
            if pause == 0.2:
                note(f"waiting for the broker: {error}")
            time.sleep(pause)
            pause = min(pause * 2, 5.0)


class rejects(AbstractContextManager["rejects"]):
    """Two files: bad rows as they were (a CSV with its header), to be mended and sent again; and why, a line each."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._rows, self._why = path, None, None  # type: tuple[Path | None, Any, Any]

    def put(self, line: Line, why: str, *, tell: bool) -> None:
        if tell:
            note(f"put aside: {flat(why)}")
        if self._path is None:
            return
        if self._rows is None:
            try:
                self._rows = self._path.open("wb")
                self._why = self._path.with_name(f"{self._path.name}.reasons").open("w", encoding="utf-8")
            except OSError as error:
                raise UsageError(f"--rejects: expected a file to write, got: {error.strerror}; name another") from None
            if line.head:
                self._rows.write(line.head + b"\n")
        self._rows.write((line.raw or as_json(line)) + b"\n")
        self._why.write(flat(why) + "\n")

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._why):
            if file is not None:
                file.close()


def as_json(line: Line) -> bytes:
    import msgspec

    return msgspec.json.encode(line.row, enc_hook=str)


class Ticker:
    """What a progress bar is where nobody knows the end: a count on a terminal's stderr, silent elsewhere."""

    def __init__(self, what: str) -> None:
        self.what, self.shown = what, 0.0
        self.live = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self.live and now - self.shown > 0.2:
            self.shown = now
            sys.stderr.write(f"\r{self.what}: {done:,} events")
            sys.stderr.flush()

    def end(self) -> None:
        if self.live and self.shown:
            sys.stderr.write("\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a small file. Raises DataError for what is no such file, or empty, and at a row that does not read."""
    from truing.infra.lines import format_of, length
    from truing.infra.lines import read as lines

    form, rows = format_of(path), []
    length(path, form)
    for line in lines(path, form):
        if line.error:
            raise DataError(f"{path}: line {line.number}: {line.error}")
        rows.append(line.row)
    if not rows:
        raise DataError(f"{path}: expected rows, got a header only; send one with rows")
    return rows
