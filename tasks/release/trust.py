"""Which https servers our clients believe: those that the settings' own authority vouches for, or else the public ones."""

from __future__ import annotations

import ssl
from pathlib import Path

from truing.tasks.errors import Unavailable


def authority(ca: Path) -> ssl.SSLContext:
    """Trust in servers that this PEM authority vouches for, and in no others. Raises Unavailable when it does not read."""
    try:
        return ssl.create_default_context(cafile=str(ca))
    except OSError as error:  # ssl.SSLError is one
        raise Unavailable(
            f"expected a PEM certificate at {ca}, got: {error.strerror or error}; correct TRUING_TLS__CA"
        ) from None


def untrusted(error: BaseException | None) -> str | None:
    """What a server's certificate lacks, in OpenSSL's words, if that is why a request failed."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return str(error.verify_message)
        error = error.__cause__ or error.__context__
    return None
