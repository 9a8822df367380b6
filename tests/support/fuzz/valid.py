"""Random FineTuneJobs that the CRD's schema accepts: every field, union and enum can occur."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from tests.support.crd_schema import Schema
from tests.support.fuzz.patterns import matching, pattern_of

Path = tuple[str, ...]
"""Names of members from the spec down. `0` is an item of a list, and `*` is the value of a map."""

_ONE_OF = re.compile(r"has\(self\.(\w+)\)")
_CHANCE = 0.22
"""Share of the optional members that a resource has."""
_WORDS = ("models", "assets", "team-a", "rows", "out", "tiny", "x")
_LABEL_KEYS = ("a", "team", "example.com/c", "d_e.f", "x.y.z/A-1")
_IDENTIFIERS = ("a", "enable_thinking", "tools", "_b")
_CPUS = ("1", 2, "500m", "4")
_BYTES = ("1Gi", "2000Mi", 10**9)
_UNFIT = {"ids": ("runAsUser", "runAsGroup", "fsGroup"), "proxySecretRef": ("httpsProxy", "httpProxy")}
"""Members that may not stand beside another one."""
_SCALARS = (True, False, 0, 7, -3, 0.5, "text", "true", "1e5")


def sites(schema: Schema, path: Path = ()) -> Iterator[tuple[Path, Schema]]:
    """Yield every field below `schema` with its path."""
    if path:
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from sites(field, (*path, name))
    if "items" in schema:
        yield from sites(schema["items"], (*path, "0"))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from sites(schema["additionalProperties"], (*path, "*"))


class Generator:
    """Makes values of one schema; the members on the `wanted` path are always among them."""

    def __init__(self, rng: random.Random, wanted: Path = ()) -> None:
        self._rng = rng
        self._wanted = wanted

    def spec(self, schema: Schema) -> dict[str, Any]:
        """Return a random spec."""
        spec: dict[str, Any] = self._value(schema, ())
        _mend(spec, self._rng)
        return spec

    def _is_wanted(self, path: Path) -> bool:
        return self._wanted[: len(path)] == path

    def _value(self, schema: Schema, path: Path) -> Any:
        if "enum" in schema:
            return self._rng.choice([each for each in schema["enum"] if each != "Text"])
        if schema.get("x-kubernetes-int-or-string"):
            return self._rng.choice(_CPUS if "m?" in schema["pattern"] else _BYTES)
        match schema.get("type"):
            case "object":
                return self._object(schema, path)
            case "array":
                return self._array(schema, path)
            case "string":
                return self._string(schema)
            case _:
                return self._scalar(schema)

    def _scalar(self, schema: Schema) -> Any:
        rng = self._rng
        least, most = schema.get("minimum", 0), schema.get("maximum", 2**31 - 1)
        match schema.get("type"):
            case "integer":
                return rng.choice(
                    [least, rng.randint(least, most), rng.randint(least, min(most, least + 64))]
                )
            case "number":
                return round(least + (most - least) * rng.uniform(0.001, 1), 6)
            case "boolean":
                return rng.random() < 0.1
        return rng.choice(_SCALARS)

    def _object(self, schema: Schema, path: Path) -> dict[str, Any]:
        rng = self._rng
        if isinstance(schema.get("additionalProperties"), dict):
            # Keys of labels have rules; keys without any are those of template arguments.
            names = _LABEL_KEYS if "x-kubernetes-validations" in schema else _IDENTIFIERS
            keys = rng.sample(names, rng.randint(1, 3))
            return {key: self._value(schema["additionalProperties"], (*path, "*")) for key in keys}
        properties = schema.get("properties", {})
        chosen = [
            name
            for name in properties
            if name in schema.get("required", [])
            or self._is_wanted((*path, name))
            or rng.random() < _CHANCE / (1 + len(path) / 4)
        ]
        for rule in schema.get("x-kubernetes-validations", []):
            chosen = self._obey(rule["rule"], chosen, path)
        return {name: self._value(properties[name], (*path, name)) for name in chosen}

    def _obey(self, rule: str, chosen: list[str], path: Path) -> list[str]:
        """Return the members to have, so that a rule about one of several members holds."""
        members = _ONE_OF.findall(rule)
        if len(members) < 2 or "oldSelf" in rule:
            return chosen
        exactly = ".filter(given, given).size() == 1" in rule or re.fullmatch(
            r"has\(self\.\w+\) != has\(self\.\w+\)", rule
        )
        at_most = re.fullmatch(r"!\(has\(self\.\w+\) && has\(self\.\w+\)\)", rule)
        if not (exactly or at_most):
            return chosen
        given = [name for name in members if name in chosen]
        if not given and not exactly:
            return chosen
        wanted = [
            name for name in members if self._is_wanted((*path, name)) and len(path) < len(self._wanted)
        ]
        kept = self._rng.choice(wanted or given or members)
        return [name for name in chosen if name not in members] + [kept]

    def _array(self, schema: Schema, path: Path) -> list[Any]:
        least, most = schema.get("minItems", 0), schema.get("maxItems", 4)
        count = max(self._rng.randint(least, min(most, least + 2)), 1)
        items = [self._value(schema["items"], (*path, "0")) for _ in range(count)]
        if schema.get("x-kubernetes-list-type") == "set":
            return list(dict.fromkeys(items))
        keys = schema.get("x-kubernetes-list-map-keys")
        return list({item[keys[0]]: item for item in items}.values()) if keys else items

    def _string(self, schema: Schema) -> str:
        pattern = pattern_of(schema)
        if pattern is None:
            return "text " + self._rng.choice(_WORDS)
        word = self._rng.choice(_WORDS)
        if self._rng.random() < 0.6 and re.fullmatch(pattern.replace("$)", "$)"), word):
            return word
        for _ in range(20):
            text = matching(pattern, self._rng)[: schema.get("maxLength", 4096)]
            if re.fullmatch(pattern, text):
                return text
        return word


def _mend(value: Any, rng: random.Random) -> None:
    """Change what the schema's rules between members would refuse."""
    if isinstance(value, list):
        for item in value:
            _mend(item, rng)
    elif isinstance(value, dict):
        _mend_object(value, rng)


def _mend_object(value: dict[str, Any], rng: random.Random) -> None:
    for item in value.values():
        _mend(item, rng)
    if "microBatchSize" in value:
        value["microBatchSize"] = rng.choice([1, 2, 4])
        value["effectiveBatchSize"] = value["microBatchSize"] * rng.randint(1, 3)
    if value.get("artifacts") == ["BaseAsTrained"]:
        value["artifacts"] = ["Adapter"]
    if value.get("type") in {"RuntimeDefault", "Localhost"}:
        value.pop("localhostProfile", None)
        value["type"] = "RuntimeDefault"
    for member, others in _UNFIT.items():
        if value.get(member, "Fixed") != "Fixed":
            for name in others:
                value.pop(name, None)
    for item in value.get("tolerations", []):
        _mend_toleration(item)
    for item in value.get("matchExpressions", []):
        _mend_requirement(item)


def _mend_toleration(item: dict[str, Any]) -> None:
    if "key" not in item or item.get("operator") == "Exists":
        item["operator"] = "Exists"
        item.pop("value", None)
    if "tolerationSeconds" in item:
        item["effect"] = "NoExecute"


def _mend_requirement(item: dict[str, Any]) -> None:
    match item["operator"]:
        case "In" | "NotIn":
            item["values"] = item.get("values") or ["a"]
        case "Exists" | "DoesNotExist":
            item.pop("values", None)
        case _:
            item["values"] = ["7"]
