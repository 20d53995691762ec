"""The descriptor methods by name: what a group's adapter may be described with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from intarsia_client.errors import InputError, IntegrityError

from intarsia_continual.descriptors.base import Descriptor, DescriptorMethod
from intarsia_continual.descriptors.centroid import CENTROID
from intarsia_continual.descriptors.document_similarity import DOCUMENT_SIMILARITY
from intarsia_continual.descriptors.gaussian import GAUSSIAN

if TYPE_CHECKING:
    from intarsia_continual.encoders import TextEncoder


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One method and what a person needs to know to choose it.

    Args:
        method: The method.
        keeps: What of an adapter's texts stays in its descriptor.
        summary: One line.
        source: The paper.
    """

    method: DescriptorMethod
    keeps: str
    summary: str
    source: str

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        method=DOCUMENT_SIMILARITY,
        keeps="vectors of at most 150 texts",
        summary="mean of the three nearest documents' cosines; best with a sentence encoder",
        source="after Lazier et al. 2025, arXiv:2505.11557",
    ),
    CatalogEntry(
        method=CENTROID,
        keeps="one vector",
        summary="cosine with the documents' mean; keeps and leaks the least",
        source="Mensink et al. 2013, doi:10.1109/TPAMI.2013.83",
    ),
    CatalogEntry(
        method=GAUSSIAN,
        keeps="a mean and at most 150 directions",
        summary="density of a Gaussian with shrunk covariance; best with the base as encoder",
        source="Chen et al. 2010, arXiv:0907.4698",
    ),
)

DEFAULT = CATALOG[0]

PROBE_WORDS = 15
"""How long a prompt is taken to be."""

DESCRIBED_TEXTS = 600
"""Of more texts so many are encoded, drawn evenly; an encoder reads some tens a second and core."""


def find_method(name: str) -> CatalogEntry:
    """Look a method up.

    Args:
        name: Its name in the catalogue.

    Returns:
        The entry.

    Raises:
        InputError: If there is none of that name.
    """
    for entry in CATALOG:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in CATALOG)
    raise InputError("descriptor method", name, f"choose one of: {known}")


def describe(
    method: DescriptorMethod, encoder: TextEncoder, texts: Sequence[str], *, seed: int = 0
) -> Descriptor:
    """Describe one adapter by its own texts.

    Each text counts once, and at most :data:`DESCRIBED_TEXTS` are encoded. How left-out texts
    score is told by a piece of :data:`PROBE_WORDS` words of each, begun anywhere.

    Formal guarantee: the descriptor is a function of the method, the encoder, these texts and the
    seed; what was described before, or will be after, does not enter.

    Args:
        method: How.
        encoder: A public encoder.
        texts: The texts that the adapter was trained on, at least one.
        seed: Decides what is kept where that is less than all.

    Returns:
        The descriptor.

    Raises:
        InputError: If there is no text.
    """
    generator = np.random.default_rng(seed)
    # A text that stands twice would be found when it is left out.
    texts = list(dict.fromkeys(texts))
    if len(texts) > DESCRIBED_TEXTS:
        drawn = np.sort(generator.permutation(len(texts))[:DESCRIBED_TEXTS])
        texts = [texts[place] for place in drawn]
    rows = encoder.encode(texts)
    pieces = [probe_of(text, generator) for text in texts]
    shorter = [place for place, text in enumerate(texts) if pieces[place] != text]
    probes = rows.copy()
    if shorter:
        probes[shorter] = encoder.encode([pieces[place] for place in shorter])
    return method.fit(rows, generator, encoder=encoder.digest, probes=probes)


def read_descriptor(data: bytes) -> Descriptor:
    """Decode a descriptor of any method of the catalogue, which may come from anyone.

    Args:
        data: The bytes.

    Returns:
        The descriptor, its arrays being what its method keeps.

    Raises:
        IntegrityError: If the bytes are not a descriptor, or its arrays do not fit its method.
    """
    found = Descriptor.from_bytes(data)
    try:
        find_method(found.method).method.check(found)
    except InputError as error:
        raise IntegrityError(error.thing, error.value, error.remedy) from None
    return found


def probe_of(text: str, generator: np.random.Generator) -> str:
    """A piece of a text as long as a prompt is.

    Args:
        text: The text.
        generator: Says where the piece begins.

    Returns:
        :data:`PROBE_WORDS` words that follow each other; the text itself where it has no more.
    """
    words = text.split()
    if len(words) <= PROBE_WORDS:
        return text
    begin = int(generator.integers(len(words) - PROBE_WORDS + 1))
    return " ".join(words[begin : begin + PROBE_WORDS])
