from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.stored import list_paths, read_stored

from tests.support.operator import make_spec


def changed(path: str, value: Any) -> dict[str, Any]:
    """A valid spec with one member replaced, or removed if `value` is ..."""
    spec = make_spec()
    *parents, last = path.split(".")
    parent = spec
    for name in parents:
        parent = parent.setdefault(name, {})
    if value is ...:
        del parent[last]
    else:
        parent[last] = value
    return spec


def test_a_known_spec_is_read_like_a_file() -> None:
    stored = read_stored(make_spec())
    assert stored.spec == FineTuneJobSpec.parse(make_spec())
    assert (stored.ignored, stored.violation, stored.unreadable) == ((), "", ())


def test_equal_specs_are_parsed_once_and_an_edited_spec_anew() -> None:
    spec = make_spec()
    first = read_stored(spec)
    assert read_stored(make_spec()) is first
    spec["suspend"] = True
    edited = read_stored(spec).spec
    assert edited is not None
    assert edited.suspend


def test_huge_specs_do_not_fill_the_memory() -> None:
    """The CRD allows 16 annotations of 4096 bytes in several places, and a control character is six bytes of JSON."""
    annotations = {f"key{number}": "\x01" * 4096 for number in range(16)}
    tracemalloc.start()
    try:
        for number in range(24):
            assert read_stored(
                make_spec(podTemplate={"annotations": {**annotations, "number": str(number)}})
            ).spec
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2_000_000


@pytest.mark.parametrize(
    "path",
    [
        "schedulingGates",
        "training.unheardOf",
        "training.lora.initialization",
        "dataset.source.configMap.encoding",
        "podTemplate.train.hostUsers",
        "network.caBundle.configMapKeyRef.optional",
    ],
)
def test_an_unknown_field_is_left_out_and_named_at_any_depth(path: str) -> None:
    spec = make_spec(network={"caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}})
    *parents, last = path.split(".")
    parent: dict[str, Any] = spec
    for name in parents:
        parent = parent.setdefault(name, {})
    without = FineTuneJobSpec.parse(spec)
    parent[last] = {"anything": [1]}
    stored = read_stored(spec)
    assert stored.ignored == (f"spec.{path}",)
    assert stored.spec == without
    assert spec_hash(stored.spec) == spec_hash(without), "a stage that is finished stays finished"


def test_an_unknown_field_of_a_list_item_is_left_out() -> None:
    spec = make_spec(podTemplate={"tolerations": [{"operator": "Exists"}, {"key": "a", "scope": "Node"}]})
    stored = read_stored(spec)
    assert stored.ignored == ("spec.podTemplate.tolerations[1].scope",)
    assert stored.spec is not None
    assert [each.key for each in stored.spec.pod_template.tolerations] == [None, "a"]


@pytest.mark.parametrize(
    ("path", "value", "attribute"),
    [
        ("lifecycle.retries", -1, "lifecycle.retries"),
        ("training.effectiveBatchSize", 100_000, "training.effective_batch_size"),
        ("training.learningRate", 7, "training.learning_rate"),
        ("dataset.validation.fraction", 0.75, "dataset.validation.fraction"),
        ("resources.gpus", 128, "resources.gpus"),
        ("workspace.storageClassName", "c" * 300, "workspace.storage_class_name"),
    ],
)
def test_a_value_that_breaks_a_bound_is_kept_and_said(path: str, value: Any, attribute: str) -> None:
    stored = read_stored(changed(path, value))
    found: Any = stored.spec
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == value
    assert f"spec.{path}" in stored.violation


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.quantization", "FP8", "spec.training.quantization must be one of NF4, found FP8"),
        ("training.lora", "Wide", "spec.training.lora must be an object, found Wide"),
        ("training.seed", {"split": 1}, "spec.training.seed must be a number, found an object"),
        ("output.artifacts", ["Adapter", "Onnx"], "spec.output.artifacts[1] must be one of"),
        ("dataset.source", ..., "spec.dataset.source must be given, found nothing"),
        ("suspend", "Later", "spec.suspend must be true or false, found Later"),
        ("model.source.huggingFace", ["a"], "spec.model.source.huggingFace must be an object, found a list"),
        ("podTemplate.labels", ["a"], "spec.podTemplate.labels must be an object, found a list"),
    ],
)
def test_a_value_of_another_version_makes_the_spec_unreadable(path: str, value: Any, message: str) -> None:
    stored = read_stored(changed(path, value))
    assert stored.spec is None
    assert len(stored.unreadable) == 1
    assert message in stored.unreadable[0]


def test_an_unreadable_secret_or_long_text_is_not_repeated() -> None:
    (found,) = read_stored(changed("training.quantization", "hf_secret token")).unreadable
    assert "secret" not in found


def test_long_lists_of_paths_are_cut() -> None:
    assert list_paths(("a", "b")) == "a, b"
    assert list_paths(tuple(str(number) for number in range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
