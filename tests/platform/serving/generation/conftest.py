"""Tiny bases, adapters in a real registry, people with rights, and engines over them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from random_adapters import random_adapter

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STORIES = Path(__file__).parents[5] / "shared/data/stories260k/hf"
LABELS = ("animal", "colour", "number")
LONG = 640
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a red house, a green door and a blue sky above the quiet town",
    "one two three four five six seven eight nine ten eleven twelve",
    "records never leave the site, only what was learned from them does",
)
POLICIES = """\
@id("own") permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
@id("apart") forbid(principal, action, resource)
when { context.mixing && context.labels.containsAll(["red", "blue"]) };
"""


def _save_tokenizer(folder: Path, longest: int = 96) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token=names[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=longest,
        pad_token=names[0],
        unk_token=names[1],
        bos_token=names[2],
        eos_token=names[3],
    )
    wrapped.save_pretrained(folder)
    return len(wrapped)


def _make(kind: str, size: int) -> Any:
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=size, n_embd=36, n_layer=2, n_head=3, n_positions=96, **ends)
        )
    wide = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LONG if kind == "long" else 96,
    }
    if kind == "bert":
        return BertModel(BertConfig(**wide))
    return LlamaForCausalLM(LlamaConfig(**wide, num_key_value_heads=2, **ends))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of random models by kind, and of the real 260k-parameter Llama where it is."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    found = {}
    for kind in ("llama", "gpt2", "bert", "long"):
        folder = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = _make(kind, _save_tokenizer(folder, LONG if kind == "long" else 96))
            for parameter in model.parameters():
                # Larger than usual, so that outputs differ visibly between inputs.
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder)
        found[kind] = str(folder)
    if (STORIES / "model.safetensors").is_file():
        found["stories"] = str(STORIES)
    return found


@pytest.fixture(scope="session")
def load(folders: dict[str, str]) -> Callable[[str], Any]:
    """Loads a base by kind, once a session."""
    loaded: dict[str, Any] = {}

    def base(kind: str) -> Any:
        from intarsia_client.base_model import load_base

        if kind not in folders:
            pytest.skip(f"{STORIES} is not there")
        if kind not in loaded:
            classifies = kind == "bert"
            loaded[kind] = load_base(
                folders[kind],
                task="sequence-classification" if classifies else "causal-lm",
                labels=LABELS if classifies else (),
            )
        return loaded[kind]

    return base


@dataclass(kw_only=True, eq=False)
class World:
    """One base, a registry, an authoriser and a bank; engines on request."""

    base: Any
    database: Any
    registry: Any
    authorizer: Any
    bank: Any
    served: Any
    shapes: dict[Any, Any]
    open: ExitStack
    people: dict[str, tuple[str, ...]] = field(default_factory=dict)
    adapters: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *labels: str, rank: int = 4, scale: float = 0.3) -> str:
        """Register an adapter; its numbers depend on its name alone."""
        adapter = random_adapter(self.base, rank, seed=sum(name.encode()), size=scale)
        version = self.registry.prepare(
            adapter, name=name, base_digest=self.base.digest, labels=labels
        )
        self.registry.register(version)
        self.adapters[name], self.digests[name] = adapter, version.digest
        return str(version.digest)

    def remove(self, name: str) -> None:
        """Delete an adapter as its life cycle does: rows and bytes, epoch, memory."""
        from intarsia_platform.registry.epoch import bump

        digest = self.digests.pop(name)
        self.registry.remove(digest)
        with self.database.begin() as connection:
            bump(connection)
        self.bank.drop(digest)

    def set_people(self, **people: tuple[str, ...]) -> None:
        """Say who is in which groups; raises the epoch."""
        from intarsia_platform.access.policy import PolicyStore

        self.people = people
        entities = [
            {
                "uid": {"type": "User", "id": name},
                "attrs": {"groups": list(groups), "clearance": 1, "tenant": "acme"},
                "parents": [],
            }
            for name, groups in people.items()
        ]
        PolicyStore(self.database).set(POLICIES, json.dumps(entities))

    def engine(self, *, max_rows: int = 8, **more: Any) -> Any:
        """An engine; shapes are measured once for each base and number of rows."""
        from intarsia_platform.serving.engine import Engine

        key = (self.base.base, -(-max_rows // 16))
        engine = Engine(
            self.served,
            self.bank,
            more.pop("admission", self.authorizer),
            max_rows=max_rows,
            row_tokens=more.pop("row_tokens", min(96, self.base.longest_sequence)),
            shapes=more.pop("shapes", self.shapes.get(key)),
            **more,
        )
        self.shapes.setdefault(key, engine.shapes)
        return self.open.enter_context(engine)

    def choices(self, *names: str | tuple[str, float]) -> tuple[Any, ...]:
        """Adapters by name, each with a weight or 1."""
        from intarsia_continual.retrieval import Choice

        pairs = [(one, 1.0) if isinstance(one, str) else one for one in names]
        return tuple(Choice(digest=self.digests[name], weight=weight) for name, weight in pairs)

    def request(
        self,
        who: str,
        prompt: str | Sequence[int],
        *names: str | tuple[str, float],
        **sampling: Any,
    ) -> Any:
        """A request with a fresh ticket."""
        from intarsia_platform.serving.engine import Request
        from intarsia_platform.serving.sampling import Sampling

        return Request(
            ticket=self.authorizer.authorize(who),
            prompt=prompt,
            choices=self.choices(*names),
            sampling=Sampling(**{"max_tokens": 12, **sampling}),
        )


@pytest.fixture(scope="session")
def measured() -> dict[Any, Any]:
    return {}


@pytest.fixture
def world(
    tmp_path: Path, load: Callable[[str], Any], measured: dict[Any, Any]
) -> Iterator[Callable[..., World]]:
    """Makes a world over a kind of base: ann is red, bob blue, eve both, zoe has nothing."""
    from intarsia_platform.access.authorization import Authorizer
    from intarsia_platform.access.ticket import TicketMint
    from intarsia_platform.registry.adapters import AdapterRegistry
    from intarsia_platform.registry.database import open_database
    from intarsia_platform.registry.store import ContentStore
    from intarsia_platform.serving.bank import AdapterBank
    from intarsia_platform.serving.served_base import ServedBase
    from sqlalchemy import event

    with ExitStack() as open_:

        def make(kind: str, **authority: Any) -> World:
            base = load(kind)
            database = open_.enter_context(open_database(f"sqlite:///{tmp_path}/intarsia.db"))
            # No test here is of a power cut.
            database.engine.dispose()
            event.listen(
                database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF")
            )
            registry = AdapterRegistry(database, ContentStore(str(tmp_path / "store")))
            made = World(
                base=base,
                database=database,
                registry=registry,
                authorizer=Authorizer(database, TicketMint(b"s" * 32), **authority),
                bank=AdapterBank(base, registry.encoded),
                served=open_.enter_context(ServedBase(base)),
                shapes=measured,
                open=open_,
            )
            made.set_people(ann=("red",), bob=("blue",), eve=("red", "blue"), zoe=())
            return made

        yield make


@pytest.fixture(scope="session")
def generated() -> Callable[..., list[int]]:
    """What transformers' own loop answers greedily, with PEFT's adapter where one is given."""

    def generate(base: Any, prompt: Sequence[int], count: int, adapter: Any = None) -> list[int]:
        import torch
        from intarsia_client.attachment import attached

        tokens = torch.tensor([list(prompt)])
        with attached(base, trainable=adapter, underneath=None) as model, torch.inference_mode():
            found = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=count,
                do_sample=False,
            )
        return [int(token) for token in found[0, len(prompt) :]]

    return generate
