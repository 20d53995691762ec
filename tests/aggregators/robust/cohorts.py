"""Cohorts of updates for the tests of robust rules, and what they are as dense vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from intarsia_aggregators.base import WeightedUpdate
from intarsia_client.start import client_start
from intarsia_client.wire import Adapter, ComputedModules, LowRankFactors

SHAPES = {"layers.0.q": (12, 9), "layers.0.v": (7, 9), "layers.1.q": (12, 9)}
HEAD = "classifier.weight"


def global_adapter(generator: np.random.Generator, *, rank: int = 5, head: bool = True) -> Adapter:
    """A published adapter with so many directions in every module."""
    return Adapter(
        base="base",
        task="sequence-classification" if head else "causal-lm",
        modules={name: factors(generator, shape, rank) for name, shape in SHAPES.items()},
        dense={HEAD: normal(generator, (3, 7))} if head else {},
    )


def factors(generator, shape, rank, scaling=1.0) -> LowRankFactors:
    d_out, d_in = shape
    return LowRankFactors(
        a=normal(generator, (rank, d_in)), b=normal(generator, (d_out, rank)), scaling=scaling
    )


def normal(generator, shape, size=1.0):
    return (size * generator.standard_normal(shape)).astype(np.float32)


def update(
    published: Adapter,
    client: str,
    generator: np.random.Generator,
    *,
    rank: int = 3,
    scaling: float = 2.0,
    kind: str = "residual",
    size: float = 0.1,
    weight: float = 1.0,
    modules: Iterable[str] | None = None,
) -> WeightedUpdate:
    """A client that moved every factor and the head at random."""
    start = client_start(
        published, rank=rank, scaling=scaling, seed=0, kind=kind, modules=modules
    ).trainable
    trained = {
        name: replace(
            before,
            a=before.a + normal(generator, before.a.shape, size),
            b=before.b + normal(generator, before.b.shape, size),
        )
        for name, before in start.modules.items()
    }
    heads = {
        name: tensor + normal(generator, tensor.shape, size) for name, tensor in start.dense.items()
    }
    return WeightedUpdate(
        client=client,
        weight=weight,
        start=start,
        trained=replace(start, modules=trained, dense=heads),
    )


def adding(
    published: Adapter, client: str, vector: np.ndarray, *, weight: float = 1.0
) -> WeightedUpdate:
    """A client that adds exactly this vector (up to float32), of :data:`SHAPES` in order.

    It trains fresh directions, as many as the module allows: B is the vector's matrix.
    """
    start = client_start(published, rank=7, scaling=1.0, seed=0, kind="fresh").trainable
    modules, place = {}, 0
    for name, (d_out, d_in) in SHAPES.items():
        matrix = vector[place : place + d_out * d_in].reshape(d_out, d_in)
        place += d_out * d_in
        # The row space that seven orthonormal rows cannot span is zero by construction below.
        modules[name] = LowRankFactors(
            a=np.eye(7, d_in, dtype=np.float32),
            b=matrix[:, :7].astype(np.float32),
            scaling=1.0,
        )
    assert place == len(vector)
    return WeightedUpdate(
        client=client, weight=weight, start=start, trained=replace(start, modules=modules)
    )


def vector_like(generator: np.random.Generator, size: float = 1.0) -> np.ndarray:
    """A vector that :func:`adding` can add exactly."""
    matrices = []
    for d_out, d_in in SHAPES.values():
        matrix = np.zeros((d_out, d_in))
        matrix[:, :7] = (size * generator.standard_normal((d_out, 7))).astype(np.float32)
        matrices.append(matrix.ravel())
    return np.concatenate(matrices)


def added(one: WeightedUpdate) -> np.ndarray:
    """What a client added as one dense float64 vector: modules, then the head."""
    parts = []
    for name, shape in SHAPES.items():
        difference = np.zeros(shape)
        if name in one.trained.modules:
            difference = one.trained.modules[name].product() - one.start.modules[name].product()
        parts.append(difference.ravel())
    for name, tensor in one.trained.dense.items():
        parts.append((tensor.astype(np.float64) - one.start.dense[name]).ravel())
    return one.factor * np.concatenate(parts)


def dense_sum(updates: Sequence[WeightedUpdate]) -> np.ndarray:
    """The weighted sum of what clients added, dense."""
    total = sum(one.weight for one in updates)
    return sum((one.weight / total) * added(one) for one in updates)


def gauged(one: WeightedUpdate, scale: float | np.ndarray) -> WeightedUpdate:
    """The same update as (B c, A / c), with one c or one for each direction."""
    scales = np.broadcast_to(np.asarray(scale, np.float64), (one.trained.rank,))
    modules = {
        name: replace(
            held,
            a=(held.a / scales[:, None]).astype(np.float32),
            b=(held.b * scales[None, :]).astype(np.float32),
        )
        for name, held in one.trained.modules.items()
    }
    return replace(one, trained=replace(one.trained, modules=modules))


def counted(one: WeightedUpdate, reads: list[str]) -> WeightedUpdate:
    """The same update, which notes every module that is read of what came."""

    def read(name: str) -> LowRankFactors:
        reads.append(f"{one.client} {name}")
        return one.trained.modules[name]

    modules = ComputedModules(one.trained.modules, read)
    return replace(one, trained=replace(one.trained, modules=modules))


def cohort(seed: int, count: int, **changes) -> list[WeightedUpdate]:
    """Clients of unequal ranks, scalings, starts and weights."""
    generator = np.random.default_rng(seed)
    published = global_adapter(generator, head=changes.pop("head", True))
    kinds = ("residual", "prefix", "fresh", "sampled")
    return [
        update(
            published,
            f"client-{index}",
            generator,
            rank=1 + (seed + index) % 7,
            scaling=(2.0, 0.75, 4.0)[index % 3],
            kind=kinds[(seed + index) % 3],
            weight=1.0 + index,
            **changes,
        )
        for index in range(count)
    ]
