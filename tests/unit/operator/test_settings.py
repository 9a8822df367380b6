from __future__ import annotations

import json

import pytest
from finetune_operator.api.network import Network
from finetune_operator.api.stages import Stage
from finetune_operator.errors import SettingsError
from finetune_operator.settings import load_settings, parse_settings


def test_every_setting_but_the_image_has_a_default() -> None:
    settings = parse_settings('{"trainer": {"image": "i:1"}}')
    assert (settings.trainer.device, settings.workers, settings.client.qps) == ("cuda", 8, 500)
    assert settings.trainer.resources.of(Stage.TRAIN).memory is None, "it is computed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("{}", "trainer: Field required"),
        ('{"trainer": {"image": "i"}, "wokers": 3}', "wokers"),
        ('{"trainer": {"image": "i", "device": "tpu"}}', "trainer.device"),
        ('{"trainer": {"image": "i"}, "workers": 0}', "workers"),
        ('{"trainer": {"image": "i", "stackProfile": {"odd": 1}}}', "found stack profile: odd is unknown"),
        ('{"trainer": {"image": "i"}, "calibration": {"odd": 1}}', "found calibration: odd is unknown"),
        ('{"trainer": {"image": "i"}, "cost": {"prices": [{"perGpuHour": 1}]}}', "cost.currency must be"),
        ('{"trainer": {"image": "i"}, "cost": {"labels": ["job-name"]}}', "cost.labels.0"),
        (
            '{"trainer": {"image": "i", "podDefaults": {"securityContext": {"runAsUser": 0}}}}',
            "trainer: podDefaults.securityContext.runAsUser",
        ),
        (
            '{"trainer": {"image": "i", "podDefaults": {"labels": {"finetune.dev/job": "x"}}}}',
            "podDefaults.labels must not use keys",
        ),
    ],
)
def test_unusable_settings_say_what_is_wrong(content: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(content)


def test_a_missing_settings_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"/nowhere/settings\.json"):
        load_settings({"FINETUNE_OPERATOR_SETTINGS": "/nowhere/settings.json"})


def test_resources_that_the_administrator_sets_replace_the_computed_ones() -> None:
    content = '{"trainer": {"image": "i", "resources": {"train": {"memory": "64Gi"}}}}'
    resources = parse_settings(content).trainer.resources
    assert resources.of(Stage.TRAIN).memory == "64Gi"
    assert resources.of(Stage.TRAIN).cpu is None
    assert resources.of(Stage.MERGE).memory is None


def test_download_limits_reach_the_run_spec() -> None:
    content = '{"trainer": {"image": "i", "limits": {"datasetBytes": 7, "allowPrivateAddresses": true}}}'
    limits = parse_settings(content).trainer.limits.to_limits(30)
    assert (limits.dataset_bytes, limits.allow_private_addresses, limits.retry_seconds) == (7, True, 30)


def test_pod_defaults_of_the_file_replace_the_built_in_ones() -> None:
    built_in = parse_settings('{"trainer": {"image": "i"}}').trainer.defaults
    assert built_in.prepare.node_selector == {"kubernetes.io/os": "linux"}
    assert not built_in.train.node_selector, "GPUs decide where TRAIN runs"
    none = parse_settings('{"trainer": {"image": "i", "podDefaults": {}}}').trainer.defaults
    assert not none.prepare.node_selector


def test_empty_network_values_of_the_chart_are_no_settings() -> None:
    empty = {"httpsProxy": "", "noProxy": "", "proxySecretRef": {}, "caBundle": {}, "retrySeconds": 60}
    settings = parse_settings(json.dumps({"trainer": {"image": "i", "network": empty}}))
    assert settings.trainer.network == Network(retry_seconds=60)


def test_a_proxy_with_a_password_is_no_setting() -> None:
    content = '{"trainer": {"image": "i", "network": {"httpProxy": "http://user:password@proxy"}}}'
    with pytest.raises(SettingsError, match="httpProxy"):
        parse_settings(content)


def test_a_policy_that_cannot_be_used_stops_the_start() -> None:
    policy = {"limits": {"gpus": 0}}
    with pytest.raises(SettingsError, match=r"policy\.limits\.gpus"):
        parse_settings(json.dumps({"trainer": {"image": "trainer:1"}, "policy": policy}))
