from __future__ import annotations

import itertools
import math

import dp_accounting
import pytest
from dp_accounting import pld
from intarsia_client.assignment import PrivacyParameters, TrainAssignment, TrainingParameters
from intarsia_client.errors import InputError
from intarsia_client.privacy import (
    BudgetExceeded,
    epsilon_of,
    noise_multiplier_for,
    planned_spend,
    sampling_of,
    would_exceed,
)
from scipy import optimize, special

DELTA = 1e-5


def reference(history):
    """Epsilon by Google's privacy loss distributions, for adding or removing one record."""
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for noise_multiplier, sample_rate, steps in history:
        event = dp_accounting.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(sample_rate, event), steps)
    return accountant.get_epsilon(DELTA)


def assigned(*, rounds=4, batch_size=10, epochs=1, max_steps=0, **privacy):
    return TrainAssignment(
        run="run", round=1, rounds=rounds, client="ward-3", nonce="n", seed=0, base="base",
        base_digest="d", start_digest="d", task="causal-lm", rank=2, lora_alpha=4.0,
        target_modules=("q",),
        training=TrainingParameters(batch_size=batch_size, epochs=epochs, max_steps=max_steps),
        privacy=PrivacyParameters(unit="example", **privacy),
    )  # fmt: skip


class TestEpsilonOf:
    @pytest.mark.parametrize(
        "history",
        [
            [(1.0, 0.1, 100)],
            [(0.6, 0.01, 1000)],
            [(2.0, 1.0, 10)],
            [(8.0, 0.1, 100)],
            [(0.4, 0.05, 20)],
            [(1.0, 0.1, 50), (2.0, 0.05, 100)],
            [(1.0, 0.5, 3), (1.5, 0.5, 3), (0.8, 0.01, 40)],
        ],
    )
    def test_agrees_with_another_accountant(self, history):
        expected = reference(history)
        found = epsilon_of(history, DELTA)
        # The PRV accountant adds its own error of 0.01 at least, to be on the safe side.
        assert expected <= found <= 1.02 * expected + 0.011

    def test_nothing_spends_nothing(self):
        assert epsilon_of([], DELTA) == 0.0
        assert epsilon_of([(1.0, 0.1, 0)], DELTA) == 0.0

    def test_rounds_compose_to_what_they_are_together(self):
        rounds = [(0.9, 0.05, 20)] * 5
        assert epsilon_of(rounds, DELTA) == epsilon_of([(0.9, 0.05, 100)], DELTA)
        assert epsilon_of(rounds, DELTA) < 5 * epsilon_of(rounds[:1], DELTA)

    def test_order_does_not_matter(self):
        parts = [(0.9, 0.05, 20), (1.2, 0.1, 10), (0.9, 0.05, 3)]
        found = {epsilon_of(order, DELTA) for order in itertools.permutations(parts)}
        assert len(found) == 1

    def test_far_beyond_use_it_is_still_a_bound(self):
        noise = 0.05

        def excess(epsilon):
            # Balle and Wang 2018, arXiv:1805.06530, theorem 5, for one Gaussian release.
            first = special.ndtr(1 / (2 * noise) - epsilon * noise)
            second = epsilon + special.log_ndtr(-1 / (2 * noise) - epsilon * noise)
            return first - math.exp(second) - DELTA

        exact = optimize.brentq(excess, 1, 600)
        assert 200 < exact <= epsilon_of([(noise, 1.0, 1)], DELTA) < 2 * exact


