"""Adapters attached to the shared base model for the duration of a block.

PEFT's LoRA modules are put in their places on entry, and every module and parameter that was there
before is back on exit, whatever happened in between: the base's own tensors are never written to.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraVariant
from torch import nn
from transformers.pytorch_utils import Conv1D

from intarsia_client.base_model import BaseModel, head_tensors
from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

TRAINABLE = "default"
UNDERNEATH = "underneath"
FOLD_BYTES = 1 << 31
_MARK = "_intarsia_attached"
# Sets of layers for so many sets of modules, as clients of different plans have them.
_MOST_KEPT = 16
# In the place of a kept layer's factors.
_NOTHING = nn.Parameter(torch.empty(0, 0), requires_grad=False)

_Layers = dict[str, Any]


class _ScaledInside(LoraVariant):  # type: ignore[misc]
    """Plain LoRA with the scaling applied where it is cheap, between the factors.

    PEFT multiplies the branch's whole output, (tokens, d_out), and adds it into a new tensor; here
    the (tokens, rank) between the factors is multiplied and the branch added in place. The numbers
    are the same up to rounding; a training step of the demo's base takes about 15 % less time.
    """

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: object
    ) -> torch.Tensor:
        """The base layer's result plus the branch; x is (..., d_in), result (..., d_out)."""
        between = module.lora_A[active_adapter](x) * module.scaling[active_adapter]
        return result.add_(module.lora_B[active_adapter](between))


def empty_adapter(base: BaseModel, modules: Mapping[str, tuple[int, int]]) -> Adapter:
    """What training starts from: every module at rank 0, the head as the base has it.

    Args:
        base: The base model.
        modules: From the modules' full names to their shapes (d_out, d_in).

    Returns:
        An adapter that changes nothing.
    """
    return Adapter(
        base=base.base,
        task=base.task,
        modules={
            name: LowRankFactors(
                a=np.zeros((0, d_in), dtype=np.float32),
                b=np.zeros((d_out, 0), dtype=np.float32),
                scaling=1.0,
            )
            for name, (d_out, d_in) in sorted(modules.items())
        },
        dense=head_tensors(base),
        fan_in_fan_out=base.fan_in_fan_out,
    )


@contextlib.contextmanager
def attached(
    base: BaseModel,
    *,
    trainable: Adapter | None,
    underneath: Adapter | None,
    trained_factors: str = "both",
    fold_bytes: int = FOLD_BYTES,
) -> Iterator[Any]:
    """Attach adapters to the base model for one block.

    The frozen branch is folded where it can be: its module gets a *new* weight
    ``W + scaling * B @ A`` for the block, the shared tensor stays as it is. A low-rank branch costs
    ``rank * (d_in + d_out)`` multiplications a token in the forward pass and again in the backward
    pass, and two more kernel launches; the fold costs ``rank * d_in * d_out`` once. The fold wins
    from ``d_in * d_out / (d_in + d_out)`` tokens on, which is less than one batch for any model,
    and leaves the frozen branch without cost a token. What it takes is memory, one more copy of
    the adapted weights; modules beyond ``fold_bytes``, and modules whose weights are not float32
    (quantised ones), keep the branch.

    Args:
        base: The shared base model; nobody else can attach to it meanwhile.
        trainable: The adapter to train, or None. Its head requires gradients, and of its factors
            those that are trained.
        underneath: A frozen adapter beneath it, or None. Its head is used where ``trainable`` is
            None.
        trained_factors: Which factors of ``trainable`` require gradients, one of
            :data:`intarsia_client.assignment.TRAINED_FACTORS`.
        fold_bytes: Most memory that folded weights may take.

    Yields:
        The model with everything attached, in evaluation mode. Its LoRA layers are kept for later
        blocks: their factors are not, but what else is changed in them stays.

    Raises:
        InputError: If a module or a head's tensor is not in the base or has another shape.
        RuntimeError: If this thread has attached something to this base already.
    """
    with base.lock, contextlib.ExitStack() as undo:
        if hasattr(base.model, _MARK):
            raise RuntimeError("an adapter is attached to this base model already")
        setattr(base.model, _MARK, True)
        undo.callback(delattr, base.model, _MARK)
        undo.callback(base.model.eval)
        for adapter in (trainable, underneath):
            if adapter is not None:
                _check_fit(base, adapter)
        rest: dict[str, LowRankFactors] = {}
        if underneath is not None:
            rest = _fold(base, underneath, fold_bytes, undo)
        _inject(base, trainable, rest, trained_factors, undo)
        head = trainable or underneath
        for name, tensor in head.dense.items() if head else ():
            parameter = nn.Parameter(_tensor(base, tensor), requires_grad=trainable is not None)
            _swap_parameter(base.model, name, parameter, undo)
        yield base.model


