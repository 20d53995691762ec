"""Numbers in fewer bytes: bfloat16, and int8 in blocks that each have a scale of their own.

Formal guarantee of the blocks: a value comes back at most half its block's scale away from what
it was (a block whose largest value is below 1.5e-36 comes back as zeros), and what came back is
written as the same bytes again. A scale has 17 significant bits, so that its product with a whole
number up to 127 is exact in float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray

BLOCK = 64
"""Values that share a scale."""

_LARGEST = 127
# Below this a scale would be no normal float32 number.
_SMALLEST = np.float32(_LARGEST) * np.finfo(np.float32).tiny
_SURPLUS_BITS = np.uint32(0x7F)
_INFINITE_BFLOAT16 = np.uint16(0x7F80)

Int8Array = NDArray[np.int8]
BFloat16Array = NDArray[np.uint16]


def number_of_blocks(width: int) -> int:
    """How many blocks a vector of ``width`` values has; the last may be shorter."""
    return -(-width // BLOCK)


def quantise(vectors: FloatArray) -> tuple[Int8Array, FloatArray]:
    """Write vectors as whole numbers between -127 and 127 and a scale for each block.

    Args:
        vectors: Finite values, shape (vectors, width), float32; blocks do not reach over vectors.

    Returns:
        The whole numbers, same shape, int8; and the scales, shape (vectors, blocks), float32,
        each at least 0.
    """
    count, width = vectors.shape
    padded = np.zeros((count, number_of_blocks(width) * BLOCK), dtype=np.float32)
    padded[:, :width] = vectors
    blocks = padded.reshape(count, number_of_blocks(width), BLOCK)
    scales = _scales(np.abs(blocks).max(axis=2, initial=0.0))
    steps = np.where(scales > 0.0, scales, np.float32(np.inf))[:, :, None]
    whole = np.clip(np.rint(blocks / steps), -_LARGEST, _LARGEST).astype(np.int8)
    return whole.reshape(count, scales.shape[1] * BLOCK)[:, :width], scales


def quantises_to_zero(vectors: FloatArray) -> bool:
    """Whether :func:`quantise` would write zeros only.

    Args:
        vectors: Finite values of any shape.

    Returns:
        True if no value is large enough to come back as anything else.
    """
    return not bool((np.abs(vectors) >= _SMALLEST).any())


def restore(whole: Int8Array, scales: FloatArray) -> FloatArray:
    """Read what :func:`quantise` wrote.

    Args:
        whole: Shape (vectors, width), int8.
        scales: Shape (vectors, blocks), float32, such as :func:`check_scales` lets through.

    Returns:
        The values, shape (vectors, width), float32, all finite.
    """
    width = whole.shape[1]
    spread = np.repeat(scales, BLOCK, axis=1)[:, :width]
    values: FloatArray = whole.astype(np.float32) * spread
    return values


def rounded_change(after: FloatArray, before: FloatArray) -> FloatArray:
    """What arrives of ``after`` when its difference from ``before`` is sent in int8.

    Args:
        after: Finite values, shape (vectors, width).
        before: What the receiver has, same shape.

    Returns:
        Same shape; exactly ``before`` where nothing changed.
    """
    return before + restore(*quantise(after - before))


def check_scales(thing: str, scales: FloatArray) -> None:
    """Refuse scales that are no scales, or with which a value could overflow.

    Args:
        thing: What they belong to, for the message.
        scales: Any float32 values.

    Raises:
        InputError: If one is negative, not finite, or so large that 127 times it is infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        fitting = (scales >= 0.0) & np.isfinite(scales * np.float32(_LARGEST))
    if not bool(fitting.all()):
        raise InputError(thing, "not finite", "send scales that are finite and at least 0")


def to_bfloat16(values: FloatArray) -> BFloat16Array:
    """Round to bfloat16, the nearest, ties to even.

    Args:
        values: Finite values, float32.

    Returns:
        The upper halves of float32's bits, same shape, uint16; infinite beyond bfloat16's range.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    halves: BFloat16Array = (rounded >> np.uint32(16)).astype(np.uint16)
    return halves


def from_bfloat16(halves: BFloat16Array) -> FloatArray:
    """Widen bfloat16 to float32, exactly.

    Args:
        halves: bfloat16's bits, uint16.

    Returns:
        The values, same shape.
    """
    wide = np.ascontiguousarray(halves).astype(np.uint32) << np.uint32(16)
    values: FloatArray = wide.view(np.float32)
    return values


def is_finite_bfloat16(halves: BFloat16Array) -> bool:
    """Whether every one of bfloat16's bit patterns is a finite number."""
    return not bool(((halves & _INFINITE_BFLOAT16) == _INFINITE_BFLOAT16).any())


def _scales(largest: FloatArray) -> FloatArray:
    """The scales of blocks with these largest values, with 17 significant bits."""
    bits = (largest / np.float32(_LARGEST)).astype(np.float32).view(np.uint32)
    # Upwards, so that the largest value is within 127 steps; but not beyond float32's range.
    up = ((bits + _SURPLUS_BITS) & ~_SURPLUS_BITS).view(np.float32)
    down = (bits & ~_SURPLUS_BITS).view(np.float32)
    with np.errstate(over="ignore"):
        scales = np.where(np.isinf(up * np.float32(_LARGEST)), down, up)
    return np.where(largest >= _SMALLEST, scales, np.float32(0.0)).astype(np.float32)
