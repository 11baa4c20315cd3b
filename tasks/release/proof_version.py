"""One version against what carries it: its bytes, registration, verdict, approval, policy and release statements."""

from __future__ import annotations

from collections.abc import Sequence

from truing.tasks.records import Approval, Cause, Refusal, Release, Standing, Verdict
from truing.tasks.release.proof import DIFFERS, MISSING, OK, Check, Evidence, days, short
from truing.tasks.release.versions import Version
from truing.tasks.seal import APPROVAL_TYPE, RELEASE_TYPE, STANDING_TYPE, VERDICT_TYPE, digest, open_envelope, tree_digest


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
            say("registration", DIFFERS, short(registered.payload), f"{short(version.payload)} in its tag payload")
        else:
            say("registration", OK, note=f"audit record {registered.n}, by {registered.trainer}")

    payload = registered.payload if registered else (release.payload if release else version.payload)
    try:
        held = seen.files(version)
    except ValueError as error:
        say("files", DIFFERS, f"plain files with the digest {short(payload)}", str(error))
    else:
        got = tree_digest(held) if held else None
        if got is None:
            say("files", MISSING, f"files with the digest {short(payload)}", "none")
        elif got != payload:
            say("files", DIFFERS, short(payload), short(got))
        else:
            say("files", OK, note=f"{len(held)} files, {sum(map(len, held.values())) / 1e3:,.0f} kB, {short(got)}")
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
            return said(MISSING, f"the verdict {short(wanted)}", "none")
        return said(OK, note="not judged yet")
    verdict = open_envelope(version.verdict, Verdict, VERDICT_TYPE, seen.keys.gate)
    if isinstance(verdict, Refusal):
        return said(DIFFERS, "one signed by the gate key", verdict.reason)
    if verdict.candidate != payload:
        return said(DIFFERS, f"one on {short(payload)}", f"one on {short(verdict.candidate)}")
    if wanted is not None and digest(verdict) != wanted:
        source = "the release names" if release else "in the steward's book"
        return said(DIFFERS, f"{short(wanted)} ({source})", short(digest(verdict)))
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
        return said(OK, note=told(current, now) if current else "not decided yet")
    named = next((one.approval for one in decisions if digest(one.approval) == release.approval), None)
    if named is not None:
        serves = seen.issued()[-1] == release and release.cause is not Cause.WITHDRAW
        if serves and current is not None and current.decision == "revoked":
            return said(DIFFERS, "an approval that stands", f"{told(current, now)}; the steward takes it back")
        since = "" if current is None or current == named else f"; {told(current, now)} since"
        return said(OK, note=f"{told(named, now)}, named by the release{since}")
    for text in seen.standing:
        standing = open_envelope(text, Standing, STANDING_TYPE, seen.keys.registry)
        if isinstance(standing, Standing) and digest(standing) == release.approval:
            return said(OK, note=f"standing, by {' and '.join(standing.by)}, named by the release")
    return said(DIFFERS, f"{short(release.approval)} (the release names)", "no such decision in the audit")


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
            got = opened.reason if isinstance(opened, Refusal) else f"{opened.name} {short(digest(opened))}"
            wrong = said("release", DIFFERS, f"{one.name} {short(digest(one))}", got)
    unknown = sorted(set(version.statements()) - {one.sequence for one in released})
    if unknown:
        wrong = said("release", DIFFERS, f"releases {_numbers(released)}", f"also release.{unknown[0]} in its tags")
    elif release.payload != payload:
        wrong = said("release", DIFFERS, f"one of {short(payload)}", f"one of {short(release.payload)}")
    serving = seen.issued()[-1] == release
    if wrong is None and serving and release.expires is not None and release.expires <= now:
        wrong = said(
            "release", DIFFERS, "one that has not ended", f"release {release.sequence} ended {days(release.expires, now)}"
        )
    ends = "" if release.expires is None else f", ends {days(release.expires, now)}"
    checks.append(wrong or said("release", OK, note=f"{_numbers(released)}, signed, {release.cause}{ends}"))
    if seen.docket is not None:
        accepted = {policy: by for policy, by, _ in seen.docket.policies}
        if release.policy not in accepted:
            checks.append(said("policy", DIFFERS, f"{short(release.policy)} to be accepted", "no acceptance in the audit"))
        else:
            checks.append(said("policy", OK, note=f"{short(release.policy)}, accepted by {accepted[release.policy]}"))
    return checks


def told(approval: Approval, now: float) -> str:
    ends = f", ends {days(approval.expires, now)}" if approval.expires is not None and approval.decision == "approved" else ""
    return f"{approval.decision} by {' and '.join(approval.by)}{ends}"


def _numbers(released: Sequence[Release]) -> str:
    return ", ".join(str(one.sequence) for one in released)
