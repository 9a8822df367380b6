from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode
from jsonschema import Draft202012Validator

from tests.support.repository import ROOT

SCHEMA = Draft202012Validator(json.loads((ROOT / "contract" / "plan.schema.json").read_text("utf-8")))
MISTRAL = ROOT / "tests" / "support" / "configs" / "mistral-7b-instruct-v0.3.json"
JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny, namespace: team}
spec:
  model: {source: {persistentVolumeClaim: {claimName: assets, path: model}}}
  dataset: {source: {configMap: {name: data, key: rows.jsonl}}}
  training: {effectiveBatchSize: 8, lora: {rank: 8}}
  resources: {nodeSelector: {team: a}}
  output: {destination: {persistentVolumeClaim: {claimName: assets}}}
"""
GFD = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034", "nvidia.com/gpu.count": "1"}


def node(name: str, labels: dict[str, str], allocatable: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "labels": labels},
        "spec": {},
        "status": {
            "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the document, which must follow the schema and add up."""
    code = main(["plan", "--json", *arguments])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    SCHEMA.validate(document)
    assert code == (0 if document["fits"] else 2)
    if document["chosen"] is not None:
        check_sums(document)
    return code, document


def check_sums(document: dict[str, Any]) -> None:
    sums: dict[str, int] = {}
    for term in document["terms"]:
        sums[term["phase"]] = sums.get(term["phase"], 0) + term["bytes"]
    device = sums.pop("Device")
    assert document["peakBytes"] == max(sums.values()) == sums[document["bottleneck"]]
    assert document["deviceBytes"] == document["peakBytes"] + device
    assert document["phases"] == {**sums, "Device": device}
    assert document["lowBytes"] <= document["deviceBytes"] <= document["highBytes"]
    chosen = document["chosen"]
    assert chosen["microBatchSize"] * chosen["gradientAccumulationSteps"] == chosen["effectiveBatchSize"]
    if document["usableBytes"] is not None and document["verdict"] != "GpuNotSupported":
        assert document["fits"] == (document["deviceBytes"] <= document["usableBytes"])


