"""One part in the foreground, where something else supervises: containers, systemd.

python -m truing.infra.part ingest             becomes that part, with the environment that `truing up` gives it
python -m truing.infra.part ingest --healthy   exit 0 if it answers, or has lately said that it lives
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from truing.infra import keepers
from truing.infra.calls import call
from truing.infra.heartbeat import age, last_beat
from truing.infra.programs import Program, environment, own, programs
from truing.infra.settings import Settings, current
from truing.infra.stack import BEAT_S
from truing.tasks.errors import TruingError, Unavailable, UsageError

BROKER_PATIENCE_S = 60.0
UMASK = 0o007  # as below supervisord: the lake's writers share a group, and nobody else reads


def chosen(settings: Settings, name: str) -> Program:
    """The part of that name; `ingest` is keeper `ingest.number`. Raises SettingsError, UsageError."""
    parts = {part.name: part for part in programs(settings)}
    if name == keepers.PART:
        name = keepers.part(keepers.share(settings, settings.ingest.number)[0])
    if name not in parts:
        raise UsageError(f"expected a part out of {', '.join(parts)}, got {name!r}; name one")
    return parts[name]


def become(settings: Settings, part: Program) -> None:
    """Replace this process by the part. Raises Unavailable if its broker does not answer, or it can't be started."""
    from truing.infra.broker import command, ensure_topics

    settings.scratch(part.name).mkdir(parents=True, exist_ok=True)
    if keepers.is_keeper(part.name) and settings.kafka.broker == "external":
        ensure_topics(settings, BROKER_PATIENCE_S)  # `truing up` does it for a broker of its own
    words = part.command or tuple(command(settings))
    os.umask(UMASK)
    sys.stdout.flush()
    try:
        os.chdir(settings.data)
        os.execve(words[0], words, environment(settings) | own(settings, part.name))  # noqa: S606 - no shell is meant
    except OSError as error:
        raise Unavailable(f"{part.name}: expected to start {words[0]}, got: {error.strerror}; check the installation") from None


def check_health(settings: Settings, part: Program, *, steady: float | None = None) -> None:
    """Raises Unavailable, in one line, unless the part answers (servers) or has lately said that it lives (the others).

    `steady` is `heartbeat.uptime()`.
    """
    if part.url is not None:
        call("GET", part.url, timeout=2.0, ca=settings.tls.ca)
        return
    since = age(last_beat(settings, part.name), steady=steady)
    if since is None or since > BEAT_S:
        said = "none" if since is None else f"the last {since:.0f} s ago"
        raise Unavailable(f"{part.name}: expected a sign of life within {BEAT_S:.0f} s, got {said}; see its log")


def main(arguments: Sequence[str]) -> int:
    try:
        name, *options = arguments or ("",)
        if options not in ([], ["--healthy"]):
            raise UsageError(f"expected PART [--healthy], got {' '.join(arguments)}; see the module's first lines")
        settings = current()
        part = chosen(settings, name)
        if options:
            check_health(settings, part)
        else:
            become(settings, part)
    except TruingError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
