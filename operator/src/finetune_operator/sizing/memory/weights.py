"""Memory of the frozen model: packed matrices, quantization constants, and weights in 16 or 32 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.adapters import is_adapted
from finetune_operator.sizing.memory.terms import MemoryItem, allocated, blocks

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.shape import ModelShape
    from finetune_operator.sizing.memory.stack import StackProfile
    from finetune_operator.sizing.memory.training_plan import TrainingPlan

# bitsandbytes (functional.py, quantize_4bit with compress_statistics): the absmax of 64 weights, and the absmax of 256 of
# these. Each matrix has a code table of 16 float32 values, one of 256, and an offset.
_WEIGHTS_IN_BLOCK = 64
_CONSTANTS_IN_BLOCK = 256
_CODE_TABLE = 16 * 4
_NESTED_CODE_TABLE = 256 * 4


def matrix_bytes(weights: int, outputs: int, stack: StackProfile) -> tuple[int, int]:
    """Return the bytes of one matrix of `weights` elements: (packed values, quantization constants)."""
    values, scales, others = matrix_parts(weights, outputs, stack)
    return allocated(values), allocated(scales) + others


def matrix_parts(weights: int, outputs: int, stack: StackProfile) -> tuple[int, int, int]:
    """Return the bytes of one matrix: (packed values, constants of single blocks, other constants as allocated)."""
    if stack.quantization == "None":
        return weights * stack.unquantized_width, 0, 0
    if stack.quantization == "Int8":
        # One float32 scale for each output (bitsandbytes Int8Params.SCB).
        return weights, 4 * outputs, 0
    constants = blocks(weights, _WEIGHTS_IN_BLOCK)
    if stack.quantization == "NF4":
        return weights // 2, 4 * constants, allocated(_CODE_TABLE)
    nested = allocated(4 * blocks(constants, _CONSTANTS_IN_BLOCK))
    tables = allocated(_CODE_TABLE) + allocated(_NESTED_CODE_TABLE) + allocated(4)
    return weights // 2, constants, nested + tables


def weight_items(shape: ModelShape, stack: StackProfile) -> tuple[MemoryItem, ...]:
    """Return the items of the loaded model, before any cast."""
    width = stack.unquantized_width
    packed = constants = 0
    for count, linear in shape.matrices:
        one = matrix_bytes(linear.weights, linear.outputs, stack)
        packed += count * one[0]
        constants += count * one[1]
    parts = [
        MemoryItem("layer weights", packed, f"{shape.linear_weights} weights, {_form(stack)}"),
        MemoryItem("quantization constants", constants, _CONSTANT_FORMULAS[stack.quantization]),
        MemoryItem(
            "embedding",
            allocated(shape.vocabulary * shape.hidden * width),
            f"{shape.vocabulary} x {shape.hidden} x {width} B",
        ),
    ]
    if not shape.tied:
        parts.append(_head(shape, stack))
    parts.append(
        MemoryItem("norms and biases", shape.other_weights * width, f"{shape.other_weights} x {width} B")
    )
    return tuple(part for part in parts if part.bytes)


def dequantized_items(shape: ModelShape, stack: StackProfile) -> tuple[MemoryItem, MemoryItem]:
    """Return what dequantized layer weights need beside their values: always, and while they are loaded.

    `stack` is that of the packed weights. Their constants stay, because the values in float32 come from them. One matrix
    after another is unpacked, and each needs more than before. So the last one has all others unpacked beside it.
    """
    constants = last = 0
    for count, linear in shape.matrices:
        packed, own = matrix_bytes(linear.weights, linear.outputs, stack)
        constants += count * own
        last = max(last, packed + constants_bytes(linear.weights, stack))
    kept = MemoryItem("quantization constants", constants, _CONSTANT_FORMULAS[stack.quantization])
    return kept, MemoryItem("packed matrix", last, "of the largest matrix, until it is unpacked")


def unpacked_bytes(weights: int, stack: StackProfile) -> int:
    """Return the bytes of a packed matrix in 16 bits, as a product needs it; 0 if matrices are not packed.

    bitsandbytes' backward pass always unpacks the whole matrix (autograd/_functions.py, MatMul4Bit.backward).
    """
    return 0 if stack.quantization == "None" else allocated(2 * weights)


def constants_bytes(weights: int, stack: StackProfile) -> int:
    """Return the bytes of a matrix's block constants in float32, which double quantization unpacks first."""
    return allocated(4 * blocks(weights, _WEIGHTS_IN_BLOCK)) if stack.quantization == "NF4DoubleQuant" else 0


def cast_items(shape: ModelShape, stack: StackProfile) -> tuple[tuple[MemoryItem, ...], int]:
    """Return the items that a cast of every 16-bit parameter to float32 adds, and the bytes of the largest original.

    peft's prepare_model_for_kbit_training (utils/other.py) casts one parameter after another, and frees each original
    once its copy is complete. All unpacked parameters count, also those of the layers if nothing is quantized.
    """
    if not stack.cast_to_float32 or stack.unquantized_width == 4:
        return (), 0
    parts = [
        MemoryItem(
            "float32 copy of embedding and head", 2 * unpacked_embedding_weights(shape, stack), "+2 B each"
        )
    ]
    largest = shape.vocabulary * shape.hidden
    if stack.quantization == "None":
        parts.append(MemoryItem("float32 copy of layer weights", 2 * shape.linear_weights, "+2 B each"))
        largest = max(largest, *(linear.weights for _, linear in shape.matrices))
    parts.append(MemoryItem("float32 copy of norms and biases", 2 * shape.other_weights, "+2 B each"))
    return tuple(parts), 2 * largest


def unpacked_embedding_weights(shape: ModelShape, stack: StackProfile) -> int:
    """Return the elements of embedding and head that quantization does not pack."""
    head = 0 if shape.tied or stack.quantized_head else 1
    return shape.vocabulary * shape.hidden * (1 + head)


def _head(shape: ModelShape, stack: StackProfile) -> MemoryItem:
    weights = shape.vocabulary * shape.hidden
    if stack.quantized_head:
        return MemoryItem(
            "output head",
            sum(matrix_bytes(weights, shape.vocabulary, stack)),
            f"{shape.vocabulary} x {shape.hidden}, {_form(stack)}",
        )
    width = stack.unquantized_width
    return MemoryItem(
        "output head", allocated(weights * width), f"{shape.vocabulary} x {shape.hidden} x {width} B"
    )


def _form(stack: StackProfile) -> str:
    return f"{stack.unquantized_width} B each" if stack.quantization == "None" else stack.quantization


_CONSTANT_FORMULAS = {
    "NF4DoubleQuant": "1 B for 64 weights, 4 B for 16,384, two code tables for each matrix",
    "NF4": "4 B for 64 weights, a code table for each matrix",
    "Int8": "4 B for each output",
    "None": "",
}


def dora_preparation(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> int:
    """Return the bytes that peft allocates to set the magnitudes of the largest adapted matrix.

    From lora/dora.py, update_layer: a copy of the packed matrix, the unpacked matrix, and product, scaled product and
    sum in float32.
    """
    if plan.variant != "DoRA":
        return 0
    return max(
        sum(matrix_bytes(linear.weights, linear.outputs, stack)) + 14 * linear.weights
        for _, linear in shape.matrices
        if is_adapted(linear, plan)
    )
