"""`truing send`: a row is told what is wrong with it before it goes out, and lands once however often it is sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT, running_broker, settings_of, until

from truing.flows.cli.main import main
from truing.infra.broker import connection
from truing.infra.keys import Keyring
from truing.infra.lines import LONGEST, Line, read, stream
from truing.infra.settings import Settings, child_environment
from truing.tasks.errors import DataError
from truing.tasks.events.said import Names, Speaker
from truing.tasks.events.schema import Message, Proofs, judge
from truing.tasks.problem import Problem, Source

NOW = 1_790_000_000.0


def row(problem: Problem, **more: Any) -> dict[str, Any]:
    return {name: (12 if spec.type == "number" else "Private") for name, spec in problem.inputs.items()} | more


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A data folder with keys."""
    found = settings_of(tmp_path / "data")
    monkeypatch.setenv("TRUING_KAFKA__BOOTSTRAP", found.kafka.bootstrap)
    return found


@pytest.fixture
def run(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Any:
    """`run("FILE", …)` → (exit code, stdout, stderr) of `truing send`."""
    main(["init", "--data", str(settings.data), "--problems", str(settings.problems)])
    capsys.readouterr()

    def go(*argv: str) -> tuple[int, str, str]:
        code = main(["send", *argv, "--data", str(settings.data), "--problems", str(settings.problems)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return go


def topic(settings: Settings, problem: Problem) -> list[Message]:
    """All messages on the topic, as the door judges them."""
    from kafka import KafkaConsumer, TopicPartition

    ring = Keyring(settings.keys)
    keys = {problem.name: {source: ring.source(problem.name, source) for source in problem.sources}}
    proofs = Proofs.of([problem], wire=ring.read("wire"), salt=ring.read("actor-salt"), keys=keys)
    consumer = KafkaConsumer(**connection(settings), enable_auto_commit=False, auto_offset_reset="earliest")
    parts = [TopicPartition(settings.kafka.topic, number) for number in range(settings.kafka.partitions)]
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    consumer.seek_to_beginning(*parts)
    found: list[Message] = []
    until(lambda: bool(found.extend(
        judge(record.value, proofs=proofs, now=time.time())
        for batch in consumer.poll(timeout_ms=200).values() for record in batch
    )) or all(consumer.position(part) >= ends[part] for part in parts))  # fmt: skip
    consumer.close()
    return found


# --- what a row says ----------------------------------------------------------------------------------------------------------


def speaker(problem: Problem, source: str = "history", types: tuple[str, ...] = ("prediction", "outcome")) -> Speaker:
    import msgspec

    given = msgspec.structs.replace(problem, sources={source: Source(types=types)})
    return Speaker(given, source, b"k" * 32, now=NOW)


def said(problem: Problem, line: dict[str, Any], types: tuple[str, ...] = ("prediction", "outcome")) -> list[Message]:
    one = speaker(problem, types=types)
    keys = {problem.name: {"history": b"k" * 32}}
    door = Proofs.of([one.problem], wire=b"-", salt=b"-", keys=keys)
    return [judge(value, proofs=door, now=NOW) for _, value in one.messages(line, Names(endless=False))]


def test_a_row_is_a_prediction_and_its_label_an_outcome(problem: Problem) -> None:
    both = said(problem, row(problem, sex="Female", income=">50K", subject="s", time=NOW - 5))
    assert [(one.type, one.reason) for one in both] == [("prediction", ""), ("outcome", "")]
    assert both[0].body.groups == {"sex": "Female", "age": 12} and both[1].body.label == ">50K"
    assert both[0].prediction_id == both[1].prediction_id and both[0].time == NOW - 5
    (late,) = said(problem, {"id": "p-1", "income": ">50K", "outcome_time": "2026-09-01T00:00:00Z"})
    assert late.type == "outcome" and late.prediction_id == "p-1"


def test_every_type_that_a_source_may_send_can_be_named(problem: Problem) -> None:
    types = ("prediction", "outcome", "review", "attribute", "preference")
    lines = [
        {"type": "prediction", "id": "p-1", "inputs": {"age": 40}, "answer": {"label": ">50K", "confidence": 0.9}},
        {"type": "outcome", "prediction_id": "p-1", "label": ">50K", "time": NOW},
        {"type": "review", "prediction_id": "p-1", "label": "<=50K", "actor": "rita"},
        {"type": "attribute", "prediction_id": "p-1", "groups": {"sex": "Female"}},
        {"type": "preference", "prompt": "q", "chosen": "a", "rejected": "b", "actor": "anna"},
    ]
    found = [said(problem, line, types)[0] for line in lines]
    assert [(one.type, one.reason) for one in found] == [(kind, "") for kind in types]
    assert found[2].actor_kind == "person" and found[1].actor_kind == "source" and found[4].prediction_id is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"colour": "red"}, "got also colour; leave them out"),
        ({"age": ...}, "expected the inputs age too"),
        ({"age": "forty"}, "age: expected a number, got 'forty'; mend it"),
        ({"age": None}, "age: expected a number, got none; fill it in"),
        ({"age": 400}, "age: expected 0 to 120, got 400; mend it"),
        ({"income": "rich"}, "income: expected one of <=50K, >50K, got 'rich'"),
        ({"time": "yesterday"}, "time: expected Unix seconds or 2026-11-23T03:40:00Z, got 'yesterday'"),
        ({"time": NOW + 9999}, "time: the event is 9999 s ahead"),
        ({"type": "rating", "value": 1}, "needs the token of its prediction; send it through the gateway"),
        ({"type": "verdict"}, "type: expected outcome, prediction of source history, got 'verdict'"),
        ({"type": "outcome", "label": ">50K"}, "prediction_id: expected the prediction that this outcome is about, got none"),
        ({"type": "outcome", "prediction_id": "p", "label": "rich"}, "label: expected one of <=50K, >50K, got 'rich'"),
        ({"type": "outcome", "prediction_id": "p", "lable": ">50K"}, "lable: expected fields out of label, type"),
        ({"type": "prediction", "id": "p", "inputs": {"age": [1]}}, "$.inputs"),
    ],
)
def test_what_is_wrong_is_told_by_field_before_it_is_sent(problem: Problem, line: dict[str, Any], says: str) -> None:
    whole = line if "type" in line else row(problem, income=">50K") | line
    given = {name: value for name, value in whole.items() if value is not ...}
    with pytest.raises(DataError) as caught:
        said(problem, given)
    assert says in str(caught.value) and "\n" not in str(caught.value) and "; " in str(caught.value)


