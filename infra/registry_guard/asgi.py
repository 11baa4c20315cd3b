"""First form: passes everything."""

from __future__ import annotations

from typing import Any

from truing.infra.registry_guard.guard import Guard


class Gate:
    def __init__(self, app: Any, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)
