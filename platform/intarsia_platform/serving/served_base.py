"""A base model that answers each row of a batch through that row's own mixture of adapters.

The base's modules stay what they are: a hook adds to their outputs while a plan is in use, in the
thread that uses it, and does nothing otherwise. No weight is written to.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError
from torch import Tensor, nn

from intarsia_platform.serving.linear_sites import (
    base_shapes,
    factor_precision,
    head_modules_of,
    input_groups,
    linear_modules_of,
)
from intarsia_platform.serving.mixture import Mixture
from intarsia_platform.serving.plan import (
    PACKED_RANK,
    BatchPlan,
    FactorCopies,
    summed_rank,
)

_MARK = "_intarsia_served"
_Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], None]


class ServedBase:
    """The base model with a seam in each linear module.

    Only one plan is in use at a time; others wait. Training that attaches adapters to the same
    base (:func:`intarsia_client.attachment.attached`) waits too. A thread that calls the model
    without a plan gets the bare base, whatever other threads do.

    Args:
        base: The base model; nobody else may serve from it meanwhile.
        strict: Whether a row may only ever be multiplied by its own adapters' factors. Without it,
            one token a row may go through the packed kernel, which is faster for many rows over
            few adapters; adapters with numbers that are not finite are refused when they are
            loaded, so that products of others, multiplied by zero, are zero.
        packed_rank: The largest sum of a batch's distinct ranks for the packed kernel.

    Raises:
        RuntimeError: If this base is served already.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        strict: bool = False,
        packed_rank: int = PACKED_RANK,
    ) -> None:
        """Find the modules and put a seam into each."""
        self._base = base
        self._strict = strict
        self._packed_rank = packed_rank
        self._copies = FactorCopies()
        self._dtype = factor_precision(base)
        self._active = threading.local()
        self._handles: list[Any] = []
        with base.lock:
            if hasattr(base.model, _MARK):
                raise RuntimeError("this base model is served already")
            groups = input_groups(base)
            setattr(base.model, _MARK, True)
            modules = linear_modules_of(base)
            shapes = base_shapes(base).modules
            for group in groups:
                widths = [shapes[name][0] for name in group]
                for position, name in enumerate(group):
                    self._put(modules[name], self._adding(group, position, widths))
            for name, module in head_modules_of(base).items():
                self._put(module, self._replacing(name, module))

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return self._base

    def plan(self, mixtures: Sequence[Mixture], *, strict: bool | None = None) -> BatchPlan:
        """Plan a batch. It costs little: factors are copied when they are first decoded with.

        Args:
            mixtures: Of each row; an empty one for the base alone. Their adapters must come from a
                bank of this base.
            strict: Overrides what this served base was made with.

        Returns:
            The plan; use it for as many calls as the batch stays the same.
        """
        strict = self._strict if strict is None else strict
        packed = not strict and 0 < summed_rank(mixtures) <= self._packed_rank
        return BatchPlan(
            mixtures=tuple(mixtures),
            strict=strict,
            packed=packed,
            copies=self._copies,
            dtype=self._dtype,
        )

    @contextlib.contextmanager
    def using(self, plan: BatchPlan) -> Iterator[Any]:
        """Use a plan in this thread for one block.

        Args:
            plan: A plan of this served base.

        Yields:
            The model. Row ``i`` of every input, whose first dimension must be the plan's rows, is
            answered through the plan's ``i``-th mixture.

        Raises:
            RuntimeError: If this thread uses a plan already, or the served base is closed.
        """
        with self._base.lock:
            if getattr(self._active, "plan", None) is not None:
                raise RuntimeError("this thread uses a plan already")
            if not self._handles:
                raise RuntimeError("this served base is closed")
            self._active.plan = plan
            try:
                yield self._base.model
            finally:
                self._active.plan = None

    def forget(self, digest: str) -> None:
        """Drop every kept copy that an adapter is part of; for :meth:`AdapterBank.on_drop`.

        Args:
            digest: The adapter. A plan that holds it still does until it is let go.
        """
        with self._base.lock:
            self._copies.forget(digest)

    @property
    def copied_bytes(self) -> int:
        """Memory that copies of factors take, beside the bank's own."""
        return self._copies.size

    def release(self) -> None:
        """Drop all kept copies; for when nothing runs. The next step makes those it needs."""
        with self._base.lock:
            self._copies.clear()

    def close(self) -> None:
        """Take the seams out; the base is as it was before."""
        with self._base.lock:
            while self._handles:
                self._handles.pop().remove()
            self._copies.clear()
            self._base.model.__dict__.pop(_MARK, None)

    def __enter__(self) -> ServedBase:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _put(self, module: nn.Module, hook: _Hook) -> None:
        self._handles.append(module.register_forward_hook(hook))

    def _adding(self, group: tuple[str, ...], position: int, widths: Sequence[int]) -> _Hook:
        active = self._active

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            plan: BatchPlan | None = getattr(active, "plan", None)
            if plan is not None:
                x = inputs[0]
                if x.shape[0] != len(plan.mixtures):
                    raise _wrong_rows(group[position], x, plan)
                kernel = plan.kernel(group, widths, x)
                if torch.is_autocast_enabled(x.device.type):
                    with torch.autocast(x.device.type, enabled=False):
                        kernel.add(position, x, output)
                else:
                    kernel.add(position, x, output)

        return hook

    def _replacing(self, name: str, module: nn.Module) -> _Hook:
        active = self._active

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            plan: BatchPlan | None = getattr(active, "plan", None)
            if plan is not None:
                if inputs[0].shape[0] != len(plan.mixtures):
                    raise _wrong_rows(name, inputs[0], plan)
                with torch.autocast(output.device.type, enabled=False):
                    plan.head(name, module).replace(inputs[0], output)

        return hook


def _wrong_rows(name: str, x: Tensor, plan: BatchPlan) -> InputError:
    return InputError(
        f"input of {name}",
        f"{x.shape[0]} rows, planned {plan.rows}",
        "plan one mixture for each row of the batch; models that mix rows cannot be served so",
    )
