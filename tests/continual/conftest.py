"""Adapters' texts as vectors, made from seeds; nothing here reaches the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import pytest
from intarsia_client.files import bytes_digest
from intarsia_continual.descriptors.base import Descriptor, DescriptorMethod

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ENCODER = bytes_digest(b"an encoder")

Held = TypeVar("Held")


class Guarded(Mapping[str, Held]):
    """A library that fails a test where anything but the allowed adapters is looked at."""

    def __init__(self, held: Mapping[str, Held], allowed: set[str]) -> None:
        self._held, self._allowed = held, allowed

    def __getitem__(self, digest: str) -> Held:
        assert digest in self._allowed, f"{digest} was read"
        return self._held[digest]

    def __contains__(self, digest: object) -> bool:
        assert digest in self._allowed, f"{digest} was asked for"
        return digest in self._held

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the library was gone through")

    def __len__(self) -> int:
        raise AssertionError("the library was counted")


def vectors(seed: int, count: int = 12, width: int = 6, spread: float = 0.4) -> np.ndarray:
    """Vectors of length 1 around a direction that the seed decides."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=width) + spread * generator.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def fitted() -> Callable[..., Descriptor]:
    """Descriptors of made-up adapters."""

    def fit(method: DescriptorMethod, seed: int, **settings) -> Descriptor:
        encoder = settings.pop("encoder", ENCODER)
        generator = np.random.default_rng(seed)
        return method.fit(vectors(seed, **settings), generator, encoder=encoder)

    return fit


@pytest.fixture
def guarded() -> type[Guarded]:
    return Guarded


@pytest.fixture
def rows_of() -> Callable[..., np.ndarray]:
    return vectors
