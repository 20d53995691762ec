"""What each token of a routed row takes of the row's adapters: Arrow and LAG at work.

The kernels multiply a routed row by its own adapters as they do any mixture; only that the factor
before each adapter's product is not the request's weight, but a gate for each token and module.
What an adapter listens to is read off its own factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from intarsia_continual.layerwise import ROUTERS, SpectralRows, rows_of
from torch import Tensor

from intarsia_platform.serving.banked_adapter import BankedAdapter
from intarsia_platform.serving.mixture import Mixture, Routed
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


RouterLayout = tuple[str, int, tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]]
"""A router's name, how many adapters the row has, and of each module how many directions are heard
of which of them: rows for which these are equal are divided together."""


class TokenRouter:
    """Divides a row's tokens among its adapters, in the modules of a group.

    Args:
        group: The modules; at least one of the adapters has factors for one of them.
        mixture: The row's adapters.
        spectra: What adapters listen to.
    """

    def __init__(self, group: Group, mixture: Routed, spectra: Spectra) -> None:
        heard = ROUTERS[mixture.routing].heard
        rows, modules, columns = [], [], []
        for position, name in enumerate(group):
            having = [part for part, (one, _) in enumerate(mixture) if name in one.a]
            directions = [heard(spectra.of(mixture[part][0], name)) for part in having]
            rows += directions
            modules.append((tuple(map(len, directions)), tuple(having)))
            for part in having:
                columns += [position * len(mixture) + part] * mixture[part][0].ranks[name]
        self.layout: RouterLayout = (mixture.routing, len(mixture), tuple(modules))
        self._rows = torch.cat(rows).t()
        self._columns = torch.tensor(columns, device=self._rows.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._rows.device

    def heard(self, x: Tensor) -> Tensor:
        """Tokens' products with what the adapters listen to, module by module.

        Args:
            x: Shape (tokens, d_in).

        Returns:
            Shape (tokens, directions of all modules and adapters), float32.
        """
        return torch.mm(x.float(), self._rows)

    def rank_weights(self, x: Tensor) -> Tensor:
        """What goes before the product of each row of the adapters' A, one under the other.

        Args:
            x: Shape (tokens, d_in).

        Returns:
            Shape (tokens, summed rank), module by module and adapter by adapter, float32.
        """
        gates = divided(self.layout, self.heard(x))
        return gates.flatten(1).index_select(1, self._columns)


def divided(layout: RouterLayout, heard: Tensor) -> Tensor:
    """The gates of tokens.

    Args:
        layout: Their rows'.
        heard: What :meth:`TokenRouter.heard` gave; shape (tokens, directions).

    Returns:
        Shape (tokens, modules, adapters), zero where an adapter lacks a module, float32.
    """
    routing, adapters, modules = layout
    gates = heard.new_zeros(len(heard), len(modules), adapters)
    parts = torch.split(heard, [sum(counts) for counts, _ in modules], dim=1)
    for module, (part, (counts, having)) in enumerate(zip(parts, modules, strict=True)):
        if len(having) == adapters:
            gates[:, module] = ROUTERS[routing].gates(part, counts)
        elif having:
            gates[:, module, list(having)] = ROUTERS[routing].gates(part, counts)
    return gates


class TokenWeights:
    """What goes before each adapter of each row in a batch with one token a row.

    That is gates for rows whose tokens are divided, and weights for the others.

    Args:
        routers: Of each routed row its router.
        mixtures: Of each row.
        modules: Modules of the group.
        dtype: The factors' precision.
    """

    def __init__(
        self,
        routers: Mapping[int, TokenRouter],
        mixtures: Sequence[Mixture],
        modules: int,
        dtype: torch.dtype,
    ) -> None:
        device = next(iter(routers.values())).device
        shape = len(mixtures), max(map(len, mixtures)), modules
        self._table = torch.zeros(shape, dtype=dtype, device=device)
        for row, mixture in enumerate(mixtures):
            for part, (_, weight) in enumerate(mixture):
                self._table[row, part] = weight
        alike: dict[RouterLayout, list[int]] = {}
        for row, router in routers.items():
            alike.setdefault(router.layout, []).append(row)
        self._alike = [
            (layout, [(row, routers[row]) for row in own], torch.tensor(own, device=device))
            for layout, own in alike.items()
        ]

    def of(self, x: Tensor) -> Tensor:
        """The weights for an input.

        Args:
            x: Shape (rows, d_in).

        Returns:
            Shape (rows, the most adapters of a row, modules).
        """
        for layout, own, rows in self._alike:
            heard = torch.cat([router.heard(x[row : row + 1]) for row, router in own])
            gates = divided(layout, heard).transpose(1, 2)
            self._table[rows, : gates.shape[1]] = gates.to(self._table.dtype)
        return self._table
