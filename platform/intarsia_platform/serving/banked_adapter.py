"""One adapter in memory as the kernels want it, decoded from PEFT's two files without PEFT.

All factors lie in one block of memory: first every module's A in the order of the base's modules,
then every module's B, transposed. Modules that see the same input (q, k and v) follow one another
in that order, so that their A factors are one matrix without a copy, and B is read along its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
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
    sources = [torch.from_numpy(sides[name]["A"]) for name in names]
    sources += [torch.from_numpy(sides[name]["B"]).T for name in names]
    sources += map(torch.from_numpy, head.values())
    sizes = [source.numel() for source in sources]
    values = torch.empty(sum(sizes), dtype=shapes.dtype, device=shapes.device)
    places = [
        place.view(source.shape)
        for place, source in zip(torch.split(values, sizes), sources, strict=True)
    ]
    count = len(names)
    a, b, own_head = places[:count], places[count : 2 * count], places[2 * count :]
    for place, source in zip(
        [*a, *own_head], [*sources[:count], *sources[2 * count :]], strict=True
    ):
        place.copy_(source)
    for name, side in zip(names, b, strict=True):
        _scaled_into(side, sides[name]["B"].T, scalings[name])
    # Once more, since scaling and a narrower precision may overflow. NaN goes through both.
    if not all(math.isfinite(float(end)) for end in torch.aminmax(values)):
        raise InputError("adapter tensors", "not finite", "train again; they hold NaN or Inf")
    return BankedAdapter(
        digest=digest,
        ranks={name: len(side) for name, side in zip(names, a, strict=True)},
        a=dict(zip(names, a, strict=True)),
        b={name: side.T for name, side in zip(names, b, strict=True)},
        head=dict(zip(head, own_head, strict=True)),
        size=values.numel() * values.element_size(),
    )


def _scaled_into(place: Tensor, source: FloatArray, scaling: float) -> None:
    if place.dtype == torch.float32 and place.device.type == "cpu":
        # One pass; torch takes two for a transposed matrix.
        with np.errstate(over="ignore"):
            np.multiply(source, np.float32(scaling), out=place.numpy())
    else:
        place.copy_(torch.from_numpy(source) * scaling)
