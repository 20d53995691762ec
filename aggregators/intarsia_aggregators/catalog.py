"""The methods by name: what a config's ``federation.method`` may say."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia_client.errors import InputError

from intarsia_aggregators.base import AggregationMethod
from intarsia_aggregators.ledger import LedgerAggregation


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One method and what a person needs to know to choose it.

    Args:
        name: What a config says.
        method: Begins a round's aggregation.
        exact: Whether the result is the weighted sum of the products.
        mixed_ranks: Whether clients may have different ranks.
        summary: One line.
        source: The paper.
    """

    name: str
    method: AggregationMethod
    exact: bool
    mixed_ranks: bool
    summary: str
    source: str


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        name="ledger",
        method=LedgerAggregation,
        exact=True,
        mixed_ranks=True,
        summary="exact weighted sum of what each client added to its start, kept in factors",
        source="stacking after Wang et al. 2024, arXiv:2409.05976; delta form: docs/aggregation.md",
    ),
)


def find_method(name: str) -> CatalogEntry:
    """Look a method up.

    Args:
        name: Its name in the catalogue.

    Returns:
        The entry.

    Raises:
        InputError: If there is none of that name.
    """
    for entry in CATALOG:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in CATALOG)
    raise InputError("aggregation method", name, f"choose one of: {known}")
