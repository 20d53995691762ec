"""The safetensors layout, written and read where a library's own order or types do not do.

safetensors' Python functions put tensors in an order of their own, which a byte-range prefix does
not survive, and have no bfloat16 for numpy. The format is a length, a JSON header and the bytes
one after another; what is written here, safetensors reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import canonical_json

MAX_HEADER_BYTES = 1 << 24
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_BYTES_OF = {"F32": 4, "BF16": 2, "I8": 1}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a file.

    Args:
        name: Its name.
        kind: ``"F32"``, ``"BF16"`` or ``"I8"``.
        shape: Its shape.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return _BYTES_OF[self.kind] * math.prod(self.shape)


def tensor_header(entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The file's beginning, up to the first tensor's first byte.

    Args:
        entries: The tensors in the order in which their bytes follow, each name once.
        metadata: Text that stands in the header.

    Returns:
        The length, the header, and spaces up to a multiple of eight bytes; equal inputs give equal
        bytes.

    Raises:
        InputError: If the header is larger than a reader takes.
        ValueError: If a text holds what UTF-8 cannot write.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for entry in entries:
        end = begin + entry.size
        header[entry.name] = {
            "dtype": entry.kind,
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = canonical_json(header)
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise InputError("tensor file's header", f"{len(text)} bytes", "adapt fewer modules")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def write_tensor_file(
    tensors: Iterable[tuple[TensorEntry, bytes]], metadata: Mapping[str, str]
) -> bytes:
    """A whole file.

    Args:
        tensors: Each tensor and its bytes, little-endian.
        metadata: Text that stands in the header.

    Returns:
        The file.
    """
    held = list(tensors)
    header = tensor_header([entry for entry, _ in held], metadata)
    return b"".join([header, *(data for _, data in held)])


def split_tensor_file(thing: str, data: bytes) -> tuple[dict[str, Any], int]:
    """Read a file's header, which may come from anyone.

    Args:
        thing: What the file is, for messages.
        data: The file, or a beginning of it that holds the header.

    Returns:
        The header's JSON object, unchecked, and where the tensors' bytes begin.

    Raises:
        IntegrityError: If the header is cut off, claims more than the file has, or is no JSON
            object.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    begin = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or length > MAX_HEADER_BYTES or begin > len(data):
        raise IntegrityError(
            thing, f"{len(data)} bytes, its header claims {length}", "send it again, whole"
        )
    try:
        header = json.loads(data[_LENGTH_BYTES:begin])
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise IntegrityError(thing, f"its header is no JSON ({error})", "send it again") from None
    if not isinstance(header, dict):
        raise IntegrityError(thing, "its header is no JSON object", "send it again")
    return header, begin
