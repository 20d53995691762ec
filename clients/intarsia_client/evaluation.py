"""How well the base model, with or without an adapter, does on held-out records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intarsia_client.attachment import attached
from intarsia_client.base_model import BaseModel, precision
from intarsia_client.batches import collate, packed_batches, sequence_losses, tokenise
from intarsia_client.errors import InputError
from intarsia_client.records import Record
from intarsia_client.wire import Adapter

BATCH_SIZE = 32
_LOGITS_BYTES = 1 << 28
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Args:
        loss: Mean negative log-likelihood in nats: per predicted token over the whole set for a
            causal language model, per record for classification.
        perplexity: ``exp(loss)`` for a causal language model, always finite; else None.
        accuracy: Share of records classified right, between 0 and 1; None for a causal language
            model.
        tokens: Predicted tokens; 0 for classification.
        examples: Records.
    """

    loss: float
    perplexity: float | None
    accuracy: float | None
    tokens: int
    examples: int


def evaluate(
    base: BaseModel,
    records: Sequence[Record],
    *,
    adapter: Adapter | None,
    max_length: int,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Evaluate the base model with an adapter, or alone.

    Args:
        base: The base model.
        records: The records.
        adapter: The whole adapter, head included, or None for the base alone.
        max_length: Longest sequence, in tokens.
        batch_size: Full-length sequences at once; shorter ones are packed to as many tokens.

    Returns:
        The evaluation; it does not depend on the order of the records or on ``batch_size`` but
        for rounding.

    Raises:
        InputError: If there is nothing to evaluate, or records or adapter do not fit the base.
    """
    with attached(base, trainable=None, underneath=adapter) as model:
        return evaluate_attached(model, base, records, max_length=max_length, batch_size=batch_size)


def evaluate_attached(
    model: Any,
    base: BaseModel,
    records: Sequence[Record],
    *,
    max_length: int,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Evaluate a model that is attached already, so that several sets share one attachment.

    Args:
        model: What :func:`intarsia_client.attachment.attached` gave.
        base: The base model.
        records: The records.
        max_length: Longest sequence, in tokens.
        batch_size: As in :func:`evaluate`.

    Returns:
        The evaluation.

    Raises:
        InputError: If there is nothing to evaluate, the records do not fit the base, or the loss
            is not finite.
    """
    tokenised = tokenise(base, records, max_length=max_length)
    if not len(tokenised):
        raise InputError("evaluation", f"{len(records)} records", "give records with some text")
    classifies = base.task == "sequence-classification"
    width = len(base.labels) if classifies else int(base.model.config.vocab_size)
    limit = max(1, min(batch_size * max_length, _LOGITS_BYTES // (4 * width)))
    everything = np.arange(len(tokenised), dtype=np.int64)
    total, predictions, correct = 0.0, 0, 0
    with torch.inference_mode(), precision(base):
        for indices in packed_batches(
            tokenised.lengths, everything, sequences=len(tokenised), tokens=limit
        ):
            batch = collate(base, tokenised, indices)
            losses, counts, logits = sequence_losses(model, base, batch)
            total += float(losses.double().sum())
            predictions += int(counts.sum())
            if classifies:
                correct += int((logits.argmax(-1) == batch.labels).sum())
    loss = total / predictions
    if not math.isfinite(loss):
        raise InputError("evaluation's loss", loss, "use another adapter; this one overflows")
    return Evaluation(
        loss=loss,
        perplexity=None if classifies else math.exp(min(loss, _LARGEST_EXPONENT)),
        accuracy=correct / len(tokenised) if classifies else None,
        tokens=0 if classifies else predictions,
        examples=len(records),
    )