def rejected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error message for a wrong request."""
    assert main(["plan", *arguments]) == ExitCode.USAGE
    return capsys.readouterr().err


def test_a_folder_with_config_json_alone_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(MISTRAL.read_text("utf-8"), "utf-8")
    code, document = planned(capsys, "--model", str(tmp_path), "--gpu", "NVIDIA L4")
    assert (code, document["verdict"]) == (0, "Fits")
    assert document["gpu"]["product"] == "NVIDIA L4"
    assert document["model"]["family"] == "mistral"


@pytest.mark.parametrize(
    "gpu", ["NVIDIA A10G", "nvidia-l4", "T4", "H100 80GB", "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"]
)
@pytest.mark.parametrize("micro_batch", [1, 2, 16])
@pytest.mark.parametrize("checkpointing", ["Auto", "Require", "Forbid"])
def test_every_document_follows_the_schema_and_adds_up(
    gpu: str, micro_batch: int, checkpointing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, document = planned(
        capsys,
        *("--model", str(MISTRAL), "--gpu", gpu),
        *("--set", f"training.microBatchSize={micro_batch}"),
        *("--set", f"training.gradientCheckpointing={checkpointing}"),
    )
    assert document["chosen"]["microBatchSize"] == micro_batch


def test_a_rejected_plan_has_its_own_numbers_and_a_change_that_helps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = ["--set", "training.microBatchSize=2", "--set", "training.gradientCheckpointing=Forbid"]
    code, document = planned(capsys, "--model", str(MISTRAL), "--gpu", "A10G", *failed)
    assert (code, document["verdict"]) == (2, "DoesNotFit")
    assert document["chosen"]["microBatchSize"] == 2
    assert document["chosen"]["gradientCheckpointing"] is False
    changes = [f"--set={setting['path']}={setting['value']}" for setting in document["change"]["settings"]]
    code, changed = planned(capsys, "--model", str(MISTRAL), "--gpu", "A10G", *failed, *changes)
    assert code == 0
    # The change has the least that the job then needs; the plan is the fastest one that fits.
    assert document["change"]["deviceBytes"] <= changed["deviceBytes"] <= changed["usableBytes"]
    smallest = document["smallestGpu"]["product"]
    assert planned(capsys, "--model", str(MISTRAL), "--gpu", smallest, *failed)[0] == 0


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "nothing-known"},
        {},
        {"model_type": "mistral", "hidden_size": "large"},
    ],
)
def test_a_model_of_unknown_size_is_a_verdict_without_a_traceback(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    code, document = planned(capsys, "--model", str(tmp_path), "--gpu", "L4")
    assert (code, document["verdict"]) == (2, "ModelSizeUnknown")
    assert document["deviceBytes"] is None
    assert main(["plan", "--model", str(tmp_path), "--gpu", "L4"]) == 2
    assert "cannot be computed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 8}}, "vision_config"),
        ({"model_type": "mistral", "quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"model_type": "mistral", "architectures": ["MistralForSequenceClassification"]}, "Classification"),
        ({"model_type": "mistral", "architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}}, "auto_map"),
        ({"model_type": "falcon"}, "falcon"),
    ],
)
def test_a_model_that_the_trainer_refuses_is_rejected_before_any_job_is_made(
    config: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    code, document = planned(capsys, "--model", str(tmp_path), "--gpu", "L4")
    assert (code, document["verdict"]) == (2, "UnsupportedModel")
    assert said in document["reasons"][0]
    assert main(["plan", "--model", str(tmp_path), "--gpu", "L4"]) == 2
    assert "cannot be tuned" in capsys.readouterr().out


def test_a_quantizers_file_or_tensor_next_to_the_config_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(MISTRAL.read_text("utf-8"), "utf-8")
    index = tmp_path / "model.safetensors.index.json"
    asked = ("--model", str(tmp_path), "--gpu", "L4")
    for text in ('{"weight_map": {"model.norm.weight": "a"}}', "[]", "{", '{"weight_map": 3}'):
        index.write_text(text, "utf-8")
        assert planned(capsys, *asked)[0] == 0
    index.write_text('{"weight_map": {"model.layers.0.self_attn.q_proj.qweight": "a"}}', "utf-8")
    assert "qweight" in planned(capsys, *asked)[1]["reasons"][0]
    index.unlink()
    (tmp_path / "quantize_config.json").write_text("{}", "utf-8")
    code, document = planned(capsys, *asked)
    assert (code, document["verdict"]) == (2, "UnsupportedModel")
    assert "quantize_config.json" in document["reasons"][0]


def test_a_cluster_of_mig_slices_says_which_resource_to_ask_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MIG strategy mixed: no node offers nvidia.com/gpu."""
    labels = {
        "nvidia.com/mig.strategy": "mixed",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/mig-3g.40gb.product": "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb",
        "nvidia.com/mig-3g.40gb.memory": "40192",
        "nvidia.com/mig-3g.40gb.count": "2",
        "nvidia.com/mig-1g.10gb.count": "1",
    }
    sliced = node(
        "a", labels, {"nvidia.com/gpu": "0", "nvidia.com/mig-3g.40gb": "2", "nvidia.com/mig-1g.10gb": "1"}
    )
    listed = tmp_path / "nodes.json"
    listed.write_text(json.dumps({"kind": "List", "items": [sliced]}), "utf-8")
    asked = ["--model", str(MISTRAL), "--nodes", str(listed)]
    code, document = planned(capsys, *asked)
    assert (code, document["verdict"]) == (2, "DoesNotFit")
    for part in ("nvidia.com/mig-3g.40gb", "nvidia.com/mig-1g.10gb", "resources.gpuResourceName", "node a"):
        assert part in document["reasons"][0]
    named = (
        "nvidia.com/mig-3g.40gb"
        if "fits nvidia.com/mig-3g.40gb" in document["reasons"][0]
        else "nvidia.com/mig-1g.10gb"
    )
    code, document = planned(capsys, *asked, "--set", f"resources.gpuResourceName={named}")
    assert (code, document["verdict"]) == (0, "Fits")


def test_the_model_of_a_job_is_found_in_the_folder_of_its_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "assets" / "model").mkdir(parents=True)
    (tmp_path / "assets" / "model" / "config.json").write_text(MISTRAL.read_text("utf-8"), "utf-8")
    (tmp_path / "job.yaml").write_text(JOB, "utf-8")
    job = ["--volumes", str(tmp_path), "--gpu", "L4"]
    _, document = planned(capsys, str(tmp_path / "job.yaml"), *job)
    assert document["chosen"]["rank"] == 8
    assert document["chosen"]["effectiveBatchSize"] == 8
    assert planned(capsys, "-f", str(tmp_path / "job.yaml"), *job)[1] == document


