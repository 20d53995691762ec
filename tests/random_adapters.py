"""Adapters that tests need: random, and large enough to matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def random_adapter(
    base: Any,
    rank: int | Callable[[int], int],
    *,
    seed: int = 0,
    scaling: float = 1.5,
    size: float = 0.3,
) -> Any:
    """An adapter of all linear modules of a base.

    Args:
        base: The base model.
        rank: The rank, or from a module's place to its own; a module of rank 0 is left out.
        seed: What the factors follow from.
        scaling: LoRA's scaling.
        size: How large B is.
    """
    from intarsia_client.base_model import head_tensors, linear_modules
    from intarsia_client.wire import Adapter, LowRankFactors

    generator = np.random.default_rng(seed)
    modules = {}
    for index, (name, (d_out, d_in)) in enumerate(linear_modules(base, "all-linear").items()):
        own = rank(index) if callable(rank) else rank
        if own:
            modules[name] = LowRankFactors(
                a=generator.normal(0, d_in**-0.5, (own, d_in)).astype(np.float32),
                b=generator.normal(0, size * own**-0.5, (d_out, own)).astype(np.float32),
                scaling=scaling,
            )
    dense = {
        name: (tensor + generator.normal(0, 0.1, tensor.shape)).astype(np.float32)
        for name, tensor in head_tensors(base).items()
    }
    return Adapter(
        base=base.base,
        task=base.task,
        modules=modules,
        dense=dense,
        fan_in_fan_out=base.fan_in_fan_out,
    )
