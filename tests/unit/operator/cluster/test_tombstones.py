from __future__ import annotations

from finetune_operator.cluster.tombstones import Tombstones


def test_only_versions_before_the_deletion_are_refused() -> None:
    deleted = Tombstones()
    assert deleted.allows("a", 1)
    deleted.add("a", 5)
    assert [deleted.allows("a", version) for version in (4, 5, 6)] == [False, True, True]
    deleted.add("a", 3)
    assert not deleted.allows("a", 4), "an earlier report changes nothing"


def test_only_the_newest_deletions_are_remembered() -> None:
    deleted = Tombstones(remembered=2)
    for number, uid in enumerate("abca", start=5):
        deleted.add(uid, number)
    assert len(deleted) == 2
    assert [deleted.allows(uid, 1) for uid in "abc"] == [False, True, False]
