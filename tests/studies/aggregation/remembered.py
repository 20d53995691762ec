"""The frozen lower layers of a base model, computed once for each sequence.

Where only the upper layers are adapted, what the lower ones give for a sequence never changes, and
a study that trains on the same few hundred sequences a thousand times need not compute it again.
The adapted layers, their names, the base's digest and everything that is trained and sent stay what
they are. One thing differs: dropout in the lower layers, where a model has any, is off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from intarsia_client.base_model import BaseModel
from intarsia_client.batches import collate, packed_batches, tokenise
from intarsia_client.errors import IntegrityError
from intarsia_client.evaluation import evaluate
from intarsia_client.records import Record
from torch import nn

_TOKENS_AT_ONCE = 2048
_CHECKED = 32
_TOLERANCE = 1e-4

Outputs = dict[bytes, torch.Tensor]
"""From a sequence's tokens to what the lower layers give, shape (tokens, width)."""


class RememberedLayers(nn.Module):
    """Stands for a model's embeddings and its lower layers.

    Args:
        embeddings: The embeddings that it stands for.
        outputs: What the lower layers give.
        width: The model's width.
        pad_token_id: What batches are filled up with on the right.
    """

    def __init__(
        self, embeddings: nn.Module, outputs: Outputs, *, width: int, pad_token_id: int
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self._outputs = outputs
        self._width = width
        self._pad_token_id = pad_token_id

    def forward(self, input_ids: torch.Tensor, **others: object) -> torch.Tensor:
        """What the lower layers give, shape (sequences, tokens, width); zero where padded."""
        del others
        sequences, tokens = input_ids.shape
        given = torch.zeros(sequences, tokens, self._width)
        for row, ids in enumerate(input_ids.numpy()):
            known = self._outputs[_key(ids, self._pad_token_id)]
            given[row, : len(known)] = known
        return given


class PassedThrough(nn.Module):
    """Stands for a layer whose work was done below."""

    def forward(self, hidden_states: torch.Tensor, *args: object, **others: object) -> torch.Tensor:
        """What came in."""
        del args, others
        return hidden_states


def remember(
    base: BaseModel,
    records: Iterable[Record],
    *,
    layers: int,
    max_length: int,
    outputs: Outputs,
) -> None:
    """Have a base model remember its lower layers for these records; it knows no others after.

    Args:
        base: The base model, MiniLM or a Llama; one that remembers already is left as it is.
        records: All records that it will ever see.
        layers: How many layers, counted from the lowest, are never adapted.
        max_length: Longest sequence, in tokens.
        outputs: What was computed before, of the same weights; is added to.

    Raises:
        IntegrityError: If the model's results are no longer the same.
    """
    stack, owner, name = _parts(base.model)
    embeddings = getattr(owner, name)
    if isinstance(embeddings, RememberedLayers):
        return
    records = list(records)
    few = records[:_CHECKED]
    before = evaluate(base, few, adapter=None, max_length=max_length).loss
    if not outputs:
        outputs.update(_computed(base, records, layers, max_length))
    remembered = RememberedLayers(
        embeddings,
        outputs,
        width=int(base.model.config.hidden_size),
        pad_token_id=base.pad_token_id,
    )
    setattr(owner, name, remembered)
    for index in range(layers):
        stack[index] = PassedThrough()
    after = evaluate(base, few, adapter=None, max_length=max_length).loss
    if abs(after - before) > _TOLERANCE * before:
        raise IntegrityError("loss with remembered layers", after, f"it should be {before}")


def _parts(model: Any) -> tuple[nn.ModuleList, nn.Module, str]:
    """The model's layers, and which attribute of which module its embeddings are."""
    if hasattr(model, "bert"):
        return model.bert.encoder.layer, model.bert, "embeddings"
    return model.model.layers, model.model, "embed_tokens"


def _computed(base: BaseModel, records: Sequence[Record], layers: int, max_length: int) -> Outputs:
    tokenised = tokenise(base, records, max_length=max_length)
    everything = np.arange(len(tokenised), dtype=np.int64)
    outputs: Outputs = {}
    with torch.no_grad():
        for indices in packed_batches(
            tokenised.lengths, everything, sequences=len(tokenised), tokens=_TOKENS_AT_ONCE
        ):
            batch = collate(base, tokenised, indices)
            told = base.model(
                input_ids=batch.tokens,
                attention_mask=batch.attention_mask,
                output_hidden_states=True,
            )
            for index, hidden in zip(indices, told.hidden_states[layers], strict=True):
                ids = tokenised.sequence(int(index)).astype(np.int64)
                outputs[_key(ids, base.pad_token_id)] = hidden[: len(ids)].clone()
    return outputs


def _key(ids: np.ndarray[Any, np.dtype[np.int64]], pad_token_id: int) -> bytes:
    """A sequence without its padding."""
    real = np.flatnonzero(ids != pad_token_id)
    return ids[: int(real[-1]) + 1 if len(real) else 0].tobytes()
