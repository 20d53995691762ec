"""Aggregation of adapters that lie on disk, module by module.

There is no start to subtract: what each adapter means is its scaled product, and the result is
their weighted sum, exact at the summed rank or its best approximation at a bounded one. One module
of all adapters is in memory at most, and where even that is too much, parts of it; so memory does
not grow with the adapters' number or depth. Modules are worked on side by side, one a thread, as
far as the memory goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from intarsia_client.errors import InputError
from intarsia_client.opened import ModuleLayout
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_client.written import AdapterWriter

from intarsia_aggregators.catalog import find_method
from intarsia_aggregators.compatibility import (
    averaged_heads,
    check_compatible,
    check_for_means,
    normalised_weights,
    terms_of,
)
from intarsia_aggregators.merging import (
    MEMORY,
    MergedModule,
    approximated,
    by_rule,
    stacked_rows,
    working_bytes,
)
from intarsia_aggregators.sources import ModuleTerms, Source, Workspace
from intarsia_aggregators.workers import side_by_side

LEDGER = "ledger"
OFFLINE_METHODS = (LEDGER, "fedit", "hetlora", "flexlora")
"""The catalogue's methods that folders can be aggregated by."""

# Why the others cannot: folders have no rounds, starts or frozen factors.
_REASONS = {
    "flora": "is the exact sum where nothing came before",
    "fedex-lora": "keeps what the means miss beside them",
    "ffa-lora": "needs a frozen factor that all share",
    "rolora": "needs a frozen factor that all share",
    "fedsa-lora": "makes no global adapter",
    "fedavg": "averages heads alone",
}

Progress = Callable[[int, int], None]
"""Told how many modules of how many are done."""


@dataclass(frozen=True, kw_only=True)
class OfflineAggregate:
    """The result of :func:`aggregate_adapters`.

    Args:
        adapter: The sum.
        weights: The normalised weights, in the adapters' order.
        cut: Per module, the share of the squared Frobenius norm that was cut; 0 where exact. Empty
            for methods that do not form the sum.
    """

    adapter: Adapter
    weights: tuple[float, ...]
    cut: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class OfflineReport:
    """What :func:`write_sum` wrote.

    Args:
        digest: The adapter's digest.
        rank: The largest rank of a module.
        cut: As in :class:`OfflineAggregate`.
        cut_total: Share of all modules' squared norm together that was cut; None for methods that
            do not form the sum.
    """

    digest: str
    rank: int
    cut: dict[str, float]
    cut_total: float | None


def check_offline_method(name: str) -> None:
    """Refuse a method that cannot be used on folders.

    Args:
        name: Its name in the catalogue.

    Raises:
        InputError: If there is none of that name, or it needs a federation; with the reason.
    """
    if find_method(name).name not in OFFLINE_METHODS:
        reason = _REASONS.get(name, "needs a federation's rounds")
        raise InputError("--method", f"{name} {reason}", f"use {LEDGER} for folders")


