from __future__ import annotations

from finetune_operator.runtime.kept_lines import JOINED, KeptLines, Lines

HELP = {"size": "Size of a thing.", "age": "Age of a thing."}
Thing = tuple[str, int]


class Things(KeptLines[Thing]):
    """Series of things, which are a name and a version."""

    def __init__(self) -> None:
        super().__init__(HELP)
        self.made: list[Thing] = []

    def _identify(self, item: Thing) -> Thing:
        return item

    def _make(self, item: Thing) -> Lines:
        self.made.append(item)
        name, version = item
        return Lines((f'size{{name="{name}"}} {version}\n'.encode(), b""))


def test_lines_are_made_once_for_each_version() -> None:
    things = Things()
    for items in ([("a", 1), ("b", 1)], [("a", 2), ("b", 1)], [("a", 2), ("b", 1)]):
        assert things.changed(items) == [item for item in items if item not in things.made]
        things.lines(items)
        assert things.changed(items) == []
    assert things.made == [("a", 1), ("b", 1), ("a", 2)]


def test_a_family_is_one_group_in_parts_of_bounded_size() -> None:
    items = [(f"{number}", number) for number in range(2 * JOINED + 1)]
    parts = list(Things().render(items))
    assert [part.count(b"\n") for part in parts] == [2, JOINED, JOINED, 1, 2, 0, 0, 0]
    text = b"".join(parts).decode()
    assert text.startswith("# HELP size Size of a thing.\n# TYPE size gauge\n")
    assert text.endswith("# HELP age Age of a thing.\n# TYPE age gauge\n")


def test_only_the_lines_of_present_items_are_kept() -> None:
    things = Things()
    things.lines([("a", 1), ("b", 1)])
    things.forget_others([("b", 1), ("c", 1)])
    assert len(things) == 1
    assert things.changed([("a", 1), ("b", 1)]) == [("a", 1)]
