"""The one number by which a report compares models, and how numbers are written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from intarsia_platform.results import ClientEvaluation, Measured, SimulationResult

Item = TypeVar("Item")

MISSING = "\u2013"
THIN_SPACE = "\u202f"
_MINUS = "\u2212"
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One of the numbers of :class:`~intarsia_platform.results.Measured`.

    Args:
        key: Which of them.
        lower_is_better: Whether a smaller number is a better model.
    """

    key: Literal["loss", "perplexity", "accuracy"]
    lower_is_better: bool

    def of(self, measured: Measured | None) -> float | None:
        """The number, None where it was not measured or is not finite."""
        value: float | None = None if measured is None else getattr(measured, self.key)
        return value if value is not None and math.isfinite(value) else None

    def text(self, value: float | None) -> str:
        """The number for people: a share as per cent, others with three digits."""
        if value is None:
            return MISSING
        if self.key == "accuracy":
            return f"{100 * value:.1f}{THIN_SPACE}%"
        return three_digits(value)

    def gain(self, before: float | None, after: float | None) -> float | None:
        """How much better ``after`` is, on a scale on which gains of different sizes compare.

        Args:
            before: The number of one model.
            after: The number of another.

        Returns:
            Positive where ``after`` is better: points of accuracy, the logarithm of the ratio of
            perplexities, or nats of loss. None where one of them is missing.
        """
        if before is None or after is None:
            return None
        if self.key == "accuracy":
            return after - before
        if self.key == "loss":
            return before - after
        return math.log(before / after) if before > 0 and after > 0 else None

    def is_better(self, one: float, other: float) -> bool:
        """Whether ``one`` belongs to the better model."""
        return one < other if self.lower_is_better else one > other

    def change(self, before: float | None, after: float | None) -> str:
        """The change with its sign: per cent of the number itself, or points of accuracy."""
        if before is None or after is None:
            return MISSING
        if self.key == "accuracy":
            return f"{_signed(100 * (after - before), 1)} points"
        if before == 0:
            return MISSING
        return f"{_signed(100 * (after / before - 1), 0)}{THIN_SPACE}%"


PERPLEXITY = Measure(key="perplexity", lower_is_better=True)
ACCURACY = Measure(key="accuracy", lower_is_better=False)
LOSS = Measure(key="loss", lower_is_better=True)


def measure_of(result: SimulationResult) -> Measure:
    """The number by which a result is told.

    Args:
        result: A simulation.

    Returns:
        Accuracy where anything has one, else perplexity where anything has one, else loss.
    """
    everything = [result.base, *(entry.test for entry in result.rounds)]
    for client in result.clients:
        everything += [client.base, client.own, client.federated]
    for measure in (ACCURACY, PERPLEXITY):
        if any(measure.of(measured) is not None for measured in everything):
            return measure
    return LOSS


def by_gain(clients: Iterable[ClientEvaluation], measure: Measure) -> list[ClientEvaluation]:
    """Order clients by what the federated adapter gives them over the base, the most first.

    Args:
        clients: Any clients.
        measure: The number to compare.

    Returns:
        The clients; those without both numbers come last, in the order given.
    """

    def key(client: ClientEvaluation) -> float:
        gain = measure.gain(measure.of(client.base), measure.of(client.federated))
        return math.inf if gain is None else -gain

    return sorted(clients, key=key)


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Pick at most ``limit`` items, evenly spaced, the first and the last among them.

    Args:
        items: What to pick from.
        limit: How many, at least 2.

    Returns:
        The picked items in their order.
    """
    if len(items) <= limit:
        return list(items)
    return [items[index * (len(items) - 1) // (limit - 1)] for index in range(limit)]


def three_digits(value: float) -> str:
    """Write a number with three significant digits and no exponent while it is readable."""
    size = abs(value)
    if size >= 1e7:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def bytes_text(number: float) -> str:
    """Write a number of bytes with a decimal unit, such as ``"1.2 MB"``."""
    size = float(number)
    for unit in _BYTE_UNITS:
        if size < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        size /= 1000
    text = f"{size:.0f}" if unit == "B" else three_digits(size)
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{text}{THIN_SPACE}{unit}"


def share_text(share: float) -> str:
    """Write a share between 0 and 1 as per cent: small ones with their digits, nothing as 0."""
    value = 100 * share
    if value == 0:
        return f"0{THIN_SPACE}%"
    if value < 0.01:
        return f"<0.01{THIN_SPACE}%"
    text = f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{THIN_SPACE}%"


def duration_text(seconds: float) -> str:
    """Write a duration with its two largest units, such as ``"2 min 5 s"``."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f}{THIN_SPACE}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    named = [f"{number}{THIN_SPACE}{unit}" for number, unit in parts if number]
    return " ".join(named[:2])


def printable(text: str, longest: int | None = None) -> str:
    """Make a foreign name safe to show: no control characters, no turning of the direction.

    Args:
        text: A name that somebody else chose.
        longest: Cut to so many characters; None keeps all.

    Returns:
        ``text`` on one line, each character that is not printable as U+FFFD.
    """
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    if longest is not None and len(shown) > longest:
        return f"{shown[: longest - 1]}…"
    return shown


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return f"{_MINUS if value < 0 else '+'}{text}"
