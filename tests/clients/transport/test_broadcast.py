"""The broadcast file: bit for bit, a prefix for each rank, and nothing believed of a stranger's."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.assignment import PRECISIONS
from intarsia_client.errors import InputError, IntarsiaError, IntegrityError
from intarsia_client.transport import (
    broadcast_prefix_size,
    decode_broadcast,
    encode_broadcast,
)
from intarsia_client.wire import Adapter, ComputedModules, LowRankFactors

precisions = pytest.mark.parametrize("precision", PRECISIONS)


def factors(
    shape: tuple[int, int], rank: int, *, seed: int = 0, scaling: float = 1.0, zero: bool = False
) -> LowRankFactors:
    generator = np.random.default_rng(seed)
    b = generator.normal(size=(shape[0], rank)).astype(np.float32)
    return LowRankFactors(
        a=generator.normal(size=(rank, shape[1])).astype(np.float32),
        b=np.zeros_like(b) if zero else b,
        scaling=scaling,
    )


def adapter(modules: dict[str, LowRankFactors], **changes: Any) -> Adapter:
    head = {"score.weight": np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5}
    values = {"base": "hub/ä", "task": "sequence-classification", "dense": head, **changes}
    return Adapter(modules=modules, **values)


PUBLISHED = adapter(
    {
        "layer.1.q": factors((70, 130), 9, scaling=0.3),
        "layer.0.v": factors((3, 5), 3, seed=1),
        "empty": factors((4, 6), 0),
        "layer.0.k": factors((64, 64), 9, seed=2, zero=True),
    }
)


def assert_equal(found: Adapter, expected: Adapter, *, rank: int | None = None) -> None:
    """Bit for bit."""
    assert (found.base, found.task) == (expected.base, expected.task)
    assert found.fan_in_fan_out == expected.fan_in_fan_out
    assert list(found.modules) == sorted(expected.modules)
    for name, want in expected.modules.items():
        have = found.modules[name]
        assert have.scaling == want.scaling
        for one, other in ((have.a, want.a[:rank]), (have.b, want.b[:, :rank])):
            assert one.dtype == np.float32 and one.shape == other.shape
            assert one.tobytes() == np.ascontiguousarray(other).tobytes()
    assert {name: one.tobytes() for name, one in found.dense.items()} == {
        name: one.tobytes() for name, one in expected.dense.items()
    }
    assert {name: one.shape for name, one in found.dense.items()} == {
        name: one.shape for name, one in expected.dense.items()
    }


adapters = st.builds(
    adapter,
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
        st.builds(
            factors,
            st.tuples(st.integers(1, 70), st.integers(1, 70)),
            st.integers(0, 6),
            seed=st.integers(0, 99),
            scaling=st.floats(-1e9, 1e9),
            zero=st.booleans(),
        ),
        max_size=4,
    ),
    fan_in_fan_out=st.booleans(),
    task=st.sampled_from(["causal-lm", "sequence-classification"]),
)


@settings(deadline=None, max_examples=50)
@given(adapters)
def test_float32_comes_back_bit_for_bit(published: Adapter) -> None:
    assert_equal(decode_broadcast(encode_broadcast(published, "float32")), published)


@settings(deadline=None, max_examples=50)
@given(adapters, st.sampled_from(PRECISIONS))
def test_what_was_received_is_encoded_as_the_same_bytes(published: Adapter, precision: str) -> None:
    data = encode_broadcast(published, precision)
    assert encode_broadcast(decode_broadcast(data), precision) == data


@settings(deadline=None, max_examples=50)
@given(adapters, st.sampled_from(PRECISIONS), st.integers(1, 8))
def test_a_prefix_is_the_truncated_adapter(published: Adapter, precision: str, rank: int) -> None:
    data = encode_broadcast(published, precision)
    size = broadcast_prefix_size(data, rank)
    whole = decode_broadcast(data)
    assert_equal(decode_broadcast(data[:size], rank=rank), whole, rank=rank)
    assert_equal(decode_broadcast(data, rank=rank), whole, rank=rank)
    assert (size == len(data)) == (rank >= whole.rank)
    with pytest.raises(IntegrityError):
        decode_broadcast(data[: size - 1], rank=rank)
    if size < len(data):
        with pytest.raises(IntegrityError):
            decode_broadcast(data[:size])


def test_minus_zero_and_the_smallest_numbers_come_back() -> None:
    b = np.array([[-0.0, 1e-45], [0.0, -0.0]], dtype=np.float32)
    for values in (b, -np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)):
        published = adapter({"q": LowRankFactors(a=b, b=values, scaling=1.0)})
        assert_equal(decode_broadcast(encode_broadcast(published, "float32")), published)


@precisions
def test_bytes_are_few(precision: str) -> None:
    published = adapter({f"m{i}": factors((512, 256), 32, seed=i) for i in range(4)})
    numbers = published.number_of_parameters
    bytes_a_number = {"float32": 4.0, "bfloat16": 2.0, "int8": 1 + 4 / 64}[precision]
    size = len(encode_broadcast(published, precision))
    assert size == pytest.approx(bytes_a_number * numbers, rel=0.08)


@precisions
def test_values_are_as_near_as_the_precision_says(precision: str) -> None:
    found = decode_broadcast(encode_broadcast(PUBLISHED, precision))
    error = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5 / 127}[precision]
    for name, want in PUBLISHED.modules.items():
        have = found.modules[name]
        assert np.abs(have.a - want.a).max(initial=0) <= error * np.abs(want.a).max(initial=0)
        assert np.abs(have.b - want.b).max(initial=0) <= error * np.abs(want.b).max(initial=0)
    np.testing.assert_array_equal(found.dense["score.weight"], PUBLISHED.dense["score.weight"])


@precisions
def test_it_is_a_safetensors_file_with_the_head_first(precision: str) -> None:
    data = encode_broadcast(PUBLISHED, precision)
    tensors = dict(safetensors.deserialize(data))
    head = np.frombuffer(tensors["dense.score.weight"]["data"], "<f4").reshape(2, 3)
    np.testing.assert_array_equal(head, PUBLISHED.dense["score.weight"])
    assert len(tensors) == 1 + 9 * (2 if precision == "int8" else 1)
    if precision == "float32":
        first = np.frombuffer(tensors["component.000000"]["data"], "<f4")
        q, v = PUBLISHED.modules["layer.1.q"], PUBLISHED.modules["layer.0.v"]
        expected = [PUBLISHED.modules["layer.0.k"].a[0], q.a[0], q.b[:, 0], v.a[0], v.b[:, 0]]
        np.testing.assert_array_equal(first, np.concatenate(expected))


def test_a_b_of_zeros_does_not_travel() -> None:
    shared = adapter({"q": factors((1000, 10), 4, zero=True)})
    assert len(encode_broadcast(shared, "float32")) < 2000
    assert_equal(decode_broadcast(encode_broadcast(shared, "float32")), shared)


def test_modules_are_read_one_at_a_time_and_put_together_at_each_access() -> None:
    read: list[str] = []

    def reading(name: str) -> LowRankFactors:
        read.append(name)
        return PUBLISHED.modules[name]

    lazy = adapter(ComputedModules(PUBLISHED.modules, reading))  # type: ignore[arg-type]
    data = encode_broadcast(lazy, "float32")
    assert data == encode_broadcast(PUBLISHED, "float32")
    assert sorted(read) == sorted([*PUBLISHED.modules] * 2)
    found = decode_broadcast(data)
    assert isinstance(found.modules, ComputedModules)
    assert found.modules["layer.1.q"].a is not found.modules["layer.1.q"].a


@precisions
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_published(precision: str, value: float) -> None:
    whole = factors((3, 4), 2)
    whole.b[1, 1] = value
    with pytest.raises(InputError, match="broadcast of q: not finite"):
        encode_broadcast(adapter({"q": whole}), precision)
    head = {"score.weight": np.full((2, 3), value, np.float32)}
    with pytest.raises(InputError, match=r"broadcast of score\.weight: not finite"):
        encode_broadcast(adapter({}, dense=head), precision)


def test_what_a_precision_cannot_hold_is_refused_by_name() -> None:
    whole = LowRankFactors(
        a=np.full((1, 2), 3.4e38, np.float32), b=np.ones((2, 1), np.float32), scaling=1.0
    )
    with pytest.raises(InputError, match="broadcast of q: beyond bfloat16; choose float32"):
        encode_broadcast(adapter({"q": whole}), "bfloat16")
    with pytest.raises(InputError, match="broadcast precision: int4; choose one of"):
        encode_broadcast(PUBLISHED, "int4")


def rewritten(change: Callable[[dict[str, Any]], None], data: bytes | None = None) -> bytes:
    """The file with another header; offsets stay relative to its end."""
    data = data or encode_broadcast(PUBLISHED, "int8")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def modules_changed(change: Callable[[list[Any]], None]) -> bytes:
    def inside(header: dict[str, Any]) -> None:
        modules = json.loads(header["__metadata__"]["modules"])
        change(modules)
        header["__metadata__"]["modules"] = json.dumps(modules, separators=(",", ":"))

    return rewritten(inside)


def metadata_changed(**changes: Any) -> bytes:
    return rewritten(lambda header: header["__metadata__"].update(changes))


def test_the_helpers_change_nothing_by_themselves() -> None:
    assert rewritten(lambda _: None) == encode_broadcast(PUBLISHED, "int8")
    assert modules_changed(lambda _: None) == encode_broadcast(PUBLISHED, "int8")


def twice(modules: list[Any]) -> None:
    modules.append(modules[0])


def bad_modules() -> list[tuple[str, bytes]]:
    def put(place: int, value: Any) -> bytes:
        return modules_changed(lambda modules: modules[0].__setitem__(place, value))

    return [
        ("twice", modules_changed(twice)),
        ("name is a number", put(0, 3)),
        ("name is empty", put(0, "")),
        ("name is no text", put(0, "\ud800")),
        ("d_out is zero", put(1, 0)),
        ("d_out is negative", put(1, -64)),
        ("d_out is a float", put(1, 64.0)),
        ("d_out is true", put(1, True)),
        ("d_in is huge", put(2, 1 << 60)),
        ("d_in is another", put(2, 63)),
        ("rank is larger", put(3, 10)),
        ("rank is smaller", put(3, 8)),
        ("rank is huge", put(3, 1 << 23)),
        ("rank is negative", put(3, -1)),
        ("scaling is nan", put(4, math.nan)),
        ("scaling is infinite", put(4, math.inf)),
        ("scaling is beyond float32", put(4, 1e39)),
        ("scaling is an integer", put(4, 1)),
        ("scaling is a huge integer", put(4, 10**400)),
        ("b is a number", put(5, 1)),
        ("b travels", put(5, True)),
        ("too short", modules_changed(lambda modules: modules[0].pop())),
        ("no list", modules_changed(lambda modules: modules.insert(0, {}))),
        ("absent", modules_changed(lambda modules: modules.pop(0))),
        ("other order", modules_changed(lambda modules: modules.reverse())),
        ("too many", modules_changed(lambda modules: modules.extend([0] * 100_000))),
        ("modules no json", metadata_changed(modules="[")),
        ("modules nested", metadata_changed(modules="[" * 100_000)),
        ("modules an object", metadata_changed(modules="{}")),
        ("modules a number", metadata_changed(modules=3)),
        ("format", metadata_changed(format="intarsia-broadcast-2")),
        ("precision", metadata_changed(precision="int4")),
        ("other precision", metadata_changed(precision="float32")),
        ("precision a list", metadata_changed(precision=["int8"])),
        ("task", metadata_changed(task="chess")),
        ("base too long", metadata_changed(base="b" * 5000)),
        ("base no text", metadata_changed(base="\ud800")),
        ("fan", metadata_changed(fan_in_fan_out="1")),
        ("more metadata", metadata_changed(more="1")),
        ("no metadata", rewritten(lambda header: header.pop("__metadata__"))),
        ("metadata a list", rewritten(lambda header: header.update(__metadata__=[]))),
        ("more tensors", rewritten(lambda h: h.update(x=h["component.000000.scales"]))),
        ("fewer tensors", rewritten(lambda header: header.pop("component.000008.scales"))),
        ("head a list", rewritten(lambda header: header.update({"dense.score.weight": []}))),
        ("head shape text", rewritten(lambda h: h["dense.score.weight"].update(shape="23"))),
        ("head shape huge", rewritten(lambda h: h["dense.score.weight"].update(shape=[2**30] * 9))),
        ("head dtype", rewritten(lambda h: h["dense.score.weight"].update(dtype="F64"))),
        ("head offsets", rewritten(lambda h: h["dense.score.weight"].update(data_offsets=[0, 28]))),
        ("spaces", b"%b" % (rewritten(lambda _: None)[:8] + b" " + rewritten(lambda _: None)[9:])),
    ]  # fmt: skip


BAD = bad_modules()


@pytest.mark.parametrize("data", [data for _, data in BAD], ids=[name for name, _ in BAD])
def test_a_header_that_is_not_true_is_refused_in_one_line(data: bytes) -> None:
    for read in (
        lambda: decode_broadcast(data),
        lambda: decode_broadcast(data, rank=2),
        lambda: broadcast_prefix_size(data, 2),
    ):
        with pytest.raises((InputError, IntegrityError)) as caught:
            read()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, b"\xff" * 64,
        (1 << 20).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null", (2).to_bytes(8, "little") + b"\xff\xff",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises((InputError, IntegrityError)):
        decode_broadcast(data)


@precisions
def test_a_file_that_is_cut_or_has_more_is_refused(precision: str) -> None:
    data = encode_broadcast(PUBLISHED, precision)
    for wrong in (data[:-1], data + b"\0", data[: len(data) // 2]):
        with pytest.raises(IntegrityError, match=r"broadcast file: \d+ bytes of \d+; send \d+"):
            decode_broadcast(wrong)
    with pytest.raises(IntegrityError):
        decode_broadcast(data + b"\0", rank=1)
    with pytest.raises(InputError, match="rank to decode: 0"):
        decode_broadcast(data, rank=0)


@precisions
def test_values_that_are_not_finite_are_refused(precision: str) -> None:
    data = bytearray(encode_broadcast(PUBLISHED, precision))
    place = broadcast_prefix_size(bytes(data), 3)
    poison = {
        "float32": np.array([np.nan], "<f4").tobytes(),
        "bfloat16": (0x7F80).to_bytes(2, "little"),
        "int8": np.array([3e37], "<f4").tobytes(),
    }[precision]
    data[place : place + len(poison)] = poison
    with pytest.raises(InputError, match="broadcast component 3: not finite"):
        decode_broadcast(bytes(data))
    # Who needs only the components before it does not look there.
    decode_broadcast(bytes(data), rank=3)
    head = bytearray(encode_broadcast(PUBLISHED, precision))
    begin = broadcast_prefix_size(bytes(head), 0) - 24
    head[begin : begin + 4] = np.array([np.inf], "<f4").tobytes()
    with pytest.raises(InputError, match=r"broadcast of score\.weight: not finite"):
        decode_broadcast(bytes(head))


def test_a_whole_number_that_quantising_never_writes_is_refused() -> None:
    data = bytearray(encode_broadcast(PUBLISHED, "int8"))
    data[-1] = 0x80
    with pytest.raises(InputError, match="broadcast component 8: -128"):
        decode_broadcast(bytes(data))


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(PRECISIONS),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    st.none() | st.integers(1, 4),
)
def test_any_changed_bytes_decode_to_finite_values_or_one_line(
    precision: str, changes: list[tuple[int, int]], rank: int | None
) -> None:
    small = adapter({"q": factors((3, 70), 3), "v": factors((2, 2), 1)})
    data = bytearray(encode_broadcast(small, precision))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = decode_broadcast(bytes(data), rank=rank)
    except IntarsiaError as error:
        assert "\n" not in str(error)
        return
    for one in found.modules.values():
        assert np.isfinite(one.a).all() and np.isfinite(one.b).all() and math.isfinite(one.scaling)
