"""Pack the chart of a release: its images pinned by digest, and what Artifact Hub shows in its annotations.

python -m scripts.release.package_chart FOLDER --operator REGISTRY/PATH@sha256:... --trainer REGISTRY/PATH@sha256:...
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from scripts.release.notes import HOME, ROOT, ReleaseError, changes, section

CHART = ROOT / "helm" / "finetune-operator"
HELM = ROOT / ".cache" / "bin" / "helm"
"""Where `make tools` puts it."""
IMAGES = {"operator": "image", "trainer": "trainer.image"}
"""Each image with its place in the values."""


def parts(reference: str) -> dict[str, str]:
    """Return registry, repository and digest of an image that is pinned by digest. Raise ReleaseError for another one."""
    match = re.fullmatch(r"([^/@]*[.:][^/@]*|localhost)/([^@:]+)@(sha256:[0-9a-f]{64})", reference)
    if match is None:
        raise ReleaseError(
            f"an image must be REGISTRY/PATH@sha256:DIGEST, found {reference!r}; name it with its digest"
        )
    return dict(zip(("registry", "repository", "digest"), match.groups(), strict=True))


def set_values(text: str, values: Mapping[str, str]) -> str:
    """Return YAML text of nested mappings with the scalars at dotted paths replaced; comments stay.

    Raises ReleaseError if a path does not exist.
    """
    wanted, path, lines = dict(values), list[tuple[int, str]](), list[str]()
    for line in text.splitlines():
        match = re.match(r"( *)([A-Za-z]\w*):", line)
        if match:
            path = [each for each in path if each[0] < len(match[1])] + [(len(match[1]), match[2])]
            value = wanted.pop(".".join(name for _, name in path), None)
            lines.append(line if value is None else f"{match[0]} {value}")
        else:
            lines.append(line)
    if wanted:
        raise ReleaseError(f"values.yaml must have {', '.join(sorted(wanted))}, found none; correct IMAGES")
    return "\n".join(lines) + "\n"


def release_annotations(images: Mapping[str, str], version: str, changelog: str) -> dict[str, str]:
    """Return the annotations of a release: its images with digests, its changes, and whether it is a pre-release."""
    listed = [{"name": name, "image": reference} for name, reference in images.items()]
    made = list(changes(section(changelog, version)))
    return {
        "artifacthub.io/images": yaml.safe_dump(listed, sort_keys=False),
        "artifacthub.io/changes": yaml.safe_dump(made, sort_keys=False, width=1000),
        "artifacthub.io/prerelease": str("-" in version).lower(),
        "artifacthub.io/containsSecurityUpdates": str(
            any(each["kind"] == "security" for each in made)
        ).lower(),
        "artifacthub.io/links": yaml.safe_dump(
            [{"name": "How to verify", "url": f"{HOME}/blob/v{version}/docs/verify-release.md"}],
            sort_keys=False,
        ),
    }


def package(folder: Path, images: Mapping[str, str], changelog: str) -> Path:
    """Write the chart's archive into `folder` and return it. Raises ReleaseError for an image without a digest."""
    values = {
        f"{place}.{key}": value
        for name, place in IMAGES.items()
        for key, value in parts(images[name]).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        chart = Path(scratch) / CHART.name
        shutil.copytree(CHART, chart)  # follows the link to the CRD
        (chart / "values.yaml").write_text(
            set_values((chart / "values.yaml").read_text("utf-8"), values), "utf-8"
        )
        described = yaml.safe_load((chart / "Chart.yaml").read_text("utf-8"))
        described["annotations"] |= release_annotations(images, described["version"], changelog)
        (chart / "Chart.yaml").write_text(yaml.safe_dump(described, sort_keys=False, width=1000), "utf-8")
        command = [str(HELM), "package", str(chart), "--destination", str(folder)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / f"{described['name']}-{described['version']}.tgz"


def main() -> int:
    """Print the archive's path; return 1 with the reason if it cannot be made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for the archive")
    for name in IMAGES:
        parser.add_argument(f"--{name}", required=True, help=f"the {name}'s image, with its digest")
    options = parser.parse_args()
    images = {name: getattr(options, name) for name in IMAGES}
    try:
        print(package(options.folder, images, (ROOT / "CHANGELOG.md").read_text("utf-8")))
    except ReleaseError as error:
        print(f"[release] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