class TestNoiseMultiplierFor:
    @pytest.mark.parametrize(
        ("epsilon", "sample_rate", "steps"),
        [(8.0, 0.03, 150), (2.0, 0.1, 100), (1.0, 0.5, 50), (8.0, 1.0, 20), (0.5, 0.01, 10)],
    )
    def test_is_enough_and_hardly_more(self, epsilon, sample_rate, steps):
        found = noise_multiplier_for(epsilon, DELTA, sample_rate, steps)
        assert reference([(found, sample_rate, steps)]) <= epsilon
        assert epsilon_of([(found, sample_rate, steps)], DELTA) <= epsilon
        assert epsilon_of([(0.99 * found, sample_rate, steps)], DELTA) > epsilon

    def test_known_value(self):
        # Opacus' own search, measured with its default tolerance.
        assert noise_multiplier_for(2.0, DELTA, 0.1, 100) == pytest.approx(2.2607, rel=5e-3)

    def test_a_budget_that_needs_no_noise_gets_some(self):
        assert noise_multiplier_for(1e6, DELTA, 0.1, 10) == 0.1

    def test_an_epsilon_that_cannot_be_reached(self):
        with pytest.raises(
            InputError, match=r"privacy\.epsilon: 0\.004; choose a larger"
        ) as caught:
            noise_multiplier_for(0.004, DELTA, 0.1, 10)
        assert caught.value.exit_code == 2


class TestWouldExceed:
    def test_at_the_edge(self):
        history, planned = [(1.0, 0.1, 60)], (1.0, 0.1, 40)
        whole = epsilon_of([(1.0, 0.1, 100)], DELTA)
        assert not would_exceed(history, planned, whole, DELTA)
        assert not would_exceed(history, planned, whole * 0.9995, DELTA)
        assert would_exceed(history, planned, whole * 0.99, DELTA)

    def test_a_single_release_can_be_too_much(self):
        assert would_exceed([], (0.5, 1.0, 1), 1.0, DELTA)


class TestSamplingOf:
    @pytest.mark.parametrize(
        ("records", "options", "expected"),
        [
            (100, {"batch_size": 10}, (0.1, 10)),
            (101, {"batch_size": 10, "epochs": 3}, (10 / 101, 31)),
            (7, {"batch_size": 16}, (1.0, 1)),
            (7, {"batch_size": 16, "epochs": 5}, (1.0, 3)),
            (1000, {"batch_size": 10, "max_steps": 9}, (0.01, 9)),
        ],
    )
    def test_takes_each_record_as_often_as_the_epochs_say(self, records, options, expected):
        found = sampling_of(records, TrainingParameters(**options))
        assert (found.sample_rate, found.steps) == expected


class TestPlannedSpend:
    def test_all_rounds_stay_within_the_budget(self):
        history = []
        for _ in range(4):
            history.append(planned_spend(100, assigned(epsilon=3.0), history))
        parts = [(one.noise_multiplier, one.sample_rate, one.steps) for one in history]
        assert 2.9 < epsilon_of(parts, DELTA) <= 3.0
        assert history[0].epsilon == epsilon_of(parts[:1], DELTA)
        assert (history[0].unit, history[0].steps, history[0].sample_rate) == ("example", 10, 0.1)
        assert (history[0].max_grad_norm, history[0].delta) == (1.0, DELTA)

    def test_one_round_more_is_refused(self):
        spend = planned_spend(100, assigned(epsilon=3.0), [])
        with pytest.raises(BudgetExceeded, match="ward-3") as caught:
            planned_spend(100, assigned(epsilon=3.0), [spend] * 4)
        assert caught.value.exit_code == 2
        assert "sits the round out" in caught.value.remedy
        assert "\n" not in str(caught.value)

    def test_noise_that_is_given_is_used_and_counted(self):
        spend = planned_spend(100, assigned(epsilon=50.0, noise_multiplier=0.7), [])
        assert spend.noise_multiplier == 0.7
        with pytest.raises(BudgetExceeded):
            planned_spend(100, assigned(epsilon=1.0, noise_multiplier=0.7), [])

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("epsilon", 0.0),
            ("epsilon", math.nan),
            ("delta", 0.0),
            ("delta", 1.0),
            ("max_grad_norm", -1.0),
            ("noise_multiplier", -0.1),
        ],
    )
    def test_values_out_of_range(self, name, value):
        with pytest.raises(InputError, match=rf"privacy\.{name}"):
            planned_spend(100, assigned(**{name: value}), [])
