"""Documents become frozen records, or one error that names every bad member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from finetune_operator.sizing.memory.profile import (
    DOCUMENT,
    Count,
    Flag,
    Number,
    ProfileError,
    Text,
    VersionPair,
    parse_record,
)

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True)
class Sample:
    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    some_text: Text = "a"
    some_count: Count | None = None
    some_number: Number = 0.5
    some_flag: Flag = False
    some_version: VersionPair = (1, 0)
    some_choice: Literal["One", "Two"] = "One"


def read(**members: Any) -> Sample:
    return parse_record("sample", Sample, members)


def test_members_have_camel_case_names_and_defaults() -> None:
    assert read() == Sample()
    assert read(someCount=3, someFlag=True, someChoice="Two") == Sample(
        some_count=3, some_flag=True, some_choice="Two"
    )


@pytest.mark.parametrize("version", ["12.8", [12, 8], ["12", "8"]])
def test_a_version_is_a_text_or_a_list(version: Any) -> None:
    assert read(someVersion=version).some_version == (12, 8)


def test_a_whole_number_is_a_number_and_null_is_no_count() -> None:
    assert read(someNumber=1).some_number == pytest.approx(1.0)
    assert isinstance(read(someNumber=1).some_number, float)
    assert read(someCount=None).some_count is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("someText", ""),
        ("someText", "x" * 129),
        ("someText", b"bytes"),
        ("someCount", -1),
        ("someCount", True),
        ("someCount", 1.0),
        ("someCount", "1"),
        ("someCount", 1 << 50),
        ("someNumber", -1),
        ("someNumber", float("nan")),
        ("someNumber", float("inf")),
        ("someNumber", True),
        ("someNumber", "3%"),
        ("someFlag", 1),
        ("someFlag", "true"),
        ("someVersion", "12"),
        ("someVersion", "12.8.1"),
        ("someVersion", 12.8),
        ("someChoice", "one"),
        ("someChoice", ["One"]),
    ],
)
def test_an_invalid_value_is_rejected_with_its_name_and_what_was_found(name: str, value: Any) -> None:
    with pytest.raises(ProfileError, match=f"^sample: {name} must .*, found ") as caught:
        read(**{name: value})
    assert repr(value)[:20] in str(caught.value)


def test_a_python_name_is_unknown_and_the_message_lists_the_members() -> None:
    with pytest.raises(ProfileError, match="some_count is unknown, must be one of someText, someCount, "):
        read(some_count=1)


def test_every_bad_member_is_named_at_once() -> None:
    with pytest.raises(ProfileError) as caught:
        read(someText=3, someChoice="Three", speed=1)
    assert all(name in str(caught.value) for name in ("someText", "someChoice", "speed"))


@pytest.mark.parametrize(("document", "found"), [([], "list"), (None, "NoneType"), ("text", "str")])
def test_a_document_that_is_no_object_is_rejected(document: Any, found: str) -> None:
    with pytest.raises(ProfileError, match=f"sample must be an object, found {found}"):
        parse_record("sample", Sample, document)


def test_a_key_that_is_no_text_is_unknown() -> None:
    with pytest.raises(ProfileError, match="7 is unknown"):
        parse_record("sample", Sample, {7: 1})
