"""One token a row over few adapters: all of them in one matrix, and a mask.

``y += ((x A') * mask) B'``: each adapter of the batch lies once in A and B, every row is multiplied
by all of it, and the mask keeps what is the row's own. One multiplication instead of many small
ones; it pays while the summed rank is small. Products of other rows' adapters are computed and
multiplied by zero, so this kernel is for batches where only finite factors can occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia_platform.serving.banked_adapter import BankedAdapter
from intarsia_platform.serving.mixture import Mixture
from intarsia_platform.serving.shared_input import (
    SharedInput,
    add_sums,
    summed_into,
    two_dimensional,
)
from intarsia_platform.serving.slots import Group
from intarsia_platform.serving.token_router import TokenWeights


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedFactors:
    """Adapters of a batch side by side, for one group.

    Args:
        a: Shape (summed rank over modules and adapters, d_in), module by module.
        b: Each module's B of all adapters, shape (summed rank, d_out), or None.
        spans: Which rows of ``a`` are each module's.
        columns: From digest to the rows of ``a`` that are the adapter's in each module.
    """

    a: Tensor
    b: tuple[Tensor | None, ...]
    spans: tuple[tuple[int, int], ...]
    columns: Mapping[str, tuple[tuple[int, int], ...]]


def packed_factors(group: Group, adapters: Sequence[BankedAdapter]) -> PackedFactors:
    """Pack adapters for a group.

    Args:
        group: The modules.
        adapters: The batch's adapters, each once; at least one has factors for these modules.

    Returns:
        Copies side by side.
    """
    a: list[Tensor] = []
    b: list[Tensor | None] = []
    columns: dict[str, list[tuple[int, int]]] = {one.digest: [] for one in adapters}
    spans, at = [], 0
    for name in group:
        begin = at
        having = [one for one in adapters if name in one.a]
        for one in adapters:
            end = at + one.ranks.get(name, 0)
            columns[one.digest].append((at, end))
            at = end
        a += [one.a[name] for one in having]
        b.append(torch.cat([one.b[name].T for one in having]) if having else None)
        spans.append((begin, at))
    frozen = {digest: tuple(found) for digest, found in columns.items()}
    return PackedFactors(a=torch.cat(a), b=tuple(b), spans=tuple(spans), columns=frozen)


class PackedKernel:
    """Packed factors and a mask over one token a row.

    Args:
        group: The modules.
        packed: The factors of all adapters of the batch.
        rows: Each row's mixture.
        token_weights: What is computed for each token, where any is divided by a router.
    """

    def __init__(
        self,
        group: Group,
        packed: PackedFactors,
        rows: Sequence[Mixture],
        token_weights: TokenWeights | None = None,
    ) -> None:
        self._shared = SharedInput(len(group))
        with torch.inference_mode(False):
            between = packed.a.new_empty(len(rows), len(packed.a))
        self._a, self._between = packed.a.t(), between
        self._parts = [
            None if b is None else (between[:, begin:end], b)
            for b, (begin, end) in zip(packed.b, packed.spans, strict=True)
        ]
        mask = torch.zeros(len(rows), len(packed.a), dtype=packed.a.dtype)
        # Where in a row of token weights each column's is.
        places = torch.zeros(mask.shape, dtype=torch.long)
        for row, mixture in enumerate(rows):
            for part, (adapter, weight) in enumerate(mixture):
                for module, (begin, end) in enumerate(packed.columns[adapter.digest]):
                    mask[row, begin:end] = weight if token_weights is None else 1.0
                    places[row, begin:end] = part * len(group) + module
        self._mask = mask.to(packed.a.device)
        self._token_weights, self._places = token_weights, places.to(packed.a.device)

    def add(self, position: int, x: Tensor, y: Tensor) -> None:
        """Add to a module's output; see :class:`GroupKernel`."""
        if self._shared.is_new(position, x):
            inputs = two_dimensional(x)
            torch.mm(inputs.to(self._a.dtype), self._a, out=self._between)
            self._between.mul_(self._mask)
            if self._token_weights is not None:
                self._between.mul_(
                    self._token_weights.of(inputs).flatten(1).gather(1, self._places)
                )
        part = self._parts[position]
        if part is not None:
            between, b = part
            sums = summed_into(y, b.dtype)
            two_dimensional(sums).addmm_(between, b)
            add_sums(y, sums)
        self._shared.is_last(position)
