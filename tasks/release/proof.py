"""Does everything about a version still say the same? Each claim checked against the signatures and digests that carry it.

What is believed: the audit (chained, signed by the registry), the steward's book (chained, signed by the release key) and the
bytes as hashed now. What is compared with it: MLflow's tags and aliases, and what the gateway remembers. Pure: `Evidence` is
what somebody has gathered, from files or over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from truing.tasks.records import Approval, Cause, Record, Refusal, Release, Standing, Verdict
from truing.tasks.release.acts import Docket
from truing.tasks.release.book import Book
from truing.tasks.release.versions import Model, Version, is_frozen
from truing.tasks.seal import (
    APPROVAL_TYPE,
    RELEASE_TYPE,
    STANDING_TYPE,
    VERDICT_TYPE,
    Keys,
    digest,
    open_envelope,
    open_head,
    tree_digest,
)

OK, DIFFERS, MISSING, UNREAD = "ok", "differs", "missing", "unread"


class Check(Record, frozen=True):
    """One claim. `state`: ok; differs; missing (it has to be there); unread (this user can't see it, so nothing is said)."""

    about: str  # "version 3", or the problem's name
    name: str
    state: str
    expected: str = ""
    got: str = ""
    note: str = ""

    @property
    def broken(self) -> bool:
        return self.state in (DIFFERS, MISSING)


class Remembered(Record, frozen=True):
    """What the gateway remembers: the highest sequence it admitted, and the digest of that statement where it is known."""

    floor: int
    statement: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything at hand about one problem. What can't be read has its reason in `unread` by name, and is None or empty.

    Names in `unread`: store, audit, book, gateway. `files` gives a version's bytes; it raises ValueError at what is no plain
    file. `standing` are the texts of all standing approvals ever given (`acts.Docket` keeps the last).
    """

    problem: str
    keys: Keys
    model: Model | None
    versions: Sequence[Version]
    files: Callable[[Version], Mapping[str, bytes]]
    docket: Docket | None
    book: Book | None
    standing: Sequence[str] = ()
    gateway: Remembered | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    def issued(self) -> list[Release]:
        """Every release by rising sequence: from the book, or from the audit where the book can't be read."""
        if self.book is not None:
            return self.book.releases(self.problem)
        if self.docket is None:
            return []
        return statements(self.docket, self.keys)


def statements(docket: Docket, keys: Keys) -> list[Release]:
    """Every release that the audit has seen attached, by rising sequence, if the steward's signature holds."""
    opened = [
        open_envelope(docket.released[sequence].envelope, Release, RELEASE_TYPE, keys.release)
        for sequence in sorted(docket.released)
    ]
    return [one for one in opened if isinstance(one, Release)]


def prove_problem(seen: Evidence, *, now: float) -> list[Check]:
    """What is true of the problem as a whole: sequence, champion, head, gateway, and MLflow's view of people's acts."""
    issued = seen.issued()
    last = issued[-1] if issued else None
    return [
        *(Check(about=seen.problem, name=name, state=UNREAD, note=why) for name, why in seen.unread.items()),
        *_versions(seen),
        *_sequence(seen, last),
        *_champion(seen, last),
        *_head(seen, last, now),
        *_gateway(seen, last),
        *_view(seen),
    ]


def prove_version(seen: Evidence, version: Version, *, now: float) -> list[Check]:
    """What is true of one version: its bytes, registration, verdict, approval, policy and release statements."""
    about = f"version {version.version}"
    released = [one for one in seen.issued() if one.version == version.version]
    release = released[-1] if released else None
    registered = seen.docket.versions.get(version.version) if seen.docket else None
    checks: list[Check] = []

    def say(name: str, state: str, expected: str = "", got: str = "", note: str = "") -> None:
        checks.append(Check(about=about, name=name, state=state, expected=expected, got=got, note=note))

    if seen.docket is not None:
        if registered is None:
            say("registration", MISSING, "an audit record of it", "none")
        elif version.payload not in (None, registered.payload):
            say("registration", DIFFERS, _short(registered.payload), f"{_short(version.payload)} in its tag payload")
        else:
            say("registration", OK, note=f"audit record {registered.n}, by {registered.trainer}")

    payload = registered.payload if registered else (release.payload if release else version.payload)
    try:
        held = seen.files(version)
    except ValueError as error:
        say("files", DIFFERS, f"plain files with the digest {_short(payload)}", str(error))
    else:
        got = tree_digest(held) if held else None
        if got is None:
            say("files", MISSING, f"files with the digest {_short(payload)}", "none")
        elif got != payload:
            say("files", DIFFERS, _short(payload), _short(got))
        else:
            say("files", OK, note=f"{len(held)} files, {sum(map(len, held.values())) / 1e3:,.0f} kB, {_short(got)}")
    checks += _verdict(seen, version, payload, release, about)
    checks += _approval(seen, version, release, about, now)
    if release is not None:
        checks += _statement(seen, version, released, payload, about, now)
    elif version.release or version.statements():
        say("release", DIFFERS, "no statement: it was never released", "one in its tags")
    else:
        say("release", OK, note="never released")
    return checks


def _verdict(seen: Evidence, version: Version, payload: str | None, release: Release | None, about: str) -> list[Check]:
    def said(state: str, expected: str = "", got: str = "", note: str = "") -> list[Check]:
        return [Check(about=about, name="verdict", state=state, expected=expected, got=got, note=note)]

    judged = seen.book.verdict(seen.problem, payload) if seen.book and payload else None
    wanted = release.verdict if release else (digest(judged.verdict) if judged else None)
    if version.verdict is None:
        if wanted is not None:
            return said(MISSING, f"the verdict {_short(wanted)}", "none")
        return said(OK, note="not judged yet")
    verdict = open_envelope(version.verdict, Verdict, VERDICT_TYPE, seen.keys.gate)
    if isinstance(verdict, Refusal):
        return said(DIFFERS, "one signed by the gate key", verdict.reason)
    if verdict.candidate != payload:
        return said(DIFFERS, f"one on {_short(payload)}", f"one on {_short(verdict.candidate)}")
    if wanted is not None and digest(verdict) != wanted:
        source = "the release names" if release else "in the steward's book"
        return said(DIFFERS, f"{_short(wanted)} ({source})", _short(digest(verdict)))
    if version.outcome != verdict.outcome:
        return said(DIFFERS, f"{verdict.outcome} in its tag verdict.outcome", str(version.outcome))
    return said(OK, note=f"{verdict.outcome}, signed" + (", named by the release" if release else ""))


def _approval(seen: Evidence, version: Version, release: Release | None, about: str, now: float) -> list[Check]:
    if seen.docket is None:
        return []

    def said(state: str, expected: str = "", got: str = "", note: str = "") -> list[Check]:
        return [Check(about=about, name="approval", state=state, expected=expected, got=got, note=note)]

    decisions = seen.docket.decisions.get(version.version, [])
    current = decisions[-1].approval if decisions else None
    view = open_envelope(version.stamp, Approval, APPROVAL_TYPE, seen.keys.registry) if version.stamp else None
    if current is None and version.approval is not None:
        return said(DIFFERS, "no decision: the audit has none", f"{version.approval} in its tag approval")
    if current is not None and view != current:
        word = "none" if view is None else ("one that does not open" if isinstance(view, Refusal) else view.decision)
        return said(DIFFERS, f"{current.decision} by {' and '.join(current.by)}", f"{word} in its tag approval.stamp")
    if current is not None and version.approval != current.decision:
        return said(DIFFERS, f"{current.decision} in its tag approval", str(version.approval))
    if release is None:
        return said(OK, note=_told(current, now) if current else "not decided yet")
    named = next((one.approval for one in decisions if digest(one.approval) == release.approval), None)
    if named is not None:
        serves = seen.issued()[-1] == release and release.cause is not Cause.WITHDRAW
        if serves and current is not None and current.decision == "revoked":
            return said(DIFFERS, "an approval that stands", f"{_told(current, now)}; the steward takes it back")
        since = "" if current is None or current == named else f"; {_told(current, now)} since"
        return said(OK, note=f"{_told(named, now)}, named by the release{since}")
    for text in seen.standing:
        standing = open_envelope(text, Standing, STANDING_TYPE, seen.keys.registry)
        if isinstance(standing, Standing) and digest(standing) == release.approval:
            return said(OK, note=f"standing, by {' and '.join(standing.by)}, named by the release")
    return said(DIFFERS, f"{_short(release.approval)} (the release names)", "no such decision in the audit")


def _statement(
    seen: Evidence, version: Version, released: Sequence[Release], payload: str | None, about: str, now: float
) -> list[Check]:
    """The statements in the tags against those in the book, and the policy that they rest on."""

    def said(name: str, state: str, expected: str = "", got: str = "", note: str = "") -> Check:
        return Check(about=about, name=name, state=state, expected=expected, got=got, note=note)

    release, checks = released[-1], []
    shown = version.statements() | ({release.sequence: version.release} if version.release else {})
    wrong = None
    for one in released:
        text = shown.get(one.sequence)
        opened = open_envelope(text, Release, RELEASE_TYPE, seen.keys.release)
        if text is None:
            wrong = said("release", MISSING, f"the statement of release {one.sequence}", "none in its tags")
        elif opened != one:
            got = opened.reason if isinstance(opened, Refusal) else f"{opened.name} {_short(digest(opened))}"
            wrong = said("release", DIFFERS, f"{one.name} {_short(digest(one))}", got)
    unknown = sorted(set(version.statements()) - {one.sequence for one in released})
    if unknown:
        wrong = said("release", DIFFERS, f"releases {_numbers(released)}", f"also release.{unknown[0]} in its tags")
    elif release.payload != payload:
        wrong = said("release", DIFFERS, f"one of {_short(payload)}", f"one of {_short(release.payload)}")
    serving = seen.issued()[-1] == release
    if wrong is None and serving and release.expires is not None and release.expires <= now:
        wrong = said(
            "release", DIFFERS, "one that has not ended", f"release {release.sequence} ended {_days(release.expires, now)}"
        )
    ends = "" if release.expires is None else f", ends {_days(release.expires, now)}"
    checks.append(wrong or said("release", OK, note=f"{_numbers(released)}, signed, {release.cause}{ends}"))
    if seen.docket is not None:
        accepted = {policy: by for policy, by, _ in seen.docket.policies}
        if release.policy not in accepted:
            checks.append(said("policy", DIFFERS, f"{_short(release.policy)} to be accepted", "no acceptance in the audit"))
        else:
            checks.append(said("policy", OK, note=f"{_short(release.policy)}, accepted by {accepted[release.policy]}"))
    return checks


# --- the problem as a whole ---------------------------------------------------------------------------------------------------


def _versions(seen: Evidence) -> list[Check]:
    if seen.docket is None or "store" in seen.unread:
        return []
    there, known = {one.version for one in seen.versions}, set(seen.docket.versions)
    if known - there:
        return [_of(seen, "versions", MISSING, f"versions {_list(known)}", f"no version {_list(known - there)}")]
    if there - known:
        return [_of(seen, "versions", DIFFERS, f"versions {_list(known)}", f"also version {_list(there - known)}")]
    return [_of(seen, "versions", OK, note=f"{len(known)} registered, all there")]


def _sequence(seen: Evidence, last: Release | None) -> list[Check]:
    highest = last.sequence if last else 0
    shown = max((sequence for version in seen.versions for sequence in version.statements()), default=0)
    kept = max(seen.docket.released, default=0) if seen.docket else highest
    if "store" in seen.unread or (seen.book is None and seen.docket is None):
        return []
    if shown != highest:
        return [_of(seen, "sequence", DIFFERS, f"release {highest}, the newest signed", f"release {shown} in MLflow's tags")]
    if seen.book is not None and kept != highest:
        return [_of(seen, "sequence", DIFFERS, f"release {highest} in the steward's book", f"release {kept} in the audit")]
    return [_of(seen, "sequence", OK, note=f"release {highest} is the newest" if last else "nothing was released yet")]


def _champion(seen: Evidence, last: Release | None) -> list[Check]:
    if "store" in seen.unread or (seen.book is None and seen.docket is None):
        return []
    alias = seen.model.champion if seen.model else None
    if last is not None and last.cause is Cause.WITHDRAW:
        return [_of(seen, "champion", OK, note=f"nothing serves: release {last.sequence} withdrew version {last.version}")]
    wanted = last.version if last else None
    if alias != wanted:
        return [_of(seen, "champion", DIFFERS, f"version {wanted or 'none'}", f"version {alias or 'none'}")]
    return [_of(seen, "champion", OK, note=f"version {alias}" if alias else "none yet")]


def _head(seen: Evidence, last: Release | None, now: float) -> list[Check]:
    if "store" in seen.unread:
        return []
    text = seen.model.tags.get("release.head") if seen.model else None
    if last is None and not text:
        return [_of(seen, "head", OK, note="none needed before the first release")]
    head = open_head(text, seen.problem, keys=seen.keys, now=now)
    if isinstance(head, Refusal):
        wanted = "a head that the steward signed within the hour"
        return [_of(seen, "head", MISSING if not text else DIFFERS, wanted, head.reason)]
    if last is not None and (head.sequence, head.release) != (last.sequence, digest(last)):
        return [_of(seen, "head", DIFFERS, f"release {last.sequence} as newest", f"release {head.sequence}")]
    return [_of(seen, "head", OK, note=f"signed {_days(head.at, now)}, names release {head.sequence}, audit {head.audit}")]


def _gateway(seen: Evidence, last: Release | None) -> list[Check]:
    known = seen.gateway
    if known is None or (seen.book is None and seen.docket is None):
        return []
    highest = last.sequence if last else 0
    if known.floor != highest:
        return [_of(seen, "gateway", DIFFERS, f"floor {highest}", f"floor {known.floor}")]
    if last is not None and known.statement not in (None, digest(last)):
        return [_of(seen, "gateway", DIFFERS, f"statement {_short(digest(last))}", f"statement {_short(known.statement)}")]
    return [_of(seen, "gateway", OK, note=f"floor {known.floor}")]


def _view(seen: Evidence) -> list[Check]:
    """What MLflow shows of people's acts against the audit."""
    if seen.docket is None or seen.model is None:
        return []
    tags, docket = seen.model.tags, seen.docket
    pairs = [
        ("accepted policy", docket.policy, tags.get("policy.accepted")),
        ("anchor", docket.anchor.version if docket.anchor else None, seen.model.anchor),
        ("frozen", "frozen" if docket.frozen else None, "frozen" if is_frozen(tags) else None),
    ]
    return [
        _of(seen, name, OK, note=_short(wanted) if wanted else "none")
        if wanted == got
        else _of(seen, name, DIFFERS, f"{_short(wanted)} (audit)", f"{_short(got)} (MLflow's tag)")
        for name, wanted, got in pairs
    ]


def _of(seen: Evidence, name: str, state: str, expected: str = "", got: str = "", note: str = "") -> Check:
    return Check(about=seen.problem, name=name, state=state, expected=expected, got=got, note=note)


def _short(text: str | None) -> str:
    return "none" if not text else (text[:12] if len(text) == 64 else text)


def _told(approval: Approval, now: float) -> str:
    ends = f", ends {_days(approval.expires, now)}" if approval.expires is not None and approval.decision == "approved" else ""
    return f"{approval.decision} by {' and '.join(approval.by)}{ends}"


def _days(at: float, now: float) -> str:
    gap = abs(at - now)
    length = (
        f"{gap:.0f} s"
        if gap < 120
        else f"{gap / 60:.0f} min"
        if gap < 7200
        else f"{gap / 3600:.0f} h"
        if gap < 172_800
        else f"{gap / 86_400:.0f} days"
    )
    return f"in {length}" if at > now else f"{length} ago"


def _numbers(released: Sequence[Release]) -> str:
    return ", ".join(str(one.sequence) for one in released)


def _list(versions: set[str]) -> str:
    return ", ".join(sorted(versions, key=lambda one: (len(one), one)))
