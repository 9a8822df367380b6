"""Fast tokenizers with real vocabularies from packages: mistral-common, llama-models and dashscope."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dashscope
import llama_models
import mistral_common
from tokenizers import Tokenizer, normalizers
from transformers import AddedToken, AutoTokenizer, ByT5Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.integrations.mistral.tokenizer import MistralConverter

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_MISTRAL_DATA = Path(mistral_common.__file__).parent / "data"


def _sentencepiece(version: str, folder: Path) -> Any:
    (model,) = _MISTRAL_DATA.glob(f"*.model.{version}")
    source = folder / "source"
    source.mkdir(parents=True)
    shutil.copy(model, source / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(source, legacy=version == "v1")


def _tekken(_folder: Path) -> Any:
    backend = MistralConverter(str(_MISTRAL_DATA / "tekken_240718.json")).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _qwen(_folder: Path) -> Any:
    vocabulary = Path(dashscope.__file__).parent / "resources" / "qwen.tiktoken"
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = TikTokenConverter(
        vocab_file=str(vocabulary), pattern=_QWEN, extra_special_tokens=control
    ).converted()
    backend.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tags = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer


def _llama3(_folder: Path) -> Any:
    vocabulary = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    control = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    backend = TikTokenConverter(
        vocab_file=str(vocabulary),
        pattern=_LLAMA3,
        extra_special_tokens=[*control, "<|eom_id|>", "<|python_tag|>"],
    ).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def _bytes(_folder: Path) -> Any:
    """Return a slow tokenizer, written in Python: it has no offsets, and its vocabulary is the 256 bytes."""
    return ByT5Tokenizer(extra_ids=0)


_BUILDERS: dict[str, Callable[[Path], Any]] = {
    "mistral v1": lambda folder: _sentencepiece("v1", folder),
    "mistral v2": lambda folder: _sentencepiece("v2", folder),
    "mistral v3": lambda folder: _sentencepiece("v3", folder),
    "tekken": _tekken,
    "qwen": _qwen,
    "llama 3": _llama3,
    "byt5": _bytes,
}


class RealTokenizers:
    """Builds each vocabulary once and gives a fresh copy of its tokenizer to every use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        """Return a new tokenizer with the vocabulary `name`."""
        if name not in self._loaded:
            self._loaded[name] = self.load_from_files(name)
        return _fresh(self._loaded[name])

    def load_from_files(self, name: str) -> Any:
        """Return the tokenizer that transformers loads from its files, which takes seconds."""
        folder = self._folder / name.replace(" ", "-")
        if not (folder / "tokenizer_config.json").is_file():
            _BUILDERS[name](folder).save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _fresh(tokenizer: Any) -> Any:
    """Return a copy that takes added tokens without changing the original; both share the vocabulary."""
    if not tokenizer.is_fast:
        return copy.deepcopy(tokenizer)
    fresh = copy.copy(tokenizer)
    for name, value in vars(tokenizer).items():
        if isinstance(value, dict | list):
            setattr(fresh, name, copy.copy(value))
    fresh._tokenizer = _fresh_backend(tokenizer.backend_tokenizer)
    return fresh


def _fresh_backend(backend: Tokenizer) -> Tokenizer:
    """Return a backend on the same model: copying a vocabulary of 150,000 tokens takes seconds."""
    fresh = Tokenizer(backend.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(backend, name)
        if part is not None:
            setattr(fresh, name, part)
    for _, token in sorted(backend.get_added_tokens_decoder().items()):
        (fresh.add_special_tokens if token.special else fresh.add_tokens)([token])
    return fresh
