"""Network settings of a run on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cli.errors import UsageError
from finetune_cli.manifests import Manifests
from finetune_cli.run.network import network_environment
from finetune_operator.api.network import JobNetwork

MANIFESTS = Manifests(
    namespace="team",
    name="demo",
    spec={},
    config_maps={"corporate": {"ca.crt": b"PEM"}},
    secrets={"proxy": {"url": "http://user:password@proxy:1"}, "own": {"ca.pem": "PEM 2"}},
)


def environment(folder: Path, **members: object) -> dict[str, str]:
    return network_environment(MANIFESTS, JobNetwork.model_validate(members), folder)


def test_without_settings_this_machines_variables_stay(tmp_path: Path) -> None:
    assert environment(tmp_path) == {}


def test_a_setting_replaces_both_spellings_of_a_variable(tmp_path: Path) -> None:
    found = environment(tmp_path, httpsProxy="http://proxy:1", noProxy="")
    assert found["HTTPS_PROXY"] == found["https_proxy"] == "http://proxy:1"
    assert found["NO_PROXY"] == found["no_proxy"] == ""


def test_an_empty_proxy_removes_this_machines(tmp_path: Path) -> None:
    assert environment(tmp_path, httpProxy="") == {"HTTP_PROXY": "", "http_proxy": ""}


def test_a_secret_of_the_file_is_the_proxy(tmp_path: Path) -> None:
    found = environment(tmp_path, proxySecretRef={"name": "proxy", "key": "url"})
    assert found["https_proxy"] == found["http_proxy"] == "http://user:password@proxy:1"


@pytest.mark.parametrize(
    ("reference", "content"),
    [
        ({"configMapKeyRef": {"name": "corporate", "key": "ca.crt"}}, b"PEM"),
        ({"secretKeyRef": {"name": "own", "key": "ca.pem"}}, b"PEM 2"),
    ],
)
def test_a_bundle_of_the_file_becomes_a_file(
    tmp_path: Path, reference: dict[str, dict[str, str]], content: bytes
) -> None:
    found = environment(tmp_path, caBundle=reference)
    assert Path(found["FINETUNE_CA_BUNDLE"]).read_bytes() == content


def test_an_object_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'absent'"):
        environment(tmp_path, caBundle={"secretKeyRef": {"name": "absent", "key": "ca.crt"}})


def test_a_hub_of_the_job_is_named_to_the_trainer(tmp_path: Path) -> None:
    found = environment(tmp_path, huggingFaceEndpoint="https://hub.example")
    assert found == {"FINETUNE_JOB_HUB": "https://hub.example"}
