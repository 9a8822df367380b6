"""A process that publishes, and kills itself at a chosen call of a function of the trainer's `destinations`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from finetune_trainer.destinations.local_artifact import read_artifact

from tests.support.publishing import SPEC, open_named


def main(task: dict[str, object]) -> None:
    """Publish, and print the number of calls."""
    last, count = int(str(task["calls"])), 0

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        if event == "call" and "/finetune_trainer/destinations/" in frame.f_code.co_filename:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    place = task["place"]
    assert isinstance(place, dict)
    publisher = open_named(place, Path(str(task["journals"])), dict(os.environ))
    artifact = read_artifact(Path(str(task["folder"])), SPEC)
    sys.setprofile(watch)
    publisher.publish(artifact, lambda _: None)
    sys.setprofile(None)
    print(count)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
