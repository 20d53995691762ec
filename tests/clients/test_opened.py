"""Adapters that stay on disk: equal to what is read whole, and every damage named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from intarsia_client.errors import InputError, IntarsiaError, IntegrityError, StorageError
from intarsia_client.opened import OpenedModules, module_layouts, open_adapter
from intarsia_client.peft_files import read_adapter, write_adapter
from intarsia_client.wire import Adapter, LowRankFactors
from safetensors.torch import load_file, save_file

TENSORS = "adapter_model.safetensors"
FIRST = "base_model.model.layers.0.q_proj.lora_A.weight"


def adapter(*, task: str = "causal-lm") -> Adapter:
    generator = np.random.default_rng(3)

    def factors(rank: int) -> LowRankFactors:
        return LowRankFactors(
            a=generator.standard_normal((rank, 12)).astype(np.float32),
            b=generator.standard_normal((10, rank)).astype(np.float32),
            scaling=2.0 / rank,
        )

    head = {"score.weight": generator.standard_normal((3, 12)).astype(np.float32)}
    return Adapter(
        base="base",
        task=task,
        modules={"layers.0.q_proj": factors(4), "layers.0.v_proj": factors(2)},
        dense=head if task == "sequence-classification" else {},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", adapter(task="sequence-classification"))
    return tmp_path / "adapter"


def with_kind(folder: Path, kind: torch.dtype) -> None:
    tensors = {key: tensor.to(kind) for key, tensor in load_file(folder / TENSORS).items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def change_header(folder: Path, change) -> None:
    """Rewrite the header by ``change``, the tensors' bytes left alone."""
    data = (folder / TENSORS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / TENSORS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_opened_is_what_is_read_whole(folder, kind):
    with_kind(folder, kind)
    whole, opened = read_adapter(folder), open_adapter(folder)
    assert (opened.base, opened.task, opened.fan_in_fan_out) == ("base", whole.task, False)
    assert list(opened.modules) == list(whole.modules) and len(opened.modules) == 2
    assert isinstance(opened.modules, OpenedModules)
    assert opened.modules.layouts == module_layouts(whole)
    assert "layers.0.q_proj" in opened.modules and "q_proj" not in opened.modules
    for name, factors in whole.modules.items():
        found = opened.modules[name]
        assert found.scaling == factors.scaling
        assert found.a.dtype == found.b.dtype == np.float32
        assert np.array_equal(found.a, factors.a) and np.array_equal(found.b, factors.b)
    assert list(opened.dense) == ["score.weight"] and len(opened.dense) == 1
    assert np.array_equal(opened.dense["score.weight"], whole.dense["score.weight"])
    with pytest.raises(KeyError):
        opened.modules["layers.9"]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rows_are_read_into_memory_that_is_there(folder, kind):
    with_kind(folder, kind)
    modules, whole = open_adapter(folder).modules, read_adapter(folder).modules
    a, b = np.full((2, 12), np.nan, np.float32), np.full((5, 4), np.nan, np.float32)
    modules.read_a("layers.0.q_proj", a, first_row=1)
    modules.read_b("layers.0.q_proj", b, first_row=5)
    assert np.array_equal(a, whole["layers.0.q_proj"].a[1:3])
    assert np.array_equal(b, whole["layers.0.q_proj"].b[5:])
    modules.read_a("layers.0.q_proj", a[:0])


def test_opening_reads_no_tensor(folder):
    """A tensor that is not finite shows when it is read, and only then."""
    tensors = load_file(folder / TENSORS)
    tensors[FIRST][0, 0] = torch.inf
    save_file(tensors, folder / TENSORS)
    opened = open_adapter(folder)
    assert opened.modules["layers.0.v_proj"].rank == 2
    with pytest.raises(InputError, match=f"{FIRST}: not finite"):
        opened.modules["layers.0.q_proj"]
    tensors["base_model.model.score.weight"][0, 0] = torch.nan
    save_file(tensors, folder / TENSORS)
    with pytest.raises(InputError, match=r"score\.weight: not finite"):
        open_adapter(folder).dense["score.weight"]


@pytest.mark.parametrize(
    ("kind", "word"), [(torch.int8, "I8"), (torch.int64, "I64"), (torch.bool, "BOOL")]
)
def test_integers_are_refused_by_their_name(folder, kind, word):
    with_kind(folder, kind)
    with pytest.raises(
        InputError, match=rf"{folder}: adapter tensor .*: {word}; save it as float32"
    ):
        open_adapter(folder)


@pytest.mark.parametrize("left", [0, 3, 8, 40, -1, -60])
def test_a_truncated_file_is_named(folder, left):
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[:left])
    with pytest.raises(IntegrityError, match=str(folder)):
        open_adapter(folder)


