"""A service of a classifying base: it scores, with each adapter's own head, and does not write."""

from __future__ import annotations

import json

import pytest
from intarsia_client.base_model import load_base
from intarsia_client.errors import AccessError, InputError
from intarsia_client.evaluation import evaluate
from intarsia_client.records import Record
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.answering.service import open_service
from intarsia_platform.answering.settings import RetrievalSettings, ServiceSettings
from intarsia_platform.answering.use import parse_use
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.groups.new_group import NewGroup
from intarsia_platform.groups.rows import GroupSettings
from intarsia_platform.home import Home
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.store import ContentStore

RECORDS = tuple(
    Record(text=f"{word} {n}", label=label)
    for n in range(6)
    for word, label in (("good fine glad", "yes"), ("bad poor sad", "no"))
)
ANN = {"uid": {"type": "User", "id": "ann"}, "parents": [],
       "attrs": {"groups": ["x"], "clearance": 0, "tenant": ""}}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny random BERT with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = {word for record in RECORDS for word in record.text.split()}
    names = ["[PAD]", "[UNK]", *sorted(words)]
    special = {"pad_token": names[0], "unk_token": names[1]}
    vocabulary = {name: n for n, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, names[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, **special
    ).save_pretrained(folder)
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 32}
        model = BertModel(
            BertConfig(vocab_size=len(names), num_hidden_layers=1, num_attention_heads=2, **sizes)
        )
        model.save_pretrained(folder)
    return str(folder)


def group(bert, name, label, records=RECORDS):
    settings = GroupSettings(rank=2, epochs=4, batch_size=4, encoder="base")
    return NewGroup(name=name, base=bert, records=records, labels=[label], settings=settings)


@pytest.fixture
def home(bert, tmp_path):
    opened = Home.open(tmp_path / "home")
    with open_groups(opened) as groups:
        groups.add(group(bert, "mood", "x"))
        groups.add(group(bert, "secret", "y", RECORDS[2:]))
    return opened


def test_accuracy_is_that_of_evaluation_with_the_adapters_own_head(home, bert):
    base = load_base(bert, task="sequence-classification", labels=("no", "yes"))
    with open_service(home) as service:
        policy = 'permit(principal, action, resource) when { resource.labels.contains("x") };'
        PolicyStore(service.database).set(policy, json.dumps([ANN]))
        mood = AdapterRegistry(service.database, ContentStore(home.store_url)).load("mood")
        for use, adapter in (("base", None), ("mood", mood)):
            scores = service.score(service.authorize("ann"), RECORDS, parse_use(use))
            whole = evaluate(base, RECORDS, adapter=adapter, max_length=32)
            assert scores.accuracy == whole.accuracy and scores.perplexity is None
            losses = [one.loss for one in scores.records]
            assert sum(losses) / len(losses) == pytest.approx(whole.loss, rel=1e-5)
            right = [one.correct for one in scores.records]
            assert sum(right) / len(right) == whole.accuracy
        retrieved = service.score(service.authorize("ann"), RECORDS, parse_use("auto"))
        assert {used.name for one in retrieved.records for used in one.used} == {"mood"}
        with pytest.raises(AccessError):
            service.score(service.authorize("ann"), RECORDS, parse_use("secret"))
        with pytest.raises(InputError, match="causal language model"):
            service.answer(service.authorize("ann"), "good", parse_use("base"))


def test_heads_cannot_be_divided_by_a_router(home):
    routed = ServiceSettings(retrieval=RetrievalSettings(routing="lag"))
    with (
        pytest.raises(InputError, match="routing: lag; use request: a router divides no"),
        open_service(home, settings=routed),
    ):
        pytest.fail("opened")
