from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import numpy as np
import pytest
from intarsia_client.base_model import head_tensors, linear_modules, load_base
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.peft_files import EncodedAdapter, encode_adapter
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_platform.groups.admission import (
    AdmissionRules,
    Inheritance,
    admit_adapter,
    changes_answers,
    check_adapter,
    combined_rights,
)
from intarsia_platform.groups.rows import Rights
from safetensors.numpy import load, save

RULES = AdmissionRules()
PARENTS = {"sha256:" + "1" * 64: "trained-on"}


@pytest.fixture(scope="module")
def base(llama):
    return load_base(llama, task="causal-lm")


@pytest.fixture(scope="module")
def adapter(base):
    return random_adapter(base)


def random_adapter(base, rank=2, scale=0.3):
    generator = np.random.default_rng(0)
    modules = {
        name: LowRankFactors(
            a=generator.normal(0, 0.2, (rank, d_in)).astype(np.float32),
            b=generator.normal(0, scale, (d_out, rank)).astype(np.float32),
            scaling=2.0,
        )
        for name, (d_out, d_in) in linear_modules(base, "all-linear").items()
    }
    return Adapter(base=base.base, task=base.task, modules=modules, dense=head_tensors(base))


def with_module(adapter, name, **changes):
    factors = dataclasses.replace(adapter.modules[name], **changes)
    return dataclasses.replace(adapter, modules={**adapter.modules, name: factors})


def refused(adapter, base, match, rules=RULES):
    encoded = adapter if isinstance(adapter, EncodedAdapter) else encode_adapter(adapter)
    with pytest.raises((InputError, IntegrityError), match=match) as caught:
        check_adapter(encoded, base, rules)
    assert "\n" not in str(caught.value)


def test_a_sound_adapter_passes(adapter, base):
    found = check_adapter(encode_adapter(adapter), base, RULES)
    assert set(found.modules) == set(adapter.modules)
    assert changes_answers(base, adapter)


def test_no_number_may_be_infinite_nor_any_product(adapter, base):
    name = min(adapter.modules)
    tensors = load(encode_adapter(adapter).tensors)
    key = next(key for key in tensors if key.endswith("lora_B.weight"))
    tensors[key] = tensors[key] * np.float32(np.inf)
    infinite = save(tensors, metadata={"format": "pt"})
    refused(dataclasses.replace(encode_adapter(adapter), tensors=infinite), base, "finite")
    large = np.full_like(adapter.modules[name].b, 3e38)
    wide = np.full_like(adapter.modules[name].a, 3e38)
    refused(with_module(adapter, name, a=wide, b=large), base, "not finite")


def test_rank_modules_and_size_are_bounded(adapter, base):
    refused(adapter, base, "use at most 1", AdmissionRules(max_rank=1))
    refused(adapter, base, "may be changed", AdmissionRules(target_modules=("q_proj",)))
    refused(adapter, base, "keep it under 100", AdmissionRules(max_bytes=100))


def test_a_module_that_the_base_lacks_or_has_in_another_shape_is_refused(adapter, base):
    name = min(adapter.modules)
    modules = {**adapter.modules, "model.layers.9.q_proj": adapter.modules[name]}
    refused(dataclasses.replace(adapter, modules=modules), base, "layers.9")
    taller = np.zeros((99, 2), dtype=np.float32)
    refused(with_module(adapter, name, b=taller), base, "shape")


def test_the_output_head_is_no_module(adapter, base):
    (d_out, d_in) = tuple(base.model.lm_head.weight.shape)
    factors = LowRankFactors(
        a=np.ones((1, d_in), np.float32), b=np.ones((d_out, 1), np.float32), scaling=1.0
    )
    refused(dataclasses.replace(adapter, modules={"lm_head": factors}), base, "lm_head")


def test_an_adapter_that_adds_nothing_is_refused(adapter, base):
    nothing = random_adapter(base, scale=0.0)
    refused(nothing, base, "adds nothing")
    # Factors that are not zero, and a product that no answer shows.
    refused(random_adapter(base, scale=1e-30), base, "adds nothing")


def test_an_adapter_of_another_task_is_refused(adapter, base, bert):
    scorer = load_base(bert, task="sequence-classification", labels=("a", "b"))
    refused(adapter, scorer, "task")


def test_whole_tensors_come_in_only_as_a_classifiers_own_head(adapter, base, bert):
    stray = dataclasses.replace(adapter, dense={"score.weight": np.ones((2, 32), np.float32)})
    refused(stray, base, "score.weight")
    scorer = load_base(bert, task="sequence-classification", labels=("a", "b"))
    sound = random_adapter(scorer)
    assert check_adapter(encode_adapter(sound), scorer, RULES).dense
    refused(sound, scorer, "low-rank factors alone", AdmissionRules(allow_head=False))
    wide = {
        name: np.zeros((5, *tensor.shape[1:]), np.float32) for name, tensor in sound.dense.items()
    }
    refused(dataclasses.replace(sound, dense=wide), scorer, "head")


def test_biases_and_truncated_files_are_refused(adapter, base):
    encoded = encode_adapter(adapter)
    settings = {**json.loads(encoded.configuration), "bias": "all"}
    refused(dataclasses.replace(encoded, configuration=json.dumps(settings).encode()), base, "bias")
    refused(dataclasses.replace(encoded, tensors=encoded.tensors[:-1]), base, "safetensors")


def admit(adapter, base, **changes):
    given = {"name": "one", "labels": ["x"], "parents": PARENTS, **changes}
    return admit_adapter(encode_adapter(adapter), base=base, **given)


def test_labels_and_lineage_are_mandatory(adapter, base):
    with pytest.raises(InputError, match="labels"):
        admit(adapter, base, labels=[])
    with pytest.raises(InputError, match="lineage"):
        admit(adapter, base, parents={})


def test_the_base_must_be_the_one_that_was_named(adapter, base):
    version = admit(adapter, base).version
    assert version.base_digest == base.digest
    other = dataclasses.replace(version, base_digest="sha256:" + "0" * 64)
    with pytest.raises(InputError, match="base of one"):
        admit(adapter, base, version=other)


def test_what_is_made_of_others_is_nowhere_wider_than_they(adapter, base):
    early, late = datetime(2031, 1, 1, tzinfo=UTC), datetime(2032, 1, 1, tzinfo=UTC)
    inherited = Inheritance(
        labels=frozenset({"a", "b"}), level=5, expires_at=early, tenants=frozenset({"acme"})
    )
    rights = Rights(tenant="acme", level=3, expires_at=late, owner="me")
    admission = admit(adapter, base, inherited=inherited, rights=rights)
    assert admission.version.labels == ("a", "b", "x")
    assert admission.rights == Rights(tenant="acme", level=5, expires_at=early, owner="me")
    assert json.loads(admission.manifest)["labels"] == ["a", "b", "x"]
    with pytest.raises(InputError, match="tenant"):
        combined_rights(Rights(tenant="other"), inherited)


def test_labels_alone_need_not_be_given_where_they_are_inherited(adapter, base):
    inherited = Inheritance(labels=frozenset({"a"}))
    assert admit(adapter, base, labels=[], inherited=inherited).version.labels == ("a",)
