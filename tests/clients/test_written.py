"""Adapters written tensor by tensor: the same bytes as written whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.opened import module_layouts, open_adapter
from intarsia_client.peft_files import adapter_digest, encode_adapter, read_adapter, write_adapter
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_client.written import AdapterWriter, opened_digest

FILES = ("adapter_config.json", "adapter_model.safetensors")


def factors(seed: int, rank: int, scaling: float = 1.0, shape=(10, 12)) -> LowRankFactors:
    generator = np.random.default_rng(seed)
    return LowRankFactors(
        a=generator.standard_normal((rank, shape[1])).astype(np.float32),
        b=generator.standard_normal((shape[0], rank)).astype(np.float32),
        scaling=scaling,
    )


def adapter(ranks: dict[str, int], *, head: bool = False) -> Adapter:
    modules = {
        name: factors(seed, rank, 1.0 if seed % 2 else 0.5)
        for seed, (name, rank) in enumerate(ranks.items())
    }
    dense = {"classifier.weight": np.arange(6, dtype=np.float32).reshape(2, 3)} if head else {}
    task = "sequence-classification" if head else "causal-lm"
    return Adapter(base="base", task=task, modules=modules, dense=dense)


def written(folder: Path, whole: Adapter, planned: Adapter | None = None) -> str:
    """Write an adapter whose modules have the ranks of ``planned`` or smaller ones."""
    folder.mkdir()
    like = replace(whole, modules={})
    with AdapterWriter(folder, like, module_layouts(planned or whole)) as writer:
        for name in reversed(list(whole.modules)):
            writer.write_module(name, whole.modules[name].a, whole.modules[name].b)
        assert writer.rank == max(max(whole.rank, 1), 1)
        return writer.finish()


# Names whose order among keys is not their order among themselves.
NAMES = ("a", "a-b", "a.b", "a0", "b.q_proj", "b.q_proj2", "d.x", "aclassifier")


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 5), min_size=1), st.booleans())
def test_the_bytes_are_those_of_the_whole(tmp_path_factory, ranks, head):
    whole = adapter(ranks, head=head)
    folder = tmp_path_factory.mktemp("written") / "one"
    digest = written(folder, whole)
    encoded = encode_adapter(whole)
    assert (folder / FILES[0]).read_bytes() == encoded.configuration
    assert (folder / FILES[1]).read_bytes() == encoded.tensors
    assert digest == encoded.digest == adapter_digest(read_adapter(folder))
    assert opened_digest(whole) == opened_digest(open_adapter(folder)) == digest


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 5), min_size=1), st.booleans())
def test_smaller_ranks_than_planned_leave_no_gap(tmp_path_factory, ranks, head):
    whole = adapter(ranks, head=head)
    planned = replace(
        whole,
        modules={
            name: factors(0, one.rank + 7 * (index % 3), one.scaling)
            for index, (name, one) in enumerate(whole.modules.items())
        },
    )
    # What came out without directions has the scaling that a file gives to nothing.
    whole = replace(
        whole,
        modules={n: f if f.rank else replace(f, scaling=1.0) for n, f in whole.modules.items()},
    )
    planned = replace(
        planned,
        modules={
            n: f if whole.modules[n].rank else replace(f, scaling=1.0)
            for n, f in planned.modules.items()
        },
    )
    folder = tmp_path_factory.mktemp("gaps") / "one"
    assert written(folder, whole, planned) == encode_adapter(whole).digest
    assert (folder / FILES[1]).read_bytes() == encode_adapter(whole).tensors


def test_rows_may_come_from_several_threads_in_any_order(tmp_path):
    whole = adapter({f"m{index}": 4 for index in range(20)})
    with AdapterWriter(tmp_path, replace(whole, modules={}), module_layouts(whole)) as writer:

        def write(name: str) -> None:
            one = whole.modules[name]
            writer.write_rows(name, "B", one.b[6:], 6)
            writer.write_rows(name, "A", one.a[2:], 2)
            writer.write_rows(name, "B", one.b[:6], 0)
            writer.write_rows(name, "A", one.a[:2], 0)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, whole.modules))
        assert writer.finish() == adapter_digest(whole)


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    whole = adapter({"a": 2})
    written(tmp_path / "one", whole)
    with pytest.raises(FileExistsError):
        AdapterWriter(tmp_path / "one", replace(whole, modules={}), module_layouts(whole))


def test_a_digest_of_other_types_is_that_of_their_values(tmp_path):
    """What PEFT saved in bfloat16 has the name of the same adapter in float32."""
    import torch
    from safetensors.torch import load_file, save_file

    write_adapter(tmp_path / "one", adapter({"a": 2, "b": 3}))
    path = tmp_path / "one" / FILES[1]
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    assert opened_digest(open_adapter(tmp_path / "one")) == adapter_digest(
        read_adapter(tmp_path / "one")
    )
    assert torch.bfloat16 == load_file(path)["base_model.model.a.lora_A.weight"].dtype
