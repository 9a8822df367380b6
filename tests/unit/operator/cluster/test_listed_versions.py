from __future__ import annotations

from finetune_operator.cluster.listed_versions import ListedVersions


def test_the_last_version_of_a_path_is_given_away_once() -> None:
    listed = ListedVersions()
    assert listed.take("/api/v1/pods") is None
    listed.note("/api/v1/pods", 7)
    listed.note("/api/v1/pods", 9)
    assert listed.take("/api/v1/nodes") is None
    assert listed.take("/api/v1/pods") == 9
    assert listed.take("/api/v1/pods") is None


def test_a_path_whose_objects_are_forgotten_is_listed_again() -> None:
    listed = ListedVersions()
    listed.note("/api/v1/pods", 7)
    listed.forget("/api/v1/pods")
    listed.forget("/api/v1/nodes")
    assert listed.take("/api/v1/pods") is None
