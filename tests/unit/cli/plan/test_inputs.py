from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_cli.errors import UsageError
from finetune_cli.plan.inputs import (
    described_rows,
    named_offers,
    nodes_of,
    read_config,
    read_mapping,
    read_nodes,
    read_profiles,
    read_spec,
)
from finetune_cli.run.local import LocalFolders
from finetune_operator.api.spec import Resources
from finetune_operator.errors import InvalidSpecError
from finetune_operator.sizing.memory.stack import DEFAULT_STACK

NODE: dict[str, Any] = {"kind": "Node", "metadata": {"name": "n", "uid": "u", "resourceVersion": "1"}}


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_settings_replace_create_and_remove_fields() -> None:
    spec = read_spec(
        None, None, ["training.lora.rank=8", "spec.training.learningRate=1e-3", "resources.nodeSelector.a=b"]
    )
    assert (spec.training.lora.rank, spec.training.learning_rate) == (8, 0.001)
    assert spec.resources.node_selector == {"a": "b"}
    assert read_spec(None, None, ["training.seed=7", "training.seed="]).training.seed == 42


@pytest.mark.parametrize("setting", ["training.seed", "=1", "training..seed=1", ".=1"])
def test_a_setting_without_a_path_or_a_value_is_rejected(setting: str) -> None:
    with pytest.raises(UsageError, match="--set must be PATH=VALUE"):
        read_spec(None, None, [setting])


def test_a_setting_must_follow_the_rules_of_the_spec() -> None:
    with pytest.raises(InvalidSpecError, match="at most one of epochs and maximumSteps"):
        read_spec(None, None, ["training.epochs=1", "training.maximumSteps=2"])


def test_the_config_is_a_file_or_in_a_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "config.json", '{"model_type": "llama"}')
    folders = LocalFolders(tmp_path, {}, tmp_path)
    for model in (file, tmp_path):
        found = read_config(model, read_spec(None, None, []), folders, from_file=False)
        assert found == {"model_type": "llama"}


def test_a_model_in_a_claim_needs_the_folder_of_the_claim(tmp_path: Path) -> None:
    spec = read_spec(None, None, ["model.source.persistentVolumeClaim={claimName: models, path: a}"])
    folders = LocalFolders(tmp_path / "volumes", {"models": tmp_path}, tmp_path)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "config.json", "{}")
    assert read_config(None, spec, folders, from_file=True) == {}
    with pytest.raises(UsageError, match="--model FOLDER"):
        read_config(None, spec, folders, from_file=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{a: 1}", {"a": 1}),
        ("trainer: {stackProfile: {a: 1}}", {"a": 1}),
        ("trainer: {image: x}", {"image": "x"}),
    ],
)
def test_a_member_of_a_values_file_is_found(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    path = write(tmp_path / "values.yaml", text)
    assert read_mapping(path, "trainer.stackProfile", dict) == expected


@pytest.mark.parametrize(
    ("text", "words"), [("[1]", "must be a mapping, found list"), ("a: 1\n---\nb: 2", "found 2")]
)
def test_other_documents_are_rejected(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_mapping(write(tmp_path / "values.yaml", text), "calibration", dict)


def test_an_error_of_the_parser_names_the_file(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise ValueError("version must be a text")

    with pytest.raises(UsageError, match=r"values\.yaml: version must be a text"):
        read_mapping(write(tmp_path / "values.yaml", "{}"), "calibration", fail)


def test_profiles_are_a_list_or_a_member_of_a_values_file(tmp_path: Path) -> None:
    text = "[{name: l4, product: L4, labels: {pool: l4}}]"
    alone = read_profiles(write(tmp_path / "list.yaml", text))
    assert alone == read_profiles(write(tmp_path / "values.yaml", f"gpuProfiles: {text}"))
    assert [profile.name for profile in alone] == ["l4"]


def test_one_node_and_a_list_of_nodes_are_read(tmp_path: Path) -> None:
    listed = write(tmp_path / "nodes.json", json.dumps({"kind": "List", "items": [NODE]}))
    assert [node.name for node in read_nodes(listed)] == ["n"]
    assert [node.name for node in nodes_of(NODE, "stdin")] == ["n"]


@pytest.mark.parametrize(
    "document", [None, [], {"kind": "Pod"}, {"items": ["x"]}, {"items": [{"kind": "Pod"}]}]
)
def test_a_document_without_nodes_is_rejected_with_its_source(document: Any) -> None:
    with pytest.raises(UsageError, match=r"^stdin must"):
        nodes_of(document, "stdin")


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({}, 1),
        ({"gpus": 4}, 4),
        ({"gpus": 16}, 8),
        ({"gpus": 32, "gpusPerNode": 16}, 16),
        ({"maximumGpus": 4}, 4),
    ],
)
def test_a_named_gpu_is_one_of_a_machine_that_suits_the_job(resources: dict[str, int], count: int) -> None:
    asked = Resources.model_validate(resources)
    (offer,) = named_offers(["L4"], None, "nvidia.com/gpu", DEFAULT_STACK, asked)
    assert offer.count == count


def test_a_named_gpu_has_the_memory_of_the_table_or_the_given_one() -> None:
    (known,) = named_offers(["L4"], None, "nvidia.com/gpu", DEFAULT_STACK)
    (given,) = named_offers(["L4"], 10, "nvidia.com/gpu", DEFAULT_STACK)
    (unnamed,) = named_offers([], 1.5, "nvidia.com/gpu", DEFAULT_STACK)
    assert known.gpu.product == "NVIDIA L4"
    assert given.gpu.usable_bytes == 10 << 30
    assert given.gpu.compute_capability == known.gpu.compute_capability
    assert (unnamed.gpu.product, unnamed.gpu.usable_bytes) == ("a GPU of 1.5 GiB", 3 << 29)


def test_an_unknown_gpu_is_rejected_with_similar_products() -> None:
    with pytest.raises(UsageError, match=r"found 'NVIDIA L44' \(perhaps .*NVIDIA L4"):
        named_offers(["NVIDIA L44"], None, "nvidia.com/gpu", DEFAULT_STACK)


def test_rows_to_validate_on_come_from_the_spec() -> None:
    split = described_rows(read_spec(None, None, ["dataset.validation.fraction=0.2"]), 800, None, 512)
    assert split is not None
    assert (split.training, split.validation) == (800, 200)
    own = read_spec(
        None, None, ["dataset.validation={source: {configMap: {name: rows, key: held-out.jsonl}}}"]
    )
    separate = described_rows(own, 800, 100_000, 512)
    assert separate is not None
    assert separate.validation == own.evaluation.maximum_rows
    assert separate.tokens.low == separate.tokens.high == 100_000
    assert described_rows(own, None, None, 512) is None


@pytest.mark.parametrize(
    ("rows", "tokens", "words"),
    [(None, 100, "must come with --rows"), (10, 9, "from 10 to 5120"), (10, 5121, "found 5121")],
)
def test_tokens_that_the_rows_cannot_have_are_rejected(rows: int | None, tokens: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        described_rows(read_spec(None, None, []), rows, tokens, 512)
