"""One hostile FineTuneJob for each seed, always the same."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.support.crd_schema import Schema, root_schema
from tests.support.fuzz.encoding import encode
from tests.support.fuzz.hostile import ANYWHERE, Subject, kinds_for
from tests.support.fuzz.valid import Generator, sites


@dataclass(frozen=True)
class Resource:
    """A request to create a FineTuneJob: its body and query, what is odd about it, and where."""

    seed: int
    name: str
    kind: str
    place: str
    body: bytes
    query: dict[str, str]


class Resources:
    """Makes the resources of one schema."""

    def __init__(self, schema: Schema | None = None) -> None:
        self._schema: Schema = (schema or root_schema())["properties"]["spec"]
        found = list(sites(self._schema))
        # Objects have few faults of their own, and their members have many.
        self._sites = [site for site in found if "properties" not in site[1]] * 4 + found

    def make(self, seed: int) -> Resource:
        """Return the resource of this seed."""
        rng = random.Random(seed)  # noqa: S311 -- reproducible, not secret
        path, schema = rng.choice(self._sites)
        kind = rng.choice(ANYWHERE if rng.random() < 0.4 else kinds_for(schema))
        name = f"fuzz-{seed}"
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": Generator(rng, path).spec(self._schema),
        }
        subject = Subject(body, path, schema, rng)
        kind(subject)
        text = encode(subject.body)
        return Resource(
            seed,
            str(body["metadata"]["name"]),  # type: ignore[index]  # an object
            kind.__name__,
            ".".join(("spec", *path)),
            text.encode("ascii"),
            subject.query,
        )
