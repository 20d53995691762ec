"""Where adapters act in a base model: its linear modules, and which of them see the same input."""

from __future__ import annotations

from typing import Any

import torch
from intarsia_client.base_model import BaseModel
from intarsia_client.peft_configuration import HEADS
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from intarsia_platform.serving.banked_adapter import MAX_RANK, BaseShapes


def linear_modules_of(base: BaseModel) -> dict[str, nn.Module]:
    """The linear modules that low-rank factors may update.

    Args:
        base: The base model.

    Returns:
        Modules by full name in the model's order, a classifier's head left out.
    """
    return {name: module for name, module in _linear(base) if not _is_head(base, name)}


def head_modules_of(base: BaseModel) -> dict[str, nn.Module]:
    """The linear modules of a classification head, which adapters replace whole.

    Args:
        base: The base model.

    Returns:
        Modules by full name in the model's order; none for a causal model.
    """
    return {name: module for name, module in _linear(base) if _is_head(base, name)}


def factor_precision(base: BaseModel) -> torch.dtype:
    """The precision of factors: that in which the base's linear modules multiply.

    Args:
        base: The base model.

    Returns:
        bfloat16 where :func:`intarsia_client.base_model.precision` runs the base in it, else the
        precision of the base's weights.
    """
    if base.device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    dtype: torch.dtype = next(base.model.parameters()).dtype
    return dtype


def base_shapes(base: BaseModel, *, max_rank: int = MAX_RANK) -> BaseShapes:
    """What adapters of a base must fit.

    Args:
        base: The base model.
        max_rank: The largest rank that is taken.

    Returns:
        Shapes, device and precision. Parameters of a head that are not a linear module's are not
        among them, so that an adapter that brings such a head is refused.
    """
    modules = linear_modules_of(base)
    head = {
        f"{name}.{short}": tuple(parameter.shape)
        for name, module in head_modules_of(base).items()
        for short, parameter in module.named_parameters(recurse=False)
    }
    return BaseShapes(
        modules={name: _shape(module) for name, module in modules.items()},
        head=head,
        device=base.device,
        dtype=factor_precision(base),
        max_rank=max_rank,
    )


def input_groups(base: BaseModel) -> tuple[tuple[str, ...], ...]:
    """Find out which linear modules see the same input, by running two tokens through the model.

    Args:
        base: The base model; its lock is held meanwhile.

    Returns:
        Every linear module once, in the model's order; those of one group follow one another and
        were given the same tensor object.
    """
    modules = linear_modules_of(base)
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[name] = inputs[0]

        handles.append(module.register_forward_pre_hook(note))

    with base.lock, torch.inference_mode():
        try:
            for name, module in modules.items():
                watch(name, module)
            base.model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=base.device))
        finally:
            for handle in handles:
                handle.remove()
    groups: list[list[str]] = []
    for name in modules:
        last = groups[-1][-1] if groups else None
        if last is not None and name in seen and seen[name] is seen.get(last):
            groups[-1].append(name)
        else:
            groups.append([name])
    return tuple(map(tuple, groups))


def _linear(base: BaseModel) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Linear, Conv1D)
    return [(name, one) for name, one in base.model.named_modules() if isinstance(one, kinds)]


def _is_head(base: BaseModel, name: str) -> bool:
    return base.task == "sequence-classification" and name.split(".")[0] in HEADS


def _shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return int(module.out_features), int(module.in_features)
    d_in, d_out = module.weight.shape  # type: ignore[misc]
    return int(d_out), int(d_in)
