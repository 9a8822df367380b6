"""The meaning of a hub's response: a total, pure function of status, header fields and the body's beginning.

The header field `X-Error-Code` names the error. Words of a body are not read. Reasons are those of a dataset; the
caller turns them into those of its target.
"""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.errors import Reason
from finetune_trainer.sources.responses import Action, Verdict, is_page
from finetune_trainer.sources.retry_after import requested_pause

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DENIALS = frozenset({401, 402, 403, 407, 451})
_PASSING = frozenset({408, 425, 429})
_MISSING = {"RevisionNotFound": "revision", "RepoNotFound": "repository", "EntryNotFound": "file"}
_NO_CREDENTIALS = "Invalid credentials in Authorization header"


def interpret(
    status: int, fields: Mapping[str, str], beginning: bytes, *, wanted: str, page: bool, token: bool
) -> Verdict:
    """Return the verdict on a response; never raises.

    `wanted` is what the request asks for (`repository` or `file`). `page` says that a web page is what was asked for,
    `token` that the request had an access token. If something is missing, the verdict's `found` is `repository`,
    `revision` or `file`.
    """
    found = f"HTTP status {status}"
    pause = requested_pause(fields)
    if status == 200 and not page and is_page(fields, beginning):
        verdict = Verdict(
            Action.RETRY, Reason.DATASET_UNAVAILABLE, "a web page instead of the hub's response", pause
        )
    elif status in {200, 206}:
        verdict = Verdict(Action.TAKE if status == 200 else Action.CONTINUE)
    elif status in _REDIRECTS and fields.get("location", "").strip():
        verdict = Verdict(Action.REDIRECT)
    elif status in {412, 416}:
        verdict = Verdict(Action.RESTART, Reason.DATASET_UNAVAILABLE, found)
    elif status >= 500 or status in _PASSING or (status == 403 and pause):
        verdict = Verdict(Action.RETRY, Reason.DATASET_UNAVAILABLE, found, pause)
    else:
        verdict = _rejection(status, fields, wanted, token=token)
    return verdict


def _rejection(status: int, fields: Mapping[str, str], wanted: str, *, token: bool) -> Verdict:
    code = fields.get("x-error-code", "")
    # The hub answers 401 for a private repository and for one that does not exist.
    hidden = status == 401 and not token and fields.get("x-error-message", "") != _NO_CREDENTIALS
    if code != "GatedRepo":
        if status in {404, 410} or (code in _MISSING and status != 401):
            return Verdict(Action.FAIL, Reason.DATASET_NOT_FOUND, _MISSING.get(code, wanted))
        if hidden:
            return Verdict(Action.FAIL, Reason.DATASET_NOT_FOUND, _MISSING.get(code, "repository"))
    denied = code == "GatedRepo" or status in _DENIALS
    reason = Reason.DATASET_ACCESS_DENIED if denied else Reason.DATASET_UNAVAILABLE
    return Verdict(Action.FAIL, reason, f"HTTP status {status}")
