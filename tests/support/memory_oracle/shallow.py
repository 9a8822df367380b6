"""Configs of models with fewer layers than their config.json says."""

from __future__ import annotations

import copy
from typing import Any

from finetune_trainer.trace import fake_model


def build_config(document: dict[str, Any], layers: int | None) -> Any:
    """Return transformers' config of a config.json, cut to its last `layers` layers.

    It keeps the last ones because models with alternating windowed and full attention peak near the end.
    """
    whole, document = document, copy.deepcopy(document)
    if layers is not None:
        count = next(name for name in ("num_hidden_layers", "n_layer") if name in document)
        document[count] = layers
        kinds = getattr(fake_model.build_config(whole), "layer_types", None)
        if kinds is not None:
            document["layer_types"] = kinds[-layers:]
    return fake_model.build_config(document)
