"""One adapter in memory as the kernels want it, decoded from PEFT's two files without PEFT.

All factors lie in one block of memory: first every module's A in the order of the base's modules,
then every module's B, transposed. Modules that see the same input (q, k and v) follow one another
in that order, so that their A factors are one matrix without a copy, and B is read along its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.peft_configuration import read_configuration
from intarsia_client.peft_files import EncodedAdapter, decode_parts
from intarsia_client.peft_tensors import check_sides, checked_scaling
from intarsia_client.wire import FloatArray
from torch import Tensor

MAX_RANK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class BankedAdapter:
    """An adapter's factors and head on the base's device, in the base's precision.

    Args:
        digest: The adapter's name in the registry.
        ranks: Rank by module, in the order of the base's modules.
        a: From each module to its A, shape (rank, d_in).
        b: From each module to its scaled B, shape (d_out, rank); its memory is that of the
            transposed matrix, (rank, d_out) row by row.
        head: From each parameter of a classification head to the adapter's own values.
        size: Bytes that it takes.
    """

    digest: str
    ranks: Mapping[str, int]
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    size: int = 0

    def stacked_a(self, modules: Sequence[str]) -> Tensor:
        """The A factors of several modules, one under the other.

        Args:
            modules: Modules of one input width; those that the adapter lacks are left out.

        Returns:
            Shape (sum of their ranks, d_in); a view where they lie together.
        """
        parts = [self.a[name] for name in modules if name in self.a]
        if len(parts) == 1:
            return parts[0]
        first, end = parts[0], parts[0].data_ptr()
        for part in parts:
            if part.data_ptr() != end or not part.is_contiguous():
                return torch.cat(parts)
            end += part.numel() * part.element_size()
        rank, width = sum(len(part) for part in parts), first.shape[1]
        return first.as_strided((rank, width), (width, 1))


@dataclass(frozen=True, kw_only=True)
class BaseShapes:
    """What an adapter must fit.

    Args:
        modules: From each linear module, in the model's order, to its (d_out, d_in).
        head: From each parameter of the classification head to its shape.
        device: Where factors go.
        dtype: The precision that they get.
        max_rank: The largest rank that is taken.
    """

    modules: Mapping[str, tuple[int, int]]
    head: Mapping[str, tuple[int, ...]]
    device: torch.device
    dtype: torch.dtype
    max_rank: int = MAX_RANK


def decode_for(shapes: BaseShapes, digest: str, encoded: EncodedAdapter) -> BankedAdapter:
    """Decode an adapter that may come from anyone.

    Args:
        shapes: What it must fit.
        digest: Its name in the registry.
        encoded: Its two files.

    Returns:
        The adapter, every number of it finite in the base's precision.

    Raises:
        InputError: If it is of a kind that is refused, does not fit the base, has too large a rank
            or a number that is not finite.
        IntegrityError: If its tensor file is damaged.
    """
    try:
        settings = read_configuration(encoded.configuration)
        sides, head = decode_parts(settings, encoded.tensors)
        scalings = {}
        for name, factors in sides.items():
            check_sides(name, factors)
            a, b = factors["A"], factors["B"]
            scalings[name] = checked_scaling(name, a.shape, b.shape, settings)
            _check_module(shapes, name, a, b)
        _check_head(shapes, head)
        if not sides:
            raise InputError("adapter", "has no LoRA factors", "save it with PEFT after training")
        return _laid_out(shapes, digest, sides, scalings, head)
    except (InputError, IntegrityError) as error:
        raise type(error)(f"{digest}: {error.thing}", error.value, error.remedy) from None


def _check_module(shapes: BaseShapes, name: str, a: FloatArray, b: FloatArray) -> None:
    if name not in shapes.modules:
        raise InputError("adapter module", name, "use an adapter of this base model")
    found = (b.shape[0], a.shape[1])
    if found != shapes.modules[name]:
        raise InputError(
            f"adapter module {name}",
            f"{found}, not {shapes.modules[name]}",
            "use an adapter of this base model",
        )
    if not 0 < len(a) <= shapes.max_rank:
        raise InputError(
            f"adapter module {name}", f"rank {len(a)}", f"use rank 1 to {shapes.max_rank}"
        )


def _check_head(shapes: BaseShapes, head: Mapping[str, FloatArray]) -> None:
    for name, values in head.items():
        if shapes.head.get(name) != values.shape:
            raise InputError(
                f"adapter head {name}",
                values.shape,
                "use an adapter of this base model and these labels",
            )


def _laid_out(
    shapes: BaseShapes,
    digest: str,
    sides: Mapping[str, Mapping[str, FloatArray]],
    scalings: Mapping[str, float],
    head: Mapping[str, FloatArray],
) -> BankedAdapter:
    names = [name for name in shapes.modules if name in sides]
    count = sum(side.size for name in names for side in sides[name].values())
    count += sum(values.size for values in head.values())
    values = torch.empty(count, dtype=shapes.dtype, device=shapes.device)
    at = 0

    def place(shape: Sequence[int]) -> Tensor:
        nonlocal at
        begin, at = at, at + math.prod(shape)
        return values[begin:at].view(tuple(shape))

    a, b = {}, {}
    for name in names:
        a[name] = place(sides[name]["A"].shape)
        a[name].copy_(torch.from_numpy(sides[name]["A"]))
    for name in names:
        source = torch.from_numpy(sides[name]["B"])
        b[name] = place(source.T.shape).T
        if source.dtype == shapes.dtype and shapes.device.type == "cpu":
            torch.mul(source, scalings[name], out=b[name])
        else:
            b[name].copy_(source * scalings[name])
    own_head = {}
    for name, tensor in head.items():
        own_head[name] = place(tensor.shape)
        own_head[name].copy_(torch.from_numpy(tensor))
    # Once more, since scaling and a narrower precision may overflow. NaN goes through both.
    if not all(math.isfinite(float(end)) for end in torch.aminmax(values)):
        raise InputError("adapter tensors", "not finite", "train again; they hold NaN or Inf")
    return BankedAdapter(
        digest=digest,
        ranks={name: len(a[name]) for name in names},
        a=a,
        b=b,
        head=own_head,
        size=count * values.element_size(),
    )
