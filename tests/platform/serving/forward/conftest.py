"""Tiny random bases, adapters for them, and PEFT's answers to the same questions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from intarsia_client.base_model import BaseModel, load_base
from intarsia_client.peft_files import EncodedAdapter, encode_adapter, write_adapter
from intarsia_client.wire import Adapter
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.mixture import mixture_of
from random_adapters import random_adapter
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

STORIES = Path(__file__).parents[5] / "shared/data/stories260k/hf"
KINDS = ("llama", "gpt2", "bert", "scorer")
VOCABULARY = 60
Weighted = Sequence[tuple[int, float]]


def _model(kind: str) -> nn.Module:
    llama = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**llama))
    if kind == "scorer":
        return LlamaForSequenceClassification(LlamaConfig(**llama, num_labels=3))
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        )
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            num_labels=3,
        )
    )


def base_of(model: nn.Module, task: str) -> BaseModel:
    return BaseModel(
        model=model.eval().requires_grad_(False),
        tokenizer=None,
        digest="sha256:" + "0" * 64,
        task=task,
        base="tiny",
        directory=Path(),
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="session")
def bases() -> dict[str, BaseModel]:
    torch.set_num_threads(1)
    made = {}
    for kind in KINDS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = _model(kind)
            for parameter in model.parameters():
                # Larger than usual, so that outputs differ visibly between inputs.
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
        task = "sequence-classification" if kind in ("bert", "scorer") else "causal-lm"
        made[kind] = base_of(model, task)
    return made


@pytest.fixture(scope="session")
def stories() -> BaseModel:
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip(f"{STORIES} is not there")
    torch.set_num_threads(1)
    return load_base(str(STORIES), task="causal-lm")


def uneven(seed: int) -> Callable[[int], int]:
    """Ranks from 1 to 6 that differ between modules."""
    return lambda index: 1 + (index * (seed + 2) + seed) % 6


class Bench:
    """A base, its adapters, encoded, in a bank and as numbers."""

    def __init__(self, base: BaseModel, adapters: Sequence[Adapter]) -> None:
        self.base, self.adapters = base, adapters
        self.encoded: dict[str, EncodedAdapter] = {}
        for adapter in adapters:
            encoded = encode_adapter(adapter)
            self.encoded[encoded.digest] = encoded
        self.digests = list(self.encoded)
        self.bank = AdapterBank(base, self.encoded.__getitem__)
        self.banked = self.bank.lease(self.digests).adapters

    def mixtures(self, rows: Sequence[Weighted]) -> list[Any]:
        return [mixture_of((self.banked[index], weight) for index, weight in row) for row in rows]

    def expected(self, rows: Sequence[Weighted], tokens: torch.Tensor) -> torch.Tensor:
        """Each row alone through a float64 copy with dense weights."""
        return torch.cat(
            [self._dense(row)(input_ids=tokens[[index]]).logits for index, row in enumerate(rows)]
        )

    def _dense(self, row: Weighted) -> Any:
        model = copy.deepcopy(self.base.model).double()
        own = dict(self.base.model.named_parameters())
        for index, weight in row:
            adapter = self.adapters[index]
            for name, factors in adapter.modules.items():
                parameter = model.get_submodule(name).weight
                product = torch.from_numpy(factors.product()).double()
                parameter.data += weight * (product.T if adapter.fan_in_fan_out else product)
            for name, tensor in adapter.dense.items():
                change = torch.from_numpy(tensor).double() - own[name].double()
                model.get_parameter(name).data += weight * change
        return model


def peft_model(base: BaseModel, adapters: Sequence[Adapter], folder: Path) -> Any:
    """A copy of the base with all adapters loaded by PEFT under the names a0, a1, …"""
    from peft import PeftModel

    for index, adapter in enumerate(adapters):
        write_adapter(folder / f"a{index}", adapter)
    model = PeftModel.from_pretrained(copy.deepcopy(base.model), folder / "a0", adapter_name="a0")
    for index in range(1, len(adapters)):
        model.load_adapter(folder / f"a{index}", adapter_name=f"a{index}")
    return model.eval()


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Adapter]:
    return random_adapter


@pytest.fixture(scope="session")
def make_peft() -> Callable[..., Any]:
    return peft_model


@pytest.fixture(scope="session")
def make_base() -> Callable[..., BaseModel]:
    return base_of


@pytest.fixture(scope="session")
def benches(bases: dict[str, BaseModel]) -> dict[str, Bench]:
    """Four adapters of uneven ranks for each base; the last leaves every third module out."""
    made = {}
    for kind, base in bases.items():
        adapters = [random_adapter(base, uneven(seed), seed=seed) for seed in range(3)]
        adapters.append(random_adapter(base, lambda index: 3 * (index % 3 > 0), seed=9))
        made[kind] = Bench(base, adapters)
    return made
