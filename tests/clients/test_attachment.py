from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from intarsia_client.attachment import attached, read_trained
from intarsia_client.base_model import precision
from intarsia_client.errors import InputError
from intarsia_client.peft_files import write_adapter
from intarsia_client.start import client_start

BASES = ("llama", "bert", "gpt2", "scorer")
FOLDS = pytest.mark.parametrize("fold_bytes", [0, 10_000, 1 << 31])


def state(base):
    """Everything that must be the same afterwards: names, kinds, identities, bits, flags."""
    hasher = hashlib.sha256()
    for name, tensor in base.model.state_dict().items():
        hasher.update(name.encode() + tensor.numpy().tobytes())
    modules = [(name, id(module), type(module)) for name, module in base.model.named_modules()]
    parameters = [
        (name, id(one), one.data_ptr(), one.requires_grad, one.grad)
        for name, one in base.model.named_parameters()
    ]
    attributes = sorted(base.model.__dict__)
    training = [module.training for module in base.model.modules()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in base.model.modules()]
    return hasher.hexdigest(), modules, parameters, attributes, training, hooks


def logits(base, model):
    tokens = torch.tensor([[4, 40, 77, 130, 5], [4, 6, 7, 8, 9]])
    with torch.no_grad(), precision(base):
        return model(input_ids=tokens).logits


def dense_model(base, *adapters):
    """An independent copy with every product added in float64."""
    model = copy.deepcopy(base.model)
    for adapter in adapters:
        for name, factors in adapter.modules.items():
            weight = model.get_submodule(name).weight
            product = torch.from_numpy(factors.product())
            product = product.T if adapter.fan_in_fan_out else product
            weight.data = (weight.data.double() + product).float()
        for name, tensor in adapter.dense.items():
            model.get_parameter(name).data = torch.from_numpy(tensor.copy())
    return model


@pytest.mark.parametrize("name", BASES)
@FOLDS
def test_everything_is_as_before(bases, make_adapter, name, fold_bytes):
    base = bases[name]
    start = client_start(make_adapter(base, 6), rank=4, scaling=2.0, seed=0)
    before = state(base)
    random_state = torch.random.get_rng_state()
    with attached(
        base, trainable=start.trainable, underneath=start.underneath, fold_bytes=fold_bytes
    ) as model:
        model.train()
        assert state(base)[0] != before[0]
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(1.0)
    assert state(base) == before
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.parametrize("name", BASES)
def test_everything_is_as_before_after_an_error(bases, make_adapter, name):
    base = bases[name]
    adapter = make_adapter(base, 3)
    before = state(base)
    with (
        pytest.raises(ZeroDivisionError),
        attached(base, trainable=adapter, underneath=adapter, fold_bytes=9_000) as model,
    ):
        model.train()
        raise ZeroDivisionError
    assert state(base) == before


def test_an_error_halfway_through_injection_leaves_nothing(bases, make_adapter, monkeypatch):
    base = bases.llama
    before = state(base)
    monkeypatch.setattr("intarsia_client.attachment._fill", lambda *_: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        attached(base, trainable=make_adapter(base, 3), underneath=make_adapter(base, 2)),
    ):
        pytest.fail("entered")
    assert state(base) == before


@pytest.mark.parametrize("name", BASES)
@FOLDS
def test_computes_what_the_dense_sum_computes(bases, make_adapter, name, fold_bytes):
    base = bases[name]
    trainable = make_adapter(base, 4, seed=1)
    underneath = replace(make_adapter(base, lambda index: 1 + index % 5, seed=2), dense={})
    expected = logits(base, dense_model(base, underneath, trainable))
    with attached(base, trainable=trainable, underneath=underneath, fold_bytes=fold_bytes) as model:
        found = logits(base, model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - logits(base, base.model)).abs().max() > 0.05


