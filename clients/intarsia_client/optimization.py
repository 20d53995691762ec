"""The optimiser of one client's round: AdamW, its schedule, moments that may outlive a round."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from intarsia_client.assignment import TrainAssignment, TrainingParameters
from intarsia_client.attachment import TRAINABLE, attached
from intarsia_client.base_model import BaseModel
from intarsia_client.optimizer_state import ModuleMoments, Moments, OptimizerState
from intarsia_client.start import ClientStart
from intarsia_client.wire import Adapter, FloatArray


def entropy_of(purpose: str, assignment: TrainAssignment) -> int:
    """A seed of this client's round, the same in every run of a federation's seed.

    Args:
        purpose: What it is for; each purpose has its own.
        assignment: The client's assignment.

    Returns:
        128 bits.
    """
    words = f"{purpose}/{assignment.seed}/{assignment.client}/{assignment.round}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:16])


def learning_rate_factor(
    training: TrainingParameters, *, round_number: int, rounds: int, step: int, steps: int
) -> float:
    """The share of the peak learning rate at one step.

    The schedule spans the whole federation; the warm-up comes at the start of every round, since
    every round begins in another basis, and without ``keep_optimizer`` with fresh moments.

    Args:
        training: Schedule and warm-up.
        round_number: From 1.
        rounds: Rounds planned in all.
        step: The step in this round, from 0.
        steps: Steps of this round.

    Returns:
        A number above 0 and up to 1.
    """
    progress = (round_number - 1 + step / steps) / rounds
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[training.schedule]
    rising = math.ceil(training.warmup * steps)
    return factor * min(1.0, (step + 1) / (rising + 1))


def set_rate(
    optimiser: torch.optim.Optimizer, assignment: TrainAssignment, step: int, steps: int
) -> None:
    """Set the learning rates of one step.

    Args:
        optimiser: The optimiser, whose groups hold their peak rates as ``initial_lr``.
        assignment: The client's assignment.
        step: The step in this round, from 0.
        steps: Steps of this round.
    """
    factor = learning_rate_factor(
        assignment.training,
        round_number=assignment.round,
        rounds=assignment.rounds,
        step=step,
        steps=steps,
    )
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(model: Any, assignment: TrainAssignment) -> list[dict[str, Any]]:
    """Part what is trained by its peak learning rate.

    Args:
        model: The attached model.
        assignment: The client's assignment.

    Returns:
        The groups of an optimiser: the factors, and the head beside them where it has a rate of
        its own.
    """
    rate = assignment.training.rate(assignment.rank)
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = 0.0 if f".{TRAINABLE}." in name else assignment.training.head_learning_rate
            groups.setdefault(own or rate, []).append(parameter)
    return [{"params": one, "initial_lr": peak} for peak, one in groups.items()]


@contextlib.contextmanager
def model_in_training(
    base: BaseModel, start: ClientStart, assignment: TrainAssignment, past: OptimizerState
) -> Iterator[tuple[Any, torch.optim.Optimizer]]:
    """Attach a start for training, with random state of its own.

    Args:
        base: The base model.
        start: The client's start; of ``trainable`` what the assignment names gets gradients.
        assignment: The client's assignment.
        past: Moments to begin with, in the start's basis.

    Yields:
        The attached model in training mode, and its optimiser.
    """
    devices = [base.device] if base.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        attached(
            base,
            trainable=start.trainable,
            underneath=start.underneath,
            trained_factors=assignment.trained_factors,
        ) as model,
    ):
        torch.manual_seed(entropy_of("dropout", assignment) % (1 << 63))
        model.train()
        optimiser = torch.optim.AdamW(
            parameter_groups(model, assignment),
            weight_decay=assignment.training.weight_decay,
            fused=True,
        )
        _restore(model, optimiser, past)
        yield model, optimiser


def moments_of(
    model: Any,
    optimiser: torch.optim.Optimizer,
    trained: Adapter,
    past: OptimizerState,
) -> OptimizerState:
    """Read the moments that a round left.

    Args:
        model: The attached model.
        optimiser: Its optimiser, after the last step.
        trained: The adapter as it was trained; its factors are kept with the moments.
        past: The moments that the round began with; those of factors that it did not train stay.

    Returns:
        The moments, as copies.
    """
    modules = {}
    for name, factors in trained.modules.items():
        a, b = (_taken(optimiser, parameter) for parameter in _factors_of(model, name))
        before = past.modules.get(name)
        if before is not None:
            a, b = a or before.a, b or before.b
        if a is not None or b is not None:
            modules[name] = ModuleMoments(factors=factors, a=a, b=b)
    dense = {name: _taken(optimiser, model.get_parameter(name)) for name in trained.dense}
    return OptimizerState(
        modules=modules,
        dense={name: one for name, one in dense.items() if one is not None},
    )


def _factors_of(model: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    layer = model.get_submodule(name)
    return layer.lora_A[TRAINABLE].weight, layer.lora_B[TRAINABLE].weight


def _restore(model: Any, optimiser: torch.optim.Optimizer, past: OptimizerState) -> None:
    for name, kept in past.modules.items():
        for parameter, moments in zip(_factors_of(model, name), (kept.a, kept.b), strict=True):
            _give(optimiser, parameter, moments)
    for name, moments in past.dense.items():
        _give(optimiser, model.get_parameter(name), moments)


def _give(
    optimiser: torch.optim.Optimizer, parameter: torch.Tensor, moments: Moments | None
) -> None:
    if moments is None or not parameter.requires_grad:
        return
    device = parameter.device
    optimiser.state[parameter] = {
        "step": torch.tensor(float(moments.steps), device=device),
        "exp_avg": torch.tensor(moments.first, device=device),
        "exp_avg_sq": torch.tensor(moments.second, device=device),
    }


def _taken(optimiser: torch.optim.Optimizer, parameter: torch.Tensor) -> Moments | None:
    state = optimiser.state.get(parameter)
    if not state:
        return None
    first: FloatArray = state["exp_avg"].float().cpu().numpy().copy()
    second: FloatArray = state["exp_avg_sq"].float().cpu().numpy().copy()
    return Moments(first=first, second=second, steps=int(state["step"]))
