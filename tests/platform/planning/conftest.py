"""Tiny bases of three architectures, made in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from intarsia_client.base_model import BaseModel, head_tensors, linear_modules
from intarsia_client.wire import Adapter, LowRankFactors

VOCABULARY = 300


def _base(model: Any, task: str, labels: tuple[str, ...] = ()) -> BaseModel:
    model.requires_grad_(False)
    model.eval()
    model.config.pad_token_id = 0
    return BaseModel(
        model=model,
        tokenizer=SimpleNamespace(model_max_length=64),
        digest="sha256:" + "0" * 64,
        task=task,
        base=type(model).__name__,
        directory=Path(),
        device=torch.device("cpu"),
        labels=labels,
    )


def make_llama(attention: str = "sdpa") -> BaseModel:
    """A Llama of three blocks with fewer key heads than query heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    configuration = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    return _base(LlamaForCausalLM(configuration), "causal-lm")


def make_bert(attention: str = "sdpa") -> BaseModel:
    """A BERT of three blocks with a head for two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    configuration = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=2,
        attn_implementation=attention,
    )
    model = BertForSequenceClassification(configuration)
    return _base(model, "sequence-classification", ("odd", "even"))


def make_gpt2(attention: str = "sdpa") -> BaseModel:
    """A GPT-2 of three blocks, whose weights are (d_in, d_out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    configuration = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=48,
        n_layer=3,
        n_head=4,
        n_positions=64,
        attn_implementation=attention,
    )
    return _base(GPT2LMHeadModel(configuration), "causal-lm")


def make_albert(attention: str = "sdpa") -> BaseModel:
    """An ALBERT whose one block computes four times."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    configuration = AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=16,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=2,
        attn_implementation=attention,
    )
    model = AlbertForSequenceClassification(configuration)
    return _base(model, "sequence-classification", ("odd", "even"))


MAKERS: Mapping[str, Callable[[str], BaseModel]] = {
    "llama": make_llama,
    "bert": make_bert,
    "gpt2": make_gpt2,
    "albert": make_albert,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models on a shared machine are slower with more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["bert", "gpt2", "llama"])
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture's name in turn."""
    return str(request.param)


@pytest.fixture
def make_base() -> Callable[..., BaseModel]:
    """Make a base by its architecture's name."""

    def make(name: str, attention: str = "sdpa") -> BaseModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return MAKERS[name](attention)

    return make


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """Make an adapter of a base at a rank, with some modules or all."""

    def make(
        base: BaseModel, rank: int, names: tuple[str, ...] | None = None, *, head: bool = True
    ) -> Adapter:
        shapes = linear_modules(base, "all-linear")
        generator = np.random.default_rng(0)
        modules = {}
        for name in sorted(shapes) if names is None else names:
            d_out, d_in = shapes[name]
            held = min(rank, d_out, d_in)
            modules[name] = LowRankFactors(
                a=generator.normal(0, d_in**-0.5, (held, d_in)).astype(np.float32),
                b=generator.normal(0, 0.1, (d_out, held)).astype(np.float32),
                scaling=2.0,
            )
        return Adapter(
            base=base.base,
            task=base.task,
            modules=modules,
            dense=head_tensors(base) if head else {},
            fan_in_fan_out=base.fan_in_fan_out,
        )

    return make
