"""Write the generated documents: API reference, chart values, command line, failure modes, types of the Python client.

With --check, compare them only. Sources: crds/finetunejobs.yaml, the chart's values.yaml, the commands, contract/reasons.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from finetune_cli.reference import reference

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "Permanent": "the job fails; the same input would fail again",
    "Retryable": "the operator tries the stage again, up to `lifecycle.retries` times",
    "Interrupted": "not a failure; the stage resumes from its saved state",
    "Waiting": "not a failure; the job continues automatically once the cause is removed",
    "Stalled": "not a failure; `Stalled` is True until nodes, volumes, `gpuProfiles` and the policy suit the job",
    "Active": "not a failure; the job makes progress",
    "Terminal": "the stage or the job has ended",
}


def header(title: str, source: str) -> list[str]:
    """Return the first lines of a document, which name its source."""
    return [
        f"# {title}",
        "",
        f"`scripts/docs/generate.py` generates this page from `{source}`.",
        "Edit that file instead.",
        "",
    ]


def paragraph(text: str) -> str:
    """Return `text` with one sentence per line."""
    return re.sub(r"(?<=[.!?]) (?=[A-Z`])", "\n", text)


def cell(text: str) -> str:
    """Return `text` as the content of one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(value: object) -> str:
    """Return `value` as inline JSON code."""
    return f"`{json.dumps(value)}`"


def bounds(schema: dict[str, Any]) -> str:
    """Return the bounds of a field as text."""
    parts = []
    if "enum" in schema:
        parts.append(" or ".join(f"`{value}`" for value in schema["enum"]))
    if "minimum" in schema:
        parts.append(("above " if schema.get("exclusiveMinimum") else "at least ") + str(schema["minimum"]))
    if "maximum" in schema:
        parts.append(f"at most {schema['maximum']}")
    for key, unit in (("Length", "characters"), ("Items", "items"), ("Properties", "entries")):
        if f"max{key}" in schema:
            parts.append(f"{schema.get(f'min{key}', 0)} to {schema[f'max{key}']} {unit}")
    if "pattern" in schema:
        parts.append(f"matches `{schema['pattern']}`")
    parts += [rule["message"] for rule in schema.get("x-kubernetes-validations", [])]
    return "; ".join(parts)


def type_name(schema: dict[str, Any]) -> str:
    """Return the name of a field's type in the reference."""
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if schema.get("type") == "array":
        return f"list of {type_name(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map of {type_name(schema['additionalProperties'])}"
    if schema.get("format") == "date-time":
        return "time"
    return str(schema.get("type", "scalar"))


def fields(path: str, schema: dict[str, Any]) -> list[str]:
    """Return the section of the object at `path`, followed by the sections of its inner objects."""
    required = schema.get("required", [])
    lines = [f"## {path}", "", paragraph(cell(schema["description"])), ""]
    lines += [f"- {rule['message']}" for rule in schema.get("x-kubernetes-validations", [])]
    if schema.get("x-kubernetes-validations"):
        lines.append("")
    lines += ["| field | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    inner: list[str] = []
    for name, field in schema["properties"].items():
        kept = "required" if name in required else code(field["default"]) if "default" in field else ""
        is_object = "properties" in field
        limits = "" if is_object else bounds(field)
        lines.append(
            f"| `{name}` | {type_name(field)} | {kept} | {cell(limits)} | {cell(field['description'])} |",
        )
        if is_object:
            inner += fields(f"{path}.{name}", field)
        elif "properties" in field.get("items", {}):
            inner += fields(f"{path}.{name}[]", field["items"])
    return [*lines, "", *inner]


def api_reference(crd: dict[str, Any]) -> str:
    """Return the reference of the FineTuneJob from its CRD."""
    names = crd["spec"]["names"]
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    lines = header(f"{names['kind']} {crd['spec']['group']}/{version['name']}", "crds/finetunejobs.yaml")
    lines += [paragraph(cell(schema["description"])), ""]
    lines += [f"- {rule['message']}" for rule in schema["x-kubernetes-validations"]]
    lines += ["", f"Short name `{names['shortNames'][0]}`, category `{names['categories'][0]}`.", ""]
    for part in ("spec", "status"):
        lines += fields(part, schema["properties"][part])
    return "\n".join(lines).rstrip() + "\n"


def cli_reference() -> str:
    """Return the reference of the command line from its commands."""
    return "\n".join(header("The command line", "cli/src/finetune_cli")) + "\n" + reference()


def value_comments(text: str) -> dict[str, str]:
    """Return the meaning of each value by its dotted path.

    The comment above a value's key begins with the path.
    """
    found: dict[str, str] = {}
    for block in re.findall(r"(?:^ *# .*\n)+(?=^ *[A-Za-z]+:)", text, flags=re.MULTILINE):
        words = " ".join(line.strip().removeprefix("# ") for line in block.splitlines())
        path, _, meaning = words.partition(" ")
        found[path] = meaning
    return found


def chart_values(text: str) -> str:
    """Return the table of the chart's values from values.yaml."""
    values = yaml.safe_load(text)
    comments = value_comments(text)
    lines = header("Values of the Helm chart", "helm/finetune-operator/values.yaml")
    lines += ["| value | default | meaning |", "|---|---|---|"]
    for path, meaning in comments.items():
        value = values
        for part in path.split("."):
            value = value[part]
        section = any(other.startswith(f"{path}.") for other in comments)
        lines.append(f"| `{path}` | {'' if section else code(value)} | {cell(meaning)} |")
    return "\n".join(lines) + "\n"


def failure_modes(reasons: dict[str, Any]) -> str:
    """Return the page about all reasons of the contract."""
    lines = header("Failure modes", "contract/reasons.json")
    lines += [
        "`kubectl get ftj -o wide` shows the reason of a job, and `kubectl describe ftj NAME` shows its message.",
        "`.status.failure` has the stage and its last log lines.",
        "Conditions have job reasons, and `.status.dataset.rejected` has row reasons.",
        "",
        "## Job reasons",
        "",
        "The class of a reason determines the operator's reaction:",
        "",
        "| class | what happens |",
        "|---|---|",
    ]
    used = {reason["class"] for reason in reasons["job"].values()}
    lines += [f"| {name} | {meaning} |" for name, meaning in CLASSES.items() if name in used]
    if missing := used - CLASSES.keys():
        raise ValueError(
            f"each class of contract/reasons.json must be in CLASSES, but {sorted(missing)} are missing; add them there",
        )
    lines.append("")
    for name, reason in reasons["job"].items():
        lines += [
            f"### {name}",
            "",
            paragraph(reason["meaning"]),
            "",
            f"Class {reason['class']}, written by the {reason['source']}.",
            "",
            paragraph(f"Remedy: {reason['remedy']}"),
            "",
        ]
    lines += ["## Row reasons", "", "Reasons for which PREPARE rejects a row of a dataset.", ""]
    lines += ["| reason | meaning | remedy |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {cell(reason['meaning'])} | {cell(reason['remedy'])} |"
        for name, reason in reasons["row"].items()
    ]
    return "\n".join(lines) + "\n"


_TYPES_HEADER = '''"""The FineTuneJob as typed dictionaries.

`scripts/docs/generate.py` generates this module from `crds/finetunejobs.yaml`. Edit that file instead.
"""

from __future__ import annotations

from typing import Any, Literal, Required, TypedDict
'''
_TYPES_ROOT = '''

class FineTuneJob(TypedDict, total=False):
    """A FineTuneJob as the API server stores it."""

    apiVersion: str
    kind: str
    metadata: Required[dict[str, Any]]
    spec: Required[FineTuneJobSpec]
    status: FineTuneJobStatus
'''
_SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}


