"""What runs on a laptop, as data: command, port and environment of every part, and the supervisor's configuration of them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from truing.infra.accounts import account, office
from truing.infra.keepers import parts as keepers
from truing.infra.processes import MARKER, marker
from truing.infra.settings import Settings, child_environment
from truing.infra.tls import client_environment, server_options
from truing.tasks.records import Record

DEEPEST = 70  # bytes of a temporary folder's name: Python's own sockets in it take 32 more, and may have 107


class Program(Record, frozen=True):
    """One supervised process. `server` parts are stopped after those that talk to them."""

    name: str
    command: tuple[str, ...]  # empty: the broker's; the embedded one makes its folder when asked for
    port: int | None = None
    setting: str = ""  # the environment variable that moves the port
    url: str | None = None  # answers 2xx when healthy
    server: bool = False
    says: str = ""  # one line for people


def programs(settings: Settings) -> tuple[Program, ...]:
    """All parts, servers first."""
    python = sys.executable
    quiet = ("--no-access-log", "--log-level", "warning")
    uvicorn = (python, "-m", "uvicorn", "--factory", "--host", settings.host, *quiet, *server_options(settings))
    found: list[Program] = []
    if settings.kafka.broker != "external":
        port = int(settings.kafka.bootstrap.rpartition(":")[2])
        found.append(
            Program(
                name="broker",
                command=(),
                port=port,
                setting="TRUING_KAFKA__BOOTSTRAP",
                server=True,
                says=f"{'Apache ' if settings.kafka.broker == 'kafka' else ''}Kafka at {settings.kafka.bootstrap}",
            )
        )
    ports = settings.ports
    found += [
        Program(
            name="registry",
            command=(*uvicorn, "--port", str(ports.registry), "truing.infra.registry_guard.app:create_app"),
            port=ports.registry,
            setting="TRUING_PORTS__REGISTRY",
            url=f"{settings.registry_url}/health",
            server=True,
            says=f"MLflow at {settings.registry_url}",
        ),
        Program(
            name="prefect",
            command=(*uvicorn, "--port", str(ports.prefect), "truing.infra.workflow:create_app"),
            port=ports.prefect,
            setting="TRUING_PORTS__PREFECT",
            url=f"{settings.prefect_url}/health",
            server=True,
            says=f"Prefect at {settings.prefect_url.removesuffix('/api')}",
        ),
        Program(name="runner", command=(python, "-m", "truing.flows.serve"), says="curate, improve, monitor"),
        *(
            Program(name=name, command=(python, "-m", "truing.flows.always", str(number)), says="events to rows")
            for number, name in enumerate(keepers(settings))
        ),
        Program(name="steward", command=(python, "-m", "truing.flows.steward"), says="verdicts and releases"),
        Program(
            name="gateway",
            command=(*uvicorn, "--port", str(ports.gateway), "truing.infra.gateway.app:create_app"),
            port=ports.gateway,
            setting="TRUING_PORTS__GATEWAY",
            url=f"{settings.gateway_url}/v2/health/live",
            says=f"answers at {settings.gateway_url}",
        ),
    ]
    return tuple(found)


def environment(settings: Settings) -> dict[str, str]:
    """What every part runs with: settings, the stack's marker, and where Prefect is. No secret of ours: each reads its own."""
    home = settings.data / "prefect"
    return child_environment(
        settings,
        **{
            MARKER: marker(settings.data),
            "PREFECT_HOME": str(home),
            "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
            "PREFECT_API_URL": settings.prefect_url,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # leases in memory are forgotten with the server, and their slots stay taken for ever
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "60",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT__SERVER_FINAL": "1",
            **client_environment(settings),
        },
    )


def own(settings: Settings, part: str) -> dict[str, str]:
    """What only this part runs with: its office, and a home of its own for what Prefect keeps beside a process.

    Temporary files too: Prefect's runner keeps a folder of one name there for all users of a machine. Secrets of the settings
    that it has no use for are blank.
    """
    found = {"TRUING_OFFICE": office(part)}
    scratch = str(settings.scratch(part))
    if len(scratch.encode()) <= DEEPEST or settings.accounts.separate:
        found["TMPDIR"] = scratch
    if part != "prefect":
        home = settings.place(part) / "prefect"
        found |= {
            "PREFECT_HOME": str(home),
            "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
            "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        }
    if part != "steward":  # it alone tells people
        found["TRUING_NOTIFY__URLS"] = "[]"
    if part in ("registry", "prefect"):  # no clients of the broker
        found["TRUING_KAFKA__SASL_PASSWORD"] = ""
    if settings.accounts.separate:  # supervisord hands down root's
        name = str(account(settings, part))
        found |= {"HOME": scratch, "USER": name, "LOGNAME": name}
    return found


def socket_path(settings: Settings) -> Path:
    """Where the supervisor listens: in /tmp if the data folder is too deep for a socket's 107 bytes, whatever TMPDIR says."""
    path = settings.data / "run" / "supervisor.sock"
    if len(str(path).encode()) < 100:
        return path
    return Path("/tmp") / f"truing-{marker(settings.data)}.sock"  # noqa: S108 - named after the folder, of mode 0600


def configuration(settings: Settings, parts: tuple[Program, ...]) -> str:
    """The supervisor's configuration. It holds no secret: those travel in the environment."""
    run, logs = settings.data / "run", settings.logs
    socket = socket_path(settings)
    lines = [
        "[unix_http_server]",
        f"file={_literal(socket)}",
        "chmod=0600",
        "[supervisord]",
        f"logfile={_literal(logs / 'supervisor.log')}",
        "logfile_maxbytes=2MB",
        "logfile_backups=1",
        f"pidfile={_literal(run / 'supervisor.pid')}",
        f"childlogdir={_literal(logs)}",
        f"directory={_literal(settings.data)}",
        *(["user=root"] if os.geteuid() == 0 else []),  # said, or it warns
        f"identifier=truing-{marker(settings.data)}",
        "nocleanup=true",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for part in parts:
        command = part.command
        if not command:
            from truing.infra.broker import command as broker

            command = tuple(broker(settings))
        lines += [
            f"[program:{part.name}]",
            f"command={_literal(shlex.join(command))}",
            f"directory={_literal(settings.data)}",
            f"priority={10 if part.server else 20}",
            "autorestart=true",
            "startsecs=1",
            "startretries=30",
            "stopasgroup=true",  # a runner's flows end with it
            "killasgroup=true",
            "stopwaitsecs=15",
            "redirect_stderr=true",
            "environment=" + ",".join(f'{key}="{_literal(value)}"' for key, value in own(settings, part.name).items()),
            *([f"user={account(settings, part.name)}", "umask=007"] if settings.accounts.separate else []),
            f"stdout_logfile={_literal(logs / (part.name + '.log'))}",
            "stdout_logfile_maxbytes=10MB",
            "stdout_logfile_backups=2",
        ]
    return "\n".join(lines) + "\n"


def _literal(value: Path | str) -> str:
    return str(value).replace("%", "%%")