def test_what_would_be_a_dead_letter_is_told_in_the_doors_own_words(problem: Problem) -> None:
    """A text of 300,000 characters reads well and fits the columns; only the door knows that no message may be as long."""
    with pytest.raises(DataError, match="expected at most 262144 bytes"):
        said(problem, row(problem, occupation="x" * 300_000))


def test_the_same_rows_have_the_same_names_and_equal_rows_different_ones(problem: Problem) -> None:
    lines = [row(problem, income=">50K"), row(problem, income=">50K"), row(problem, income="<=50K")]
    for endless in (False, True):
        named = []
        for now in (NOW, NOW + 100):
            one, names = speaker(problem), Names(endless=endless)
            one.now = now
            named.append([key for line in lines for key, _ in one.messages(line, names)])
        assert named[0] == named[1] and len(set(named[0])) == 3


def test_a_corrected_outcome_is_another_event_and_a_repeated_one_is_not(problem: Problem) -> None:
    first, again, corrected = (said(problem, {"id": "p", "income": label})[0].identity for label in (">50K", ">50K", "<=50K"))
    assert first == again != corrected


# --- reading ------------------------------------------------------------------------------------------------------------------


def test_csv_jsonl_and_parquet_say_the_same(tmp_path: Path, problem: Problem) -> None:
    import polars as pl

    lines = [row(problem, income=">50K", workclass=None), row(problem, income="<=50K", occupation='a "b", c\nd')]
    pl.DataFrame(lines).write_csv(tmp_path / "rows.csv")
    pl.DataFrame(lines).write_parquet(tmp_path / "rows.parquet")
    write(tmp_path / "rows.jsonl", lines)
    found = []
    for form in ("csv", "jsonl", "parquet"):
        one, names = speaker(problem), Names(endless=False)
        found.append([one.messages(line.row, names) for line in read(tmp_path / f"rows.{form}", form)])
    assert found[0] == found[1] == found[2] and len(found[0]) == 2


def of_bytes(data: bytes, form: str) -> list[Line]:
    reader, writer = os.pipe()
    feeder = threading.Thread(target=feed, args=(writer, data))
    feeder.start()
    found = [line for line in stream(reader, form) if line is not None]
    feeder.join()
    os.close(reader)
    return found


def feed(writer: int, data: bytes) -> None:
    with os.fdopen(writer, "wb") as file:
        file.write(data)


def test_a_bad_line_comes_out_with_its_number_and_bytes_and_the_next_one_reads() -> None:
    jsonl = of_bytes(b'\xef\xbb\xbf{"a":1}\r\n\n{"a":\n[1]\n{"a":"\xff"}\n{"a":2}', "jsonl")
    assert [(line.number, line.row, bool(line.error)) for line in jsonl] == [
        (1, {"a": 1}, False), (3, {}, True), (4, {}, True), (5, {}, True), (6, {"a": 2}, False)
    ]  # fmt: skip
    assert jsonl[2].raw == b"[1]" and "expected a JSON object" in jsonl[2].error
    csv = of_bytes(b'a,b\n1,"x\ny"\n1\n\xff,2\n?,\n1,"open', "csv")
    assert [(line.number, line.row, bool(line.error)) for line in csv] == [
        (2, {"a": "1", "b": "x\ny"}, False), (4, {}, True), (5, {}, True), (6, {"a": None, "b": None}, False), (7, {}, True)
    ]  # fmt: skip
    assert csv[1].head == b"a,b" and "closing quote" in csv[-1].error


