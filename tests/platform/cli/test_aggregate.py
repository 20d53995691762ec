import dataclasses
import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from intarsia_aggregators import catalog, offline
from intarsia_client.peft_files import adapter_digest, read_adapter
from intarsia_platform.cli import counted_progress
from intarsia_platform.cli.aggregate import one_weight_each
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

NAMES = ("four", "sixteen", "mixed", "sixty-four")


def peft_products(base: Path, folder: Path) -> dict[str, np.ndarray]:
    """What PEFT makes of a folder: per module, scaling * B @ A in float64."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder)
    return {
        name: layer.scaling["default"]
        * (
            layer.lora_B["default"].weight.detach().double().numpy()
            @ layer.lora_A["default"].weight.detach().double().numpy()
        )
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A") and layer.lora_A
    }


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def wanted(saved_by_peft):
    """The weighted sum in float64 by PEFT's own reading, weights 1, 2, 0.5 and 4.5."""
    products = [peft_products(saved_by_peft["base"], saved_by_peft[name]) for name in NAMES]
    shares = np.array([1, 2, 0.5, 4.5]) / 8
    return {
        name: sum(share * product[name] for share, product in zip(shares, products, strict=True))
        for name in products[0]
    }


def test_the_exact_sum_is_peft_s_in_float64_and_loads_in_peft(
    intarsia, saved_by_peft, wanted, tmp_path
):
    folders = [saved_by_peft[name] for name in NAMES]
    ended = intarsia(
        "aggregate", *folders, "--out", "sum", "--weight", 1, "--weight", 2,
        "--weight", 0.5, "--weight", 4.5, "--json", "sum.json",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    found = peft_products(saved_by_peft["base"], tmp_path / "sum")
    assert found.keys() == wanted.keys()
    assert max(relative(found[name], wanted[name]) for name in wanted) < 1e-6
    base = LlamaForCausalLM.from_pretrained(saved_by_peft["base"])
    model = PeftModel.from_pretrained(base, tmp_path / "sum")
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    result = json.loads((tmp_path / "sum.json").read_text())
    assert result["rank"] == 4 + 16 + 32 + 64
    assert result["weights"] == [0.125, 0.25, 0.0625, 0.5625]
    assert result["cut_total"] == 0 and set(result["cut"].values()) == {0.0}
    assert result["path"] == str(tmp_path / "sum")
    assert result["digest"] == adapter_digest(read_adapter(tmp_path / "sum"))
    assert result["parents"] == [adapter_digest(read_adapter(folder)) for folder in folders]
    manifest = json.loads((tmp_path / "sum" / "intarsia.json").read_text())
    assert manifest["kind"] == "aggregate"
    assert {name: result[name] for name in manifest} == manifest
    assert result["digest"] in ended.out and "the sum is exact" in ended.out


def test_a_rank_gives_the_best_approximation_and_says_what_was_cut(
    intarsia, saved_by_peft, wanted, tmp_path
):
    folders = [saved_by_peft[name] for name in NAMES]
    ended = intarsia(
        "aggregate", "--out", "cut", "--rank", 6, *folders, "--json", "-",
        "--weight", 1, 2, 0.5, 4.5,
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    result = json.loads(ended.out)
    assert result["rank"] == 6
    found = peft_products(saved_by_peft["base"], tmp_path / "cut")
    cut_energy, energy = 0.0, 0.0
    for name, dense in wanted.items():
        u, sigma, v = np.linalg.svd(dense)
        best = (u[:, :6] * sigma[:6]) @ v[:6]
        assert relative(found[name], best) < 1e-5
        share = float(np.sum(sigma[6:] ** 2) / np.sum(sigma**2))
        assert result["cut"][name.removeprefix("base_model.model.")] == pytest.approx(
            share, rel=1e-4
        )
        cut_energy += float(np.sum(sigma[6:] ** 2))
        energy += float(np.sum(sigma**2))
    assert result["cut_total"] == pytest.approx(cut_energy / energy, rel=1e-4)


def test_the_table_shows_the_modules_that_lost_most(intarsia, saved_by_peft):
    ended = intarsia(
        "aggregate", saved_by_peft["four"], saved_by_peft["sixteen"], "--out", "o", "--rank", 1
    )
    assert ended.code == 0
    assert "module, 10 of 14" in ended.out
    shares = [float(word) for word in re.findall(r"proj +([\d.]+) %", ended.out)]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True)
    assert re.search(r"energy cut +\d", ended.out)


def test_weights_are_equal_where_none_are_given(intarsia, saved_by_peft):
    ended = intarsia(
        "aggregate", saved_by_peft["four"], saved_by_peft["mixed"], "--out", "o", "--json", "-"
    )
    assert json.loads(ended.out)["weights"] == [0.5, 0.5]


def test_two_runs_give_the_same_bytes(intarsia, saved_by_peft, tmp_path):
    for out in ("one", "two"):
        words = (saved_by_peft["four"], saved_by_peft["mixed"], "--rank", 5, "--out", out)
        assert intarsia("aggregate", *words).code == 0
    for file in ("adapter_config.json", "adapter_model.safetensors", "intarsia.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--weight 1 2 3", "--weight 1 --weight 2 --weight 3"),
        ("--weight 1 --weight 2 a", "--weight 1 --weight 2 a"),
        ("--weight=1 2 a 3", "--weight=1 --weight 2 a 3"),
        ("a --weight 1 -2 --out 5", "a --weight 1 --weight -2 --out 5"),
        ("a --weight", "a --weight"),
        ("--rank 3 4", "--rank 3 4"),
    ],
)
def test_weights_may_follow_one_option(words, wanted):
    assert one_weight_each(words.split()) == wanted.split()