def read_trained(model: Any, start: Adapter) -> Adapter:
    """Read the trained factors and head of an attached model.

    Args:
        model: The model that :func:`attached` gave for ``trainable=start``.
        start: The adapter it was given; names, scalings and settings are taken from it.

    Returns:
        An adapter with the present values, as copies.
    """
    modules: dict[str, LowRankFactors] = {}
    for name, factors in start.modules.items():
        layer = model.get_submodule(name)
        modules[name] = LowRankFactors(
            a=_array(layer.lora_A[TRAINABLE].weight),
            b=_array(layer.lora_B[TRAINABLE].weight),
            scaling=factors.scaling,
        )
    dense = {name: _array(model.get_parameter(name)) for name in start.dense}
    return replace(start, modules=modules, dense=dense)


def _array(tensor: torch.Tensor) -> FloatArray:
    values: FloatArray = tensor.detach().float().cpu().numpy().copy()
    return values


def _tensor(base: BaseModel, values: FloatArray) -> torch.Tensor:
    """A tensor of its own, so that training never writes into an adapter that others hold."""
    return torch.tensor(values, dtype=torch.float32, device=base.device)


def _check_fit(base: BaseModel, adapter: Adapter) -> None:
    for name, factors in adapter.modules.items():
        try:
            module = base.model.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear | Conv1D):
            raise InputError("adapter module", name, "use an adapter of this base model")
        shape = tuple(_transposed(module, module.weight).shape)
        if isinstance(module, nn.Linear):
            shape = (module.out_features, module.in_features)
        if shape != factors.shape:
            raise InputError(
                f"adapter module {name}", f"{factors.shape}, not {shape}", "use one of this base"
            )
    parameters = dict(base.model.named_parameters()) if adapter.dense else {}
    for name, tensor in adapter.dense.items():
        if name not in parameters or tuple(parameters[name].shape) != tensor.shape:
            raise InputError(
                f"adapter head {name}",
                tensor.shape,
                "use an adapter of this base model and these labels",
            )


def _transposed(module: nn.Module, weight: Any) -> Any:
    """The weight as (d_out, d_in), or back again; GPT-2's Conv1D keeps it as (d_in, d_out)."""
    return weight.T if isinstance(module, Conv1D) else weight


def _swap_parameter(
    model: Any, name: str, parameter: nn.Parameter, undo: contextlib.ExitStack
) -> None:
    owner, _, short = name.rpartition(".")
    module = model.get_submodule(owner)
    undo.callback(setattr, module, short, getattr(module, short))
    setattr(module, short, parameter)


def _fold(
    base: BaseModel, adapter: Adapter, fold_bytes: int, undo: contextlib.ExitStack
) -> dict[str, LowRankFactors]:
    """Fold what can be folded; returns the modules that keep a branch of their own."""
    rest: dict[str, LowRankFactors] = {}
    for name, factors in adapter.modules.items():
        if not factors.rank:
            continue
        module = base.model.get_submodule(name)
        size = 4 * factors.shape[0] * factors.shape[1]
        plain = type(module) in (nn.Linear, Conv1D) and module.weight.dtype == torch.float32
        if not plain or size > fold_bytes:
            rest[name] = factors
            continue
        fold_bytes -= size
        with torch.no_grad():
            folded = torch.addmm(
                _transposed(module, module.weight),
                _tensor(base, factors.b),
                _tensor(base, factors.a),
                alpha=factors.scaling,
            )
            weight = nn.Parameter(_transposed(module, folded).contiguous(), requires_grad=False)
        _swap_parameter(base.model, f"{name}.weight", weight, undo)
    return rest


