"""Surprises, drawn as a tree. Outcomes (a bad row, a failed gate, a missing approval) are values, not exceptions.

    TruingError            exit 1: broken
    ├── UsageError         exit 2: what was asked is not possible as written
    │   ├── SettingsError    a setting or an environment variable
    │   ├── ProblemError     problem.toml or policy.toml
    │   └── DataError        columns, types or emptiness of data handed in
    ├── Refused            exit 3: a lock held; carries the Refusal
    └── Unavailable        exit 1: a part that is needed does not answer (broker, registry, Prefect, a port, a folder)

A message is one line: expected, got, remedy.
"""

from __future__ import annotations

from truing.tasks.records import Refusal


class TruingError(Exception):
    """Base of everything raised on purpose."""

    exit_code = 1


class UsageError(TruingError):
    exit_code = 2


class SettingsError(UsageError):
    pass


class ProblemError(UsageError):
    pass


class DataError(UsageError):
    pass


class Refused(TruingError):
    """A lock held. `refusal` says which one and what would open it."""

    exit_code = 3

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Unavailable(TruingError):
    pass
