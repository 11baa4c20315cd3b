"""Who may do what on which topic: one table, given to the broker that `truing up` starts, printed for one of your own.

An identity is a Kafka principal `User:<name>`: the four parts that speak to the broker, `operator` (people at the command
line), and one for each source, `source-<problem>.<name>`. What is not listed is refused. Events prove who made them anyway; the
table keeps a leaked password from reading what people said, and from deleting it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from truing.infra.broker import administrator
from truing.infra.settings import Settings
from truing.tasks.errors import Unavailable
from truing.tasks.problem import Problem
from truing.tasks.records import Record

PARTS = ("ingest", "gateway", "steward", "trainer")
OPERATOR, ADMIN = "operator", "admin"


class Right(Record, frozen=True, order=True):
    """One line: `identity` may do `operation` on that topic or group; READ, WRITE and DELETE let it describe, too."""

    identity: str
    topic: str
    operation: str
    why: str = ""
    kind: Literal["topic", "group"] = "topic"


def source(problem: str, name: str) -> str:
    return f"source-{problem}.{name}"


def identities(problems: Mapping[str, Problem]) -> tuple[str, ...]:
    """All principals but the administrator, who is the broker's super user."""
    return (*PARTS, OPERATOR, *(source(name, one) for name, problem in sorted(problems.items()) for one in problem.sources))


def rights(settings: Settings, problems: Mapping[str, Problem]) -> list[Right]:
    """The whole table, by identity, then topic."""
    events, control, dead = settings.kafka.topic, settings.kafka.control, settings.kafka.dead

    def may(identity: str, topic: str, why: str, *operations: str) -> list[Right]:
        return [Right(identity=identity, topic=topic, operation=one, why=why) for one in operations]

    found = [
        *may("ingest", events, "lands what was sent, lets the broker forget it", "READ", "DELETE"),
        *may("ingest", control, "starts what was asked for", "READ"),
        *may("ingest", dead, "tells what could not be used, once: it reads what it told last", "READ", "WRITE"),
        *may("gateway", events, "predictions, and people's words about them", "WRITE"),
        *may("steward", control, "announces verdicts and releases", "WRITE"),
        *may("trainer", control, "announces alerts", "WRITE"),
        *may(OPERATOR, events, "send, status, dlq replay", "READ", "WRITE"),
        *may(OPERATOR, control, "asks for runs, hears what was announced", "READ", "WRITE"),
        *may(OPERATOR, dead, "looks at dead letters", "READ"),
    ]
    for name, problem in sorted(problems.items()):
        asking = {one for names in problem.control.values() for one in names}
        for one in problem.sources:
            found += may(source(name, one), events, "sends its events", "WRITE")
            if one in asking:
                found += may(source(name, one), control, "may ask for runs", "WRITE")
    return found


def marks(settings: Settings, problems: Mapping[str, Problem]) -> list[Right]:
    """Who tells and who hears what has landed: it stands as the committed offsets of a group (`watermark.py`)."""
    tells = Right(identity="ingest", topic=settings.kafka.group, operation="READ", why="tells what has landed", kind="group")
    hear = ("gateway", OPERATOR, *(source(name, one) for name, problem in sorted(problems.items()) for one in problem.sources))
    why = "keeps what it sent until then"
    return [
        tells,
        *(Right(identity=one, topic=settings.kafka.group, operation="DESCRIBE", why=why, kind="group") for one in hear),
    ]


def commands(table: Iterable[Right], settings: Settings, principals: Mapping[str, str] | None = None) -> list[str]:
    """The same for people with a cluster of their own: lines for Kafka's `kafka-acls.sh`.

    `principals` names those that differ, {"ingest": "User:CN=ingest"}.
    """
    lines: dict[tuple[str, str, str], list[str]] = {}
    for right in table:
        lines.setdefault((right.identity, right.kind, right.topic), []).append(right.operation.capitalize())
    where = f"--bootstrap-server {settings.kafka.bootstrap} --command-config admin.properties"
    return [
        f"kafka-acls.sh {where} --add --allow-principal '{_principal(who, principals)}' "
        f"{' '.join(f'--operation {one}' for one in operations)} --{kind} '{name}'"
        for (who, kind, name), operations in lines.items()
    ]


