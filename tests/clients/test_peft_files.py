"""Adapter files against PEFT itself: what we write it loads, what it saves we read or refuse."""

import json
import math
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.peft_configuration import CONFIGURATION_FILE, declared_scaling
from intarsia_client.peft_files import (
    TENSORS_FILE,
    adapter_digest,
    decode_adapter,
    encode_adapter,
    read_adapter,
    read_encoded,
    write_adapter,
)
from intarsia_client.wire import Adapter, LowRankFactors
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.numpy import save
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

TOKENS = torch.tensor([[1, 5, 9, 2, 7], [3, 3, 8, 1, 4]])
# PEFT wraps modules in ways that no type describes.
Model = Any


def llama() -> Model:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert() -> Model:
    config = BertConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_labels=3, max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def gpt2() -> Model:
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return GPT2LMHeadModel(config).eval()


def seeded(make: Callable[[], Model], seed: int = 0) -> Model:
    """A model with weights of the given seed, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def logits(model: Model) -> np.ndarray:
    with torch.no_grad():
        computed: np.ndarray = model(input_ids=TOKENS).logits.double().numpy()
    return computed


def trained(model: Model, seed: int = 1) -> Model:
    """The PEFT model with every trainable number drawn anew, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def peft_saved(folder: Path, make: Callable[[], Model], **settings: Any) -> Model:
    """Train and save an adapter with PEFT alone; returns the model that PEFT saved."""
    model = trained(get_peft_model(seeded(make), LoraConfig(**settings)))
    model.save_pretrained(folder)
    return model


def deltas(model: Model) -> dict[str, np.ndarray]:
    """What PEFT itself says that its adapter adds to each weight, as (d_out, d_in)."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and getattr(module, "lora_A", None):
            delta = module.get_delta_weight("default").detach().double().numpy()
            stored_as = module.get_base_layer().weight.shape
            turned = module.fan_in_fan_out
            assert delta.shape == tuple(stored_as)
            found[name.removeprefix("base_model.model.")] = delta.T if turned else delta
    return found


def random_adapter(
    model: Model, names: list[str], ranks: list[int], scalings: list[float], **others: Any
) -> Adapter:
    generator = np.random.default_rng(3)
    modules = {}
    for position, name in enumerate(names):
        weight = model.get_submodule(name).weight
        d_out, d_in = weight.shape if not others.get("fan_in_fan_out") else weight.shape[::-1]
        rank = ranks[position % len(ranks)]
        modules[name] = LowRankFactors(
            a=generator.normal(0, 0.3, (rank, d_in)).astype(np.float32),
            b=generator.normal(0, 0.3, (d_out, rank)).astype(np.float32),
            scaling=scalings[position % len(scalings)],
        )
    return Adapter(base="where/the/base/lies", modules=modules, **others)


def with_products_added(model: Model, adapter: Adapter) -> Model:
    """The reference: the dense updates added to the model's own weights."""
    with torch.no_grad():
        for name, factors in adapter.modules.items():
            delta = torch.from_numpy(factors.product())
            weight = model.get_submodule(name).weight
            weight += (delta.T if adapter.fan_in_fan_out else delta).float()
        for name, tensor in adapter.dense.items():
            model.get_parameter(name).copy_(torch.from_numpy(tensor.copy()))
    return model


LLAMA_MODULES = [
    "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj",
    "model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.q_proj", "lm_head",
]  # fmt: skip
BERT_MODULES = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"]
GPT2_MODULES = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]
HEAD = {
    "classifier.weight": np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16),
    "classifier.bias": np.array([0.5, 0.0, -0.5], dtype=np.float32),
}


