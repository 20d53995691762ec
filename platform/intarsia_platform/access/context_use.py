"""What a policy set asks about compositions, read from its syntax tree.

Judging every pair of adapters takes a decision for each adapter and each union of labels that it
could be part of. Most policies never ask, and those that do name a few labels; what they cannot
tell apart need not be asked twice.

Formal guarantee: two compositions of one adapter whose labels agree on :attr:`MixingUse.labels`
get the same decision, since the policies read ``context.labels`` only through the membership of
those labels. A test compares it with judging every pair in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_CONTEXT = {"Var": "context"}
_LABELS = {".": {"left": _CONTEXT, "attr": "labels"}}
_MIXING = {".": {"left": _CONTEXT, "attr": "mixing"}}
_PURPOSE = {".": {"left": _CONTEXT, "attr": "purpose"}}
_MEMBERSHIP = ("contains", "containsAll", "containsAny")


@dataclass(frozen=True, kw_only=True)
class MixingUse:
    """How a policy set depends on what is composed.

    Args:
        matters: Whether any policy asks at all.
        labels: The labels that it asks for by name; None where it may depend on all of them.
    """

    matters: bool
    labels: frozenset[str] | None

    def seen(self, labels: Iterable[str]) -> frozenset[str]:
        """What the policies can see of a set of labels.

        Args:
            labels: The labels.

        Returns:
            Those that may change a decision.
        """
        return frozenset(labels) if self.labels is None else self.labels.intersection(labels)


def mixing_use(policies: object) -> MixingUse:
    """Read how policies depend on ``context.labels`` and ``context.mixing``.

    Args:
        policies: A policy set in Cedar's JSON, at most 100 levels deep.

    Returns:
        How they do; where the tree is not understood, on everything.
    """
    reading = _Reading()
    reading.visit(policies)
    if reading.everything:
        return MixingUse(matters=True, labels=None)
    return MixingUse(matters=reading.matters, labels=frozenset(reading.named))


class _Reading:
    def __init__(self) -> None:
        self.matters = False
        self.everything = False
        self.named: set[str] = set()

    def visit(self, node: object) -> None:
        if node in (_CONTEXT, _LABELS):
            # The whole record or the whole set is used as a value.
            self.everything = True
        elif node == _MIXING:
            self.matters = True
        elif node == _PURPOSE or _asks_whether_there(node):
            return
        elif (asked := _labels_asked_for(node)) is not None:
            self.matters = True
            self.named |= asked
        elif isinstance(node, Mapping):
            for child in node.values():
                self.visit(child)
        elif isinstance(node, list):
            for child in node:
                self.visit(child)


def _asks_whether_there(node: object) -> bool:
    # Every attribute of the context always is.
    return (
        isinstance(node, Mapping)
        and set(node) == {"has"}
        and isinstance(node["has"], Mapping)
        and node["has"].get("left") == _CONTEXT
    )


def _labels_asked_for(node: object) -> set[str] | None:
    """The words of ``context.labels.contains…(words)``, None where the node is something else."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return None
    (operator,) = node
    operands = node[operator]
    if operator not in _MEMBERSHIP or not isinstance(operands, Mapping):
        return None
    if operands.get("left") != _LABELS:
        return None
    right = operands.get("right")
    members = right.get("Set") if isinstance(right, Mapping) and set(right) == {"Set"} else [right]
    if not isinstance(members, list):
        return None
    words: set[str] = set()
    for member in members:
        if not isinstance(member, Mapping) or set(member) != {"Value"}:
            return None
        if not isinstance(member["Value"], str):
            return None
        words.add(member["Value"])
    return words
