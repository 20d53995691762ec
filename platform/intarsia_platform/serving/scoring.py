"""How likely the base finds each record through that record's own mixture of adapters.

The same numbers as :func:`intarsia_client.evaluation.evaluate` gives for one adapter, but record
by record, each with its own mixture, many mixtures in one batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from intarsia_client.base_model import BaseModel, precision
from intarsia_client.batches import (
    TokenisedRecords,
    collate,
    packed_batches,
    sequence_losses,
    tokenise,
)
from intarsia_client.errors import InputError
from intarsia_client.records import Record
from numpy.typing import NDArray

from intarsia_platform.access.refusal import bad_ticket
from intarsia_platform.access.ticket import Ticket
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.grants import Admission, Watch, Weighted, check_grants
from intarsia_platform.serving.mixture import Mixture, mixture_of
from intarsia_platform.serving.served_base import ServedBase

BATCH_SIZE = 32
_LOGITS_BYTES = 1 << 28
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, kw_only=True)
class RecordScore:
    """What one record's mixture makes of it.

    Args:
        loss: Mean negative log-likelihood in nats, per predicted token for a causal language
            model, of the label for classification; 0 for a record without a token to predict.
        tokens: Predicted tokens; 0 for classification.
        correct: Whether the likeliest class is the label; None for a causal language model.
    """

    loss: float
    tokens: int
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What was found over all records.

    Args:
        records: Each record's score, in the records' order.
        loss: Mean negative log-likelihood in nats: per predicted token over all records for a
            causal language model, per record for classification.
        perplexity: ``exp(loss)`` for a causal language model, always finite; else None.
        accuracy: Share of records classified right; None for a causal language model.
    """

    records: tuple[RecordScore, ...]
    loss: float
    perplexity: float | None
    accuracy: float | None


def score(
    served: ServedBase,
    records: Sequence[Record],
    mixtures: Sequence[Mixture],
    *,
    max_length: int,
    batch_size: int = BATCH_SIZE,
    before_batch: Callable[[], None] | None = None,
) -> Scores:
    """Score records, each through its own mixture.

    Args:
        served: The base model with its seams; other threads may use it between two batches.
        records: The records.
        mixtures: Of each record; an empty one for the base alone.
        max_length: Longest sequence, in tokens; a longer text is scored in windows.
        batch_size: Full-length sequences at once; shorter ones are packed to as many tokens.
        before_batch: Called before each batch; what it raises ends the scoring.

    Returns:
        The scores. They are a function of the records, their mixtures and the numbers here alone.

    Raises:
        InputError: If there is nothing to score, records or mixtures do not fit, or a loss is not
            finite.
    """
    if len(records) != len(mixtures):
        raise InputError("mixtures", len(mixtures), f"give one for each of {len(records)} records")
    base = served.base
    sequences, owners = _tokenised(base, records, max_length)
    if not len(sequences):
        raise InputError("scoring", f"{len(records)} records", "give records with some text")
    classifies = base.task == "sequence-classification"
    width = len(base.labels) if classifies else int(base.model.config.vocab_size)
    limit = max(1, min(batch_size * max_length, _LOGITS_BYTES // (4 * width)))
    losses = np.zeros(len(records))
    counts = np.zeros(len(records), dtype=np.int64)
    correct = np.zeros(len(records), dtype=bool)
    everything = np.arange(len(sequences), dtype=np.int64)
    for indices in packed_batches(
        sequences.lengths, everything, sequences=len(sequences), tokens=limit
    ):
        if before_batch is not None:
            before_batch()
        batch = collate(base, sequences, indices)
        plan = served.plan([mixtures[owners[index]] for index in indices], strict=True)
        with served.using(plan) as model, torch.inference_mode(), precision(base):
            found, predicted, logits = sequence_losses(model, base, batch)
            np.add.at(losses, owners[indices], found.double().cpu().numpy())
            np.add.at(counts, owners[indices], predicted.cpu().numpy())
            if classifies:
                right = logits.argmax(-1) == batch.labels
                correct[owners[indices]] = right.cpu().numpy()
    return _scores(losses, counts, correct if classifies else None)


def score_for_ticket(
    served: ServedBase,
    bank: AdapterBank,
    admission: Admission,
    ticket: Ticket,
    records: Sequence[Record],
    choices: Sequence[Sequence[Weighted]],
    *,
    max_length: int,
    routing: str = "",
    batch_size: int = BATCH_SIZE,
    clock: Callable[[], float] = time.time,
) -> Scores:
    """Score records for a caller, with nothing but what the ticket grants.

    Args:
        served: As in :func:`score`.
        bank: Its adapters.
        admission: Access control; the ticket is let in once for all records.
        ticket: What the caller may use.
        records: As in :func:`score`.
        choices: The adapters of each record and their weights; empty for the base alone.
        max_length: As in :func:`score`.
        routing: Which router divides tokens among a record's adapters; empty for the weights.
        batch_size: As in :func:`score`.
        clock: Seconds since 1970.

    Returns:
        As :func:`score`.

    Raises:
        AccessError: If the ticket is not valid or was used before, does not grant a choice, or
            does not cover them any more before a batch.
        InputError: As :func:`score`.
        IntegrityError: If an adapter's files are damaged.
    """
    admission.admit(ticket)
    parts = [check_grants(ticket, chosen) for chosen in choices]
    # What is used together in one record is judged together; records are answers of their own.
    uses = sorted({tuple(digest for digest, _ in part) for part in parts})
    watches = [Watch(admission, ticket, use, clock) for use in uses]

    def check() -> None:
        epoch = admission.epoch()
        if not all(watch.stands(epoch) for watch in watches):
            raise bad_ticket()

    digests = sorted({digest for use in uses for digest in use})
    with bank.lease(digests) as adapters:
        leased = dict(zip(digests, adapters, strict=True))
        mixtures = [
            mixture_of(((leased[digest], weight) for digest, weight in part), routing)
            for part in parts
        ]
        return score(
            served,
            records,
            mixtures,
            max_length=max_length,
            batch_size=batch_size,
            before_batch=check,
        )


def _tokenised(
    base: BaseModel, records: Sequence[Record], max_length: int
) -> tuple[TokenisedRecords, NDArray[np.int64]]:
    """All records' sequences, and which record each belongs to."""
    parts = [tokenise(base, [record], max_length=max_length) for record in records]
    if not parts:
        parts = [tokenise(base, [], max_length=max_length)]
    owners = np.repeat(np.arange(len(parts), dtype=np.int64), [len(part) for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    classes = [part.classes for part in parts if part.classes is not None]
    whole = TokenisedRecords(
        tokens=np.concatenate([part.tokens for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        classes=np.concatenate(classes) if classes else None,
    )
    return whole, owners


def _scores(
    losses: NDArray[np.float64], counts: NDArray[np.int64], correct: NDArray[np.bool_] | None
) -> Scores:
    loss = float(losses.sum()) / int(counts.sum())
    if not math.isfinite(loss):
        raise InputError("scoring's loss", loss, "use other adapters or weights; these overflow")
    records = tuple(
        RecordScore(
            loss=float(nats) / max(1, int(count)),
            tokens=int(count) if correct is None else 0,
            correct=None if correct is None else bool(correct[index]),
        )
        for index, (nats, count) in enumerate(zip(losses, counts, strict=True))
    )
    return Scores(
        records=records,
        loss=loss,
        perplexity=math.exp(min(loss, _LARGEST_EXPONENT)) if correct is None else None,
        accuracy=None if correct is None else float(correct.mean()),
    )