def test_a_number_that_is_a_folder_is_a_folder(tmp_path):
    (tmp_path / "2").mkdir()
    assert one_weight_each(["--weight", "1", "2"]) == ["--weight", "1", "2"]


def test_the_list_is_the_catalogue(intarsia):
    ended = intarsia("aggregate", "--list", "--json", "list.json")
    assert (ended.code, ended.err) == (0, "")
    methods = json.loads(Path("list.json").read_text())["methods"]
    assert [method["name"] for method in methods] == [entry.name for entry in catalog.CATALOG]
    for entry, method in zip(catalog.CATALOG, methods, strict=True):
        for text in (entry.summary, entry.source, entry.upload_cost, entry.download_cost):
            assert text in ended.out
        for name in ("exact", "mixed_ranks", "linear", "adds_deltas", "upload_cost"):
            assert method[name] == getattr(entry, name)
        assert method["starts"] == list(entry.starts)
        assert ", ".join(entry.starts) in ended.out
    for heading in ("mixed ranks", "linear", "starts", "upload cost", "download cost", "source"):
        assert heading in ended.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["four"], "--out: missing; "),
        (["--out", "o"], "adapters: 0; name at least one"),
        (["four", "--out", "o", "--weight", "1", "2"], "--weight: 2 for 1 adapters; "),
        (["four", "--out", "o", "--weight", "-1"], "--weight: -1.0; "),
        (["four", "--out", "o", "--weight", "nan"], "--weight: nan; "),
        (["four", "--out", "o", "--weight", "0"], "--weight: 0.0; "),
        (["four", "--out", "o", "--rank", "0"], "--rank: 0; "),
        (["four", "--out", "o", "--rank", "x"], "'--rank': 'x' is not a valid integer; see "),
        (["four", "--out", "o", "--method", "mean"], "aggregation method: mean; choose one of"),
        (["four", "--out", "o", "--method", "rolora"], "rolora needs a frozen factor .*; use led"),
        (["four", "--out", "o", "--method", "fedavg"], "--method: fedavg averages heads alone; "),
        (["four", "--out", "o", "--method", "fedit", "--rank", "2"], "--rank: 2 with fedit; "),
        (
            ["four", "sixteen", "--out", "o", "--method", "fedit"],
            "/sixteen: module .*: rank 16, scaling 1.25; fedit averages equal ones, .*/four has 4 ",
        ),
        (["nowhere", "--out", "o"], "nowhere/adapter_config.json; "),
        (["four", "--out", "four"], "output folder: .*; choose a folder that does not exist"),
        (["four", "--out", "o", "--json", "."], r"--json: \. is a folder; "),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(intarsia, saved_by_peft, tmp_path, words, line):
    words = [str(saved_by_peft.get(word, word)) for word in words]
    ended = intarsia("aggregate", *words)
    assert ended.code == 2
    assert re.search(f"^intarsia: error: .*{line}", ended.line)
    assert ended.out == "" and list(tmp_path.iterdir()) == []


