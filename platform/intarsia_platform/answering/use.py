"""What a request wants to be answered with: the words of ``--use`` and of ``model``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from intarsia_client.errors import InputError

from intarsia_platform.access.refusal import shown

MAX_PARTS = 16
"""Adapters that a request may name; as many as retrieval may choose."""

LEAST_WEIGHT, LARGEST_WEIGHT = 1e-3, 1e3

_THING = "use"
_REMEDY = "use auto, base, NAME or NAME=WEIGHT,NAME=WEIGHT"


class UseKind(StrEnum):
    """Who chooses the adapters."""

    AUTO = "auto"
    """Retrieval, among those that the caller may use."""
    BASE = "base"
    """Nobody: the base answers alone."""
    NAMED = "named"
    """The caller."""


@dataclass(frozen=True, kw_only=True)
class UsePart:
    """One adapter that the caller named.

    Args:
        name: Its name.
        share: Its part of the whole; the shares of a request sum to 1 but for rounding.
    """

    name: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a request wants to be answered with.

    Args:
        kind: Who chooses.
        parts: The named adapters in the caller's order; none unless the kind is ``NAMED``.
    """

    kind: UseKind
    parts: tuple[UsePart, ...] = ()

    @property
    def words(self) -> str:
        """What was asked for, without weights; for the audit log."""
        return ",".join(part.name for part in self.parts) or str(self.kind)


AUTO = Use(kind=UseKind.AUTO)
BASE = Use(kind=UseKind.BASE)


def parse_use(words: str) -> Use:
    """Read what a request wants; nothing is looked up.

    Args:
        words: ``"auto"``, ``"base"``, or names divided by commas, each with or without
            ``=WEIGHT``. Weights are shares of the whole whatever their sum; one that is not given
            counts as 1.

    Returns:
        What is wanted, shares summing to 1.

    Raises:
        InputError: If a name is empty or comes twice, ``auto`` or ``base`` is one of several,
            there are more than :data:`MAX_PARTS`, or a weight is no number from
            :data:`LEAST_WEIGHT` to :data:`LARGEST_WEIGHT`.
    """
    plain = words.strip()
    if plain in (UseKind.AUTO, UseKind.BASE):
        return Use(kind=UseKind(plain))
    pieces = plain.split(",", MAX_PARTS)
    if len(pieces) > MAX_PARTS:
        raise InputError(_THING, "too many adapters", f"name at most {MAX_PARTS}")
    parts = [_part(piece) for piece in pieces]
    names = [name for name, _ in parts]
    for name in names:
        if name in (UseKind.AUTO, UseKind.BASE):
            raise InputError(_THING, f"{name} among others", f"{_REMEDY}; {name} stands alone")
        if names.count(name) > 1:
            raise InputError(_THING, f"{shown(name)} twice", "name each adapter once")
    # Exactly rounded, so that the order in which adapters are named does not change a bit.
    total = math.fsum(weight for _, weight in parts)
    return Use(
        kind=UseKind.NAMED,
        parts=tuple(UsePart(name=name, share=weight / total) for name, weight in parts),
    )


def _part(piece: str) -> tuple[str, float]:
    name, given, weight = (part.strip() for part in piece.partition("="))
    if not name:
        raise InputError(_THING, f"{shown(piece.strip())!r} names no adapter", _REMEDY)
    return name, _weight(name, weight) if given else 1.0


def _weight(name: str, text: str) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not LEAST_WEIGHT <= value <= LARGEST_WEIGHT:
        raise InputError(
            f"weight of {shown(name)}",
            shown(text) or "nothing",
            f"use a number from {LEAST_WEIGHT:g} to {LARGEST_WEIGHT:g}",
        )
    return value
