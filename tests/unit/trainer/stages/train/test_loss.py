"""For many architectures, the chunked loss has the same value and gradients as the plain loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.scoring import supervised_log_probabilities
from finetune_trainer.model import output_head as head
from finetune_trainer.model.load import attention_implementation
from finetune_trainer.model.output_head import hidden_states, loss_chunk, output_head, prove_head
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.loss import negative_log_likelihood
from finetune_trainer.stages.train.passes import Pass, StepCollator

from tests.support.architectures import FAMILIES, VOCABULARY, tiny

_LENGTHS = (11, 7, 3)


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, labels and mask of three rows with different lengths, right padding and unlearned prompts."""
    generator = torch.Generator().manual_seed(3)
    shape = (len(_LENGTHS), max(_LENGTHS))
    ids = torch.randint(3, VOCABULARY, shape, generator=generator)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, length in enumerate(_LENGTHS):
        ids[row, length:] = 0
        mask[row, :length] = 1
        labels[row, 2:length] = ids[row, 2:length]
    # One token in the middle is not learned either.
    labels[0, 5] = IGNORED
    return ids, labels, mask


def _pass(ids: torch.Tensor, labels: torch.Tensor) -> Pass:
    collate = StepCollator(Batching("AsDrawn", ids.numel(), len(ids)))
    rows = zip(ids, labels, strict=True)
    return collate([{"input_ids": row, "labels": wanted} for row, wanted in rows]).passes[0]


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loss_and_gradients_equal_those_of_the_models_own_masked_logits(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result must not depend on chunks of two positions, the missing mask or the chunked output head."""
    model = tiny(family)
    prove_head(model)
    ids, labels, mask = _batch()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    plain = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    plain.backward()
    expected = _gradients(model)
    model.zero_grad()
    monkeypatch.setattr(head, "_LOGITS_AT_ONCE", 2 * VOCABULARY)
    loss = negative_log_likelihood(model, _pass(ids, labels))
    (loss / 3).backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    found = _gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(
            found[name] * 3, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())
        ), name


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "mistral", "bloom"])
def test_scores_equal_those_of_the_models_own_logits(family: str) -> None:
    """In a padded batch without a mask, each row has the same log-probabilities as alone."""
    model = tiny(family)
    ids, labels, _ = _batch()
    examples = [
        Example(ids[row, :length].tolist(), labels[row, :length].tolist(), row)
        for row, length in enumerate(_LENGTHS)
    ]
    for example, found in zip(examples, supervised_log_probabilities(model, examples), strict=True):
        with torch.no_grad():
            own = (
                model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0].log_softmax(-1)
            )
        expected = torch.stack([own[place - 1, example.labels[place]] for place in example.supervised])
        assert torch.allclose(found, expected, atol=1e-4)
    again = supervised_log_probabilities(model, examples)
    for first, second in zip(supervised_log_probabilities(model, examples), again, strict=True):
        assert torch.equal(first, second)


def test_a_batch_without_a_label_has_no_loss_and_no_gradient() -> None:
    model = tiny("llama")
    ids, labels, _ = _batch()
    loss = negative_log_likelihood(model, _pass(ids, torch.full_like(labels, IGNORED)))
    loss.backward()
    assert loss.item() == 0
    assert not any(bool(gradient.any()) for gradient in _gradients(model).values())


def test_a_second_backward_pass_is_an_error() -> None:
    """The first pass hands the gradient on and keeps no copy."""
    model = tiny("llama")
    ids, labels, _ = _batch()
    loss = negative_log_likelihood(model, _pass(ids, labels))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


def test_at_most_one_chunk_of_logits_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head gets slices of the configured size, which together are exactly the supervised positions."""
    model = tiny("llama")
    ids, labels, _ = _batch()
    one = _pass(ids, labels)
    monkeypatch.setattr(head, "_LOGITS_AT_ONCE", 4 * VOCABULARY)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _out: seen.append(len(inputs[0]))
    )
    negative_log_likelihood(model, one).backward()
    assert max(seen) == 4
    assert sum(seen) == len(one.positions)


@pytest.mark.parametrize(
    ("vocabulary", "positions"), [(32768, 1024), (128256, 261), (262208, 127), (1 << 30, 1)]
)
def test_chunks_hold_at_most_128_mib_of_float32_logits(vocabulary: int, positions: int) -> None:
    assert loss_chunk(vocabulary) == positions
    assert positions == 1 or positions * vocabulary * 4 <= 128 * 1024**2


def test_an_architecture_that_changes_its_logits_in_another_way_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an unknown name for the scale, the trained model would differ from the served model."""
    model = tiny("llama")
    projection = model.get_output_embeddings()
    own = model.forward

    def shifted(**arguments: Any) -> Any:
        out = own(**arguments)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(model, "forward", shifted)
    assert output_head(model).projection is projection
    with pytest.raises(StageError, match="own logits") as caught:
        prove_head(model)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


def test_an_architecture_whose_tokens_see_later_tokens_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a padding mask, the loss of such a model depends on the length of the other rows in the batch."""
    model = tiny("llama")
    own = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *arguments, **more: own(*arguments, **{**more, "is_causal": False}),
    )
    with pytest.raises(StageError, match="padding a row") as caught:
        prove_head(model)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


def test_only_soft_capped_attention_is_eager_and_the_rest_is_fused() -> None:
    """transformers 5 raises ValueError for a capped model under sdpa."""
    assert attention_implementation(tiny("gemma2").config) == "eager"
    assert attention_implementation(tiny("gemma3_text").config) == "sdpa"
    assert attention_implementation(tiny("llama").config) == "sdpa"


def test_hidden_states_are_the_input_of_the_head() -> None:
    model = tiny("granite")
    ids, _, _ = _batch()
    with torch.no_grad():
        logits = output_head(model).logits(hidden_states(model, ids)[0])
        assert torch.allclose(logits, model(input_ids=ids, use_cache=False).logits[0], atol=1e-5)
