"""Similarity to an adapter's own documents: the mean of the three nearest cosines.

    s(q) = mean of the 3 largest <q, d> over at most 150 of the adapter's documents d

It is what AC-LoRA retrieves by, with two additions: a bound on what is kept, and a mean of three
instead of the best one, since the best document's similarity alone tells members from others
almost perfectly (docs/retrieval.md).

Reference:
    Lazier et al., AC-LoRA: (Almost) Training-Free Access Control-Aware Multi-Modal LLMs, 2025,
    arXiv:2505.11557.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from intarsia_client.wire import FloatArray

from intarsia_continual.descriptors.base import DescriptorMethod, Float64Array

DOCUMENTS = 150
NEAREST = 3


def _keep_documents(rows: FloatArray, generator: np.random.Generator) -> Mapping[str, FloatArray]:
    """All documents, or as many of them as are kept, drawn evenly."""
    if len(rows) > DOCUMENTS:
        rows = rows[np.sort(generator.permutation(len(rows))[:DOCUMENTS])]
    return {"documents": rows}


def _nearest_documents(arrays: Mapping[str, FloatArray], queries: Float64Array) -> Float64Array:
    """The mean of each query's largest cosines; of fewer where there are fewer documents."""
    cosines = queries @ arrays["documents"].astype(np.float64).T
    nearest: Float64Array = np.sort(cosines, axis=1)[:, -NEAREST:].mean(axis=1)
    return nearest


DOCUMENT_SIMILARITY = DescriptorMethod(
    name="document-similarity",
    layout={"documents": ("count", "width")},
    summarise=_keep_documents,
    compare=_nearest_documents,
)
