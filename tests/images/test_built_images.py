"""Both images as they are built from their Dockerfiles without Docker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import built_images
from tests.support.built_images import buildah, name_of

pytestmark = pytest.mark.full
each_image = pytest.mark.parametrize("image", ["operator", "trainer"])


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    """Both images of this checkout."""
    built_images.built()


@each_image
def test_an_image_has_neither_an_installer_nor_the_certificates_of_this_machine(image: str) -> None:
    container = buildah("from", "--pull-never", name_of(image)).strip()
    try:
        root = Path(buildah("mount", container).strip())
        site = next(root.glob("opt/finetune/lib/python3*/site-packages"))
        packages = {path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")}
        left = [
            name
            for name in ("opt/tools", "build", "root/.cache", "opt/requirements")
            if any((root / name).glob("*"))
        ]
        own = Path("/etc/ssl/certs/ca-certificates.crt").read_bytes()
        bundle = (root / "etc/ssl/certs/ca-certificates.crt").read_bytes()
        foreign = list(Path("/usr/local/share/ca-certificates").glob("**/*.crt"))
    finally:
        buildah("rm", container)
    assert not packages & {"pip", "uv", "hatchling"}
    assert "finetune" in packages
    assert left == []
    assert not foreign or bundle != own


@each_image
def test_an_image_runs_its_package_as_an_unprivileged_user(image: str) -> None:
    config = json.loads(buildah("inspect", "--type", "image", name_of(image)))["OCIv1"]["config"]
    package = {"operator": "finetune_operator", "trainer": "finetune_trainer"}[image]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["python", "-m", package]
