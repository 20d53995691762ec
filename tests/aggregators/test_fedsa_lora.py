"""FedSA-LoRA: A is shared, B is nobody else's."""

from __future__ import annotations

import numpy as np
import pytest
from intarsia_aggregators.base import GlobalState
from intarsia_client.start import client_start
from intarsia_client.transport import decode_broadcast, encode_broadcast


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_mean_of_a_comes_back_to_every_client_and_no_b_does(federation, precision):
    generator = np.random.default_rng(0)
    state = GlobalState(published=federation.empty())
    for number in (1, 2, 3):
        updates = [
            federation.update(
                state.published, f"c{i}", rank=4, weight=w, share="a", kind="prefix",
                generator=generator,
            )
            for i, w in enumerate((1.0, 3.0))
        ]  # fmt: skip
        found = federation.aggregate("fedsa-lora", state, updates, round_number=number).state
        sent = decode_broadcast(encode_broadcast(found.published, precision))
        state = GlobalState(published=sent, exact=found.whole)
        start = client_start(sent, rank=4, scaling=2.0, seed=0, kind="prefix", share="a").trainable
        for name, factors in start.modules.items():
            mean = np.average(
                [one.trained.modules[name].a for one in updates], axis=0, weights=[1, 3]
            )
            step = 0.0 if precision == "float32" else np.abs(mean).max() / 127
            assert np.abs(factors.a - mean).max() <= 0.6 * step + 1e-7
            assert not factors.b.any()
            assert not found.published.modules[name].b.any()
