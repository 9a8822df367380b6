"""Measure the time from a trainer's last line to its pod's DELETED event, for real pods of all stages.

Runs small jobs that succeed or fail, one after the other, on a new cluster or the one of KUBECONFIG. Prints the
distribution. The goal is at most 2 s for each pod. Usage: `make benchmark-pod-departure`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.layout import REPOSITORY
from devcluster.provider import provided_cluster

from tests.support.e2e import jobs
from tests.support.e2e.pairs import in_two_pods
from tests.support.e2e.pod_departures import Departure, DepartureWatch

GOAL_SECONDS = 2.0
SMALL = {"cpu": "250m", "memory": "3Gi"}
"""Two pods of TRAIN must fit on a small machine."""
TOKENIZER = REPOSITORY / ".finetune" / "volumes" / "quickstart" / "models" / "SmolLM2-135M-Instruct"


def measure(good: int, bad: int, taken: int, pairs: int) -> list[Departure]:
    """Run `good` and `pairs` jobs of three stages, and `bad` and `taken` jobs that PREPARE rejects.

    TRAIN of a `pairs` job has two pods. A `bad` job has a broken dataset, a `taken` job a destination with the artifact of
    another spec.
    Returns the departures of all pods.
    """
    folder = Path(tempfile.mkdtemp(prefix="pod-departure-"))
    with provided_cluster(f"departure-{os.getpid()}") as provided:
        product.install_chart(provided, {"trainer": {"resources": {"train": SMALL}}} if pairs else {})
        cluster = Kubectl(provided.kubeconfig)
        product.create_namespace(cluster, "departure")
        kubectl = cluster.within("departure")
        jobs.write_tiny_model(folder / "models" / "tiny", TOKENIZER)
        kubectl.apply(product.claim(jobs.CLAIM, "1Gi"))
        with product.volume_pod(kubectl, jobs.CLAIM, provided.trainer_image) as pod:
            product.fill_volume(kubectl, pod, folder)
        shutil.rmtree(folder)
        kubectl.apply(
            jobs.config_map("data", jobs.jsonl(jobs.conversations(24))), jobs.config_map("bad", "not json\n")
        )
        with DepartureWatch(provided.kubeconfig, "departure") as departing:
            for number in range(good):
                kubectl.apply(jobs.fine_tune_job(f"good-{number}"))
                product.follow(kubectl, f"good-{number}", seconds=300)
                print(f"good-{number} ended", flush=True)
            for number in range(pairs):
                kubectl.apply(in_two_pods(f"pair-{number}", maximumSteps=4))
                product.follow(kubectl, f"pair-{number}", seconds=400)
                print(f"pair-{number} ended", flush=True)
            for number in range(taken):
                occupied = jobs.fine_tune_job("good-0")["spec"]["output"]
                evaluation = {"maximumRows": 5 + number}  # other than good-0: another hash
                kubectl.apply(jobs.fine_tune_job(f"taken-{number}", output=occupied, evaluation=evaluation))
                ended = product.follow(kubectl, f"taken-{number}", seconds=300)
                reason = product.condition(ended, "Succeeded")["reason"]
                assert reason == "DestinationUnwritable", reason
                print(f"taken-{number} ended", flush=True)
            for number in range(bad):
                source = {"configMap": {"name": "bad", "key": "data.jsonl"}}
                kubectl.apply(jobs.fine_tune_job(f"bad-{number}", dataset=source))
                product.follow(kubectl, f"bad-{number}", seconds=120)
                print(f"bad-{number} ended", flush=True)
            time.sleep(5)
            return departing.departures()


def main() -> None:
    """Print each pod's figure and the distribution."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--good", type=int, default=5, help="jobs that succeed, three pods each")
    parser.add_argument(
        "--pairs",
        type=int,
        default=0,
        help="jobs that train in two pods, four pods each; they need the StorageClass `shared`",
    )
    parser.add_argument("--bad", type=int, default=6, help="jobs with a broken dataset, one pod each")
    parser.add_argument("--taken", type=int, default=2, help="jobs with a taken destination, one pod each")
    options = parser.parse_args()
    departures = measure(options.good, options.bad, options.taken, options.pairs)
    for departure in departures:
        print(f"{departure.pod:24} {departure.outcome:10} {departure.seconds:6.2f} s")
    seconds = sorted(departure.seconds for departure in departures)
    within = sum(value <= GOAL_SECONDS for value in seconds)
    print(
        f"{len(seconds)} pods: min {seconds[0]:.2f}, median {statistics.median(seconds):.2f}, max {seconds[-1]:.2f} s; "
        f"{within} within {GOAL_SECONDS:.0f} s"
    )


if __name__ == "__main__":
    main()
