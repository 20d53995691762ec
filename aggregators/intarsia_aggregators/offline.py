"""Aggregation of adapters that lie on disk: the exact stack, or its best approximation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

from intarsia_aggregators.factors import (
    Decomposition,
    Term,
    cut_energy,
    decompose,
    stack,
    truncated,
    without_rounding,
)


@dataclass(frozen=True, kw_only=True)
class OfflineAggregate:
    """The result of :func:`aggregate_adapters`.

    Args:
        adapter: The sum.
        weights: The normalised weights, in the adapters' order.
        cut: Per module, the share of the squared Frobenius norm that was cut; 0 where exact.
    """

    adapter: Adapter
    weights: tuple[float, ...]
    cut: dict[str, float]


def normalised_weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """Weights that sum to 1.

    Args:
        weights: One a source, or none for equal weights.
        count: Number of sources.

    Returns:
        The weights divided by their sum.

    Raises:
        InputError: If there are none or too many sources for them, or one is negative or not
            finite, or all are zero.
    """
    if count < 1:
        raise InputError("adapters", count, "name at least one adapter directory")
    chosen = list(weights) or [1.0] * count
    if len(chosen) != count:
        raise InputError("--weight", f"{len(chosen)} for {count} adapters", "give one each")
    for weight in chosen:
        if not math.isfinite(weight) or weight < 0.0:
            raise InputError("--weight", weight, "give a finite number that is not negative")
    total = math.fsum(chosen)
    if total <= 0.0 or not math.isfinite(total):
        raise InputError("--weight", total, "give at least one weight above 0")
    return tuple(weight / total for weight in chosen)


def aggregate_adapters(
    adapters: Sequence[Adapter], *, weights: Sequence[float] = (), rank: int | None = None
) -> OfflineAggregate:
    """Weighted sum of the products of several adapters of one base.

    Args:
        adapters: The adapters; modules that one of them lacks count as zero there.
        weights: One weight each; equal where empty; normalised to sum to 1.
        rank: None for the exact sum at the summed rank; else the best approximation of this rank,
            module by module.

    Returns:
        The sum and what was cut.

    Raises:
        InputError: If the weights do not fit or the adapters do not belong together.
    """
    shares = normalised_weights(weights, len(adapters))
    if rank is not None and rank < 1:
        raise InputError("--rank", rank, "give a rank of at least 1")
    _check_compatible(adapters)
    modules: dict[str, LowRankFactors] = {}
    cut: dict[str, float] = {}
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        terms = [
            Term(weight=share, factors=adapter.modules[name])
            for share, adapter in zip(shares, adapters, strict=True)
            if name in adapter.modules
        ]
        modules[name], cut[name] = _module(terms, rank)
    heads = {
        name: _average([adapter.dense[name] for adapter in adapters], shares)
        for name in adapters[0].dense
    }
    result = replace(adapters[0], modules=modules, dense=heads)
    return OfflineAggregate(adapter=result, weights=shares, cut=cut)


def _module(terms: Sequence[Term], rank: int | None) -> tuple[LowRankFactors, float]:
    b, a = stack(terms)
    if rank is None:
        return LowRankFactors(
            a=a.numpy().astype(np.float32), b=b.numpy().astype(np.float32), scaling=1.0
        ), 0.0
    whole: Decomposition = without_rounding(decompose(b, a))
    return truncated(whole, rank).balanced(), cut_energy(whole, rank)


def _average(tensors: Sequence[FloatArray], shares: Sequence[float]) -> FloatArray:
    total = np.zeros(tensors[0].shape, dtype=np.float64)
    for share, tensor in zip(shares, tensors, strict=True):
        total += share * tensor.astype(np.float64)
    mean: FloatArray = total.astype(np.float32)
    return mean


def _check_compatible(adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for number, adapter in enumerate(adapters[1:], start=2):
        thing = f"adapter {number}"
        if adapter.base != first.base:
            raise InputError(
                f"{thing}'s base model", adapter.base, f"aggregate adapters of {first.base}"
            )
        if adapter.task != first.task or adapter.fan_in_fan_out != first.fan_in_fan_out:
            raise InputError(f"{thing}'s task", adapter.task, f"aggregate adapters of {first.task}")
        if {name: t.shape for name, t in adapter.dense.items()} != {
            name: t.shape for name, t in first.dense.items()
        }:
            raise InputError(
                f"{thing}'s head", sorted(adapter.dense), "aggregate adapters with the same labels"
            )
        for name, factors in adapter.modules.items():
            if name in first.modules and factors.shape != first.modules[name].shape:
                raise InputError(
                    f"{thing}'s module {name}",
                    factors.shape,
                    f"aggregate adapters of one base model; adapter 1 has "
                    f"{first.modules[name].shape}",
                )
