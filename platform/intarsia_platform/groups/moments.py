"""Counts, sums and second moments of texts' vectors: what a site may say of texts it keeps.

The moments of several sites' texts together are the sums of each site's own, so that a centroid or
a Gaussian is fitted to all of them without a single text's vector leaving its site.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray
from intarsia_continual.descriptors.base import Float64Array

LEAST_TEXTS = 5
"""Of fewer texts a site says nothing: the sum of one is its vector, that of two is nearly both."""

MAX_WIDTH = 2048
"""Widest encoder whose second moments are exchanged; their bytes grow with its square."""

_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What a centroid or a Gaussian needs to know of vectors of length 1.

    Formal guarantee: the moments of a union of disjoint sets are :meth:`plus` of theirs, and those
    of what is left when a part is taken out are :meth:`minus`, up to the rounding of float64.

    Args:
        count: How many vectors.
        total: Their sum, shape (width,).
        second: The sum of their outer products, shape (width, width); None where a mean is enough.
    """

    count: int
    total: Float64Array
    second: Float64Array | None = None

    @classmethod
    def of(cls, rows: FloatArray, *, second: bool) -> Moments:
        """The moments of vectors.

        Args:
            rows: Shape (n, width).
            second: Whether second moments are wanted.

        Returns:
            The moments.

        Raises:
            InputError: If vectors are wider than :data:`MAX_WIDTH` and second moments are wanted.
        """
        exact = rows.astype(np.float64)
        if second and exact.shape[1] > MAX_WIDTH:
            raise InputError(
                "descriptor",
                f"second moments of vectors {exact.shape[1]} wide",
                "choose --descriptor centroid",
            )
        return cls(
            count=len(exact), total=exact.sum(axis=0), second=exact.T @ exact if second else None
        )

    def plus(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        return self._with(other, 1)

    def minus(self, part: Moments) -> Moments:
        """The moments of what is left without a part."""
        return self._with(part, -1)

    def sample(self) -> FloatArray:
        """Vectors that have these moments, of which nothing but the moments is known.

        A method that looks at its texts' number, mean and covariance alone makes the same of them
        as of the texts. The mean m, eigenvalues l and eigenvectors U of the covariance give

            rows = m + sqrt(n) Q diag(sqrt(l)) U',

        Q the cosines of the discrete cosine transform (DCT-II), which are orthonormal and sum to 0.

        Returns:
            Shape (count, width); the mean alone, shape (1, width), where second moments are not
            known.
        """
        mean = self.total / self.count
        if self.second is None:
            return mean[None].astype(np.float32)
        covariance = self.second / self.count - np.outer(mean, mean)
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        kept = min(self.count - 1, len(mean))
        spread = np.sqrt(np.maximum(values[::-1][:kept], 0.0))
        places = np.arange(self.count)[:, None] + 0.5
        waves = np.cos(np.pi / self.count * places * np.arange(1, kept + 1))
        rows = np.sqrt(2.0) * waves * spread @ vectors[:, ::-1][:, :kept].T
        sampled: FloatArray = (mean + rows).astype(np.float32)
        return sampled

    def checked(self, width: int, *, second: bool, most: int) -> Moments:
        """The same, if they can be moments of so many vectors of length 1.

        Args:
            width: The encoder's.
            second: Whether second moments were asked for.
            most: How many vectors were asked for at most.

        Returns:
            The same.

        Raises:
            InputError: If they cannot.
        """
        bound = self.count * (1 + _ROUNDING)
        fits = LEAST_TEXTS <= self.count <= most and self.total.shape == (width,)
        if not (fits and np.isfinite(self.total).all() and np.linalg.norm(self.total) <= bound):
            raise _impossible("sum")
        if (self.second is not None) != second:
            raise _impossible("second moments")
        if self.second is not None and not self._second_fits(width, bound):
            raise _impossible("second moments")
        return self

    def _second_fits(self, width: int, bound: float) -> bool:
        second = self.second
        if second is None or second.shape != (width, width) or not np.isfinite(second).all():
            return False
        covariance = second - np.outer(self.total, self.total) / self.count
        return bool(
            np.abs(second - second.T).max() <= _ROUNDING * self.count
            and np.trace(second) <= bound
            and np.linalg.eigvalsh(covariance).min() >= -_ROUNDING * self.count
        )

    def _with(self, other: Moments, sign: int) -> Moments:
        second = None
        if self.second is not None and other.second is not None:
            second = self.second + sign * other.second
        return Moments(
            count=self.count + sign * other.count,
            total=self.total + sign * other.total,
            second=second,
        )


def joined(parts: Iterable[Moments]) -> Moments:
    """The moments of several sets together, added in their order.

    Args:
        parts: At least one.

    Returns:
        The moments.
    """
    return functools.reduce(Moments.plus, parts)


def _impossible(what: str) -> InputError:
    return InputError("moments of texts", f"an impossible {what}", "send those of its own texts")
