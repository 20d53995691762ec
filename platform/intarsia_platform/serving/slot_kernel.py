"""One token a row: each row's own factors, multiplied together with others of equal rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from intarsia_platform.serving.shared_input import SharedInput, two_dimensional
from intarsia_platform.serving.slots import Bucket, Entry, GroupSlots, Ranks, SlotKey, Wanted
from intarsia_platform.serving.token_router import TokenWeights

Layouts = dict[tuple[object, ...], "Layout"]


class SlotKernel:
    """Segments over one token a row: factors of equal rank in one batched product.

    Every row is computed by operations whose shapes depend on its own mixture alone, and its
    adapters are added in the mixture's order, so that its numbers do not depend, to the bit, on
    who else is in the batch (seen on CPU, where each product of a batch is computed by itself).

    Args:
        slots: The group's slots, which other plans use too.
        wanted: What the batch needs.
        rows: Rows of the batch.
        widths: Output width of each module of the group.
        layouts: The plan's layouts, shared by groups that are alike.
        token_weights: What is computed for each token, where any is divided by a router.
        together: Whether rows with the same adapter may be multiplied in one product, which reads
            its factors once, but in which a row's last bits depend on how many they are.
    """

    def __init__(
        self,
        slots: GroupSlots,
        wanted: Wanted,
        rows: int,
        widths: Sequence[int],
        layouts: Layouts,
        *,
        token_weights: TokenWeights | None = None,
        together: bool = False,
    ) -> None:
        self._together = together
        self._shared = SharedInput(len(widths))
        self._slots, self._wanted = slots, wanted
        self._rows, self._widths, self._layouts = rows, tuple(widths), layouts
        self._buckets: list[Bucket] = []
        self._layout: Layout | None = None
        self._token_weights = token_weights

    def add(self, position: int, x: Tensor, y: Tensor) -> None:
        """Add to a module's output; see :class:`GroupKernel`."""
        layout = self._layout
        if layout is None or self._slots.owner is not self:
            self._buckets = self._slots.arrange(self, self._wanted)
            layout = self._layout = self._found_layout()
        if self._shared.is_new(position, x) or layout.holder is not self:
            layout.holder = self
            inputs = two_dimensional(x)
            weights = None if self._token_weights is None else self._token_weights.of(inputs)
            layout.multiply(inputs, self._buckets, weights)
        target = y if y.dim() == 3 else y.unsqueeze(1)
        for products in layout.products:
            target.add_(products[position])
        self._shared.is_last(position)

    def _found_layout(self) -> Layout:
        orders = tuple(bucket.keys for bucket in self._buckets)
        fused = all(bucket.all_b is not None for bucket in self._buckets)
        key = (id(self._wanted), self._buckets[0].a.shape[1], self._widths, fused, orders)
        if key not in self._layouts:
            with torch.inference_mode(False), torch.no_grad():
                self._layouts[key] = Layout(
                    self._wanted,
                    orders,
                    self._buckets[0].a,
                    self._rows,
                    self._widths,
                    fused=fused,
                    together=self._together,
                )
        return self._layouts[key]