def apply(
    settings: Settings, table: Iterable[Right], *, principals: Mapping[str, str] | None = None, prune: bool = False
) -> tuple[int, int]:
    """Make the broker's list hold the table; (added, removed). Repeated, it does nothing.

    With `prune` every other rule goes, about topics and groups as far as the table has such: for a broker of ours alone.
    Raises Unavailable when it refuses.
    """
    from kafka.admin import (
        ACL,
        ACLFilter,
        ACLOperation,
        ACLPermissionType,
        ResourcePattern,
        ResourcePatternFilter,
        ResourceType,
    )
    from kafka.errors import KafkaError

    table = list(table)
    wanted = {(_principal(one.identity, principals), one.kind, one.topic, one.operation) for one in table}
    client = administrator(settings)
    try:
        known: dict[tuple[str, str, str, str], Any] = {}
        for kind in {ResourceType[one.kind.upper()] for one in table}:
            every = ACLFilter(
                principal=None, host=None, operation=ACLOperation.ANY, permission_type=ACLPermissionType.ANY,
                resource_pattern=ResourcePatternFilter(kind, None, _any_pattern()),
            )  # fmt: skip
            there, error = client.describe_acls(every)
            _raise(error)
            known |= {_line(one): one for one in there}
        missing = [
            ACL(who, "*", ACLOperation[operation], ACLPermissionType.ALLOW, ResourcePattern(ResourceType[kind.upper()], name))
            for who, kind, name, operation in sorted(wanted - set(known))
        ]
        surplus = [one for line, one in known.items() if line not in wanted] if prune else []
        if missing:
            for _, failure in client.create_acls(missing)["failed"]:
                _raise(failure)
        if surplus:
            client.delete_acls([_exactly(one) for one in surplus])
        return len(missing), len(surplus)
    except KafkaError as error:
        said = " ".join(str(error).split())[:160]
        raise Unavailable(f"the Kafka broker at {settings.kafka.bootstrap}: expected to set its ACLs, got {said}") from None
    finally:
        client.close()


def _line(acl: Any) -> tuple[str, str, str, str]:
    """Rules that are not plain permissions for all hosts are lines of their own kind."""
    plain = acl.permission_type.name == "ALLOW" and acl.host == "*" and acl.resource_pattern.pattern_type.name == "LITERAL"
    mark = "" if plain else f" {acl.permission_type.name} {acl.host} {acl.resource_pattern.pattern_type.name}"
    pattern = acl.resource_pattern
    return acl.principal, pattern.resource_type.name.lower(), pattern.resource_name, acl.operation.name + mark


def _exactly(acl: Any) -> Any:
    from kafka.admin import ACLFilter, ResourcePatternFilter

    pattern = acl.resource_pattern
    return ACLFilter(
        principal=acl.principal, host=acl.host, operation=acl.operation, permission_type=acl.permission_type,
        resource_pattern=ResourcePatternFilter(pattern.resource_type, pattern.resource_name, pattern.pattern_type),
    )  # fmt: skip


def _any_pattern() -> Any:
    from kafka.admin import ACLResourcePatternType

    return ACLResourcePatternType.ANY


def _principal(identity: str, principals: Mapping[str, str] | None) -> str:
    return (principals or {}).get(identity, f"User:{identity}")


def _raise(error: Any) -> None:
    """The client gives an error or a class of one; NoError is falsy in neither."""
    from kafka.errors import KafkaError, NoError

    if error is None or error is NoError or isinstance(error, NoError):
        return
    if isinstance(error, type) and issubclass(error, KafkaError):
        raise error()
    if isinstance(error, KafkaError):
        raise error
