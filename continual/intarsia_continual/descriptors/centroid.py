"""One vector for each adapter: the direction of its documents' mean.

    s(q) = <q, m / |m|>,    m = mean of the adapter's documents

The least that can be kept, and the least that can leak: one document moves it by one part in n.

Reference:
    Mensink et al., Distance-Based Image Classification: Generalizing to New Classes at Near-Zero
    Cost, 2013, doi:10.1109/TPAMI.2013.83 (nearest class mean).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from intarsia_client.wire import FloatArray

from intarsia_continual.descriptors.base import DescriptorMethod, Float64Array, unit_rows


def _mean_direction(rows: FloatArray, _: np.random.Generator) -> Mapping[str, FloatArray]:
    mean = rows.mean(axis=0, dtype=np.float64)
    return {"centroid": unit_rows(mean[None])[0].astype(np.float32)}


def _cosine(arrays: Mapping[str, FloatArray], queries: Float64Array) -> Float64Array:
    return queries @ arrays["centroid"].astype(np.float64)


CENTROID = DescriptorMethod(
    name="centroid",
    layout={"centroid": ("width",)},
    summarise=_mean_direction,
    compare=_cosine,
)
