"""Example-level differential privacy: the guarantee, its accounting and its budget.

Formal guarantee: what :class:`intarsia_client.private_gradients.PrivateGradients` releases over
all steps of a history is (epsilon, delta)-differentially private with the epsilon of
:func:`epsilon_of`, where neighbouring data sets differ by the addition or removal of one record of
one client. It protects against everyone who sees the updates, the server included.

What it does not protect, and what it assumes:
    * The number of a client's records is public: it sets the sampling rate and travels as the
      update's weight.
    * Several records of one person are several units; their guarantee is weaker in proportion.
    * A client that trains on the same records for another federation spends there too.
    * Noise and sampling come from a generator whose seed is the client's secret. It is not a
      cryptographic generator, and noise that withstands floating-point attacks (Opacus' secure
      mode, which needs torchcsprng) is not available; Mironov, On significance of the least
      significant bits for differential privacy, 2012.

References:
    Gopi et al., Numerical Composition of Differential Privacy, 2021, arXiv:2106.02848.
    Abadi et al., Deep Learning with Differential Privacy, 2016, arXiv:1607.00133.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intarsia_client.assignment import TrainAssignment, TrainingParameters
from intarsia_client.errors import InputError, IntarsiaError
from intarsia_client.wire import PrivacySpend

Steps = tuple[float, float, int]
"""Noise multiplier, sample rate and number of steps with both."""

BUDGET_TOLERANCE = 1e-3
"""How far above its budget, relatively, an epsilon may be computed: numerical error only."""

_SMALLEST_NOISE, _LARGEST_NOISE = 0.1, 10_000.0
_TIGHT_UP_TO = 200.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Poisson sampling of one client in one round.

    Args:
        sample_rate: Probability with which each record enters a step.
        steps: Steps of the round, empty batches included.
    """

    sample_rate: float
    steps: int


class BudgetExceeded(IntarsiaError):  # noqa: N818 - an outcome of the budget, not a failure
    """A client's privacy budget does not allow another round; it sits the round out."""

    exit_code = 2


def epsilon_of(history: Sequence[Steps], delta: float) -> float:
    """Epsilon of a history of noisy steps, composed by Opacus' PRV accountant.

    The result is an upper bound. Above an epsilon of 200, where the PRV accountant's tables grow
    without use, and where its numerics fail, the looser bound of Renyi differential privacy
    (Mironov 2017, arXiv:1702.07476) is given.

    Args:
        history: The steps, in any order.
        delta: The delta that goes with it, above 0 and below 1.

    Returns:
        The epsilon, 0 for an empty history.
    """
    merged: dict[tuple[float, float], int] = {}
    for noise_multiplier, sample_rate, steps in history:
        key = (float(noise_multiplier), float(sample_rate))
        merged[key] = merged.get(key, 0) + int(steps)
    entries = tuple((*key, steps) for key, steps in sorted(merged.items()) if steps)
    return _epsilon(entries, float(delta)) if entries else 0.0


