from __future__ import annotations

import pytest
import torch
from intarsia_client.errors import InputError
from intarsia_platform.serving.row_attention import NAME, attend, row_attention, row_attention_in
from torch.nn.functional import scaled_dot_product_attention

GEOMETRIES = ((8, 4, 8), (6, 6, 12), (8, 2, 64), (16, 2, 16))


def _parts(
    rows: int, geometry: tuple[int, int, int], positions: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, key_heads, width = geometry
    generator = torch.Generator().manual_seed(rows)
    query = torch.randn(rows, heads, 1, width, generator=generator)
    key = torch.randn(rows, key_heads, positions, width, generator=generator)
    return query, key, torch.randn(rows, key_heads, positions, width, generator=generator)


def _mask(lengths: torch.Tensor, positions: int) -> torch.Tensor:
    hidden = torch.arange(positions) >= lengths[:, None]
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_is_attention(geometry: tuple[int, int, int]) -> None:
    query, key, value = _parts(5, geometry, 192)
    lengths = torch.tensor([1, 64, 65, 130, 192])
    found = attend(query, key, value, _mask(lengths, 192), 0.3)
    together = geometry[0] // geometry[1]
    for row, length in enumerate(lengths):
        expected = scaled_dot_product_attention(
            query[row].double(),
            key[row, :, :length].double().repeat_interleave(together, 0),
            value[row, :, :length].double().repeat_interleave(together, 0),
            scale=0.3,
        )
        torch.testing.assert_close(found[row, 0].double(), expected[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_more_masked_positions_and_more_rows_change_no_bit(geometry: tuple[int, int, int]) -> None:
    torch.set_num_threads(1)
    query, key, value = _parts(16, geometry, 512)
    lengths = torch.arange(1, 17) * 11
    for row, length in enumerate(lengths):
        key[row, :, length:] = value[row, :, length:] = 0
    whole = attend(query, key, value, _mask(lengths, 512), 0.3)
    for rows, positions in ((16, 192), (16, 256), (16, 384), (4, 192), (1, 64)):
        parts = (query[:rows], key[:rows, :, :positions], value[:rows, :, :positions])
        found = attend(*parts, _mask(lengths[:rows], positions), 0.3)
        assert torch.equal(found, whole[:rows])


def test_what_is_not_plain_attention_is_refused() -> None:
    query, key, value = _parts(1, (4, 4, 8), 64)
    with pytest.raises(InputError, match="not plain"):
        row_attention(None, query, key, value, None, softcap=30.0)


def test_the_model_keeps_its_own_attention_afterwards() -> None:
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    model = LlamaModel(LlamaConfig(**sizes, num_attention_heads=2))
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="inside"), row_attention_in(model):
        assert model.config._attn_implementation == NAME
        raise ValueError("inside")
    assert model.config._attn_implementation == before
