"""Descriptors: what a retriever knows of one adapter, and the contract of the methods that fit it.

A descriptor is fitted from one adapter's own texts and a public encoder, never beside another's.
That is what makes retrieval non-interfering: an adapter that is hidden, added or deleted changes
no other adapter's descriptor, hence none of its scores. It is made of the texts' vectors, so it is
as restricted as the texts are, carries the adapter's labels and leaves with the adapter.

Beside what a method keeps, every descriptor holds how its own texts, or short pieces of them, score
when they are left out of the fit, as 101 percentiles. A query that scores below a low percentile of
them is unlike the adapter's texts; no other adapter's data are needed to say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.tensor_file import TensorEntry, split_tensor_file, write_tensor_file
from intarsia_client.wire import FloatArray
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

Float64Array = NDArray[np.float64]

MAX_DESCRIPTOR_BYTES = 1 << 23
MAX_ARRAYS = 8
MAX_WIDTH = 1 << 14
FORMAT = "intarsia-descriptor-1"
HELD_OUT = "held_out"
PERCENTILES = 101

_FOLDS = 5
_NAME = re.compile(r"[a-z][a-z_-]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_THING = "descriptor"
_FIT_AGAIN = "fit it again from its texts"


@dataclass(frozen=True, kw_only=True, eq=False)
class Descriptor:
    """What one adapter's texts look like to an encoder.

    Args:
        method: The name of the method that fitted it.
        encoder: Digest of the encoder whose vectors it is made of.
        arrays: What the method keeps, and :data:`HELD_OUT`; finite float32 of one or two
            dimensions, read-only.

    Raises:
        InputError: If a name is malformed or an array is not finite, too large or of another kind.
    """

    method: str
    encoder: str
    arrays: Mapping[str, FloatArray]

    def __post_init__(self) -> None:
        """Check the parts and make the arrays read-only."""
        if not _NAME.fullmatch(self.method):
            raise InputError(f"{_THING}'s method", self.method[:80], "use lower-case letters")
        if not _DIGEST.fullmatch(self.encoder):
            raise InputError(f"{_THING}'s encoder", self.encoder[:80], "give the encoder's digest")
        if not 0 < len(self.arrays) <= MAX_ARRAYS:
            raise InputError(_THING, f"{len(self.arrays)} arrays", f"keep at most {MAX_ARRAYS}")
        held = {name: _held(name, self.arrays[name]) for name in sorted(self.arrays)}
        object.__setattr__(self, "arrays", MappingProxyType(held))

    def to_bytes(self) -> bytes:
        """Encode it as a safetensors file.

        Returns:
            The bytes; equal descriptors give equal bytes.

        Raises:
            InputError: If they are more than :data:`MAX_DESCRIPTOR_BYTES`.
        """
        metadata = {"format": FORMAT, "method": self.method, "encoder": self.encoder}
        parts = [
            (TensorEntry(name=name, kind="F32", shape=array.shape), array.astype("<f4").tobytes())
            for name, array in self.arrays.items()
        ]
        data = write_tensor_file(parts, metadata)
        if len(data) > MAX_DESCRIPTOR_BYTES:
            raise InputError(
                _THING, f"{len(data)} bytes", f"keep it under {MAX_DESCRIPTOR_BYTES} bytes"
            )
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Descriptor:
        """Decode what may come from anyone.

        Args:
            data: The bytes.

        Returns:
            The descriptor; ``from_bytes(data).to_bytes() == data`` for all that is accepted.
            Whether its arrays are what the method keeps is the method's to check.

        Raises:
            IntegrityError: If they are truncated, too many, not finite, or anything but what
                :meth:`to_bytes` writes.
        """
        if len(data) > MAX_DESCRIPTOR_BYTES:
            raise IntegrityError(
                _THING, f"{len(data)} bytes", f"keep it under {MAX_DESCRIPTOR_BYTES} bytes"
            )
        header, _ = split_tensor_file(_THING, data)
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise IntegrityError(_THING, f"not in the format {FORMAT}", _FIT_AGAIN)
        try:
            parts = deserialize(data)  # type: ignore[no-untyped-call]
            arrays = {name: _array(name, part) for name, part in parts}
            found = cls(
                method=str(metadata.get("method")),
                encoder=str(metadata.get("encoder")),
                arrays=arrays,
            )
            written = found.to_bytes()
        except (SafetensorError, ValueError, OverflowError, InputError) as error:
            raise IntegrityError(_THING, f"not a whole one ({error})", _FIT_AGAIN) from None
        if written != data:
            raise IntegrityError(_THING, "not written by this program", _FIT_AGAIN)
        return found

    def held_out_score(self, level: float) -> float:
        """The score that a share of the adapter's own left-out texts stays below.

        Args:
            level: The share, 0 to 1.

        Returns:
            The score, between percentiles by interpolation; minus infinity where the adapter has
            one text alone and nothing could be left out.
        """
        percentiles = self.arrays[HELD_OUT].astype(np.float64)
        if not len(percentiles):
            return -np.inf
        return float(np.interp(level, np.linspace(0.0, 1.0, len(percentiles)), percentiles))


@dataclass(frozen=True, kw_only=True)
class DescriptorMethod:
    """A way to describe an adapter by its own texts.

    Args:
        name: Its name in the catalogue.
        layout: From each array's name to its shape in symbols, ``("count", "width")``; ``width``
            is the encoder's, equal symbols are equal numbers.
        summarise: From vectors, shape (n, width), rows of length 1, n at least 1, and a generator
            to the arrays.
        compare: From the arrays and queries, shape (m, width), float64, rows of length 1, to
            scores, shape (m,), larger for what is more alike.
    """

    name: str
    layout: Mapping[str, tuple[str, ...]]
    summarise: Callable[[FloatArray, np.random.Generator], Mapping[str, FloatArray]]
    compare: Callable[[Mapping[str, FloatArray], Float64Array], Float64Array]

    def fit(
        self,
        embeddings: FloatArray,
        generator: np.random.Generator,
        *,
        encoder: str,
        probes: FloatArray | None = None,
    ) -> Descriptor:
        """Describe one adapter.

        Formal guarantee: the descriptor is a function of the arguments alone. Give every adapter
        a generator of its own, since one that another adapter has drawn from carries its number of
        draws over; :func:`~intarsia_continual.descriptors.catalog.describe` does.

        Args:
            embeddings: Vectors of the adapter's own texts, shape (n, width), n at least 1.
            generator: Decides what is left out together, and what is kept where that is less than
                all.
            encoder: Digest of the encoder that made them.
            probes: For each text the vector of something like a prompt about it, shape (n, width);
                the texts themselves where it is left out. They only decide how left-out texts
                score: a prompt is shorter than most texts, and would seem a stranger beside them.

        Returns:
            The descriptor.

        Raises:
            InputError: If there is no text, a vector is not finite, or probes are not one a text.
        """
        rows = unit_rows(embeddings)
        if not len(rows):
            raise InputError("texts of an adapter", "none", "give at least one")
        asked = rows if probes is None else unit_rows(probes)
        if asked.shape != rows.shape:
            raise InputError("probes", f"shape {asked.shape}", f"give them shape {rows.shape}")
        kept = rows.astype(np.float32)
        held_out = self._held_out(kept, asked, generator)
        arrays = {**self.summarise(kept, generator), HELD_OUT: held_out}
        return Descriptor(method=self.name, encoder=encoder, arrays=arrays)

    def score(self, descriptor: Descriptor, queries: FloatArray) -> Float64Array:
        """How much queries are like an adapter's texts.

        Scores tell members from others (docs/retrieval.md says how well), so they are for the
        retriever and leave it only as weights in coarse steps.

        Args:
            descriptor: What this method fitted.
            queries: Shape (m, width), of the descriptor's encoder.

        Returns:
            Shape (m,).

        Raises:
            InputError: If the descriptor is another method's or malformed, or a query is of
                another width or not finite.
        """
        width = self.check(descriptor)
        rows = unit_rows(queries)
        if rows.shape[1] != width:
            raise InputError(
                "query's width", rows.shape[1], f"use the descriptor's encoder, {width} wide"
            )
        return self.compare(descriptor.arrays, rows)

    def check(self, descriptor: Descriptor) -> int:
        """See that a descriptor is one of this method's.

        Args:
            descriptor: Any descriptor.

        Returns:
            The width of its encoder.

        Raises:
            InputError: If it is not; the line says why.
        """
        if descriptor.method != self.name:
            raise InputError(f"{_THING}'s method", descriptor.method, f"fit it with {self.name}")
        layout = {**self.layout, HELD_OUT: ("percentiles",)}
        if descriptor.arrays.keys() != layout.keys():
            found = ", ".join(descriptor.arrays)
            raise InputError(f"{_THING}'s arrays", found, _FIT_AGAIN)
        sizes: dict[str, int] = {"one": 1}
        for name, symbols in layout.items():
            shape = descriptor.arrays[name].shape
            fits = len(shape) == len(symbols) and all(
                sizes.setdefault(symbol, size) == size
                for symbol, size in zip(symbols, shape, strict=True)
            )
            if not fits:
                raise InputError(f"{_THING}'s array {name}", f"shape {shape}", _FIT_AGAIN)
        if sizes.pop("percentiles") not in (0, PERCENTILES) or not all(sizes.values()):
            raise InputError(f"{_THING}'s sizes", sizes, _FIT_AGAIN)
        return sizes["width"]

    def _held_out(
        self, rows: FloatArray, asked: Float64Array, generator: np.random.Generator
    ) -> FloatArray:
        """Percentiles of the probes' scores, each by a fit of four fifths without its text."""
        if len(rows) < 2:
            return np.zeros(0, dtype=np.float32)
        order = generator.permutation(len(rows))
        scores = []
        for fold in np.array_split(order, min(_FOLDS, len(rows))):
            others = np.setdiff1d(order, fold)
            arrays = self.summarise(rows[others], generator)
            scores.append(self.compare(arrays, asked[fold]))
        levels = np.linspace(0.0, 1.0, PERCENTILES)
        return np.quantile(np.concatenate(scores), levels).astype(np.float32)


