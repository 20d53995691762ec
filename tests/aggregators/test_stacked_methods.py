"""FLoRA and FlexLoRA against PEFT's own combinations: a stack, and a singular value decomposition.

PEFT's ``cat`` stacks weighted adapters, its ``svd`` decomposes their dense sum.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from intarsia_aggregators.base import GlobalState, WeightedUpdate
from peft import LoraConfig, PeftModel, get_peft_model

NAME = "layers.0.q"
RANKS, WEIGHTS = (2, 4, 6), (1.0, 2.0, 5.0)


class OneLayer(torch.nn.Module):
    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.q = torch.nn.Linear(d_in, d_out, bias=False)


def combined_by_peft(updates: list[WeightedUpdate], how: str, **settings: object) -> np.ndarray:
    """PEFT's weighted combination of what clients sent, as a dense matrix."""
    d_out, d_in = updates[0].trained.modules[NAME].shape
    model: PeftModel | None = None
    for one in updates:
        factors = one.trained.modules[NAME]
        config = LoraConfig(
            r=factors.rank, lora_alpha=factors.scaling * factors.rank, target_modules=["q"]
        )
        if model is None:
            model = get_peft_model(OneLayer(d_out, d_in), config, adapter_name=one.client)
        else:
            model.add_adapter(one.client, config)
        layer = model.base_model.model.q
        with torch.no_grad():
            layer.lora_A[one.client].weight.copy_(torch.from_numpy(factors.a.copy()))
            layer.lora_B[one.client].weight.copy_(torch.from_numpy(factors.b.copy()))
    total = sum(one.weight for one in updates)
    model.base_model.add_weighted_adapter(
        [one.client for one in updates],
        [one.weight / total for one in updates],
        "combined",
        combination_type=how,
        **settings,
    )
    delta: np.ndarray = layer.get_delta_weight("combined").double().numpy()
    return delta


def cohort(federation, state: GlobalState, kind: str, generator) -> list[WeightedUpdate]:
    return [
        federation.update(
            state.published, f"c{i}", rank=r, weight=w, kind=kind, scaling=1.5, generator=generator
        )
        for i, (r, w) in enumerate(zip(RANKS, WEIGHTS, strict=True))
    ]


def test_flora_is_peft_s_stack_on_top_of_the_history(federation):
    generator = np.random.default_rng(0)
    state = GlobalState(published=federation.empty())
    expected = np.zeros(federation.shapes[NAME])
    for number in (1, 2, 3):
        updates = cohort(federation, state, "fresh", generator)
        expected = expected + combined_by_peft(updates, "cat")
        result = federation.aggregate(
            "flora", state, updates, round_number=number, broadcast_rank=2, residual_rank=0
        )
        state = result.state
        found = state.published.modules[NAME]
        assert np.abs(found.product() - expected).max() < 1e-6
        # The download grows by the sum of the ranks, whatever bound is set, up to full rank.
        assert found.rank == min(number * sum(RANKS), *federation.shapes[NAME])
        assert (result.cut_energy, result.residual_energy) == (0.0, 0.0)


def test_flexlora_is_peft_s_decomposition_of_the_sum(federation):
    generator = np.random.default_rng(0)
    state = GlobalState(published=federation.empty())
    for number in (1, 2, 3):
        updates = cohort(federation, state, "prefix", generator)
        expected = combined_by_peft(updates, "svd", svd_rank=6)
        whole = combined_by_peft(updates, "cat")
        result = federation.aggregate("flexlora", state, updates, round_number=number)
        state = result.state
        found = state.published.modules[NAME]
        assert found.rank == 6
        assert np.abs(found.product() - expected).max() < 1e-5
        assert np.linalg.norm(whole - expected) > 1e-2 * np.linalg.norm(whole)
    energy = cut = 0.0
    for name in federation.shapes:
        total = sum(one.weight / 8.0 * one.trained.modules[name].product() for one in updates)
        squares = np.linalg.svd(total, compute_uv=False) ** 2
        energy, cut = energy + squares.sum(), cut + squares[6:].sum()
    assert result.cut_energy == pytest.approx(cut / energy)


def test_flexlora_keeps_the_largest_assigned_rank_where_its_client_is_missing(federation):
    generator = np.random.default_rng(1)
    state = GlobalState(published=federation.empty())
    updates = cohort(federation, state, "prefix", generator)[:2]
    found = federation.aggregate("flexlora", state, updates, rank=5).state.published
    assert {factors.rank for factors in found.modules.values()} == {5}
