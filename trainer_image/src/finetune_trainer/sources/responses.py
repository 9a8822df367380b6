r"""What a file server's answer means, as a total pure function of status, header fields and the body's beginning.

| status | and the answer says | verdict |
|---|---|---|
| 200 | nothing else | TAKE |
| 200 | XML whose root is `Error` | as the same code with status 400 would be judged |
| 200 | HTML with a password field or a title or heading to sign in | DatasetAccessDenied |
| 206 | anything | CONTINUE (the caller compares the range) |
| 301 302 303 307 308 | a Location | REDIRECT |
| 400 401 402 403 407 409 451 | expired signature, token or credentials | DatasetUrlExpired |
| 400 401 402 403 407 409 451 | too many requests, busy, time-out | DatasetUnavailable, tried again |
| 400 409 | a missing object, bucket or container, or a name that none can have | DatasetNotFound |
| 400 409 | a refused signature, key, token or permission | DatasetAccessDenied |
| 401 402 403 407 451 | anything else | DatasetAccessDenied |
| 404 | an unknown user or access key | DatasetAccessDenied |
| 404 | anything else | DatasetNotFound |
| 408 425 429, 409 with anything else, 500 and above | anything | DatasetUnavailable, tried again |
| 410 | anything | DatasetUrlExpired |
| 412 416 | anything | RESTART: the object changed while it was fetched |
| every other, and 400 with anything else | anything | DatasetUnavailable |

What the answer says is read from `x-ms-error-code` and, where the body is an error document of S3, GCS or Azure
(XML or JSON), from its codes and messages only: such documents repeat the object's name, which may hold any word.
Sources: "Error Responses" of the Amazon S3 API reference, "HTTP status and error codes" of Cloud Storage (XML and
JSON APIs), "Common REST API error codes" and "Blob Storage error codes" of Azure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from finetune_trainer.errors import Reason

PREFIX_BYTES = 8192  # how much of a body is looked at
_LONGEST_PAUSE_SECONDS = 30.0


class Action(StrEnum):
    """What to do with an answer."""

    TAKE = "Take"
    CONTINUE = "Continue"
    REDIRECT = "Redirect"
    RETRY = "Retry"
    RESTART = "Restart"
    REFUSE = "Refuse"


@dataclass(frozen=True)
class Verdict:
    """An action; for REFUSE, and for RETRY and RESTART once tries are used up, the reason and what was found."""

    action: Action
    reason: Reason | None = None
    found: str = ""
    pause_seconds: float = 0.0  # how long the server asks to be left alone


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DENIALS = frozenset({401, 402, 403, 407, 451})
_UNCLEAR = frozenset({400, 409})
_CERTAIN = {404: Reason.DATASET_NOT_FOUND, 410: Reason.DATASET_URL_EXPIRED}

_EXPIRED = re.compile(
    r"expired|TokenExpired|Signature not valid in the specified time frame|Signed expiry time|"
    r"past the expir|no longer valid",
    re.IGNORECASE,
)
_BUSY = re.compile(
    r"\b(?:SlowDown|ServerBusy|ServiceUnavailable|RequestTimeout|OperationTimedOut|InternalError|"
    r"(?:user)?rateLimitExceeded|TooManyRequests|ThrottlingException|Throttling|RequestLimitExceeded|backendError)\b",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"\b(?:NoSuchKey|NoSuchBucket|NoSuchVersion|NoSuchUpload|BlobNotFound|ContainerNotFound|ResourceNotFound|"
    r"ShareNotFound|InvalidBucketName|InvalidObjectName|InvalidResourceName|KeyTooLongError|notFound)\b"
)
_REFUSED = re.compile(
    r"\b(?:AccessDenied|AllAccessDisabled|AccountProblem|AccountIsDisabled|AuthenticationFailed|"
    r"AuthenticationRequired|AuthorizationFailure|AuthorizationHeaderMalformed|AuthorizationQueryParametersError|"
    r"AuthorizationPermissionMismatch|Authorization[A-Za-z]*Mismatch|InsufficientAccountPermissions|"
    r"InvalidAccessKeyId|InvalidAuthenticationInfo|InvalidSecurity|InvalidToken|NoAuthenticationInformation|"
    r"NotSignedUp|PublicAccessNotPermitted|RequestTimeTooSkewed|SignatureDoesNotMatch|UserProjectMissing|"
    r"InvalidAuthorization|authError)\b"
)
_UNKNOWN_USER = re.compile(r"\b(?:X?AdminUserNotFound|NoSuchUser|NoSuchAccessKey|InvalidAccessKeyId)\b")
_XML_ERROR = re.compile(rb"(?:<\?xml[^>]*\?>)?\s*(?:<!--.*?-->\s*)*<(?:\w+:)?Error[\s>/]", re.DOTALL)
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_SIGN_IN = re.compile(
    rb"<input[^>]*type\s*=\s*[\"']?password|"
    rb"<(title|h[1-3]|button|a)\b[^>]*>[^<]{0,80}\b(?:sign|log)[ -]?in\b|<form[^>]*action=[\"'][^\"']*login",
    re.IGNORECASE,
)
_XML_TEXTS = re.compile(
    r"<(Code|Message|AuthenticationErrorDetail|Details)>(.*?)(?:</|\Z)", re.DOTALL | re.IGNORECASE
)
_JSON_TEXTS = re.compile(
    r'"(?:code|message|reason|status|error|error_description|errorCode|detail|title)"\s*:\s*"((?:[^"\\]|\\.)*)',
    re.IGNORECASE,
)
_AZURE_WINDOW = re.compile(r"Start \[([^\]]+)\].*?Current \[([^\]]+)\]", re.DOTALL)


def judge(status: int, fields: Mapping[str, str], beginning: bytes) -> Verdict:
    """Say what an answer means.

    `fields` are header fields by lower-case name, `beginning` is the body's first PREFIX_BYTES or less, without
    transfer coding. Never raises.
    """
    verdict = Verdict(Action.REFUSE, Reason.DATASET_UNAVAILABLE, f"HTTP status {status}")
    if status == 200:
        verdict = _judge_success(fields, beginning)
    elif status == 206:
        verdict = Verdict(Action.CONTINUE)
    elif status in _REDIRECTS and fields.get("location", "").strip():
        verdict = Verdict(Action.REDIRECT)
    elif status in _DENIALS or status in _UNCLEAR:
        verdict = _judge_error(status, _said(fields, beginning), fields)
    elif status == 404 and _UNKNOWN_USER.search(_said(fields, beginning)):
        verdict = replace(verdict, reason=Reason.DATASET_ACCESS_DENIED)
    elif status in _CERTAIN:
        verdict = replace(verdict, reason=_CERTAIN[status])
    elif status in {412, 416}:
        verdict = replace(verdict, action=Action.RESTART)
    elif status >= 500 or status in {408, 425, 429}:
        verdict = replace(verdict, action=Action.RETRY, pause_seconds=_pause(fields))
    return verdict


def _judge_success(fields: Mapping[str, str], beginning: bytes) -> Verdict:
    body = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _XML_ERROR.match(body):
        verdict = _judge_error(400, _said(fields, body), fields)
        return Verdict(verdict.action, verdict.reason, "an error document with HTTP status 200")
    if _HTML.match(body) and _SIGN_IN.search(body):
        return Verdict(Action.REFUSE, Reason.DATASET_ACCESS_DENIED, "a page to sign in with HTTP status 200")
    return Verdict(Action.TAKE)


def _judge_error(status: int, said: str, fields: Mapping[str, str]) -> Verdict:
    found = f"HTTP status {status}"
    code = re.match(r"[A-Z][A-Za-z]{2,63}\b", said)
    if code is not None:
        found += f" ({code[0]})"
    if _EXPIRED.search(said) and not _not_yet_valid(said):
        return Verdict(Action.REFUSE, Reason.DATASET_URL_EXPIRED, found)
    if _BUSY.search(said):
        return Verdict(Action.RETRY, Reason.DATASET_UNAVAILABLE, found, _pause(fields))
    if status in _DENIALS or _REFUSED.search(said):
        return Verdict(Action.REFUSE, Reason.DATASET_ACCESS_DENIED, found)
    if _MISSING.search(said):
        return Verdict(Action.REFUSE, Reason.DATASET_NOT_FOUND, found)
    action = Action.RETRY if status == 409 else Action.REFUSE
    return Verdict(action, Reason.DATASET_UNAVAILABLE, found)


def _said(fields: Mapping[str, str], beginning: bytes) -> str:
    """Return the codes and messages of an error answer, without what repeats names."""
    text = beginning[:PREFIX_BYTES].decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    parts = [fields.get("x-ms-error-code", "")]
    if text.startswith("<"):
        if not _HTML.match(beginning.lstrip()):
            for name, content in _XML_TEXTS.findall(text):
                # GCS puts names into Details, except where it says when a signature ended.
                if name.lower() != "details" or "signature expired at" in content.lower():
                    parts.append(content.strip())
    elif text.startswith(("{", "[")):
        parts += _JSON_TEXTS.findall(text)
    else:
        parts.append(text[:500])
    return "\n".join(text for text in map(_without_names, parts) if text)


def _without_names(text: str) -> str:
    """Leave out what a message quotes: the string to sign, and every word with a slash, as objects' names have."""
    own = text.partition("String to sign")[0]
    return " ".join(word for word in own.split() if "/" not in word)


def _not_yet_valid(said: str) -> bool:
    """Whether Azure says of a signature's time frame that it has not begun."""
    match = _AZURE_WINDOW.search(said)
    if match is None:
        return False
    start, current = _time(match[1]), _time(match[2])
    return start is not None and current is not None and current < start


def _time(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _pause(fields: Mapping[str, str]) -> float:
    """Seconds that a Retry-After field asks for, at most 30; 0 where it is absent or a date."""
    asked = fields.get("retry-after", "")
    return min(float(asked), _LONGEST_PAUSE_SECONDS) if re.fullmatch(r"[0-9]{1,6}", asked) else 0.0
