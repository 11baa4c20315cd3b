"""A request as the rules see it, and how a refusal is worded and answered."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from truing.tasks.records import Refusal

ROLES = ("admin", "trainer", "steward", "approver", "gateway")  # the gateway only reads
RESERVED = re.compile(r"^(approval|verdict|release|policy|anchor|rollback|frozen|trainer|payload|mlflow)(\.|$)")
STAMPS = re.compile(
    r"^(trainer|approval\.(stamp|by|at)|policy\.(stamp|by|at)|anchor\.(by|at)|rollback\.(by|at)|frozen\.(by|at))$"
)
_LOOK = str.maketrans("013457@$|", "oieastasi")


@dataclass(frozen=True)
class Act:
    """Who asks for what. `body` is MLflow's own parsed message, so the rule reads exactly what the handler will read."""

    user: str
    now: float
    function: str
    method: str
    body: Any
    path: dict[str, str] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """The login's office; a login that is none of them may only read."""
        return self.user if self.user in ROLES else "reader"

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.role})

    @property
    def target(self) -> str:
        """What it is about, for the audit: `adult/4 approval=approved`."""
        body = self.body
        name = (
            _text(body, "name")
            or _text(body, "run_id")
            or _text(body, "model_id")
            or _text(body, "username")
            or "/".join(self.path.values())
        )
        version = _text(body, "version")
        detail = _text(body, "alias") or _text(body, "key")
        value = _text(body, "value")
        words = name + (f"/{version}" if version else "")
        if detail:
            words += f" {detail}" + (f"={value[:120]}" if value else "")
        return words or self.function


def _text(body: Any, field_name: str) -> str:
    value = body.get(field_name) if isinstance(body, dict) else getattr(body, field_name, "")
    return value if isinstance(value, str) else ""


def normal(text: str) -> str:
    """A key as people see it: compatibility forms, case and blanks folded."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def looks_like_champion(alias: str) -> bool:
    """Would somebody reading quickly take it for `champion`? (case, digits for letters, separators, plural)"""
    plain = re.sub(r"[^a-z]", "", normal(alias).translate(_LOOK))
    return "champion" in plain or "champlon" in plain or "charnpion" in plain


def only(office: str, what: str) -> Refusal:
    return Refusal(code="role", reason=f"only the {office} {what}", remedy=f"leave it to the {office}")


def answer(refusal: Refusal) -> str:
    """MLflow's error format; `refusal` beside it for our own clients."""
    return json.dumps(
        {
            "error_code": "PERMISSION_DENIED",
            "message": str(refusal),
            "refusal": {"code": refusal.code, "reason": refusal.reason, "remedy": refusal.remedy},
        }
    )
