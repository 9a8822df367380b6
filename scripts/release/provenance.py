"""Print how an image was built, as the predicate of SLSA's provenance, version 1.0, from the variables of GitHub Actions.

    python -m scripts.release.provenance DOCKERFILE --base NAME@sha256:... --argument VERSION=1.2.3 --started 2026-01-01T00:00:00Z

The form is that of https://slsa.dev/spec/v1.0/provenance; cosign adds the image's digest and signs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

BUILD_TYPE = "https://github.com/finetune-dev/finetune/blob/main/docs/verify-release.md#provenance"
NEEDED = (
    "GITHUB_SERVER_URL",
    "GITHUB_REPOSITORY",
    "GITHUB_REF",
    "GITHUB_SHA",
    "GITHUB_WORKFLOW_REF",
    "GITHUB_RUN_ID",
)


def predicate(
    environment: Mapping[str, str],
    dockerfile: str,
    base: str,
    arguments: Sequence[str],
    *,
    started: str,
    finished: str,
) -> dict[str, Any]:
    """Return the predicate. `base` is the base image as NAME@sha256:DIGEST, each argument is NAME=VALUE.

    Raises ValueError if a variable is missing or the base has no digest.
    """
    missing = [name for name in NEEDED if not environment.get(name)]
    if missing:
        raise ValueError(f"the variables of GitHub Actions must be set, found no {', '.join(missing)}")
    name, separator, digest = base.partition("@sha256:")
    if not separator or len(digest) != 64:
        raise ValueError(f"the base must be NAME@sha256:DIGEST, found {base!r}")
    server, repository = environment["GITHUB_SERVER_URL"], environment["GITHUB_REPOSITORY"]
    source = f"git+{server}/{repository}@{environment['GITHUB_REF']}"
    run = f"{server}/{repository}/actions/runs/{environment['GITHUB_RUN_ID']}"
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "source": source,
                "dockerfile": dockerfile,
                "arguments": dict(argument.split("=", 1) for argument in arguments),
            },
            "resolvedDependencies": [
                {"uri": source, "digest": {"gitCommit": environment["GITHUB_SHA"]}},
                {"uri": f"docker://{name}", "digest": {"sha256": digest}},
            ],
        },
        "runDetails": {
            "builder": {"id": f"{server}/{environment['GITHUB_WORKFLOW_REF']}"},
            "metadata": {
                "invocationId": f"{run}/attempts/{environment.get('GITHUB_RUN_ATTEMPT', '1')}",
                "startedOn": started,
                "finishedOn": finished,
            },
        },
    }


def main() -> int:
    """Print the predicate; return 1 with the reason if it cannot be made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dockerfile", help="path of the Dockerfile in the repository")
    parser.add_argument("--base", required=True, help="the base image, with its digest")
    parser.add_argument("--argument", action="append", default=[], help="argument of the build; repeatable")
    parser.add_argument("--started", required=True, help="time at which the build began")
    options = parser.parse_args()
    finished = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        document = predicate(
            os.environ,
            options.dockerfile,
            options.base,
            options.argument,
            started=options.started,
            finished=finished,
        )
    except ValueError as error:
        print(f"[release] error: {error}", file=sys.stderr)
        return 1
    json.dump(document, sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
