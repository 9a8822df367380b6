"""Network settings of a run, joined from job and administrator."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.network import Network
from finetune_operator.api.sources import KeyRef
from finetune_operator.contract.network import mounted_bundles, network_variables, retry_seconds

NONE = Network()
SHARED = {"httpsProxy": "http://shared:1", "httpProxy": "http://shared:2", "noProxy": ".svc,10.0.0.0/8"}
KEY = {"name": "own", "key": "proxy"}


def variables(job: dict[str, Any], administrator: dict[str, Any]) -> dict[str, Any]:
    found = network_variables(Network.model_validate(job), Network.model_validate(administrator))
    return {item.name: item.value for item in found}


def test_without_settings_there_is_no_variable() -> None:
    assert network_variables(NONE, NONE) == []


def test_the_administrators_settings_hold_for_every_job() -> None:
    assert variables({}, SHARED) == {
        "HTTPS_PROXY": "http://shared:1",
        "HTTP_PROXY": "http://shared:2",
        "NO_PROXY": ".svc,10.0.0.0/8",
    }


def test_each_setting_of_the_job_replaces_one_and_is_marked() -> None:
    assert variables({"httpsProxy": "http://own:3", "noProxy": ""}, SHARED) == {
        "HTTPS_PROXY": "http://own:3",
        "HTTP_PROXY": "http://shared:2",
        "FINETUNE_JOB_PROXIES": "HTTPS_PROXY",
    }


def test_an_empty_setting_of_the_job_removes_a_proxy() -> None:
    assert variables({"httpsProxy": "", "httpProxy": ""}, SHARED) == {}


def test_a_secret_is_the_proxy_of_both_schemes() -> None:
    reference = KeyRef.model_validate(KEY)
    assert variables({"proxySecretRef": KEY}, SHARED) == {
        "HTTPS_PROXY": reference,
        "HTTP_PROXY": reference,
        "NO_PROXY": ".svc,10.0.0.0/8",
        "FINETUNE_JOB_PROXIES": "HTTPS_PROXY HTTP_PROXY",
    }
    assert variables({"httpProxy": ""}, {"proxySecretRef": KEY}) == {"HTTPS_PROXY": reference}


def test_bundles_of_both_are_mounted_in_folders_of_their_own() -> None:
    job = Network.model_validate({"caBundle": {"secretKeyRef": {"name": "b", "key": "ca.crt"}}})
    shared = Network.model_validate({"caBundle": {"configMapKeyRef": {"name": "a", "key": "ca.crt"}}})
    assert [(item.name, item.path, item.reference.name) for item in mounted_bundles(job, shared)] == [
        ("ca-bundle", "/etc/finetune-ca/ca-bundle/ca.crt", "a"),
        ("job-ca-bundle", "/etc/finetune-ca/job-ca-bundle/ca.crt", "b"),
    ]
    assert mounted_bundles(NONE, NONE) == []


def test_the_jobs_time_precedes_the_administrators_also_if_it_is_zero() -> None:
    assert retry_seconds(NONE, NONE) == 600
    assert retry_seconds(NONE, Network(retry_seconds=60)) == 60
    assert retry_seconds(Network(retry_seconds=0), Network(retry_seconds=60)) == 0