@pytest.mark.parametrize("name", BASES)
def test_kept_layers_serve_adapters_of_all_ranks_and_hold_none(bases, make_adapter, name):
    base = bases[name]
    base.layers.clear()
    places = None
    for seed, rank in enumerate((3, 7, 1, lambda index: 1 + index % 4)):
        trainable = make_adapter(base, rank, seed=seed)
        underneath = replace(make_adapter(base, 2, seed=9 + seed), dense={})
        expected = logits(base, dense_model(base, underneath, trainable))
        with attached(base, trainable=trainable, underneath=underneath, fold_bytes=0) as model:
            torch.testing.assert_close(logits(base, model), expected, rtol=1e-5, atol=1e-5)
        (layers,) = base.layers.values()
        assert places is None or all(layers[one] is places[one] for one in places)
        places = dict(layers)
        for layer in layers.values():
            adapters = [
                one for key, one in layer.named_parameters(remove_duplicate=False) if "lora_" in key
            ]
            assert len(adapters) == 4 and not any(one.numel() for one in adapters)


def test_layers_of_few_sets_of_modules_are_kept(bases, make_adapter):
    base = bases.llama
    whole = make_adapter(base, 2)
    for name, factors in list(whole.modules.items()) * 2:
        part = replace(whole, modules={name: factors})
        with attached(base, trainable=part, underneath=None) as model:
            assert [one for one, _ in model.named_modules() if one.endswith("lora_A")] == [
                f"{name}.lora_A"
            ]
        assert len(base.layers) <= 16


