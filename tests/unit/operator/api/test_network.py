"""Network settings of a job."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.network import JobNetwork
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.errors import InvalidSpecError

from tests.support.operator import make_spec

KEY = {"name": "corporate", "key": "value"}


def test_settings_are_read_and_a_missing_one_is_none() -> None:
    network = FineTuneJobSpec.parse(
        make_spec(network={"httpsProxy": "http://proxy.example:3128", "caBundle": {"configMapKeyRef": KEY}})
    ).network
    assert network.https_proxy == "http://proxy.example:3128"
    assert network.ca_bundle is not None
    assert network.http_proxy is None
    assert FineTuneJobSpec.parse(make_spec()).network == JobNetwork()


@pytest.mark.parametrize(
    "network",
    [
        {"httpsProxy": "http://user:password@proxy:1"},
        {"httpsProxy": "socks5://proxy:1"},
        {"httpsProxy": "http://proxy:1/path"},
        {"httpsProxy": "proxy:3128"},
        {"noProxy": "a.org;b.org"},
        {"noProxy": "x" * 4097},
        {"caBundle": {}},
        {"caBundle": {"configMapKeyRef": KEY, "secretKeyRef": KEY}},
        {"proxySecretRef": KEY, "httpProxy": "http://proxy"},
        {"proxySecretRef": {"name": "corporate"}},
        {"retrySeconds": -1},
        {"retrySeconds": 86401},
        {"huggingFaceEndpoint": ""},
        {"huggingFaceEndpoint": "https://user:password@hub.example"},
        {"huggingFaceEndpoint": "hub.example"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(network: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.network"):
        FineTuneJobSpec.parse(make_spec(network=network))


def test_a_password_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        FineTuneJobSpec.parse(make_spec(network={"httpsProxy": "http://user:s3cret@proxy:1"}))
    assert "s3cret" not in str(caught.value)
    assert "//...@proxy" in str(caught.value)


def test_an_empty_proxy_stands_for_none_and_goes_with_a_secret() -> None:
    assert JobNetwork.model_validate({"httpProxy": "", "proxySecretRef": KEY}).http_proxy == ""


def test_the_way_to_a_server_makes_no_other_model() -> None:
    """A job that is created again with a proxy must not train again."""
    plain = FineTuneJobSpec.parse(make_spec())
    assert spec_hash(FineTuneJobSpec.parse(make_spec(network={"retrySeconds": 5}))) == spec_hash(plain)
