"""The commands for jobs against a real API server: what it stores, refuses and forbids, and what kubectl says then."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN
from finetune_cli.exit_codes import ExitCode

from tests.support.cli_jobs import failed, succeeded, training
from tests.support.e2e.control_plane import control_plane, free_port
from tests.support.e2e.crds import await_established
from tests.support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster]

NAMESPACE = "team-a"
PLACES = "--model org/base --dataset pvc://data/rows.jsonl --destination pvc://models"
Finetune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """An API server with the CRD and a namespace; its answer without the CRD is checked before."""
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        kubectl = Kubectl(running.admin)
        missing = run_finetune(running.admin, "list")
        assert (missing.returncode, "install the chart" in missing.stderr) == (ExitCode.UNAVAILABLE, True)
        kubectl("apply", "--server-side", f"--filename={ROOT / 'crds/finetunejobs.yaml'}")
        await_established(kubectl)
        kubectl("create", "namespace", NAMESPACE)
        yield kubectl.within(NAMESPACE)


def run_finetune(kubeconfig: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of `finetune`."""
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        [sys.executable, "-m", "finetune_cli", *shlex.split(line)],
        capture_output=True, text=True, check=False, env=environment, timeout=120,
    )  # fmt: skip


@pytest.fixture
def finetune(plane: Kubectl) -> Iterator[Finetune]:
    """Runs `finetune` in the namespace; its jobs are deleted afterwards."""
    yield lambda line: run_finetune(plane.kubeconfig, f"{line} -n {NAMESPACE}")
    plane("delete", "finetunejobs", "--all", "--wait=true")


def set_status(plane: Kubectl, job: dict[str, Any]) -> None:
    """Write a status as the operator would."""
    now = "2026-11-29T10:30:00Z"
    status = json.loads(json.dumps(job["status"]))
    for condition in status.get("conditions", ()):
        condition |= {"lastTransitionTime": now, "observedGeneration": 1}
    patch = json.dumps({"status": status})
    plane("patch", "ftj", job["metadata"]["name"], "--subresource=status", "--type=merge", f"--patch={patch}")


def test_a_created_job_is_listed_and_not_created_twice(finetune: Finetune) -> None:
    assert finetune(f"create bot {PLACES} --rank 8 --apply").returncode == 0
    listed = json.loads(finetune("list -o json").stdout)["jobs"]
    assert [(job["name"], job["model"]) for job in listed] == [("bot", "hf://org/base")]
    again = finetune(f"create bot {PLACES} --apply")
    assert again.returncode == ExitCode.EXISTS, again.stderr


def test_a_dry_run_stores_nothing(finetune: Finetune) -> None:
    places = "--model hf://org/base --model-secret hub --dataset s3://data/rows.parquet"
    destinations = "--destination s3://models/bot --destination oci://registry.example.com/bot:1"
    checked = finetune(f"create bot {places} {destinations} --dry-run")
    assert checked.returncode == 0, checked.stderr
    assert finetune("list -o name").stdout == ""


def test_the_written_yaml_is_what_kubectl_applies(finetune: Finetune, plane: Kubectl, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(finetune(f"create bot {PLACES} --learning-rate 1e-5").stdout, "utf-8")
    assert finetune(f"validate {file}").returncode == 0
    plane("apply", f"--filename={file}")
    assert plane.json("get", "ftj", "bot")["spec"]["training"]["learningRate"] == 1e-05


def test_validate_names_what_the_api_server_refuses(finetune: Finetune, tmp_path: Path) -> None:
    job = yaml.safe_load(finetune(f"create bot {PLACES}").stdout)
    job["spec"]["training"] = {"sede": 1}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job), "utf-8")
    found = finetune(f"validate {file} -o json")
    assert found.returncode == ExitCode.FAILED, found.stderr
    server = next(item for item in json.loads(found.stdout)["checks"] if item["name"] == "Server")
    assert (server["status"], "sede" in server["message"]) == ("Failed", True)
    job["spec"]["training"] = {"epochs": 1}
    job["metadata"]["namespace"] = "absent"
    file.write_text(yaml.safe_dump(job), "utf-8")
    elsewhere = run_finetune_here(finetune, file)
    assert "absent" in elsewhere