class Layout:
    """Which rows the slots belong to, and every buffer and view that a step needs.

    A step of a small model spends as long on making views as on multiplying, so they are made
    once, over buffers that each step writes anew. Groups that are alike share them: what one
    group's modules still need is written again if another group came in between.

    Args:
        wanted: What the batch needs.
        orders: The keys of each bucket's slots.
        like: A tensor of the factors' precision and device, shape (slots, d_in, rank).
        rows: Rows of the batch.
        widths: Output width of each module.
        fused: Whether one product serves all modules of a group.
        together: See :class:`SlotKernel`.
    """

    def __init__(
        self,
        wanted: Wanted,
        orders: Sequence[Sequence[SlotKey]],
        like: Tensor,
        rows: int,
        widths: Sequence[int],
        *,
        fused: bool,
        together: bool,
    ) -> None:
        self.holder: object | None = None
        buckets = list(zip(wanted.entries.items(), orders, strict=True))
        served = [[entry for key in order for entry in own[key]] for (_, own), order in buckets]
        entries = [entry for own in served for entry in own]
        sizes = [len(own) for own in served]
        self._take = torch.tensor([entry.row for entry in entries], device=like.device)
        parts = 1 + max(entry.part for entry in entries)
        places = [entry.row * parts + entry.part for entry in entries]
        self._places = torch.tensor(places, device=like.device)
        self._inputs = like.new_empty(len(entries), like.shape[1])
        # One more row, of zeros, for rows of the batch that have fewer adapters than others.
        shapes = [(len(widths), widths[0])] if fused else [(1, width) for width in widths]
        outs = [like.new_zeros(len(entries) + 1, *shape) for shape in shapes]
        weights = torch.tensor([entry.weight for entry in entries], dtype=like.dtype)
        plain = bool((weights == 1).all())
        weights = weights.view(-1, 1, 1).to(like.device)
        self._steps = []
        begins = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        for ((key, _), order), begin, size in zip(buckets, begins, sizes, strict=True):
            own = slice(begin, begin + size)
            single = size == len(order)
            # Several rows of one slot: one product, or one for each row, whose factors come from
            # the cache then.
            shape = (1, size) if together and not single else (size, 1)
            between = like.new_empty(*shape, sum(key[0]))
            mine = [out[own] for out in outs]
            self._steps.append(
                _Step(
                    x=self._inputs[own].view(*shape, -1),
                    between=between,
                    weights=None if plain else weights[own].view(*shape, 1),
                    own=own,
                    modules=_module_of_each_column(key[0], like.device),
                    repeated=-1 if single else shape[0],
                    fused=fused and single,
                    second=_second(between, key[0], mine, fused and single),
                )
            )
        self._gathers, self.products = _gathers(entries, rows, outs)

    def multiply(self, x: Tensor, buckets: Sequence[Bucket], token_weights: Tensor | None) -> None:
        """Compute ``products``: what each round of adapters adds to each module.

        Args:
            x: The modules' input, shape (rows, d_in).
            buckets: The group's factors.
            token_weights: What goes before each row's adapters in each module, shape (rows, the
                most adapters of a row, modules); None for the entries' weights.
        """
        torch.index_select(x.to(self._inputs.dtype), 0, self._take, out=self._inputs)
        if token_weights is not None:
            token_weights = token_weights.flatten(0, 1).index_select(0, self._places)
        for step, bucket in zip(self._steps, buckets, strict=True):
            a, every_b = bucket.repeated(step.repeated)
            torch.bmm(step.x, a, out=step.between)
            if token_weights is not None:
                own = token_weights[step.own].index_select(1, step.modules)
                step.between.mul_(own.view_as(step.between))
            elif step.weights is not None:
                step.between.mul_(step.weights)
            if step.fused and bucket.all_b is not None:
                left, out = step.second[0]
                torch.bmm(left, bucket.all_b, out=out)
                continue
            for (left, out), b in zip(step.second, every_b, strict=True):
                if b is not None:
                    torch.bmm(left, b, out=out)
        for source, rows, target in self._gathers:
            torch.index_select(source, 0, rows, out=target)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """Buffers of one bucket's products."""

    x: Tensor
    between: Tensor
    weights: Tensor | None
    own: slice
    modules: Tensor
    repeated: int
    fused: bool
    second: list[tuple[Tensor, Tensor]]


def _module_of_each_column(ranks: Ranks, device: torch.device) -> Tensor:
    return torch.arange(len(ranks), device=device).repeat_interleave(
        torch.tensor(ranks, device=device)
    )


def _second(
    between: Tensor, ranks: Ranks, outs: Sequence[Tensor], fused: bool
) -> list[tuple[Tensor, Tensor]]:
    """The inputs and outputs of the products with B."""
    if fused:
        products = outs[0].shape[0] * outs[0].shape[1]
        return [(between.view(products, 1, -1), outs[0].view(products, 1, -1))]
    ends = accumulate(ranks)
    spans = [slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True)]
    if len(outs) < len(ranks):
        outs = [outs[0][:, position : position + 1] for position in range(len(ranks))]
    if between.shape[0] < outs[0].shape[0]:
        outs = [out.transpose(0, 1) for out in outs]
    return [(between[:, :, span], out) for span, out in zip(spans, outs, strict=True)]


def _gathers(
    entries: Sequence[Entry], rows: int, outs: Sequence[Tensor]
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[list[Tensor]]]:
    """Copies from slots to rows: the rows' first adapters, then their second ones, and so on."""
    rounds: list[list[int]] = []
    filled = [0] * rows
    for index in sorted(range(len(entries)), key=lambda index: entries[index].part):
        row = entries[index].row
        if filled[row] == len(rounds):
            rounds.append([len(entries)] * rows)
        rounds[filled[row]][row] = index
        filled[row] += 1
    gathers, products = [], []
    for places in rounds:
        taken = torch.tensor(places, device=outs[0].device)
        targets = [out.new_empty(rows, *out.shape[1:]) for out in outs]
        gathers += [(out, taken, target) for out, target in zip(outs, targets, strict=True)]
        products.append([one.unsqueeze(1) for target in targets for one in target.unbind(1)])
    return gathers, products