def test_bytes_after_the_last_tensor_are_refused(folder):
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data + b"1234")
    with pytest.raises(IntegrityError, match="do not fill"):
        open_adapter(folder)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"data_offsets": [0, 1 << 39], "shape": [1 << 37]}, "claims bytes"),
        ({"data_offsets": [0, 1 << 200], "shape": [1 << 198]}, "does not say where"),
        ({"shape": [4, 13]}, "claims bytes"),
        ({"shape": [-4, -12]}, "does not say where"),
        ({"shape": "4,12"}, "does not say where"),
        ({"shape": [4.0, 12.0]}, "does not say where"),
        ({"data_offsets": [8, 0]}, "claims bytes"),
        ({"data_offsets": [0]}, "does not say where"),
        ({"data_offsets": [64, 256]}, "do not fill"),
        ({"dtype": 7}, "does not say where"),
    ],
)
def test_a_header_that_is_not_true_is_refused_before_memory_is_taken(folder, entry, words):
    change_header(folder, lambda header: header[FIRST].update(entry))
    with pytest.raises(IntegrityError, match=words):
        open_adapter(folder)


def test_two_tensors_in_one_place_are_refused(folder):
    def overlap(header):
        second = header["base_model.model.layers.0.v_proj.lora_A.weight"]
        second["data_offsets"] = [0, second["data_offsets"][1] - second["data_offsets"][0]]

    change_header(folder, overlap)
    with pytest.raises(IntegrityError):
        open_adapter(folder)


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b"{" * 100_000])
def test_a_header_that_is_no_object_is_refused(folder, text):
    (folder / TENSORS).write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(IntegrityError):
        open_adapter(folder)


def test_a_header_that_claims_more_bytes_than_the_file_has(folder):
    (folder / TENSORS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(IntegrityError, match=str(1 << 62)):
        open_adapter(folder)


def test_unknown_and_single_tensors_are_refused_as_in_the_whole(folder):
    change_header(folder, lambda header: header.update(strange=header.pop(FIRST)))
    with pytest.raises(InputError, match="strange"):
        open_adapter(folder)
    tensors = load_file(Path(write(folder.parent / "other")) / TENSORS)
    tensors.pop(FIRST)
    save_file(tensors, folder.parent / "other" / TENSORS)
    with pytest.raises(InputError, match="only lora_B"):
        open_adapter(folder.parent / "other")


def write(folder: Path) -> Path:
    write_adapter(folder, adapter())
    return folder


def test_a_declared_rank_that_is_not_the_tensors_is_refused(folder):
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["r"], settings["rank_pattern"] = 8, {}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="rank 4, declared 8"):
        open_adapter(folder)


def test_a_file_that_changes_while_it_is_read_is_an_error(folder):
    opened = open_adapter(folder)
    other = folder / "other"
    other.write_bytes((folder / TENSORS).read_bytes())
    other.replace(folder / TENSORS)
    with pytest.raises(IntegrityError, match="changed while it was read"):
        opened.modules["layers.0.q_proj"]
    (folder / TENSORS).unlink()
    with pytest.raises(StorageError, match="reading"):
        opened.modules["layers.0.q_proj"]


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/adapter_config.json"):
        open_adapter(tmp_path)


def test_hundreds_of_adapters_take_no_descriptors(folder):
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    opened = [open_adapter(folder) for _ in range(300)]
    assert len(opened[-1].modules["layers.0.q_proj"].a) == 4
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_no_damage_ends_in_anything_but_an_error_of_ours(folder):
    """Single bytes of header and length, changed at random."""
    generator = np.random.default_rng(0)
    data = bytearray((folder / TENSORS).read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.integers(end)] = generator.integers(256)
        (folder / TENSORS).write_bytes(damaged)
        try:
            opened = open_adapter(folder)
            for name in opened.modules:
                opened.modules[name]
        except IntarsiaError:
            pass
