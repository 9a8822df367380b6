"""Compares the merged model, loaded by plain transformers, with the trained model on held-out rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.scoring import distributions, supervised_log_probabilities
from finetune_trainer.model.load import attention_implementation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from finetune_trainer.contract.result import EndToken
    from finetune_trainer.data.masking.example import Example
    from finetune_trainer.evaluation.recording import RecordedRow

_log = logging.getLogger(__name__)

# On a small model, rounding noise of bf16 alone gives a divergence of 0.002 to 0.005 nats. A merge into weights
# other than the trained ones gives 0.6 (docs/adr/0009). The product promises 0.01. The limit is twice that, because
# a GPU adds in another order.
MAXIMUM_DIVERGENCE = 0.02
MAXIMUM_LOSS_SHARE = 0.02
MAXIMUM_LOSS_NATS = 0.01
_NEW_TOKENS = 64
_TEXT_LIMIT = 512
_MEMORY_SHARE = 0.7
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Verification:
    """Trained against merged model. Losses are nats per supervised token of the same rows."""

    rows: int
    tokens: int
    divergence: float
    trained_loss: float
    merged_loss: float

    def fault(self) -> str | None:
        """Describe the first number out of bounds; None if the two models agree."""
        allowed = max(MAXIMUM_LOSS_SHARE * self.trained_loss, MAXIMUM_LOSS_NATS)
        if not self.divergence <= MAXIMUM_DIVERGENCE:
            return (
                f"KL divergence from the trained model must be at most {MAXIMUM_DIVERGENCE} nats a token, "
                f"found {self.divergence:.4f} over {self.tokens} tokens"
            )
        if not abs(self.merged_loss - self.trained_loss) <= allowed:
            return (
                f"loss must be within {allowed:.4f} of the trained model's {self.trained_loss:.4f}, "
                f"found {self.merged_loss:.4f}"
            )
        return None


def load_merged(folder: Path, parameters: int) -> Any:
    """Load the artifact as any user would, in float32 on the CPU (see `model.load.compute_dtype`).

    A model whose `parameters` would fill more than 70 % of the free memory stays in its files, and each layer is read
    when it is needed.
    """
    fits = _FLOAT32_BYTES * parameters < _MEMORY_SHARE * free_memory()
    if not fits:
        _log.info("the merged model is read layer by layer, because it does not fit into the free memory")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map={"": "cpu" if fits else "disk"},
        attn_implementation=attention_implementation(config),
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.eval()


def free_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes that this container may still use: the node's available memory within the cgroup's limit."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except OSError:
        # No cgroup v2 here (a laptop, an old node): only the node's memory is known.
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def verify(model: Any, rows: Sequence[RecordedRow], progress: Callable[[int, int], None]) -> Verification:
    """Score the recorded rows with the merged model; `progress` gets (rows done, in all).

    The divergence is the mean of KL(trained || merged) over the recorded positions, in nats.
    """
    divergences = []
    merged_nats = 0.0
    for done, row in enumerate(rows, start=1):
        (log_probabilities,) = supervised_log_probabilities(model, [row.example])
        merged_nats -= float(log_probabilities.double().sum())
        merged = distributions(model, row.example, row.positions)
        divergences.append(kl_divergence(row.log_probabilities, merged))
        progress(done, len(rows))
    tokens = sum(row.loss.tokens for row in rows)
    return Verification(
        rows=len(rows),
        tokens=sum(len(part) for part in divergences),
        divergence=float(torch.cat(divergences).mean()),
        trained_loss=sum(row.loss.nats for row in rows) / tokens,
        merged_loss=merged_nats / tokens,
    )


def kl_divergence(trained: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    """KL(trained || merged) in nats at each position; both are log-probabilities (positions, vocabulary)."""
    trained, merged = trained.double(), merged.double()
    return (trained.exp() * (trained - merged)).sum(dim=-1)


def require_agreement(verification: Verification) -> None:
    """Raise StageError(ArtifactVerificationFailed) with the numbers if the models differ."""
    fault = verification.fault()
    if fault is not None:
        raise StageError(
            Reason.ARTIFACT_VERIFICATION_FAILED,
            f"the merged model's {fault}; nothing was published, report a bug",
        )


def require_stops(model: Any, ends: Sequence[EndToken]) -> None:
    """Check that the loaded artifact stops at every token at which it was taught to end an answer.

    Raises StageError(ArtifactVerificationFailed) with the tokens at which it would not.
    """
    configured = model.generation_config.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    missing = [f"{token.text} ({token.id})" for token in ends if token.id not in stops]
    if missing:
        raise StageError(
            Reason.ARTIFACT_VERIFICATION_FAILED,
            f"the merged model must stop at every token that ends a trained answer, found none of {', '.join(missing)} in "
            "its generation config; nothing was published, report a bug",
        )


def answer(model: Any, folder: Path, example: Example) -> tuple[str, str]:
    """Let the merged model answer a held-out prompt greedily; return (prompt, answer), each at most 512 characters.

    The prompt is the text before the first supervised token with its control tokens, as in serving. A longer prompt
    keeps its end.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = example.supervised[0]
    ids = torch.tensor([example.input_ids[:length]])
    eos = model.generation_config.eos_token_id or tokenizer.eos_token_id
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else IGNORED,
        )
    prompt = str(tokenizer.decode(ids[0]))
    said = str(tokenizer.decode(output[0, length:], skip_special_tokens=True))
    return prompt[-_TEXT_LIMIT:], said[:_TEXT_LIMIT]
