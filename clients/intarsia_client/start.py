"""Where a client's round starts: the leading directions of the global adapter, the rest beneath.

The global adapter keeps each module's rank-one terms in order of their size. A client of rank r
trains the first r of them and sees the others frozen underneath, so that it starts from the whole
global model whatever its rank. Client and server compute the same start from the same bytes, which
is what lets the server subtract it exactly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors


@dataclass(frozen=True, kw_only=True)
class ClientStart:
    """A client's start in one round.

    Args:
        trainable: The adapter that the client trains, every module at the client's rank.
        underneath: The rest of the global adapter, frozen; modules without a rest are absent.
    """

    trainable: Adapter
    underneath: Adapter


def client_start(global_adapter: Adapter, *, rank: int, scaling: float, seed: int) -> ClientStart:
    """Split the global adapter for a client of the given rank.

    Where the global adapter has fewer than ``rank`` directions in a module, fresh ones fill up:
    rows of A uniform as in LoRA's own initialisation and columns of B zero, so that they add
    nothing until trained. The fresh rows depend on ``seed`` and the module's name only and are
    nested over ranks, so that clients of different ranks begin in one subspace.

    Args:
        global_adapter: The published adapter, its directions largest first.
        rank: The client's rank, at least 1.
        scaling: The client's LoRA scaling; it is divided out of B.
        seed: The federation's seed.

    Returns:
        The split; ``trainable`` + ``underneath`` has the product of ``global_adapter`` up to
        float32 rounding of the division by ``scaling``.

    Raises:
        InputError: If ``rank`` is larger than a module allows.
    """
    trainable: dict[str, LowRankFactors] = {}
    underneath: dict[str, LowRankFactors] = {}
    for name, published in global_adapter.modules.items():
        check_rank(name, rank, published.shape)
        factors = held_directions(published)
        lead = min(rank, factors.rank)
        a = np.empty((rank, factors.shape[1]), dtype=np.float32)
        b = np.zeros((factors.shape[0], rank), dtype=np.float32)
        a[:lead] = factors.a[:lead]
        b[:, :lead] = factors.b[:, :lead] * np.float32(factors.scaling / scaling)
        if lead < rank:
            a[lead:] = _fresh_rows(name, rank, factors.shape[1], seed)[lead:]
        trainable[name] = LowRankFactors(a=a, b=b, scaling=scaling)
        if factors.rank > lead:
            underneath[name] = LowRankFactors(
                a=factors.a[lead:], b=factors.b[:, lead:], scaling=factors.scaling
            )
    return ClientStart(
        trainable=replace(global_adapter, modules=trainable),
        underneath=replace(global_adapter, modules=underneath, dense={}),
    )


def held_directions(factors: LowRankFactors) -> LowRankFactors:
    """The leading directions that add something.

    Fresh directions of a start and the one zero direction by which a file writes rank 0 stand
    last, with a zero column in B.

    Args:
        factors: One module's factors.

    Returns:
        The factors without the zero columns at the end of B.
    """
    held = np.flatnonzero(np.any(factors.b != 0.0, axis=0))
    count = int(held[-1]) + 1 if len(held) else 0
    return LowRankFactors(a=factors.a[:count], b=factors.b[:, :count], scaling=factors.scaling)


def check_rank(module: str, rank: int, shape: tuple[int, int]) -> None:
    """Refuse a rank that a module cannot hold.

    Args:
        module: The module's name.
        rank: The rank asked for.
        shape: The module's (d_out, d_in).

    Raises:
        InputError: If ``rank`` is larger than the smaller side.
    """
    if rank > min(shape):
        raise InputError(
            f"rank for {module} ({shape[1]} to {shape[0]})",
            rank,
            f"choose at most {min(shape)} or leave the module out of lora.target_modules",
        )


def _fresh_rows(module: str, rank: int, width: int, seed: int) -> FloatArray:
    """Rows of LoRA's initial A, uniform on +-sqrt(1 / width), the same for every client."""
    entropy = int.from_bytes(hashlib.sha256(f"start/{seed}/{module}".encode()).digest()[:16])
    generator = np.random.Generator(np.random.PCG64(entropy))
    bound = width**-0.5
    rows: FloatArray = generator.uniform(-bound, bound, size=(rank, width)).astype(np.float32)
    return rows
