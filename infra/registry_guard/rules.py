"""Who may write what, as one object: `routes.RULED` names a rule by its path in here, such as `versions.create`.

A rule takes an act and returns the Refusal against it, or None. Everything it believes comes from the ledger or carries a
signature; MLflow's database is asked only where bytes lie. The trainer registers, the steward judges and promotes, approvers
decide, and the admin may do nothing here, because logins are files.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from truing.infra.registry_guard.acts import Act
from truing.infra.registry_guard.ground import Ground
from truing.infra.registry_guard.models import Models
from truing.infra.registry_guard.ownership import Ownership
from truing.infra.registry_guard.releases import Releases
from truing.infra.registry_guard.versions import Versions
from truing.tasks.records import Refusal

CLOSED = Refusal(code="route", reason="this part of MLflow is closed here", remedy="see docs/registry.md for what is open")


class Rules:
    def __init__(self, ground: Ground) -> None:
        self.releases = Releases(ground)
        self.versions = Versions(ground, self.releases)
        self.models = Models(ground)
        self.own = Ownership(ground)

    def named(self, path: str) -> Callable[[Act], Refusal | None]:
        found: Callable[[Act], Refusal | None] = attrgetter(path)(self)
        return found

    def user(self, act: Act) -> Refusal | None:
        return Refusal(
            code="user",
            reason="logins are files of the registry's key folder, and MLflow's tables of users and roles open nothing",
            remedy="use `truing keys`, as the registry's account",
        )

    def webhook(self, act: Act) -> Refusal | None:
        return Refusal(
            code="webhook",
            reason="a webhook would have the registry call whatever address somebody names",
            remedy="watch /truing/changes, or set notify.urls for people",
        )

    def graphql(self, act: Act) -> Refusal | None:
        """Queries only. `body` is the request's JSON."""
        from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

        try:
            document = parse(str(act.body.get("query", "")))
        except GraphQLError as error:
            return Refusal(code="graphql", reason=f"expected a GraphQL query, got {error.message}", remedy="mend the query")
        for node in document.definitions:
            if isinstance(node, OperationDefinitionNode) and node.operation is not OperationType.QUERY:
                return Refusal(code="graphql", reason="GraphQL reads only here", remedy="use the REST routes to write")
        return None
