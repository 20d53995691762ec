"""How good mixtures of adapters are on each group's held-out records, by the serving engine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from adapterswap_data import RecordGroups
from adapterswap_training import Trained
from intarsia_client.base_model import BaseModel
from intarsia_client.records import Record
from intarsia_client.wire import FloatArray
from intarsia_continual.descriptors.base import Descriptor, DescriptorMethod
from intarsia_continual.retrieval import Retriever
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.mixture import mixture_of
from intarsia_platform.serving.scoring import RecordScore, score
from intarsia_platform.serving.served_base import ServedBase

Weights = tuple[tuple[str, float], ...]
"""Adapters' names and their weights; empty for the base alone."""


class Scorer(Protocol):
    """Scores records through mixtures of adapters."""

    def __call__(
        self,
        groups: Mapping[str, Sequence[Record]],
        mixtures: Sequence[Weights],
        routing: str = "",
    ) -> dict[str, float]:
        """Give each group's value.

        Args:
            groups: Groups of records.
            mixtures: For each record, group by group.
            routing: Which router divides tokens among a record's adapters; empty for the weights.

        Returns:
            From each group to its value: the mean log-likelihood of its tokens in nats for a causal
            language model, the share of records classified right for classification. Larger is
            better.
        """


@contextmanager
def scorer(
    base: BaseModel, adapters: Mapping[str, Trained], *, max_length: int
) -> Iterator[Scorer]:
    """Serve adapters for one block.

    Args:
        base: The base model.
        adapters: From names to adapters.
        max_length: Longest sequence, in tokens.

    Yields:
        What scores records through mixtures of them.
    """
    encoded = {name: one.encoded for name, one in adapters.items()}
    digests = {name: one.digest for name, one in encoded.items()}
    by_digest = {digests[name]: one for name, one in encoded.items()}
    bank = AdapterBank(base, by_digest.__getitem__)
    # Two groups could have equal adapters; a mixture then names one adapter once.
    with ServedBase(base) as served, bank.lease(by_digest) as leased:
        held = dict(zip(by_digest, leased, strict=True))

        def find(
            groups: Mapping[str, Sequence[Record]],
            mixtures: Sequence[Weights],
            routing: str = "",
        ) -> dict[str, float]:
            records = [record for found in groups.values() for record in found]
            found = score(
                served,
                records,
                [mixture_of(((held[digests[n]], w) for n, w in one), routing) for one in mixtures],
                max_length=max_length,
            )
            owners = [name for name, of_group in groups.items() for _ in of_group]
            return {
                name: _value(
                    [one for own, one in zip(owners, found.records, strict=True) if own == name]
                )
                for name in groups
            }

        yield find


def _value(scores: Sequence[RecordScore]) -> float:
    if scores[0].correct is not None:
        return statistics.fmean(float(bool(one.correct)) for one in scores)
    tokens = sum(one.tokens for one in scores)
    return -sum(one.loss * one.tokens for one in scores) / tokens


def same_for_all(groups: RecordGroups, weights: Weights) -> list[Weights]:
    """One mixture for every held-out record."""
    return [weights for records in groups.held_out.values() for _ in records]


def own_adapters(groups: RecordGroups) -> list[Weights]:
    """For every held-out record the adapter of its own group."""
    return [((name, 1.0),) for name, records in groups.held_out.items() for _ in records]


class Chooser:
    """Chooses as the platform does: its retriever, at its default threshold and temperature.

    Args:
        method: The descriptors' method.
        descriptors: From each group's name to its descriptor.
        queries: From each group's name to its held-out texts' vectors, shape (n, width).
        encoder: Digest of the encoder of both.
    """

    def __init__(
        self,
        method: DescriptorMethod,
        descriptors: Mapping[str, Descriptor],
        queries: Mapping[str, FloatArray],
        encoder: str,
    ) -> None:
        self._method = method
        self._descriptors = descriptors
        self._queries = queries
        self._encoder = encoder

    def choose(self, allowed: Callable[[str], Sequence[str]], top_k: int = 3) -> list[Weights]:
        """The mixture of every held-out record.

        Args:
            allowed: From the record's own group to the groups that who asks may use.
            top_k: How many adapters are mixed at most.

        Returns:
            The mixtures, group by group; empty ones where nothing is like the record.
        """
        retriever = Retriever(self._method, top_k=top_k, encoder=self._encoder)
        mixtures: list[Weights] = []
        for own, rows in self._queries.items():
            library = {name: self._descriptors[name] for name in allowed(own)}
            for query in rows:
                chosen = retriever.choose(np.asarray(query), library)
                mixtures.append(tuple((one.digest, one.weight) for one in chosen))
        return mixtures
