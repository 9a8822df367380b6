"""Run the demo: a real Kubernetes, the operator's chart, one FineTuneJob from YAML to a merged model that answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from devcluster import product
from devcluster.errors import DevClusterError
from devcluster.kubectl import Kubectl, KubectlError
from devcluster.provider import provided_cluster

REPOSITORY = Path(__file__).resolve().parents[1]
VOLUME = REPOSITORY / ".finetune" / "volumes" / "quickstart"
BASE_MODEL = VOLUME / "models" / "SmolLM2-135M-Instruct"
HELD_OUT = VOLUME / "datasets" / "airports.test.jsonl"
NAMESPACE = "demo"
JOB = "airports"
HELD_OUT_ROWS = 32
STARTED = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time since the start."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return lines about the operator's choices before TRAIN: the GPU, the memory that the run needs, and each value."""
    gpu, memory = plan["gpu"], plan["memory"]
    need, usable = (f"{count / 2**30:.2f} GiB" for count in (memory["deviceBytes"], gpu["usableBytes"]))
    largest = max(memory["terms"], key=lambda term: int(term["bytes"]))
    size = (
        f"plan: {need} of {usable} on {gpu['product']}; peak in phase {memory['bottleneck']}, "
        f"largest term {largest['name']} with {largest['bytes'] / 2**20:.0f} MiB"
    )
    return [
        size,
        *(f"plan: {choice['name']} {choice['value']}: {choice['reason']}" for choice in plan["choices"]),
    ]


class ProgressLines:
    """Prints the plan once it is known, and a line for each change of the job's stage, activity or step."""

    def __init__(self) -> None:
        self._last = ""
        self._planned = False

    def __call__(self, job: dict[str, Any]) -> None:
        """Print the news about the job in its current state."""
        status = job.get("status", {})
        if not self._planned and (status.get("plan") or {}).get("memory"):
            self._planned = True
            for line in plan_lines(status["plan"]):
                say(line)
        progress = status.get("progress") or {}
        parts = [status.get("phase", "Pending")]
        if progress:
            parts.append(str(progress.get("activity", "")))
            if progress.get("totalSteps"):
                done = progress.get("step", 0) / progress["totalSteps"]
                bar = ("#" * round(20 * done)).ljust(20, ".")
                parts.append(f"[{bar}] {progress.get('step', 0)}/{progress['totalSteps']}")
            if progress.get("loss"):
                parts.append(f"loss {progress['loss']}")
        line = "  ".join(parts)
        if line != self._last:
            self._last = line
            say(line)


def answers(model: Path, rows: int) -> dict[str, Any]:
    """Return the held-out answers of a model folder, from a process that cannot import bitsandbytes."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "exact_answers.py"), str(model), str(HELD_OUT)]
    answer = subprocess.run(
        [*command, "--rows", str(rows)], check=True, capture_output=True, text=True, encoding="utf-8"
    )
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def show_result(job: dict[str, Any], kubectl: Kubectl, trainer_image: str) -> int:
    """Print verdict, files and answers; return the number of exact held-out answers of the merged model."""
    status = job["status"]
    evaluation = status["evaluation"]
    say(
        f"verdict: {evaluation['verdict']}; loss {evaluation['baseLoss']} -> {evaluation['tunedLoss']} on "
        f"{evaluation['rows']} held-out rows, difference within [{evaluation['interval'][0]}, {evaluation['interval'][1]}]"
    )
    check = status["verification"]
    say(
        f"merged model compared with trained model: {check.get('verdict', 'no verdict')}, KL {check['klDivergence']} nats "
        f"per token over {check['tokens']} tokens, adapter's effect {check.get('baseDivergence', 'not known')}, "
        f"slope {check.get('slope', 'not known')}, surviving update {check.get('survivingUpdate', 'not known')}"
    )
    with tempfile.TemporaryDirectory(prefix="finetune-demo-") as folder:
        merged = Path(folder) / "merged"
        with product.volume_pod(kubectl, "quickstart", trainer_image) as pod:
            say("files of the artifact:")
            print(kubectl("exec", pod, "--", "ls", "-l", "-R", f"/volume/outputs/{JOB}"))
            product.read_volume(kubectl, pod, f"outputs/{JOB}/merged", merged)
        base = answers(BASE_MODEL, 1)
        tuned = answers(merged, HELD_OUT_ROWS)
    print(f"  prompt    {base['prompt']!r}\n  expected  {base['expected']}")
    print(f"  base      {base['answer']!r}\n  merged    {tuned['answer']!r}")
    say(f"the merged model answers {tuned['exact']} of {tuned['rows']} unseen rows exactly")
    exact: int = tuned["exact"]
    return exact


def demo() -> int:
    """Run the demo. Return 0 if the merged model answers at least half of the unseen rows and no pod is left."""
    say("starting the cluster")
    with provided_cluster(f"demo-{os.getpid()}") as provided:
        cluster = Kubectl(provided.kubeconfig)
        kubectl = cluster.within(NAMESPACE)
        say("installing the chart")
        product.install_chart(provided)
        product.create_namespace(cluster, NAMESPACE)
        say("filling the claim `quickstart` with the model and the dataset")
        kubectl.apply(product.claim("quickstart", "4Gi"))
        with product.volume_pod(kubectl, "quickstart", provided.trainer_image) as pod:
            for folder in ("models", "datasets"):
                product.fill_volume(kubectl, pod, VOLUME / folder, folder)
        say("kubectl apply -f examples/quickstart.yaml")
        kubectl("apply", "--filename", str(REPOSITORY / "examples" / "quickstart.yaml"))
        job = product.follow(kubectl, JOB, seconds=1200, seen=ProgressLines())
        succeeded = product.condition(job, "Succeeded")
        say(f"{succeeded['reason']}: {succeeded['message']}")
        exact = 0
        if succeeded["status"] == "True":
            exact = show_result(job, kubectl, provided.trainer_image)
        say("kubectl get ftj,pods")
        print(kubectl("get", "finetunejobs,pods", "--output=wide"))
        pods = kubectl.json("get", "pods")["items"]
    good = succeeded["status"] == "True" and 2 * exact >= HELD_OUT_ROWS and not pods
    say("the demo succeeded" if good else "the demo FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(demo())
    except (DevClusterError, KubectlError) as error:
        sys.exit(f"demo: {error}")