def unit_rows(vectors: FloatArray) -> Float64Array:
    """Rows scaled to length 1.

    Args:
        vectors: Shape (n, width).

    Returns:
        The same shape in float64; rows of zeros stay.

    Raises:
        InputError: If it is no matrix or a number is not finite.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not 0 < rows.shape[1] <= MAX_WIDTH:
        raise InputError("embeddings", f"shape {rows.shape}", f"give (n, width <= {MAX_WIDTH})")
    if not np.isfinite(rows).all():
        raise InputError("embeddings", "not finite", "use an encoder whose weights are finite")
    # By the largest first: the square of a tiny or huge number is no number.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(largest > 0, largest, 1.0)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(lengths > 0, lengths, 1.0)


def _held(name: str, array: FloatArray) -> FloatArray:
    """A read-only copy of an array, if it may be in a descriptor."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{_THING}'s array", name[:80], "use lower-case letters")
    if array.dtype != np.float32 or array.ndim not in (1, 2):
        shape = f"{array.dtype} of shape {array.shape}"
        raise InputError(f"{_THING}'s array {name}", shape, "use float32 rows")
    if array.nbytes > MAX_DESCRIPTOR_BYTES:
        raise InputError(f"{_THING}'s array {name}", f"{array.nbytes} bytes", "keep less")
    if not np.isfinite(array).all():
        raise InputError(f"{_THING}'s array {name}", "not finite", _FIT_AGAIN)
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy


def _array(name: str, part: Mapping[str, Any]) -> FloatArray:
    if part["dtype"] != "F32":
        raise InputError(f"{_THING}'s array {name}", part["dtype"], "use float32")
    array: FloatArray = np.frombuffer(part["data"], dtype="<f4").reshape(part["shape"])
    return array
