"""What a batch computes: one mixture a row, and the kernels that it is computed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from intarsia_platform.serving.banked_adapter import BankedAdapter
from intarsia_platform.serving.heads import HeadKernel
from intarsia_platform.serving.mixture import Mixture, Routed
from intarsia_platform.serving.packed_kernel import PackedFactors, PackedKernel, packed_factors
from intarsia_platform.serving.segment_kernel import Scratch, SegmentKernel, segment_of
from intarsia_platform.serving.shared_input import GroupKernel
from intarsia_platform.serving.slot_kernel import Layouts, SlotKernel
from intarsia_platform.serving.slots import Group, GroupSlots, Ranks, Wanted, ranks_in, wanted_of
from intarsia_platform.serving.token_router import Spectra, TokenRouter, TokenWeights

PACKED_RANK = 150


class NoUpdate:
    """The kernel of a group that no row's mixture changes."""

    def add(self, position: int, x: Tensor, y: Tensor) -> None:
        """Leave the output as it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPlan:
    """What :meth:`ServedBase.plan` made of a batch's mixtures. It holds no lock and can be kept.

    Args:
        mixtures: Of each row.
        strict: Whether only segments are used.
        packed: Whether one token a row goes through the packed kernel.
        copies: Copies of factors that plans share.
        dtype: Precision of the factors.
    """

    mixtures: tuple[Mixture, ...]
    strict: bool
    packed: bool
    copies: FactorCopies
    dtype: torch.dtype
    _kernels: dict[tuple[Group, bool], GroupKernel] = field(default_factory=dict, repr=False)
    _heads: dict[str, HeadKernel] = field(default_factory=dict, repr=False)
    _wanted: dict[tuple[Ranks, ...], Wanted] = field(default_factory=dict, repr=False)
    _layouts: Layouts = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.mixtures)

    def kernel(self, group: Group, widths: Sequence[int], x: Tensor) -> GroupKernel:
        """The kernel that adds this batch's updates to a group of modules.

        Args:
            group: Modules that share an input.
            widths: Their output widths.
            x: That input, shape (rows, tokens, d_in) or (rows, d_in).

        Returns:
            The kernel, made when it is first asked for.
        """
        single = x.dim() == 2 or x.shape[1] == 1
        kernel = self._kernels.get((group, single))
        if kernel is None:
            # Ordinary tensors, which may be written to in and outside inference mode.
            with torch.inference_mode(False), torch.no_grad():
                kernel = self._single(group, widths) if single else self._several(group)
            self._kernels[group, single] = kernel
        return kernel

    def head(self, name: str, module: nn.Module) -> HeadKernel:
        """The kernel that replaces a head module's outputs.

        Args:
            name: The module's full name.
            module: The base's module.

        Returns:
            The kernel, made when it is first asked for.
        """
        if name not in self._heads:
            self._heads[name] = HeadKernel(name, module, self.mixtures)
        return self._heads[name]

    def _several(self, group: Group) -> GroupKernel:
        rows = [segment_of(group, mixture) for mixture in self.mixtures]
        if not any(rows):
            return NoUpdate()
        return SegmentKernel(group, rows, self._routers(group), self.dtype, self.copies.scratch)

    def _single(self, group: Group, widths: Sequence[int]) -> GroupKernel:
        ranks = ranks_in(group, self.mixtures)
        if not any(map(any, ranks)):
            return NoUpdate()
        routers = self._routers(group)
        weights = TokenWeights(routers, self.mixtures, len(group), self.dtype) if routers else None
        if self.packed:
            packed = self.copies.packed(group, distinct_adapters(self.mixtures))
            return PackedKernel(group, packed, self.mixtures, weights)
        if ranks not in self._wanted:
            self._wanted[ranks] = wanted_of(ranks, self.mixtures)
        return SlotKernel(
            self.copies.slots(group),
            self._wanted[ranks],
            self.rows,
            widths,
            self._layouts,
            token_weights=weights,
            together=not self.strict,
        )

    def _routers(self, group: Group) -> Mapping[int, TokenRouter]:
        """Of each row whose tokens are divided in these modules what divides them."""
        return {
            row: TokenRouter(group, mixture, self.copies.spectra)
            for row, mixture in enumerate(self.mixtures)
            if isinstance(mixture, Routed)
            and any(name in adapter.a for adapter, _ in mixture for name in group)
        }


class FactorCopies:
    """Copies of factors that products need side by side, kept from one plan to the next.

    They hold what the newest plan of each kind needs and no more. Not safe for several threads;
    the base's lock guards it.
    """

    def __init__(self) -> None:
        self.scratch = Scratch()
        self.spectra = Spectra()
        self._slots: dict[Group, GroupSlots] = {}
        self._packed: dict[Group, tuple[tuple[str, ...], PackedFactors]] = {}

    @property
    def size(self) -> int:
        """Bytes kept."""
        packed = sum(_bytes(found) for _, found in self._packed.values())
        return packed + sum(slots.size for slots in self._slots.values()) + self.spectra.size

    def slots(self, group: Group) -> GroupSlots:
        """The slots of a group."""
        return self._slots.setdefault(group, GroupSlots(group))

    def packed(self, group: Group, adapters: Sequence[BankedAdapter]) -> PackedFactors:
        """The adapters' factors for a group side by side; at least one must have some."""
        digests = tuple(adapter.digest for adapter in adapters)
        if group not in self._packed or self._packed[group][0] != digests:
            self._packed[group] = digests, packed_factors(group, adapters)
        return self._packed[group][1]

    def forget(self, digest: str) -> None:
        """Drop every copy that an adapter is part of."""
        self.scratch.clear()
        self.spectra.forget(digest)
        for slots in self._slots.values():
            slots.forget(digest)
        for group in [group for group, (held, _) in self._packed.items() if digest in held]:
            del self._packed[group]

    def clear(self) -> None:
        """Drop everything."""
        for slots in self._slots.values():
            slots.clear()
        self._packed.clear()
        self.scratch.clear()
        self.spectra.clear()


def distinct_adapters(mixtures: Sequence[Mixture]) -> tuple[BankedAdapter, ...]:
    """The adapters of a batch, each once, ordered by digest."""
    found = {adapter.digest: adapter for mixture in mixtures for adapter, _ in mixture}
    return tuple(found[digest] for digest in sorted(found))


def summed_rank(mixtures: Sequence[Mixture]) -> int:
    """The largest rank that a batch's distinct adapters sum up to in any module."""
    sums: dict[str, int] = {}
    for adapter in distinct_adapters(mixtures):
        for name, rank in adapter.ranks.items():
            sums[name] = sums.get(name, 0) + rank
    return max(sums.values(), default=0)


def _bytes(found: PackedFactors) -> int:
    tensors = (found.a, *(b for b in found.b if b is not None))
    return sum(one.numel() * one.element_size() for one in tensors)
