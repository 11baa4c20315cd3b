"""The one judge of legality: digests, signatures, MACs and `admit`. Pure: no clock, no files but those it is told to hash.

Envelopes follow DSSE v1 (secure-systems-lab/dsse): the signature covers `DSSEv1 <len type> <type> <len payload> <payload>`, so
a payload can't be passed off as another type. Keys are Ed25519 (RFC 8032); an algorithm name rides with each signature so that
another can come in beside it. The library for them is imported by who signs or verifies: MACs and digests need none.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from truing.tasks.records import (
    Approval,
    Cause,
    Envelope,
    Head,
    Outcome,
    Record,
    Refusal,
    Release,
    Signature,
    Standing,
    Verdict,
)

VERDICT_TYPE = "application/vnd.truing.verdict.v1+json"
APPROVAL_TYPE = "application/vnd.truing.approval.v1+json"
RELEASE_TYPE = "application/vnd.truing.release.v1+json"
STANDING_TYPE = "application/vnd.truing.standing.v1+json"
HEAD_TYPE = "application/vnd.truing.head.v1+json"

T = TypeVar("T", bound=Record)


def canonical(value: Any) -> bytes:
    """Canonical JSON: keys sorted, no spaces, UTF-8. Two equal records have equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def digest(value: Any) -> str:
    """sha256 hex of the canonical JSON of a record or of plain data."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree_digest(files: Mapping[str, bytes]) -> str:
    """Digest over named files: sha256 of the canonical JSON {relative path: sha256 of its bytes}.

    Takes the bytes, not paths: whoever serves them hashes what it loaded, never what might lie on disk a moment later.
    """
    return digest({name: digest_bytes(data) for name, data in files.items()})


def read_tree(root: Path) -> dict[str, bytes]:
    """All regular files below `root` as {posix path: bytes}. Links are refused: they could point at other bytes later."""
    found: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"expected plain files under {root}, got the link {path.name}; copy its target instead")
        if path.is_file():
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


# --- keys ---------------------------------------------------------------------------------------------------------------------


def new_key() -> bytes:
    """A fresh Ed25519 private key, 32 raw bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def public_key(private: bytes) -> bytes:
    """The 32 raw public bytes of a 32-byte private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(public: bytes) -> str:
    """Short name of a public key: the first 16 hex digits of its sha256."""
    return hashlib.sha256(public).hexdigest()[:16]


def mac(key: bytes, *parts: bytes | str) -> str:
    """HMAC-SHA256 over length-prefixed parts, hex. Lengths keep ("ab","c") and ("a","bc") apart."""
    framed = bytearray()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        framed += len(raw).to_bytes(8, "big")
        framed += raw
    return hmac.digest(key, framed, "sha256").hex()


def mac_matches(key: bytes, given: str, *parts: bytes | str) -> bool:
    """Constant-time comparison; False for anything that is not the right hex."""
    return hmac.compare_digest(mac(key, *parts).encode(), given.encode("utf-8", "replace"))


# --- envelopes ----------------------------------------------------------------------------------------------------------------


def _pae(kind: str, payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def sign(record: Record, kind: str, *private_keys: bytes) -> Envelope:
    """Wrap a record in an envelope signed by each key (order kept)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    payload = canonical(record)
    signatures = tuple(
        Signature(
            key=key_id(public_key(key)),
            algorithm="ed25519",
            bytes=base64.b64encode(Ed25519PrivateKey.from_private_bytes(key).sign(_pae(kind, payload))).decode(),
        )
        for key in private_keys
    )
    return Envelope(payload=base64.b64encode(payload).decode(), type=kind, signatures=signatures)


