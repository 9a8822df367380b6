r"""The meaning of a file server's response: a total, pure function of status, header fields and the body's beginning.

| status | content of the response | verdict |
|---|---|---|
| 200 | nothing else | TAKE |
| 200 | XML whose root is `Error` | the verdict of the same code with status 400 |
| 200 | HTML with a field for a password | DatasetAccessDenied |
| 206 | anything | CONTINUE (the caller compares the range) |
| 301 302 303 307 308 | a Location | REDIRECT |
| 400 401 402 403 407 409 451 | expired signature, token or credentials | DatasetUrlExpired |
| 400 401 402 403 407 409 451 | too many requests, busy, timeout | DatasetUnavailable, retried |
| 403 | a Retry-After, or no requests left in X-RateLimit-Remaining | DatasetUnavailable, retried |
| 400 409 | a missing object, bucket or container, or an invalid name | DatasetNotFound |
| 400 409 | a rejected signature, key, token or permission | DatasetAccessDenied |
| 401 402 403 407 451 | anything else | DatasetAccessDenied |
| 404 | an unknown user or access key | DatasetAccessDenied |
| 404 | anything else | DatasetNotFound |
| 408 425 429, 409 with anything else, 500 and above | anything | DatasetUnavailable, retried |
| 410 | anything | DatasetUrlExpired |
| 412 416 | anything | RESTART: the object changed during the download |
| every other, and 400 with anything else | anything | DatasetUnavailable |

The content is read from `x-ms-error-code`. From an error document of S3, GCS or Azure (XML or JSON) only the codes
and messages are read: such documents repeat the object's name, which may contain any word. No word of a web page is
read, because a page about any subject may contain it. Content-Type and markup tell that a body is a page.
Sources: "Error Responses" of the Amazon S3 API reference, "HTTP status and error codes" of Cloud Storage (XML and
JSON APIs), "Common REST API error codes" and "Blob Storage error codes" of Azure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from finetune_trainer.errors import Reason
from finetune_trainer.sources.retry_after import parse_http_date, requested_pause

PREFIX_BYTES = 8192  # how much of a body is examined


class Action(StrEnum):
    """The reaction to a response."""

    TAKE = "Take"
    CONTINUE = "Continue"
    REDIRECT = "Redirect"
    RETRY = "Retry"
    RESTART = "Restart"
    FAIL = "Fail"


@dataclass(frozen=True)
class Verdict:
    """An action. FAIL, and RETRY and RESTART after the last attempt, have a reason and a description in `found`."""

    action: Action
    reason: Reason | None = None
    found: str = ""
    pause_seconds: float = 0.0  # the pause that the server asks for


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
_REJECTED = re.compile(
    r"\b(?:AccessDenied|AllAccessDisabled|AccountProblem|AccountIsDisabled|AuthenticationFailed|"
    r"AuthenticationRequired|AuthorizationFailure|AuthorizationHeaderMalformed|AuthorizationQueryParametersError|"
    r"AuthorizationPermissionMismatch|Authorization[A-Za-z]*Mismatch|InsufficientAccountPermissions|"
    r"InvalidAccessKeyId|InvalidAuthenticationInfo|InvalidSecurity|InvalidToken|NoAuthenticationInformation|"
    r"NotSignedUp|PublicAccessNotPermitted|RequestTimeTooSkewed|SignatureDoesNotMatch|UserProjectMissing|"
    r"InvalidAuthorization|authError)\b"
)
_UNKNOWN_USER = re.compile(r"\b(?:X?AdminUserNotFound|NoSuchUser|NoSuchAccessKey|InvalidAccessKeyId)\b")
_PROLOG = rb"(?:<\?xml[^>]*\?>)?\s*(?:<!--.*?-->\s*)*"
_XML_ERROR = re.compile(_PROLOG + rb"<(?:\w+:)?[Ee]rror[\s>/]", re.DOTALL)
_HTML = re.compile(
    _PROLOG + rb"<(?:!doctype\s+html|html|head|body|title|meta|script)\b", re.DOTALL | re.IGNORECASE
)
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_PASSWORD = re.compile(rb"<input\b[^>]*\btype\s*=\s*[\"']?password\b", re.IGNORECASE)
_XML_TEXTS = re.compile(
    r"<(Code|Message|AuthenticationErrorDetail|Details)>(.*?)(?:</|\Z)", re.DOTALL | re.IGNORECASE
)
_JSON_TEXTS = re.compile(
    r'"(?:code|message|reason|status|error|error_description|errorCode|detail|title)"\s*:\s*"((?:[^"\\]|\\.)*)',
    re.IGNORECASE,
)
_AZURE_WINDOW = re.compile(r"Start \[([^\]]+)\].*?Current \[([^\]]+)\]", re.DOTALL)


def interpret(status: int, fields: Mapping[str, str], beginning: bytes) -> Verdict:
    """Return the verdict on a response.

    `fields` are header fields by lower-case name, `beginning` is the body's first PREFIX_BYTES or less, without
    transfer coding. Never raises.
    """
    verdict = Verdict(Action.FAIL, Reason.DATASET_UNAVAILABLE, f"HTTP status {status}")
    if status == 200:
        verdict = _interpret_success(fields, beginning)
    elif status == 206:
        verdict = Verdict(Action.CONTINUE)
    elif status in _REDIRECTS and fields.get("location", "").strip():
        verdict = Verdict(Action.REDIRECT)
    elif status in _DENIALS or status in _UNCLEAR:
        verdict = _interpret_error(status, _error_text(fields, beginning), fields)
    elif status == 404 and _UNKNOWN_USER.search(_error_text(fields, beginning)):
        verdict = replace(verdict, reason=Reason.DATASET_ACCESS_DENIED)
    elif status in _CERTAIN:
        verdict = replace(verdict, reason=_CERTAIN[status])
    elif status in {412, 416}:
        verdict = replace(verdict, action=Action.RESTART)
    elif status >= 500 or status in {408, 425, 429}:
        verdict = replace(verdict, action=Action.RETRY, pause_seconds=requested_pause(fields))
    return verdict


def is_page(fields: Mapping[str, str], beginning: bytes) -> bool:
    """Return whether a response is a web page: its markup is HTML, or it is labeled HTML and is some markup.

    A label alone is no sign, because servers label files of rows as HTML, too.
    """
    body = _body(beginning)
    labeled = fields.get("content-type", "").partition(";")[0].strip().lower() in _HTML_TYPES
    return _HTML.match(body) is not None or (labeled and body.startswith(b"<") and not _XML_ERROR.match(body))


def _body(beginning: bytes) -> bytes:
    return beginning[:PREFIX_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()


def _interpret_success(fields: Mapping[str, str], beginning: bytes) -> Verdict:
    body = _body(beginning)
    if _XML_ERROR.match(body):
        verdict = _interpret_error(400, _error_text(fields, body), fields)
        return Verdict(
            verdict.action, verdict.reason, "an error document with HTTP status 200", verdict.pause_seconds
        )
    if is_page(fields, beginning) and _PASSWORD.search(body):
        return Verdict(Action.FAIL, Reason.DATASET_ACCESS_DENIED, "a page to sign in with HTTP status 200")
    return Verdict(Action.TAKE)


def _interpret_error(status: int, text: str, fields: Mapping[str, str]) -> Verdict:
    found = f"HTTP status {status}"
    code = re.match(r"[A-Z][A-Za-z]{2,63}\b", text)
    if code is not None:
        found += f" ({code[0]})"
    if _EXPIRED.search(text) and not _not_yet_valid(text):
        return Verdict(Action.FAIL, Reason.DATASET_URL_EXPIRED, found)
    if _BUSY.search(text) or (status == 403 and _limits_rate(fields)):
        return Verdict(Action.RETRY, Reason.DATASET_UNAVAILABLE, found, requested_pause(fields))
    if status in _DENIALS or _REJECTED.search(text):
        return Verdict(Action.FAIL, Reason.DATASET_ACCESS_DENIED, found)
    if _MISSING.search(text):
        return Verdict(Action.FAIL, Reason.DATASET_NOT_FOUND, found)
    action = Action.RETRY if status == 409 else Action.FAIL
    return Verdict(action, Reason.DATASET_UNAVAILABLE, found)


def _limits_rate(fields: Mapping[str, str]) -> bool:
    """Return whether header fields say that too many requests came; some servers send 403 for that."""
    return "retry-after" in fields or fields.get("x-ratelimit-remaining", "").strip() == "0"


def _error_text(fields: Mapping[str, str], beginning: bytes) -> str:
    """Return the codes and messages of an error response, without the parts that repeat names."""
    text = beginning[:PREFIX_BYTES].decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    parts = [fields.get("x-ms-error-code", "")]
    if text.startswith("<"):
        if not is_page(fields, beginning):
            for name, content in _XML_TEXTS.findall(text):
                # GCS puts names into Details, except in the text about the end of a signature.
                if name.lower() != "details" or "signature expired at" in content.lower():
                    parts.append(content.strip())
    elif text.startswith(("{", "[")):
        parts += _JSON_TEXTS.findall(text)
    else:
        parts.append(text[:500])
    return "\n".join(text for text in map(_without_names, parts) if text)


def _without_names(text: str) -> str:
    """Remove the quoted parts of a message: the string to sign, and every word with a slash, like an object's name."""
    own = text.partition("String to sign")[0]
    return " ".join(word for word in own.split() if "/" not in word)


def _not_yet_valid(text: str) -> bool:
    """Return whether Azure reports that a signature's time frame has not begun."""
    match = _AZURE_WINDOW.search(text)
    if match is None:
        return False
    start, current = parse_http_date(match[1]), parse_http_date(match[2])
    return start is not None and current is not None and current < start
