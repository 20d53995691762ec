"""Rows in which each module divides each token among several adapters: Arrow and LAG at work.

Every row meets its own adapters alone, at their true ranks, row by row; what they listen to is read
off each one's own factors. The products are a mixture's, with a gate for each token in the place of
a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from intarsia_continual.layerwise import ROUTERS, SpectralRows, rows_of
from torch import Tensor

from intarsia_platform.serving.banked_adapter import BankedAdapter
from intarsia_platform.serving.mixture import Routed
from intarsia_platform.serving.segment_kernel import Scratch
from intarsia_platform.serving.shared_input import add_sums, summed_into, three_dimensional
from intarsia_platform.serving.slots import Group


class Spectra:
    """What adapters listen to in each module, computed when a routed row first needs it."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, SpectralRows]] = {}

    @property
    def size(self) -> int:
        """Bytes kept."""
        found = [one.rows for modules in self._rows.values() for one in modules.values()]
        return sum(one.numel() * one.element_size() for one in found)

    def of(self, adapter: BankedAdapter, module: str) -> SpectralRows:
        """What an adapter listens to in a module that it adapts."""
        modules = self._rows.setdefault(adapter.digest, {})
        if module not in modules:
            modules[module] = rows_of(adapter.a[module], adapter.b[module])
        return modules[module]

    def forget(self, digest: str) -> None:
        """Drop an adapter."""
        self._rows.pop(digest, None)

    def clear(self) -> None:
        """Drop everything."""
        self._rows.clear()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """One row's adapters in one module, by digest as the gates are.

    Args:
        row: The row.
        routing: The router.
        library: What each listens to.
        ranks: Their ranks.
        a: Their A, shape (rank, d_in) each.
        b: Their B, transposed, shape (rank, d_out) each.
    """

    row: int
    routing: str
    library: Mapping[str, SpectralRows]
    ranks: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]


class RoutedKernel:
    """Adds what each token takes of its row's adapters.

    Args:
        group: The modules.
        rows: Of each row that is routed its mixture.
        dtype: The factors' precision.
        scratch: Where factors are joined.
        spectra: What adapters listen to.
    """

    def __init__(
        self,
        group: Group,
        rows: Mapping[int, Routed],
        dtype: torch.dtype,
        scratch: Scratch,
        spectra: Spectra,
    ) -> None:
        self._dtype, self._scratch = dtype, scratch
        self._parts: tuple[Sequence[_Part], ...] = tuple(
            [
                _part(row, mixture, name, spectra)
                for row, mixture in rows.items()
                if any(name in adapter.a for adapter, _ in mixture)
            ]
            for name in group
        )

    def add(self, position: int, x: Tensor, y: Tensor) -> None:
        """Add to a module's output; see :class:`GroupKernel`."""
        sums = summed_into(y, self._dtype)
        inputs, outputs = three_dimensional(x), three_dimensional(sums)
        for part in self._parts[position]:
            own = inputs[part.row].to(self._dtype)
            gates = ROUTERS[part.routing](own, part.library, part.library).weights
            between = torch.mm(own, self._scratch.joined(part.a).t())
            between *= gates.to(self._dtype).repeat_interleave(part.ranks, dim=1)
            outputs[part.row].addmm_(between, self._scratch.joined(part.b))
        add_sums(y, sums)


def _part(row: int, mixture: Routed, module: str, spectra: Spectra) -> _Part:
    # In the order of the digests, as mixtures and gates are.
    having = [adapter for adapter, _ in mixture if module in adapter.a]
    device = having[0].a[module].device
    return _Part(
        row=row,
        routing=mixture.routing,
        library={adapter.digest: spectra.of(adapter, module) for adapter in having},
        ranks=torch.tensor([adapter.ranks[module] for adapter in having], device=device),
        a=tuple(adapter.a[module] for adapter in having),
        b=tuple(adapter.b[module].T for adapter in having),
    )
