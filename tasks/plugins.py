"""Plug-ins of installed packages, found by entry point and imported only when something names them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from truing.tasks.errors import ProblemError

EXPECTATIONS = "truing.expectations"


def plugins(group: str) -> dict[str, EntryPoint]:
    """{name: entry point} of a group, in the order of their names. Raises ProblemError when two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for one in sorted(entry_points(group=group), key=lambda one: (one.name, one.value)):
        if one.name in found and found[one.name].value != one.value:
            both = f"{found[one.name].value} and {one.value}"
            raise ProblemError(f"{group}: {one.name}: expected one plug-in of that name, got {both}; uninstall one")
        found[one.name] = one
    return found


def is_class(one: EntryPoint) -> bool:
    """Whether it names a class, by its spelling (PEP 8): told without importing what may take seconds."""
    return one.attr.rpartition(".")[2][:1].isupper()


def version(one: EntryPoint) -> str:
    """`value==version of its package`: what changes when the plug-in does."""
    return f"{one.value}=={one.dist.version if one.dist else '?'}"


def load(one: EntryPoint) -> Any:
    """The object it names. Raises ProblemError in one line, whatever its package does at import."""
    try:
        return one.load()
    except Exception as error:  # noqa: BLE001 - somebody else's code
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ProblemError(
            f"plug-in {one.name} ({one.value}): expected to import it, got {cause}; mend or uninstall it"
        ) from None
