"""A robust rule at work in a federation, and the server's own update where the rule needs one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.catalog import CatalogEntry
from intarsia_aggregators.robust.base import KEPT, RobustSettings
from intarsia_aggregators.robust.catalog import find_rule
from intarsia_client.assignment import PrivacyParameters, TrainAssignment
from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError
from intarsia_client.records import Record, records_digest
from intarsia_client.shards import DataShard
from intarsia_client.training import LocalTrainer

from intarsia_platform.federation.open_round import OpenRound
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.results import RuleDecision

SERVER = "server"


class RootTraining:
    """Trains what the server itself would add in a round, on records of its own.

    Args:
        base: The base model.
        records: The server's records, which nobody else may have touched.
    """

    def __init__(self, base: BaseModel, records: Sequence[Record]) -> None:
        """Keep both; records are as any client's."""
        self._trainer = LocalTrainer(base)
        self._shard = DataShard(
            client=SERVER, records=tuple(records), digest=records_digest(records)
        )

    def update(self, open_round: OpenRound, plan: FederationPlan) -> WeightedUpdate:
        """The server's update of a round; the same inputs give the same bytes.

        Args:
            open_round: The round.
            plan: The federation's plan.

        Returns:
            The update at the largest client's rank, over all modules. It is trained without
            privacy: it protects the sum and never becomes a part of it.
        """
        assignment = _root_assignment(open_round, plan)
        trained = self._trainer.train(self._shard, assignment, open_round.broadcast.published)
        return WeightedUpdate(
            client=SERVER,
            weight=1.0,
            start=open_round.start(assignment),
            trained=trained.update.adapter,
        )


class RobustGuard:
    """What stands between a dishonest client and the sum.

    Args:
        rule: A name of the catalogue of robust rules.
        settings: What the rule assumes.
        root: Trains the server's own update, for rules that need it.

    Raises:
        InputError: If there is no such rule, or it lacks the server's records.
    """

    def __init__(
        self, rule: str, settings: RobustSettings, *, root: RootTraining | None = None
    ) -> None:
        """Look the rule up."""
        self._entry = find_rule(rule)
        self._settings = settings
        self._root = root
        if self._entry.needs_root and root is None:
            raise InputError(
                "robust.root", repr(""), f"name records of the server's own for {rule}"
            )

    @property
    def fewest(self) -> int:
        """The fewest updates that the rule takes."""
        return self._entry.fewest(self._settings)

    def check(self, method: CatalogEntry, plan: FederationPlan) -> None:
        """Refuse a federation in which the rule cannot do what it is for.

        Args:
            method: The aggregation method.
            plan: The federation's plan.

        Raises:
            InputError: Naming the key.
        """
        name = self._entry.name
        if self._entry.sets_factors and not method.adds_deltas:
            raise InputError(
                "robust.rule",
                name,
                f"{method.name} does not add up what clients added, which is what it scales",
            )
        if self._entry.compares and plan.privacy.unit != "none":
            raise InputError(
                "robust.rule",
                name,
                "it compares updates, in which the noise of private training hides what it looks "
                "for; bound norms instead, or train without privacy",
            )

    def judge(
        self, open_round: OpenRound, updates: Sequence[WeightedUpdate], plan: FederationPlan
    ) -> tuple[Sequence[WeightedUpdate], tuple[RuleDecision, ...]]:
        """Let the rule weigh a round's updates.

        Args:
            open_round: The round.
            updates: The admitted updates.
            plan: The federation's plan.

        Returns:
            The updates to add up, and what was done to those that are not as they came.
        """
        root = None
        if self._root is not None and self._entry.needs_root:
            root = self._root.update(open_round, plan)
        outcome = self._entry.rule(updates, self._settings, root)
        decisions = tuple(
            RuleDecision(
                client=one.client,
                outcome=one.outcome,
                share_before=one.share_before,
                share=one.share,
                factor=one.factor,
            )
            for one in outcome.decisions
            if one.outcome != KEPT
        )
        return outcome.updates, decisions


def _root_assignment(open_round: OpenRound, plan: FederationPlan) -> TrainAssignment:
    anyone = next(iter(open_round.assignments.values()))
    # Planned ranks may be more than the smallest module can hold.
    rank = min(plan.largest_rank, *(min(shape) for shape in plan.target_modules.values()))
    return replace(
        anyone,
        client=SERVER,
        nonce="",
        rank=rank,
        lora_alpha=plan.alpha_over_rank * rank,
        target_modules=tuple(sorted(plan.target_modules)),
        upload="float32",
        training=replace(anyone.training, keep_optimizer=False),
        privacy=PrivacyParameters(),
    )
