"""The kinds of hostility: each changes a valid spec at one place, or the whole object."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.crd_schema import Schema
from tests.support.fuzz import texts
from tests.support.fuzz.encoding import Raw, Repeated
from tests.support.fuzz.valid import Path

HUGE = 4096
_MANY = 300
"""Items that may be wrong. The API server's time for a resource grows with the square of the number of its errors.

That is so with every CRD: 8,000 wrong items take 20 s, and 20,000 are answered with 504 after 34 s.
"""


@dataclass
class Subject:
    """A FineTuneJob in the making, and the place that a kind may change."""

    body: dict[str, Any]
    path: Path
    schema: Schema
    rng: random.Random
    query: dict[str, str] = field(default_factory=dict)

    def put(self, value: Any) -> None:
        """Set the place to `value`, with all objects and lists on the way."""
        owner: Any = self.body["spec"]
        for name, following in zip(self.path, (*self.path[1:], None), strict=True):
            step = _step(owner, name)
            if following is None:
                owner[step] = value
            else:
                empty = not isinstance(owner, list) and step not in owner
                if empty or not isinstance(owner[step], (dict, list)):
                    owner[step] = [{}] if following == "0" else {}
                owner = owner[step]
                if isinstance(owner, list) and not owner:
                    owner.append({})


def _step(owner: Any, name: str) -> Any:
    if isinstance(owner, list):
        return 0
    return next(iter(owner), "key") if name == "*" else name


Kind = Callable[[Subject], None]


def nothing(subject: Subject) -> None:
    """Leave the job valid."""


def boundary(subject: Subject) -> None:
    """A bound, or one step beyond it."""
    schema, rng = subject.schema, subject.rng
    options: list[Any] = []
    if schema.get("type") in {"integer", "number"}:
        bounds = [schema[name] for name in ("minimum", "maximum") if name in schema]
        options = [bound + step for bound in bounds for step in (-1, 0, 1)] + [2**31, -(2**31) - 1, 2**63]
    elif schema.get("type") == "string":
        options = ["a" * length for length in _lengths(schema, "minLength", "maxLength")]
    elif schema.get("type") == "array":
        item = _first(subject)
        options = [[item] * length for length in _lengths(schema, "minItems", "maxItems")]
    elif schema.get("type") == "object" and "maxProperties" in schema:
        options = [{f"k{number}": "v" for number in range(n)} for n in _lengths(schema, "", "maxProperties")]
    subject.put(rng.choice(options or [{}, [], ""]))


def _lengths(schema: Schema, least: str, most: str) -> list[int]:
    found = [schema.get(least, 0), schema.get(most, 300)]
    return [max(bound + step, 0) for bound in found for step in (-1, 0, 1)]


def _first(subject: Subject) -> Any:
    items = subject.schema.get("items", {})
    if items.get("type") == "object":
        return dict.fromkeys(items.get("required", ()), "a") or {"operator": "Exists"}
    return items.get("enum", ["a", 1])[0] if items.get("type") != "integer" else 5


def unicode(subject: Subject) -> None:
    """Characters of many widths, halves of characters and controls, up to the bound of the field."""
    rng = subject.rng
    most = subject.schema.get("maxLength", 64)
    text = "".join(rng.choice(texts.RUNES) for _ in range(rng.choice([1, 2, 8])))
    length = rng.choice([len(text), most - 1, most, most + 1])
    subject.put((text * (length // len(text) + 1))[:length])


def huge(subject: Subject) -> None:
    """A text, a list or a map far beyond every bound, or the largest ones within."""
    rng, schema = subject.rng, subject.schema
    if rng.random() < 0.5:
        heavy = "\N{GRINNING FACE}" * rng.choice([1024, HUGE])
        keys = [f"example.com/{number:03}" for number in range(16)]
        template = subject.body["spec"].setdefault("podTemplate", {})
        template["annotations"] = dict.fromkeys(keys, heavy)
        template["objectAnnotations"] = dict.fromkeys(keys, "\x01" * 4096)
        subject.body["spec"].setdefault("evaluation", {})["samplePrompts"] = ["\N{GRINNING FACE}" * 2048] * 8
        return
    match schema.get("type"):
        case "array":
            subject.put([_first(subject)] * _MANY)
        case "object":
            subject.put({f"k{number}": "v" for number in range(_MANY)})
        case _:
            subject.put("x" * rng.choice([1000, 100_000, 1_000_000]))


def quantity(subject: Subject) -> None:
    """A quantity in any notation."""
    subject.put(subject.rng.choice(texts.QUANTITIES))


def name(subject: Subject) -> None:
    """A name that passes one rule and not another."""
    subject.put(subject.rng.choice(texts.NAMES))


def url(subject: Subject) -> None:
    """An odd URL."""
    subject.put(subject.rng.choice(texts.URLS))


def path(subject: Subject) -> None:
    """An odd path."""
    subject.put(subject.rng.choice(texts.PATHS))


def number(subject: Subject) -> None:
    """A number in another notation, or something that is not quite one."""
    subject.put(subject.rng.choice(texts.NUMBERS))


def keys(subject: Subject) -> None:
    """Odd keys of labels, annotations, selectors and arguments."""
    rng = subject.rng
    chosen = rng.sample(texts.KEYS, rng.choice([1, 1, 2]))
    subject.put({key: rng.choice(["v", "", "a b", "x" * 63, "x" * 64, "true", "-", "a."]) for key in chosen})


def scheduling(subject: Subject) -> None:
    """A toleration or a node term of which one part is odd."""
    rng = subject.rng
    template = subject.body["spec"].setdefault("podTemplate", {})
    toleration: dict[str, Any] = {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute"}
    toleration |= rng.choice(_TOLERATIONS)(rng)
    requirement: dict[str, Any] = {"key": "a", "operator": "In", "values": ["b"]}
    requirement |= rng.choice(_REQUIREMENTS)(rng)
    owner = (
        template.setdefault(rng.choice(("prepare", "train", "merge")), {}) if rng.random() < 0.5 else template
    )
    if rng.random() < 0.5:
        owner["tolerations"] = [toleration] * rng.choice([1, 1, 1, 16, 17])
    else:
        owner["nodeSelectorTerms"] = [
            {"matchExpressions": [requirement] * rng.choice([1, 1, 8, 9])}
        ] * rng.choice([1, 1, 4, 5])
    if rng.random() < 0.3:
        template["nodeSelector"] = {"kubernetes.io/hostname": "nowhere"}
        subject.body["spec"].setdefault("resources", {})["nodeSelector"] = {"kubernetes.io/hostname": "else"}


_Part = Callable[[random.Random], dict[str, Any]]
_TOLERATIONS: tuple[_Part, ...] = (
    lambda rng: {"key": rng.choice(texts.KEYS)},
    lambda _rng: {"key": None},
    lambda rng: {"operator": rng.choice(["Exists", "Equal", "In", "Lt", "Gt", "", None])},
    lambda _rng: {"operator": "Exists", "value": ""},
    lambda rng: {"value": rng.choice(["", "a b", "x" * 63, "x" * 64, None, "1"])},
    lambda rng: {"effect": rng.choice(["NoSchedule", "PreferNoSchedule", "", "Never", None])},
    lambda rng: {"tolerationSeconds": rng.choice([0, -1, 2**31 - 1, 2**31, Raw("1e3"), Raw("-0"), 1.5])},
)
_REQUIREMENTS: tuple[_Part, ...] = (
    lambda rng: {"key": rng.choice(texts.KEYS)},
    lambda rng: {"operator": rng.choice(["NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "in", ""])},
    lambda rng: {
        "operator": rng.choice(["Gt", "Lt"]),
        "values": [rng.choice(["0", "007", "9" * 18, "9" * 19, "-1", "1.0", ""])],
    },
    lambda rng: {"operator": rng.choice(["Exists", "DoesNotExist"]), "values": rng.choice([[], None, ["a"]])},
    lambda rng: {
        "values": rng.choice(
            [[], [""], ["a", "a"], ["x" * 64], [f"v{n}" for n in range(33)], ["a"] * 32, None]
        )
    },
)


def contradiction(subject: Subject) -> None:
    """Fields that are fine alone and not together."""
    rng, spec = subject.rng, subject.body["spec"]
    training, template = spec.setdefault("training", {}), spec.setdefault("podTemplate", {})
    resources = spec.setdefault("resources", {})
    same = {"claimName": "models"}
    options: list[Callable[[], None]] = [
        lambda: training.update(epochs=1, maximumSteps=1),
        lambda: training.update(effectiveBatchSize=16, microBatchSize=rng.choice([3, 17, 65536])),
        lambda: training.update(maximumLength=16, effectiveBatchSize=65536),
        lambda: training.update(epochs=1e-300, learningRate=1e-300),
        lambda: spec.update(evaluation={"maximumRows": 2, "minimumRows": 100_000, "generatedRows": 1000}),
        lambda: spec["dataset"].update(validation={"fraction": 0.1, "source": spec["dataset"]["source"]}),
        lambda: spec["dataset"].update(validation={"source": spec["dataset"]["source"]}),
        lambda: spec.update(modelCache=same, workspace={"existingClaim": "models"}),
        lambda: spec["output"].update(destination={"persistentVolumeClaim": {**same, "path": "a"}}),
        lambda: template.update(cpuLimit="1m", prepare={"cpuLimit": "Request"}),
        lambda: template.update(ephemeralStorage="1Pi", ephemeralStorageLimit="1k"),
        lambda: template.update(ephemeralStorage="1k", train={"ephemeralStorageLimit": "Request"}),
        lambda: resources.update(prepare={"cpu": rng.choice(["0.0000000001", "1m", 100_000]), "memory": "1k"}),
        lambda: resources.update(train={"memory": rng.choice(["0.5", "1", "1000000000000000"])}),
        lambda: spec.update(workspace={"size": rng.choice(["1", "0.001", "1Pi", 1])}),
        lambda: template.update(securityContext={"ids": "Assigned", "runAsUser": 5}),
        lambda: template.update(securityContext={"runAsUser": 2**31 - 1, "fsGroup": 1, "supplementalGroups": [1, 1]}),
        lambda: resources.update(gpuResourceName=rng.choice(["cpu", "a/b", "requests.a/b", "x" * 245 + "/y", "A/b"])),
        lambda: resources.update(gpuResourceName=rng.choice(["attachable-volumes-x/y", "hugepages-2Mi/x", "a.b/c.d"])),
        lambda: template.update(imagePullSecrets=[{"name": "a"}, {"name": "a"}]),
        lambda: spec.update(lifecycle={"deadlineSeconds": 1, "noProgressSeconds": 2**31 - 1, "retries": 10}),
        lambda: spec.update(network={"proxySecretRef": {"name": "a", "key": "b"}, "httpProxy": "http://a"}),
    ]  # fmt: skip
    for change in rng.sample(options, rng.choice([1, 2])):
        change()


def unknown(subject: Subject) -> None:
    """Fields that the schema does not have, some of them deep."""
    rng = subject.rng
    depth = rng.choice([1, 3, 50, 500, 9_000])
    # Recursion in Python would end before that of the API server.
    deep = Raw('{"a":' * depth + "1" + "}" * depth)
    owner: Any = subject.body["spec"]
    for step in subject.path[: rng.randint(0, len(subject.path))]:
        following = owner.get(step) if isinstance(owner, dict) else None
        if not isinstance(following, dict):
            break
        owner = following
    owner[rng.choice(["unheardOf", "Model", "x-kubernetes", "$ref", "", "\x00"])] = rng.choice(
        [deep, 1, None, "a"]
    )
    subject.query["fieldValidation"] = rng.choice(["Strict", "Warn", "Ignore"])


def repeated(subject: Subject) -> None:
    """Members or items that stand twice."""
    rng, spec = subject.rng, subject.body["spec"]
    options: list[Callable[[], None]] = [
        lambda: spec["output"].update(artifacts=["Adapter", "Adapter"]),
        lambda: spec.update(evaluation={"metrics": ["JsonValid"] * 2}),
        lambda: spec.update(podTemplate={"imagePullSecrets": [{"name": "a"}] * 2}),
        lambda: spec.update(podTemplate={"securityContext": {"supplementalGroups": [7, 7]}}),
        lambda: spec.update(training=Repeated(spec.get("training") or {"seed": 1})),
        lambda: subject.body.update(spec=Repeated(spec)),
        lambda: spec.update(podTemplate={"tolerations": [{"operator": "Exists"}] * 16}),
    ]
    rng.choice(options)()
    subject.query["fieldValidation"] = rng.choice(["Strict", "Warn", "Ignore"])


def null(subject: Subject) -> None:
    """Nothing, where something may or must be."""
    subject.put(subject.rng.choice([None, {}, []]))


def other_type(subject: Subject) -> None:
    """A value of another type."""
    subject.put(
        subject.rng.choice([None, True, 1, 1.5, "text", [], {}, [1], {"a": 1}, [[]], [None], {"a": None}])
    )


def metadata(subject: Subject) -> None:
    """Odd names, labels, annotations and owners of the FineTuneJob itself."""
    rng, found = subject.rng, subject.body["metadata"]
    name = str(found["name"])
    options: list[Callable[[], None]] = [
        lambda: found.update(name=(name + "-" + "n" * 45)[: rng.choice([44, 45, 46])]),
        lambda: found.update(name=name.replace("-", ".")),
        lambda: found.update(name=name + rng.choice([".", "-", "_", "A", "\n", "\N{GRINNING FACE}", "..a", "/a"])),
        lambda: found.update(labels=dict.fromkeys(rng.sample(texts.KEYS, 2), "v")),
        lambda: found.update(annotations={"a": "\N{GRINNING FACE}" * rng.choice([100, 65_500, 65_600])}),
        lambda: found.update(finalizers=rng.choice([["example.com/hold"], ["orphan"], ["foregroundDeletion"], ["a b"]])),
        lambda: found.update(ownerReferences=[_owner(rng)]),
        # The API server itself answers any other one with 500.
        lambda: found.update(resourceVersion=""),
        lambda: found.update(deletionTimestamp="2020-01-01T00:00:00Z", generation=-5, uid="x"),
        lambda: subject.body.update(status=rng.choice([{"phase": "Succeeded"}, {"attempts": "x"}, [], {"a": {}}])),
        lambda: found.update(annotations={"kubectl.kubernetes.io/last-applied-configuration": "{"}),
        lambda: subject.body.update(kind=rng.choice(["finetunejob", "Job", ""])),
        lambda: found.update(labels={"finetune.dev/job": "other", "finetune.dev/stage": "train"}),
    ]  # fmt: skip
    rng.choice(options)()


def _owner(rng: random.Random) -> dict[str, Any]:
    return {
        "apiVersion": rng.choice(["v1", "batch/v1", "x/v1"]),
        "kind": rng.choice(["Pod", "Job", "Nothing"]),
        "name": "nobody",
        "uid": rng.choice(["00000000-0000-0000-0000-000000000000", ""]),
    }


def suspended(subject: Subject) -> None:
    """A valid job that is suspended from the start."""
    subject.body["spec"]["suspend"] = True


ANYWHERE: tuple[Kind, ...] = (
    nothing, suspended, huge, scheduling, scheduling, contradiction, contradiction, unknown, repeated, metadata,
)  # fmt: skip
"""Kinds that choose their place themselves."""


_GENERAL: tuple[Kind, ...] = (boundary, null, other_type)
_BY_TYPE: dict[str, tuple[Kind, ...]] = {
    "quantity": (quantity, quantity, number, unicode),
    "enum": (name, unicode),
    "string": (name, url, path, unicode, unicode, number),
    "integer": (number, number, quantity),
    "number": (number, number, quantity),
    "map": (keys, keys, huge),
    "array": (huge,),
    "object": (),
    "boolean": (number, unicode),
    "any": (number, unicode),
}


def kinds_for(schema: Schema) -> tuple[Kind, ...]:
    """Return the kinds that can change a field of this schema."""
    kind = str(schema.get("type", "any"))
    if schema.get("x-kubernetes-int-or-string"):
        kind = "quantity"
    elif "enum" in schema:
        kind = "enum"
    elif "additionalProperties" in schema:
        kind = "map"
    return _BY_TYPE[kind] + _GENERAL
