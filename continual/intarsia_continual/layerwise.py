"""Routing by the adapters' own weights, token by token and layer by layer: Arrow and LAG.

What an adapter is for is read off one module's factors, with no text and no other adapter:

    B A = U S V,    arrow v = first row of V,    rows V (r x d_in, orthonormal)
    Arrow:  softmax over the top k of |v . x| / temperature
    LAG:    of the top k of |v . x|, the one with the largest |V x|

x is a token's hidden state before the module. An unequal rank is no obstacle; a larger one has the
larger |V x|, all else equal. The key-value cache then depends on the router and on the allowed set,
so a request-level choice (:mod:`intarsia_continual.retrieval`) is the default for serving.

Formal guarantee: only the factors of allowed adapters are read and multiplied. The gates are a
function of the hidden states and the allowed adapters' factors; another adapter that is hidden,
added, removed or damaged changes no bit of them.

References:
    Ostapenko et al., Towards Modular LLMs by Building and Reusing a Library of LoRAs, 2024,
    arXiv:2405.11157 (Arrow).
    Fleshman and Van Durme, SpectR: Dynamically Composing LM Experts with Spectral Routing, 2025,
    arXiv:2504.03454 (the score |V x|).
    Fleshman and Van Durme, LoRA-Augmented Generation (LAG) for Knowledge-Intensive Language Tasks,
    2025, arXiv:2507.05346.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from intarsia_client.errors import InputError
from intarsia_client.wire import LowRankFactors

# Directions below this share of the largest singular value are rounding of float32 factors.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectralRows:
    """What one module of one adapter listens to.

    Args:
        rows: Right singular vectors of its product, largest first, shape (r, d_in), float32,
            orthonormal; r is 0 where the product is zero.
    """

    rows: torch.Tensor

    @property
    def arrow(self) -> torch.Tensor:
        """The first direction, shape (d_in,); zeros where there is none."""
        return self.rows[0] if len(self.rows) else self.rows.new_zeros(self.rows.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Gates:
    """How much of each allowed adapter each token gets in one module.

    Args:
        digests: The adapters, sorted.
        weights: Shape (..., adapters), float32, zero where an adapter was not chosen; sums to 1
            over the adapters, unless there is none.
    """

    digests: tuple[str, ...]
    weights: torch.Tensor


def spectral_rows(factors: LowRankFactors) -> SpectralRows:
    """Read off a module's factors what it listens to.

    Args:
        factors: The module's own factors.

    Returns:
        Its directions; computed in float64 through QR decompositions of the factors, in
        O((d_out + d_in) r^2), without the product.
    """
    b = torch.from_numpy(factors.b).double() * factors.scaling
    return rows_of(torch.from_numpy(factors.a), b)


def rows_of(a: torch.Tensor, b: torch.Tensor) -> SpectralRows:
    """Read off what a product listens to.

    Args:
        a: Shape (r, d_in), on any device, in any precision.
        b: Shape (d_out, r), with or without its scaling, which only 0 makes another matter.

    Returns:
        As :func:`spectral_rows`, on the same device.
    """
    r_b = torch.linalg.qr(b.double(), mode="r").R
    q_a, r_a = torch.linalg.qr(a.double().T)
    _, sigma, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    largest = float(sigma[0]) if len(sigma) else 0.0
    kept = v[(sigma > _ROUNDING * largest) & (sigma > 0)] @ q_a.T
    return SpectralRows(rows=kept.float())


@dataclass(frozen=True, kw_only=True)
class Router:
    """How a method divides a token, given what its hidden state has to do with each adapter.

    Args:
        heard: Which of an adapter's directions it asks for; shape (n, d_in), n at least 1.
        gates: From the tokens' products with these directions, adapter by adapter, shape
            (..., sum of n), and each adapter's n, to the gates, shape (..., adapters). There must
            be an adapter. Options are the method's own.
    """

    heard: Callable[[SpectralRows], torch.Tensor]
    gates: Callable[..., torch.Tensor]


def arrow_gates(
    hidden: torch.Tensor,
    library: Mapping[str, SpectralRows],
    allowed: Collection[str],
    *,
    top_k: int = 4,
    temperature: float = 1.0,
) -> Gates:
    """Arrow's gates of one module.

    Args:
        hidden: The module's input, shape (..., d_in).
        library: From adapters' digests to their directions in this module; adapters that do not
            adapt it are absent.
        allowed: The digests that may be used.
        top_k: How many adapters a token gets at most.
        temperature: Divides the scores before the softmax.

    Returns:
        The gates of the allowed adapters.

    Raises:
        InputError: If ``top_k`` or ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise InputError("temperature", temperature, "give a number above 0")
    options = {"top_k": _checked(top_k), "temperature": temperature}
    return _gates(ROUTERS["arrow"], hidden, library, allowed, options)


