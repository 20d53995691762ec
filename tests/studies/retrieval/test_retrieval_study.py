"""The study's groups, and its figures on a small part of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from intarsia_client.base_model import load_base
from intarsia_continual.descriptors.catalog import CATALOG
from intarsia_continual.encoders import BaseModelEncoder
from intarsia_platform.demo.run import BASE

HERE = Path(__file__).resolve().parent
# The driver's files are a script's, not a package's.
sys.path.append(str(HERE))

from retrieval_figures import JOINT, interference_cases, measure  # noqa: E402
from retrieval_groups import NAMES, passages, read_groups, spread  # noqa: E402

SHARED = HERE.parents[3] / "shared" / "data"


def present(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not in the shared data")
    return SHARED


@pytest.mark.parametrize(("name", "count"), zip(NAMES, (10, 8, 11), strict=True))
def test_no_query_is_among_the_documents(name, count) -> None:
    groups = read_groups(name, present(name), 150, 40)
    assert len(groups.documents) == count and groups.documents.keys() == groups.queries.keys()
    documents = {text for texts in groups.documents.values() for text in texts}
    for own, texts in groups.queries.items():
        assert len(texts) == 40
        assert documents.isdisjoint(texts)
        assert 100 <= len(groups.documents[own]) <= 150
    if groups.prompts:
        for own, prompts in groups.prompts.items():
            starts = zip(prompts, groups.queries[own], strict=True)
            assert all(text.startswith(prompt) for prompt, text in starts)
    else:
        assert len(groups.strangers) == 200


def test_passages_are_whole_and_spread_evenly() -> None:
    assert passages("a b c d e f g", words=3) == ["a b c", "d e f"]
    assert spread(list("abcdefg"), 3) == ["a", "d", "g"]
    assert spread(list("ab"), 3) == ["a", "b"]


def test_who_asks_may_use_the_querys_own_group_and_not_the_hidden_one() -> None:
    queries = {name: [f"{name}{n}" for n in range(3)] for name in "abcdef"}
    for one in interference_cases(queries):
        assert one.query[0] in one.allowed
        assert one.hidden not in one.allowed
        assert len(set(one.allowed)) == 3


def test_the_books_languages_are_told_apart_and_nothing_interferes() -> None:
    shared = present("genesis")
    torch.set_num_threads(1)
    encoder = BaseModelEncoder(load_base(str(BASE), task="causal-lm"), max_tokens=64)
    rows = measure(read_groups("genesis", shared, 16, 3), encoder)
    asked = [row for row in rows if row["asked with"] == "queries"]
    assert [row["retriever"] for row in asked] == [*(entry.name for entry in CATALOG), JOINT]
    for row in asked:
        assert row["top-1"] > 3 / 8
        assert row["top-1"] <= row["top-2"] <= row["top-3"]
        if row["retriever"] != JOINT:
            assert row["changed"] == row["shift"] == 0