def test_nodes_are_read_from_a_file_and_filtered_by_the_node_selector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(JOB, "utf-8")
    nodes = [
        node("mine", {**GFD, "team": "a"}, {"nvidia.com/gpu": "1"}),
        node("theirs", {**GFD, "team": "b"}, {"nvidia.com/gpu": "1"}),
        node("plain", {}, {"cpu": "4"}),
    ]
    listed = tmp_path / "nodes.json"
    listed.write_text(json.dumps({"kind": "List", "items": nodes}), "utf-8")
    asked = [str(tmp_path / "job.yaml"), "--model", str(MISTRAL), "--nodes", str(listed)]
    _, document = planned(capsys, *asked)
    assert [offer["node"] for offer in document["offers"]] == ["mine"]
    _, document = planned(capsys, *asked, "--set", "resources.nodeSelector={team: c}")
    assert document["verdict"] == "DoesNotFit"
    assert "team" in document["reasons"][0]
    assert main(["plan", *asked]) == 0
    assert "1 node(s) with NVIDIA L4" in capsys.readouterr().out


def test_node_rules_of_the_charts_pod_defaults_decide_which_gpus_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [node(name, {**GFD, "pool": name}, {"nvidia.com/gpu": "1"}) for name in ("a", "b")]
    (tmp_path / "nodes.json").write_text(json.dumps({"kind": "List", "items": nodes}), "utf-8")
    values = tmp_path / "values.yaml"
    values.write_text("trainer: {podDefaults: {train: {nodeSelector: {pool: b}}}}\n", "utf-8")
    asked = ["--model", str(MISTRAL), "--nodes", str(tmp_path / "nodes.json")]
    _, document = planned(capsys, *asked, "--pod-defaults", str(values))
    assert [offer["node"] for offer in document["offers"]] == ["b"]
    values.write_text("podDefaults: {hostNetwork: true}\n", "utf-8")
    assert "hostNetwork" in rejected(capsys, *asked, "--pod-defaults", str(values))


def test_a_named_gpu_has_no_labels_that_a_pod_template_could_ask_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rule = "podTemplate={train: {nodeSelector: {pool: a}}}"
    code, document = planned(capsys, "--model", str(MISTRAL), "--gpu", "A100", "--set", rule)
    assert (code, document["fits"]) == (0, True)


def test_gpu_profiles_are_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles = tmp_path / "values.yaml"
    profiles.write_text("gpuProfiles: [{name: l4-pool, product: L4, labels: {pool: l4}}]\n", "utf-8")
    _, document = planned(capsys, "--model", str(MISTRAL), "--profiles", str(profiles))
    assert [offer["profile"] for offer in document["offers"]] == ["l4-pool"]


