"""Publishing to a hub on loopback: what readers see, whose place it is, and what is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.destinations import HubDestination
from finetune_trainer.destinations.hub import HubPublisher
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from huggingface_hub import HfApi, constants

from tests.support.publishing import OTHER, SPEC, digests, make_artifact
from tests.support.servers.loopback import status
from tests.support.servers.writable_hub import TOKEN, USER, Entry, WritableHub, writable_hub

NAME = "team/bot"


@pytest.fixture
def hub() -> WritableHub:
    return WritableHub(part_bytes=300_000)


@pytest.fixture
def environment(hub: WritableHub) -> Iterator[dict[str, str]]:
    with writable_hub(hub) as environment:
        yield environment


@pytest.fixture
def publisher(environment: dict[str, str], tmp_path: Path) -> Callable[..., HubPublisher]:
    def make(*, spec: str = SPEC, seconds: float = 0, token: str = TOKEN, **members: Any) -> HubPublisher:
        destination = HubDestination(
            kind="HuggingFace", name="hub", **{"repository": NAME, "token_variable": "TEAM_TOKEN", **members}
        )
        network = Network(retry=RetryPolicy(seconds, sleep=lambda _: None, chance=lambda: 1.0))
        return HubPublisher(
            destination,
            spec,
            tmp_path / "journals" / "hub.json",
            {**environment, "TEAM_TOKEN": token},
            network,
            allow_private=True,
        )

    return make


Make = Callable[..., HubPublisher]


def ignore(_done: int) -> None:
    pass


def seen(hub: WritableHub, branch: str = "main") -> dict[str, str]:
    """Return the digest of each file that a reader sees, without those of the hub and the manifest."""
    found = hub.visible(NAME, branch)
    own = {".gitattributes", "manifest.json"}
    return {
        name: "sha256:" + hashlib.sha256(body).hexdigest() for name, body in found.items() if name not in own
    }


def reason_of(action: Callable[[], object]) -> Reason:
    with pytest.raises(StageError) as caught:
        action()
    assert TOKEN not in caught.value.message
    return caught.value.reason


def test_one_commit_publishes_every_file_to_a_new_private_repository(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=1)
    sent: list[int] = []
    publisher().probe()
    assert hub.repositories == {}, "a probe must not create a repository"
    commit = publisher().publish(artifact, sent.append)
    assert seen(hub) == digests(artifact)
    assert hub.visible(NAME)["manifest.json"] == artifact.manifest
    found = hub.repositories[NAME]
    assert found.private
    assert len(found.commits) == 2
    assert commit == found.heads["main"]
    assert sent == sorted(sent)
    assert any("/parts/" in line for line in hub.requests)
    assert any("PUT /objects/" in line for line in hub.requests)
    assert not hub.leaked, "the storage must not see the token"
    assert publisher().published() == json.loads(artifact.manifest)


def test_a_public_repository_is_made_only_if_the_job_says_so(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    publisher(private=False).publish(make_artifact(tmp_path / "artifact"), ignore)
    assert not hub.repositories[NAME].private


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_public_repository_gets_nothing_private(
    hub: WritableHub, publisher: Make, tmp_path: Path, *, overwrite: bool
) -> None:
    hub.make(NAME, private=False)
    mine = publisher(overwrite=overwrite)
    assert reason_of(mine.probe) is Reason.DESTINATION_UNWRITABLE
    assert reason_of(publisher(revision="new").probe) is Reason.DESTINATION_UNWRITABLE
    assert (
        reason_of(partial(mine.publish, make_artifact(tmp_path / "a"), ignore))
        is Reason.DESTINATION_UNWRITABLE
    )
    assert hub.received == 0


def test_a_second_publication_sends_nothing_and_makes_no_commit(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    first = publisher().publish(artifact, ignore)
    received = hub.received
    assert publisher().publish(artifact, ignore) == first
    assert hub.received == received
    assert len(hub.repositories[NAME].commits) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_artifacts_of_another_job_are_replaced_only_if_the_job_says_so(
    hub: WritableHub, publisher: Make, tmp_path: Path, *, overwrite: bool
) -> None:
    theirs = make_artifact(tmp_path / "theirs", spec=OTHER, seed=2)
    publisher(spec=OTHER).publish(theirs, ignore)
    found = hub.repositories[NAME]
    tree = {**found.commits[found.heads["main"]], "notes.md": Entry(b"mine", large=False)}
    # A file that only the earlier manifest lists.
    manifest = json.loads(theirs.manifest)
    manifest["files"]["old/model.bin"] = {"digest": "sha256:" + "0" * 64, "bytes": 3}
    tree["manifest.json"] = Entry(json.dumps(manifest).encode(), large=False)
    tree["old/model.bin"] = Entry(b"old", large=True)
    found.add("main", tree)
    before = hub.visible(NAME)
    ours = make_artifact(tmp_path / "ours")
    mine = publisher(overwrite=overwrite)
    assert mine.published() is None
    if overwrite:
        mine.probe()
        mine.publish(ours, ignore)
        assert seen(hub) == {**digests(ours), "notes.md": "sha256:" + hashlib.sha256(b"mine").hexdigest()}
        return
    assert reason_of(mine.probe) is Reason.DESTINATION_UNWRITABLE
    assert reason_of(partial(mine.publish, ours, ignore)) is Reason.DESTINATION_UNWRITABLE
    assert hub.visible(NAME) == before


def test_files_of_unknown_origin_are_kept_and_those_of_the_hub_do_not_count(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    found = hub.make(NAME)
    tree = {**found.commits[found.heads["main"]], "README.md": Entry(b"license: mit", large=False)}
    found.add("main", {**tree, "data.csv": Entry(b"1", large=False)})
    assert reason_of(publisher().probe) is Reason.DESTINATION_UNWRITABLE
    assert reason_of(partial(publisher().publish, artifact, ignore)) is Reason.DESTINATION_UNWRITABLE
    found.add("main", tree)
    publisher().probe()
    publisher().publish(artifact, ignore)
    assert hub.visible(NAME)["README.md"] == b"license: mit"


def test_a_new_branch_has_only_its_own_artifacts(hub: WritableHub, publisher: Make, tmp_path: Path) -> None:
    theirs = make_artifact(tmp_path / "theirs", spec=OTHER, seed=2)
    publisher(spec=OTHER).publish(theirs, ignore)
    found = hub.repositories[NAME]
    found.add("main", {**found.commits[found.heads["main"]], "notes.md": Entry(b"mine", large=False)})
    ours = make_artifact(tmp_path / "ours")
    branch = publisher(revision="runs/2")
    branch.probe()
    branch.publish(ours, ignore)
    last_upload = max(number for number, line in enumerate(hub.requests) if line.startswith("PUT"))
    assert "POST /api/models/team/bot/branch/runs/2" in hub.requests[last_upload:]
    assert seen(hub, "runs/2") == digests(ours)
    assert seen(hub)["merged/config.json"] == digests(theirs)["merged/config.json"]
    assert branch.published() is not None


def test_a_branch_that_a_killed_process_has_made_is_its_own_but_no_other_is(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    publisher(spec=OTHER).publish(make_artifact(tmp_path / "theirs", spec=OTHER, seed=2), ignore)
    found = hub.repositories[NAME]
    found.heads["prod"] = found.heads["main"]
    ours = make_artifact(tmp_path / "ours")
    assert (
        reason_of(partial(publisher(revision="prod").publish, ours, ignore)) is Reason.DESTINATION_UNWRITABLE
    )

    def dead_after_the_branch(handler: BaseHTTPRequestHandler) -> bool:
        if "/commit/" not in handler.path:
            return False
        status(403)(handler)
        return True

    hub.interfere = dead_after_the_branch
    assert (
        reason_of(partial(publisher(revision="next").publish, ours, ignore))
        is Reason.DESTINATION_ACCESS_DENIED
    )
    assert "next" in found.heads
    hub.interfere = lambda _: False
    publisher(revision="next").publish(ours, ignore)
    assert seen(hub, "next") == digests(ours)


def test_a_commit_that_comes_between_is_looked_at_first(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    ours, theirs = make_artifact(tmp_path / "ours"), make_artifact(tmp_path / "theirs", spec=OTHER, seed=2)
    raced: list[None] = []

    def race(handler: BaseHTTPRequestHandler) -> bool:
        if "/commit/" in handler.path and not raced:
            raced.append(None)
            tree = {"manifest.json": Entry(theirs.manifest, large=False)}
            hub.repositories[NAME].add("main", tree)
        return False

    hub.interfere = race
    assert reason_of(partial(publisher(seconds=60).publish, ours, ignore)) is Reason.DESTINATION_UNWRITABLE
    assert hub.visible(NAME) == {"manifest.json": theirs.manifest}


def test_a_commit_whose_answer_is_lost_is_not_made_again(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    hub.lost_commits = 1
    commit = publisher(seconds=60).publish(artifact, ignore)
    assert hub.lost_commits == 0
    assert commit == hub.repositories[NAME].heads["main"]
    assert len(hub.repositories[NAME].commits) == 2


def test_a_small_file_with_other_bytes_is_noticed_and_sent_again(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    publisher().publish(artifact, ignore)
    found = hub.repositories[NAME]
    tree = dict(found.commits[found.heads["main"]])
    size = len(tree["merged/config.json"].content)
    found.add("main", {**tree, "merged/config.json": Entry(b"x" * size, large=False)})
    publisher().publish(artifact, ignore)
    assert seen(hub) == digests(artifact)


def test_a_commit_that_a_hub_shows_a_moment_later_is_waited_for(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    artifact, late = make_artifact(tmp_path / "artifact"), [2]

    def hide(handler: BaseHTTPRequestHandler) -> bool:
        commits = [commit for each in hub.repositories.values() for commit in list(each.commits)[1:]]
        if not late[0] or not any(f"/revision/{commit}" in handler.path for commit in commits):
            return False
        late[0] -= 1
        status(404)(handler)
        return True

    hub.interfere = hide
    publisher(seconds=60).publish(artifact, ignore)
    assert late == [0]


def test_bytes_that_the_hub_changes_are_no_publication(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")

    def change(handler: BaseHTTPRequestHandler) -> bool:
        if not handler.path.endswith("/merged/config.json"):
            return False
        status(200, b"{}")(handler)
        return True

    hub.interfere = change
    assert reason_of(partial(publisher().publish, artifact, ignore)) is Reason.DESTINATION_UNAVAILABLE


def test_the_users_own_namespace_needs_no_organization(
    hub: WritableHub, publisher: Make, tmp_path: Path
) -> None:
    mine = publisher(repository=f"{USER}/bot")
    mine.probe()
    mine.publish(make_artifact(tmp_path / "artifact"), ignore)
    assert f"{USER}/bot" in hub.repositories


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_hubs_own_library_publishes_the_same_commit_to_this_server(
    hub: WritableHub,
    environment: dict[str, str],
    publisher: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server is one of the tests, and the library shows that it follows the hub's protocol."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    artifact = make_artifact(tmp_path / "artifact")
    commit = publisher().publish(artifact, ignore)
    library = HfApi(endpoint=environment["HF_ENDPOINT"], token=TOKEN)
    library.create_repo("team/library", private=True)
    library.upload_folder(repo_id="team/library", folder_path=tmp_path / "artifact")
    ours, theirs = hub.repositories[NAME], hub.repositories["team/library"]
    assert theirs.commits[theirs.heads["main"]] == ours.commits[ours.heads["main"]]
    assert theirs.private
    found = library.model_info(NAME, files_metadata=True)
    assert found.sha == commit
    large = {each.rfilename: each.lfs.sha256 for each in found.siblings or () if each.lfs is not None}
    expected = {file.name: file.digest for file in artifact.files if file.name.endswith(".safetensors")}
    assert {name: f"sha256:{oid}" for name, oid in large.items()} == expected
