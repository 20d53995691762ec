"""A Llama of random weights, and adapters and inputs for it: 16 rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from intarsia_client.peft_files import write_adapter
from intarsia_client.wire import Adapter, LowRankFactors
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

ROWS, PROMPT, ROOM = 16, 128, 192
WIDTH, LAYERS, WORDS = 512, 8, 8192
RANKS = (4, 8, 16, 32, 64)
# Sums to 292; the first eight to 124.
FIRST_RANKS = (4, 4, 4, 8, 8, 16, 16, 64, 4, 4, 8, 8, 16, 32, 32, 64)


def bare_model(*, width: int = WIDTH, layers: int = LAYERS, words: int = WORDS) -> Any:
    """The model, with random weights; it ends no answer."""
    configuration = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(configuration).eval().requires_grad_(False)


def ranks(count: int) -> list[int]:
    """Ranks of the adapters."""
    generator = np.random.default_rng(1)
    drawn = generator.choice(RANKS, size=max(0, count - len(FIRST_RANKS)))
    return [*FIRST_RANKS, *map(int, drawn)][:count]


def write_adapters(folder: Path, count: int) -> list[Path]:
    """Adapters as PEFT directories."""
    made = []
    for index, rank in enumerate(ranks(count)):
        generator = np.random.default_rng(index)
        modules = {}
        for layer in range(LAYERS):
            for part in "qkvo":
                a = generator.standard_normal((rank, WIDTH), dtype=np.float32)
                b = generator.standard_normal((WIDTH, rank), dtype=np.float32)
                modules[f"model.layers.{layer}.self_attn.{part}_proj"] = LowRankFactors(
                    a=a * np.float32(WIDTH**-0.5), b=b * np.float32(0.01), scaling=2.0
                )
        made.append(folder / f"adapter-{index:03d}")
        write_adapter(made[-1], Adapter(base="bench", task="causal-lm", modules=modules))
    return made


class Inputs:
    """The same tokens for everybody, and a cache that holds the prompt.

    Args:
        model: A model to fill the cache with.
    """

    def __init__(self, model: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.prompt = torch.randint(WORDS, (ROWS, PROMPT), generator=generator)
        self.token = torch.randint(WORDS, (ROWS, 1), generator=generator)
        self.mask = (torch.arange(ROOM) <= PROMPT).expand(ROWS, 1, 1, ROOM)
        self.positions = torch.full((ROWS, 1), PROMPT)
        self.caches = {
            rows: StaticCache(config=model.config, max_cache_len=ROOM) for rows in (1, ROWS)
        }
        for rows, cache in self.caches.items():
            model(self.prompt[:rows], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def prefill(self, model: Any, rows: slice = slice(None), **options: Any) -> torch.Tensor:
        """All tokens of some rows' prompts."""
        output = model(self.prompt[rows], use_cache=False, logits_to_keep=1, **options)
        logits: torch.Tensor = output.logits
        return logits

    def decode(self, model: Any, rows: slice = slice(None), **options: Any) -> torch.Tensor:
        """One token of some rows, at the same place each time."""
        tokens = self.token[rows]
        cache = self.caches[len(tokens)]
        for layer in cache.layers:
            layer.cumulative_length.fill_(PROMPT)
        output = model(
            tokens,
            past_key_values=cache,
            use_cache=True,
            position_ids=self.positions[rows],
            attention_mask=self.mask[rows],
            **options,
        )
        logits: torch.Tensor = output.logits
        return logits
