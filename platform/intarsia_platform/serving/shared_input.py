"""What every kernel is: it adds to modules that are called one after another with one input."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class GroupKernel(Protocol):
    """Adds a batch's updates to the modules of one group, which are called one after another."""

    def add(self, position: int, x: Tensor, y: Tensor) -> None:
        """Add to a module's output, in place.

        Args:
            position: Which module of the group.
            x: Its input, shape (rows, tokens, d_in) or (rows, d_in).
            y: Its output, shape (rows, tokens, d_out) or (rows, d_out).
        """


class SharedInput:
    """Computes what the modules of a group share once, at the first of them.

    Args:
        count: Modules of the group.
    """

    def __init__(self, count: int) -> None:
        self._all = (1 << count) - 1
        self._seen = 0
        self._x: Tensor | None = None

    def is_new(self, position: int, x: Tensor) -> bool:
        """Whether the shared part has to be computed for this call."""
        if x is not self._x or self._seen >> position & 1:
            self._x, self._seen = x, 0
            return True
        return False

    def is_last(self, position: int) -> bool:
        """Note the call; whether every module of the group has had its part of this input."""
        self._seen |= 1 << position
        if self._seen != self._all:
            return False
        self._x = None
        return True


def two_dimensional(x: Tensor) -> Tensor:
    """The same numbers as (rows, numbers of a row)."""
    return x.reshape(x.shape[0], -1)


def three_dimensional(x: Tensor) -> Tensor:
    """The same numbers as (rows, tokens, width)."""
    return x if x.dim() == 3 else x.reshape(x.shape[0], -1, x.shape[-1])


def summed_into(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Where to add: the output itself, or zeros where its precision is another (autocast)."""
    return y if y.dtype == dtype else torch.zeros_like(y, dtype=dtype)


def add_sums(y: Tensor, sums: Tensor) -> None:
    """Add what was summed elsewhere than in the output itself."""
    if sums is not y:
        y.add_(sums)
