"""Both images as they are built from their Dockerfiles, and one job from its rows to its model in pods of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import cluster, images, product
from devcluster.kubectl import Kubectl
from devcluster.layout import IMAGES_VARIABLE, Layout
from devcluster.provider import ProvidedCluster

from tests.support import built_images
from tests.support.built_images import buildah, layers, name_of, write_layout
from tests.support.e2e import jobs, quickstart
from tests.support.e2e.namespaces import fresh_namespace
from tests.support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.full]
each_image = pytest.mark.parametrize("image", ["operator", "trainer"])


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    """Both images of this checkout."""
    built_images.built()


def context_with_other_code(folder: Path) -> Path:
    """Copy what the builds need, with one changed module of the command line, which both images have."""
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        folder.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder)
    for name in ("requirements", "operator", "trainer_image", "cli"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "cli/src/finetune_cli/__init__.py").open("a") as module:
        module.write("CHANGED = True\n")
    return folder


@each_image
def test_a_change_of_the_code_rebuilds_only_the_last_two_layers(image: str, tmp_path: Path) -> None:
    """A node that has an earlier release fetches neither Python's packages nor the base again."""
    before = layers(name_of(image))
    built_images.build("changed", context_with_other_code(tmp_path / "context"), image)
    try:
        after = layers(name_of(image, "changed"))
    finally:
        buildah("rmi", name_of(image, "changed"))
    assert len(after) == len(before)
    assert [old == new for old, new in zip(before, after, strict=True)][-3:] == [True, False, False]
    assert after[:-2] == before[:-2]


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
    entry = {
        "operator": ["python", "-m", "finetune_operator"],
        "trainer": ["tini", "--", "python", "-m", "finetune_trainer"],
    }
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == entry[image]


@pytest.fixture(scope="module")
def provided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvidedCluster]:
    """A dev cluster that adds nothing to images, with both of them and the chart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(IMAGES_VARIABLE, "built")
        with cluster.running(Layout(f"images-{os.getpid()}")) as layout:
            for image in ("operator", "trainer"):
                folder = write_layout(name_of(image), tmp_path_factory.mktemp("layout") / image)
                images.import_layout(layout.containerd_socket, folder)
                shutil.rmtree(folder)  # gigabytes
            provided = ProvidedCluster(layout.kubeconfig, name_of("operator"), name_of("trainer"))
            product.install_chart(provided)
            yield provided


@pytest.fixture(scope="module")
def kubectl(provided: ProvidedCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """Kubectl in a namespace whose claim `assets` has a tiny model, and whose ConfigMap `data` has rows."""
    assets = tmp_path_factory.mktemp("assets")
    jobs.write_tiny_model(assets / "models" / "tiny", quickstart.BASE_MODEL)
    admin = Kubectl(provided.kubeconfig)
    with fresh_namespace(admin) as name:
        scoped = admin.within(name)
        scoped.apply(product.claim(jobs.CLAIM, "1Gi"))
        with product.volume_pod(scoped, jobs.CLAIM, provided.trainer_image) as pod:
            # Nothing of this machine is in the container, else the image would not be what runs.
            assert scoped("exec", pod, "--", "sh", "-c", "ls /opt/finetune").split() == [
                "bin", "include", "lib", "lib64", "pyvenv.cfg", "share",
            ]  # fmt: skip
            product.fill_volume(scoped, pod, assets)
        scoped.apply(jobs.config_map("data", jobs.jsonl(jobs.conversations(24))))
        yield scoped


def test_a_job_goes_from_rows_to_a_merged_model_in_pods_of_the_images(
    kubectl: Kubectl, provided: ProvidedCluster, tmp_path: Path
) -> None:
    # The volumes are the only writable places, and the kernels are those of the image.
    kubectl.apply(jobs.fine_tune_job("real", lifecycle={"keepChildrenSeconds": {"success": 600}}))
    ended = product.follow(kubectl, "real", seconds=420)
    assert product.condition(ended, "Succeeded")["status"] == "True", ended["status"]
    pods = kubectl.json("get", "pods", "--selector=finetune.dev/job=real")["items"]
    used = {
        (pod["metadata"]["labels"]["finetune.dev/stage"], state["image"])
        for pod in pods
        for state in pod["status"]["containerStatuses"]
    }
    assert used >= {(stage, provided.trainer_image) for stage in ("prepare", "train", "merge")}
    with product.volume_pod(kubectl, jobs.CLAIM, provided.trainer_image) as pod:
        product.read_volume(kubectl, pod, "outputs/real", tmp_path / "published")
    manifest = json.loads((tmp_path / "published" / "manifest.json").read_text())
    assert (tmp_path / "published" / "merged" / "config.json").is_file()
    assert manifest["image"]["reference"] == provided.trainer_image
