from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetune_trainer.contract.naming import base_model_name
from finetune_trainer.contract.run_spec import RunSpec


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"kind": "HuggingFace", "repository": "org/model", "revision": "main"}, "org/model"),
        ({"kind": "Directory", "path": "/mnt/models/model-7b"}, "model-7b"),
        ({"kind": "ObjectStore", "uri": "s3://bucket/models/model-7b"}, "model-7b"),
        ({"kind": "ObjectStore", "uri": "gs://bucket/models/model-7b/"}, "model-7b"),
    ],
)
def test_the_name_of_a_source_never_contains_a_local_path(
    make_run: Callable[..., RunSpec], source: dict[str, Any], name: str
) -> None:
    run = make_run(model={"source": source, "chatTemplateArguments": {}})
    assert base_model_name(run) == name
