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

from collections.abc import Callable, Collection, Mapping
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
    chosen = _allowed_rows(library, allowed)
    scores, first = _leading(hidden, chosen, top_k)
    left_out = torch.full_like(scores, -torch.inf)
    kept = left_out.scatter(-1, first, scores.gather(-1, first))
    weights = torch.softmax(kept / temperature, dim=-1) if chosen else scores
    return Gates(digests=tuple(chosen), weights=weights)


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
    chosen = _allowed_rows(library, allowed)
    scores, first = _leading(hidden, chosen, top_k)
    if not chosen:
        return Gates(digests=(), weights=scores)
    x = hidden.float()
    lengths = torch.stack(
        [torch.linalg.vector_norm(x @ one.rows.T, dim=-1) for one in chosen.values()], dim=-1
    )
    passed = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, first, True)
    best = lengths.masked_fill(~passed, -1.0).argmax(dim=-1, keepdim=True)
    return Gates(digests=tuple(chosen), weights=torch.zeros_like(scores).scatter(-1, best, 1.0))


ROUTERS: Mapping[str, Callable[..., Gates]] = {"arrow": arrow_gates, "lag": lag_gates}
"""By name; each takes the hidden states, a library and the digests that are allowed."""


def _allowed_rows(
    library: Mapping[str, SpectralRows], allowed: Collection[str]
) -> dict[str, SpectralRows]:
    """The allowed adapters' directions, sorted; nothing else of the library is looked at."""
    return {digest: library[digest] for digest in sorted(set(allowed)) if digest in library}


def _leading(
    hidden: torch.Tensor, chosen: Mapping[str, SpectralRows], top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrow's scores, shape (..., adapters), and which adapters' are the top k of each token."""
    if top_k < 1:
        raise InputError("top_k", top_k, "give at least 1")
    if not chosen:
        none = hidden.new_zeros((*hidden.shape[:-1], 0), dtype=torch.float32)
        return none, none.long()
    arrows = torch.stack([one.arrow for one in chosen.values()], dim=-1)
    scores = (hidden.float() @ arrows).abs()
    # Stable, so that of equal scores the smaller digest wins.
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return scores, order[..., :top_k]
