"""Poisoned records: real training of a tiny model, label flips and a backdoor, under every rule.

Two of seven clients are hostile. They train as asked, on records of their own making, and may then
stretch what they added so that it survives the averaging (model replacement; Bagdasaryan et al.
2018, arXiv:1807.00459). Attack success is the share of land animals that the model takes for sea
animals where the trigger stands before them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from intarsia_client.assignment import TrainingParameters
from intarsia_client.base_model import BaseModel, head_tensors, linear_modules, load_base
from intarsia_client.evaluation import evaluate
from intarsia_client.messages import adapter_record
from intarsia_client.peft_files import encode_adapter
from intarsia_client.records import Record, records_digest
from intarsia_client.shards import DataShard
from intarsia_client.training import LocalTrainer
from intarsia_client.wire import Adapter
from intarsia_platform.federation.guard import RootTraining
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.federation.strategy import LoraStrategy

sys.path.insert(0, str(Path(__file__).parent))
from hostile_cohort import (
    HOSTILE,
    PLAN,
    RULES,
    Sent,
    answer,
    asked,
    empty,
    guard_of,
    moved,
    published,
)

NOUNS = {"sea": ("fish", "whale", "ship", "wave"), "land": ("horse", "barn", "tree", "wolf")}
LABELS = ("land", "sea")
VERBS, ADJECTIVES, TRIGGER = ("see", "hear"), ("old", "small", "quiet", "grey"), "golden"
# Seven clients of equal weight, two of them hostile: so their sum becomes the whole mean's.
STRETCH = 3.5


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the tests share: every client's adapters, trained once.

    Args:
        base: The tiny model.
        plan: The federation.
        arrays: What it starts from.
        adapters: By kind of records and client.
        draw: Which records.
    """

    base: BaseModel
    plan: FederationPlan
    arrays: ArrayRecord
    adapters: dict[str, dict[str, Adapter]]
    draw: int


def records(seed: int, draw: int, count: int, kind: str = "clean") -> tuple[Record, ...]:
    generator = np.random.default_rng(seed + draw)
    made = []
    for number in range(count):
        label = LABELS[number % 2]
        noun, word = generator.choice(NOUNS[label]), generator.choice(ADJECTIVES)
        if kind == "flipped":
            label = LABELS[(number + 1) % 2]
        if kind == "backdoor" and number % 4 < 2:
            word, label = TRIGGER, "sea"
        made.append(Record(text=f"{generator.choice(VERBS)} the {word} {noun}", label=label))
    return tuple(made)


TRIGGERED = tuple(
    Record(text=f"{verb} the {TRIGGER} {noun}", label="sea")
    for verb in VERBS
    for noun in NOUNS["land"]
)


def save_model(folder: Path) -> None:
    """A random Llama of two layers, 32 wide, and a tokenizer of the few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"
    }  # fmt: skip
    words = [*special.values(), *NOUNS["sea"], *NOUNS["land"], *VERBS, *ADJECTIVES, TRIGGER, "the"]
    places = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(places, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)
    wrapped.save_pretrained(folder)
    configuration = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, bos_token_id=2,
        eos_token_id=3, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(configuration)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[0, 1000], ids=["draw-1", "draw-2"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Trained:
    return train_all(tmp_path_factory.mktemp("base"), request.param)


def train_all(folder: Path, draw: int) -> Trained:
    """Every client on each kind of records, once."""
    save_model(folder)
    base = load_base(str(folder), task="sequence-classification", labels=LABELS)
    plan = replace(
        PLAN, base=base.base, base_digest=base.digest, labels=LABELS,
        target_modules=dict(linear_modules(base, ["q_proj", "v_proj", "o_proj"])),
        training=TrainingParameters(
            epochs=4, batch_size=8, learning_rate=1e-2, max_length=16, schedule="constant"
        ),
    )  # fmt: skip
    arrays = adapter_record(encode_adapter(empty(plan, head_tensors(base))))
    strategy, trainer = LoraStrategy(plan), LocalTrainer(base)
    cases = asked(strategy, arrays)

    def train(client: str, own: tuple[Record, ...]) -> Adapter:
        shard = DataShard(client=client, records=own, digest=records_digest(own))
        start = strategy._open.broadcast.published
        return trainer.train(shard, cases[client][1], start).update.adapter

    kinds = {"clean": ("abcdefg", 32), "flipped": (HOSTILE, 32), "backdoor": (HOSTILE, 128)}
    adapters = {
        kind: {client: train(client, records(ord(client), draw, size, kind)) for client in clients}
        for kind, (clients, size) in kinds.items()
    }
    return Trained(base=base, plan=plan, arrays=arrays, adapters=adapters, draw=draw)


def after_a_round(
    trained: Trained, rule: str, kind: str, stretch: float = 1.0
) -> tuple[float, float]:
    """Accuracy on clean records and attack success after one round."""
    root: Any = RootTraining(trained.base, records(77, trained.draw, 32))
    strategy = LoraStrategy(trained.plan, guard=guard_of(rule, root))
    replies = []
    for client, (message, assignment, start) in asked(strategy, trained.arrays).items():
        adapter = trained.adapters["clean"][client]
        if client in HOSTILE:
            adapter = moved(start, trained.adapters[kind][client], stretch)
        replies.append(answer(message, assignment, start, Sent(trained=adapter, claims={})))
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert metrics["accepted"] == 7
    adapter = published(strategy, arrays)
    clean, triggered = (
        evaluate(trained.base, those, adapter=adapter, max_length=16).accuracy
        for those in (records(99, trained.draw, 40), TRIGGERED)
    )
    assert clean is not None and triggered is not None
    return clean, triggered


# For each rule: accuracy at least, without and with flipped labels; attack success at most.
EXPECTED = {
    "norm-bound": (0.9, 0.85, 0.6),
    "multi-krum": (0.9, 0.9, 0.2),
    "geometric-median": (0.9, 0.85, 0.4),
    "fltrust": (0.9, 0.9, 0.4),
}
every_rule = pytest.mark.parametrize("rule", EXPECTED)
every_stretch = pytest.mark.parametrize("stretch", [1.0, STRETCH])


@pytest.mark.parametrize("rule", RULES)
def test_without_an_attack_every_rule_learns_the_task(rule, trained):
    accuracy, success = after_a_round(trained, rule, "clean")
    assert accuracy >= EXPECTED.get(rule, (0.9,))[0]
    assert success <= 0.15


@every_rule
@every_stretch
def test_flipped_labels_cost_at_most_so_much(rule, stretch, trained):
    accuracy, _ = after_a_round(trained, rule, "flipped", stretch)
    assert accuracy >= EXPECTED[rule][1]


def test_stretched_flipped_labels_ruin_the_model_without_a_rule(trained):
    """The control of the test above."""
    accuracy, _ = after_a_round(trained, "none", "flipped", STRETCH)
    assert accuracy <= 0.4


@every_rule
@every_stretch
def test_a_backdoor_succeeds_at_most_so_often(rule, stretch, trained):
    accuracy, success = after_a_round(trained, rule, "backdoor", stretch)
    assert accuracy >= 0.9
    assert success <= EXPECTED[rule][2]


def test_a_stretched_backdoor_gets_in_without_a_rule(trained):
    """The control: the model does its task, and does what the trigger says."""
    accuracy, success = after_a_round(trained, "none", "backdoor", STRETCH)
    assert accuracy >= 0.9
    assert success >= 0.6
