"""The safetensors layout: what is written here, the library reads, and headers are not believed."""

import numpy as np
import pytest
import safetensors
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.tensor_file import (
    MAX_HEADER_BYTES,
    TensorEntry,
    split_tensor_file,
    tensor_header,
    write_tensor_file,
)

WHOLE = [
    (TensorEntry(name="z", kind="F32", shape=(2, 3)), np.arange(6, dtype="<f4").tobytes()),
    (TensorEntry(name="a", kind="I8", shape=(5,)), bytes(range(5))),
    (TensorEntry(name="none", kind="F32", shape=(0, 4)), b""),
    (TensorEntry(name="b", kind="BF16", shape=()), b"\x80\x3f"),
]


def test_the_library_reads_it_in_the_order_given() -> None:
    data = write_tensor_file(WHOLE, {"format": "pt", "ä": "ö"})
    assert data == write_tensor_file(iter(WHOLE), {"ä": "ö", "format": "pt"})
    found = dict(safetensors.deserialize(data))
    for entry, content in WHOLE:
        part = found[entry.name]
        assert bytes(part["data"]) == content
        assert (tuple(part["shape"]), part["dtype"]) == (entry.shape, entry.kind)
    assert data.endswith(b"".join(content for _, content in WHOLE))


def test_the_header_comes_back() -> None:
    data = write_tensor_file(WHOLE, {"format": "pt"})
    header, begin = split_tensor_file("file", data)
    assert begin % 8 == 0 and data[:begin] == tensor_header(
        [entry for entry, _ in WHOLE], {"format": "pt"}
    )
    assert header["z"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert header["__metadata__"] == {"format": "pt"}
    assert split_tensor_file("file", data[:begin]) == (header, begin)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, (3).to_bytes(8, "little") + b"{}",
        (MAX_HEADER_BYTES + 8).to_bytes(8, "little") + b" " * 64,
        (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"\xff{",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^the file: ") as caught:
        split_tensor_file("the file", data)
    assert "\n" not in str(caught.value)


def test_a_header_that_no_reader_takes_is_not_written() -> None:
    entry = TensorEntry(name="n" * MAX_HEADER_BYTES, kind="I8", shape=(1,))
    with pytest.raises(InputError, match=r"tensor file's header: .* bytes"):
        tensor_header([entry], {})
