"""Where a client's round starts: which directions of the global adapter it trains, which it sees.

The global adapter keeps each module's rank-one terms in order of their size. Client and server
compute a client's start from the same bytes, which is what lets the server subtract it exactly.
Four kinds, by name:

* ``"residual"``: the leading r directions are trained, the rest stays frozen underneath, so that
  a client starts from the whole global model whatever its rank;
* ``"prefix"``: the leading r directions are trained and nothing lies underneath; such a client
  needs no more than the first r directions;
* ``"fresh"``: the whole global adapter stays frozen underneath, and r new directions that add
  nothing yet are trained (Wang et al. 2024, FLoRA, arXiv:2409.05976, merges and restarts so);
* ``"sampled"``: as ``"residual"``, but the r directions are drawn for this client and round from
  the leading ones, so that clients of low rank do not all work on the first few (after Fang et
  al. 2025, Federated Sketching LoRA, arXiv:2501.19389, where all are as likely; here the n-th
  largest is drawn with weight 1 / n); new directions are the client's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from intarsia_client.assignment import SHARED_FACTORS, START_KINDS, TrainAssignment
from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, ComputedModules, FloatArray, LowRankFactors

# Weights of draws are whole parts of it.
_WHOLE = 1 << 32


@dataclass(frozen=True, kw_only=True)
class ClientStart:
    """A client's start in one round; its modules are computed at each access.

    Args:
        trainable: The adapter that the client trains, every module at the client's rank. It is
            what the server subtracts.
        underneath: What the client sees frozen beneath; modules without a rest have rank 0 or are
            absent.
    """

    trainable: Adapter
    underneath: Adapter

    @property
    def whole(self) -> Adapter:
        """Both parts as one adapter, the trainable directions first, with the trainable head."""
        names = list(dict.fromkeys([*self.trainable.modules, *self.underneath.modules]))
        return replace(self.trainable, modules=ComputedModules(names, self._stacked))

    def _stacked(self, name: str) -> LowRankFactors:
        if name not in self.trainable.modules:
            return self.underneath.modules[name]
        first = self.trainable.modules[name]
        rest = self.underneath.modules.get(name)
        if rest is None or not rest.rank:
            return first
        ratio = np.float32(rest.scaling / first.scaling)
        return LowRankFactors(
            a=np.concatenate([first.a, rest.a]),
            b=np.concatenate([first.b, rest.b * ratio], axis=1),
            scaling=first.scaling,
        )


def client_start(
    global_adapter: Adapter,
    *,
    rank: int,
    scaling: float,
    seed: int,
    kind: str = "residual",
    modules: Iterable[str] | None = None,
    share: str = "both",
    sampled_from: int = 0,
) -> ClientStart:
    """Split the global adapter for a client of the given rank.

    Where the global adapter has fewer than ``rank`` directions in a module, fresh ones fill up:
    rows of A uniform as in LoRA's own initialisation and columns of B zero, so that they add
    nothing until trained. The fresh rows depend on ``seed`` and the module's name only and are
    nested over ranks, so that clients of different ranks begin in one subspace.

    Of a prefix of the global adapter, ``"prefix"`` gives what the whole gives.

    Args:
        global_adapter: The published adapter, its directions largest first.
        rank: The client's rank, at least 1.
        scaling: The client's LoRA scaling; it is divided out of B.
        seed: What fresh rows follow from; :func:`assigned_start` knows which.
        kind: One of :data:`intarsia_client.assignment.START_KINDS`.
        modules: The modules that the client trains; None for all. The others' directions are all
            underneath, with ``"prefix"`` the leading ``rank`` of them.
        share: ``"both"``, or ``"a"`` where only A is shared: then a row of A is a direction
            of the global adapter even where its column of B is zero.
        sampled_from: Of how many leading directions a ``"sampled"`` start is drawn; 0 for all.

    Returns:
        The split. ``trainable`` + ``underneath`` has the product of ``global_adapter`` up to
        float32 rounding of the division by ``scaling``; with ``"prefix"``, of its leading
        ``rank`` directions.

    Raises:
        InputError: If a name is unknown, or ``rank`` is larger than a module allows.
    """
    _check_name("start", kind, START_KINDS)
    _check_name("shared_factors", share, SHARED_FACTORS)
    names = tuple(global_adapter.modules)
    chosen = frozenset(names if modules is None else modules)
    unknown = sorted(chosen.difference(names))
    if unknown:
        raise InputError("module to train", unknown[0], "name modules that the global adapter has")

    def module(name: str) -> LowRankFactors:
        published = global_adapter.modules[name]
        if kind != "sampled" or name not in chosen:
            return published
        return _drawn_first(published, rank, sampled_from, seed)

    def trainable(name: str) -> LowRankFactors:
        published = module(name)
        check_rank(name, rank, published.shape)
        held = published if kind != "fresh" else _directions(published, slice(0))
        return _trainable(name, held, rank=rank, scaling=scaling, seed=seed, share=share)

    def underneath(name: str) -> LowRankFactors:
        held = held_directions(module(name))
        if kind == "prefix":
            return _directions(held, slice(rank))
        begin = rank if kind in ("residual", "sampled") and name in chosen else 0
        return _directions(held, slice(begin, None))

    frozen = [name for name in names if kind != "prefix" or name not in chosen]
    return ClientStart(
        trainable=replace(
            global_adapter,
            modules=ComputedModules([name for name in names if name in chosen], trainable),
        ),
        underneath=replace(global_adapter, modules=ComputedModules(frozen, underneath), dense={}),
    )


def assigned_start(global_adapter: Adapter, assignment: TrainAssignment) -> ClientStart:
    """The start that an assignment names; what client and server both must use.

    Fresh rows follow from the federation's seed, and with the kind ``"fresh"`` from the round too:
    the same rows in every round would confine all that is ever learned to their span. With
    ``"sampled"`` they follow from the client's name as well, as does what is drawn.

    Args:
        global_adapter: The published adapter, or its prefix for the kind ``"prefix"``.
        assignment: The client's assignment.

    Returns:
        The start.

    Raises:
        InputError: As :func:`client_start`.
    """
    seed = assignment.seed
    words = {
        "fresh": f"fresh/{assignment.seed}/{assignment.round}",
        "sampled": f"sampled/{assignment.seed}/{assignment.round}/{assignment.client}",
    }.get(assignment.start)
    if words is not None:
        seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8])
    return client_start(
        global_adapter,
        rank=assignment.rank,
        scaling=assignment.scaling,
        seed=seed,
        kind=assignment.start,
        modules=assignment.target_modules,
        share=assignment.shared_factors,
        sampled_from=assignment.sampled_from,
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
    return _directions(factors, slice(_count(np.any(factors.b != 0.0, axis=0))))


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


def _trainable(
    name: str, published: LowRankFactors, *, rank: int, scaling: float, seed: int, share: str
) -> LowRankFactors:
    """The first ``rank`` directions at the client's scaling, filled up with fresh ones."""
    leading = _directions(published, slice(rank))
    used = np.any(leading.b != 0.0, axis=0)
    if share == "a":
        used |= np.any(leading.a != 0.0, axis=1)
    lead = _count(used)
    d_out, d_in = published.shape
    a = np.empty((rank, d_in), dtype=np.float32)
    b = np.zeros((d_out, rank), dtype=np.float32)
    a[:lead] = leading.a[:lead]
    b[:, :lead] = leading.b[:, :lead] * np.float32(leading.scaling / scaling)
    if lead < rank:
        a[lead:] = _fresh_rows(name, rank, d_in, seed)[lead:]
    return LowRankFactors(a=a, b=b, scaling=scaling)


