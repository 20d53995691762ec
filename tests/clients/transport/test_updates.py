"""Updates in each precision: what arrives, what stays at home, what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.assignment import PRECISIONS, TRAINED_FACTORS
from intarsia_client.errors import InputError, IntarsiaError, IntegrityError
from intarsia_client.peft_files import EncodedAdapter, decode_adapter, encode_adapter
from intarsia_client.transport import decode_update, encode_update, holds_differences
from intarsia_client.wire import Adapter, ComputedModules, FloatArray, LowRankFactors

SHAPES = {"layer.0.q": (20, 70), "layer.1.v": (5, 64)}
precisions = pytest.mark.parametrize("precision", PRECISIONS)
all_factors = pytest.mark.parametrize("factors", TRAINED_FACTORS)


def adapter(seed: int, *, rank: int = 4, size: float = 1.0) -> Adapter:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> FloatArray:
        values: FloatArray = (size * generator.normal(size=shape)).astype(np.float32)
        return values

    return Adapter(
        base="b",
        task="sequence-classification",
        modules={
            name: LowRankFactors(a=normal(rank, d_in), b=normal(d_out, rank), scaling=2.0)
            for name, (d_out, d_in) in SHAPES.items()
        },
        dense={"classifier.weight": normal(3, 5), "classifier.bias": normal(3)},
    )


START = adapter(0)


def trained(factors: str = "both", *, size: float = 0.01, seed: int = 1) -> Adapter:
    """The start after training; factors that are not trained are the start's."""
    moved = adapter(seed, size=size)
    return replace(
        START,
        modules={
            name: replace(
                one,
                a=one.a + moved.modules[name].a if factors in ("both", "a") else one.a,
                b=one.b + moved.modules[name].b if factors in ("both", "b") else one.b,
            )
            for name, one in START.modules.items()
        },
        dense={name: tensor + moved.dense[name] for name, tensor in START.dense.items()},
    )


def values(one: Adapter) -> dict[str, FloatArray]:
    found: dict[str, FloatArray] = {}
    for name, module in one.modules.items():
        found |= {f"{name}/a": module.a, f"{name}/b": module.b}
    return {**found, **one.dense}


def test_float32_of_both_factors_is_pefts_two_files() -> None:
    assert encode_update(trained(), START, "float32") == encode_adapter(trained())


@all_factors
@precisions
def test_what_arrives_is_near_and_the_rest_is_the_starts(precision: str, factors: str) -> None:
    update = trained(factors)
    encoded = encode_update(update, START, precision, factors=factors)
    assert holds_differences(json.loads(encoded.configuration)) == (precision == "int8")
    assert encoded == encode_update(update, START, precision, factors=factors)
    found = values(decode_update(encoded, START, factors=factors))
    assert found.keys() == values(update).keys()
    for name, want in values(update).items():
        have, before = found[name], values(START)[name]
        assert have.shape == want.shape and have.dtype == np.float32
        if precision == "float32" or (want is before):
            np.testing.assert_array_equal(have, want)
        elif precision == "bfloat16":
            assert (np.abs(have - want) <= 2**-8 * np.abs(want)).all()
        else:
            change = np.abs(want - before)
            assert np.abs(have - want).max() <= 0.51 / 127 * change.max() + 1e-6


@pytest.mark.parametrize("factors", ["both", "a", "b"])
def test_int8_is_about_a_quarter_of_the_bytes(factors: str) -> None:
    wide = {
        name: LowRankFactors(
            a=np.ones((16, 512), np.float32), b=np.ones((512, 16), np.float32), scaling=1.0
        )
        for name in ("q", "k", "v")
    }
    start = Adapter(base="b", task="causal-lm", modules=wide)
    sizes = {
        precision: len(encode_update(start, start, precision, factors=factors).tensors)
        for precision in PRECISIONS
    }
    assert sizes["bfloat16"] == pytest.approx(sizes["float32"] / 2, rel=0.03)
    assert sizes["int8"] == pytest.approx(sizes["float32"] * 17 / 64, rel=0.03)


