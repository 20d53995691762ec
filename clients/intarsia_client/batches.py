"""From records to padded batches, and from a batch to each sequence's loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError
from intarsia_client.records import Record

IGNORED = -100
_TEXTS_AT_ONCE = 1000
_POOL = 50

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TokenisedRecords:
    """Token sequences, end to end in one array so that many short records take little memory.

    Args:
        tokens: All sequences' tokens, shape (total,), int32.
        offsets: Where each sequence begins and the last one ends, shape (sequences + 1,), int64.
        classes: Each sequence's class for classification, shape (sequences,), int64; None for a
            causal language model.
    """

    tokens: NDArray[np.int32]
    offsets: IndexArray
    classes: IndexArray | None = None

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IndexArray:
        """Tokens of each sequence, shape (sequences,)."""
        return np.diff(self.offsets)

    def sequence(self, index: int) -> NDArray[np.int32]:
        """One sequence's tokens, a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences padded on the right to the longest among them, on the model's device.

    Args:
        tokens: Shape (sequences, longest), int64.
        attention_mask: 1 for a token and 0 for padding, same shape.
        labels: What each position must predict, already shifted by one, :data:`IGNORED` where
            nothing is asked: shape (sequences, longest) for a causal language model. For
            classification each sequence's class, shape (sequences,).
    """

    tokens: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def tokenise(
    base: BaseModel, records: Sequence[Record], *, max_length: int, one_each: bool = False
) -> TokenisedRecords:
    """Turn records into token sequences.

    For a causal language model a record is framed by the tokenizer's beginning and end tokens. A
    longer one becomes several windows that overlap by one token, so that every token but the
    first is predicted exactly once. For classification a longer one is cut.

    Args:
        base: The base model; its task decides the form.
        records: The records.
        max_length: Longest sequence, in tokens.
        one_each: Keep only the first window of each record, so that sequence i is record i.
            Private training needs it: what is hidden is one record, and one clipped gradient
            bounds one record only if it has one sequence.

    Returns:
        The sequences, in the records' order.

    Raises:
        InputError: If ``max_length`` does not fit the model, or a label is missing or unknown.
    """
    if not 2 <= max_length <= base.longest_sequence:
        raise InputError(
            "train.max_length", max_length, f"choose between 2 and {base.longest_sequence}"
        )
    if base.task == "sequence-classification":
        classes = np.array([_class_of(base, record) for record in records], dtype=np.int64)
        sequences = [ids[:] for ids in _encoded(base, records, truncate_at=max_length)]
        return _joined(sequences, classes)
    windows: list[NDArray[np.int32]] = []
    before, after = _frame(base)
    for ids in _encoded(base, records):
        whole = np.array([*before, *ids, *after], dtype=np.int32)
        if one_each:
            windows.append(whole[:max_length])
            continue
        for start in range(0, max(1, len(whole) - 1), max_length - 1):
            window = whole[start : start + max_length]
            if len(window) > 1:
                windows.append(window)
    return _joined(windows, None)


def bucketed_batches(
    lengths: IndexArray, batch_size: int, generator: np.random.Generator
) -> list[IndexArray]:
    """Random batches of sequences of similar length, so that little is spent on padding.

    The sequences are shuffled, sorted by length within pools of fifty batches, cut into batches,
    and the batches shuffled. Every sequence comes exactly once.

    Args:
        lengths: Tokens of each sequence, shape (sequences,).
        batch_size: Sequences in a batch; the last of the last pool may hold fewer.
        generator: Decides everything random.

    Returns:
        Each batch's indices.
    """
    order = generator.permutation(len(lengths))
    batches: list[IndexArray] = []
    for start in range(0, len(order), batch_size * _POOL):
        pool = order[start : start + batch_size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def packed_batches(
    lengths: IndexArray, indices: IndexArray, *, sequences: int, tokens: int
) -> list[IndexArray]:
    """Cut sequences into batches of bounded size, longest first, so that padding is least.

    Args:
        lengths: Tokens of each sequence.
        indices: The sequences to cut into batches.
        sequences: Most sequences in a batch.
        tokens: Most tokens in a batch, padding included; a longer sequence comes alone.

    Returns:
        Each batch's indices; none for no sequences.
    """
    order = indices[np.argsort(-lengths[indices], kind="stable")]
    batches: list[IndexArray] = []
    while len(order):
        fitting = tokens // max(1, int(lengths[order[0]]))
        count = max(1, min(sequences, fitting))
        batches.append(order[:count])
        order = order[count:]
    return batches


def collate(base: BaseModel, records: TokenisedRecords, indices: IndexArray) -> Batch:
    """Pad some sequences to the longest among them.

    Args:
        base: The base model.
        records: The tokenised records.
        indices: Which sequences, at least one.

    Returns:
        The batch on the model's device.
    """
    chosen = [records.sequence(int(index)) for index in indices]
    longest = max(1, max(len(sequence) for sequence in chosen))
    tokens = np.full((len(chosen), longest), base.pad_token_id, dtype=np.int64)
    mask = np.zeros((len(chosen), longest), dtype=np.int64)
    labels = np.full((len(chosen), longest), IGNORED, dtype=np.int64)
    for row, sequence in enumerate(chosen):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
        labels[row, : max(0, len(sequence) - 1)] = sequence[1:]
    if records.classes is not None:
        labels = records.classes[indices]
    return Batch(
        tokens=torch.from_numpy(tokens).to(base.device),
        attention_mask=torch.from_numpy(mask).to(base.device),
        labels=torch.from_numpy(labels).to(base.device),
    )


def sequence_losses(
    model: Any, base: BaseModel, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each sequence's own loss, whatever else is in the batch.

    Args:
        model: The base's model, with or without adapters attached.
        base: The base model.
        batch: The batch.

    Returns:
        Summed negative log-likelihood of each sequence in nats, shape (sequences,), float32; how
        many predictions each sum holds, shape (sequences,); and the logits.
    """
    if base.task == "sequence-classification":
        logits = model(input_ids=batch.tokens, attention_mask=batch.attention_mask).logits
        losses = torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")
        return losses, torch.ones_like(batch.labels), logits
    # Padding stands on the right and a causal model never looks there, so no mask is needed, and
    # without one attention takes its fast causal path.
    logits = model(input_ids=batch.tokens, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        batch.labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.view_as(batch.labels).sum(1), (batch.labels != IGNORED).sum(1), logits


def _class_of(base: BaseModel, record: Record) -> int:
    if record.label is None or record.label not in base.labels:
        raise InputError("label", record.label, f"use one of {', '.join(base.labels[:8])}")
    return base.labels.index(record.label)


def _frame(base: BaseModel) -> tuple[list[int], list[int]]:
    """The tokens before and after a record's text, each where the model has one."""

    def token(name: str) -> list[int]:
        choices = (getattr(base.tokenizer, name), getattr(base.model.config, name, None))
        found = next((one for one in choices if isinstance(one, int)), None)
        return [] if found is None else [found]

    return token("bos_token_id"), token("eos_token_id")


def _encoded(
    base: BaseModel, records: Sequence[Record], truncate_at: int | None = None
) -> Iterable[list[int]]:
    options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    if truncate_at is not None:
        options = {"truncation": True, "max_length": truncate_at}
    for start in range(0, len(records), _TEXTS_AT_ONCE):
        texts = [record.text for record in records[start : start + _TEXTS_AT_ONCE]]
        yield from base.tokenizer(texts, return_attention_mask=False, **options)["input_ids"]


def _joined(
    sequences: Sequence[Sequence[int] | NDArray[np.int32]], classes: IndexArray | None
) -> TokenisedRecords:
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
    tokens = np.empty(int(offsets[-1]), dtype=np.int32)
    for index, sequence in enumerate(sequences):
        tokens[offsets[index] : offsets[index + 1]] = sequence
    return TokenisedRecords(tokens=tokens, offsets=offsets, classes=classes)
