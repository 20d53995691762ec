"""The model, its cache and its adapters as two calls: a piece of one prompt, one token a row.

What decides that a row's numbers do not depend on its batch mates is here: prompts go alone, in
pieces whose borders depend on the prompt alone; one-token calls have one of a few shapes that were
measured to agree to the bit (:mod:`intarsia_platform.serving.invariance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from intarsia_client.base_model import BaseModel, precision
from intarsia_client.errors import InputError
from numpy.typing import NDArray
from torch import Tensor

from intarsia_platform.serving.cache import BLOCK, CacheStep, SlotCache
from intarsia_platform.serving.mixture import BASE, Mixture
from intarsia_platform.serving.plan import BatchPlan
from intarsia_platform.serving.row_attention import row_attention_in
from intarsia_platform.serving.served_base import ServedBase

ROWS = 16
_FEW_ROWS = (4, 8)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Shapes of one-token calls.

    Args:
        rows: Numbers of rows, ascending; the last is every slot. Empty: each row by itself.
        visible: Numbers of visible positions, ascending; the last is the cache's capacity.
    """

    rows: tuple[int, ...]
    visible: tuple[int, ...]


def all_shapes(slots: int, capacity: int) -> Shapes:
    """The shapes worth having.

    Args:
        slots: Rows of the cache.
        capacity: Positions of the cache.

    Returns:
        Rows 4, 8 and multiples of 16; positions in steps of half a power of two.
    """
    rows = sorted({*_FEW_ROWS, *range(ROWS, slots, ROWS), slots})
    visible, length = {capacity}, BLOCK
    while length < capacity:
        visible |= {length, min(capacity, length * 3 // 2 // BLOCK * BLOCK)}
        length *= 2
    return Shapes(rows=tuple(n for n in rows if n <= slots), visible=tuple(sorted(visible)))


class Runner:
    """One model with a cache for several rows.

    Args:
        served: The base model with its seams.
        max_rows: Rows at once; the cache has as many slots, rounded up to a multiple of 16.
        capacity: Tokens of a row, prompt and answer together.
        strict: Whether no product of another row's adapter is ever computed for a row.

    Raises:
        InputError: If the base is no causal language model with plain attention, or a number does
            not fit it.
    """

    def __init__(
        self, served: ServedBase, *, max_rows: int, capacity: int, strict: bool = True
    ) -> None:
        """Make the cache; nothing is computed."""
        base = served.base
        _check_base(base, capacity)
        if not 1 <= max_rows <= 4096:
            raise InputError("max_rows", max_rows, "use 1 to 4096")
        if not 2 <= capacity <= base.longest_sequence:
            raise InputError("row length", capacity, f"use 2 to {base.longest_sequence} tokens")
        self.served = served
        self.strict = strict
        self.limit = capacity
        self.vocabulary = int(base.model.config.vocab_size)
        self.cache = SlotCache(
            layers=int(base.model.config.num_hidden_layers),
            slots=-(-max_rows // ROWS) * ROWS,
            capacity=capacity,
        )
        self.shapes = all_shapes(self.cache.slots, self.cache.capacity)
        self._plan: BatchPlan | None = None
        self._planned: tuple[tuple[int, Mixture], ...] = ()

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return self.served.base

    def prompt(self, slot: int, tokens: Sequence[int], mixture: Mixture) -> NDArray[np.float32]:
        """Run the next piece of a row's prompt.

        Args:
            slot: The row's slot.
            tokens: The piece, at least one token.
            mixture: The row's adapters.

        Returns:
            The last token's logits, shape (vocabulary,).
        """
        step = self.cache.begin_prompt(slot, len(tokens))
        device = self.base.device
        start = step.start or 0
        positions = torch.arange(start, start + len(tokens), device=device)
        mask = None
        if start:
            mask = torch.arange(step.visible, device=device) <= positions[:, None]
            mask = mask[None, None]
        ids = torch.tensor([list(tokens)], device=device)
        plan = self.served.plan([mixture], strict=self.strict)
        logits = _array(self._call(ids, positions[None], mask, plan)[0])
        self.cache.finish([slot], len(tokens))
        return logits

    def tokens(
        self, tokens: Mapping[int, int], mixtures: Mapping[int, Mixture]
    ) -> dict[int, NDArray[np.float32]]:
        """Run one token of each of some rows.

        Args:
            tokens: From slot to the row's last token.
            mixtures: From slot to the row's adapters.

        Returns:
            From slot to its logits, shape (vocabulary,).
        """
        slots = sorted(tokens)
        if self.shapes.rows:
            rows = next(n for n in self.shapes.rows if n > slots[-1])
            return self._together(slots, 0, rows, tokens, mixtures)
        alone: dict[int, NDArray[np.float32]] = {}
        for slot in slots:
            alone |= self._together([slot], slot, 1, tokens, mixtures)
        return alone

    def forget_plan(self) -> None:
        """Let the last batch's adapters go; called when a row ends."""
        self._plan, self._planned = None, ()

    def raw_step(self, tokens: Tensor, lengths: Tensor, step: CacheStep, plan: BatchPlan) -> Tensor:
        """One token a row, without any bookkeeping.

        Args:
            tokens: Shape (rows,).
            lengths: Positions that each row has, this token not among them, shape (rows,).
            step: The cache's step.
            plan: The batch's plan.

        Returns:
            Logits, shape (rows, vocabulary), float32.
        """
        places = torch.arange(step.visible, device=tokens.device)
        hidden = places > lengths[:, None]
        mask = torch.zeros(hidden.shape, device=tokens.device).masked_fill_(hidden, -torch.inf)
        return self._call(tokens[:, None], lengths[:, None], mask[:, None, None], plan)

    def _together(
        self,
        slots: Sequence[int],
        first: int,
        rows: int,
        tokens: Mapping[int, int],
        mixtures: Mapping[int, Mixture],
    ) -> dict[int, NDArray[np.float32]]:
        needed = 1 + max(self.cache.length(slot) for slot in slots)
        visible = next(n for n in self.shapes.visible if n >= needed)
        device = self.base.device
        step = self.cache.begin_tokens(
            slots, first=first, rows=rows, visible=visible, device=device
        )
        # Rows without a token look at position 0 of their slot, and nobody reads their numbers.
        ids = np.full(rows, self.base.pad_token_id, dtype=np.int64)
        lengths = np.zeros(rows, dtype=np.int64)
        for slot in slots:
            ids[slot - first], lengths[slot - first] = tokens[slot], self.cache.length(slot)
        plan = self._plan_for(tuple((slot - first, mixtures[slot]) for slot in slots), rows)
        on_device = (torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device))
        logits = _array(self.raw_step(*on_device, step, plan))
        self.cache.finish(slots, 1)
        return {slot: logits[slot - first] for slot in slots}

    def _plan_for(self, planned: tuple[tuple[int, Mixture], ...], rows: int) -> BatchPlan:
        if self._plan is None or self._plan.rows != rows or not _same(planned, self._planned):
            mixtures = [BASE] * rows
            for row, mixture in planned:
                mixtures[row] = mixture
            self._plan = self.served.plan(mixtures, strict=self.strict)
            self._planned = planned
        return self._plan

    def _call(self, ids: Tensor, positions: Tensor, mask: Tensor | None, plan: BatchPlan) -> Tensor:
        with self.served.using(plan) as model, torch.inference_mode(), row_attention_in(model):
            with precision(self.base):
                output: Any = model(
                    input_ids=ids,
                    position_ids=positions,
                    attention_mask=mask,
                    past_key_values=self.cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            logits: Tensor = output.logits[:, -1].float()
            return logits


def _same(one: Sequence[tuple[int, Mixture]], other: Sequence[tuple[int, Mixture]]) -> bool:
    return len(one) == len(other) and all(
        a == b and mine is its for (a, mine), (b, its) in zip(one, other, strict=True)
    )


def _array(logits: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = logits.cpu().numpy()
    return values


def _check_base(base: BaseModel, capacity: int) -> None:
    configuration = base.model.config
    kinds = set(getattr(configuration, "layer_types", None) or ["full_attention"])
    # A window as wide as a row is no window.
    window = getattr(configuration, "sliding_window", None) or capacity
    plain = kinds <= {"full_attention", "sliding_attention"} and window >= capacity
    if base.task != "causal-lm" or not plain:
        raise InputError(
            "base model", base.base, "use a causal language model with full attention everywhere"
        )
