"""Attention of one token a row whose result for a row does not depend on its batch mates.

PyTorch's ``scaled_dot_product_attention`` on a CPU gives a row other last bits when the batch has
more rows, when the keys are padded further, or when another thread happens to compute it. Here
every row and head is a matrix product of its own. The sum over positions goes in blocks of fixed
size, one block after another, so that more masked positions at the end add exact zeros and change
nothing (after "Defeating nondeterminism in LLM inference", He and Thinking Machines 2025).

Whether the linear algebra library keeps its side, the same bits for each matrix of a batched
product, is measured when an engine starts: :mod:`intarsia_platform.serving.invariance`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from intarsia_client.errors import InputError
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from intarsia_platform.serving.cache import BLOCK

NAME = "intarsia_rows"
_UNKNOWN = ("softcap", "s_aux", "position_bias")


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of one query a row.

    Args:
        query: Shape (rows, heads, 1, width).
        key: Shape (rows, key heads, positions, width), positions a multiple of :data:`BLOCK`.
        value: Same shape as the key.
        mask: 0 where a row may look and minus infinity elsewhere, shape (rows, 1, 1, positions).
        scaling: Factor of the products.

    Returns:
        Shape (rows, 1, heads, width).
    """
    rows, heads, _, width = query.shape
    key_heads, positions = key.shape[1], key.shape[2]
    together = heads // key_heads
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    queries = (query * scaling).reshape(rows * key_heads, together, width)
    scores = torch.bmm(queries, keys.to(queries.dtype).transpose(1, 2)).float()
    scores = scores.view(rows, key_heads, together, positions) + mask
    weights = torch.softmax(scores, dim=-1).view(rows * key_heads, together, positions)
    weights = weights.to(values.dtype)
    result = torch.bmm(weights[:, :, :BLOCK], values[:, :BLOCK])
    for begin in range(BLOCK, positions, BLOCK):
        block = slice(begin, begin + BLOCK)
        result = result + torch.bmm(weights[:, :, block], values[:, block])
    return result.reshape(rows, 1, heads, value.shape[3]).to(query.dtype)


def row_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The same as an attention function of transformers.

    A floating-point mask says that this is one token a row; anything else is a row's own prompt,
    alone in its call, and goes to PyTorch's attention.

    Args:
        module: The attention module.
        query: Shape (rows, heads, tokens, width).
        key: Shape (rows, key heads, positions, width).
        value: Same shape as the key.
        attention_mask: None, or shape (rows, 1, tokens, positions).
        dropout: Not used: models are in evaluation mode.
        scaling: Factor of the products, by default ``width ** -0.5``.
        **kwargs: What else a model gives.

    Returns:
        Shape (rows, tokens, heads, width), and None for the weights.

    Raises:
        InputError: If the model wants another kind of attention.
    """
    if any(kwargs.get(name) is not None for name in _UNKNOWN):
        raise InputError("base model", "its attention is not plain", "use Llama's kind or GPT-2")
    if attention_mask is None or not attention_mask.is_floating_point():
        result, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=True
        )
        return result, None
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return attend(query, key, value, attention_mask, scaling), None


@contextlib.contextmanager
def row_attention_in(model: Any) -> Iterator[None]:
    """Let a model use this attention for one block; the caller holds the base's lock.

    Args:
        model: A transformers model.

    Yields:
        Nothing.
    """
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


AttentionInterface.register(NAME, row_attention)
