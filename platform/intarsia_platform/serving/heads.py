"""Classification heads: each row answers with the head of its own mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from intarsia_platform.serving.mixture import Mixture, MixtureKey, mixture_key


class HeadKernel:
    """Replaces the outputs of one linear module of a head, row by row.

    Args:
        name: The module's full name.
        module: The base's module, for what an adapter does not bring.
        rows: Each row's mixture.
    """

    def __init__(self, name: str, module: nn.Module, rows: Sequence[Mixture]) -> None:
        own = {short: value.detach() for short, value in module.named_parameters(recurse=False)}
        heads: dict[MixtureKey, Mapping[str, Tensor]] = {}
        self._rows: list[tuple[int, Mapping[str, Tensor]]] = []
        for row, mixture in enumerate(rows):
            if any(f"{name}.{short}" in one.head for one, _ in mixture for short in own):
                key = mixture_key(mixture)
                if key not in heads:
                    heads[key] = {
                        short: mixed_parameter(f"{name}.{short}", value, mixture)
                        for short, value in own.items()
                    }
                self._rows.append((row, heads[key]))
        # GPT-2's Conv1D keeps its weight transposed.
        self._transposed = not isinstance(module, nn.Linear)

    def replace(self, x: Tensor, y: Tensor) -> None:
        """Overwrite the rows of a head's output.

        Args:
            x: Its input, shape (rows, …, d_in).
            y: Its output, shape (rows, …, d_out).
        """
        for row, head in self._rows:
            weight = head["weight"].T if self._transposed else head["weight"]
            bias = head.get("bias")
            y[row] = functional.linear(
                x[row].to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)
            )


def mixed_parameter(name: str, own: Tensor, mixture: Mixture) -> Tensor:
    """A parameter of the head of a mixture: ``H + sum_i weight_i (H_i - H)``.

    Args:
        name: Its full name.
        own: The base's value.
        mixture: The mixture.

    Returns:
        The value; of one adapter of weight 1 its own tensor, untouched.
    """
    having = [(one.head[name], weight) for one, weight in mixture if name in one.head]
    if len(having) == 1 and having[0][1] == 1.0:
        return having[0][0]
    with torch.no_grad():
        whole = own.double()
        mixed = whole.clone()
        for value, weight in having:
            mixed += weight * (value.double() - whole)
        return mixed.to(own.dtype)
