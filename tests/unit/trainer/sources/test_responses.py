"""The meaning of every response of a file server, tested without a server."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import Reason
from finetune_trainer.sources.responses import PREFIX_BYTES, Action, interpret, is_page
from hypothesis import given
from hypothesis import strategies as st

EXPIRED, DENIED = Reason.DATASET_URL_EXPIRED, Reason.DATASET_ACCESS_DENIED
MISSING, OUTAGE = Reason.DATASET_NOT_FOUND, Reason.DATASET_UNAVAILABLE


def s3(code: str, message: str = "", more: str = "") -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{more}'
        "<RequestId>4442587FB7D0A2F9</RequestId></Error>"
    ).encode()


def azure(code: str, message: str, detail: str = "") -> bytes:
    more = f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>" if detail else ""
    return (
        f'\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}\n'
        f"RequestId:5c4e\nTime:2026-01-01T00:00:00.0Z</Message>{more}</Error>"
    ).encode()


def window(start: str, expiry: str, current: str) -> str:
    return (
        f"Signature not valid in the specified time frame: Start [{start}] - Expiry [{expiry}] - "
        f"Current [{current}]"
    )


JANUARY, MARCH, MAY = (f"Thu, 01 {month} 2026 00:00:00 GMT" for month in ("Jan", "Mar", "May"))


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        # Amazon S3 and compatible stores
        (403, s3("AccessDenied", "Request has expired", "<Expires>2026-01-01T00:00:00Z</Expires>"), EXPIRED),
        (400, s3("ExpiredToken", "The provided token has expired."), EXPIRED),
        (400, s3("TokenRefreshRequired", "The provided token must be refreshed."), OUTAGE),
        (403, s3("AccessDenied", "Access Denied"), DENIED),
        (403, s3("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."), DENIED),
        (
            403,
            s3(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match.",
                "<StringToSign>GET\n/bucket/expired/data.jsonl?X-Amz-Expires=60</StringToSign>",
            ),
            DENIED,
        ),
        (400, s3("AuthorizationQueryParametersError", "X-Amz-Expires must be less than a week"), DENIED),
        (403, s3("RequestTimeTooSkewed", "The difference is too large."), DENIED),
        (404, s3("NoSuchKey", "The specified key does not exist.", "<Key>expired.jsonl</Key>"), MISSING),
        (404, s3("NoSuchBucket", "The specified bucket does not exist"), MISSING),
        (404, s3("XAdminUserNotFound", "No user exists with the provided access key ID."), DENIED),
        (400, s3("InvalidBucketName", "The specified bucket is not valid."), MISSING),
        (400, s3("RequestTimeout", "Your socket connection was not read from."), OUTAGE),
        (503, s3("SlowDown", "Please reduce your request rate."), OUTAGE),
        (503, s3("AccessDenied", "Request has expired"), OUTAGE),
        (500, s3("InternalError", "We encountered an internal error."), OUTAGE),
        # Google Cloud Storage, XML and JSON
        (
            400,
            s3("ExpiredToken", "Invalid argument.", "<Details>Request signature expired at: 2026</Details>"),
            EXPIRED,
        ),
        (403, s3("SignatureDoesNotMatch", "Access denied.", "<Details>expired.jsonl</Details>"), DENIED),
        (
            403,
            s3("AccessDenied", "Access denied.", "<Details>no access to token-expired.csv</Details>"),
            DENIED,
        ),
        (404, s3("NoSuchKey", "The specified key does not exist."), MISSING),
        (401, b'{"error": {"code": 401, "message": "Invalid Credentials"}}', DENIED),
        (401, b'{"error": {"code": 401, "message": "The access token expired"}}', EXPIRED),
        (403, b'{"error": {"errors": [{"reason": "rateLimitExceeded"}], "code": 403}}', OUTAGE),
        (403, b'{"error": {"message": "no access to the object", "name": "expired"}}', DENIED),
        (403, b'{"error": {"message": "x@y has no storage.objects.get access to b/expired.jsonl."}}', DENIED),
        # Azure Blob Storage
        (
            403,
            azure("AuthenticationFailed", "Server failed to authenticate.", window(JANUARY, MARCH, MAY)),
            EXPIRED,
        ),
        (
            403,
            azure("AuthenticationFailed", "Server failed to authenticate.", window(MARCH, MAY, JANUARY)),
            DENIED,
        ),
        (
            403,
            azure("AuthenticationFailed", "Server failed.", "Signature did not match. String to sign: r"),
            DENIED,
        ),
        (
            403,
            azure(
                "AuthenticationFailed",
                "Server failed.",
                "Signature did not match. String to sign used was r\n\n/blob/a/c/expired rows.jsonl",
            ),
            DENIED,
        ),
        (403, azure("AuthorizationFailure", "This request is not authorized."), DENIED),
        (409, azure("PublicAccessNotPermitted", "Public access is not permitted."), DENIED),
        (404, azure("BlobNotFound", "The specified blob does not exist."), MISSING),
        (404, azure("ContainerNotFound", "The specified container does not exist."), MISSING),
        (503, azure("ServerBusy", "The server is busy."), OUTAGE),
        (
            401,
            azure("InvalidAuthenticationInfo", "Lifetime validation failed. The token is expired."),
            EXPIRED,
        ),
        # Any server
        (401, b"", DENIED),
        (403, b"<html><body>Your session has expired</body></html>", DENIED),
        (403, b"link expired", EXPIRED),
        (407, b"", DENIED),
        (451, b"", DENIED),
        (404, b"", MISSING),
        (410, b"", EXPIRED),
        (400, b"", OUTAGE),
        (418, b"", OUTAGE),
        (204, b"", OUTAGE),
        (304, b"", OUTAGE),
        (302, b"", OUTAGE),
        (408, b"", OUTAGE),
        (429, b"", OUTAGE),
        (502, b"", OUTAGE),
        (599, b"", OUTAGE),
    ],
)
def test_every_error_response_has_its_reason(status: int, body: bytes, reason: Reason) -> None:
    assert interpret(status, {}, body).reason is reason


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_outages_are_retried(status: int) -> None:
    assert interpret(status, {}, b"").action is Action.RETRY


@pytest.mark.parametrize("status", [412, 416])
def test_a_failed_precondition_restarts_the_download(status: int) -> None:
    assert interpret(status, {}, b"").action is Action.RESTART


def test_azure_can_also_send_its_code_in_a_header() -> None:
    assert interpret(409, {"x-ms-error-code": "PublicAccessNotPermitted"}, b"").reason is DENIED


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"messages": []}', None),
        (b"", None),
        (b"<id>,text\n1,a\n", None),
        (b"<html><head><title>Data</title></head></html>", None),
        (b"\n<HTML><form><input name=p type='password'></form>", DENIED),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html><input type=password>', DENIED),
        # A page that only mentions signing in is any page, such as one about a file. The reader of files names it.
        (b"<!DOCTYPE html><html><head><title>Sign in - Corp</title></head>", None),
        (b"<html><h1>Please log in</h1><a href='/login'>Sign in</a></html>", None),
        (s3("AccessDenied", "Request has expired"), EXPIRED),
        (s3("NoSuchKey"), MISSING),
        (azure("AuthorizationFailure", "This request is not authorized."), DENIED),
        (b"<Error><Code>Whatever</Code></Error>", OUTAGE),
    ],
)
def test_a_success_is_a_file_unless_it_is_an_error_or_a_login_page(
    body: bytes, reason: Reason | None
) -> None:
    verdict = interpret(200, {}, body)
    assert verdict.reason is reason
    assert (verdict.action is Action.TAKE) is (reason is None)


def test_the_servers_pause_is_part_of_the_verdict() -> None:
    assert interpret(429, {"retry-after": "7"}, b"").pause_seconds == 7
    busy = s3("SlowDown")
    assert interpret(400, {"retry-after": "9"}, busy).pause_seconds == 9
    assert interpret(200, {"retry-after": "9"}, busy).pause_seconds == 9


@pytest.mark.parametrize("fields", [{"retry-after": "60"}, {"x-ratelimit-remaining": "0"}])
def test_a_403_about_the_rate_of_requests_is_an_outage(fields: dict[str, str]) -> None:
    assert interpret(403, fields, b"").action is Action.RETRY
    assert interpret(403, {"x-ratelimit-remaining": "7"}, b"").reason is DENIED


WORDS = b"Your link has expired. <code>AccessDenied</code> <message>Too many requests: SlowDown</message>"


@pytest.mark.parametrize(
    ("beginning", "label"),
    [
        (b"<!DOCTYPE html><p>", ""),
        (b"\xef\xbb\xbf\n<html>", ""),
        (b'<?xml version="1.0"?><!-- x --><!DOCTYPE html>', ""),
        (b"<center>", "text/html; charset=utf-8"),
        (b"<p>", "application/xhtml+xml"),
    ],
)
@pytest.mark.parametrize(("status", "reason"), [(403, DENIED), (404, MISSING), (400, OUTAGE), (503, OUTAGE)])
def test_no_word_of_a_web_page_is_read(beginning: bytes, label: str, status: int, reason: Reason) -> None:
    fields = {"content-type": label}
    assert is_page(fields, beginning + WORDS)
    assert interpret(status, fields, beginning + WORDS).reason is reason


def test_an_error_document_that_is_labeled_as_a_page_is_read() -> None:
    assert not is_page({"content-type": "text/html"}, s3("ExpiredToken"))
    assert interpret(403, {"content-type": "text/html"}, s3("ExpiredToken")).reason is EXPIRED


@given(
    status=st.integers(0, 999),
    fields=st.dictionaries(
        st.sampled_from(["location", "retry-after", "x-ms-error-code", "content-type"]), st.text(), max_size=3
    ),
    body=st.binary(max_size=300)
    | st.builds(
        lambda start, rest: start + rest, st.sampled_from([s3("A")[:60], b"{", b"<html>"]), st.binary()
    ),
)
def test_every_response_has_a_verdict(status: int, fields: dict[str, str], body: bytes) -> None:
    verdict = interpret(status, fields, body)
    assert (verdict.reason is None) is (verdict.action in {Action.TAKE, Action.CONTINUE, Action.REDIRECT})
    assert 0 <= verdict.pause_seconds <= 86_400


def test_long_bodies_are_judged_by_their_beginning() -> None:
    padded = s3("AccessDenied", "Access Denied") + b" " * PREFIX_BYTES + b"expired"
    assert interpret(403, {}, padded).reason is DENIED
