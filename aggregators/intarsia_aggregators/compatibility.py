"""Whether adapters can be aggregated together: weights, bases, shapes, heads and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray

from intarsia_aggregators.sources import ModuleTerms, Source


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
    # Divided by the largest first, since the sum of finite numbers may be infinite.
    largest = max(chosen)
    if largest <= 0.0:
        raise InputError("--weight", largest, "give at least one weight above 0")
    total = math.fsum(weight / largest for weight in chosen)
    return tuple(weight / largest / total for weight in chosen)


def terms_of(sources: Sequence[Source]) -> dict[str, ModuleTerms]:
    """What the sources bring to each module.

    Args:
        sources: At least one.

    Returns:
        From each module that a source has to its terms, by name in sorted order.

    Raises:
        InputError: If there is no module, or one has two shapes.
    """
    names = sorted({name for source in sources for name in source.adapter.modules})
    if not names:
        raise InputError(sources[0].label, "has no modules", "save it with PEFT after training")
    terms = {}
    for name in names:
        found = [(source, source.layout(name)) for source in sources]
        held = [(source, layout) for source, layout in found if layout is not None]
        first, wanted = held[0]
        for source, layout in held:
            if layout.shape != wanted.shape:
                raise InputError(
                    f"{source.label}'s module {name}",
                    layout.shape,
                    f"aggregate adapters of one base model; {first.label} has {wanted.shape}",
                )
        terms[name] = ModuleTerms(name, *zip(*held, strict=True))
    return terms


def check_compatible(sources: Sequence[Source]) -> None:
    """Refuse adapters that do not belong together.

    Args:
        sources: At least one.

    Raises:
        InputError: If they are of two bases or tasks, or have unequal heads.
    """
    first = sources[0].adapter
    heads = {name: head.shape for name, head in first.dense.items()}
    for source in sources[1:]:
        adapter = source.adapter
        if adapter.base != first.base:
            raise InputError(
                f"{source.label}'s base model", adapter.base, f"aggregate adapters of {first.base}"
            )
        if adapter.task != first.task or adapter.fan_in_fan_out != first.fan_in_fan_out:
            raise InputError(
                f"{source.label}'s task", adapter.task, f"aggregate adapters of {first.task}"
            )
        if {name: head.shape for name, head in adapter.dense.items()} != heads:
            raise InputError(
                f"{source.label}'s head",
                sorted(adapter.dense),
                "aggregate adapters with the same labels",
            )


def check_for_means(
    method: str, sources: Sequence[Source], modules: Mapping[str, ModuleTerms]
) -> None:
    """Refuse what a mean of factors has no place for.

    Args:
        method: ``"fedit"`` or ``"hetlora"``.
        sources: At least one.
        modules: From :func:`terms_of`.

    Raises:
        InputError: If a source lacks a module, or for FedIT has another rank or scaling.
    """
    for name, terms in modules.items():
        for source in sources:
            if source not in terms.sources:
                raise InputError(
                    f"{source.label}: module {name}",
                    f"missing, which {method} cannot average",
                    "use ledger",
                )
        first = terms.layouts[0]
        for source, layout in zip(terms.sources, terms.layouts, strict=True):
            if method == "fedit" and layout != first:
                raise InputError(
                    f"{source.label}: module {name}",
                    f"rank {layout.rank}, scaling {layout.scaling:g}",
                    f"{method} averages equal ones, {terms.sources[0].label} has {first.rank} and "
                    f"{first.scaling:g}; use ledger",
                )


def averaged_heads(sources: Sequence[Source]) -> dict[str, FloatArray]:
    """Weighted means of the heads' tensors.

    Args:
        sources: At least one, all with the same head.

    Returns:
        The tensors by name.

    Raises:
        InputError: If a number is not finite.
    """
    heads: dict[str, FloatArray] = {}
    for name, like in sources[0].adapter.dense.items():
        total = np.zeros(like.shape, dtype=np.float64)
        for source in sources:
            try:
                total += source.share * source.adapter.dense[name].astype(np.float64)
            except InputError as error:
                raise InputError(
                    f"{source.label}: {error.thing}", error.value, error.remedy
                ) from None
        heads[name] = total.astype(np.float32)
    return heads
