from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from intarsia_client.base_model import BaseModel, linear_modules, load_base
from intarsia_platform.planning.profile import profile_base

STORIES = Path(__file__).parents[4] / "shared/data/stories260k/hf"


def test_finds_every_linear_module_with_its_shape_and_stage(
    architecture: str, make_base: Callable[..., BaseModel]
) -> None:
    base = make_base(architecture)
    profile = profile_base(base)
    for name, shape in linear_modules(base, "all-linear").items():
        assert profile.modules[name].shape == shape
        assert profile.modules[name].calls == 1
    numbers = {
        name: int(next(part for part in name.split(".") if part.isdigit()))
        for name in profile.modules
        if any(part.isdigit() for part in name.split("."))
    }
    assert {profile.modules[name].stage - number for name, number in numbers.items()} == {1}
    after = [name for name in profile.modules if name not in numbers]
    assert after and {profile.modules[name].stage for name in after} == {4}
    assert len(profile.stages) == 5


def test_counts_weights_once_and_the_head(
    architecture: str, make_base: Callable[..., BaseModel]
) -> None:
    base = make_base(architecture)
    profile = profile_base(base)
    model = base.model
    parameters = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    # Position indices and the like are buffers: little beside the weights.
    assert 4 * parameters <= profile.weight_bytes <= 4 * parameters + 10_000
    heads = [p.numel() for name, p in model.named_parameters() if name.startswith("classifier")]
    assert profile.head_parameters == sum(heads)
    assert profile.output_width == (2 if heads else 300)


def test_attention_that_is_not_fused_costs_pairs(make_base: Callable[..., BaseModel]) -> None:
    fused, eager = (profile_base(make_base("llama", kind)) for kind in ("sdpa", "eager"))
    for one, other in zip(fused.stages[1:4], eager.stages[1:4], strict=True):
        assert one.bytes_per_pair == 0.0
        # At least the probabilities of six heads, float32.
        assert other.bytes_per_pair >= 6 * 4
        assert one.attention_width == other.attention_width == 48


def test_leaves_the_base_and_the_random_state_alone(
    architecture: str, make_base: Callable[..., BaseModel]
) -> None:
    base = make_base(architecture)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in base.model.modules()]
    state = torch.random.get_rng_state()
    first = profile_base(base)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert profile_base(base) == first
    assert not base.model.training
    assert [len(module._forward_hooks) for module in base.model.modules()] == hooks
    assert all(torch.equal(base.model.state_dict()[name], value) for name, value in before.items())
    assert not any(p.requires_grad for p in base.model.parameters())


def test_layers_that_share_weights_are_called_more_than_once(
    make_base: Callable[..., BaseModel],
) -> None:
    profile = profile_base(make_base("albert"))
    shared = [one for name, one in profile.modules.items() if ".0." in name]
    assert {(one.calls, one.stage) for one in shared} == {(4, 1)}
    # Here a projection of the embeddings stands before the blocks.
    assert 0 in {one.stage for one in profile.modules.values()}
    assert profile.stages[1].attention_width == 4 * 48


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is not there")
def test_a_real_model() -> None:
    base = load_base(str(STORIES), task="causal-lm")
    profile = profile_base(base)
    assert profile.output_width == base.model.config.vocab_size
    assert len(profile.stages) == base.model.config.num_hidden_layers + 2