@pytest.mark.parametrize(
    ("make", "names", "others"),
    [
        (llama, LLAMA_MODULES, {"task": "causal-lm"}),
        (bert, BERT_MODULES, {"task": "sequence-classification", "dense": HEAD}),
        (gpt2, GPT2_MODULES, {"task": "causal-lm", "fan_in_fan_out": True}),
    ],
)
@pytest.mark.parametrize(
    ("ranks", "scalings"), [([4], [2.0]), ([2, 5, 1], [2.0, 16 / math.sqrt(5), 0.125])]
)
def test_peft_loads_what_is_written_and_computes_the_same(
    tmp_path: Path,
    make: Callable[[], Model],
    names: list[str],
    others: dict[str, Any],
    ranks: list[int],
    scalings: list[float],
) -> None:
    adapter = random_adapter(seeded(make), names, ranks, scalings, **others)
    write_adapter(tmp_path / "adapter", adapter, manifest={"from": "a test"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(seeded(make), str(tmp_path / "adapter"))
    expected = logits(with_products_added(seeded(make), adapter))
    assert np.abs(expected - logits(seeded(make))).max() > 1e-2
    np.testing.assert_allclose(logits(loaded), expected, atol=2e-5)


def test_peft_loads_a_module_of_rank_zero_as_no_change(tmp_path: Path) -> None:
    adapter = random_adapter(seeded(llama), LLAMA_MODULES[:2], [0, 3], [2.0], task="causal-lm")
    write_adapter(tmp_path / "adapter", adapter)
    loaded = PeftModel.from_pretrained(seeded(llama), str(tmp_path / "adapter"))
    expected = logits(with_products_added(seeded(llama), adapter))
    np.testing.assert_allclose(logits(loaded), expected, atol=2e-5)


SAVED: list[tuple[Callable[[], Model], dict[str, Any]]] = [
    (llama, {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}),
    (llama, {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}),
    (llama, {
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.v_proj": 5, "model.layers.1.self_attn.q_proj": 32},
    }),
    (llama, {
        "r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"q_proj": 3},
    }),
    (llama, {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    (gpt2, {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    (bert, {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "settings"), SAVED, ids=range(len(SAVED)))
def test_what_peft_saved_is_read_and_loads_again(
    tmp_path: Path, make: Callable[[], Model], settings: dict[str, Any]
) -> None:
    model = peft_saved(tmp_path / "peft", make, **settings)
    adapter = read_adapter(tmp_path / "peft")
    reference = deltas(model)
    assert set(adapter.modules) == set(reference)
    for name, delta in reference.items():
        np.testing.assert_allclose(adapter.modules[name].product(), delta, atol=1e-6)
    assert adapter.fan_in_fan_out == (make is gpt2)
    assert adapter.task == ("sequence-classification" if make is bert else "causal-lm")
    write_adapter(tmp_path / "again", adapter)
    loaded = PeftModel.from_pretrained(seeded(make), str(tmp_path / "again"))
    np.testing.assert_allclose(logits(loaded), logits(model), atol=1e-5)


def test_the_head_of_a_classifier_is_read(tmp_path: Path) -> None:
    model = peft_saved(
        tmp_path, bert, r=2, target_modules=["query"], task_type="SEQ_CLS"
    )  # fmt: skip
    adapter = read_adapter(tmp_path)
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert set(adapter.dense) == {"classifier.weight", "classifier.bias"}
    np.testing.assert_array_equal(adapter.dense["classifier.weight"], head.weight.detach())
    np.testing.assert_array_equal(adapter.dense["classifier.bias"], head.bias.detach())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_read(tmp_path: Path, kind: torch.dtype) -> None:
    model = trained(get_peft_model(seeded(llama), LoraConfig(r=3, target_modules=["q_proj"])))
    model.to(kind).save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    stored = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    factors = adapter.modules["model.layers.0.self_attn.q_proj"]
    assert factors.a.dtype == factors.b.dtype == np.float32
    np.testing.assert_array_equal(factors.a, stored.lora_A["default"].weight.detach().float())
    np.testing.assert_array_equal(factors.b, stored.lora_B["default"].weight.detach().float())


REFUSED_BY_OPTION: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "adapter option use_dora"),
    ({"bias": "all"}, "adapter option bias"),
    ({"bias": "lora_only"}, "adapter option bias"),
    ({"lora_bias": True}, "adapter option lora_bias"),
    ({"init_lora_weights": "pissa"}, "adapter option init_lora_weights: pissa"),
    ({"init_lora_weights": "pissa_niter_4"}, "adapter option init_lora_weights: pissa_niter_4"),
    ({"init_lora_weights": "olora"}, "adapter option init_lora_weights: olora"),
    ({"trainable_token_indices": [1, 2]}, "adapter option trainable_token_indices"),
    ({"modules_to_save": ["lm_head"]}, "adapter tensor: base_model.model.lm_head"),
    ({"target_modules": ["embed_tokens"]}, "adapter tensor"),
]


@pytest.mark.parametrize(("options", "expected"), REFUSED_BY_OPTION)
def test_variants_that_are_not_bilinear_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    peft_saved(tmp_path, llama, **{"r": 2, "target_modules": ["q_proj"], **options})
    with pytest.raises(InputError) as caught:
        read_adapter(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: {expected}")


@pytest.mark.parametrize("kind", [LoHaConfig, IA3Config])
def test_other_methods_of_peft_are_refused_by_name(tmp_path: Path, kind: Any) -> None:
    options: dict[str, Any] = {"feedforward_modules": []} if kind is IA3Config else {}
    config = kind(target_modules=["q_proj"], **options)
    trained(get_peft_model(seeded(llama), config)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"peft_type: {config.peft_type.value}"):
        read_adapter(tmp_path)


def test_pickle_files_are_never_read(tmp_path: Path) -> None:
    peft_saved(tmp_path, llama, r=2, target_modules=["q_proj"])
    (tmp_path / TENSORS_FILE).unlink()
    with pytest.raises(InputError, match="save_pretrained wrote"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(InputError, match="pickle files are never read"):
        read_adapter(tmp_path)


def test_orthogonally_started_adapters_are_read(tmp_path: Path) -> None:
    """PEFT's orthogonal start leaves the base as it is, so the file means what it says."""
    model = peft_saved(
        tmp_path, llama, r=2, target_modules=["q_proj"], init_lora_weights="orthogonal"
    )
    adapter = read_adapter(tmp_path)
    for name, delta in deltas(model).items():
        np.testing.assert_allclose(adapter.modules[name].product(), delta, atol=1e-6)


# Files that a stranger made, without PEFT.


def files(tensors: dict[str, np.ndarray] | None = None, **settings: Any) -> tuple[bytes, bytes]:
    """A small sound adapter's two files, changed as asked."""
    plain: dict[str, np.ndarray] = {
        "base_model.model.x.q.lora_A.weight": np.ones((2, 3), np.float32),
        "base_model.model.x.q.lora_B.weight": np.ones((4, 2), np.float32),
    }
    plain = {key: array for key, array in {**plain, **(tensors or {})}.items() if array.size}
    configuration = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings}
    return json.dumps(configuration).encode(), save(plain)


GONE = np.zeros(0)
A, B = "base_model.model.x.q.lora_A.weight", "base_model.model.x.q.lora_B.weight"
REFUSED_FILES: list[tuple[str, tuple[bytes, bytes], str]] = [
    ("int factor", files({A: np.ones((2, 3), np.int32)}), f"adapter tensor {A}: I32"),
    ("NaN", files({A: np.full((2, 3), np.nan, np.float32)}), f"adapter tensor {A}: not finite"),
    ("Inf", files({B: np.full((4, 2), np.inf, np.float16)}), f"adapter tensor {B}: not finite"),
    ("too large", files({B: np.full((4, 2), 1e300)}), f"adapter tensor {B}: not finite"),
    ("one factor", files({B: GONE}), "module x.q: only lora_A"),
    ("inner ranks", files({B: np.ones((4, 3), np.float32)}), "module x.q: lora_A [2, 3]"),
    ("convolution", files({B: np.ones((4, 2, 1), np.float32)}), "module x.q: lora_A [2, 3]"),
    ("other rank", files(r=3), "module x.q: rank 2, declared 3"),
    ("rank as text", files(r="2"), "module x.q: rank 2, declared 2"),
    ("no factors", files({A: GONE, B: GONE}), "adapter: has no LoRA factors"),
    ("alpha NaN", files(lora_alpha=math.nan), "lora_alpha of x.q: nan"),
    ("alpha absent", files(lora_alpha=None), "lora_alpha of x.q: None"),
    ("alpha as text", files(alpha_pattern={"q": "8"}), "lora_alpha of x.q: 8"),
    ("pattern list", files(rank_pattern=["q"]), "adapter option rank_pattern"),
    ("slow pattern", files(rank_pattern={"(a+)+$": 2}), "adapter pattern: (a+)+$"),
    ("magnitude", files({f"{A[:-13]}lora_magnitude_vector": np.ones(4, np.float32)}),
     "adapter tensor: base_model.model.x.q.lora_magnitude_vector"),
    ("unprefixed", files({"x.k.lora_A.weight": np.ones((2, 3), np.float32)}),
     "adapter tensor: x.k.lora_A.weight"),
    ("head of another task", files({"base_model.model.classifier.weight": np.ones((2, 2))}),
     "adapter tensor: base_model.model.classifier.weight"),
    ("method", files(peft_type="ADALORA"), "peft_type: ADALORA"),
    ("not JSON", (b"{", files()[1]), "adapter_config.json: "),
    ("not UTF-8", (b'{"peft_type": "\xff"}', files()[1]), "adapter_config.json: "),
    ("deep", (b"[" * 200_000, files()[1]), "adapter_config.json: "),
    ("list", (b"[]", files()[1]), "adapter_config.json: list"),
    ("long", (b" " * (1 << 23), files()[1]), "adapter_config.json: 8388608 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "expected"),
    [case[1:] for case in REFUSED_FILES],
    ids=[case[0] for case in REFUSED_FILES],
)
def test_malformed_files_are_refused_by_name(pair: tuple[bytes, bytes], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_adapter(*pair)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_the_sound_file_of_these_tests_is_accepted() -> None:
    adapter = decode_adapter(*files())
    np.testing.assert_array_equal(adapter.modules["x.q"].product(), np.full((4, 3), 4.0))


def header_claiming(shape: list[int], offsets: list[int], data: bytes) -> bytes:
    header = json.dumps({A: {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(header)) + header + data


UNTRUE = [
    header_claiming([2, 3], [0, 24], bytes(8)),
    header_claiming([1 << 40, 1 << 40], [0, 24], bytes(24)),
    header_claiming([2, 3], [0, 1 << 62], bytes(24)),
    header_claiming([2, 3], [24, 0], bytes(24)),
    header_claiming([2, 3], [-24, 0], bytes(24)),
    header_claiming([2, 3], [0, 24], bytes(32)),
    struct.pack("<Q", 1 << 60) + b"{}",
    struct.pack("<Q", 4) + b"{}",
    struct.pack("<Q", 1) + b"[",
    b"\x80\x04cos\nsystem\n",
    b"",
]


@pytest.mark.parametrize("tensors", UNTRUE, ids=range(len(UNTRUE)))
def test_tensor_files_whose_header_is_not_true_are_refused(tensors: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors: not a whole"):
        decode_adapter(files()[0], tensors)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_truncated_file_is_accepted(data: st.DataObject) -> None:
    configuration, tensors = files()
    cut = data.draw(st.integers(0, len(tensors) - 1))
    with pytest.raises(IntegrityError):
        decode_adapter(configuration, tensors[:cut])


def test_a_truncated_folder_names_itself(tmp_path: Path) -> None:
    peft_saved(tmp_path, llama, r=2, target_modules=["q_proj"])
    path = tmp_path / TENSORS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=f"^{tmp_path}: adapter_model.safetensors"):
        read_adapter(tmp_path)


# The codec's algebra.

finite = st.floats(-1e6, 1e6, width=32)
part = st.text("abcxyz_0123456789", min_size=1, max_size=4)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    # All names are as deep, so that none is the end of another.
    names = draw(st.sets(st.tuples(part, part).map(".".join), min_size=1, max_size=4))
    modules = {}
    for name in names:
        rank, d_in, d_out = (draw(st.integers(1, 4)) for _ in range(3))
        numbers = draw(
            st.lists(finite, min_size=rank * (d_in + d_out), max_size=rank * (d_in + d_out))
        )
        array = np.array(numbers, dtype=np.float32)
        modules[name] = LowRankFactors(
            a=array[: rank * d_in].reshape(rank, d_in),
            b=array[rank * d_in :].reshape(d_out, rank),
            scaling=draw(st.floats(1e-3, 1e3)),
        )
    task = draw(st.sampled_from(["causal-lm", "sequence-classification"]))
    return Adapter(
        base=draw(part),
        task=task,
        modules=modules,
        dense={"score.weight": np.array(draw(st.lists(finite, max_size=3)), dtype=np.float32)}
        if task == "sequence-classification"
        else {},
        fan_in_fan_out=draw(st.booleans()),
    )


@settings(deadline=None)
@given(adapters())
def test_decoding_gives_back_what_was_encoded(adapter: Adapter) -> None:
    encoded = encode_adapter(adapter)
    decoded = decode_adapter(encoded.configuration, encoded.tensors)
    assert (decoded.base, decoded.task) == (adapter.base, adapter.task)
    assert decoded.fan_in_fan_out == adapter.fan_in_fan_out
    assert set(decoded.modules) == set(adapter.modules)
    for name, factors in adapter.modules.items():
        np.testing.assert_array_equal(decoded.modules[name].a, factors.a)
        np.testing.assert_array_equal(decoded.modules[name].b, factors.b)
        assert decoded.modules[name].scaling == pytest.approx(factors.scaling, rel=1e-15)
    for name, tensor in adapter.dense.items():
        np.testing.assert_array_equal(decoded.dense[name], tensor)
    assert encode_adapter(decoded) == encoded


@settings(deadline=None)
@given(adapters(), part)
def test_digests_name_the_adapter_and_not_the_bases_place(adapter: Adapter, place: str) -> None:
    moved = Adapter(**{**vars(adapter), "base": place})
    reordered = Adapter(**{**vars(adapter), "modules": dict(reversed([*adapter.modules.items()]))})
    assert adapter_digest(adapter) == adapter_digest(moved) == adapter_digest(reordered)
    name, factors = next(iter(adapter.modules.items()))
    for change in (
        {"a": factors.a + np.float32(1e6) + 1},
        {"scaling": factors.scaling * 2},
    ):
        changed = LowRankFactors(**{**vars(factors), **change})
        other = Adapter(**{**vars(adapter), "modules": {**adapter.modules, name: changed}})
        assert adapter_digest(other) != adapter_digest(adapter)


def test_a_written_folder_holds_the_encoded_bytes(tmp_path: Path) -> None:
    adapter = decode_adapter(*files())
    encoded = write_adapter(tmp_path / "adapter", adapter, manifest={"round": 3})
    assert read_encoded(tmp_path / "adapter") == encoded
    assert encoded.digest == adapter_digest(adapter)
    assert encoded.size == len(encoded.configuration) + len(encoded.tensors)
    assert json.loads((tmp_path / "adapter" / "intarsia.json").read_text()) == {"round": 3}
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        CONFIGURATION_FILE, TENSORS_FILE, "intarsia.json",
    ]  # fmt: skip
    with pytest.raises(InputError, match="output folder"):
        write_adapter(tmp_path / "adapter", adapter)


@settings(deadline=None)
@given(
    st.lists(part, min_size=1, max_size=3),
    st.lists(st.lists(part, min_size=1, max_size=3), min_size=1, max_size=3),
    st.booleans(),
)
def test_patterns_match_as_pefts_own_rule_does(
    module: list[str], patterns: list[list[str]], anchored: bool
) -> None:
    name = ".".join(module)
    keys = [("^" if anchored else "") + ".".join(pattern) for pattern in [*patterns, module[-1:]]]
    alphas = {key: 2.0 + position for position, key in enumerate(keys)}
    expected = alphas.get(get_pattern_key(keys, name), 1.0)
    settings = {"alpha_pattern": alphas, "lora_alpha": 1.0}
    assert declared_scaling(name, 1, settings) == expected


def test_modules_whose_name_is_the_end_of_another_keep_their_own_ranks() -> None:
    def factors(rank: int) -> LowRankFactors:
        return LowRankFactors(
            a=np.ones((rank, 8), np.float32), b=np.ones((8, rank), np.float32), scaling=1.0
        )

    adapter = Adapter(base="", task="causal-lm", modules={"q": factors(2), "block.q": factors(4)})
    encoded = encode_adapter(adapter)
    decoded = decode_adapter(encoded.configuration, encoded.tensors)
    assert {name: held.rank for name, held in decoded.modules.items()} == {"q": 2, "block.q": 4}


def test_an_alpha_beyond_floating_point_is_refused() -> None:
    with pytest.raises(InputError, match=r"lora_alpha of x\.q"):
        decode_adapter(*files(lora_alpha=10**400))


def test_whatever_decodes_has_a_digest() -> None:
    configuration, tensors = files(note="\ud800")
    decode_adapter(configuration, tensors)
    decoded = type(encode_adapter(decode_adapter(*files())))(
        configuration=configuration, tensors=tensors
    )
    assert decoded.digest.startswith("sha256:")


def test_two_tensors_that_mean_the_same_parameter_are_refused() -> None:
    head = "base_model.model.classifier"
    pair = files(
        {
            f"{head}.weight": np.ones((2, 2), np.float32),
            f"{head}.modules_to_save.weight": np.zeros((2, 2), np.float32),
        },
        task_type="SEQ_CLS",
        modules_to_save=["classifier"],
    )
    with pytest.raises(InputError, match="classifier"):
        decode_adapter(*pair)
