"""Error feedback for int8 uploads: what rounding lost in one round goes into the next.

What counts is a module's product ``scaling * B @ A``, so the loss is kept as a product too, as
factors of at most twice the client's rank. In the next round its part on the columns of that
round's B goes into A before A is quantised; then its part on the rows of the quantised A goes into
B before B is quantised, and with it what the rounding of A changed. The rest is carried on. A
factor that is not sent takes nothing. Where only A is shared, what A itself lost is carried. The
head carries its own loss.

Formal guarantee: with C_t carried after round t and no cut at the bound of the rank, the decoded
updates of rounds 1 to T sum to the trained ones minus C_T, up to rounding in float64.

Reference:
    Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, 2019,
    arXiv:1901.09847.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.transport.precision import rounded_change
from intarsia_client.transport.updates import decode_update, encode_update
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

# Rows shorter than this share of the longest, or this near to dependent on others, take no
# corrections, so that none grows out of proportion.
_NEGLIGIBLE = 1e-2

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CarriedError:
    """What earlier uploads of a client lost and still owe.

    Args:
        modules: From module to the lost part of its product, scaling 1.
        shared_a: From module to what its A lost, shape (rank, d_in), where only A is shared.
        dense: From the head's tensors to what they lost.
    """

    modules: Mapping[str, LowRankFactors] = field(default_factory=dict)
    shared_a: Mapping[str, FloatArray] = field(default_factory=dict)
    dense: Mapping[str, FloatArray] = field(default_factory=dict)


def encode_with_feedback(
    trained: Adapter,
    start: Adapter,
    carried: CarriedError,
    *,
    factors: str = "both",
    only_a_is_shared: bool = False,
) -> tuple[EncodedAdapter, CarriedError]:
    """Encode an update in int8 together with what earlier ones lost.

    Who changed nothing and carries nothing sends zeros.

    Args:
        trained: What the client trained, modules held.
        start: The trainable part of its start.
        carried: What its earlier uploads lost.
        factors: Which factors are sent; see :func:`~.updates.encode_update`.
        only_a_is_shared: Whether B is the client's own, so that no product is shared.

    Returns:
        The bytes of both files, and what is now lost in all. Modules that the client did not train
        this time keep what they carry.

    Raises:
        InputError: If a value is not finite.
    """
    own_a = only_a_is_shared and factors == "a"
    adjusted = replace(
        trained,
        modules={
            name: _with_shared_a(module, carried.shared_a.get(name))
            if own_a
            else _with_product(module, start.modules[name], carried.modules.get(name), factors)
            for name, module in trained.modules.items()
        },
        dense={
            name: tensor + _fitting(carried.dense.get(name), tensor)
            for name, tensor in trained.dense.items()
        },
    )
    encoded = encode_update(adjusted, start, "int8", factors=factors)
    decoded = decode_update(encoded, start, factors=factors)
    lost = dict(carried.modules)
    lost_a = dict(carried.shared_a)
    for name, module in trained.modules.items():
        if own_a:
            lost_a[name] = adjusted.modules[name].a - decoded.modules[name].a
        elif factors != "none":
            loss = _lost_product(module, decoded.modules[name], carried.modules.get(name))
            lost.pop(name, None)
            if loss.rank:
                lost[name] = loss
    lost_dense = {name: tensor - decoded.dense[name] for name, tensor in adjusted.dense.items()}
    return encoded, CarriedError(modules=lost, shared_a=lost_a, dense=lost_dense)


def _with_shared_a(module: LowRankFactors, carried: FloatArray | None) -> LowRankFactors:
    return replace(module, a=module.a + _fitting(carried, module.a))


def _with_product(
    module: LowRankFactors,
    start: LowRankFactors,
    carried: LowRankFactors | None,
    factors: str,
) -> LowRankFactors:
    """The module with the carried product put where it can be sent."""
    if factors == "none":
        return module
    a, b = module.a.astype(np.float64), module.b.astype(np.float64)
    if factors != "b":
        if carried is not None:
            reached = _pseudo_inverse(b.T).T @ (carried.b / module.scaling)
            module = replace(module, a=(a + reached @ carried.a).astype(np.float32))
        if factors == "a":
            return module
    sent_a = rounded_change(module.a, start.a) if factors == "both" else module.a
    owed_b, owed_a = [b], [a - sent_a]
    if carried is not None:
        owed_b.append(carried.b.astype(np.float64) / module.scaling)
        owed_a.append(carried.a.astype(np.float64))
    owed = np.concatenate(owed_a)
    if not owed.any():
        return module
    reached = owed @ _pseudo_inverse(sent_a.astype(np.float64))
    return replace(module, b=(b + np.concatenate(owed_b, axis=1) @ reached).astype(np.float32))


def _lost_product(
    trained: LowRankFactors, decoded: LowRankFactors, carried: LowRankFactors | None
) -> LowRankFactors:
    """What was meant minus what arrives, the largest directions up to twice the client's rank."""
    # Each term is small by itself, so that nothing is lost in their difference.
    trained_b, sent_a = trained.b.astype(np.float64), decoded.a.astype(np.float64)
    b = [trained.scaling * trained_b, trained.scaling * (trained_b - decoded.b)]
    a = [trained.a - sent_a, sent_a]
    if carried is not None:
        b.append(carried.b.astype(np.float64))
        a.append(carried.a.astype(np.float64))
    q_b, r_b = np.linalg.qr(np.concatenate(b, axis=1))
    q_a, r_a = np.linalg.qr(np.concatenate(a).T)
    u, sigma, v = np.linalg.svd(r_b @ r_a.T)
    kept = min(2 * trained.rank, int((sigma > 0.0).sum()))
    root = np.sqrt(sigma[:kept])
    return LowRankFactors(
        a=(root[:, None] * (v[:kept] @ q_a.T)).astype(np.float32),
        b=((q_b @ u[:, :kept]) * root).astype(np.float32),
        scaling=1.0,
    )


def _pseudo_inverse(rows: Array) -> Array:
    """Pseudo-inverse of the rows that a correction may use, shape (width, rows).

    Rows are brought to length 1 first; much shorter ones than the longest take no part.
    """
    lengths = np.linalg.norm(rows, axis=1)
    used = (lengths > _NEGLIGIBLE * lengths.max(initial=0.0)) & (lengths > 0.0)
    inverse = np.zeros((rows.shape[1], len(rows)))
    unit = rows[used] / lengths[used, None]
    inverse[:, used] = np.linalg.pinv(unit, rcond=_NEGLIGIBLE) / lengths[used]
    return inverse


def _fitting(carried: FloatArray | None, values: FloatArray) -> FloatArray | np.float32:
    """What is carried, or nothing where the shape is another one by now."""
    if carried is None or carried.shape != values.shape:
        return np.float32(0.0)
    return carried
