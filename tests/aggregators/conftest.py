"""Small federations: starts, updates with or without training, rounds by any method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from intarsia_aggregators.base import (
    AggregationResult,
    AggregationSettings,
    GlobalState,
    WeightedUpdate,
)
from intarsia_aggregators.catalog import find_method
from intarsia_client.peft_files import decode_adapter, encode_adapter
from intarsia_client.start import client_start
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

HEAD = "classifier.weight"
SIDES = {"both": ("a", "b"), "a": ("a",), "b": ("b",), "none": ()}


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What tests of aggregation need of a server and its clients.

    Args:
        shapes: The modules' (d_out, d_in).
    """

    shapes: Mapping[str, tuple[int, int]]

    def empty(self, *, head: bool = True) -> Adapter:
        """An adapter of rank 0."""
        modules = {
            name: LowRankFactors(
                a=np.zeros((0, d_in), np.float32), b=np.zeros((d_out, 0), np.float32), scaling=1.0
            )
            for name, (d_out, d_in) in self.shapes.items()
        }
        return Adapter(
            base="base",
            task="sequence-classification" if head else "causal-lm",
            modules=modules,
            dense={HEAD: np.full((3, 4), 0.5, np.float32)} if head else {},
        )

    def update(
        self,
        published: Adapter,
        client: str,
        *,
        rank: int,
        weight: float = 1.0,
        factor: float = 1.0,
        scaling: float = 2.0,
        kind: str = "residual",
        share: str = "both",
        trains: str = "both",
        modules: Iterable[str] | None = None,
        generator: np.random.Generator | None = None,
    ) -> WeightedUpdate:
        """What a client sends; without a generator it sends what it was sent."""
        start = client_start(
            published, rank=rank, scaling=scaling, seed=0, kind=kind, modules=modules, share=share
        ).trainable
        trained = start
        if generator is not None:
            trained = replace(
                start,
                modules={
                    name: replace(
                        factors,
                        **{
                            side: moved(getattr(factors, side), generator) for side in SIDES[trains]
                        },
                    )
                    for name, factors in start.modules.items()
                },
                dense={name: moved(head, generator) for name, head in start.dense.items()},
            )
        return WeightedUpdate(
            client=client, weight=weight, factor=factor, start=start, trained=travelled(trained)
        )

    def aggregate(
        self,
        method: str,
        state: GlobalState | Adapter,
        updates: Sequence[WeightedUpdate],
        **settings: int,
    ) -> AggregationResult:
        """One round by a method; what it leaves has been written and read."""
        if isinstance(state, Adapter):
            state = GlobalState(published=state)
        aggregation = find_method(method).method(state, AggregationSettings(**settings))
        for one in updates:
            aggregation.accumulate(one)
        result = aggregation.finalize()
        exact = result.state.exact
        return replace(
            result,
            state=GlobalState(
                published=travelled(result.state.published),
                exact=None if exact is None else travelled(exact),
            ),
        )

    def products(self, adapter: Adapter) -> dict[str, np.ndarray]:
        """The dense product of each module in float64."""
        return {name: adapter.modules[name].product() for name in self.shapes}

    def dense_sum(self, whole: Adapter, updates: Sequence[WeightedUpdate]) -> dict[str, np.ndarray]:
        """The reference: what was there and what clients added, dense, in float64."""
        total = sum(one.weight for one in updates)
        sums = self.products(whole)
        for one in updates:
            for name in one.trained.modules:
                added = one.trained.modules[name].product() - one.start.modules[name].product()
                sums[name] = sums[name] + (one.weight / total) * one.factor * added
        return sums


def moved(values: FloatArray, generator: np.random.Generator) -> FloatArray:
    return values + 0.1 * generator.standard_normal(values.shape).astype(np.float32)


def travelled(adapter: Adapter) -> Adapter:
    """What an adapter is after it was written and read."""
    encoded = encode_adapter(adapter)
    return decode_adapter(encoded.configuration, encoded.tensors)


@pytest.fixture(scope="session")
def federation() -> Federation:
    return Federation(shapes={"layers.0.q": (24, 32), "layers.0.v": (16, 32)})
