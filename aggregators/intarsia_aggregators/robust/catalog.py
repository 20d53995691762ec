"""The robust rules by name: what a config's ``robust.rule`` may say beside ``"none"``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from intarsia_client.errors import InputError

from intarsia_aggregators.robust.base import RobustSettings, Rule
from intarsia_aggregators.robust.fltrust import trust_by_root
from intarsia_aggregators.robust.geometric_median import geometric_median
from intarsia_aggregators.robust.multi_krum import fewest_updates, multi_krum
from intarsia_aggregators.robust.norm_bound import bound_norms


@dataclass(frozen=True, kw_only=True)
class RuleEntry:
    """One rule and what a person needs to know to choose it.

    Args:
        name: What a config says.
        rule: Judges a round's updates.
        assumption: What must hold of the clients for its guarantee.
        needs: What it must be given beside the updates; empty for nothing.
        needs_root: Whether it must be given the server's own update.
        sets_factors: Whether it scales what a client added; then the method must add up what
            clients added (``adds_deltas`` in the catalogue of methods).
        compares: Whether it looks at how updates lie to each other, or to the server's own, and
            not at each one's norm alone.
        fewest: The fewest updates of a round that it takes; to be checked before a round closes.
        source: The paper.
    """

    name: str
    rule: Rule
    assumption: str
    needs: str
    needs_root: bool
    sets_factors: bool
    compares: bool
    fewest: Callable[[RobustSettings], int]
    source: str


def _one(settings: RobustSettings) -> int:
    del settings
    return 1


# fmt: off
CATALOG: tuple[RuleEntry, ...] = (
    RuleEntry(
        name="norm-bound", rule=bound_norms, assumption="none on how many are dishonest",
        needs="a bound, or most clients honest for the median", needs_root=False,
        sets_factors=True, compares=False, fewest=_one,
        source="Sun et al. 2019, arXiv:1911.07963",
    ),
    RuleEntry(
        name="multi-krum", rule=multi_krum, assumption="n > 2 f + 2, honest clients alike",
        needs="f, the number of dishonest clients", needs_root=False,
        sets_factors=False, compares=True, fewest=fewest_updates,
        source="Blanchard et al. 2017, arXiv:1703.02757",
    ),
    RuleEntry(
        name="geometric-median", rule=geometric_median, assumption="less than half of the weight",
        needs="", needs_root=False,
        sets_factors=False, compares=True, fewest=_one,
        source="Pillutla et al. 2019, arXiv:1912.13445",
    ),
    RuleEntry(
        name="fltrust", rule=trust_by_root, assumption="clean records at the server",
        needs="the server's own update", needs_root=True,
        sets_factors=True, compares=True, fewest=_one,
        source="Cao et al. 2020, arXiv:2012.13995",
    ),
)
# fmt: on


def find_rule(name: str) -> RuleEntry:
    """Look a rule up.

    Args:
        name: Its name in the catalogue.

    Returns:
        The entry; ``entry.rule`` is the rule.

    Raises:
        InputError: If there is none of that name.
    """
    for entry in CATALOG:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in CATALOG)
    raise InputError("robust rule", name, f"choose one of: {known}")
