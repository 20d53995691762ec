"""Tiny base models, made once a session; nothing here reaches the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from random_adapters import random_adapter

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STORIES = Path(__file__).parents[3] / "shared/data/stories260k/hf"
SHAKESPEARE = Path(__file__).parents[3] / "shared/data/tinyshakespeare/input.txt"
LABELS = ("animal", "colour", "number")
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a red house, a green door and a blue sky above the quiet town",
    "one two three four five six seven eight nine ten eleven twelve",
    "an adapter of low rank is a sum of few outer products; nothing more.",
    "records never leave the site, only what was learned from them does",
)


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Tiny models on a shared machine are slower with more threads."""
    import torch

    torch.set_num_threads(1)


def _save_tokenizer(directory: Path, *, encoder: bool = False, pad: bool = True) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>")
    tokenizer = Tokenizer(models.BPE(unk_token=names[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(names),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    special: dict[str, str] = {"unk_token": names[1]}
    if pad:
        special["pad_token"] = names[0]
    if encoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        special |= {"cls_token": names[2], "sep_token": names[3]}
    else:
        special |= {"bos_token": names[4], "eos_token": names[5]}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)
    wrapped.save_pretrained(directory)
    return len(wrapped)


def _save_model(directory: Path, make: Callable[[], Any]) -> Path:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = make()
        for parameter in model.parameters():
            # Larger than usual, so that outputs differ visibly between inputs.
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llama(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama with 32 dimensions and two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("llama")
    size = _save_tokenizer(directory)
    configuration = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=4,
        eos_token_id=5,
        tie_word_embeddings=True,
    )
    return _save_model(directory, lambda: LlamaForCausalLM(configuration))


@pytest.fixture(scope="session")
def bert(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT encoder without a head, with dropout."""
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("bert")
    size = _save_tokenizer(directory, encoder=True)
    configuration = BertConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return _save_model(directory, lambda: BertModel(configuration))


@pytest.fixture(scope="session")
def gpt2(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2, whose weights are (d_in, d_out) and which has no padding token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    directory = tmp_path_factory.mktemp("gpt2")
    size = _save_tokenizer(directory, pad=False)
    configuration = GPT2Config(
        vocab_size=size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=4,
        eos_token_id=5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return _save_model(directory, lambda: GPT2LMHeadModel(configuration))


@dataclass(frozen=True, kw_only=True)
class Bases:
    """The tiny bases, loaded."""

    llama: Any
    bert: Any
    gpt2: Any
    scorer: Any

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@pytest.fixture(scope="session")
def bases(llama: Path, bert: Path, gpt2: Path) -> Bases:
    from intarsia_client.base_model import load_base

    return Bases(
        llama=load_base(str(llama), task="causal-lm"),
        bert=load_base(str(bert), task="sequence-classification", labels=LABELS),
        gpt2=load_base(str(gpt2), task="causal-lm"),
        scorer=load_base(str(llama), task="sequence-classification", labels=LABELS),
    )


@pytest.fixture(scope="session")
def stories(one_thread: None) -> Path:
    """The real 260k-parameter Llama."""
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip(f"{STORIES} is not there")
    return STORIES


@pytest.fixture(scope="session")
def plays() -> list[str]:
    """Speeches of Shakespeare."""
    if not SHAKESPEARE.is_file():
        pytest.skip(f"{SHAKESPEARE} is not there")
    speeches = SHAKESPEARE.read_text().split("\n\n")
    return [speech for speech in speeches if len(speech) > 40]


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Any]:
    return random_adapter