@all_factors
def test_no_change_in_int8_changes_nothing(factors: str) -> None:
    encoded = encode_update(START, START, "int8", factors=factors)
    found = values(decode_update(encoded, START, factors=factors))
    for name, want in values(START).items():
        assert found[name].tobytes() == want.tobytes()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.floats(1e-6, 1e3))
def test_a_change_of_any_size_arrives_within_half_a_step(seed: int, size: float) -> None:
    update = trained(size=size, seed=seed)
    found = values(decode_update(encode_update(update, START, "int8"), START))
    for name, want in values(update).items():
        before = values(START)[name].astype(np.float64)
        change = np.abs(want - before).max()
        rounding = 1e-6 * (np.abs(before).max() + change)
        assert np.abs(found[name] - want).max() <= 0.51 / 127 * change + rounding


def test_a_bfloat16_update_is_a_peft_adapter() -> None:
    encoded = encode_update(trained(), START, "bfloat16")
    found = decode_adapter(encoded.configuration, encoded.tensors)
    for name, want in trained().modules.items():
        np.testing.assert_allclose(found.modules[name].a, want.a, rtol=2**-8)
        assert found.modules[name].scaling == 2.0


def test_peft_itself_loads_a_bfloat16_update(bases: Any, make_adapter: Any, tmp_path: Any) -> None:
    import copy

    from intarsia_client.peft_files import write_encoded
    from peft import PeftModel

    whole = make_adapter(bases.bert, 3)
    write_encoded(tmp_path / "adapter", encode_update(whole, whole, "bfloat16"))
    loaded = PeftModel.from_pretrained(copy.deepcopy(bases.bert.model), tmp_path / "adapter")
    name = next(iter(whole.modules))
    layer = loaded.base_model.model.get_submodule(name)
    found = layer.lora_A["default"].weight.detach().float().numpy()
    np.testing.assert_allclose(found, whole.modules[name].a, rtol=2**-8)


def test_what_is_taken_from_the_start_is_put_together_at_each_access() -> None:
    read: list[str] = []

    def reading(name: str) -> LowRankFactors:
        read.append(name)
        return START.modules[name]

    lazy = replace(START, modules=ComputedModules(START.modules, reading))
    for precision, factors in (("int8", "both"), ("bfloat16", "b"), ("float32", "none")):
        encoded = encode_update(trained(factors), START, precision, factors=factors)
        found = decode_update(encoded, lazy, factors=factors)
        assert isinstance(found.modules, ComputedModules)
        before = len(read)
        first, second = found.modules["layer.0.q"], found.modules["layer.0.q"]
        assert read[before:] == ["layer.0.q"] * 2
        np.testing.assert_array_equal(first.b, second.b)


