"""Figures of an access audit: does a caller's view tell anything of data that it may not use?

Two indices of Jayaraman et al. 2025 (Permissioned LLMs, arXiv:2505.22860), anchored differently
because they measured how well a system *separates* and here it is asked what *leaks*:

- **DDI**, the domain distinguishability index. In the paper the mean over ordered pairs of domains
  ``(i, j)`` of a membership metric, for instance the area under the curve, between training texts
  of ``i`` and training texts of ``j``, both scored by the model of ``i``: 1 is good.
  :func:`distinguishability` is ``2 AUC - 1``, and the non-members are left-out texts of the *same*
  domain, so that a domain's language alone distinguishes nothing: 0 is chance and 1 is perfect,
  wanted high for a caller with access and at chance for one without.
- **UGI**, the utility gap index. In the paper the mean over pairs of ``|U(i) - U(j)|`` on texts of
  ``i``, with a utility in [0, 1]; that is :func:`utility_gap`. :func:`utility_gap_index` divides by
  the utility with access and keeps the sign. The utility here is the inverse of the perplexity.

:func:`pair_distinguishability` and :func:`utility_gap` are the paper's own, to compare with.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from intarsia_client.errors import InputError
from numpy.typing import ArrayLike, NDArray

from intarsia_continual.retrieval_metrics import membership_auc

Floats = NDArray[np.float64]

_AT_ONCE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and how sure it is.

    Args:
        value: The figure.
        low: Lower end of its interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ChanceTest:
    """How far a DDI is from what chance alone gives.

    Args:
        low: Lower end of chance's interval.
        high: Upper end.
        p_value: How often chance is at least as far from 0, both ways; never 0.
    """

    low: float
    high: float
    p_value: float


def loss_attack(losses: ArrayLike) -> Floats:
    """A text that is predicted well was trained on (Yeom et al. 2018, arXiv:1709.01604).

    Args:
        losses: Mean negative log-likelihood of each text, in nats per token.

    Returns:
        The attack's scores, high for members.
    """
    return -_finite(losses)


def reference_attack(losses: ArrayLike, reference: ArrayLike) -> Floats:
    """A text that is predicted better than without was trained on (Carlini et al. 2021).

    The base, which every caller may ask, is the reference: how hard a text is by itself drops out
    (arXiv:2012.07805, and the likelihood ratio that all of these approximate).

    Args:
        losses: As for :func:`loss_attack`.
        reference: The same texts' losses with the reference model.

    Returns:
        The attack's scores, high for members; all 0 where the answer is the reference's.
    """
    given, base = _finite(losses), _finite(reference)
    if given.shape != base.shape:
        raise InputError("reference losses", base.size, f"give one for each of {given.size} texts")
    return base - given


def zlib_attack(losses: ArrayLike, tokens: ArrayLike, texts: Sequence[str]) -> Floats:
    """A text that is predicted better than it compresses was trained on (Carlini et al. 2021).

    Args:
        losses: As for :func:`loss_attack`.
        tokens: How many tokens each was predicted in.
        texts: The texts.

    Returns:
        Minus nats per compressed byte, high for members.
    """
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts], dtype=np.float64)
    total = _finite(losses) * np.asarray(tokens, dtype=np.float64)
    if total.shape != sizes.shape:
        raise InputError("texts", len(texts), f"give one for each of {total.size} losses")
    return -total / sizes


def distinguishability(members: ArrayLike, others: ArrayLike) -> float:
    """DDI of one caller and one domain: ``2 AUC - 1`` of a membership attack.

    Args:
        members: The attack's scores of texts that the domain's adapter was trained on.
        others: Scores of texts of the same domain that it was not trained on.

    Returns:
        -1 to 1: 0 for chance, 1 if every member scores above every other. It is Somers' D, and
        the attacker's advantage over guessing, averaged over thresholds.
    """
    return 2.0 * membership_auc(_some(members), _some(others)) - 1.0


def pair_distinguishability(own: ArrayLike, foreign: ArrayLike) -> float:
    """DDI as Jayaraman et al. define it, of one ordered pair of domains.

    Args:
        own: A membership attack's scores of texts that the active domain was trained on.
        foreign: Scores, by the same model, of texts that another domain was trained on.

    Returns:
        The area under the curve, 0 to 1.
    """
    return membership_auc(_some(own), _some(foreign))


def distinguishability_interval(
    members: ArrayLike,
    others: ArrayLike,
    generator: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """DDI with a percentile bootstrap interval (Efron 1979), members and others drawn apart.

    Where the classes do not overlap at all every resample says the same: the interval is a point,
    and says nothing of texts that were not drawn.

    Args:
        members: As for :func:`distinguishability`.
        others: Likewise.
        generator: Draws the resamples.
        level: Share of resamples inside.
        resamples: How many.

    Returns:
        The estimate.
    """
    inside, outside = _some(members), _some(others)
    # Who beats whom is counted once; a resample only counts each text more or less often.
    above = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    drawn_in = _draws(inside.size, resamples, generator)
    drawn_out = _draws(outside.size, resamples, generator)
    areas = ((drawn_in @ above) * drawn_out).sum(axis=1) / (inside.size * outside.size)
    low, high = _ends(2.0 * areas - 1.0, level)
    return Estimate(value=distinguishability(inside, outside), low=low, high=high)


def chance_test(
    members: ArrayLike,
    others: ArrayLike,
    generator: np.random.Generator,
    *,
    level: float = 0.95,
    permutations: int = 9999,
) -> ChanceTest:
    """What DDI would be if nothing told members from others, by permuting who is which.

    Formal guarantee: where members were drawn at random from all texts, and the scores do not
    depend on that draw, the chance of a p-value of at most ``p`` is at most ``p`` (Phipson and
    Smyth 2010, arXiv:1603.05766).

    Args:
        members: As for :func:`distinguishability`.
        others: Likewise.
        generator: Draws the permutations.
        level: Share of permutations inside chance's interval.
        permutations: How many.

    Returns:
        Chance's interval and the two-sided p-value.
    """
    inside, outside = _some(members), _some(others)
    ranks = _middle_ranks(np.concatenate([inside, outside]))
    found = []
    for count in _in_parts(permutations, ranks.size):
        order = generator.random((count, ranks.size)).argsort(axis=1)[:, : inside.size]
        found.append(ranks[order].sum(axis=1))
    scale = inside.size * outside.size
    least = inside.size * (inside.size + 1) / 2
    drawn = 2.0 * (np.concatenate(found) - least) / scale - 1.0
    seen = abs(distinguishability(inside, outside))
    # Sums of halves are exact, their quotients are not.
    as_far = int((np.abs(drawn) >= seen - 1e-12).sum())
    low, high = _ends(drawn, level)
    return ChanceTest(low=low, high=high, p_value=(1 + as_far) / (1 + permutations))


def rejected(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of many tests say more than chance, by Holm's rule (1979).

    Formal guarantee: if every p-value is valid, the chance that any true null is among the
    rejected ones is at most ``level``, however the tests depend on each other.

    Args:
        p_values: One a test.
        level: The chance of a false alarm among all of them.

    Returns:
        For each test whether it is rejected.
    """
    found = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for place, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - place):
            break
        found[index] = True
    return found


