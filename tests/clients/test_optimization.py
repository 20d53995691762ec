from __future__ import annotations

import math

import numpy as np
from intarsia_client.assignment import TrainingParameters
from intarsia_client.optimization import learning_rate_factor


class TestLearningRateFactor:
    def factors(self, schedule, *, rounds=4, steps=5, warmup=0.0):
        training = TrainingParameters(schedule=schedule, warmup=warmup)
        return [
            learning_rate_factor(
                training, round_number=number, rounds=rounds, step=step, steps=steps
            )
            for number in range(1, rounds + 1)
            for step in range(steps)
        ]

    def test_spans_the_whole_federation(self):
        progress = np.arange(20) / 20
        np.testing.assert_allclose(self.factors("constant"), np.ones(20))
        np.testing.assert_allclose(self.factors("linear"), 1 - progress)
        np.testing.assert_allclose(
            self.factors("cosine"), [0.5 + 0.5 * math.cos(math.pi * one) for one in progress]
        )

    def test_rounds_of_another_length_end_at_the_same_place(self):
        assert self.factors("cosine", steps=3)[3] == self.factors("cosine", steps=7)[7]

    def test_warms_up_in_every_round(self):
        found = self.factors("constant", rounds=2, steps=10, warmup=0.3)
        np.testing.assert_allclose(found, ([0.25, 0.5, 0.75] + [1.0] * 7) * 2)
