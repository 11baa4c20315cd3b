"""The lake's watermark: up to which offset of each partition everything has landed. Keepers tell it, senders keep until then.

It stands where Kafka's own tools look for it: as the committed offsets of the group `kafka.group`. Whoever may write events may
read it (ACL: DESCRIBE on the group; a keeper needs READ), and any lag monitor shows it. Nothing of ours resumes from it: a
keeper's place is in the lake, in the same commit as the rows.

With each offset stands a mark: the epoch of the log, and the *session* in which a keeper last made sure that the log is the one
it had read. After the embedded broker died, and may have lost its tail, an offset of an earlier session says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from truing.tasks.errors import Unavailable

WAIT_MS = 3000


class Mark(NamedTuple):
    """All before `offset` has landed, in that epoch of the partition's log, as known in that session of a keeper."""

    epoch: int
    offset: int
    session: str


class _Kafka:
    """An admin client that is made when needed and thrown away after a failure."""

    def __init__(self, connection: Mapping[str, Any], group: str, topic: str) -> None:
        self._connection, self._group, self._topic = dict(connection), group, topic
        self._admin: Any = None

    def _client(self) -> Any:
        if self._admin is None:
            from kafka import KafkaAdminClient

            self._admin = KafkaAdminClient(
                **{**self._connection, "bootstrap_timeout_ms": WAIT_MS, "request_timeout_ms": WAIT_MS}
            )
        return self._admin

    def close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()


class Announcer(_Kafka):
    """The keeper's side."""

    def __init__(self, connection: Mapping[str, Any], group: str, topic: str) -> None:
        super().__init__(connection, group, topic)
        self._told: dict[int, Mark] = {}

    def tell(self, marks: Mapping[int, Mark]) -> bool:
        """Commit what changed. False = the broker did not take it; told again next time."""
        from kafka import OffsetAndMetadata, TopicPartition
        from kafka.errors import KafkaError

        changed = {partition: mark for partition, mark in marks.items() if self._told.get(partition) != mark}
        if not changed:
            return True
        offsets = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(mark.offset, f"{mark.epoch} {mark.session}", -1)
            for partition, mark in changed.items()
        }
        try:
            told = self._client().alter_group_offsets(self._group, offsets)
            if any(getattr(error, "errno", 0) for error in told.values()):
                return False
        except (KafkaError, OSError, ValueError, AssertionError):
            self.close()
            return False
        self._told |= changed
        return True


class Watermark(_Kafka):
    """The sender's side."""

    def __call__(self) -> dict[int, Mark]:
        """By partition, as the keepers told it last; a partition of which nothing was told is not there. Raises Unavailable."""
        from kafka.errors import KafkaError

        try:
            found = self._client().list_group_offsets(self._group)[self._group]
        except (KafkaError, OSError, ValueError, AssertionError, LookupError) as error:
            self.close()
            where = ",".join(self._connection["bootstrap_servers"])
            raise Unavailable(f"the Kafka broker at {where}: expected the group {self._group}, got {error}") from None
        marks: dict[int, Mark] = {}
        for place, known in found.items():
            epoch, _, session = (known.metadata or "").partition(" ")
            if place.topic == self._topic and known.offset >= 0 and epoch.isascii() and epoch.isdigit():
                marks[place.partition] = Mark(int(epoch), known.offset, session)
        return marks