def test_a_replaced_module_is_met_anew(bases, make_adapter):
    base = replace(bases.llama, model=copy.deepcopy(bases.llama.model))
    adapter = make_adapter(base, 2)
    with attached(base, trainable=adapter, underneath=None) as model:
        before = logits(base, model)
    name = next(iter(adapter.modules))
    owner, _, short = name.rpartition(".")
    module = copy.deepcopy(base.model.get_submodule(name))
    module.weight.data.mul_(2.0)
    setattr(base.model.get_submodule(owner), short, module)
    expected = logits(base, dense_model(base, adapter))
    with attached(base, trainable=adapter, underneath=None) as model:
        torch.testing.assert_close(logits(base, model), expected, rtol=1e-5, atol=1e-5)
    assert (before - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", BASES)
@FOLDS
def test_a_whole_adapter_underneath_brings_its_head(bases, make_adapter, name, fold_bytes):
    base = bases[name]
    adapter = make_adapter(base, 5, seed=3)
    expected = logits(base, dense_model(base, adapter))
    with attached(base, trainable=None, underneath=adapter, fold_bytes=fold_bytes) as model:
        assert not any(one.requires_grad for one in model.parameters())
        torch.testing.assert_close(logits(base, model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_is_what_peft_loads_from_the_files(bases, make_adapter, name, tmp_path):
    from peft import PeftModel

    base = bases[name]
    adapter = make_adapter(base, lambda index: 2 + index % 3, seed=4)
    write_adapter(tmp_path / "adapter", adapter)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter").eval()
    with attached(base, trainable=adapter, underneath=None) as model:
        torch.testing.assert_close(logits(base, model), logits(base, loaded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BASES)
@FOLDS
def test_gradients_reach_the_trainable_adapter_only(bases, make_adapter, name, fold_bytes):
    base = bases[name]
    start = client_start(make_adapter(base, 6), rank=4, scaling=2.0, seed=0)
    size = start.trainable.number_of_parameters
    with attached(
        base, trainable=start.trainable, underneath=start.underneath, fold_bytes=fold_bytes
    ) as model:
        model(input_ids=torch.tensor([[4, 40, 77]])).logits.square().sum().backward()
        trained = {n: one for n, one in model.named_parameters() if one.requires_grad}
        assert sum(one.numel() for one in trained.values()) == size
        assert all(one.grad is not None for one in trained.values())
        assert all(".default." in n or n.startswith(("classifier.", "score.")) for n in trained)
        frozen = [one for one in model.parameters() if not one.requires_grad]
        assert all(one.grad is None for one in frozen)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("trained", ["a", "b", "none"])
def test_a_frozen_factor_gets_no_gradient(bases, make_adapter, name, trained):
    base = bases[name]
    start = make_adapter(base, 4)
    with attached(base, trainable=start, underneath=None, trained_factors=trained) as model:
        output = model(input_ids=torch.tensor([[4, 40, 77]])).logits.square().sum()
        if output.requires_grad:
            output.backward()
        sides = {"a": ".lora_A.", "b": ".lora_B."}
        for key, parameter in model.named_parameters():
            wanted = sides.get(trained, "none") in key or key.startswith(("classifier.", "score."))
            assert parameter.requires_grad == wanted == (parameter.grad is not None), key


def test_folding_spares_the_branch(bases, make_adapter):
    base = bases.llama
    adapter = make_adapter(base, 4)
    with attached(base, trainable=None, underneath=adapter) as model:
        assert not any("lora" in name for name, _ in model.named_modules())
    with attached(base, trainable=None, underneath=adapter, fold_bytes=0) as model:
        assert any("lora_A.underneath" in name for name, _ in model.named_modules())


def test_shared_tensors_keep_their_values_inside_the_block(bases, make_adapter):
    base = bases.llama
    name = "model.layers.0.mlp.up_proj"
    shared = base.model.get_submodule(name).weight
    values = shared.detach().clone()
    with attached(base, trainable=None, underneath=make_adapter(base, 4)) as model:
        assert model.get_submodule(name).weight is not shared
        assert torch.equal(shared, values)


@pytest.mark.parametrize("name", BASES)
def test_read_trained_gives_copies_of_the_present_values(bases, make_adapter, name):
    base = bases[name]
    start = make_adapter(base, 3)
    module = next(iter(start.modules))
    with attached(base, trainable=start, underneath=None) as model:
        same = read_trained(model, start)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(1.0)
        changed = read_trained(model, start)
    for key, factors in start.modules.items():
        assert same.modules[key].a.tobytes() == factors.a.tobytes()
        assert same.modules[key].b.tobytes() == factors.b.tobytes()
        assert same.modules[key].scaling == factors.scaling
    np.testing.assert_array_equal(changed.modules[module].a, start.modules[module].a + 1)
    for key, tensor in start.dense.items():
        assert same.dense[key].tobytes() == tensor.tobytes()
        np.testing.assert_array_equal(changed.dense[key], tensor + 1)


def test_one_attachment_at_a_time(bases, make_adapter):
    adapter = make_adapter(bases.llama, 2)
    before = state(bases.llama)
    with (
        attached(bases.llama, trainable=adapter, underneath=None),
        pytest.raises(RuntimeError, match="attached"),
        attached(bases.llama, trainable=adapter, underneath=None),
    ):
        pytest.fail("entered")
    assert state(bases.llama) == before


@pytest.mark.parametrize("side", ["trainable", "underneath"])
def test_an_adapter_of_another_base(bases, make_adapter, side):
    sides = {"trainable": None, "underneath": None}
    before = state(bases.llama)
    with (
        pytest.raises(InputError, match="use an adapter of this base model"),
        attached(bases.llama, **{**sides, side: make_adapter(bases.gpt2, 2)}),
    ):
        pytest.fail("entered")
    adapter = make_adapter(bases.llama, 2)
    name = "model.layers.0.self_attn.k_proj"
    other = adapter.modules["model.layers.0.mlp.up_proj"]
    wrong = replace(adapter, modules={**adapter.modules, name: other})
    with pytest.raises(InputError, match="k_proj"), attached(bases.llama, **{**sides, side: wrong}):
        pytest.fail("entered")
    headed = make_adapter(bases.bert, 2)
    head = {**headed.dense, "classifier.bias": np.zeros(4, np.float32)}
    with (
        pytest.raises(InputError, match=r"classifier\.bias"),
        attached(bases.bert, **{**sides, side: replace(headed, dense=head)}),
    ):
        pytest.fail("entered")
    assert state(bases.llama) == before
