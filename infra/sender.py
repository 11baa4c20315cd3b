"""Sends messages to Kafka and knows which of them arrived. Light: kafka-python is imported when the first message goes out.

One call, one batch: `publish` returns when the brokers hold all of it (`acks=all`). After a failure the producer is thrown
away, so the next call starts clean; whoever calls again sends the same messages, and the reader drops doubles by event id.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from truing.tasks.errors import Unavailable

Message = tuple[bytes, bytes]  # key, value


class Sender:
    """A producer for one topic that may fail and be called again. Safe to call from several threads, one batch at a time."""

    def __init__(self, topic: str, options: dict[str, Any], *, timeout_s: float = 10.0, knocks: bool = False) -> None:
        """`options` are kafka-python's (see `truing.infra.broker.connection`); `timeout_s` is how long one batch may take.

        `knocks`: brokers of which none takes a connection are said at once, not after `timeout_s`: for who calls again anyway.
        """
        self._topic = topic
        self._knocks = knocks
        self._options = options
        self._timeout_s = timeout_s
        self._producer: Any = None
        self._guard = threading.Lock()

    def publish(self, messages: Sequence[Message]) -> dict[int, int] | None:
        """Returns when all are acknowledged by all in-sync replicas; else raises Unavailable, and some may have arrived.

        The answer is where they stand: by partition, the offset behind the last of them; None when the broker did not say.
        """
        with self._guard:
            return self._publish(messages)

    def _publish(self, messages: Sequence[Message]) -> dict[int, int] | None:
        from kafka.errors import KafkaError

        try:
            producer = self._connected()
            futures = [producer.send(self._topic, key=key, value=value) for key, value in messages]
            producer.flush(timeout=self._timeout_s)
            failed = next((future.exception for future in futures if not future.succeeded()), None)
            if failed is not None or not all(future.succeeded() for future in futures):
                raise failed or TimeoutError("no acknowledgement")
            return _places(future.value for future in futures)
        except (KafkaError, OSError, ValueError, AssertionError) as error:
            self._drop()
            where = self._options["bootstrap_servers"]
            raise Unavailable(
                f"expected the broker at {where} to take {len(messages)} messages, got {type(error).__name__}: "
                f"{' '.join(str(error).split()) or 'no word'}; check `truing status`"
            ) from None

    def _connected(self) -> Any:
        if self._producer is None:
            logging.getLogger("kafka").addHandler(logging.NullHandler())  # its warnings go to whoever set up logging, if anyone
            from kafka import KafkaProducer

            if self._knocks:
                _knock(self._options["bootstrap_servers"], self._timeout_s)
            wait = int(self._timeout_s * 1000)
            self._producer = KafkaProducer(
                **{
                    "acks": "all",
                    "enable_idempotence": True,
                    "linger_ms": 20,
                    "batch_size": 256 * 1024,
                    "max_block_ms": wait,
                    "bootstrap_timeout_ms": wait,
                    "request_timeout_ms": wait,
                    "delivery_timeout_ms": wait + 1000,
                    "metrics_enabled": False,
                    **self._options,
                }
            )
        return self._producer

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            from truing.tasks.events.stream import discard

            discard(producer)

    def close(self) -> None:
        """Let go of the connection. A batch under way elsewhere is waited for briefly, then left to end by itself."""
        if self._guard.acquire(timeout=1.0):
            try:
                self._drop()
            finally:
                self._guard.release()


def _knock(servers: str | Sequence[str], timeout_s: float) -> None:
    """Raises the last OSError when none of these brokers, as kafka-python takes them, takes a connection."""
    from kafka.cluster import collect_hosts

    failed: OSError | None = None
    hosts = collect_hosts(servers)
    for host, port, _ in hosts:
        try:
            socket.create_connection((host, port), timeout=min(3.0, timeout_s / len(hosts))).close()
            return
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def _places(written: Iterable[Any]) -> dict[int, int] | None:
    places: dict[int, int] = {}
    for one in written:
        if one.offset < 0:  # a repeated batch that the broker knew already
            return None
        places[one.partition] = max(one.offset + 1, places.get(one.partition, 0))
    return places
