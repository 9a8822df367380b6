"""Documented errors of Amazon S3, Google Cloud Storage and Azure Blob Storage, each with its meaning.

The meanings come from the services' lists of errors and do not depend on the code under test.
Every document names an object and quotes a request. The quoted words (`expired`, `Expires`) must not be read as the
service's own words, and the quoted secret must never be repeated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

from finetune_trainer.errors import Reason

EXPIRED, DENIED = Reason.DATASET_URL_EXPIRED, Reason.DATASET_ACCESS_DENIED
MISSING, OUTAGE = Reason.DATASET_NOT_FOUND, Reason.DATASET_UNAVAILABLE
MARK = "s3cr3tMark"


@dataclass(frozen=True)
class ErrorResponse:
    """An error document with its status, its meaning, and True in `passing` if the error can be temporary."""

    status: int
    body: bytes
    reason: Reason
    passing: bool = False


# Status, code, message, meaning, True if the error can be temporary.
_S3 = (
    (403, "AccessDenied", "Access Denied", DENIED, False),
    (403, "AccessDenied", "Request has expired", EXPIRED, False),
    (400, "ExpiredToken", "The provided token has expired.", EXPIRED, False),
    (400, "ExpiredRequest", "Request has expired", EXPIRED, False),
    (400, "InvalidToken", "The provided token is malformed or otherwise not valid.", DENIED, False),
    (403, "InvalidAccessKeyId", "The AWS access key ID you provided does not exist.", DENIED, False),
    (403, "SignatureDoesNotMatch", "The signature we calculated does not match.", DENIED, False),
    (403, "RequestTimeTooSkewed", "The difference to the current time is too large.", DENIED, False),
    (403, "AllAccessDisabled", "All access to this object has been disabled.", DENIED, False),
    (403, "AccountProblem", "There is a problem with your AWS account.", DENIED, False),
    (
        400,
        "AuthorizationQueryParametersError",
        "X-Amz-Expires must be less than 604800 seconds",
        DENIED,
        False,
    ),
    (404, "NoSuchKey", "The specified key does not exist.", MISSING, False),
    (404, "NoSuchBucket", "The specified bucket does not exist", MISSING, False),
    (404, "NoSuchVersion", "The version ID does not match an existing version.", MISSING, False),
    (400, "RequestTimeout", "Your socket connection timed out.", OUTAGE, True),
    (409, "OperationAborted", "A conflicting operation is in progress. Try again.", OUTAGE, True),
    (500, "InternalError", "An internal error occurred. Try again.", OUTAGE, True),
    (503, "ServiceUnavailable", "Service is unable to handle request.", OUTAGE, True),
    (503, "SlowDown", "Reduce your request rate.", OUTAGE, True),
)
_GCS_XML = (
    (400, "ExpiredToken", "The provided token has expired.", EXPIRED, False),
    (401, "AuthenticationRequired", "Authentication required.", DENIED, False),
    (403, "AccessDenied", "Access denied.", DENIED, False),
    (403, "SignatureDoesNotMatch", "Check your Google secret key and signing method.", DENIED, False),
    (404, "NoSuchKey", "The specified key does not exist.", MISSING, False),
    (404, "NoSuchBucket", "The specified bucket does not exist.", MISSING, False),
    (429, "SlowDown", "The rate of requests is too high.", OUTAGE, True),
    (500, "InternalError", "We encountered an internal error. Please try again.", OUTAGE, True),
    (503, "ServiceUnavailable", "The service is temporarily unavailable.", OUTAGE, True),
)
# Status, reason in the first of `errors`, message, meaning, True if the error can be temporary.
_GCS_JSON = (
    (401, "authError", "Invalid Credentials", DENIED, False),
    (401, "required", "Anonymous caller does not have storage.objects.get access.", DENIED, False),
    (403, "forbidden", "Access denied.", DENIED, False),
    (403, "insufficientPermissions", "Insufficient Permission", DENIED, False),
    (403, "rateLimitExceeded", "The project exceeded the rate limit.", OUTAGE, True),
    (403, "userRateLimitExceeded", "User Rate Limit Exceeded", OUTAGE, True),
    (404, "notFound", "No such object.", MISSING, False),
    (429, "rateLimitExceeded", "The object exceeded the rate limit.", OUTAGE, True),
    (500, "backendError", "Backend Error", OUTAGE, True),
    (503, "backendError", "Backend Error", OUTAGE, True),
)
_AZURE = (
    (401, "NoAuthenticationInformation", "Server failed to authenticate the request.", DENIED, False),
    (403, "AuthorizationFailure", "This request is not authorized.", DENIED, False),
    (403, "AuthorizationPermissionMismatch", "The permission does not match.", DENIED, False),
    (403, "AuthorizationSourceIPMismatch", "The source IP address is not allowed.", DENIED, False),
    (403, "InsufficientAccountPermissions", "The operation is not permitted.", DENIED, False),
    (403, "AccountIsDisabled", "The specified account is disabled.", DENIED, False),
    (409, "PublicAccessNotPermitted", "Public access is not permitted on this account.", DENIED, False),
    (404, "BlobNotFound", "The specified blob does not exist.", MISSING, False),
    (404, "ContainerNotFound", "The specified container does not exist.", MISSING, False),
    (404, "ResourceNotFound", "The specified resource does not exist.", MISSING, False),
    (500, "InternalError", "The server encountered an internal error.", OUTAGE, True),
    (500, "OperationTimedOut", "The operation could not be completed in time.", OUTAGE, True),
    (503, "ServerBusy", "The server is currently unable to receive requests.", OUTAGE, True),
)


def object_name(random: Random) -> str:
    """Return a name with the test's mark and with words that have a meaning in other places."""
    word = random.choice(
        ["rows", "expired", "request-has-expired", "AccessDenied", "NoSuchKey", "ExpiredToken"]
    )
    return f"{MARK}{random.getrandbits(32):08x}/{word}.jsonl"


