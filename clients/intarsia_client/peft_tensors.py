"""What PEFT calls an adapter's tensors, which types they may have, and how they fit together."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from intarsia_client.errors import InputError
from intarsia_client.peft_configuration import HEADS, declared_rank, declared_scaling
from intarsia_client.wire import FloatArray

_Value = TypeVar("_Value")

HEAD = "head"
BYTES_OF = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}
"""Bytes of one number of each type that is read; everything is float32 once it is."""

_PREFIX = "base_model.model."
_FACTOR_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


def tensor_key(name: str) -> str:
    """The key under which PEFT saves a parameter of the base model or a factor beside it."""
    return f"{_PREFIX}{name}"


def parameter_of(key: str, settings: Mapping[str, Any]) -> tuple[str, str]:
    """What a tensor of an adapter file is.

    Args:
        key: Its key.
        settings: The adapter's configuration.

    Returns:
        ``"A"`` or ``"B"`` and the module's name, or :data:`HEAD` and the parameter's name in the
        base model.

    Raises:
        InputError: If it is neither a factor nor part of the head.
    """
    name = key.removeprefix(_PREFIX)
    match = _FACTOR_KEY.fullmatch(name)
    if match and name != key:
        return match["side"], match["module"]
    if name != key and _is_head(name, settings):
        # Without PEFT's wrapper in between.
        return HEAD, re.sub(r"\.(modules_to_save(\.default)?|original_module)\.", ".", name)
    raise InputError("adapter tensor", key, "save a plain LoRA adapter of linear layers with PEFT")


def check_kind(key: str, kind: str) -> None:
    """Refuse a type of number that is not read.

    Args:
        key: The tensor's key.
        kind: Its type in safetensors' words.

    Raises:
        InputError: If it is an integer or an exotic type.
    """
    if kind not in BYTES_OF:
        raise InputError(f"adapter tensor {key}", kind, "save it as float32, bfloat16 or float16")


def float32_values(data: bytes | memoryview, kind: str) -> FloatArray:
    """Numbers of any type that is read, as float32.

    Args:
        data: Their bytes, little-endian.
        kind: Their type, a key of :data:`BYTES_OF`.

    Returns:
        The numbers in one row; of float32 a view. What float32 cannot hold is infinite.
    """
    array: FloatArray
    if kind == "F32":
        array = np.frombuffer(data, dtype="<f4")
    elif kind == "BF16":
        # bfloat16 is the upper half of a float32.
        array = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(over="ignore"):
            array = np.frombuffer(data, "<f2" if kind == "F16" else "<f8").astype(np.float32)
    return array


def check_finite(key: str, values: FloatArray) -> None:
    """Refuse what is not a number or infinite.

    Args:
        key: The tensor's key.
        values: The tensor or a part of it.

    Raises:
        InputError: If one of the values is not finite.
    """
    if not np.isfinite(values).all():
        raise InputError(f"adapter tensor {key}", "not finite", "train again; it holds NaN or Inf")


def checked_scaling(
    module: str,
    shape_a: Sequence[int],
    shape_b: Sequence[int],
    settings: Mapping[str, Any],
) -> float:
    """Check that a module's factors fit each other and the configuration.

    Args:
        module: Its name.
        shape_a: Shape of the factor next to the input.
        shape_b: Shape of the factor next to the output.
        settings: The adapter's configuration.

    Returns:
        The factor before ``B @ A``.

    Raises:
        InputError: If they do not.
    """
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[1]:
        raise InputError(
            f"module {module}",
            f"lora_A {list(shape_a)}, lora_B {list(shape_b)}",
            "send lora_A as (rank, d_in) and lora_B as (d_out, rank)",
        )
    rank = declared_rank(module, settings)
    if rank != shape_a[0]:
        raise InputError(
            f"module {module}",
            f"rank {shape_a[0]}, declared {rank}",
            "send the rank that r or rank_pattern declares",
        )
    return declared_scaling(module, shape_a[0], settings)


def check_sides(module: str, sides: Collection[str]) -> None:
    """Refuse a module of which one factor is missing.

    Args:
        module: Its name.
        sides: The factors that are there, of ``"A"`` and ``"B"``.

    Raises:
        InputError: If only one is.
    """
    if set(sides) != {"A", "B"}:
        raise InputError(f"module {module}", f"only lora_{min(sides)}", "send both factors")


def put_once(values: dict[str, _Value], name: str, value: _Value, key: str) -> None:
    """Put a tensor in its place, which must be free.

    Args:
        values: What is there already.
        name: The place.
        value: What comes there.
        key: The tensor's key, for the message.

    Raises:
        InputError: If a tensor is there already: two keys may mean one parameter.
    """
    if name in values:
        raise InputError("adapter tensor", f"{key} comes twice", "send each parameter once")
    values[name] = value


def _is_head(name: str, settings: Mapping[str, Any]) -> bool:
    saved = settings.get("modules_to_save") or []
    return (
        settings.get("task_type") == "SEQ_CLS"
        and name.split(".")[0] in HEADS
        and name.split(".")[0] in saved
    )
