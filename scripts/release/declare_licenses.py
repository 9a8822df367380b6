"""Complete an SPDX document in place: declare the licenses that packages name and that the document does not declare.

    python -m scripts.release.declare_licenses FILE

syft takes over expressions such as `LicenseRef-NVIDIA-Proprietary` from the metadata of Python packages. SPDX 2.3 demands
a declaration for each of them (section 10 of the specification).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_REFERENCE = re.compile(r"\bLicenseRef-[A-Za-z0-9.-]+")
_TEXT = "The metadata of a package names this license; its text is in the package, if anywhere."


def declare(document: dict[str, Any]) -> None:
    """Add a declaration for each license that packages or files name and the document lacks, in the order of their names."""
    declared = document.get("hasExtractedLicensingInfos", [])
    known = {each["licenseId"] for each in declared}
    named = [
        str(each.get(member, ""))
        for each in (*document.get("packages", ()), *document.get("files", ()))
        for member in ("licenseConcluded", "licenseDeclared", "licenseInfoInFiles")
    ]
    missing = sorted({name for text in named for name in _REFERENCE.findall(text)} - known)
    if missing:
        document["hasExtractedLicensingInfos"] = [
            *declared,
            *({"licenseId": name, "extractedText": _TEXT} for name in missing),
        ]


def main() -> None:
    """Rewrite the file."""
    file = Path(sys.argv[1])
    document = json.loads(file.read_text("utf-8"))
    declare(document)
    file.write_text(json.dumps(document, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    main()
