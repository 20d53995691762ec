"""Several tokens a row: each row meets its own mixture's factors, at their true ranks.

No product of another row's adapter is ever computed for a row, so that not even a number that is
not finite can cross from one row to another. A request's first call starts with what the bank
holds; nothing is prepared for it.

Multi-adapter kernels: Chen et al. 2023 (Punica, arXiv:2310.18547), Sheng et al. 2023 (S-LoRA,
arXiv:2311.03285). Mixtures are exact: ranks are concatenated, factors never averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from intarsia_platform.serving.mixture import Mixture
from intarsia_platform.serving.shared_input import (
    SharedInput,
    add_sums,
    summed_into,
    three_dimensional,
)
from intarsia_platform.serving.slots import Group
from intarsia_platform.serving.token_router import TokenRouter


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """What one row multiplies its input by, in all modules of a group.

    Args:
        a: A factors one under the other, module by module and adapter by adapter; shape (summed
            rank, d_in) once joined. A single entry needs no joining.
        b: Of each module the adapters' B, transposed, shape (rank, d_out) each.
        spans: Which rows of the joined A are each module's.
        weights: The factor before each row of the joined A, or None for ones.
    """

    a: tuple[Tensor, ...]
    b: tuple[tuple[Tensor, ...], ...]
    spans: tuple[tuple[int, int], ...]
    weights: Tensor | None


def segment_of(group: Group, mixture: Mixture) -> Segment | None:
    """A mixture's factors for a group, without a copy.

    Args:
        group: The modules.
        mixture: The mixture.

    Returns:
        The segment, or None where the mixture has no factors for these modules.
    """
    having = [(one, weight) for one, weight in mixture if any(name in one.a for name in group)]
    if not having:
        return None
    parts = [[(one, weight) for one, weight in having if name in one.a] for name in group]
    ranks = [[one.ranks[name] for one, _ in own] for name, own in zip(group, parts, strict=True)]
    ends = list(accumulate(map(sum, ranks)))
    weights = [
        weight
        for own, counts in zip(parts, ranks, strict=True)
        for (_, weight), rank in zip(own, counts, strict=True)
        for _ in range(rank)
    ]
    if len(having) == 1:
        a: tuple[Tensor, ...] = (having[0][0].stacked_a(group),)
    else:
        a = tuple(one.a[n] for n, own in zip(group, parts, strict=True) for one, _ in own)
    plain = all(weight == 1.0 for weight in weights)
    return Segment(
        a=a,
        b=tuple(
            tuple(one.b[name].T for one, _ in own) for name, own in zip(group, parts, strict=True)
        ),
        spans=tuple(zip([0, *ends[:-1]], ends, strict=True)),
        weights=None if plain else a[0].new_tensor(weights),
    )


class Scratch:
    """Memory in which a mixture's factors are joined for the length of one product.

    A mixture of several adapters is joined anew in every call with several tokens a row: that costs
    a few per cent of the product, and memory for one mixture and module group, not for a batch.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Matrices of one width, one under the other.

        Args:
            parts: The matrices.

        Returns:
            Themselves, or a copy that holds until the next call.
        """
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        rank, width = sum(len(part) for part in parts), first.shape[1]
        memory = self._memory
        if memory is None or memory.numel() < rank * width:
            with torch.inference_mode(False):
                memory = self._memory = first.new_empty(rank * width)
        whole = memory[: rank * width].view(rank, width)
        torch.cat(list(parts), out=whole)
        return whole

    def clear(self) -> None:
        """Give the memory back."""
        self._memory = None


class SegmentKernel:
    """Segments over several tokens a row: matrix products at true ranks.

    Args:
        group: The modules.
        rows: The segment of each row, or None.
        routers: Of each row whose tokens are divided its router, whose gates are its weights.
        dtype: The factors' precision.
        scratch: Where mixtures are joined.
    """

    def __init__(
        self,
        group: Group,
        rows: Sequence[Segment | None],
        routers: Mapping[int, TokenRouter],
        dtype: torch.dtype,
        scratch: Scratch,
    ) -> None:
        self._shared = SharedInput(len(group))
        self._dtype = dtype
        self._scratch = scratch
        self._segments = [(row, one) for row, one in enumerate(rows) if one is not None]
        self._routers = routers
        self._between: list[Tensor] = []

    def add(self, position: int, x: Tensor, y: Tensor) -> None:
        """Add to a module's output; see :class:`GroupKernel`."""
        if self._shared.is_new(position, x):
            inputs = three_dimensional(x).to(self._dtype).unbind(0)
            self._between = [self._first(row, inputs[row], one) for row, one in self._segments]
        sums = summed_into(y, self._dtype)
        outputs = three_dimensional(sums).unbind(0)
        for (row, one), between in zip(self._segments, self._between, strict=True):
            if one.b[position]:
                begin, end = one.spans[position]
                outputs[row].addmm_(between[:, begin:end], self._scratch.joined(one.b[position]))
        add_sums(y, sums)
        if self._shared.is_last(position):
            self._between = []

    def _first(self, row: int, x: Tensor, segment: Segment) -> Tensor:
        between = torch.mm(x, self._scratch.joined(segment.a).t())
        if row in self._routers:
            return between.mul_(self._routers[row].rank_weights(x).to(between.dtype))
        return between if segment.weights is None else between.mul_(segment.weights)