def utility(losses: ArrayLike, tokens: ArrayLike) -> float:
    """The inverse of the perplexity: the geometric mean of the tokens' probabilities.

    Args:
        losses: Mean negative log-likelihood of each text, in nats per token.
        tokens: How many tokens each was predicted in.

    Returns:
        0 to 1, higher is better.
    """
    counts = np.asarray(tokens, dtype=np.float64)
    if counts.size == 0 or counts.sum() <= 0:
        raise InputError("utility", "no predicted token", "give texts with some tokens")
    return math.exp(-float(_finite(losses) @ counts) / float(counts.sum()))


def utility_gap(with_access: float, without: float) -> float:
    """UGI as Jayaraman et al. define it, of one pair: the absolute difference of two utilities.

    Args:
        with_access: Utility on a domain's texts for a caller who has access.
        without: For one who has not.

    Returns:
        0 to 1 for utilities in that range.
    """
    return abs(with_access - without)


def utility_gap_index(
    with_access: ArrayLike,
    without: ArrayLike,
    tokens: ArrayLike,
    generator: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """Normalised UGI of one caller and one domain: ``1 - U(without) / U(with access)``.

    With :func:`utility` it is ``1 - exp(L(with access) - L(without))``, ``L`` the mean loss per
    token. The interval is a percentile bootstrap's over texts, both losses of a text together.

    Args:
        with_access: Losses of texts of the domain, left out of training, for a caller with access.
        without: Losses of the same texts for the caller in question.
        tokens: How many tokens each was predicted in.
        generator: Draws the resamples.
        level: Share of resamples inside.
        resamples: How many.

    Returns:
        The estimate: 0 if access is worth nothing, towards 1 the more it is worth, below 0 where
        the caller without access predicts better.
    """
    own, other = _some(with_access), _some(without)
    counts = np.asarray(tokens, dtype=np.float64)
    if not own.shape == other.shape == counts.shape:
        raise InputError("losses", other.size, f"give one for each of {own.size} texts")
    if counts.min() <= 0:
        raise InputError("utility gap", "a text without a token", "leave it out")
    drawn = _draws(own.size, resamples, generator)
    gains = (drawn @ ((own - other) * counts)) / (drawn @ counts)
    low, high = _ends(-np.expm1(gains), level)
    value = -math.expm1(float((own - other) @ counts) / float(counts.sum()))
    return Estimate(value=value, low=low, high=high)


def exposure(loss: float, candidates: ArrayLike) -> float:
    """How far a canary stands out among phrases that might have been it.

    Exposure of Carlini et al. 2019 (The Secret Sharer, arXiv:1802.08232), by sampled candidates.

    Args:
        loss: The canary's total loss.
        candidates: Total losses of phrases drawn as the canary was, none of them trained on.

    Returns:
        ``log2(n + 1) - log2(rank)``, n the number of candidates: ``log2(n + 1)`` for the first
        rank, 0 for the last, about 1.4 on average for a canary that is not known. Ties count as if
        it were not known.
    """
    others = _some(candidates)
    rank = 1 + int((others <= loss).sum())
    return math.log2(others.size + 1) - math.log2(rank)


def _finite(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise InputError("audit's values", f"shape {found.shape}", "give one finite number a text")
    return found


def _some(values: ArrayLike) -> Floats:
    found = _finite(values)
    if not found.size:
        raise InputError("audit's values", "none", "give at least one text of each kind")
    return found


def _draws(size: int, resamples: int, generator: np.random.Generator) -> Floats:
    """How often each of so many texts is in each resample; shape (resamples, size)."""
    shares = np.full(size, 1.0 / size)
    return generator.multinomial(size, shares, size=resamples).astype(np.float64)


def _ends(values: Floats, level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def _middle_ranks(values: Floats) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Floats = (last - (counts - 1) / 2.0)[place]
    return middle


def _in_parts(total: int, width: int) -> list[int]:
    """Sizes of parts that a matrix of so many rows is made in."""
    rows = max(1, _AT_ONCE // width)
    return [min(rows, total - begin) for begin in range(0, total, rows)]