def run_finetune_here(finetune: Finetune, file: Path) -> str:
    """The output of validating a file whose namespace is another one."""
    done = finetune(f"validate {file}")
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_suspend_and_resume_change_the_stored_job(finetune: Finetune, plane: Kubectl) -> None:
    finetune(f"create bot {PLACES} --apply")
    for command, suspended in (("suspend", True), ("resume", False)):
        assert finetune(f"{command} bot").returncode == 0
        assert plane.json("get", "ftj", "bot")["spec"]["suspend"] is suspended


def test_a_failed_job_is_retried_under_a_new_name(finetune: Finetune, plane: Kubectl) -> None:
    finetune(f"create bot {PLACES} --label team=search --apply")
    assert finetune("retry bot").returncode == ExitCode.USAGE
    set_status(plane, failed("bot"))
    refused = finetune("retry bot --set training.seed=-5")
    assert refused.returncode == ExitCode.REJECTED, refused.stderr
    assert finetune("list -o name").stdout.split() == ["finetunejob.finetune.dev/bot"]
    assert finetune("retry bot").stdout == "finetunejob.finetune.dev/bot-2 created\n"
    again = plane.json("get", "ftj", "bot-2")
    assert again["spec"]["output"]["destination"]["persistentVolumeClaim"]["path"] == "bot"
    assert again["metadata"]["labels"] == {"team": "search"}
    assert "status" not in again


def test_watch_follows_the_stored_status_to_its_end(finetune: Finetune, plane: Kubectl) -> None:
    finetune(f"create bot {PLACES} --apply")
    set_status(plane, training("bot"))
    waiting = finetune("watch bot --timeout 0")
    assert (waiting.returncode, "Training 40%" in waiting.stdout) == (ExitCode.TIMEOUT, True)
    set_status(plane, succeeded("bot"))
    assert finetune("watch bot").returncode == ExitCode.SUCCESS
    set_status(plane, failed("bot"))
    assert finetune("watch bot").returncode == ExitCode.FAILED
    assert finetune("watch absent").returncode == ExitCode.NO_INPUT


def test_two_stored_jobs_are_compared_and_billed(finetune: Finetune, plane: Kubectl) -> None:
    for name, rank in (("one", 8), ("two", 16)):
        finetune(f"create {name} {PLACES} --rank {rank} --apply")
        set_status(plane, succeeded(name))
    compared = json.loads(finetune("compare one two -o json").stdout)
    assert {"path": "training.lora.rank", "first": 8, "second": 16} in compared["spec"]
    assert [item["better"] for item in compared["measures"]] == [None]
    billed = json.loads(finetune("cost --price 2 --currency EUR -o json").stdout)
    costs = [{"cost": "1.00", "currency": "EUR"}]
    assert billed["total"] == {"gpuHours": 0.5, "lostGpuHours": 0.1, "costs": costs}


def test_a_user_without_rights_and_a_dead_server_have_their_own_codes(plane: Kubectl, tmp_path: Path) -> None:
    token = plane("create", "token", "default").strip()
    config = yaml.safe_load(plane.kubeconfig.read_text("utf-8"))
    config["users"][0]["user"] = {"token": token}
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config), "utf-8")
    forbidden = run_finetune(file, f"list -n {NAMESPACE}")
    assert (forbidden.returncode, "forbidden" in forbidden.stderr) == (ExitCode.NO_PERMISSION, True)
    config["users"][0]["user"] = {"token": "nonsense"}
    file.write_text(yaml.safe_dump(config), "utf-8")
    assert run_finetune(file, "list").returncode == ExitCode.NO_PERMISSION
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    file.write_text(yaml.safe_dump(config), "utf-8")
    assert run_finetune(file, "list").returncode == ExitCode.UNAVAILABLE
    assert run_finetune(file, "list --context absent").returncode == ExitCode.UNAVAILABLE
