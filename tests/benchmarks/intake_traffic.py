"""Traffic for the intake's benchmarks: a small problem, and events of it with every proof, in every state of disrepair.

Of a hundred events about 66 are predictions and 16 outcomes by sources (MAC), 17 ratings by people (token), 1 is broken in one
of the ways of `BROKEN`; of a thousand good ones 5 are sent twice. About 420 bytes each, as in the loop's own traffic.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truing.infra.keys import Keyring
from truing.infra.settings import Settings
from truing.tasks.events.schema import encode_event, token

PROBLEM = """
name = "loan"
kind = "tabular"
label = "repaid"
labels = ["no", "yes"]
positive = "yes"
primary_metric = "brier"

[inputs]
age = { type = "number", min = 18, max = 120 }
income = { type = "number", min = 0, max = 10000000 }
purpose = { type = "category", values = ["car", "home", "study", "other"] }
note = { type = "category", optional = true }

[redaction]
inputs = ["note"]

[groups.sex]
values = ["Female", "Male"]

[sources.loans]
types = ["prediction", "outcome"]

[cadence]
improve_after = 100000000
"""
POLICY = """
version = 1

[[clause]]
name = "Brier score"
slice = "all"
metric = "brier"
limit = 0.005
anchor_limit = 0.01
"""
BROKEN = {
    "garbage": "json",
    "cut": "json",
    "no type": "type.unknown",
    "other problem": "problem.unknown",
    "forged": "proof.forged",
    "no proof": "proof.missing",
    "token of another": "token.forged",
    "expired": "token.expired",
    "label": "label.unknown",
    "future": "time.future",
    "range": "inputs",
    "null": "inputs",
}
"""How a message is broken → the reason that its dead letter must name."""


def write_problem(folder: Path) -> Path:
    """`folder`/loan with problem.toml and policy.toml; returns `folder`."""
    (folder / "loan").mkdir(parents=True, exist_ok=True)
    (folder / "loan" / "problem.toml").write_text(PROBLEM)
    (folder / "loan" / "policy.toml").write_text(POLICY)
    return folder


class Maker:
    """Messages number `first`, `first` + 1, … of one sender; the same numbers and keys give the same messages."""

    def __init__(self, wire: bytes, key: bytes, *, now: float, seed: int) -> None:
        self.wire, self.key, self.now = wire, key, now
        self.random = random.Random(seed)
        self.sent: Counter[str] = Counter()  # good events by type, broken ones by reason, "again" = sent twice

    def messages(self, first: int, count: int) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of `count` messages."""
        done = 0
        while done < count:
            n, dice = first + done, self.random.random()
            done += 1
            if dice < 0.01:
                yield self.broken(n)
                continue
            kind = "prediction" if dice < 0.67 else "outcome" if dice < 0.83 else "rating"
            message = self.good(kind, n)
            self.sent[kind] += 1
            self.sent[f"sum {kind}"] += n  # of their numbers: a loss that a double hides shows here
            yield message
            if done < count and self.random.random() < 0.005:
                done += 1
                self.sent["again"] += 1
                yield message

    def inputs(self) -> dict[str, Any]:
        pick = self.random
        note = pick.choice(
            (None, "new customer", "has an account, salary is paid there", f"asked twice, file {pick.randint(1000, 99_999)}")
        )
        return {
            "age": pick.randint(18, 90),
            "income": pick.randint(0, 200_000),
            "purpose": pick.choice(("car", "home")),
            "note": note,
        }

    def good(self, kind: str, n: int, **more: Any) -> tuple[bytes, bytes]:
        prediction = f"p{n:09d}" if kind == "prediction" else f"p{max(0, n - self.random.randint(1, 1000)):09d}"
        given: dict[str, Any] = {"problem": "loan", "time": self.now - self.random.random() * 60, "prediction_id": prediction}
        given["id"] = f"{kind[0]}{n:09d}"
        if kind == "rating":
            proof = token(self.wire, "loan", prediction, self.now + 86400)
            given |= {"source": "app", "token": proof, "actor": f"person {n % 50_000}", "data": {"value": 0.75}}
        else:
            given |= {"source": "loans", "source_key": self.key, "subject": f"customer {n % 200_000}"}
            given["data"] = {"label": "yes"}
            if kind == "prediction":
                given["data"] = {"inputs": self.inputs(), "answer": {"label": "yes", "confidence": 0.75}}
        return encode_event(kind, **given | more)

    def broken(self, n: int) -> tuple[bytes, bytes]:
        how = self.random.choice(tuple(BROKEN))
        self.sent[f"reason {BROKEN[how]}"] += 1
        key, value = self.good("rating" if how in ("token of another", "expired", "no proof") else "outcome", n)
        late = self.now + 1000
        if how == "garbage":
            return key, b"\x00\xff%d" % n
        if how == "cut":
            return key, value[: len(value) // 2]
        if how == "no type":
            return key, value.replace(b"truing.outcome.v1", b"truing.outcome.v2")
        if how == "other problem":
            return key, value.replace(b'"loan"', b'"gone"')
        if how == "forged":
            return key, value.replace(b'"yes"', b'"no"')
        if how == "no proof":
            body = json.loads(value)
            del body["proof"]
            return key, json.dumps(body).encode()
        if how == "token of another":
            return self.good("rating", n, token=token(self.wire, "loan", "p", late))
        if how == "expired":
            body = json.loads(value)
            return self.good(
                "rating",
                n,
                token=token(self.wire, "loan", body["predictionid"], self.now - 1),
                prediction_id=body["predictionid"],
            )
        if how == "label":
            return self.good("outcome", n, data={"label": "perhaps"})
        if how == "future":
            return self.good("outcome", n, time=late)
        wrong: dict[str, Any] = {"age": 17} if how == "range" else {"income": None}
        return self.good("prediction", n, data={"inputs": self.inputs() | wrong})


def send(settings: Settings, first: int, count: int, *, now: float) -> Counter[str]:
    """Publish `count` messages numbered from `first`, waiting for the acknowledgements; what was sent."""
    from truing.infra.broker import connection, quiet_client
    from truing.tasks.events.stream import Publisher

    quiet_client()
    ring = Keyring(settings.keys)
    maker = Maker(ring.read("wire"), ring.source("loan", "loans"), now=now, seed=first)
    publisher = Publisher(connection(settings), settings.kafka.topic, batch_size=256 << 10, linger_ms=50)
    block: list[tuple[bytes, bytes]] = []
    for message in maker.messages(first, count):
        block.append(message)
        if len(block) == 20_000:
            publisher.publish(block)
            block = []
    publisher.publish(block)
    publisher.close()
    return maker.sent


def fill(settings: Settings, count: int, *, now: float, senders: int = 2) -> Counter[str]:
    """The same by several processes at once, each with numbers of its own."""
    from truing.infra.settings import child_environment

    share = count // senders
    command = [sys.executable, __file__, str(now)]
    parts = [(n * share, share if n + 1 < senders else count - n * share) for n in range(senders)]
    running = [
        subprocess.Popen([*command, str(first), str(many)], env=child_environment(settings), stdout=subprocess.PIPE)
        for first, many in parts
    ]
    sent: Counter[str] = Counter()
    for one in running:
        said, _ = one.communicate()
        if one.returncode:
            raise RuntimeError(f"a sender ended with {one.returncode}")
        sent.update(json.loads(said))
    return sent


if __name__ == "__main__":
    from truing.infra.settings import current

    print(json.dumps(send(current(), int(sys.argv[2]), int(sys.argv[3]), now=float(sys.argv[1]))))