def test_the_nodes_of_the_cluster_are_read_with_kubectl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of that name prints the nodes of a cluster, and records its arguments."""
    listed = json.dumps({"kind": "List", "items": [node("gpu-1", GFD, {"nvidia.com/gpu": "1"})]})
    program = tmp_path / "kubectl"
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\ncat <<'END'\n{listed}\nEND\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    _, document = planned(capsys, "--model", str(MISTRAL), "--context", "staging")
    assert [offer["node"] for offer in document["offers"]] == ["gpu-1"]
    assert (tmp_path / "asked").read_text("utf-8").split() == [
        "--context=staging",
        "get",
        "nodes",
        "--output=json",
        "--request-timeout=30s",
    ]
    program.write_text("#!/bin/sh\necho 'the server is unreachable' >&2\nexit 1\n", "utf-8")
    assert "the server is unreachable" in rejected(capsys, "--model", str(MISTRAL))
    program.write_text("#!/bin/sh\necho nonsense\n", "utf-8")
    assert "must print JSON" in rejected(capsys, "--model", str(MISTRAL))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "--gpu" in rejected(capsys, "--model", str(MISTRAL))


def test_shorter_rows_need_less_memory_and_longer_rows_are_cut_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--model", str(MISTRAL), "--gpu", "L4", "--set", "training.microBatchSize=1"]
    whole = planned(capsys, *asked)[1]
    short = planned(capsys, *asked, "--longest-row", "300")[1]
    assert short["chosen"]["sequenceLength"] == 300
    assert short["deviceBytes"] < whole["deviceBytes"]
    longer = planned(capsys, *asked, "--longest-row", "9000")[1]
    assert longer["chosen"]["sequenceLength"] == whole["chosen"]["sequenceLength"]


def test_an_unknown_gpu_is_described_by_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    _, document = planned(capsys, "--model", str(MISTRAL), "--gpu-memory", "22", "--gpu", "Future 9000")
    assert document["usableBytes"] == 22 << 30
    assert document["gpu"]["product"] == "Future 9000"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "Riva 128"], "must be a known product"),
        (["--gpu", "L4", "--gpu", "A40", "--gpu-memory", "24"], "at most one --gpu"),
        (["--gpu-memory", "-1"], "above 0"),
        (["--gpu", "L4", "--nodes", "x"], "must be absent"),
        (["--gpu", "L4", "--set", "training.microBatch=2"], "spec.training.microBatch"),
        (["--gpu", "L4", "--set", "training.seed.bits=2"], "has the value 42 and no fields"),
        (["--gpu", "L4", "--set", "training"], "PATH=VALUE"),
        (["--gpu", "L4", "--set", "training.seed=[1"], "must be YAML"),
        (["--gpu", "L4", "--set", "training.microBatchSize=3"], "must divide"),
        (["--gpu", "L4", "--longest-row", "0"], "above 0"),
        (["--gpu", "L4", "--stack", "nowhere.yaml"], "readable file"),
        (["--nodes", str(MISTRAL)], "kubectl get nodes"),
        (["--profiles", str(MISTRAL)], "gpuProfiles"),
    ],
)
def test_a_wrong_request_is_rejected_with_the_reason(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = ["--set", "training.seed=42"]
    assert words in rejected(capsys, "--model", str(MISTRAL), *setting, *arguments)


@pytest.mark.parametrize(("text", "words"), [("{", "must be JSON"), ("[]", "must be a JSON object")])
def test_a_missing_or_malformed_config_is_rejected(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "config.json" in rejected(capsys, "--model", str(tmp_path), "--gpu", "L4")
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert words in rejected(capsys, "--model", str(tmp_path), "--gpu", "L4")
    assert "--model" in rejected(capsys, "--gpu", "L4")


def test_the_device_decides_about_the_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(MISTRAL.read_text("utf-8"), "utf-8")
    arguments = ("--model", str(tmp_path), "--gpu", "NVIDIA L4")
    _, gpu = planned(capsys, *arguments)
    _, cpu = planned(capsys, *arguments, "--device", "cpu")
    reasons = {choice["name"]: choice["reason"] for choice in cpu["choices"]}
    assert "trainer.device is cpu" in reasons["optimizer"]
    assert cpu["chosen"]["optimizer"] == "AdamW"
    assert (gpu["chosen"]["optimizer"], gpu["choices"]) != (cpu["chosen"]["optimizer"], cpu["choices"])


def test_time_and_cost_are_planned_without_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("cost: {currency: EUR, prices: [{product: L4, perGpuHour: 0.71}]}\n", "utf-8")
    given = ("--model", str(MISTRAL), "--gpu", "L4", "--rows", "1000")
    _, found = planned(capsys, *given, "--tokens", "300000", "--longest-row", "600", "--cost", str(values))
    duration, cost = found["duration"], found["cost"]
    assert duration["lowSeconds"] < duration["expectedSeconds"] < duration["highSeconds"]
    assert duration["tokens"] == 900_000
    assert float(cost["expected"]) == pytest.approx(duration["expectedSeconds"] * 0.71 / 3600, rel=1e-3)
    _, more = planned(capsys, *given)
    assert "not known" in more["duration"]["reason"]
    assert more["cost"] == {"reason": "the chart's cost.prices is empty"}
    _, rejected_plan = planned(capsys, *given[:2], "--gpu", "RTX 3060", "--set", "training.microBatchSize=16")
    assert rejected_plan["fits"] or (rejected_plan["duration"], rejected_plan["cost"]) == (None, None)


def test_the_cheapest_number_of_gpus_is_planned_with_the_time_of_their_exchange(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--model", str(MISTRAL), "--gpu-memory", "4.2", "--gpu", "NVIDIA L4", "--rows", "1000")
    several = (
        *("--set", "resources.maximumGpus=8", "--set", "training.effectiveBatchSize=12"),
        *("--tokens", "300000"),
    )
    main(["plan", "--json", *given, *several])
    found = json.loads(capsys.readouterr().out)
    SCHEMA.validate(found)
    chosen, duration = found["chosen"], found["duration"]
    assert (chosen["gpus"], chosen["parallelism"], chosen["effectiveBatchSize"]) == (3, "FullyShard", 12)
    (choice,) = [choice for choice in found["choices"] if choice["name"] == "gpus"]
    assert choice["value"] == "3"
    assert "2 GPUs would" in choice["reason"]
    assert "GPU hours on" in choice["reason"]
    assert float(duration["gpuHours"]) == pytest.approx(3 * duration["expectedSeconds"] / 3600, rel=0.01)
    assert "Exchange" in {part["name"] for part in duration["parts"]}
    assert main(["plan", *given, *several]) == 0
    assert "2 GPUs would" in capsys.readouterr().out


def test_three_gpus_do_not_change_the_rows_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--json", "--model", str(MISTRAL), "--gpu", "L4", "--set", "resources.gpus=3"])
    found = json.loads(capsys.readouterr().out)
    assert (found["chosen"]["gpus"], found["chosen"]["effectiveBatchSize"]) == (3, 16)
