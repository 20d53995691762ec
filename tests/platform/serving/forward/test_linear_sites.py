from __future__ import annotations

import pytest
import torch
from intarsia_platform.serving.linear_sites import (
    base_shapes,
    factor_precision,
    head_modules_of,
    input_groups,
    linear_modules_of,
)
from torch import nn

SIBLINGS = {
    "llama": [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj")],
    "gpt2": [("c_attn",), ("c_proj",), ("c_fc",)],
    "bert": [("query", "key", "value"), ("dense",), ("dense",)],
    "scorer": [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj")],
}


@pytest.mark.parametrize("kind", SIBLINGS)
def test_groups_are_modules_that_are_given_the_same_tensor(bases, kind):
    base = bases[kind]
    groups = input_groups(base)
    ends = [tuple(name.rpartition(".")[2] for name in group) for group in groups]
    assert ends[:3] == SIBLINGS[kind]
    assert [name for group in groups for name in group] == list(linear_modules_of(base))
    assert all(not module._forward_pre_hooks for module in base.model.modules())


@pytest.mark.parametrize("kind", SIBLINGS)
def test_shapes_are_those_of_the_weights(bases, kind):
    base = bases[kind]
    shapes = base_shapes(base, max_rank=7)
    for name, (d_out, d_in) in shapes.modules.items():
        module = base.model.get_submodule(name)
        expected = module.weight.shape if isinstance(module, nn.Linear) else module.weight.T.shape
        assert (d_out, d_in) == tuple(expected)
    classifies = kind in ("bert", "scorer")
    assert bool(shapes.head) == bool(head_modules_of(base)) == classifies
    assert set(shapes.head).isdisjoint(shapes.modules)
    for name, shape in shapes.head.items():
        assert tuple(base.model.get_parameter(name).shape) == shape
    assert (shapes.max_rank, shapes.dtype) == (7, torch.float32)


def test_factors_have_the_precision_of_the_base(bases, make_base):
    assert factor_precision(bases["llama"]) == torch.float32
    half = make_base(nn.Linear(3, 2).bfloat16(), "causal-lm")
    assert factor_precision(half) == torch.bfloat16


def test_modules_that_share_an_input_apart_in_the_model_are_not_one_group(make_base):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, input_ids):
            x = nn.functional.one_hot(input_ids, 4).float()
            return self.middle(self.first(x)) + self.last(x)

    groups = input_groups(make_base(Model(), "causal-lm"))
    assert groups == (("first",), ("middle",), ("last",))
