from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from intarsia_client.assignment import TrainAssignment, TrainingParameters
from intarsia_client.attachment import TRAINABLE
from intarsia_client.optimization import learning_rate_factor, parameter_groups, set_rate


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


class TestRates:
    def rates(self, rank, **training):
        parameters = TrainingParameters(learning_rate=0.01, schedule="linear", **training)
        assignment = TrainAssignment(
            run="r", round=2, rounds=4, client="c", nonce="n", seed=0, base="b", base_digest="",
            start_digest="", task="causal-lm", rank=rank, lora_alpha=1.0, target_modules=("q",),
            training=parameters,
        )  # fmt: skip
        model = torch.nn.ModuleDict(
            {name: torch.nn.ModuleDict({TRAINABLE: torch.nn.Linear(1, 1, bias=False)})
             for name in ("lora_A", "lora_B")}
        )  # fmt: skip
        model["layer"] = torch.nn.Linear(1, 1).requires_grad_(False)
        model["head"] = torch.nn.Linear(1, 1)
        optimiser = torch.optim.AdamW(parameter_groups(model, assignment))
        set_rate(optimiser, assignment, 1, 2)
        names = {parameter: name for name, parameter in model.named_parameters()}
        rates = {
            names[parameter]: group["lr"]
            for group in optimiser.param_groups
            for parameter in group["params"]
        }
        factors = {rates.pop(f"lora_{side}.{TRAINABLE}.weight") for side in "AB"}
        assert set(rates) == {"head.weight", "head.bias"}
        (factor_rate,), (head_rate,) = factors, set(rates.values())
        return factor_rate, head_rate

    def test_is_the_same_for_all_by_default(self):
        # Three eighths of the way are done.
        assert self.rates(1) == self.rates(64) == pytest.approx((0.01 * 5 / 8, 0.01 * 5 / 8))

    @pytest.mark.parametrize(("rank", "times"), [(1, 4.0), (4, 2.0), (16, 1.0), (64, 0.5)])
    def test_goes_by_the_root_of_the_rank(self, rank, times):
        expected = 0.01 * times * 5 / 8
        assert self.rates(rank, learning_rate_rank=16) == pytest.approx((expected, expected))

    @pytest.mark.parametrize(("rank", "times"), [(1, 4.0), (16, 1.0)])
    def test_a_heads_own_rate_knows_no_rank(self, rank, times):
        found = self.rates(rank, learning_rate_rank=16, head_learning_rate=0.3)
        assert found == pytest.approx((0.01 * times * 5 / 8, 0.3 * 5 / 8))
