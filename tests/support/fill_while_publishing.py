"""A process that publishes to a small volume while another writer fills it, and then again when there is space.

Run it in a mount namespace of its own, with the folder of the claim on a small tmpfs. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from finetune_trainer.destinations.local_artifact import read_artifact
from finetune_trainer.errors import StageError

from tests.support.publishing import SPEC, open_named


def _visible(claim: Path) -> list[str]:
    """Return the files that a reader sees; the staging folder is hidden."""
    paths = (path.relative_to(claim) for path in claim.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not path.parts[0].startswith("."))


def main(folder: Path, claim: Path, fill_after: int) -> None:
    """Publish twice: the volume is full from the byte `fill_after` on, and then has space again."""
    place = {"kind": "Directory", "name": "claim", "path": str(claim), "uri": "pvc://a/b"}
    filler = claim.parent / "filler"
    artifact = read_artifact(folder, SPEC)

    def fill(done: int) -> None:
        if done >= fill_after and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass

    found: dict[str, object] = {}
    try:
        open_named(place, folder, {}).publish(artifact, fill)
    except StageError as error:
        found["failed"] = [error.reason, error.message]
    found["seen"] = _visible(claim)
    filler.unlink()
    staged = {str(path): path.stat().st_ino for path in claim.rglob("*.safetensors")}
    found["staged"] = len(staged)
    open_named(place, folder, {}).publish(artifact, lambda _: None)
    found["kept"] = sum(path.stat().st_ino in staged.values() for path in claim.rglob("*.safetensors"))
    found["published"] = _visible(claim)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