def _inject(
    base: BaseModel,
    trainable: Adapter | None,
    rest: Mapping[str, LowRankFactors],
    trained_factors: str,
    undo: contextlib.ExitStack,
) -> None:
    branches = {UNDERNEATH: rest, TRAINABLE: trainable.modules if trainable else {}}
    branches = {branch: modules for branch, modules in branches.items() if modules}
    for name, layer in _layers(base, branches).items():
        owner, _, short = name.rpartition(".")
        parent = base.model.get_submodule(owner)
        undo.callback(_detach, parent, short, layer)
        setattr(parent, short, layer)
        for branch, modules in branches.items():
            if name in modules:
                trained = trained_factors if branch == TRAINABLE else "none"
                _fill(base, layer, branch, modules[name], trained)
    base.model.eval()


def _layers(base: BaseModel, branches: Mapping[str, Mapping[str, LowRankFactors]]) -> _Layers:
    """PEFT's layers for these branches, by the names of the modules that they stand for.

    To inject them is to walk the whole model several times, which takes longer than a small one's
    training step; so they are kept, without their numbers, for the next block with such branches.
    """
    kept: dict[object, _Layers] = base.layers
    key = tuple((branch, frozenset(modules)) for branch, modules in branches.items())
    layers = kept.pop(key, None)
    if layers is None or any(
        layer.get_base_layer() is not base.model.get_submodule(name)
        for name, layer in layers.items()
    ):
        layers = _made(base, branches)
    kept[key] = layers
    while len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
    return layers


def _made(base: BaseModel, branches: Mapping[str, Mapping[str, LowRankFactors]]) -> _Layers:
    """New layers; the model is afterwards as it was."""
    names = sorted({name for modules in branches.values() for name in modules})
    places = [(*name.rpartition(".")[::2], base.model.get_submodule(name)) for name in names]
    tuner: LoraModel | None = None
    try:
        for branch, modules in branches.items():
            configuration = _configuration(modules, base.fan_in_fan_out)
            if tuner is None:
                tuner = LoraModel(base.model, configuration, branch, low_cpu_mem_usage=True)
            else:
                tuner.peft_config[branch] = configuration
                tuner.inject_adapter(base.model, branch, low_cpu_mem_usage=True)
        layers = {name: base.model.get_submodule(name) for name in names}
    finally:
        for owner, short, module in places:
            setattr(base.model.get_submodule(owner), short, module)
        base.model.__dict__.pop("peft_config", None)
    for name, layer in layers.items():
        # PEFT makes every active branch trainable; what is frozen is settled when it is filled.
        layer.set_adapter([branch for branch in branches if name in branches[branch]])
    return layers


def _configuration(modules: Iterable[str], fan_in_fan_out: bool) -> LoraConfig:
    """Layers of rank 1; they get their factors, of any rank, for each block."""
    return LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules="|".join(re.escape(name) for name in modules),
        fan_in_fan_out=fan_in_fan_out,
        init_lora_weights=False,
    )


def _detach(parent: nn.Module, short: str, layer: Any) -> None:
    """Put a module back where it was, and keep none of its branches' numbers."""
    setattr(parent, short, layer.get_base_layer())
    for side in (layer.lora_A, layer.lora_B):
        for linear in side.values():
            linear.weight = _NOTHING


def _fill(base: BaseModel, layer: Any, branch: str, factors: LowRankFactors, trained: str) -> None:
    for side, values, name in ((layer.lora_A, factors.a, "a"), (layer.lora_B, factors.b, "b")):
        requires_grad = trained in ("both", name)
        side[branch].weight = nn.Parameter(_tensor(base, values), requires_grad=requires_grad)
    layer.scaling[branch] = factors.scaling
    layer.lora_variant[branch] = _ScaledInside()
