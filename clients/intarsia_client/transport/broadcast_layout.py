"""What stands where in a broadcast file, derived from its metadata alone.

A reader derives the whole header again from the metadata and compares the bytes, so that a file
has exactly one form and nothing in the header can contradict anything else in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from intarsia_client.assignment import PRECISIONS
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import canonical_json
from intarsia_client.tensor_file import TensorEntry, split_tensor_file, tensor_header
from intarsia_client.transport.precision import number_of_blocks, quantises_to_zero
from intarsia_client.wire import TASKS, Adapter, FloatArray

FORMAT = "intarsia-broadcast-1"
MAX_MODULES = 100_000
_MAX_SIDE = 1 << 24
_MAX_TEXT = 4096
_DENSE = "dense."
_COMPONENT = "component."
# A component's tensors by precision: what each is called, its type, and the bytes of one item.
_PARTS = {
    "float32": (("", "F32", 4),),
    "bfloat16": (("", "BF16", 2),),
    "int8": ((".scales", "F32", 4), (".values", "I8", 1)),
}


@dataclass(frozen=True, kw_only=True)
class ModulePlace:
    """One module and its place in every component.

    Args:
        name: Its full name in the base model.
        shape: Its (d_out, d_in).
        rank: How many components it is part of.
        scaling: The factor before ``B @ A``.
        has_b: Whether B travels; else it is zero throughout.
        sizes: For each of a component's tensors, the bytes of a row of A and of a column of B.
        offsets: For each of a component's tensors, where these bytes begin in it.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    scaling: float
    has_b: bool
    sizes: tuple[tuple[int, int], ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class BroadcastLayout:
    """A broadcast file without its numbers.

    Args:
        base: What the base model is called.
        task: One of :data:`intarsia_client.wire.TASKS`.
        fan_in_fan_out: Whether the base keeps its weights as (d_in, d_out).
        precision: One of :data:`intarsia_client.assignment.PRECISIONS`.
        modules: By falling rank, then by name.
        dense: The head's tensors, by name, and their shapes.
        header: The file's bytes up to the first tensor.
        starts: For each of a component's tensors, where it begins in the file, by component.
        size: Bytes of the whole file.
    """

    base: str
    task: str
    fan_in_fan_out: bool
    precision: str
    modules: tuple[ModulePlace, ...]
    dense: tuple[tuple[str, tuple[int, ...]], ...]
    header: bytes
    starts: tuple[tuple[int, ...], ...]
    size: int

    @property
    def rank(self) -> int:
        """How many components there are."""
        return len(self.starts[0])

    def prefix_size(self, rank: int) -> int:
        """Bytes of the header, the head and the first ``rank`` components, of those there are."""
        return self.size if rank >= self.rank else self.starts[0][rank]


def layout_of(adapter: Adapter, precision: str) -> BroadcastLayout:
    """The layout of an adapter's file.

    Args:
        adapter: The adapter.
        precision: One of :data:`intarsia_client.assignment.PRECISIONS`.

    Returns:
        The layout.

    Raises:
        InputError: If a reader would not take it: names, shapes or scalings that do not fit.
    """
    modules = []
    for name in adapter.modules:
        factors = adapter.modules[name]
        travels = not factors.rank or not _is_zero(factors.b, precision)
        modules.append([name, *factors.shape, factors.rank, float(factors.scaling), travels])
    described = {
        "format": FORMAT,
        "base": adapter.base,
        "task": adapter.task,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "precision": precision,
        "modules": modules,
    }
    dense = [(name, tensor.shape) for name, tensor in sorted(adapter.dense.items())]
    return _layout(described, dense)


def read_layout(data: bytes) -> BroadcastLayout:
    """Read the layout of a file that may come from anyone.

    Args:
        data: The file, or a beginning of it.

    Returns:
        The layout; the header is exactly what it would be written as.

    Raises:
        IntegrityError: If the header is cut off, no JSON, or contradicts itself.
        InputError: If it is of another format, or describes no adapter.
    """
    header, begin = split_tensor_file("broadcast file", data)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        raise InputError("broadcast file's format", repr(found)[:80], f"send {FORMAT}")
    try:
        described = {
            **{name: metadata[name] for name in ("format", "base", "task", "precision")},
            **{name: json.loads(metadata[name]) for name in ("fan_in_fan_out", "modules")},
        }
        dense = [
            (name.removeprefix(_DENSE), tuple(entry["shape"]))
            for name, entry in sorted(header.items())
            if name.startswith(_DENSE)
        ]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError("broadcast file's metadata", repr(error)[:80], "send it whole") from None
    layout = _layout(described, dense, components=len(header) - len(dense))
    if layout.header != data[:begin]:
        raise IntegrityError(
            "broadcast file's header", "contradicts its metadata", "send it as it was encoded"
        )
    return layout


def _layout(
    described: dict[str, Any],
    dense: Sequence[tuple[str, tuple[int, ...]]],
    *,
    components: int | None = None,
) -> BroadcastLayout:
    """Check a description and derive everything from it.

    ``components`` is the number of their tensors that a header lists: what a stranger's metadata
    claims must not take more memory than the header itself.
    """
    _check_description(described)
    _check_dense(dense)
    _check_text(described["base"], *(m[0] for m in described["modules"]), *(n for n, _ in dense))
    precision = described["precision"]
    parts = _PARTS[precision]
    modules = _placed(described["modules"], precision)
    rank = max((module.rank for module in modules), default=0)
    if components is not None and components != rank * len(parts):
        raise IntegrityError(
            "broadcast file's header",
            f"{components} components' tensors",
            f"send {rank * len(parts)}",
        )
    entries = [TensorEntry(name=_DENSE + name, kind="F32", shape=shape) for name, shape in dense]
    sizes = [_component_sizes(modules, part, rank) for part in range(len(parts))]
    for component in range(rank):
        for (suffix, kind, item), counts in zip(parts, sizes, strict=True):
            name = f"{_COMPONENT}{component:06}{suffix}"
            entries.append(TensorEntry(name=name, kind=kind, shape=(counts[component] // item,)))
    metadata = {
        **{name: described[name] for name in ("format", "base", "task", "precision")},
        "fan_in_fan_out": json.dumps(described["fan_in_fan_out"]),
        "modules": _described(modules),
    }
    header = tensor_header(entries, metadata)
    ends = list(accumulate((entry.size for entry in entries), initial=len(header)))
    first = len(dense)
    starts = tuple(tuple(ends[first + part : -1 : len(parts)]) for part in range(len(parts)))
    return BroadcastLayout(
        base=described["base"],
        task=described["task"],
        fan_in_fan_out=described["fan_in_fan_out"],
        precision=precision,
        modules=modules,
        dense=tuple(dense),
        header=header,
        starts=starts,
        size=ends[-1],
    )


def _described(modules: Sequence[ModulePlace]) -> str:
    listed = [[m.name, *m.shape, m.rank, m.scaling, m.has_b] for m in modules]
    return canonical_json(listed).decode()


def _is_zero(values: FloatArray, precision: str) -> bool:
    """Whether nothing but +0.0 would come back."""
    if precision == "int8":
        return quantises_to_zero(values)
    return not np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).any()


def _placed(listed: list[list[Any]], precision: str) -> tuple[ModulePlace, ...]:
    """Sort the modules and give each its place within a component."""
    parts = _PARTS[precision]
    modules = []
    reached = [0] * len(parts)
    for name, d_out, d_in, rank, scaling, has_b in sorted(listed, key=lambda m: (-m[3], m[0])):
        sizes = []
        offsets = []
        for part, (suffix, _, item) in enumerate(parts):
            count = number_of_blocks if suffix == ".scales" else int
            row, column = item * count(d_in), item * count(d_out) if has_b else 0
            sizes.append((row, column))
            offsets.append((reached[part], reached[part] + row))
            reached[part] += row + column
        modules.append(
            ModulePlace(
                name=name, shape=(d_out, d_in), rank=rank, scaling=float(scaling), has_b=has_b,
                sizes=tuple(sizes), offsets=tuple(offsets),
            )
        )  # fmt: skip
    return tuple(modules)


def _component_sizes(modules: Sequence[ModulePlace], part: int, rank: int) -> list[int]:
    """Bytes of one part of each component; modules stand by falling rank, so its end is a place."""
    sizes = [0] * rank
    below = [module.rank for module in modules[1:]] + [0]
    for module, least in zip(modules, below[: len(modules)], strict=True):
        end = module.offsets[part][0] + sum(module.sizes[part])
        for component in range(least, module.rank):
            sizes[component] = end
    return sizes


def _check_description(described: dict[str, Any]) -> None:
    for name in ("base", "task", "precision"):
        value = described[name]
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise _wrong(name, value)
    if described["task"] not in TASKS or described["precision"] not in PRECISIONS:
        raise _wrong("task and precision", (described["task"], described["precision"]))
    if not isinstance(described["fan_in_fan_out"], bool):
        raise _wrong("fan_in_fan_out", described["fan_in_fan_out"])
    modules = described["modules"]
    if not isinstance(modules, list) or len(modules) > MAX_MODULES:
        raise _wrong("modules", modules)
    names = set()
    for module in modules:
        if not (isinstance(module, list) and len(module) == 6 and _is_module(*module)):
            raise _wrong("module", module)
        if module[0] in names:
            raise _wrong("module, a second time,", module[0])
        names.add(module[0])


def _is_module(
    name: object, d_out: object, d_in: object, rank: object, scaling: object, has_b: object
) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) <= _MAX_TEXT
        and _is_count(d_out, 1, _MAX_SIDE)
        and _is_count(d_in, 1, _MAX_SIDE)
        and _is_count(rank, 0, _MAX_SIDE)
        and isinstance(scaling, float)
        and math.isfinite(scaling)
        and abs(scaling) <= float(np.finfo(np.float32).max)
        and isinstance(has_b, bool)
    )


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _check_dense(dense: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    for name, shape in dense:
        fits = len(shape) <= 8 and all(_is_count(side, 0, 1 << 40) for side in shape)
        if not fits or not 0 < len(name) <= _MAX_TEXT:
            raise _wrong(f"head {name[:80]!r}", shape)


def _check_text(*texts: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            # Halves of surrogate pairs come in by JSON escapes.
            raise _wrong("names", text) from None


def _wrong(thing: str, value: object) -> InputError:
    return InputError(
        f"broadcast file's {thing}", repr(value)[:80], "send what encode_broadcast writes"
    )
