"""Secrets are found in text in any encoding or form."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.telemetry.redaction import MASK, Redactor, secrets_of

SIGNATURE = "a/b+c=d&é 12345678"
URL = (
    "https://user:pass%2Fword@bucket.example.com/team/data.jsonl"
    f"?X-Amz-Credential=AKIA123456%2Faws4&X-Amz-Signature={quote_plus(SIGNATURE)}&plain=tokentokentoken"
)
ACCOUNT = {
    "type": "service_account",
    "private_key_id": "0123456789abcdef",
    "private_key": "-----BEGIN\nMIIEvAIB+/w==\n",
}


@pytest.mark.parametrize(
    "form",
    [
        str,
        quote,
        quote_plus,
        lambda text: quote(text, safe=""),
        lambda text: quote(text, safe="").replace("%2F", "%2f").replace("%3D", "%3d"),
        lambda text: json.dumps(text)[1:-1],
        lambda text: json.dumps(quote(text, safe=""))[1:-1],
        html.escape,
    ],
)
@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        (URL, URL),
        (URL, URL.partition("?")[2]),
        (URL, SIGNATURE),
        (URL, quote_plus(SIGNATURE)),
        (URL, "AKIA123456/aws4"),
        (URL, "tokentokentoken"),
        (URL, "pass%2Fword"),
        ("hf_abcdefghij", "hf_abcdefghij"),
        ('p"ass\\word/1+', 'p"ass\\word/1+'),
        ("?sv=2022-11-02&sig=c2lnbmF0dXJl%2Bx", "c2lnbmF0dXJl+x"),
        (json.dumps(ACCOUNT), ACCOUNT["private_key"].strip()),
        (json.dumps(ACCOUNT), "MIIEvAIB+/w=="),
        (json.dumps(ACCOUNT), json.dumps(ACCOUNT)),
    ],
)
def test_a_secret_is_masked_in_every_form(secret: str, shown: str, form: Callable[[str], str]) -> None:
    text = Redactor([secret])(f"before {form(shown)} after")
    assert text == f"before {MASK} after"


def test_basic_authorization_of_a_url_is_masked() -> None:
    assert Redactor([URL])("Basic dXNlcjpwYXNzL3dvcmQ=") == f"Basic {MASK}"


def test_ordinary_words_are_not_masked() -> None:
    text = "GET https://elsewhere.example/file: HTTP status 404, key data.jsonl, plain"
    assert Redactor([URL, "  ", ""])(text) == text


STORE = {"kind": "ObjectStore", "uri": "s3://b/k", "credentialsPrefix": "TEAM_"}
HUB = {"kind": "HuggingFace", "repository": "o/d", "revision": "main", "tokenVariable": "HUB_ACCESS"}
PLAIN = {"kind": "File", "path": "/data/x"}
ENVIRONMENT = {
    "TEAM_AWS_ACCESS_KEY_ID": "AKIATEAM",
    "TEAM_AWS_SECRET_ACCESS_KEY": "team secret",
    "TEAM_AWS_REGION": "eu-central-1",
    "TEAM_OTHER_MEMBER": "another secret of the same Secret",
    "HUB_ACCESS": "hf_token",
    "DATASET_URL": URL,
    "PATH": "/usr/bin:/bin:/sbin",
}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"source": STORE}, {"AKIATEAM", "team secret", "another secret of the same Secret"}),
        ({"source": HUB}, {"hf_token"}),
        ({"source": {"kind": "Url", "urlVariable": "DATASET_URL"}}, {URL}),
        ({"source": PLAIN}, set()),
        ({"source": PLAIN, "validation": {"source": HUB}}, {"hf_token"}),
        (
            {"source": HUB, "validation": {"source": {"kind": "Url", "urlVariable": "DATASET_URL"}}},
            {"hf_token", URL},
        ),
    ],
)
def test_every_variable_that_a_source_names_is_a_secret(
    make_run: Callable[..., RunSpec],
    run_document: dict[str, Any],
    members: dict[str, Any],
    expected: set[str],
) -> None:
    run = make_run(dataset=run_document["dataset"] | members)
    # The others have the name of a secret, so they are masked, too.
    named = {"AKIATEAM", "team secret"}
    assert set(secrets_of(run, ENVIRONMENT)) == expected | named


def test_secrets_of_a_models_store_are_masked_like_those_of_a_dataset(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    own = {"kind": "ObjectStore", "uri": "az://account/container/model"}
    run = make_run(model=run_document["model"] | {"source": own})
    assert secrets_of(run, {"AZURE_STORAGE_ACCOUNT_KEY": "account key"}) == ["account key"]


def test_no_part_of_a_secret_url_survives() -> None:
    url = "https://user:pass-word@bucket.example.com/data/rows.jsonl?X-Amz-Signature=abc%2Fdef123&Expires=1700000000"
    redact = Redactor([url, "hf_secret_token"])
    for text in (
        f"GET {url} failed",
        "path /data/rows.jsonl?X-Amz-Signature=abc%2Fdef123&Expires=1700000000",
        "signature abc/def123 or abc%2Fdef123",
        "token hf_secret_token",
        "redirected to https://other.example.com/x?sig=unknownvalue and https://me:secret2@host/",
    ):
        redacted = redact(text)
        assert MASK in redacted
        for part in ("abc%2F", "abc/def", "1700000000", "pass-word", "hf_secret", "unknownvalue", "secret2"):
            assert part not in redacted
    assert Redactor([])("nothing to hide") == "nothing to hide"


def test_passwords_of_proxies_are_masked_but_not_the_proxies(make_run: Callable[..., RunSpec]) -> None:
    environment = {
        "https_proxy": "http://user:pass%40word1@proxy.example:3128",
        "HTTP_PROXY": "http://proxy:1",
    }
    redact = Redactor(secrets_of(make_run(), environment))
    header = base64.b64encode(b"user:pass@word1").decode()
    text = f"pass@word1 pass%40word1 user:pass%40word1 {header} proxy.example:3128 proxy"
    assert redact(text) == f"{MASK} {MASK} {MASK} {MASK} proxy.example:3128 proxy"


def test_a_secret_is_masked_also_without_the_white_space_around_it() -> None:
    redact = Redactor(
        ["\ufeff hf_secret_token\r\n", "\ufeffhttps://files.example/data/rows.jsonl?sig=0123456789"]
    )
    text = redact(
        "hf_secret_token, GET https://files.example/data/rows.jsonl?sig=0123456789 and sig 0123456789"
    )
    for part in ("hf_secret", "rows.jsonl", "0123456789"):
        assert part not in text


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("WANDB_API_KEY", "0123456789abcdef", True),
        ("MY_PASSWORD", "correct horse battery", True),
        ("GITHUB_TOKEN", "ghp_0123456789", True),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/var/run/key.json", False),
        ("PATH", "/usr/bin:/bin:/usr/local", False),
    ],
)
def test_a_variable_with_the_name_of_a_secret_is_one_whoever_has_set_it(
    make_run: Callable[..., RunSpec], name: str, value: str, *, is_secret: bool
) -> None:
    redact = Redactor(secrets_of(make_run(), {name: value}))
    assert (value not in redact(f"found {value} here")) == is_secret
