"""Which adapters answer a prompt: among those that are allowed, and as if there were no others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray

from intarsia_continual.descriptors.base import Descriptor, DescriptorMethod

STEPS = 16
"""Weights are multiples of one part in so many."""

_Held = TypeVar("_Held")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One adapter of an answer.

    Args:
        digest: The adapter.
        weight: A multiple of 1/16 above 0.
    """

    digest: str
    weight: float


@dataclass(frozen=True)
class Retriever:
    """Chooses adapters by how much a prompt is like each one's texts.

    Formal guarantee: :meth:`choose` is a function of the query and of the descriptors that it is
    given, bit for bit, whatever their order. Given the allowed descriptors alone, as it must be,
    it cannot depend on an adapter that is not allowed: one that is hidden, added, changed or
    deleted changes neither what is chosen nor a weight. Each descriptor is scored by itself, since
    the rounding of a product over several may follow how many they are.

    What leaves is coarse: adapters and weights in sixteenths, never a score.

    Args:
        method: How descriptors are compared with a query; all have to be fitted by it.
        top_k: How many adapters are mixed at most, 1 to 16.
        threshold: An adapter is left out where the query scores below this share of the adapter's
            own left-out texts, 0 to 1; None leaves none out.
        temperature: Divides scores before the softmax, in units of the spread of the chosen
            adapters' own left-out scores; small for one adapter, large for equal weights.
        encoder: Digest of the encoder that queries come from; where it is given, descriptors of
            another one are refused.

    Raises:
        InputError: If a number is out of its range.
    """

    method: DescriptorMethod
    _: KW_ONLY
    top_k: int = 3
    threshold: float | None = 0.05
    temperature: float = 0.3
    encoder: str = ""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.top_k <= STEPS:
            raise InputError("top_k", self.top_k, f"give 1 to {STEPS}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError("threshold", self.threshold, "give a share between 0 and 1")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError("temperature", self.temperature, "give a number above 0")

    def choose(
        self,
        query_embedding: FloatArray,
        descriptors: Mapping[str, Descriptor],
        apart: frozenset[tuple[str, str]] = frozenset(),
    ) -> tuple[Choice, ...]:
        """Choose adapters for one query.

        The best adapter first; then, in order of score, each that may be mixed with all that are
        chosen already. Of equal scores the smaller digest comes first. Weights are the softmax of
        the chosen ones' scores in sixteenths; a weight of nothing is left out.

        Args:
            query_embedding: Shape (width,), of the encoder that the descriptors were fitted with.
            descriptors: From allowed adapters' digests to their descriptors, and no others; see
                :func:`restrict`.
            apart: Pairs of digests, either way round, that are never chosen together.

        Returns:
            The choices, best first, their weights summing to 1; empty where the base should answer
            alone, because no adapter's texts are like the query.

        Raises:
            InputError: If a descriptor is another method's or encoder's, or the query is malformed.
        """
        scores = self._scores(query_embedding, descriptors)
        chosen = _greedy(scores, self.top_k, apart)
        if not chosen:
            return ()
        unit = self.temperature * max(_spread(descriptors[digest]) for digest in chosen)
        shares = np.exp((np.array([scores[d] for d in chosen]) - scores[chosen[0]]) / unit)
        weights = in_steps((shares / shares.sum()).tolist())
        return tuple(
            Choice(digest=digest, weight=weight / STEPS)
            for digest, weight in zip(chosen, weights, strict=True)
            if weight
        )

    def ranking(
        self,
        query_embedding: FloatArray,
        descriptors: Mapping[str, Descriptor],
        apart: frozenset[tuple[str, str]] = frozenset(),
    ) -> tuple[str, ...]:
        """The adapters that :meth:`choose` gives weights to, best first.

        Args:
            query_embedding: As for :meth:`choose`.
            descriptors: Likewise.
            apart: Likewise.

        Returns:
            At most ``top_k`` digests, among them those whose weight rounds to nothing.

        Raises:
            InputError: As :meth:`choose`.
        """
        return _greedy(self._scores(query_embedding, descriptors), self.top_k, apart)

    def _scores(
        self, query_embedding: FloatArray, descriptors: Mapping[str, Descriptor]
    ) -> dict[str, float]:
        """Scores of the adapters whose own texts the query is like."""
        if np.ndim(query_embedding) != 1:
            shape = np.shape(query_embedding)
            raise InputError("query's embedding", f"shape {shape}", "give one vector")
        found = {}
        for digest in sorted(descriptors):
            descriptor = descriptors[digest]
            if self.encoder and descriptor.encoder != self.encoder:
                raise InputError(
                    f"descriptor of {digest}",
                    f"encoder {descriptor.encoder}",
                    f"fit it again with encoder {self.encoder}",
                )
            score = float(self.method.score(descriptor, query_embedding[None])[0])
            if self.threshold is None or score >= (
                descriptor.held_out_score(self.threshold) - _ROUNDING
            ):
                found[digest] = score
        return found


def restrict(library: Mapping[str, _Held], allowed: Collection[str]) -> dict[str, _Held]:
    """What a library holds of the allowed adapters.

    Args:
        library: From adapters' digests to their descriptors; nothing but the allowed ones is
            looked at, so that it may read them from a store one by one.
        allowed: The allowed digests; those without a descriptor can be named but not retrieved.

    Returns:
        A new mapping, in the order of the digests.
    """
    return {digest: library[digest] for digest in sorted(set(allowed)) if digest in library}


def in_steps(shares: Sequence[float]) -> list[int]:
    """Round shares to whole steps that sum to all of them, by largest remainders.

    Args:
        shares: Not negative, summing to 1.

    Returns:
        For each share a number of sixteenths, less than one away from it; all sum to
        :data:`STEPS`. Of equal remainders the earlier share is rounded up.
    """
    exact = [STEPS * float(share) for share in shares]
    whole = [math.floor(one) for one in exact]
    order = sorted(range(len(exact)), key=lambda place: (whole[place] - exact[place], place))
    for place in order[: STEPS - sum(whole)]:
        whole[place] += 1
    return whole


def _greedy(
    scores: Mapping[str, float], top_k: int, apart: frozenset[tuple[str, str]]
) -> tuple[str, ...]:
    """The best adapters that may stand together, best first."""
    chosen: list[str] = []
    for digest in sorted(scores, key=lambda one: (-scores[one], one)):
        if len(chosen) == top_k:
            break
        if not any((digest, one) in apart or (one, digest) in apart for one in chosen):
            chosen.append(digest)
    return tuple(chosen)


def _spread(descriptor: Descriptor) -> float:
    """How far the middle half of an adapter's own left-out scores reaches."""
    low, high = (descriptor.held_out_score(level) for level in (0.25, 0.75))
    return max(high - low, _LEAST_SPREAD) if math.isfinite(low) else _LEAST_SPREAD


# Of float32 vectors: a text that is the same as an adapter's passes.
_ROUNDING = 1e-5

# A group whose texts score all alike says nothing of what a difference in score means.
_LEAST_SPREAD = 1e-3
