"""The text of the Dockerfiles. Building them needs a registry for the base images; tests/images does that."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support.repository import ROOT

DOCKERFILES = [ROOT / "operator/Dockerfile", ROOT / "trainer_image/Dockerfile"]
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)


def final_stage(path: Path) -> str:
    return path.read_text().rpartition("\nFROM ")[2]


@each_dockerfile
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_dockerfile
def test_base_is_pinned_by_version_and_can_be_pinned_by_digest(path: Path) -> None:
    """The base is an argument of the build whose default names a full version."""
    text = path.read_text()
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
    (argument,) = bases - stages
    default = re.search(rf"^ARG {argument.strip('${}')}=(\S+)$", text, re.MULTILINE)
    assert default is not None
    assert re.search(r":\d+\.\d+\.\d+-", default[1])


@each_dockerfile
def test_image_runs_as_the_numeric_user_of_the_pods(path: Path) -> None:
    users = re.findall(r"^USER (.*)$", final_stage(path), re.MULTILINE)
    assert users == ["65532:65532"]


@each_dockerfile
def test_the_user_without_a_name_has_a_home_that_pods_can_write_to(path: Path) -> None:
    assert re.search(r"^ +HOME=/tmp \\$", final_stage(path), re.MULTILINE)


@each_dockerfile
def test_entry_point_is_the_package_and_the_labels_exist(path: Path) -> None:
    entry = {
        "operator": '["python", "-m", "finetune_operator"]',
        "trainer_image": '["tini", "--", "python", "-m", "finetune_trainer"]',
    }
    stage = final_stage(path)
    assert f"ENTRYPOINT {entry[path.parent.name]}" in stage
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", stage))
    assert labels == {"title", "description", "licenses", "version", "revision"}


@each_dockerfile
def test_sources_come_through_the_dockerignore(path: Path) -> None:
    """Every file that is copied from the context exists and passes the .dockerignore."""
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [
        words
        for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.MULTILINE)
        if (words := line.split())
    ]
    sources = {source for words in copied for source in words[:-1]}
    assert sources
    assert sources <= let_through
    assert all((ROOT / source).exists() for source in sources)


def test_trainer_has_the_compiler_that_triton_needs() -> None:
    text = (ROOT / "trainer_image/Dockerfile").read_text()
    assert re.search(r"^FROM python$", text, re.MULTILINE), (
        "the final stage starts from the one with the compiler"
    )
    assert all(package in text for package in ("gcc", "libc6-dev", "python3-dev"))


def test_the_trainer_has_its_first_process() -> None:
    """Debian's package, as that of the dev cluster, where a test ends a trainer that handles no signal yet."""
    text = (ROOT / "trainer_image/Dockerfile").read_text()
    assert re.search(r"apt-get install [^&]* tini\b", text)


@each_dockerfile
def test_packages_come_from_the_locks_with_their_hashes(path: Path) -> None:
    """Each installation either checks hashes or takes the project's own wheel without an index."""
    text = path.read_text().replace("\\\n", " ")
    installs = [command for command in re.split(r"&&|\n", text) if "pip install " in command]
    copied = dict(re.findall(r"^COPY (requirements/\S+) (/\S+)$", text, re.MULTILINE))
    locks = {copy: lock for lock, copy in copied.items()}
    assert len(installs) == 4
    for command in installs:
        lock = re.search(r"--require-hashes\s+--requirement (\S+\.txt)", command)
        assert lock is None or (ROOT / locks.get(lock[1], f"requirements/{Path(lock[1]).name}")).is_file()
        assert lock is not None or re.search(r"--no-index --no-deps\s+\S+\.whl", command)
    assert list(copied) == [f"requirements/{path.parent.name.removesuffix('_image')}.txt"]


@each_dockerfile
def test_packages_are_a_layer_below_the_projects_own_code(path: Path) -> None:
    """A new release of the project changes only the layers after the packages, so that nodes fetch megabytes."""
    stage = final_stage(path)
    packages, wheel = stage.index("share/requirements.txt\n"), stage.index("COPY --from=wheel")
    assert packages < stage.index("--require-hashes") < wheel < stage.index("--no-deps")
    assert "COPY" not in stage[:wheel].replace("COPY requirements/", "", 1)
    assert stage.index("ARG VERSION") > stage.index("ENTRYPOINT")


@each_dockerfile
def test_the_image_has_no_installer(path: Path) -> None:
    stage = final_stage(path)
    assert "venv --without-pip" in stage
    assert stage.count("uv pip ") == stage.count("/opt/tools/bin/uv pip ") > 0
    assert "COPY --from=tools" not in stage
