"""The settings of the runs: each departs in one setting from `DEFAULTS`."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "learningRate": 1e-3,
    "schedule": "Cosine",
    "warmupRatio": 0.03,
    "weightDecay": 0.0,
    "maximumGradientNorm": 1.0,
    "seed": 42,
}
"""The values from which each run departs in one. The rate is that of the middle of the sweep."""
VARIANTS: tuple[tuple[str, Any], ...] = (
    ("", None),
    ("learningRate", 3e-4),
    ("learningRate", 3e-3),
    ("warmupRatio", 0.0),
    ("maximumGradientNorm", 0.0),
    ("weightDecay", 0.1),
    ("schedule", "Constant"),
    ("seed", 43),
    ("warmupRatio", 0.1),
    ("schedule", "Linear"),
    ("learningRate", 1e-4),
    ("maximumGradientNorm", 0.3),
    ("weightDecay", 0.01),
    ("learningRate", 1e-2),
    ("seed", 44),
)
"""The setting that differs and its value, the most informative first; the first run has all defaults."""
