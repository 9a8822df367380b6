"""Results of the three stages, from the fixtures of the contract."""

from __future__ import annotations

import json
from typing import Any

from finetune_trainer.contract.model_config import MEMBERS
from finetune_trainer.contract.result import MergeResult, PrepareResult
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.data.rows.rejection import RowReason

from tests.support.repository import ROOT

_FIXTURES = ROOT / "contract" / "fixtures"


def fixture(name: str) -> dict[str, Any]:
    """Return the whole result in `contract/fixtures/result.NAME.json`."""
    document: dict[str, Any] = json.loads((_FIXTURES / f"result.{name}.json").read_text(encoding="utf-8"))
    return document


PREPARE = PrepareResult.model_validate(fixture("prepare-ended")["prepare"])
TRAIN = TrainResult.model_validate(fixture("train-measured")["train"])
MERGE = MergeResult.model_validate(fixture("merge-succeeded")["merge"])
PROVEN = MergeResult.model_validate(fixture("merge-proven")["merge"])


def warning(message: str) -> dict[str, Any]:
    """Return a warning of the dataset report as JSON."""
    return {"code": "ValidationLeakage", "value": 0.123456789, "threshold": 0.05, "message": message}


def full_config() -> dict[str, Any]:
    """More members than the config of any one dense family has, each as long as a real one."""
    return {
        **dict.fromkeys(MEMBERS[:19], 1_000_000),
        "model_type": "granitemoehybrid",
        "layer_types": "full_attention=8 sliding_attention=40",
    }


def full_success(character: str) -> dict[str, Any]:
    """The members of a PREPARE that found everything done, each text as long as the contract allows."""
    digest = "sha256:" + "0" * 64
    identity = {f"property{number}": character * 256 for number in range(16)}
    artifact = {"uri": character * 512, "digest": digest, "bytes": 2**40, "files": 2**20}
    numbers = ("rows", "kept", "duplicates", "trainingExamples", "validationExamples", "supervisedTokens")
    counts = dict.fromkeys(
        (*numbers, "longestExample", "trainingTokens", "nearDuplicates", "leaked", "shortened"), 2**40
    )
    loss = 1.2345678901234567
    paired = {"base": loss, "tuned": loss, "difference": -loss, "interval": [-loss, loss]}
    return {
        "prepare": {
            "dataset": {
                **counts,
                "digest": digest,
                "rejected": dict.fromkeys((reason.value for reason in RowReason), 10**6),
                "format": {"name": "PromptCompletion", "why": character * 256},
                "source": dict(identity),
                "validationSource": dict(identity),
                "languages": [{"code": "zh-Hant", "fraction": 0.333333}] * 3,
                "reasoningFraction": 0.333333,
                "promptVariety": 0.333333,
                "capacityRatio": 0.333333,
                "coverage": {"targets": 1000, "covered": 999},
                "warnings": [warning(character * 256) for _ in range(8)],
                "endTokens": [{"id": 2**31, "text": character * 64} for _ in range(8)],
                "example": {"row": 1, "learned": character * 512},
            },
            "model": {
                "architecture": character * 128, "parameters": 2**40, "commit": "c" * 40, "digest": digest,
                "quantizedModules": 1000, "bytes": 2**40, "config": full_config(),
            },
        },
        "completed": {
            "train": {
                "versions": dict.fromkeys(("accelerate", "bitsandbytes", "peft", "torch"), character * 64),
                "versionChanges": [
                    {"name": "torch", "before": character * 64, "after": character * 64, "step": 10**6}
                ] * 8,
                "device": character * 64, "steps": 10**6, "trainingLoss": loss, "tokensPerSecond": loss,
                "adapterDigest": digest,
                "batching": {"kind": "Grouped", "budgetTokens": 2**20, "realTokens": loss / 2, "reason": character * 512},
                "attention": {"backend": "RowByRow", "reason": character * 512},
                "kernels": {"used": ["RmsNorm", "Rope", "SwiGlu"], "reason": character * 512},
                "memory": dict.fromkeys(
                    ("allocatedBytes", "reservedBytes", "deviceBytes", "usableBytes", "loadBytes"), 2**40
                ),
                "evaluation": {
                    "rows": 200, "baseLoss": loss, "tunedLoss": loss, "difference": -loss,
                    "interval": [-loss, loss], "verdict": "Improved", "neededRows": 10**5,
                    "byRow": paired, "tokenAccuracy": paired,
                    "perplexity": {"base": loss, "tuned": loss, "ratio": loss, "interval": [-loss, loss]},
                    "metrics": [
                        {"name": name, "rows": 1000, **paired, "reason": character * 128}
                        for name in ("ExactMatch", "JsonValid", "JsonFields")
                    ],
                },
            },
            "merge": {
                "artifacts": [
                    {"kind": "Adapter", **artifact, "baseDigest": digest},
                    {"kind": "Merged", **artifact},
                    {"kind": "BaseAsTrained", **artifact},
                ],
                "verification": {
                    "rows": 8, "tokens": 1000, "klDivergence": loss, "trainedLoss": loss, "mergedLoss": loss,
                    "prompt": character * 512, "answer": character * 512, "verdict": "Unproven",
                    "baseDivergence": loss, "noiseDivergence": loss, "slope": loss, "slopeTolerance": loss,
                    "survivingUpdate": loss, "weakestTensor": character * 128, "weakestSurvival": loss,
                    "adapterOnOriginalLoss": loss, "warnings": [warning(character * 256) for _ in range(4)],
                },
            },
        },
    }  # fmt: skip
