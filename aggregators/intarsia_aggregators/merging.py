"""One module of an offline sum: the stack itself, its best approximation, or a mean of factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray, LowRankFactors

from intarsia_aggregators.base import AggregationSettings, Contribution, ModuleRound, ModuleRule
from intarsia_aggregators.gram import symmetric_product
from intarsia_aggregators.recompression import Recompressed, outcome, recompress
from intarsia_aggregators.sources import ModuleTerms, Workspace
from intarsia_aggregators.spectrum import quick_spectrum
from intarsia_aggregators.streamed import is_accumulated, recompress_streamed, streamed_bytes

MEMORY = 48 << 20
"""Bytes for the stacks and Gram matrices of all modules that are worked on at a time."""

# Numbers that are written at a time where the result is the stack itself.
_WRITTEN_AT_ONCE = 1 << 20
# Terms from which on adding up the layer's matrix is worth it.
_MANY = 384


@dataclass(frozen=True, kw_only=True)
class MergedModule:
    """What a module became.

    Args:
        factors: Its factors.
        energy: Squared Frobenius norm of the whole sum, 0 where it is not known.
        kept: That of what was kept.
    """

    factors: LowRankFactors
    energy: float = 0.0
    kept: float = 0.0

    @property
    def cut(self) -> float:
        """Share of the squared Frobenius norm that was cut, between 0 and 1."""
        return max(self.energy - self.kept, 0.0) / self.energy if self.energy > 0.0 else 0.0


def resident_bytes(terms: ModuleTerms) -> int:
    """Memory for one factor of a module's stack and both Gram matrices."""
    return 4 * (terms.rank * max(terms.shape) + 2 * terms.rank**2)


def working_bytes(terms: ModuleTerms, rank: int | None) -> int:
    """Memory that forming a module takes.

    Args:
        terms: What the sources bring.
        rank: How many directions are kept, None for the stack itself.

    Returns:
        Bytes, nearly.
    """
    if rank is None:
        return 4 * _WRITTEN_AT_ONCE * 4
    return streamed_bytes(terms, rank) if _is_streamed(terms) else resident_bytes(terms)


def _is_streamed(terms: ModuleTerms) -> bool:
    """Whether the stack is too large to hold, or larger than the layer whose sum it is."""
    beyond_layer = terms.rank > max(min(terms.shape), _MANY) and is_accumulated(terms)
    return beyond_layer or resident_bytes(terms) > MEMORY


def approximated(terms: ModuleTerms, rank: int, workspace: Workspace) -> MergedModule:
    """The best approximation of a module's sum at a bounded rank.

    Args:
        terms: What the sources bring.
        rank: How many directions to keep at most, at least 1.
        workspace: Memory to use.

    Returns:
        Balanced factors of scaling 1, largest direction first.

    Raises:
        InputError: If a number, a source's product or the sum is not finite.
    """
    if _is_streamed(terms):
        found = recompress_streamed(terms, rank, workspace)
    else:
        found = _resident(terms, rank, workspace)
    factors = LowRankFactors(a=found.a.numpy(), b=found.b.numpy(), scaling=1.0)
    # A sum is not finite where one of its terms is not.
    if not math.isfinite(float(found.a.sum()) + float(found.b.sum())):
        raise InputError(f"sum of {terms.name}", "beyond float32", "leave out the largest adapter")
    return MergedModule(factors=factors, energy=found.energy, kept=found.kept)


