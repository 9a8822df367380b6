"""The meaning of a hub's responses, tested without a server."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import Reason
from finetune_trainer.sources.hub_responses import interpret
from finetune_trainer.sources.responses import Action, Verdict

DENIED, MISSING = Reason.DATASET_ACCESS_DENIED, Reason.DATASET_NOT_FOUND


def verdict(
    status: int,
    body: bytes = b"",
    *,
    token: bool = False,
    page: bool = False,
    wanted: str = "repository",
    **fields: str,
) -> Verdict:
    named = {name.replace("_", "-").lower(): value for name, value in fields.items()}
    return interpret(status, named, body, wanted=wanted, page=page, token=token)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 599])
def test_an_outage_is_retried_with_the_pause_that_the_hub_asks_for(status: int) -> None:
    found = verdict(status, Retry_After="40")
    assert (found.action, found.pause_seconds) == (Action.RETRY, 40.0)


def test_a_rate_limit_is_an_outage_in_both_of_its_forms() -> None:
    assert verdict(429, RateLimit='"api";r=0;t=55').pause_seconds == 55.0
    assert verdict(403, Retry_After="5").action is Action.RETRY


@pytest.mark.parametrize(
    ("status", "code", "token", "reason", "found"),
    [
        (401, "", False, MISSING, "repository"),
        (401, "RepoNotFound", False, MISSING, "repository"),
        (401, "RepoNotFound", True, DENIED, "HTTP status 401"),
        (401, "GatedRepo", False, DENIED, "HTTP status 401"),
        (403, "GatedRepo", True, DENIED, "HTTP status 403"),
        (403, "", False, DENIED, "HTTP status 403"),
        (407, "", False, DENIED, "HTTP status 407"),
        (451, "", False, DENIED, "HTTP status 451"),
        (404, "RepoNotFound", False, MISSING, "repository"),
        (404, "RevisionNotFound", False, MISSING, "revision"),
        (404, "EntryNotFound", False, MISSING, "file"),
        (404, "", False, MISSING, "repository"),
        (410, "", False, MISSING, "repository"),
    ],
)
def test_a_rejection_has_its_reason(status: int, code: str, token: bool, reason: Reason, found: str) -> None:  # noqa: FBT001 -- a column
    got = verdict(status, token=token, X_Error_Code=code)
    assert got == Verdict(Action.FAIL, reason, found)


def test_a_wrong_token_is_denied() -> None:
    found = verdict(401, X_Error_Message="Invalid credentials in Authorization header")
    assert found.reason is DENIED


def test_a_missing_file_without_a_code_is_a_file() -> None:
    assert verdict(404, wanted="file").found == "file"


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (b"<!DOCTYPE html><html>", ""),
        (b"\xef\xbb\xbf\n<html>", ""),
        (b'<?xml version="1.0"?><!DOCTYPE html>', ""),
        (b"<div>Down for maintenance</div>", "text/html; charset=utf-8"),
    ],
)
def test_a_web_page_instead_of_a_file_is_an_outage_whatever_it_says(body: bytes, label: str) -> None:
    """Portals and proxies send one with status 200."""
    found = verdict(200, body, wanted="file", Content_Type=label)
    assert found.action is Action.RETRY
    assert "web page" in found.found


@pytest.mark.parametrize("body", [b"{}", b"", b"# <html>\n", b"sign in to read this"])
def test_a_label_alone_makes_no_page(body: bytes) -> None:
    assert verdict(200, body, Content_Type="text/html").action is Action.TAKE


def test_a_web_page_that_was_asked_for_is_a_file() -> None:
    assert verdict(200, b"<html>", page=True).action is Action.TAKE


def test_parts_redirects_and_changed_files_have_their_actions() -> None:
    assert verdict(206).action is Action.CONTINUE
    assert verdict(302, Location="/x").action is Action.REDIRECT
    assert verdict(302).action is Action.FAIL
    assert verdict(416).action is Action.RESTART