class OfflineSum:
    """What is to be summed, checked; of the factors nothing is read yet.

    Args:
        adapters: The adapters, opened or in memory; modules that one of them lacks count as zero
            there.
        labels: What each is called in messages; ``adapter 1`` and so on where empty.
        weights: One weight each; equal where empty; normalised to sum to 1.
        rank: None for the exact sum at the summed rank; else the best approximation of this rank,
            module by module.
        method: A name from :data:`OFFLINE_METHODS`.

    Raises:
        InputError: If the weights or the rank do not fit, the adapters do not belong together, or
            the method cannot take them.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        *,
        labels: Sequence[str] = (),
        weights: Sequence[float] = (),
        rank: int | None = None,
        method: str = LEDGER,
    ) -> None:
        self.weights = normalised_weights(weights, len(adapters))
        check_offline_method(method)
        if rank is not None and rank < 1:
            raise InputError("--rank", rank, "give a rank of at least 1")
        if rank is not None and method != LEDGER:
            raise InputError("--rank", f"{rank} with {method}", f"use it with {LEDGER} alone")
        names = list(labels) or [f"adapter {number}" for number in range(1, len(adapters) + 1)]
        self._sources = [
            Source(label=label, share=share, adapter=adapter)
            for label, share, adapter in zip(names, self.weights, adapters, strict=True)
        ]
        check_compatible(self._sources)
        self._method = method
        self._terms = terms_of(self._sources)
        largest = max(max(terms.ranks) for terms in self._terms.values())
        self._rank = largest if method == "flexlora" else rank
        if method in ("fedit", "hetlora"):
            check_for_means(method, self._sources, self._terms)
        self.like = replace(adapters[0], modules={}, dense=averaged_heads(self._sources))
        self.layouts = {name: self._layout(terms) for name, terms in self._terms.items()}

    @property
    def is_sum(self) -> bool:
        """Whether the result is the sum of the products or an approximation of it."""
        return self._method in (LEDGER, "flexlora")

    @property
    def is_exact(self) -> bool:
        """Whether the result is the stack itself."""
        return self.is_sum and self._rank is None

    def merged(self, name: str, workspace: Workspace) -> MergedModule:
        """Form one module in memory.

        Args:
            name: The module.
            workspace: Memory to use.

        Returns:
            The module.

        Raises:
            InputError: If a number, a source's product or the result is not finite.
        """
        terms = self._terms[name]
        if not self.is_sum:
            return by_rule(find_method(self._method).rule, terms)
        if self._rank is not None:
            return approximated(terms, self._rank, workspace)
        a = np.empty((terms.rank, terms.shape[1]), dtype=np.float32)
        b = np.empty((terms.shape[0], terms.rank), dtype=np.float32)
        for side, first_row, values in stacked_rows(terms, workspace):
            (a if side == "A" else b)[first_row : first_row + len(values)] = values
        return MergedModule(factors=LowRankFactors(a=a, b=b, scaling=1.0))

    def write(self, name: str, writer: AdapterWriter, workspace: Workspace) -> tuple[float, float]:
        """Form one module and write it.

        Args:
            name: The module.
            writer: A writer of these :attr:`layouts`.
            workspace: Memory to use.

        Returns:
            Squared Frobenius norm of the whole, and of what was kept; 0 where not known.

        Raises:
            InputError: As :meth:`merged`.
            OSError: If the disk is full.
        """
        if self.is_exact:
            for side, first_row, values in stacked_rows(self._terms[name], workspace):
                writer.write_rows(name, side, values, first_row)
            return 0.0, 0.0
        merged = self.merged(name, workspace)
        writer.write_module(name, merged.factors.a, merged.factors.b)
        return merged.energy, merged.kept

    @property
    def workers(self) -> int:
        """How many modules may be worked on at a time: one a thread, as far as memory goes."""
        largest = max(working_bytes(terms, self._rank) for terms in self._terms.values())
        return max(1, min(torch.get_num_threads(), MEMORY // max(largest, 1)))

    def _layout(self, terms: ModuleTerms) -> ModuleLayout:
        if self._method == "fedit":
            return terms.layouts[0]
        rank = terms.rank if self._rank is None else min(self._rank, terms.rank, *terms.shape)
        if self._method == "hetlora":
            rank = max(terms.ranks)
        return ModuleLayout(rank=rank, shape=terms.shape, scaling=1.0)


def aggregate_adapters(
    adapters: Sequence[Adapter],
    *,
    labels: Sequence[str] = (),
    weights: Sequence[float] = (),
    rank: int | None = None,
    method: str = LEDGER,
) -> OfflineAggregate:
    """Aggregate adapters of one base into one that is in memory.

    Args:
        adapters: As in :class:`OfflineSum`, like the other arguments.
        labels: What each is called in messages.
        weights: One weight each.
        rank: None for the exact sum.
        method: A name from :data:`OFFLINE_METHODS`.

    Returns:
        The sum and what was cut.

    Raises:
        InputError: As :class:`OfflineSum`; or if a number or a product is not finite.
    """
    whole = OfflineSum(adapters, labels=labels, weights=weights, rank=rank, method=method)
    modules, cut = {}, {}
    for name, merged in side_by_side(whole.merged, whole.layouts, whole.workers, memory=MEMORY):
        modules[name] = merged.factors
        if whole.is_sum:
            cut[name] = merged.cut
    return OfflineAggregate(
        adapter=replace(whole.like, modules=modules), weights=whole.weights, cut=cut
    )


def write_sum(whole: OfflineSum, folder: Path, progress: Progress | None = None) -> OfflineReport:
    """Aggregate adapters into the files of a PEFT adapter, module by module.

    Args:
        whole: What to sum.
        folder: An existing folder to write into; best one of
            :func:`intarsia_client.files.atomic_directory`, so that nothing half-written is seen.
        progress: Told after each module.

    Returns:
        What was written.

    Raises:
        InputError: If a number or a product is not finite.
        OSError: If the disk is full.
    """
    energies: dict[str, tuple[float, float]] = {}
    with AdapterWriter(folder, whole.like, whole.layouts) as writer:

        def write(name: str, workspace: Workspace) -> tuple[float, float]:
            return whole.write(name, writer, workspace)

        for name, energy in side_by_side(write, whole.layouts, whole.workers, memory=MEMORY):
            energies[name] = energy
            if progress is not None:
                progress(len(energies), len(whole.layouts))
        digest = writer.finish()
        rank = writer.rank
    cut = {name: _share(*energy) for name, energy in energies.items()} if whole.is_sum else {}
    total = math.fsum(energy for energy, _ in energies.values())
    kept = math.fsum(kept for _, kept in energies.values())
    return OfflineReport(
        digest=digest, rank=rank, cut=cut, cut_total=_share(total, kept) if whole.is_sum else None
    )


def _share(energy: float, kept: float) -> float:
    return max(energy - kept, 0.0) / energy if energy > 0.0 else 0.0
