"""Reads any elements of an NF4 weight as float32; the values equal those of bitsandbytes bit for bit.

A weight is `code[nibble] * absmax[block]`, and `absmax` is itself `map[byte] * nested[block of blocks] + offset`
(QLoRA, Dettmers et al. 2023, section 3). Every step is in float32, as in bitsandbytes. Blocks of 64 run over the flat
tensor, so a row may begin inside one. Memory: the elements that are asked for, and 1/4,096 of the tensor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantization.nf4 import BLOCK, NESTED_BLOCK, QuantizedSizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from finetune_trainer.model.safetensors_file import TensorEntry, TensorReader

_STATE = "quant_state.bitsandbytes__nf4"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", _STATE)


class Scratch:
    """Reused buffers of one thread. New memory for each block would take longer than its values."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[Any]] = {}

    def array(self, name: str, size: int, dtype: type[np.generic]) -> NDArray[Any]:
        """Return the first `size` elements of the buffer of this name; its content is undefined."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size]


@dataclass(frozen=True)
class _State:
    """The small tensors of one weight. `pairs` has the two codes of each byte as one 64-bit word."""

    pairs: NDArray[np.uint64]
    nested: NDArray[np.float32]
    nested_map: NDArray[np.float32]
    offset: np.float32


class Nf4Weight:
    """One NF4 weight in a file of the 4-bit checkpoint. Several threads may read it, each with its own scratch."""

    def __init__(
        self, reader: TensorReader, entries: Mapping[str, TensorEntry], name: str, elements: int
    ) -> None:
        """Read the weight's state. `entries` are those of the open `reader` by name.

        Raises StageError(QuantizationMismatch) if a part is missing, or is not that of an NF4 weight of this size.
        """
        self._reader = reader
        self._name = name
        self._elements = elements
        sizes = QuantizedSizes(elements)
        parts = {suffix: entries.get(f"{name}.{suffix}") for suffix in _PARTS}
        packed = entries.get(name)
        missing = [f"{name}.{suffix}" for suffix, part in parts.items() if part is None]
        if packed is None or missing:
            raise _mismatch(missing[0] if packed is not None else name, "nothing")
        found = {suffix: part for suffix, part in parts.items() if part is not None}
        self._packed, self._absmax = packed, found["absmax"]
        expected = {
            "absmax": sizes.blocks,
            "quant_map": 16,
            "nested_absmax": sizes.nested_blocks,
            "nested_quant_map": 256,
        }
        if packed.elements != sizes.packed or any(
            found[part].elements != count for part, count in expected.items()
        ):
            raise _mismatch(name, f"{packed.elements} packed bytes and {found['absmax'].elements} scales")
        self._state = self._read_state(found)

    def read(self, first: int, count: int, scratch: Scratch) -> NDArray[np.float32]:
        """Return `count` values from element `first` on, as a view into `scratch`.

        Raises StageError(InvalidModel) if the file cannot be read.
        """
        start = first - first % BLOCK
        end = min(first + count + (-(first + count)) % BLOCK, self._elements)
        sizes = QuantizedSizes(end - start)
        packed = scratch.array("packed", sizes.packed, np.uint8)
        codes = scratch.array("codes", sizes.blocks, np.uint8)
        absmax = scratch.array("absmax", sizes.blocks, np.float32)
        values = scratch.array("values", 2 * sizes.packed, np.float32)
        self._reader.read_into(self._packed, start // 2, packed)
        self._reader.read_into(self._absmax, start // BLOCK, codes)
        state = self._state
        _dequantize_scales(codes, state.nested_map, state.nested, state.offset, start // BLOCK, absmax)
        _dequantize(packed, state.pairs, absmax, values)
        return values[first - start : first - start + count]

    def _read_state(self, parts: Mapping[str, TensorEntry]) -> _State:
        settings = self._settings(parts[_STATE])
        code = self._floats(parts["quant_map"])
        pairs = np.empty((256, 2), np.float32)
        numbers = np.arange(256)
        pairs[:, 0], pairs[:, 1] = code[numbers >> 4], code[numbers & 15]
        return _State(
            pairs=pairs.view(np.uint64).reshape(-1),
            nested=self._floats(parts["nested_absmax"]),
            nested_map=self._floats(parts["nested_quant_map"]),
            offset=np.float32(settings["nested_offset"]),
        )

    def _settings(self, entry: TensorEntry) -> dict[str, Any]:
        text = np.empty(entry.elements, np.uint8)
        self._reader.read_into(entry, 0, text)
        try:
            settings: dict[str, Any] = json.loads(text.tobytes())
            found = (settings["quant_type"], settings["blocksize"], settings["nested_blocksize"])
            float(settings["nested_offset"])
        except (ValueError, KeyError, TypeError) as error:
            raise _mismatch(entry.name, f"{type(error).__name__}: {error}") from error
        if found != ("nf4", BLOCK, NESTED_BLOCK):
            raise _mismatch(entry.name, f"the settings {found}")
        return settings

    def _floats(self, entry: TensorEntry) -> NDArray[np.float32]:
        values = np.empty(entry.elements, np.float32)
        self._reader.read_into(entry, 0, values.view(np.uint8))
        return values


def _mismatch(name: str, found: str) -> StageError:
    return StageError(
        Reason.QUANTIZATION_MISMATCH,
        f"the 4-bit checkpoint must hold tensor {name} of an NF4 weight with double quantization, found {found}; "
        "run PREPARE again",
    )


@cache
def warm_up() -> None:
    """Compile the loops before several threads ask for them."""
    scales = np.zeros(1, np.float32)
    _dequantize_scales(np.zeros(1, np.uint8), np.zeros(256, np.float32), scales, np.float32(0), 0, scales)
    _dequantize(np.zeros(1, np.uint8), np.zeros(256, np.uint64), scales, np.zeros(2, np.float32))


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _dequantize_scales(
    codes: NDArray[np.uint8],
    nested_map: NDArray[np.float32],
    nested: NDArray[np.float32],
    offset: np.float32,
    first: int,
    absmax: NDArray[np.float32],
) -> None:
    for i in range(absmax.size):
        product = np.float32(nested_map[codes[i]] * nested[(first + i) // 256])
        absmax[i] = np.float32(product + offset)


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _dequantize(
    packed: NDArray[np.uint8],
    pairs: NDArray[np.uint64],
    absmax: NDArray[np.float32],
    values: NDArray[np.float32],
) -> None:
    """Look up two codes a byte, then multiply each block by its scale while it is in the processor's cache."""
    words = values.view(np.uint64)
    whole = packed.size // 32
    for block in range(whole):
        # Views of constant size: numba could not use vectors with a sum as an index.
        source, pair = packed[block * 32 : block * 32 + 32], words[block * 32 : block * 32 + 32]
        value, scale = values[block * 64 : block * 64 + 64], absmax[block]
        for i in range(32):
            pair[i] = pairs[source[i]]
        for i in range(64):
            value[i] = np.float32(value[i] * scale)
    for i in range(whole * 32, packed.size):
        words[i] = pairs[packed[i]]
    for i in range(whole * 64, 2 * packed.size):
        values[i] = np.float32(values[i] * absmax[whole])