class _TypeWriter:
    """Writes a class for each object of a schema. Equal objects share the class of the first one."""

    def __init__(self) -> None:
        self._classes: dict[str, tuple[str, list[str]]] = {}
        """Name of each class, and the descriptions that it has at its places, by its members."""

    def type_of(self, schema: dict[str, Any], name: str) -> str:
        """Return the type of a value, and keep the classes that it needs."""
        if "properties" in schema:
            return self._object(schema, name)
        if "enum" in schema:
            return f"Literal[{', '.join(json.dumps(value) for value in schema['enum'])}]"
        if schema.get("x-kubernetes-int-or-string"):
            return "int | str"
        if schema.get("type") == "array":
            return f"list[{self.type_of(schema['items'], name)}]"
        if schema.get("type") == "object":
            values = schema.get("additionalProperties")
            inner = self.type_of(values, name) if isinstance(values, dict) else "Any"
            return f"dict[str, {inner}]"
        return _SCALARS.get(str(schema.get("type")), "Any")

    def source(self) -> str:
        """Return the source of all classes, each after those that it uses."""
        return "".join(
            f'\n\nclass {name}(TypedDict, total=False):\n    """{_first_sentence(described)}"""\n\n{members}\n'
            for members, (name, described) in self._classes.items()
        )

    def _object(self, schema: dict[str, Any], name: str) -> str:
        lines = []
        for key, field in schema["properties"].items():
            kind = self.type_of(field, name + key[0].upper() + key[1:])
            lines.append(f"    {key}: {f'Required[{kind}]' if key in schema.get('required', []) else kind}")
        own, described = self._classes.setdefault("\n".join(lines), (name, []))
        described.append(schema["description"])
        return own


def _first_sentence(descriptions: list[str]) -> str:
    """Return the first sentence that all descriptions share, else one that says where to look."""
    first = {re.split(r"(?<=[.]) ", " ".join(text.split()), maxsplit=1)[0] for text in descriptions}
    return (
        first.pop()
        if len(first) == 1
        else "Members that several fields share; docs/reference/api.md describes each."
    )


def client_types(crd: dict[str, Any]) -> str:
    """Return the module with the types of the Python client."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    writer = _TypeWriter()
    for part in ("spec", "status"):
        writer.type_of(schema["properties"][part], f"FineTuneJob{part.capitalize()}")
    return _formatted(_TYPES_HEADER + writer.source() + _TYPES_ROOT)


def _formatted(source: str) -> str:
    """Return Python source in the repository's format."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(ROOT / "generated.py"), "-"]
    return subprocess.run(command, input=source, capture_output=True, check=True, text=True).stdout


def documents(root: Path) -> dict[Path, str]:
    """Return the expected text of each generated document by its path."""
    crd = yaml.safe_load((root / "crds/finetunejobs.yaml").read_text())
    values = (root / "helm/finetune-operator/values.yaml").read_text()
    reasons = json.loads((root / "contract/reasons.json").read_text())
    return {
        root / "docs/reference/api.md": api_reference(crd),
        root / "docs/reference/chart-values.md": chart_values(values),
        root / "docs/reference/cli.md": cli_reference(),
        root / "docs/failure-modes.md": failure_modes(reasons),
        root / "cli/src/finetune_client/types.py": client_types(crd),
    }


def main() -> int:
    """Write or check the documents. Return 1 if a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail if a document is out of date"
    )
    arguments = parser.parse_args()
    wanted = documents(ROOT)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if arguments.check:
            print(
                f"{path.relative_to(ROOT)} is out of date; run scripts/docs/generate.py to update it",
                file=sys.stderr,
            )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
