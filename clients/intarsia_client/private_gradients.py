"""The mechanism of example-level privacy: Poisson sampling, clipping each example, noise.

The guarantee that it gives, and what it assumes, stands in :mod:`intarsia_client.privacy`.

References:
    Abadi et al., Deep Learning with Differential Privacy, 2016, arXiv:1607.00133.
    Yousefpour et al., Opacus, 2021, arXiv:2109.12298.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intarsia_client.errors import InputError


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
        A generator; its seed carries 128 bits.
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

    Hooks on the modules' outputs apply Opacus' rules for each example's own gradient, taken over
    all trainable parameters together, head included. Each is scaled to norm ``max_grad_norm`` at
    most and added to a sum; an example whose gradient is not finite adds nothing. The released
    gradient is that sum with normal noise
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
        self._handles: list[Any] = []
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}
        self._sum = torch.zeros(sum(self._sizes), device=self._parameters[0].device)

    def __enter__(self) -> PrivateGradients:
        """Watch every module that has trainable parameters.

        Raises:
            InputError: If Opacus has no per-example gradient for a kind of module.
        """
        for module in self._model.modules():
            if any(one.requires_grad for one in module.parameters(recurse=False)):
                sampler = _gradient_sampler(module)
                watch = functools.partial(self._watch, sampler)
                self._handles.append(module.register_forward_hook(watch))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop watching; modules and parameters are as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def accumulate(self, losses: torch.Tensor) -> None:
        """Add the clipped gradients of some examples to the sum.

        Calls with disjoint parts of a batch give the sum of one call with all of it, so that a
        batch may be cut to fit the memory.

        Args:
            losses: Each example's own loss, independent of the others, shape (examples,).
        """
        torch.autograd.backward(losses.sum())
        gradients = [self._taken(parameter, len(losses)) for parameter in self._parameters]
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

    def _watch(
        self, sampler: Any, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        """Have the module's per-example gradients computed once its output's gradient is there.

        Opacus' own hooks wrap modules in two more nodes of the graph and copy every gradient
        twice; a hook on the output tensor needs neither.
        """
        if output.requires_grad:
            seen = [one.detach() for one in inputs]
            output.register_hook(  # type: ignore[no-untyped-call]
                functools.partial(self._sample, sampler, module, seen)
            )

    def _sample(
        self, sampler: Any, module: Any, inputs: list[torch.Tensor], gradient: torch.Tensor
    ) -> None:
        for parameter, own in sampler(module, inputs, gradient.detach()).items():
            # A module that ran twice adds to each example's gradient twice.
            before = self._gradients.get(parameter)
            self._gradients[parameter] = own if before is None else before + own

    def _taken(self, parameter: torch.nn.Parameter, examples: int) -> torch.Tensor:
        """A parameter's per-example gradients, flat, shape (examples, numbers); then forgotten.

        A parameter that the forward pass did not reach has none: zeros.
        """
        parameter.grad = None
        gradients = self._gradients.pop(parameter, None)
        if gradients is None:
            return self._sum.new_zeros(examples, parameter.numel())
        return gradients.flatten(1).float()


def _gradient_sampler(module: torch.nn.Module) -> Any:
    """Opacus' rule for the per-example gradients of a module's own parameters."""
    # Importing Opacus takes a second, which training without privacy need not wait for.
    from opacus.grad_sample import GradSampleModule

    sampler = GradSampleModule.GRAD_SAMPLERS.get(type(module))
    if sampler is None:
        raise InputError(
            "privacy.unit",
            "example",
            f'this base trains a {type(module).__name__}; choose "none" or another base',
        )
    return sampler
