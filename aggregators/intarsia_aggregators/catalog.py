"""The methods by name: what a config's ``federation.method`` may say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from intarsia_client.errors import InputError

from intarsia_aggregators.base import AggregationMethod, ModuleRule
from intarsia_aggregators.fedavg import keep_factors
from intarsia_aggregators.fedex_lora import average_with_rest
from intarsia_aggregators.fedit import average_factors
from intarsia_aggregators.fedsa_lora import average_a
from intarsia_aggregators.ffa_lora import add_to_b, only_b
from intarsia_aggregators.flexlora import sum_and_cut
from intarsia_aggregators.flora import stack_and_fold
from intarsia_aggregators.hetlora import average_padded
from intarsia_aggregators.ledger import add_exactly
from intarsia_aggregators.modulewise import ModulewiseMethod, both_factors
from intarsia_aggregators.rolora import add_in_turn, trained_in_turn


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One method and what a person needs to know to choose it.

    Costs are the numbers that one client sends or is sent of one module, r its rank, R the sum of
    all ranks of a round, K ``federation.broadcast_rank``, d_in and d_out the module's sides.

    Args:
        name: What a config says.
        rule: The method's formula for one module.
        exact: Whether the result is the weighted sum of the products.
        mixed_ranks: Whether clients may have different ranks; else another rank is refused.
        linear: Whether the result follows from the weighted sum of what clients send, so that it
            is fit for secure aggregation.
        adds_deltas: Whether only what a client added counts, so that robust rules may bound it
            and clients may train some of the modules; else both are refused.
        starts: Kinds of start that the method takes, the default first.
        trained_factors: From a round's number to the factors that clients train in it: ``"both"``,
            ``"a"``, ``"b"`` or ``"none"``; a change of the others is refused.
        shared_factors: ``"both"``, or ``"a"`` where B stays at the clients.
        upload_cost: What a client sends.
        download_cost: What a client is sent.
        summary: One line.
        source: The paper.
    """

    name: str
    rule: ModuleRule
    exact: bool
    mixed_ranks: bool
    linear: bool
    adds_deltas: bool
    starts: tuple[str, ...] = ("residual", "prefix")
    trained_factors: Callable[[int], str] = both_factors
    shared_factors: str = "both"
    upload_cost: str = "r (d_in + d_out)"
    download_cost: str = "r (d_in + d_out)"
    summary: str
    source: str

    @property
    def method(self) -> AggregationMethod:
        """Begins a round's aggregation."""
        return ModulewiseMethod(
            rule=self.rule,
            mixed_ranks=self.mixed_ranks,
            adds_deltas=self.adds_deltas,
            trained_factors=self.trained_factors,
        )


def _only_the_head(round_number: int) -> str:
    return "none"


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        name="ledger",
        rule=add_exactly,
        exact=True,
        mixed_ranks=True,
        linear=False,
        adds_deltas=True,
        starts=("residual", "prefix", "fresh", "sampled"),
        download_cost="K (d_in + d_out)",
        summary="exact sum of what each client added; bounded download, what is held back is kept",
        source="stacking after Wang et al. 2024, arXiv:2409.05976; delta form: docs/aggregation.md",
    ),
    CatalogEntry(
        name="fedit",
        rule=average_factors,
        exact=False,
        mixed_ranks=False,
        linear=True,
        adds_deltas=False,
        starts=("prefix",),
        summary="means of A and of B apart; cross terms come in",
        source="Zhang et al. 2023, arXiv:2305.05644",
    ),
    CatalogEntry(
        name="hetlora",
        rule=average_padded,
        exact=False,
        mixed_ranks=True,
        linear=False,
        adds_deltas=False,
        starts=("prefix",),
        summary="factors padded with zeros to the largest rank, averaged by share and norm",
        source="Cho et al. 2024, arXiv:2401.06432",
    ),
    CatalogEntry(
        name="flora",
        rule=stack_and_fold,
        exact=True,
        mixed_ranks=True,
        linear=False,
        adds_deltas=True,
        starts=("fresh",),
        download_cost="R (d_in + d_out) more each round, up to full rank",
        summary="new adapters stacked onto the frozen history; clients start new ones",
        source="Wang et al. 2024, arXiv:2409.05976",
    ),
    CatalogEntry(
        name="flexlora",
        rule=sum_and_cut,
        exact=False,
        mixed_ranks=True,
        linear=False,
        adds_deltas=False,
        starts=("prefix",),
        summary="sum of whole adapters, cut to the largest client rank; high directions fade",
        source="Bai et al. 2024, arXiv:2402.11505",
    ),
    CatalogEntry(
        name="fedex-lora",
        rule=average_with_rest,
        exact=True,
        mixed_ranks=False,
        linear=False,
        adds_deltas=True,
        starts=("residual",),
        download_cost="r (d_in + d_out), and R more each round, up to full rank",
        summary="means of A and of B train on, what they miss of the sum lies frozen underneath",
        source="Singhal et al. 2024, arXiv:2410.09432",
    ),
    CatalogEntry(
        name="ffa-lora",
        rule=add_to_b,
        exact=True,
        mixed_ranks=True,
        linear=True,
        adds_deltas=True,
        trained_factors=only_b,
        upload_cost="r d_out",
        download_cost="largest r (d_in + d_out)",
        summary="A frozen and shared, nested by rank; only B is trained and added up",
        source="Sun et al. 2024, arXiv:2403.12313",
    ),
    CatalogEntry(
        name="rolora",
        rule=add_in_turn,
        exact=True,
        mixed_ranks=True,
        linear=True,
        adds_deltas=True,
        trained_factors=trained_in_turn,
        upload_cost="r d_out, r d_in in turn",
        download_cost="largest r (d_in + d_out)",
        summary="B is trained in odd rounds and A in even ones, the other frozen and shared",
        source="Chen et al. 2025, arXiv:2502.01755",
    ),
    CatalogEntry(
        name="fedsa-lora",
        rule=average_a,
        exact=False,
        mixed_ranks=False,
        linear=True,
        adds_deltas=False,
        starts=("prefix",),
        shared_factors="a",
        upload_cost="r d_in",
        download_cost="r d_in",
        summary="only A is shared, B stays with its client; personal, there is no global model",
        source="Guo et al. 2024, arXiv:2410.01463",
    ),
    CatalogEntry(
        name="fedavg",
        rule=keep_factors,
        exact=True,
        mixed_ranks=True,
        linear=True,
        adds_deltas=True,
        starts=("residual",),
        trained_factors=_only_the_head,
        upload_cost="0, the head alone",
        download_cost="0, the head alone",
        summary="weighted mean of classification heads, which all methods share; no factors",
        source="McMahan et al. 2017, arXiv:1602.05629",
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