def test_a_line_longer_than_any_event_is_one_bad_line_and_memory_stays_flat() -> None:
    """Ten times the limit in one line: of it only the beginning is kept."""
    found = of_bytes(b"{" + b"x" * (10 * LONGEST) + b'}\n{"a":1}\n', "jsonl")
    assert [(line.number, bool(line.error)) for line in found] == [(1, True), (2, False)]
    assert len(found[0].raw) < 2 * LONGEST


def test_a_quiet_pipe_gives_the_sender_a_moment() -> None:
    reader, writer = os.pipe()
    lines = stream(reader, "jsonl")
    assert next(lines) is None
    os.write(writer, b'{"a":1}\n{"a"')
    assert getattr(next(lines), "row", None) == {"a": 1} and next(lines) is None
    os.write(writer, b":2}\n")
    os.close(writer)
    assert getattr(next(lines), "row", None) == {"a": 2} and next(lines, "end") == "end"
    os.close(reader)


# --- the verb -----------------------------------------------------------------------------------------------------------------


def test_a_file_is_checked_and_counted(run: Any, tmp_path: Path, problem: Problem) -> None:
    lines = [row(problem, sex="Female", income=">50K"), row(problem, sex="Male", income=None)]
    code, out, err = run(write(tmp_path / "rows.jsonl", lines), "--source", "history", "--check", "--json")
    assert code == 0, err
    assert json.loads(out) | {"file": ""} == {"file": "", "rows": 2, "events": 3, "source": "history", "sent": 0}


@pytest.mark.parametrize("also", [["--check"], []])
def test_a_file_with_a_bad_line_is_refused_whole_without_asking_the_broker(
    run: Any, tmp_path: Path, problem: Problem, also: list[str]
) -> None:
    """No broker runs here: had the first row been sent, it would have been asked."""
    lines = [row(problem, income=">50K"), row(problem, income="rich")]
    code, out, err = run(write(tmp_path / "rows.jsonl", lines), "--source", "history", *also)
    assert (code, out) == (2, "") and "line 2: income: expected one of" in err and one_line(err), err


def test_what_can_not_be_sent_is_one_line(run: Any, tmp_path: Path, problem: Problem) -> None:
    (tmp_path / "rows.csv").write_text("")
    (tmp_path / "head.csv").write_text("age,income\n")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 but not really")
    file = write(tmp_path / "rows.jsonl", [row(problem)])
    for argv, says in (
        ([str(tmp_path / "rows.csv"), "--source", "history"], "got an empty file"),
        ([str(tmp_path / "head.csv"), "--source", "history"], "expected rows, got none"),
        ([str(tmp_path / "rows.parquet"), "--source", "history"], "expected PARQUET, got"),
        ([file, "--source", "outcomes", "--check"], "expected what source outcomes may send (outcome), got prediction"),
        ([file, "--source", "history", "--rate", "0"], "--rate: expected events a second above 0"),
        (["-", "--source", "history", "--format", "parquet"], "expected jsonl or csv of a pipe"),
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "") and says in err and one_line(err), err


def test_bad_rows_are_put_aside_as_they_were_and_can_be_mended(run: Any, tmp_path: Path, problem: Problem) -> None:
    import csv

    names = [*problem.inputs, "income"]
    rows = [list(row(problem, income=">50K").values()), list(row(problem, income=">50K", age="old").values()), ["short"]]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
    aside = tmp_path / "bad.csv"
    code, out, err = run(str(tmp_path / "rows.csv"), "--source", "history", "--rejects", str(aside), "--check", "--json")
    assert code == 0 and json.loads(out)["rejected"] == 2 and not aside.exists(), err
    assert "put aside: line 3: age: expected a number, got 'old'" in err and "line 4: expected 12 cells" in err


@pytest.fixture
def broker(settings: Settings) -> Iterator[Settings]:
    with running_broker(settings):
        yield settings