def open_envelope(envelope: Envelope | str | bytes | None, as_type: type[T], kind: str, keys: Iterable[bytes]) -> T | Refusal:
    """The record inside, if at least one signature by one of the trusted public `keys` holds; else why not."""
    if envelope is None:
        return Refusal(code="envelope.missing", reason=f"no signed {_word(kind)} is attached", remedy="wait for the steward")
    try:
        if not isinstance(envelope, Envelope):
            envelope = msgspec.json.decode(envelope, type=Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
    except (msgspec.DecodeError, ValueError):
        return Refusal(
            code="envelope.unreadable",
            reason=f"the {_word(kind)} attached is not a signed envelope",
            remedy="ask the steward to sign it again",
        )
    if envelope.type != kind:
        return Refusal(
            code="envelope.type",
            reason=f"expected a signed {_word(kind)}, got an envelope of type {envelope.type}",
            remedy="attach the right envelope",
        )
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    trusted = {key_id(key): key for key in keys}
    for signature in envelope.signatures:
        key = trusted.get(signature.key)
        if key is None or signature.algorithm != "ed25519":
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(
                base64.b64decode(signature.bytes, validate=True), _pae(kind, payload)
            )
        except (InvalidSignature, ValueError):
            continue
        try:
            return msgspec.json.decode(payload, type=as_type)
        except msgspec.DecodeError as error:
            return Refusal(
                code="envelope.payload", reason=f"the {_word(kind)} does not read: {error}", remedy="run matching versions"
            )
    return Refusal(
        code="envelope.signature",
        reason=f"no signature on the {_word(kind)} is by a trusted key",
        remedy="only the steward's and the registry's keys count; see `truing verify`",
    )


def _word(kind: str) -> str:
    return kind.removeprefix("application/vnd.truing.").split(".", 1)[0]


# --- admit --------------------------------------------------------------------------------------------------------------------


class Keys(Record, frozen=True):
    """The public keys that count, by office. Raw 32 bytes each; several at once while a key rotates."""

    gate: tuple[bytes, ...] = ()
    registry: tuple[bytes, ...] = ()
    release: tuple[bytes, ...] = ()


class Facts(Record, frozen=True):
    """What the asker saw. Each process collects these itself; nothing here is believed beyond its signatures and digests."""

    problem: str
    version: str
    payload: str | None = None  # digest of the bytes at hand
    verdict: Envelope | str | None = None
    approval: Envelope | str | None = None  # the decision that stands; approve: the one made before this
    release: Envelope | str | None = None
    policy: str | None = None  # digest of the policy that an approver accepted
    trainer: str | None = None  # who registered the version
    actor: str | None = None  # who acts now (approve: the person)
    decision: str | None = None  # approve: approved | rejected | revoked
    reason: str = ""
    roles: frozenset[str] = frozenset()  # roles of the actor
    frozen: bool = False  # `truing freeze`: nothing is promoted
    override: int = 0  # persons who may together approve a blocked version, by the accepted policy; 0 = never
    standing: Envelope | str | None = None  # an approval in advance, when this version has none of its own
    champion: str | None = None  # payload digest that serves now; None = nothing does, or this version itself


def admit(facts: Facts, act: str, *, keys: Keys, now: float, floor_sequence: int = 0) -> Refusal | None:
    """May this act happen? None = yes; else the first reason against it.

    `act` is "approve" (asked by the registry when a person decides), "promote" (by registry and steward before `champion`
    moves) or "serve" (by the gateway before it loads). `floor_sequence` is the highest sequence the asker has served.

    A withdrawal is admitted to "serve" whatever the bytes: it says that nothing serves. Who serves looks at `release.cause`.
    """
    if act == "approve":
        return _approve(facts, keys)
    if act == "promote":
        return _promote(facts, keys, now) or (_serve(facts, keys, now, floor_sequence) if facts.release is not None else None)
    if act == "serve":
        return _serve(facts, keys, now, floor_sequence)
    raise ValueError(f"expected act approve, promote or serve, got {act!r}")


def _verdict(facts: Facts, keys: Keys) -> Verdict | Refusal:
    verdict = open_envelope(facts.verdict, Verdict, VERDICT_TYPE, keys.gate)
    if isinstance(verdict, Refusal):
        if verdict.code == "envelope.missing":
            return Refusal(
                code="verdict.missing",
                reason=f"version {facts.version} has no verdict yet",
                remedy="wait until the steward has judged it",
            )
        return verdict
    if verdict.problem != facts.problem:
        return Refusal(
            code="verdict.problem",
            reason=f"the verdict is about {verdict.problem}, not {facts.problem}",
            remedy="let the steward judge this version",
        )
    if facts.payload is not None and verdict.candidate != facts.payload:
        return Refusal(
            code="verdict.payload",
            reason=f"the verdict judged payload {verdict.candidate[:12]}, this version holds {facts.payload[:12]}",
            remedy="register the changed bytes as a new version",
        )
    return verdict


def _approve(facts: Facts, keys: Keys) -> Refusal | None:
    if "approver" not in facts.roles:
        return Refusal(
            code="approval.role",
            reason=f"{facts.actor or 'nobody'} is not an approver of {facts.problem}",
            remedy="ask one of its approvers",
        )
    if facts.decision not in ("approved", "rejected", "revoked"):
        return Refusal(
            code="approval.decision",
            reason=f"expected approval = approved, rejected or revoked, got {facts.decision!r}",
            remedy="set the tag to one of these",
        )
    if facts.trainer is None or facts.actor == facts.trainer:
        return Refusal(
            code="approval.self",
            reason=f"{facts.actor} registered version {facts.version} and can't decide on it",
            remedy="another approver has to",
        )
    verdict = _verdict(facts, keys)
    if isinstance(verdict, Refusal):
        return verdict
    if facts.decision != "approved":
        return None
    if verdict.outcome is Outcome.BLOCK and facts.override < 2:
        return _block_refusal(verdict, facts)
    if facts.policy is None or verdict.policy != facts.policy:
        return _policy_refusal(verdict, facts)
    if verdict.outcome is not Outcome.PASS and not facts.reason.strip():
        said = "inconclusive" if verdict.outcome is Outcome.INCONCLUSIVE else "blocked"
        return Refusal(
            code="approval.reason",
            reason=f"version {facts.version} is {said} ({verdict.reason}) and no approval.reason is given",
            remedy="set the tag approval.reason first, then approval",
        )
    if verdict.outcome is Outcome.BLOCK and facts.actor in together(_standing_so_far(facts, keys), None, verdict=verdict):
        return Refusal(
            code="approval.twice",
            reason=f"{facts.actor} has approved the blocked version {facts.version} already",
            remedy=f"{facts.override} different approvers are needed; another one has to",
        )
    return None


def together(before: Approval | None, actor: str | None, *, verdict: Verdict) -> tuple[str, ...]:
    """Who stands behind an override of this verdict: those of the decision `before`, and `actor`. In the order they came.

    A decision on another verdict, or one that was no approval, brings nobody along.
    """
    counts = before is not None and before.decision == "approved" and before.override and before.verdict == digest(verdict)
    people = (*(before.by if before is not None and counts else ()), *([actor] if actor else ()))
    return tuple(dict.fromkeys(people))


def _standing_so_far(facts: Facts, keys: Keys) -> Approval | None:
    before = open_envelope(facts.approval, Approval, APPROVAL_TYPE, keys.registry)
    return None if isinstance(before, Refusal) else before


def _block_refusal(verdict: Verdict, facts: Facts) -> Refusal:
    return Refusal(
        code="verdict.block",
        reason=f"version {facts.version} is blocked: {verdict.reason}",
        remedy="its policy knows no override; train a candidate without the harm",
    )


def _policy_refusal(verdict: Verdict, facts: Facts) -> Refusal:
    if facts.policy is None:
        return Refusal(
            code="policy.unaccepted",
            reason=f"no approver has accepted a policy of {facts.problem}",
            remedy=f"an approver sets the model's tag policy.accepted = {verdict.policy}",
        )
    return Refusal(
        code="policy.changed",
        reason=f"the verdict used policy {verdict.policy[:12]}, accepted is {facts.policy[:12]}",
        remedy="let the steward judge under the accepted policy",
    )


def _promote(facts: Facts, keys: Keys, now: float) -> Refusal | None:
    if facts.release is not None:
        release = open_envelope(facts.release, Release, RELEASE_TYPE, keys.release)
        if isinstance(release, Release) and release.cause in (Cause.ROLLBACK, Cause.WITHDRAW):
            return None  # asked for by an approver, signed by the steward; `_serve` checks the statement against the bytes
    if facts.frozen:
        return Refusal(code="frozen", reason=f"{facts.problem} is frozen", remedy="run `truing thaw` with a reason first")
    if facts.payload is None:
        return Refusal(
            code="payload.missing",
            reason=f"version {facts.version} has no readable payload",
            remedy="register the candidate again",
        )
    verdict = _verdict(facts, keys)
    if isinstance(verdict, Refusal):
        return verdict
    if verdict.outcome is Outcome.BLOCK and facts.override < 2:
        return _block_refusal(verdict, facts)
    if facts.policy is None or verdict.policy != facts.policy:
        return _policy_refusal(verdict, facts)
    if facts.champion not in (None, facts.payload, verdict.champion):
        return Refusal(
            code="verdict.stale",
            reason=f"version {facts.version} was compared with another champion than the one that serves now",
            remedy="wait for the steward to judge it again",
        )
    if facts.approval is None and facts.standing is not None:
        return _in_advance(facts, verdict, keys, now)
    return _approved(facts, verdict, keys, now)


def _approved(facts: Facts, verdict: Verdict, keys: Keys, now: float) -> Refusal | None:
    """Does a person's decision on this very verdict let it go out?"""
    approval = open_envelope(facts.approval, Approval, APPROVAL_TYPE, keys.registry)
    if isinstance(approval, Refusal):
        if approval.code == "envelope.missing":
            state = "" if verdict.outcome is Outcome.PASS else f" and its verdict is {verdict.outcome}: {verdict.reason}"
            return Refusal(
                code="approval.missing",
                reason=f"version {facts.version} is not approved{state}",
                remedy="an approver sets its tag approval = approved"
                + ("" if verdict.outcome is Outcome.PASS else " with approval.reason"),
            )
        return approval
    if approval.problem != facts.problem or approval.verdict != digest(verdict):
        return Refusal(
            code="approval.other",
            reason=f"the approval on version {facts.version} was given to another verdict",
            remedy="an approver has to approve the present one",
        )
    if approval.decision != "approved":
        return Refusal(
            code=f"approval.{approval.decision}",
            reason=f"version {facts.version} was {approval.decision} by {' and '.join(approval.by)}"
            + (f": {approval.reason}" if approval.reason else ""),
            remedy="a new candidate, or a new decision by an approver",
        )
    if not approval.by or facts.trainer is None or facts.trainer in approval.by:
        return Refusal(
            code="approval.self",
            reason=f"version {facts.version} was approved by its own trainer",
            remedy="another approver has to",
        )
    if approval.expires is not None and approval.expires <= now:
        return Refusal(
            code="approval.expired",
            reason=f"the approval of version {facts.version} has expired",
            remedy="approve it again",
        )
    if verdict.outcome is not Outcome.PASS and (not approval.reason.strip() or approval.expires is None):
        return Refusal(
            code="approval.reason",
            reason=f"version {facts.version} is {verdict.outcome} and its approval names no reason or no end",
            remedy="set approval.reason, then approve again",
        )
    people = len(set(approval.by))
    if verdict.outcome is Outcome.BLOCK and (not approval.override or people < facts.override):
        return Refusal(
            code="approval.persons",
            reason=f"version {facts.version} is blocked ({verdict.reason}); {people} of {facts.override} approvers override it",
            remedy="another approver has to approve it too, or nobody",
        )
    return None


def _in_advance(facts: Facts, verdict: Verdict, keys: Keys, now: float) -> Refusal | None:
    """Does a standing approval cover it? Drift, base and how many went out today are the caller's to check."""
    standing = open_envelope(facts.standing, Standing, STANDING_TYPE, keys.registry)
    if isinstance(standing, Refusal):
        return standing
    if standing.problem != facts.problem:
        return Refusal(
            code="standing.other",
            reason=f"the standing approval is about {standing.problem}, not {facts.problem}",
            remedy="an approver gives one for this problem",
        )
    if standing.decision != "approved" or standing.expires <= now:
        return Refusal(
            code="standing.ended",
            reason=f"the standing approval of {facts.problem} has "
            + ("expired" if standing.decision == "approved" else f"been {standing.decision}"),
            remedy=f"an approver approves version {facts.version}, or gives a standing approval anew",
        )
    if not standing.by or facts.trainer is None or facts.trainer in standing.by:
        return Refusal(
            code="approval.self",
            reason=f"the standing approval of {facts.problem} is by the trainer of version {facts.version}",
            remedy="another approver has to",
        )
    if verdict.outcome is not Outcome.PASS:
        return Refusal(
            code="standing.outcome",
            reason=f"version {facts.version} is {verdict.outcome} ({verdict.reason}); a standing approval covers a pass only",
            remedy=f"an approver decides on version {facts.version} itself",
        )
    return None


def _serve(facts: Facts, keys: Keys, now: float, floor_sequence: int) -> Refusal | None:
    release = open_envelope(facts.release, Release, RELEASE_TYPE, keys.release)
    if isinstance(release, Refusal):
        return release
    if release.problem != facts.problem or release.version != facts.version:
        return Refusal(
            code="release.other",
            reason=f"the release statement is for {release.problem} version {release.version}, "
            f"not {facts.problem} version {facts.version}",
            remedy="fetch the statement of this version",
        )
    if release.cause is not Cause.WITHDRAW and (facts.payload is None or release.payload != facts.payload):
        return Refusal(
            code="release.payload",
            reason=f"the release names payload {release.payload[:12]}, the bytes at hand are "
            f"{facts.payload[:12] if facts.payload else 'missing'}",
            remedy="the artifact was altered after its release: restore it, or release another version",
        )
    if release.sequence < max(1, floor_sequence):
        return Refusal(
            code="release.sequence",
            reason=f"release {release.sequence} is older than {floor_sequence}, which was served already",
            remedy="roll back with `truing rollback`, which makes a new release",
        )
    if release.expires is not None and release.expires <= now:
        return Refusal(code="release.expired", reason=f"release {release.sequence} has expired", remedy="release it again")
    if release.cause in (Cause.GENESIS, Cause.PROMOTE) and (release.verdict is None or release.approval is None):
        return Refusal(
            code="release.evidence",
            reason=f"release {release.sequence} names no verdict or no approval",
            remedy="let the steward release it",
        )
    return None


# --- head ---------------------------------------------------------------------------------------------------------------------


def open_head(envelope: Envelope | str | bytes | None, problem: str, *, keys: Keys, now: float) -> Head | Refusal:
    """The steward's word for what is newest, if it is signed, about this problem and not expired; else why not."""
    head = open_envelope(envelope, Head, HEAD_TYPE, keys.release)
    if isinstance(head, Refusal):
        return head
    if head.problem != problem:
        return Refusal(
            code="head.other",
            reason=f"the head is about {head.problem}, not {problem}",
            remedy="fetch the head of this problem",
        )
    if head.expires <= now:
        return Refusal(
            code="head.expired",
            reason=f"the head of {problem} names release {head.sequence} and has expired",
            remedy="wait for the steward to sign the next one; see `truing status`",
        )
    return head