class TestRefusals:
    @pytest.mark.parametrize("sent", TRAINED_FACTORS)
    @all_factors
    @precisions
    def test_other_factors_than_asked(self, sent: str, factors: str, precision: str) -> None:
        encoded = encode_update(trained(sent), START, precision, factors=sent)
        if sent == factors:
            decode_update(encoded, START, factors=factors)
            return
        with pytest.raises(InputError) as caught:
            decode_update(encoded, START, factors=factors)
        assert "\n" not in str(caught.value)

    def test_unknown_words(self) -> None:
        with pytest.raises(InputError, match="upload precision: int4; choose one of float32"):
            encode_update(START, START, "int4")
        with pytest.raises(InputError, match="factors to send: c; choose one of both, a, b, none"):
            decode_update(encode_adapter(START), START, factors="c")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_is_not_sent(self, value: float) -> None:
        update = trained()
        update.modules["layer.1.v"].b[0, 0] = value
        with pytest.raises(InputError, match=r"update of layer\.1\.v\.lora_B: not finite"):
            encode_update(update, START, "int8")
        with pytest.raises(InputError, match=r"lora_B.weight: beyond bfloat16"):
            encode_update(update, START, "bfloat16")

    @pytest.mark.parametrize("factors", ["a", "b"])
    def test_another_rank_or_module(self, factors: str) -> None:
        other = adapter(3, rank=3)
        for precision in PRECISIONS:
            encoded = encode_update(other, other, precision, factors=factors)
            with pytest.raises(InputError):
                decode_update(encoded, START, factors=factors)
            fewer = replace(START, modules={"layer.0.q": START.modules["layer.0.q"]})
            encoded = encode_update(fewer, fewer, precision, factors=factors)
            with pytest.raises(InputError):
                decode_update(encoded, START, factors=factors)
            encoded = encode_update(START, START, precision, factors=factors)
            with pytest.raises(InputError):
                decode_update(encoded, fewer, factors=factors)

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            ({"intarsia_update": "int4"}, "intarsia_update: 'int4'; send int8-differences-1"),
            ({"intarsia_update": ["x"]}, r"intarsia_update: \['x'\]"),
            ({"r": 5}, "declared rank 5"),
            ({"r": None}, "declared rank None"),
            ({"lora_alpha": "8"}, "lora_alpha of"),
            ({"lora_alpha": 1e999}, "lora_alpha of"),
            ({"use_dora": True}, "adapter option use_dora"),
            ({"peft_type": "IA3"}, "peft_type: IA3"),
        ],
    )
    def test_a_configuration_that_does_not_fit(self, change: dict[str, Any], line: str) -> None:
        encoded = encode_update(trained(), START, "int8")
        settings = {**json.loads(encoded.configuration), **change}
        wrong = replace(encoded, configuration=json.dumps(settings).encode())
        with pytest.raises(InputError, match=line):
            decode_update(wrong, START)

    @pytest.mark.parametrize(
        "change",
        [
            lambda data: data[:-1],
            lambda data: data + b"\0",
            lambda data: data[:4],
            lambda data: b"",
            lambda data: b"\xff" * 8 + data[8:],
            lambda data: data.replace(b"lora_A", b"lora_C", 1),
            lambda data: data.replace(b"[4,2]", b"[2,4]", 1),
            lambda data: data.replace(b'"I8"', b'"U8"', 1),
        ],
    )
    def test_tensors_that_are_not_those(self, change: Callable[[bytes], bytes]) -> None:
        encoded = encode_update(trained(), START, "int8")
        assert change(encoded.tensors) != encoded.tensors
        with pytest.raises((InputError, IntegrityError)):
            decode_update(replace(encoded, tensors=change(encoded.tensors)), START)

    @pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 3e37])
    def test_scales_that_are_none(self, scale: float) -> None:
        encoded = encode_update(trained(), START, "int8")
        begin = 8 + int.from_bytes(encoded.tensors[:8], "little")
        poison = np.array([scale], "<f4").tobytes()
        data = encoded.tensors[:begin] + poison + encoded.tensors[begin + 4 :]
        with pytest.raises(InputError, match=r"update of layer\.0\.q\.lora_A: not finite"):
            decode_update(replace(encoded, tensors=data), START)

    def test_a_sum_that_overflows(self) -> None:
        def full(value: float) -> Adapter:
            factors = LowRankFactors(
                a=np.full((1, 2), value, np.float32), b=np.ones((2, 1), np.float32), scaling=1.0
            )
            return Adapter(base="b", task="causal-lm", modules={"q": factors})

        encoded = encode_update(full(3e38), full(0.0), "int8")
        decode_update(encoded, full(0.0))
        with pytest.raises(InputError, match=r"update of q\.lora_A: not finite"):
            decode_update(encoded, full(3e38))

    @settings(deadline=None, max_examples=60)
    @given(
        st.sampled_from(PRECISIONS),
        st.sampled_from(TRAINED_FACTORS),
        st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    )
    def test_any_changed_bytes(
        self, precision: str, factors: str, changes: list[tuple[int, int]]
    ) -> None:
        encoded = encode_update(trained(factors), START, precision, factors=factors)
        data = bytearray(encoded.tensors)
        for place, value in changes:
            data[place % len(data)] = value
        wrong = EncodedAdapter(configuration=encoded.configuration, tensors=bytes(data))
        try:
            found = values(decode_update(wrong, START, factors=factors))
        except IntarsiaError as error:
            assert "\n" not in str(error)
            return
        assert all(np.isfinite(one).all() for one in found.values())