def stacked_rows(terms: ModuleTerms, workspace: Workspace) -> Iterator[tuple[str, int, FloatArray]]:
    """The module's stack, a few rows of a factor at a time, the weights on B.

    Args:
        terms: What the sources bring.
        workspace: Memory to use; what is yielded lies in it until the next is asked for.

    Yields:
        ``"A"`` or ``"B"``, the number of the first row, and the rows.

    Raises:
        InputError: If a number or a source's product is not finite.
    """
    d_out, d_in = terms.shape
    squares_a = torch.zeros(terms.rank, dtype=torch.float64)
    begin = 0
    for source, rank in zip(terms.sources, terms.ranks, strict=True):
        rows = workspace.take("rows", rank, d_in)
        source.read_a(terms.name, rows.numpy())
        squares_a[begin : begin + rank] = _squares(rows, dim=1)
        yield "A", begin, rows.numpy()
        begin += rank
    squares_b = torch.zeros(terms.rank, dtype=torch.float64)
    step = max(_WRITTEN_AT_ONCE // max(terms.rank, 1), 1)
    for begin in range(0, d_out, step):
        rows = workspace.take("rows", min(step, d_out - begin), terms.rank)
        terms.read_b(rows, workspace, first_row=begin)
        squares_b += _squares(rows, dim=0)
        rows.copy_(rows.double().mul_(terms.coefficients))
        yield "B", begin, rows.numpy()
    terms.check_squares(squares_b, squares_a)
    if bool((squares_b.sqrt() * terms.coefficients.abs() > torch.finfo(torch.float32).max).any()):
        raise InputError(f"sum of {terms.name}", "beyond float32", "leave out the largest adapter")


def by_rule(rule: ModuleRule, terms: ModuleTerms) -> MergedModule:
    """A catalogue method's formula on adapters that had no start: they add all that they are.

    Args:
        rule: The formula; it uses shares and what was trained alone.
        terms: What the sources bring.

    Returns:
        The module.

    Raises:
        InputError: If a source's product is not finite, or the factors do not fit the method.
    """
    contributions = []
    for source, layout in zip(terms.sources, terms.layouts, strict=True):
        terms.check_source(source)
        trained = source.adapter.modules[terms.name]
        start = LowRankFactors(a=trained.a, b=np.zeros_like(trained.b), scaling=layout.scaling)
        contributions.append(
            Contribution(
                client=source.label, share=source.share, factor=1.0, start=start, trained=trained
            )
        )
    d_out, d_in = terms.shape
    nothing = LowRankFactors(
        a=np.zeros((0, d_in), np.float32), b=np.zeros((d_out, 0), np.float32), scaling=1.0
    )
    outcome = rule(
        ModuleRound(
            name=terms.name,
            published=nothing,
            exact=nothing,
            contributions=tuple(contributions),
            settings=AggregationSettings(),
        )
    )
    return MergedModule(factors=outcome.exact)


def _resident(terms: ModuleTerms, rank: int, workspace: Workspace) -> Recompressed:
    """By the Gram matrices of the stack, of which both factors are held where there is room."""
    both = resident_bytes(terms) + 4 * terms.rank * min(terms.shape) <= workspace.room
    a = workspace.take("stack", terms.rank, terms.shape[1])
    terms.read_a(a)
    gram_a = symmetric_product(a, out=workspace.take("gram a", terms.rank, terms.rank))
    # Else B comes into the same memory, and A is read once more.
    b = workspace.take("other" if both else "stack", terms.shape[0], terms.rank)
    terms.read_b(b, workspace)
    gram_b = symmetric_product(b.T, out=workspace.take("gram b", terms.rank, terms.rank))
    terms.check_squares(gram_b.diagonal(), gram_a.diagonal())
    spectrum = quick_spectrum(gram_b, gram_a, terms.coefficients, rank)
    if spectrum is not None:
        left = b @ spectrum.left
        if not both:
            terms.read_a(a)
        found = outcome(left, spectrum.right @ a, spectrum)
        if found is not None:
            return found
        if not both:
            terms.read_b(b, workspace)
    if not both:
        a = workspace.take("other", terms.rank, terms.shape[1])
        terms.read_a(a)
    return recompress(b, a, rank, coefficients=terms.coefficients, exact=True)


def _squares(values: torch.Tensor, dim: int) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(values, dim=dim, dtype=torch.float64)
    return norms.square()
