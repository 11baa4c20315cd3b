"""Certificates of our servers: how uvicorn is given them, how Prefect's client is, and what `truing up` tries beforehand."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from truing.infra.settings import Settings
from truing.tasks.errors import Unavailable
from truing.tasks.release.trust import authority


def server_options(settings: Settings) -> tuple[str, ...]:
    """uvicorn's options; none without a certificate."""
    tls = settings.tls
    return ("--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key)) if tls.certificate else ()


def client_environment(settings: Settings) -> dict[str, str]:
    """What makes Prefect's own clients believe our authority."""
    return {"PREFECT_API_SSL_CERT_FILE": str(settings.tls.ca)} if settings.tls.ca else {}


def check(settings: Settings) -> None:
    """Shake hands in memory, as server and as client, under each name that clients use.

    Raises Unavailable, in one line, for a certificate or key that does not read, or one that our clients would not believe.
    """
    tls = settings.tls
    if tls.certificate is None or tls.key is None:
        return
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path in (tls.certificate, tls.key):
        try:
            path.read_bytes()
        except OSError as error:
            raise Unavailable(f"expected a PEM file at {path}, got: {error.strerror}; correct TRUING_TLS__*") from None
    try:
        server.load_cert_chain(tls.certificate, tls.key)
    except ssl.SSLError as error:
        got = error.reason or str(error)
        raise Unavailable(
            f"expected a PEM certificate {tls.certificate} with its key {tls.key}, got: {got}; correct them"
        ) from None
    client = ssl.create_default_context() if tls.ca is None else authority(tls.ca)
    for host in sorted({getattr(settings.hosts, name) or settings.host for name in type(settings.hosts).model_fields}):
        try:
            _shake(server, client, host)
        except ssl.SSLError as error:
            got = getattr(error, "verify_message", "") or error.reason or str(error)
            raise Unavailable(
                f"expected the certificate {tls.certificate} to prove {host} to our clients, got: {got}; "
                "name its authority in TRUING_TLS__CA, or have one made for that host"
            ) from None


def distrust(host: str, port: int, kafka: dict[str, Any]) -> str | None:
    """Why a broker and a client with these options (`broker.connection`) don't believe one another; None if they do.

    The client library retries and says no more than that it timed out.
    """
    try:
        context = ssl.create_default_context(cafile=kafka.get("ssl_cafile"))
        if "ssl_certfile" in kafka:
            context.load_cert_chain(kafka["ssl_certfile"], kafka.get("ssl_keyfile"))
        with socket.create_connection((host, port), 2.0) as plain, context.wrap_socket(plain, server_hostname=host) as secured:
            secured.settimeout(0.5)
            secured.recv(1)  # in TLS 1.3 a refusal of our own certificate comes with the first bytes
    except TimeoutError:  # it waits for a request: all is well
        return None
    except ssl.SSLError as error:
        return getattr(error, "verify_message", "") or error.reason or str(error)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        client.wrap_bio(back, there, server_hostname=host),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(8):  # each turn answers what the other has sent; TLS 1.2 takes the most, three
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            return
    raise ssl.SSLError("the handshake does not end")
