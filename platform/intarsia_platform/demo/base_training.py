"""The training loop of the demonstration's base model.

Every random draw comes from one generator that the seed starts, so the same settings, text and
torch give the same weights on the same kind of machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from intarsia_platform.demo.base_model import BaseSettings, evaluate_loss, pack_blocks


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One look at the training.

    Attributes:
        step: Optimiser steps done.
        tokens: Tokens seen, repetitions included.
        train_loss: Mean loss since the last line, in nats per token, with dropout.
        validation_loss: Loss over the held-out files, in nats per token.
        seconds: Wall-clock time since the training began.
    """

    step: int
    tokens: int
    train_loss: float
    validation_loss: float
    seconds: float


def train_model(
    model: LlamaForCausalLM,
    documents: Sequence[Sequence[int]],
    validation_blocks: torch.Tensor,
    settings: BaseSettings,
    report: Callable[[int, LogLine | None], None],
) -> list[LogLine]:
    """Trains a model and leaves it with the weights that did best on the held-out files.

    Args:
        model: Trained in place.
        documents: Token ids of each training passage.
        validation_blocks: Token ids, ``(blocks, block_length)``.
        settings: How to train.
        report: Called after every step with the steps done and, after an evaluation, its line.

    Returns:
        The log, one line an evaluation.

    Raises:
        ValueError: If the text does not fill one batch or the held-out text one block, or if the
            loss is no longer finite.
    """
    if len(validation_blocks) == 0:
        raise ValueError("the held-out files do not fill one block; give more text or test_share.")
    generator = torch.Generator().manual_seed(settings.seed)
    hooks = _add_dropout(model, settings.dropout, generator)
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, settings.weight_decay), betas=(0.9, 0.98), foreach=True
    )
    batches = _endless_batches(documents, settings, generator)
    log: list[LogLine] = []
    best_loss, best_weights = math.inf, model.state_dict()
    losses: list[float] = []
    begin = time.monotonic()
    for step in range(1, settings.steps + 1):
        losses.append(_take_step(model, optimizer, next(batches), step, settings))
        line = None
        if step % settings.evaluate_every == 0 or step == settings.steps:
            line = LogLine(
                step=step,
                tokens=step * settings.batch_size * settings.block_length,
                train_loss=round(sum(losses) / len(losses), 4),
                validation_loss=round(evaluate_loss(model, validation_blocks), 4),
                seconds=round(time.monotonic() - begin, 1),
            )
            losses.clear()
            log.append(line)
            if line.validation_loss < best_loss:
                best_loss = line.validation_loss
                best_weights = {key: value.clone() for key, value in model.state_dict().items()}
        report(step, line)
    for hook in hooks:
        hook.remove()
    model.load_state_dict(best_weights)
    model.eval()
    return log


def _take_step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    batch: torch.Tensor,
    step: int,
    settings: BaseSettings,
) -> float:
    """Takes one optimiser step on token ids (batch_size, block_length); returns the loss."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(step, settings)
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
    optimizer.step()
    value = float(loss.item())
    if not math.isfinite(value):
        raise ValueError(f"the loss of step {step} is {value}; lower --learning-rate.")
    return value


class _SeededDropout:
    """Dropout that draws from a generator of its own instead of torch's global one."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        self._keep = 1.0 - share
        self._generator = generator

    def __call__(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        if not module.training:
            return output
        mask = torch.empty_like(output).bernoulli_(self._keep, generator=self._generator)
        return output * mask.div_(self._keep)


def _add_dropout(
    model: LlamaForCausalLM, share: float, generator: torch.Generator
) -> list[torch.utils.hooks.RemovableHandle]:
    """Drops activations of the embedding and of what each block adds to the residual stream."""
    if share == 0.0:
        return []
    dropout = _SeededDropout(share, generator)
    endings = ("embed_tokens", "o_proj", "down_proj")
    return [
        module.register_forward_hook(dropout)
        for name, module in model.named_modules()
        if name.endswith(endings)
    ]


def _parameter_groups(model: LlamaForCausalLM, decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _endless_batches(
    documents: Sequence[Sequence[int]], settings: BaseSettings, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yields batches of shape (batch_size, block_length), shuffled and cut anew every epoch."""
    while True:
        blocks = pack_blocks(documents, settings.block_length, generator)
        if len(blocks) < settings.batch_size:
            raise ValueError(
                f"the text fills {len(blocks)} blocks of {settings.block_length} tokens, fewer "
                f"than batch_size={settings.batch_size}; give more text or a smaller batch."
            )
        # An incomplete last batch would be a noisier step than the others.
        for first in range(0, len(blocks) - settings.batch_size + 1, settings.batch_size):
            yield blocks[first : first + settings.batch_size]


def _learning_rate(step: int, settings: BaseSettings) -> float:
    """Rises linearly to the peak, then falls to a twentieth of it along a cosine."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * done)))
