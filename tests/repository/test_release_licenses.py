"""Licenses that the packages of an image name are declared in its list of content."""

from __future__ import annotations

from typing import Any

from scripts.release.declare_licenses import declare


def document(*licenses: str, declared: tuple[str, ...] = ()) -> dict[str, Any]:
    """A list with a package for each license, and with these declarations."""
    infos = [{"licenseId": name, "extractedText": "its text"} for name in declared]
    return {
        "packages": [{"licenseDeclared": name, "licenseConcluded": "NOASSERTION"} for name in licenses],
        **({"hasExtractedLicensingInfos": infos} if infos else {}),
    }


def declarations(found: dict[str, Any]) -> dict[str, str]:
    return {each["licenseId"]: each["extractedText"] for each in found["hasExtractedLicensingInfos"]}


def test_a_license_that_is_only_named_is_declared_once() -> None:
    found = document(
        "LicenseRef-NVIDIA-Proprietary", "MIT AND (LicenseRef-b OR LicenseRef-NVIDIA-Proprietary)"
    )
    declare(found)
    assert list(declarations(found)) == ["LicenseRef-NVIDIA-Proprietary", "LicenseRef-b"]
    again = {**found, "hasExtractedLicensingInfos": list(found["hasExtractedLicensingInfos"])}
    declare(again)
    assert again == found


def test_a_declared_license_keeps_its_text_and_names_of_spdx_need_none() -> None:
    found = document("LicenseRef-a", "LicenseRef-c", "Apache-2.0", declared=("LicenseRef-a",))
    declare(found)
    assert declarations(found)["LicenseRef-a"] == "its text"
    assert list(declarations(found)) == ["LicenseRef-a", "LicenseRef-c"]
    plain = document("Apache-2.0")
    declare(plain)
    assert plain == document("Apache-2.0")