@pytest.mark.services
def test_a_file_arrives_and_its_bad_rows_stand_aside(run: Any, broker: Settings, tmp_path: Path, problem: Problem) -> None:
    lines = [row(problem, id=f"r-{n}", income=">50K" if n % 5 else "rich") for n in range(20)]
    aside = tmp_path / "bad.jsonl"
    file = write(tmp_path / "rows.jsonl", lines)
    code, out, err = run(file, "--source", "history", "--rejects", str(aside), "--rate", "200", "--json")
    assert code == 0 and json.loads(out) | {"file": ""} == {
        "file": "", "rows": 16, "rejected": 4, "events": 32, "sent": 32, "source": "history"
    }, err  # fmt: skip
    assert [json.loads(line)["id"] for line in aside.read_text().splitlines()] == ["r-0", "r-5", "r-10", "r-15"]
    reasons = (tmp_path / "bad.jsonl.reasons").read_text().splitlines()
    assert len(reasons) == 4 and reasons[1].startswith("line 6: income: expected one of")
    aside.write_text(aside.read_text().replace("rich", "<=50K"))
    assert run(str(aside), "--source", "history")[0] == 0
    found = topic(broker, problem)
    assert Counter((one.type, one.reason) for one in found) == {("prediction", ""): 20, ("outcome", ""): 20}


def sending(settings: Settings, *argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "truing.flows.cli.main", "send", *argv]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=child_environment(settings), cwd=ROOT, **pipes)


@pytest.mark.services
def test_a_pipe_that_never_ends_is_sent_as_it_comes(run: Any, broker: Settings, problem: Problem) -> None:
    """Three lines, then silence: they arrive while the pipe stays open. A bad line then ends it with exit 1 and the count."""
    process = sending(broker, "-", "--source", "history")
    assert process.stdin is not None
    for n in range(3):
        process.stdin.write(json.dumps(row(problem, id=f"s-{n}")).encode() + b"\n")
    process.stdin.flush()
    until(lambda: len(topic(broker, problem)) == 3, 30)
    assert process.poll() is None
    process.stdin.write(json.dumps(row(problem, id="s-3")).encode() + b"\n" + b'{"type":"outcome"\n')
    process.stdin.flush()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and out == b"" and one_line(err.decode()), err
    assert "standard input: line 5: expected a JSON object" in err.decode() and "4 events of 4 rows were sent" in err.decode()
    assert sorted(one.prediction_id or "" for one in topic(broker, problem)) == ["s-0", "s-1", "s-2", "s-3"]


@pytest.mark.services
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_sending_that_was_killed_is_sent_again_and_lands_once(
    run: Any, broker: Settings, tmp_path: Path, problem: Problem, number: signal.Signals
) -> None:
    """600 rows without id, 60 of them equal, at 100 events a second; killed when some have arrived; then the same file again.

    Every row has one name: 600 predictions and 600 outcomes, whatever came twice. Who presses Ctrl-C is told so."""
    lines = [row(problem, age=20 + n % 60, capital_gain=n // 10 * 10, income=">50K") for n in range(540)]
    lines += [row(problem, income="<=50K")] * 60
    file = write(tmp_path / "rows.jsonl", lines)
    process = sending(broker, file, "--source", "history", "--rate", "100")
    until(lambda: len(topic(broker, problem)) >= 200, 30)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    if number == signal.SIGINT:
        assert process.returncode == 130 and b"send the same again: what arrived before lands once" in err
    before = topic(broker, problem)
    assert 200 <= len(before) < 1200
    code, out, said = run(file, "--source", "history")
    assert code == 0 and "600 rows sent as 1200 events" in out, said
    found = topic(broker, problem)
    assert len(found) == len(before) + 1200 and not any(one.reason for one in found)
    assert len({one.identity for one in found}) == 1200


@pytest.mark.services
def test_a_broker_that_is_killed_on_the_way_gets_all_of_the_file(
    run: Any, settings: Settings, tmp_path: Path, problem: Problem
) -> None:
    """The embedded one forgets what it acknowledged in its last second; a file is then sent once more, by itself."""
    file = write(tmp_path / "rows.jsonl", [row(problem, id=f"w-{n}") for n in range(300)])
    with running_broker(settings) as first:
        process = sending(settings, file, "--source", "history", "--rate", "50")
        until(lambda: len(topic(settings, problem)) >= 50, 30)
        first.kill()
        first.wait()
    with running_broker(settings):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and b"300 rows sent as 300 events" in out, err
        assert b"the broker went away" in err and len({one.identity for one in topic(settings, problem)}) == 300


def test_memory_is_flat_over_a_long_stream(problem: Problem) -> None:
    """2,500 rows of a pipe need no more room at any moment than 500 do."""
    import tracemalloc

    text = (json.dumps(row(problem, income=">50K")) + "\n").encode()
    sizes = []
    for many in (500, 2_500):
        reader, writer = os.pipe()
        feeder = threading.Thread(target=feed, args=(writer, text * many))
        feeder.start()
        names, one, count = Names(endless=True), speaker(problem), 0
        tracemalloc.start()
        for line in stream(reader, "jsonl"):
            if line is not None:
                count += len(one.messages(line.row, names))
        sizes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        feeder.join()
        os.close(reader)
        assert count == 2 * many
    assert sizes[1] < 1.5 * sizes[0], sizes