def lag_gates(
    hidden: torch.Tensor,
    library: Mapping[str, SpectralRows],
    allowed: Collection[str],
    *,
    top_k: int = 20,
) -> Gates:
    """LAG's gates of one module: one adapter for each token.

    Args:
        hidden: As for :func:`arrow_gates`.
        library: Likewise.
        allowed: Likewise.
        top_k: How many adapters Arrow's score lets through to the second score.

    Returns:
        The gates: 1 for one adapter, 0 for the others; of equals the smaller digest.

    Raises:
        InputError: If ``top_k`` is not positive.
    """
    return _gates(ROUTERS["lag"], hidden, library, allowed, {"top_k": _checked(top_k)})


def _gates(
    router: Router,
    hidden: torch.Tensor,
    library: Mapping[str, SpectralRows],
    allowed: Collection[str],
    options: Mapping[str, float],
) -> Gates:
    # Nothing else of the library is looked at.
    chosen = {one: library[one] for one in sorted(set(allowed)) if one in library}
    if not chosen:
        none = hidden.new_zeros((*hidden.shape[:-1], 0), dtype=torch.float32)
        return Gates(digests=(), weights=none)
    directions = [router.heard(one) for one in chosen.values()]
    products = hidden.float() @ torch.cat(directions).T
    weights = router.gates(products, [len(one) for one in directions], **options)
    return Gates(digests=tuple(chosen), weights=weights)


def _arrow(
    products: torch.Tensor, counts: Sequence[int], *, top_k: int = 4, temperature: float = 1.0
) -> torch.Tensor:
    scores = products.abs()
    kept = scores.masked_fill(~_leading(scores, top_k), -torch.inf)
    return torch.softmax(kept / temperature, dim=-1)


def _lag(products: torch.Tensor, counts: Sequence[int], *, top_k: int = 20) -> torch.Tensor:
    parts = torch.split(products, list(counts), dim=-1)
    lengths = torch.stack([torch.linalg.vector_norm(one, dim=-1) for one in parts], dim=-1)
    passed = _leading(torch.stack([one[..., 0].abs() for one in parts], dim=-1), top_k)
    best = lengths.masked_fill(~passed, -1.0).argmax(dim=-1, keepdim=True)
    return torch.zeros_like(lengths).scatter(-1, best, 1.0)


def _leading(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """Which adapters have each token's largest scores; both of shape (..., adapters)."""
    if scores.shape[-1] <= top_k:
        return torch.ones_like(scores, dtype=torch.bool)
    # Stable, so that of equal scores the smaller digest wins.
    first = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :top_k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, first, True)


def _checked(top_k: int) -> int:
    if top_k < 1:
        raise InputError("top_k", top_k, "give at least 1")
    return top_k


ROUTERS: Mapping[str, Router] = {
    "arrow": Router(heard=lambda one: one.arrow[None], gates=_arrow),
    "lag": Router(heard=lambda one: one.rows if len(one.rows) else one.arrow[None], gates=_lag),
}
"""By name."""
