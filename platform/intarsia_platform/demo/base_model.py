"""Tokenizer and model of the demonstration's base: a small Llama over byte-level tokens.

References:
    Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023, arXiv:2302.13971.
    Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016,
    arXiv:1508.07909 (byte-pair encoding).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<unk>")


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """What determines the base model.

    Attributes:
        vocabulary: Tokens, special ones included.
        hidden_size: Width of the residual stream.
        layers: Transformer layers.
        heads: Attention heads; they divide ``hidden_size``.
        intermediate_size: Width inside the feed-forward blocks.
        positions: Longest sequence the model accepts, in tokens.
        block_length: Length of a training sequence, in tokens.
        batch_size: Sequences per step.
        steps: Optimiser steps.
        warmup_steps: Steps over which the learning rate rises to its peak.
        learning_rate: Peak learning rate of AdamW; it falls to a twentieth along a cosine.
        weight_decay: Decay of the weight matrices.
        max_gradient_norm: Euclidean norm to which gradients are clipped.
        dropout: Share of activations dropped while training.
        evaluate_every: Steps between two looks at the held-out files.
        test_share: Share of the standard library's files that is held out.
        seed: Determines split, initial weights, order of the data and dropout.
    """

    vocabulary: int = 2048
    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    intermediate_size: int = 512
    positions: int = 512
    block_length: int = 256
    batch_size: int = 8
    steps: int = 4500
    warmup_steps: int = 200
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0
    dropout: float = 0.1
    evaluate_every: int = 250
    test_share: float = 0.06
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses settings that cannot be trained.

        Raises:
            ValueError: If a value is out of range.
        """
        for name in ("layers", "heads", "batch_size", "steps", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive; give 1 or more.")
        if self.vocabulary < 256 + len(SPECIAL_TOKENS):
            raise ValueError(
                f"vocabulary={self.vocabulary} must be at least {256 + len(SPECIAL_TOKENS)}: "
                "every byte and every special token needs a place."
            )
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size={self.hidden_size} must be divisible by {self.heads=}.")
        if not 2 <= self.block_length <= self.positions:
            raise ValueError(
                f"block_length={self.block_length} must lie between 2 and {self.positions=}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1.")


def train_tokenizer(
    texts: Iterable[str], *, vocabulary: int, model_max_length: int
) -> PreTrainedTokenizerFast:
    """Trains a byte-level byte-pair tokenizer.

    Args:
        texts: What to learn the merges from.
        vocabulary: Tokens, the 256 bytes and the four special tokens included.
        model_max_length: Longest sequence of the model it is meant for, in tokens.

    Returns:
        A tokenizer that encodes any Unicode text, decodes it to the same text, and adds no
        special tokens of its own accord.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin, end, padding, unknown = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=padding,
        unk_token=unknown,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts, each between a begin and an end token.

    Args:
        tokenizer: Has a begin and an end token.
        texts: What to encode.

    Returns:
        Token ids, one list a text.
    """
    if not texts:
        return []
    # The texts are cut into blocks later, so the warning about long ones does not apply.
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encoded]


def pack_blocks(
    documents: Sequence[Sequence[int]],
    block_length: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Joins documents and cuts them into blocks of equal length.

    Args:
        documents: Token ids of each document.
        block_length: Tokens in a block.
        generator: Shuffles the documents before and the blocks after; None keeps the order.

    Returns:
        Token ids, ``(blocks, block_length)``; what does not fill a block is left out.
    """
    order: Iterable[int] = range(len(documents))
    if generator is not None:
        order = torch.randperm(len(documents), generator=generator).tolist()
    joined = torch.tensor(
        [token for index in order for token in documents[index]], dtype=torch.long
    )
    count = len(joined) // block_length
    blocks = joined[: count * block_length].view(count, block_length)
    if generator is not None:
        blocks = blocks[torch.randperm(count, generator=generator)]
    return blocks


def build_model(settings: BaseSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Builds the model with fresh weights.

    Args:
        settings: Sizes and seed.
        tokenizer: Gives the vocabulary's size and the special tokens' ids.

    Returns:
        A float32 model with tied embeddings.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Llama draws its first weights from torch's global generator; the fork gives it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config).to(torch.float32)


def evaluate_loss(model: torch.nn.Module, blocks: torch.Tensor, *, batch_size: int = 16) -> float:
    """Measures how well a model predicts packed text.

    Args:
        model: A causal language model.
        blocks: Token ids, ``(blocks, block_length)``.
        batch_size: Blocks that are evaluated together.

    Returns:
        The mean cross-entropy in nats per token; its exponential is the perplexity.

    Raises:
        ValueError: If there is no block.
    """
    if len(blocks) == 0:
        raise ValueError("blocks=0: there is no full block to evaluate; hold out more text.")
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(blocks), batch_size):
            batch = blocks[first : first + batch_size]
            total += model(input_ids=batch, labels=batch).loss.item() * len(batch)
    model.train(was_training)
    return total / len(blocks)