def noise_multiplier_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The least noise that keeps all planned steps within a budget.

    Args:
        epsilon: The budget over all steps.
        delta: The delta that goes with it.
        sample_rate: Probability with which each record enters a step.
        steps: Steps planned over all rounds.

    Returns:
        Noise over clipping norm, rounded up to four decimals; 0.1 at least.

    Raises:
        InputError: If no noise is enough.
    """
    return _noise_multiplier(float(epsilon), float(delta), float(sample_rate), int(steps))


def would_exceed(history: Sequence[Steps], planned: Steps, epsilon: float, delta: float) -> bool:
    """Whether further steps would take a client over its budget.

    Args:
        history: What the client has spent.
        planned: What it would spend.
        epsilon: Its budget over all of it.
        delta: The delta that goes with it.

    Returns:
        True if the composition's epsilon is above the budget by more than
        :data:`BUDGET_TOLERANCE`.
    """
    return epsilon_of([*history, planned], delta) > epsilon * (1.0 + BUDGET_TOLERANCE)


def sampling_of(records: int, training: TrainingParameters) -> Sampling:
    """How a client with so many records samples them in one round.

    Args:
        records: The client's number of records, at least 1.
        training: Epochs, expected batch size and the bound on steps.

    Returns:
        The sampling rate, which the accounting uses as it is, and as many steps as the epochs
        take at the expected batch size.
    """
    steps = math.ceil(training.epochs * records / training.batch_size)
    return Sampling(
        sample_rate=min(1.0, training.batch_size / records),
        steps=min(steps, training.max_steps or steps),
    )


def planned_spend(
    records: int, assignment: TrainAssignment, history: Sequence[PrivacySpend]
) -> PrivacySpend:
    """What a round of private training will cost, known before any record is touched.

    Args:
        records: The client's number of records, public by assumption.
        assignment: What the server asks.
        history: What the client has spent before.

    Returns:
        The spend of this round; a federation of ``assignment.rounds`` such rounds stays within
        the budget.

    Raises:
        InputError: If the budget cannot be met by any noise.
        BudgetExceeded: If history and this round together are above the budget.
    """
    training, privacy = assignment.training, assignment.privacy
    for name, value in (("epsilon", privacy.epsilon), ("max_grad_norm", privacy.max_grad_norm)):
        if not 0 < value < math.inf:
            raise InputError(f"privacy.{name}", value, "choose a number above 0")
    if not 0 < privacy.delta < 1:
        raise InputError("privacy.delta", privacy.delta, "choose a number between 0 and 1")
    if not 0 <= privacy.noise_multiplier < math.inf:
        raise InputError(
            "privacy.noise_multiplier", privacy.noise_multiplier, "choose 0 or a number above it"
        )
    sampling = sampling_of(records, training)
    noise_multiplier = privacy.noise_multiplier or noise_multiplier_for(
        privacy.epsilon, privacy.delta, sampling.sample_rate, sampling.steps * assignment.rounds
    )
    planned: Steps = (noise_multiplier, sampling.sample_rate, sampling.steps)
    past = [(one.noise_multiplier, one.sample_rate, one.steps) for one in history]
    if would_exceed(past, planned, privacy.epsilon, privacy.delta):
        raise BudgetExceeded(
            f"privacy budget of client {assignment.client}",
            f"epsilon {epsilon_of([*past, planned], privacy.delta):.3g} after this round "
            f"({epsilon_of(past, privacy.delta):.3g} spent)",
            f"it sits the round out; privacy.epsilon allows {privacy.epsilon:g}",
        )
    return PrivacySpend(
        unit=privacy.unit,
        noise_multiplier=noise_multiplier,
        sample_rate=sampling.sample_rate,
        steps=sampling.steps,
        max_grad_norm=privacy.max_grad_norm,
        delta=privacy.delta,
        epsilon=epsilon_of([planned], privacy.delta),
    )


@functools.lru_cache(maxsize=4096)
def _epsilon(history: tuple[Steps, ...], delta: float) -> float:
    bound = _renyi_bound(history, delta)
    if bound > _TIGHT_UP_TO:
        return bound
    try:
        # The tables' size grows with epsilon over the error that is allowed.
        error = max(0.01, bound / 1000)
        with np.errstate(all="ignore"):
            tight = _accountant(history).get_epsilon(delta=delta, eps_error=error)
        return min(bound, float(tight))
    except (RuntimeError, ValueError):
        return bound


def _renyi_bound(history: Sequence[Steps], delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(history)
    # Orders between the integers tighten the bound a little and cost a hundred times as much.
    orders = [*range(2, 33), 40, 48, 64, 96, 128, 256, 512]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order")
        return float(accountant.get_epsilon(delta=delta, alphas=orders))


def _accountant(history: Sequence[Steps]) -> Any:
    """Opacus' PRV accountant with a quicker bound on how far its tables must reach."""
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import Domain
    from scipy.fft import next_fast_len

    class Accountant(PRVAccountant):  # type: ignore[misc]
        def _get_domain(
            self, prvs: Any, num_self_compositions: Any, eps_error: float, delta_error: float
        ) -> Any:
            # Gopi et al. 2021, remark 5.6: all steps, and each of them alone, stay inside but for
            # this much of delta.
            total = sum(steps for _, _, steps in history)
            alone = delta_error / (8 * total)
            reach = max(_renyi_bound([(one, rate, 1)], alone) for one, rate, _ in history)
            reach = max(reach, _renyi_bound(history, delta_error / 4), eps_error) + 3
            mesh = eps_error / math.sqrt(total * math.log(12 / delta_error) / 2)
            half = next_fast_len(math.ceil(reach / mesh) + 1)
            return Domain((1 - half) * mesh, half * mesh, 2 * half)

    accountant = Accountant()
    accountant.history = list(history)
    return accountant


@functools.lru_cache(maxsize=4096)
def _noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    from scipy.optimize import brentq  # comes with Opacus

    def excess(logarithm: float) -> float:
        return math.log(epsilon_of([(math.exp(logarithm), sample_rate, steps)], delta) / epsilon)

    high = 1.0
    while epsilon_of([(high, sample_rate, steps)], delta) > epsilon:
        high *= 2
        if high > _LARGEST_NOISE:
            raise InputError(
                "privacy.epsilon",
                epsilon,
                f"choose a larger one; no noise keeps {steps} steps that each take a record with "
                f"probability {sample_rate:.3g} within it",
            )
    low = high / 2
    while epsilon_of([(low, sample_rate, steps)], delta) <= epsilon:
        if low <= _SMALLEST_NOISE:
            return _SMALLEST_NOISE
        low = max(_SMALLEST_NOISE, low / 2)
        high = min(high, 2 * low)
    found = math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-4))
    found = math.ceil(found * 1e4) / 1e4
    while epsilon_of([(found, sample_rate, steps)], delta) > epsilon:
        found = math.ceil(found * 1.0002 * 1e4) / 1e4
    return found