def s3_error(random: Random) -> ErrorResponse:
    """Return an error of Amazon S3 or of a compatible store."""
    status, code, message, reason, passing = random.choice(_S3)
    more = [f"<Key>{object_name(random)}</Key>", f"<Resource>/bucket/{object_name(random)}</Resource>"]
    if reason is EXPIRED and code == "AccessDenied":
        more += ["<X-Amz-Expires>60</X-Amz-Expires>", "<Expires>2026-01-01T00:01:00Z</Expires>"]
    if code == "SignatureDoesNotMatch":
        quoted = f"GET\n/{object_name(random)}\nX-Amz-Expires=60&amp;X-Amz-Signature={MARK}\n"
        more.append(f"<StringToSign>{quoted}</StringToSign>")
    more.append(f"<RequestId>{random.getrandbits(64):016X}</RequestId><HostId>{MARK}</HostId>")
    random.shuffle(more)
    return ErrorResponse(status, _xml(random, code, message, more), reason, passing)


def gcs_xml_error(random: Random) -> ErrorResponse:
    """Return an error of Cloud Storage's XML API, which signed URLs use."""
    status, code, message, reason, passing = random.choice(_GCS_XML)
    more = [
        f"<Details>Anonymous caller does not have storage.objects.get access to {object_name(random)}.</Details>"
    ]
    if reason is EXPIRED:
        more = ["<Details>Request signature expired at: 2026-01-01T00:00:00+00:00</Details>"]
    if code == "SignatureDoesNotMatch":
        more = [f"<StringToSign>GET\n\n\n1767225600\n/{object_name(random)}</StringToSign>"]
    return ErrorResponse(status, _xml(random, code, message, more), reason, passing)


def gcs_json_error(random: Random) -> ErrorResponse:
    """Return an error of Cloud Storage's JSON API."""
    status, code, message, reason, passing = random.choice(_GCS_JSON)
    if code in {"forbidden", "notFound"}:
        message = f"{message} {random.choice(['', 'Object: '])}bucket/{object_name(random)}"
    entry = {"message": message, "domain": "global", "reason": code, "location": object_name(random)}
    document = {"error": {"code": status, "message": message, "errors": [entry]}}
    return ErrorResponse(
        status, json.dumps(document, indent=random.choice([None, 1, 2])).encode(), reason, passing
    )


def azure_error(random: Random) -> ErrorResponse:
    """Return an error of Azure Blob Storage. Half of them concern the time of a shared access signature."""
    if random.random() < 0.5:
        return _azure_signature(random)
    status, code, message, reason, passing = random.choice(_AZURE)
    return ErrorResponse(status, _azure(random, code, message, ""), reason, passing)


def _azure_signature(random: Random) -> ErrorResponse:
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=random.randrange(10**6))
    expiry = start + timedelta(minutes=random.randrange(1, 10**6))
    kind = random.choice(["late", "early", "wrong", "malformed"])
    late, early = expiry + timedelta(days=1), start - timedelta(days=1)
    times = [
        format_datetime(time, usegmt=True) for time in (start, expiry, late if kind == "late" else early)
    ]
    detail = {
        "wrong": f"Signature did not match. String to sign used was r\n\n2026-01-01T00:00:00Z\n/{MARK}/expired\n",
        "malformed": "Signature fields not well formed.",
    }.get(
        kind,
        "Signature not valid in the specified time frame: "
        f"Start [{times[0]}] - Expiry [{times[1]}] - Current [{times[2]}]",
    )
    message = (
        "Server failed to authenticate the request. Make sure the value of Authorization is formed correctly."
    )
    body = _azure(random, "AuthenticationFailed", message, detail)
    return ErrorResponse(403, body, EXPIRED if kind == "late" else DENIED)


def _azure(random: Random, code: str, message: str, detail: str) -> bytes:
    more = [f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>"] if detail else []
    text = f"{message}\nRequestId:{random.getrandbits(64):016x}\nTime:2026-01-01T00:00:00.0000000Z"
    return b"\xef\xbb\xbf" * (random.random() < 0.7) + _xml(random, code, text, more)


def _xml(random: Random, code: str, message: str, more: list[str]) -> bytes:
    declaration = random.choice(
        ["", '<?xml version="1.0" encoding="UTF-8"?>', "<?xml version='1.0' encoding='utf-8'?>\n"]
    )
    space = random.choice(["", "", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
    gap = random.choice(["", "\n", "\n  "])
    members = gap.join([f"<Code>{code}</Code>", f"<Message>{message}</Message>", *more])
    return f"{declaration}<Error{space}>{gap}{members}{gap}</Error>".encode()
