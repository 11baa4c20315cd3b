"""`truing up --ports auto`: a free port in the place of each that is taken."""

from __future__ import annotations

from typing import Any

from truing.infra.processes import taken
from truing.infra.settings import Settings

STEP = 100  # a taken port moves by hundreds, so that the ports of one stack stay beside one another


def moved(settings: Settings) -> Settings:
    """The settings with free ports. Those that are free stay; a broker of your own is where it is."""
    chosen: set[int] = set()
    ports = {name: _free(settings.host, port, chosen) for name, port in settings.ports}
    found: dict[str, Any] = {"ports": settings.ports.model_copy(update=ports)}
    if settings.kafka.broker != "external":
        from truing.infra.broker import address

        host, port = address(settings)
        bootstrap = f"{settings.kafka.bootstrap.rpartition(':')[0]}:{_free(host, port, chosen)}"
        found["kafka"] = settings.kafka.model_copy(update={"bootstrap": bootstrap})
        if settings.kafka.broker == "kafka":
            from truing.infra.apache import CONTROLLER_HOST, controller_port

            there = _free(CONTROLLER_HOST, controller_port(settings.model_copy(update=found)), chosen)
            found["kafka"] = found["kafka"].model_copy(update={"controller": there})
    return settings.model_copy(update=found)


def _free(host: str, port: int, chosen: set[int]) -> int:
    """The first of port, port + 100, … that nobody has; the port itself if none is, for the check that follows to name it."""
    for one in range(port, 65536, STEP):
        if one not in chosen and taken(host, one) is None:
            chosen.add(one)
            return one
    return port
