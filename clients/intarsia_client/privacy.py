"""Example-level differential privacy: the mechanism and its accounting.

Formal guarantee: what :class:`PrivateGradients` releases over all steps of a history is
(epsilon, delta)-differentially private with the epsilon of :func:`epsilon_of`, where neighbouring
data sets differ by the addition or removal of one record of one client. It protects against
everyone who sees the updates, the server included.

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
    Abadi et al., Deep Learning with Differential Privacy, 2016, arXiv:1607.00133.
    Gopi et al., Numerical Composition of Differential Privacy, 2021, arXiv:2106.02848.
    Yousefpour et al., Opacus, 2021, arXiv:2109.12298.
"""

from __future__ import annotations

import functools
import hashlib
import math
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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


def private_generator(private_seed: int | None, *question: str) -> np.random.Generator:
    """The generator of a round's sampling and noise.

    With a secret, the same question always gives the same noise, and another question gives
    independent noise: a round that is repeated after a crash releases nothing new, and a server
    that asks for one round twice with different starts cannot subtract the noise.

    Args:
        private_seed: The client's secret, which nobody else may know; at least 128 random bits in
            production. None takes fresh entropy from the operating system, and a repeated round
            is then a second release.
        question: Everything that the round's result depends on.

    Returns:
        A generator seeded with 256 bits.
    """
    if private_seed is None:
        return np.random.Generator(np.random.PCG64(secrets.randbits(256)))
    digest = hashlib.sha256("\n".join(["private", str(private_seed), *question]).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


def poisson_sample(
    records: int, sample_rate: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Take each record independently with the given probability.

    Args:
        records: How many there are.
        sample_rate: The probability.
        generator: The client's private generator: the accounting assumes that nobody knows which
            records were taken.

    Returns:
        Indices of those taken, possibly none.
    """
    return np.flatnonzero(generator.random(records) < sample_rate)


class PrivateGradients:
    """Clipped per-example gradients and their noisy sum, for the duration of a block.

    Opacus' hooks compute each example's own gradient of all trainable parameters together, head
    included. Each is scaled to norm ``max_grad_norm`` at most and added to a sum; an example
    whose gradient is not finite adds nothing. The released gradient is that sum with normal noise
    of standard deviation ``noise_multiplier * max_grad_norm``, over a denominator that does not
    depend on who was sampled. Adding or removing one record changes the sum by a vector of norm
    ``max_grad_norm`` at most.

    Args:
        model: The model, in training mode, with its trainable parameters attached.
        max_grad_norm: Clipping norm of one example's gradient.
        noise_multiplier: Noise over clipping norm.
        expected_batch_size: The denominator: sampling rate times number of records.
        generator: The client's private generator.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_grad_norm: float,
        noise_multiplier: float,
        expected_batch_size: float,
        generator: np.random.Generator,
    ) -> None:
        """Prepare an empty sum."""
        self._model = model
        self._parameters = [one for one in model.parameters() if one.requires_grad]
        self._max_grad_norm = max_grad_norm
        self._deviation = noise_multiplier * max_grad_norm
        self._expected_batch_size = expected_batch_size
        self._generator = generator
        self._sizes = [one.numel() for one in self._parameters]
        self._sum = torch.zeros(sum(self._sizes), device=self._parameters[0].device)

    def __enter__(self) -> PrivateGradients:
        """Install the hooks."""
        # Importing Opacus takes a second, which training without privacy need not wait for.
        from opacus.grad_sample.grad_sample_module import GradSampleHooks

        self._hooks = GradSampleHooks(self._model, loss_reduction="sum")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks and everything they left on modules and parameters."""
        self._hooks.cleanup()
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                module.__dict__.pop(name, None)

    def accumulate(self, losses: torch.Tensor) -> None:
        """Add the clipped gradients of some examples to the sum.

        Calls with disjoint parts of a batch give the sum of one call with all of it, so that a
        batch may be cut to fit the memory.

        Args:
            losses: Each example's own loss, independent of the others, shape (examples,).
        """
        with warnings.catch_warnings():
            # The first adapted layer's input needs no gradient, which is as it should be.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(losses.sum())
        gradients = [self._taken(parameter) for parameter in self._parameters]
        norms = torch.stack([one.norm(dim=1) for one in gradients], dim=1).norm(dim=1)
        finite = norms.isfinite()
        if not bool(finite.all()):
            gradients = [one.masked_fill(~finite[:, None], 0.0) for one in gradients]
        factors = (self._max_grad_norm / norms.where(finite, torch.ones_like(norms))).clamp(max=1.0)
        for total, gradient in zip(torch.split(self._sum, self._sizes), gradients, strict=True):
            total.addmv_(gradient.T, factors)

    def release(self) -> None:
        """Put the noisy mean into every parameter's ``grad`` and begin an empty sum.

        Without any :meth:`accumulate` before it, the gradient is noise alone, which is how an
        empty Poisson batch must be answered.
        """
        noise = self._generator.standard_normal(len(self._sum), dtype=np.float32)
        noisy = self._sum.add(torch.from_numpy(noise).to(self._sum.device), alpha=self._deviation)
        noisy /= self._expected_batch_size
        for parameter, gradient in zip(
            self._parameters, torch.split(noisy, self._sizes), strict=True
        ):
            parameter.grad = gradient.view_as(parameter)
        self._sum.zero_()

    @staticmethod
    def _taken(parameter: Any) -> torch.Tensor:
        """A parameter's per-example gradients, flat, shape (examples, numbers); it forgets them."""
        gradients: torch.Tensor = parameter.grad_sample.flatten(1).float()
        parameter.grad_sample = None
        parameter.grad = None
        return gradients


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
    from scipy.fft import next_fast_len  # type: ignore[import-untyped]

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
    from scipy.optimize import brentq  # type: ignore[import-untyped]  # comes with Opacus

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
