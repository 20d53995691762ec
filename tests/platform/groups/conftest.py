"""Tiny bases and homes for groups; nothing here reaches the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STORIES = Path(__file__).parents[4] / "shared/data/stories260k/hf"
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a red house, a green door and a blue sky above the quiet town",
    "one two three four five six seven eight nine ten eleven twelve",
    "records never leave the site, only what was learned from them does",
    "an adapter of low rank is a sum of few outer products",
)


def _save_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token=names[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token=names[0],
        unk_token=names[1],
        bos_token=names[2],
        eos_token=names[3],
    )
    wrapped.save_pretrained(folder)
    return len(wrapped)


def _save(folder: Path, make: Callable[[int], Any]) -> str:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = make(_save_tokenizer(folder))
        for parameter in model.parameters():
            # Larger than usual, so that outputs differ visibly between inputs.
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Llama with 32 dimensions and two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(size: int) -> Any:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                bos_token_id=2,
                eos_token_id=3,
            )
        )

    return _save(tmp_path_factory.mktemp("llama"), make)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random BERT encoder without a head."""
    from transformers import BertConfig, BertModel

    def make(size: int) -> Any:
        return BertModel(
            BertConfig(
                vocab_size=size,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
            )
        )

    return _save(tmp_path_factory.mktemp("bert"), make)


@pytest.fixture(scope="session")
def stories() -> str:
    """The real 260k-parameter Llama."""
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip(f"{STORIES} is not there")
    return str(STORIES)


@pytest.fixture(scope="session")
def records() -> tuple[Any, ...]:
    """Ten texts."""
    from intarsia_client.records import Record

    return tuple(Record(text=f"{text} {number}") for number in (1, 2) for text in TEXTS)


@pytest.fixture
def home(tmp_path: Path) -> Any:
    from intarsia_platform.home import Home

    return Home.open(tmp_path / "home")


@pytest.fixture
def opened(home: Any) -> Iterator[Any]:
    """The home's groups."""
    from intarsia_platform.groups.lifecycle import open_groups

    with open_groups(home) as lifecycle:
        yield lifecycle


@pytest.fixture(scope="session")
def new(llama: str, records: tuple[Any, ...]) -> Callable[..., Any]:
    """Makes a group that trains in a moment; settings are given by name beside its own fields."""
    from intarsia_platform.groups.new_group import NewGroup
    from intarsia_platform.groups.rows import GroupSettings

    def make(name: str = "wards", settings: Any = None, **changes: Any) -> Any:
        quick = GroupSettings(rank=2, epochs=2, encoder="base", **(settings or {}))
        group = NewGroup(name=name, base=llama, records=records, labels=["medical"])
        return replace(group, settings=quick, **changes)

    return make


@pytest.fixture(scope="session")
def owned() -> Callable[[Any], set[str]]:
    """All blobs that rows of a home name."""
    from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
    from intarsia_platform.registry.database import open_database
    from intarsia_platform.registry.tables import AdapterTable
    from sqlalchemy import select

    def blobs(home: Any) -> set[str]:
        columns = (
            AdapterTable.tensors_digest,
            AdapterTable.configuration_digest,
            AdapterTable.manifest_digest,
            AdapterRightsTable.signature_digest,
            GroupTable.records_digest,
            GroupTable.descriptor_digest,
        )
        with open_database(home.database_url) as database, database.read() as connection:
            return {
                digest
                for column in columns
                for digest in connection.execute(select(column)).scalars()
            }

    return blobs


@pytest.fixture(scope="session")
def holds() -> Callable[[Any, bytes], list[str]]:
    """Every file of a home that holds some bytes."""

    def find(home: Any, needle: bytes) -> list[str]:
        files = [path for path in home.path.rglob("*") if path.is_file()]
        assert files
        return sorted(str(path) for path in files if needle in path.read_bytes())

    return find


SITES = ("north", "south", "west", "east")


@pytest.fixture(scope="session")
def site_texts() -> Callable[..., dict[str, list[str]]]:
    """What each site has: six different texts, or as many as are asked for."""

    def make(count: int = 6) -> dict[str, list[str]]:
        return {
            site: [f"{TEXTS[n % len(TEXTS)]} at {site} {n}" for n in range(count)] for site in SITES
        }

    return make


@pytest.fixture(scope="session")
def write_study(llama: str, site_texts: Callable[..., Any]) -> Callable[..., Path]:
    """Writes a federation's configuration and the sites' records beside it."""
    import json

    def write(folder: Path, texts: Any = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"note": text, "site": site}
            for site, some in (texts or site_texts()).items()
            for text in some
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "notes.jsonl").write_text(lines)
        (folder / "study.toml").write_text(
            f"""
[model]
base = {json.dumps(llama)}
task = "causal-lm"
[data]
train = "notes.jsonl"
text = "note"
client = "site"
[lora]
target_modules = ["q_proj", "v_proj"]
ranks = [1, 2]
[federation]
rounds = 2
[train]
batch_size = 4
learning_rate = 1e-2
max_length = 24
[engine]
grid = "ray"
threads = 1
"""
        )
        return folder / "study.toml"

    return write


@pytest.fixture(scope="session")
def order_of() -> Callable[..., Any]:
    """Makes an order for a federated group of two sites."""
    from intarsia_platform.configuration import read_configuration
    from intarsia_platform.groups.federating import FederationOrder

    def make(study: Path, *overrides: str, **changes: Any) -> Any:
        given = {"name": "wards", "clients": ["north", "south"], "labels": ["medical"],
                 "encoder": "base", **changes}  # fmt: skip
        return FederationOrder(configuration=read_configuration(study, overrides), **given)

    return make


class Deaf:
    """An observer that hears nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture(scope="session")
def deaf() -> Deaf:
    return Deaf()


@pytest.fixture
def federated(home: Any) -> Iterator[Any]:
    """What federates the home's groups."""
    from intarsia_platform.groups.federating import open_federated_groups

    with open_federated_groups(home) as (_, opened):
        yield opened
