"""Which shapes of a one-token call give a row the same bits, measured on this machine.

A linear algebra library chooses its kernels by shape. So a row's numbers may depend on how many
rows a product has and where in it the row stands: on a two-core AVX2 machine, products of 1, 2, 3,
5 or 7 rows differ in last bits from those of 4, 8 or 16. No library promises anything here; hence
each shape is tried on the real model before the first request, and used only if it agrees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intarsia_platform.serving.banked_adapter import BankedAdapter
from intarsia_platform.serving.cache import BLOCK, CacheStep
from intarsia_platform.serving.linear_sites import linear_modules_of
from intarsia_platform.serving.mixture import BASE, Mixture
from intarsia_platform.serving.row_attention import attend
from intarsia_platform.serving.runner import Runner, Shapes, all_shapes

_RANKS = (5, 8)
_PAST = BLOCK // 2 + 5


def agreeing_shapes(runner: Runner, *, seed: int = 0) -> Shapes:
    """Measure which shapes agree to the bit with the largest one.

    A number of rows agrees if a row gets the same logits at every place, beside equal rows and
    beside different ones, with adapters and without, as it does in the call with every slot. A
    number of visible positions agrees if attention gives the same there as at full capacity, for
    pasts of several lengths.

    Args:
        runner: The model; no row may run. Its cache holds only zeros afterwards.
        seed: For the numbers that are tried.

    Returns:
        The shapes, without rows if not even the largest call treats all its rows alike.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = all_shapes(runner.cache.slots, runner.cache.capacity)
    try:
        with torch.inference_mode():
            rows = _agreeing_rows(runner, shapes, generator)
            visible = _agreeing_visible(runner, shapes, rows, generator)
    finally:
        _wipe(runner)
    return Shapes(rows=rows, visible=visible)


def _agreeing_rows(runner: Runner, shapes: Shapes, generator: torch.Generator) -> tuple[int, ...]:
    visible = next((n for n in shapes.visible if n > _PAST), shapes.visible[-1])
    length = min(_PAST, runner.limit - 1)
    _fill(runner, visible, generator)
    mixtures: list[Mixture] = [BASE]
    mixtures += [((_adapter(runner, rank, generator), 1.0),) for rank in _RANKS]
    own = int(torch.randint(runner.vocabulary, (1,), generator=generator))
    expected = None
    agreeing = []
    for rows in reversed(shapes.rows):
        found = [
            _row_bits(runner, (rows, visible, length), own, mixture, mixtures, generator)
            for mixture in mixtures[:2]
        ]
        if expected is None:
            if any(one is None for one in found):
                return ()
            expected = found
        pairs = zip(found, expected, strict=True)
        if all(one is not None and it is not None and torch.equal(one, it) for one, it in pairs):
            agreeing.append(rows)
    return tuple(reversed(agreeing))


def _row_bits(
    runner: Runner,
    shape: tuple[int, int, int],
    own: int,
    mixture: Mixture,
    others: list[Mixture],
    generator: torch.Generator,
) -> Tensor | None:
    """A row's logits in calls of one shape, or None where they depend on its place or mates."""
    rows, visible, length = shape
    expected = None
    for offset in (None, 1):
        own_rows = [row for row in range(rows) if offset is None or row % 3 == offset]
        tokens = torch.randint(runner.vocabulary, (rows,), generator=generator)
        lengths = torch.randint(1, length + 1, (rows,), generator=generator)
        batch = [others[row % len(others)] for row in range(rows)]
        for row in own_rows:
            tokens[row], lengths[row], batch[row] = own, length, mixture
        device = runner.base.device
        # Every slot holds the same past, and all write behind it, so that the row is the same row
        # wherever it stands and whatever stood there before.
        step = CacheStep(
            first=0,
            rows=rows,
            visible=visible,
            writing=torch.arange(rows, device=device),
            positions=torch.full((rows,), length, device=device),
        )
        runner.cache.step = step
        plan = runner.served.plan(batch, strict=runner.strict)
        logits = runner.raw_step(tokens.to(device), lengths.to(device), step, plan)[own_rows]
        expected = logits[0] if expected is None else expected
        if not bool((logits == expected).all()):
            return None
    return expected


def _agreeing_visible(
    runner: Runner, shapes: Shapes, rows: tuple[int, ...], generator: torch.Generator
) -> tuple[int, ...]:
    layer = runner.cache.layers[0]
    count = rows[-1] if rows else 1
    heads = int(runner.base.model.config.num_attention_heads)
    largest = shapes.visible[-1]

    def normal(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like.device, like.dtype)

    key_heads, width = layer.keys.shape[1], layer.keys.shape[3]
    query = normal(layer.keys, count, heads, 1, width)
    keys = normal(layer.keys, count, key_heads, largest, width)
    values = normal(layer.values, count, key_heads, largest, layer.values.shape[3])
    agreeing = {largest: True}
    for past in sorted({5, *(n - 3 for n in shapes.visible)}, reverse=True):
        keys[:, :, past:], values[:, :, past:] = 0, 0
        results = {}
        for visible in (n for n in shapes.visible if n >= past):
            hidden = torch.arange(visible, device=keys.device) >= past
            mask = torch.zeros(visible, device=keys.device).masked_fill_(hidden, -torch.inf)
            parts = (keys[:, :, :visible], values[:, :, :visible], mask.expand(count, 1, 1, -1))
            results[visible] = attend(query, *parts, width**-0.5)
        for visible, result in results.items():
            same = torch.equal(result, results[largest])
            agreeing[visible] = agreeing.get(visible, True) and same
    return tuple(n for n in shapes.visible if agreeing.get(n, False))


def _fill(runner: Runner, visible: int, generator: torch.Generator) -> None:
    """Give every slot the same past of random numbers."""
    cache = runner.cache
    slot = cache.acquire()
    # One call tells the cache its widths and precision.
    runner.prompt(slot, [0], BASE)
    cache.release(slot)
    for layer in cache.layers:
        for store in (layer.keys, layer.values):
            past = torch.randn((store.shape[1], visible, store.shape[3]), generator=generator)
            store[:, :, :visible] = past.to(store.device, store.dtype)


def _wipe(runner: Runner) -> None:
    for layer in runner.cache.layers:
        if layer.is_initialized:
            layer.keys.zero_()
            layer.values.zero_()


def _adapter(runner: Runner, rank: int, generator: torch.Generator) -> BankedAdapter:
    """An adapter of random numbers on every linear module."""
    dtype = next(runner.base.model.parameters()).dtype
    device = runner.base.device
    a, b = {}, {}
    for name, module in linear_modules_of(runner.base).items():
        shape = tuple(module.weight.shape)  # type: ignore[arg-type]
        d_out, d_in = shape if isinstance(module, torch.nn.Linear) else shape[::-1]
        a[name] = (torch.randn(rank, d_in, generator=generator) * d_in**-0.5).to(device, dtype)
        b[name] = (torch.randn(rank, d_out, generator=generator) * 0.1).to(device, dtype).T
    return BankedAdapter(digest=f"probe {rank}", ranks=dict.fromkeys(a, rank), a=a, b=b)