def test_adapters_of_two_bases_are_refused(intarsia, saved_by_peft, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (other / file).write_bytes((saved_by_peft["four"] / file).read_bytes())
    settings = json.loads((other / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "another/base"
    (other / "adapter_config.json").write_text(json.dumps(settings))
    ended = intarsia("aggregate", saved_by_peft["four"], other, "--out", "o")
    assert ended.code == 2 and "another/base" in ended.line
    assert not (tmp_path / "o").exists()


def test_a_damaged_adapter_is_named(intarsia, saved_by_peft, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    tensors = (saved_by_peft["four"] / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").write_bytes(tensors[:-10])
    settings = (saved_by_peft["four"] / "adapter_config.json").read_bytes()
    (damaged / "adapter_config.json").write_bytes(settings)
    ended = intarsia("aggregate", saved_by_peft["four"], damaged, "--out", "o")
    assert ended.code == 6 and f"{damaged}: " in ended.line
    assert not (tmp_path / "o").exists()


def test_a_method_for_rounds_only_is_refused_for_folders(intarsia, saved_by_peft, monkeypatch):
    other = dataclasses.replace(catalog.CATALOG[0], name="other")
    monkeypatch.setattr(catalog, "CATALOG", (*catalog.CATALOG, other))
    ended = intarsia("aggregate", saved_by_peft["four"], "--out", "o", "--method", "other")
    assert ended.code == 2 and "--method: other needs a federation's rounds; " in ended.line


def copy_of(folder: Path, at: Path) -> Path:
    at.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (at / file).write_bytes((folder / file).read_bytes())
    return at


@pytest.mark.parametrize("method", ["fedit", "hetlora", "flexlora"])
def test_other_methods_for_folders(intarsia, saved_by_peft, tmp_path, method):
    copy = copy_of(saved_by_peft["four"], tmp_path / "copy")
    ended = intarsia(
        "aggregate", saved_by_peft["four"], copy, "--out", "o", "--method", method, "--json", "-"
    )
    assert (ended.code, ended.err) == (0, "")
    result = json.loads(ended.out)
    assert (result["method"], result["rank"]) == (method, 4)
    found = peft_products(saved_by_peft["base"], tmp_path / "o")
    wanted = peft_products(saved_by_peft["base"], saved_by_peft["four"])
    # The mean of an adapter and itself is the adapter, by any method.
    assert max(relative(found[name], wanted[name]) for name in wanted) < 1e-5
    if method == "flexlora":
        assert result["cut_total"] == pytest.approx(0.0, abs=1e-9)
    else:
        assert result["cut_total"] is None and result["cut"] == {}
    shown = intarsia("aggregate", saved_by_peft["four"], "--out", "p", "--method", method)
    assert ("not known, a mean of factors" in shown.out) == (method != "flexlora")


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_other_types_of_numbers_are_read_as_they_are(intarsia, saved_by_peft, tmp_path, kind):
    folder = copy_of(saved_by_peft["four"], tmp_path / kind)
    path = folder / "adapter_model.safetensors"
    save_file({key: t.to(getattr(torch, kind)) for key, t in load_file(path).items()}, path)
    ended = intarsia("aggregate", folder, "--out", "o", "--json", "-")
    assert ended.code == 0
    assert json.loads(ended.out)["parents"] == [adapter_digest(read_adapter(folder))]
    found = peft_products(saved_by_peft["base"], tmp_path / "o")
    wanted = peft_products(saved_by_peft["base"], folder)
    assert max(relative(found[name], wanted[name]) for name in wanted) < 1e-6


def with_integers(data: bytes) -> bytes:
    return data.replace(b'"F32"', b'"I32"')


def with_a_claim(data: bytes) -> bytes:
    return (1 << 60).to_bytes(8, "little") + data[8:]


def with_infinity(data: bytes) -> bytes:
    return data[:-4] + np.float32(np.inf).tobytes()


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (with_integers, 2, "I32; save it as float32"),
        (with_a_claim, 6, "its header claims 1152921504606846976"),
        (with_infinity, 2, "not finite"),
        (lambda data: data[:-10], 6, "claims bytes"),
        (lambda data: data[:4], 6, "4 bytes"),
        (lambda data: b"", 6, "0 bytes"),
    ],
)
@pytest.mark.parametrize("rank", [(), ("--rank", 3)])
def test_every_damage_names_its_folder_and_leaves_nothing(
    intarsia, saved_by_peft, tmp_path, damage, code, words, rank
):
    odd = copy_of(saved_by_peft["four"], tmp_path / "odd")
    path = odd / "adapter_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    ended = intarsia("aggregate", saved_by_peft["sixteen"], odd, "--out", "o", *rank)
    assert ended.code == code
    assert ended.line.startswith(f"intarsia: error: {odd}: ") and words in ended.line
    assert ended.out == "" and [file.name for file in tmp_path.iterdir()] == ["odd"]


def test_modules_that_one_folder_lacks_count_as_zero(intarsia, saved_by_peft, tmp_path):
    odd = copy_of(saved_by_peft["four"], tmp_path / "odd")
    path = odd / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = "base_model.model.model.layers.1.mlp.up_proj"
    save_file({key: t for key, t in tensors.items() if not key.startswith(gone)}, path)
    ended = intarsia("aggregate", saved_by_peft["four"], odd, "--out", "o", "--rank", 4)
    assert ended.code == 0
    found = peft_products(saved_by_peft["base"], tmp_path / "o")
    wanted = peft_products(saved_by_peft["base"], saved_by_peft["four"])
    for name, product in wanted.items():
        assert relative(found[name], (0.5 if name == gone else 1.0) * product) < 1e-5


def test_an_interruption_leaves_nothing(intarsia, saved_by_peft, tmp_path, monkeypatch):
    done = []

    def write(self, name, writer, workspace):
        done.append(name)
        if len(done) == 5:
            raise KeyboardInterrupt
        return 0.0, 0.0

    monkeypatch.setattr(offline.OfflineSum, "write", write)
    ended = intarsia("aggregate", saved_by_peft["four"], "--out", "o", "--rank", 2)
    assert ended.code == 130 and len(done) >= 5
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_the_work(intarsia, saved_by_peft, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    ended = intarsia("aggregate", saved_by_peft["four"], "--out", "o")
    assert ended.code == 4 and "No space left on device; free space" in ended.line
    assert list(tmp_path.iterdir()) == []


def test_long_work_says_how_long_it_still_takes(capsys, monkeypatch):
    clock = iter([0.0, 4.0, 9.0, 12.0, 15.0, 23.0, 40.0])
    monkeypatch.setattr(counted_progress.time, "monotonic", lambda: next(clock))
    tell = counted_progress.lines_between("aggregating", "modules", 10.0)
    for done in range(1, 7):
        tell(done, 6)
    assert capsys.readouterr().err.splitlines() == [
        "intarsia: aggregating: 3 of 6 modules; about 12 s to go",
        "intarsia: aggregating: 5 of 6 modules; about 4.6 s to go",
    ]


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    told = []

    class Display:
        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            told.append("ended")

        def add_task(self, name, total):
            told.append((name, total))
            return 7

        def update(self, bar, **numbers):
            told.append((bar, numbers))

    monkeypatch.setattr(counted_progress, "is_terminal", lambda stream: True)
    monkeypatch.setattr(counted_progress, "display_with_time_to_go", Display)
    with counted_progress.counted_progress("aggregating", "modules") as tell:
        tell(1, 2)
    assert told == [("aggregating", None), (7, {"completed": 1, "total": 2}), "ended"]
    assert capsys.readouterr().err == ""