def _drawn_first(
    published: LowRankFactors, rank: int, sampled_from: int, seed: int
) -> LowRankFactors:
    """The directions in another order: first the ones drawn, each part largest first.

    Drawn one after another, the n-th largest with weight 1 / n. The draw does not depend on the
    module, only on how many directions it has to draw from; nor on their sizes, so that client and
    server draw alike whatever their processors' rounding.
    """
    count = held_directions(published).rank
    pool = min(count, sampled_from or count)
    if pool <= rank:
        return published
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = _WHOLE // np.arange(1, pool + 1)
    places = []
    for _ in range(rank):
        ends = np.cumsum(weights)
        places.append(int(np.searchsorted(ends, generator.integers(ends[-1]), side="right")))
        weights[places[-1]] = 0
    drawn = np.sort(places)
    order = np.concatenate([drawn, np.delete(np.arange(published.rank), drawn)])
    return LowRankFactors(a=published.a[order], b=published.b[:, order], scaling=published.scaling)


def _directions(factors: LowRankFactors, which: slice) -> LowRankFactors:
    return LowRankFactors(a=factors.a[which], b=factors.b[:, which], scaling=factors.scaling)


def _count(used: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """One more than the place of the last that is used."""
    places = np.flatnonzero(used)
    return int(places[-1]) + 1 if len(places) else 0


def _fresh_rows(module: str, rank: int, width: int, seed: int) -> FloatArray:
    """Rows of LoRA's initial A, uniform on +-sqrt(1 / width), the same for every client."""
    entropy = int.from_bytes(hashlib.sha256(f"start/{seed}/{module}".encode()).digest()[:16])
    generator = np.random.Generator(np.random.PCG64(entropy))
    bound = width**-0.5
    rows: FloatArray = generator.uniform(-bound, bound, size=(rank, width)).astype(np.float32)
    return rows


def _check_name(thing: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(thing, value, f"choose one of {', '.join(known)}")
