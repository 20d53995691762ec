"""Where the terms of an offline sum come from: adapters in memory or on disk, read in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from intarsia_client.errors import InputError
from intarsia_client.opened import ModuleLayout, OpenedModules
from intarsia_client.wire import Adapter, FloatArray
from numpy.typing import NDArray

from intarsia_aggregators.factors import product_norm

# Bytes of B that are read before they are set side by side.
_STAGING = 2 << 20
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One adapter of a sum.

    Args:
        label: What it is called in messages: its folder.
        share: Its weight; the shares of a sum's sources add up to 1.
        adapter: The adapter, opened or in memory.
    """

    label: str
    share: float
    adapter: Adapter

    def layout(self, name: str) -> ModuleLayout | None:
        """What a module's factors are, None where it has none; reads nothing from disk."""
        modules = self.adapter.modules
        if isinstance(modules, OpenedModules):
            return modules.layouts.get(name)
        factors = modules.get(name)
        if factors is None:
            return None
        return ModuleLayout(rank=factors.rank, shape=factors.shape, scaling=factors.scaling)

    def read_a(self, name: str, out: FloatArray, *, first_row: int = 0) -> None:
        """Read rows of a module's A into ``out``, shape (rows, d_in)."""
        modules = self.adapter.modules
        if isinstance(modules, OpenedModules):
            modules.read_a(name, out, first_row=first_row)
        else:
            out[:] = modules[name].a[first_row : first_row + len(out)]

    def read_b(self, name: str, out: FloatArray, *, first_row: int = 0) -> None:
        """Read rows of a module's B into ``out``, shape (rows, rank)."""
        modules = self.adapter.modules
        if isinstance(modules, OpenedModules):
            modules.read_b(name, out, first_row=first_row)
        else:
            out[:] = modules[name].b[first_row : first_row + len(out)]


class Workspace:
    """Memory that is used again for every module: fresh pages cost as much as arithmetic.

    Args:
        room: Bytes that may be taken to save time; what cannot be done without is given anyway.
    """

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self._held: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A float32 tensor of any content, valid until the same name is taken again.

        Args:
            name: What it is for.
            shape: Its shape.

        Returns:
            The tensor.
        """
        size = int(np.prod(shape, dtype=np.int64))
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.empty(size)
        return held[:size].view(*shape)

    def clear(self) -> None:
        """Give all memory back."""
        self._held.clear()


class ModuleTerms:
    """The terms that several sources bring to one module, one after the other.

    Args:
        name: The module.
        sources: The sources that have it, at least one.
        layouts: What each one's factors are, all of one shape.
    """

    def __init__(
        self, name: str, sources: Sequence[Source], layouts: Sequence[ModuleLayout]
    ) -> None:
        self.name = name
        self.shape = layouts[0].shape
        self.ranks = tuple(layout.rank for layout in layouts)
        self.rank = sum(self.ranks)
        self.sources = tuple(sources)
        self.layouts = tuple(layouts)
        self.weights = tuple(
            source.share * layout.scaling for source, layout in zip(sources, layouts, strict=True)
        )
        self.coefficients = torch.repeat_interleave(
            torch.tensor(self.weights, dtype=torch.float64), torch.tensor(self.ranks)
        )

    def tiles(self, largest: int) -> list[ModuleTerms]:
        """The terms in parts of whole sources, each of at most ``largest`` or of one source."""
        parts: list[list[int]] = []
        room = 0
        for index, rank in enumerate(self.ranks):
            if rank > room:
                parts.append([])
                room = largest
            parts[-1].append(index)
            room -= rank
        return [
            ModuleTerms(
                self.name,
                [self.sources[index] for index in part],
                [self.layouts[index] for index in part],
            )
            for part in parts
        ]

    def read_a(self, out: torch.Tensor) -> None:
        """Read all rows of A.

        Args:
            out: Where to, shape (R, d_in).
        """
        rows = out.numpy()
        begin = 0
        for source, rank in zip(self.sources, self.ranks, strict=True):
            source.read_a(self.name, rows[begin : begin + rank])
            begin += rank

    def read_b(self, out: torch.Tensor, workspace: Workspace, *, first_row: int = 0) -> None:
        """Read rows of B, the sources' columns side by side.

        Args:
            out: Where to, shape (rows, R).
            workspace: For what is read before it stands side by side.
            first_row: The first row.
        """
        step = max(_STAGING // (4 * max(self.rank, 1)), 1)
        for begin in range(0, len(out), step):
            rows = min(step, len(out) - begin)
            staged = workspace.take("staging", rows * self.rank)
            parts, at = [], 0
            for source, rank in zip(self.sources, self.ranks, strict=True):
                part = staged[at : at + rows * rank].view(rows, rank)
                source.read_b(self.name, part.numpy(), first_row=first_row + begin)
                parts.append(part)
                at += rows * rank
            torch.cat(parts, dim=1, out=out[begin : begin + rows])

    def check_squares(self, squares_b: torch.Tensor, squares_a: torch.Tensor) -> None:
        """Refuse numbers and products that are not finite, by the name of their source.

        Args:
            squares_b: Squared norms of B's columns, shape (R,).
            squares_a: Squared norms of A's rows, shape (R,).

        Raises:
            InputError: If a number is not finite, or a source's product is beyond float32.
        """
        norms = [self._source_norms(squares) for squares in (squares_b, squares_a)]
        # At least as large as the products' norms, and not a number where a factor has one.
        with np.errstate(invalid="ignore"):
            bounds = norms[0] * norms[1] * np.abs(self.weights)
        for index in np.flatnonzero(~(bounds <= _LARGEST)):
            self.check_source(self.sources[index])

    def _source_norms(self, squares: torch.Tensor) -> NDArray[np.float64]:
        """Norms of each source's factor; of rank 0 that is the next one's, or nothing."""
        ends = np.cumsum((0, *self.ranks))
        sums = np.add.reduceat(np.append(squares.double().numpy(), 0.0), ends[:-1])
        return np.asarray(np.sqrt(sums))

    def check_source(self, source: Source) -> None:
        """Read one source's factors and refuse what is not finite.

        Args:
            source: One of the sources.

        Raises:
            InputError: If a number is not finite, or the product is beyond float32.
        """
        try:
            factors = source.adapter.modules[self.name]
        except InputError as error:
            raise InputError(f"{source.label}: {error.thing}", error.value, error.remedy) from None
        for side, values in (("A", factors.a), ("B", factors.b)):
            if not np.isfinite(values).all():
                raise InputError(
                    f"{source.label}: factor {side} of {self.name}",
                    "not finite",
                    "train again; it holds NaN or Inf",
                )
        norm = product_norm(factors)
        if not norm <= _LARGEST:
            raise InputError(
                f"{source.label}: product of {self.name}",
                f"norm {norm:.3g}",
                "train again; it is beyond float32",
            )
