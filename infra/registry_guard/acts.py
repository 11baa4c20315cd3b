"""A request as the rules see it, and how a refusal is worded and answered."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from truing.tasks.records import Refusal

RESERVED = re.compile(r"^(approval|verdict|release|policy|anchor|rollback|frozen|standing|trainer|payload|mlflow)(\.|$)")
STAMPS = re.compile(r"^(trainer|payload|(approval|policy|standing)\.(stamp|by|at)|(anchor|rollback|frozen)\.(by|at))$")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_LOOK = str.maketrans("013457@$|", "oieastasi")


@dataclass(frozen=True)
class Act:
    """Who asks for what. `body` is MLflow's own parsed message, so the rule reads exactly what the handler will read.

    `role` is the login's office (`users.office`). `found` is what the rule has looked up on the way and the record needs.
    """

    user: str
    role: str
    now: float
    function: str
    method: str
    body: Any
    path: dict[str, str] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.role})

    @property
    def matter(self) -> str:
        """What waits for what: acts on one problem for each other, tags without power only for others of the same key."""
        key, name = _text(self.body, "key"), _text(self.body, "name")
        if not key or (RESERVED.match(key) and not key.startswith("verdict.")):
            return name
        return f"{name}/{_text(self.body, 'version')} {key}"

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


def plain(key: str) -> Refusal | None:
    """Keys are exact; stamps are nobody's."""
    if key != normal(key) and RESERVED.match(normal(key)):
        return Refusal(
            code="tag.lookalike", reason=f"the tag {key!r} could be taken for {normal(key)!r}", remedy="write it exactly"
        )
    if STAMPS.match(key):
        return Refusal(code="tag.stamp", reason=f"the tag {key} is a stamp that only the registry sets", remedy="leave it out")
    return None


def numbered(act: Act) -> Refusal | None:
    """A version's number in one spelling only: MLflow would read 01 as 1."""
    if _NUMBER.fullmatch(act.body.version):
        return None
    return Refusal(
        code="version.number", reason=f"expected a version number, got {act.body.version[:40]!r}", remedy="write it plainly"
    )
