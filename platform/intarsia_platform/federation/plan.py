"""Who takes part in a round, and what each is asked to do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from intarsia_aggregators.catalog import CatalogEntry
from intarsia_client.assignment import (
    START_KINDS,
    PrivacyParameters,
    TrainAssignment,
    TrainingParameters,
)
from intarsia_client.errors import InputError
from intarsia_client.start import check_rank

from intarsia_platform.planning.client_plan import ClientPlan

# Directions of the ledger's broadcast for each of the largest client's.
_BROADCAST_OVER_RANK = 2

# Starts in which a client's directions are others in every round.
_NEW_EVERY_ROUND = ("fresh", "sampled")


def all_factors(round_number: int) -> str:
    """Both factors get gradients, in every round."""
    del round_number
    return "both"


@dataclass(frozen=True, kw_only=True)
class FederationPlan:
    """Everything that stays the same over a federation's rounds.

    Args:
        run: The federation's identifier.
        rounds: Rounds in all.
        seed: Seed of sampling and of the clients' starts.
        base: The base model's path or hub identifier, as clients know it.
        base_digest: Its digest.
        task: ``"causal-lm"`` or ``"sequence-classification"``.
        target_modules: From each adapted module's full name to its shape (d_out, d_in).
        ranks: Ranks given to the clients in turn.
        alpha_over_rank: LoRA's alpha as a multiple of each client's rank.
        use_rslora: Rank-stabilised scaling.
        labels: Class names in order, for classification.
        fraction: Share of the clients sampled each round, above 0 and at most 1.
        training: How to train.
        privacy: What privacy to give.
        start: Where a client's round starts, one of
            :data:`intarsia_client.assignment.START_KINDS`; empty for the method's own.
        trained_factors: From a round's number to the factors that get gradients in it, one of
            :data:`intarsia_client.assignment.TRAINED_FACTORS`; the method's, see :meth:`using`.
        shared_factors: The factors that clients share, one of
            :data:`intarsia_client.assignment.SHARED_FACTORS`; the method's.
        upload: Precision of what clients send, one of
            :data:`intarsia_client.assignment.PRECISIONS`.
        download: Precision of what clients are sent, likewise.
        broadcast_rank: Directions that clients are sent; 0 leaves it to the method, see
            :meth:`using`.
        residual_rank: Directions beyond those that the server keeps.
        max_examples: A client's declared number of records counts at most so much; 0 for no cap.
        names: From node identifier to the client's name; nodes that it lacks are called
            ``node-<identifier>``.
        clients: From a client's name to its planned rank and modules; empty where ranks are given
            in turn. A client that it lacks trains every module at the smallest rank.
    """

    run: str
    rounds: int
    seed: int
    base: str
    base_digest: str
    task: str
    target_modules: Mapping[str, tuple[int, int]]
    ranks: tuple[int, ...]
    alpha_over_rank: float = 2.0
    use_rslora: bool = False
    labels: tuple[str, ...] = ()
    fraction: float = 1.0
    training: TrainingParameters = field(default_factory=TrainingParameters)
    privacy: PrivacyParameters = field(default_factory=PrivacyParameters)
    start: str = ""
    trained_factors: Callable[[int], str] = all_factors
    shared_factors: str = "both"
    upload: str = "float32"
    download: str = "float32"
    broadcast_rank: int = 0
    residual_rank: int = 256
    max_examples: int = 0
    names: Mapping[int, str] = field(default_factory=dict)
    clients: Mapping[str, ClientPlan] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a plan whose ranks the modules cannot hold.

        Raises:
            InputError: Naming the module and the largest rank that fits.
        """
        if not self.ranks:
            raise InputError("lora.ranks", [], "give at least one rank")
        if self.clients:
            for client in self.clients.values():
                for module in client.target_modules:
                    check_rank(module, client.rank, self.target_modules[module])
            return
        for module, shape in self.target_modules.items():
            for rank in self.ranks:
                check_rank(module, rank, shape)

    @property
    def largest_rank(self) -> int:
        """The largest rank of any client, sampled or not."""
        return max(self.ranks)

    def using(self, method: CatalogEntry) -> FederationPlan:
        """The plan with what the method decides filled in; a filled plan stays as it is.

        Args:
            method: The aggregation method.

        Returns:
            The plan: its start by name, the factors that are trained and shared, and for a method
            that is bounded by it the rank of the broadcast.

        Raises:
            InputError: Naming the key, if the method does not go with this plan.
        """
        if not method.mixed_ranks and len(set(self.ranks)) > 1:
            raise InputError(
                "lora.ranks", list(self.ranks), f"give one rank to all clients of {method.name}"
            )
        if method.trained_factors(1) == "none" and self.task != "sequence-classification":
            raise InputError(
                "federation.method", method.name, "it trains heads alone, and this task has none"
            )
        start = self.start or method.starts[0]
        if start not in method.starts:
            raise InputError(
                "federation.start",
                start,
                f"{method.name} begins a client's round with {' or '.join(method.starts)}",
            )
        if self.training.keep_optimizer and start in _NEW_EVERY_ROUND:
            raise InputError(
                "train.keep_optimizer", "true", f"a {start} start trains others every round"
            )
        bounded = method.name == "ledger"
        rank = self.broadcast_rank
        if bounded and not rank:
            rank = _BROADCAST_OVER_RANK * self.largest_rank
        return replace(
            self,
            start=start,
            trained_factors=method.trained_factors,
            shared_factors=method.shared_factors,
            broadcast_rank=rank,
        )

    def sample(self, round_number: int, nodes: Sequence[int]) -> tuple[int, ...]:
        """The round's cohort: a uniform sample without replacement, the same for equal seeds.

        Drawn by name, like the ranks.

        Args:
            round_number: From 1.
            nodes: The nodes there are.

        Returns:
            Node identifiers in the order of their names, ``max(1, round(fraction * len(nodes)))``
            of them.
        """
        ordered = list(self.turns(nodes))
        count = max(1, round(self.fraction * len(ordered)))
        if count >= len(ordered):
            return tuple(ordered)
        entropy = hashlib.sha256(f"cohort/{self.seed}/{round_number}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(entropy[:16])))
        chosen = generator.choice(len(ordered), size=count, replace=False)
        return tuple(ordered[index] for index in sorted(chosen))

    def assignments(
        self, round_number: int, nodes: Sequence[int], start_digest: str
    ) -> dict[int, TrainAssignment]:
        """What each node of the round's cohort is asked to do.

        Args:
            round_number: From 1.
            nodes: The nodes there are; ranks are given in turn in the order of their names, since
                node identifiers may be drawn anew at every connection.
            start_digest: Digest of the published adapter that the round starts from.

        Returns:
            From node identifier to its assignment, in order.
        """
        turns = self.turns(nodes)
        return {
            node: self.assignment(round_number, node, turns[node], start_digest)
            for node in self.sample(round_number, nodes)
        }

    def name(self, node: int) -> str:
        """What a node is called."""
        return self.names.get(node, f"node-{node}")

    def part(self, client: str, turn: int) -> tuple[int, tuple[str, ...]]:
        """What one client trains.

        Args:
            client: Its name.
            turn: Its place among all clients.

        Returns:
            Its rank, 0 where it was planned and nothing fits it; and its modules, sorted.
        """
        if not self.clients:
            return self.ranks[turn % len(self.ranks)], tuple(sorted(self.target_modules))
        planned = self.clients.get(client)
        if planned is None:
            return min(self.ranks), tuple(sorted(self.target_modules))
        return planned.rank, planned.target_modules

    def turns(self, nodes: Sequence[int]) -> dict[int, int]:
        """Each node's place among all nodes, by name; it decides the node's rank."""
        return {
            node: turn
            for turn, node in enumerate(sorted(nodes, key=lambda node: (self.name(node), node)))
        }

    def assignment(
        self, round_number: int, node: int, turn: int, start_digest: str
    ) -> TrainAssignment:
        """One node's task.

        Args:
            round_number: From 1.
            node: The node's identifier.
            turn: The node's place among all nodes, which decides its rank.
            start_digest: As in :meth:`assignments`.

        Returns:
            The assignment.
        """
        client = self.name(node)
        rank, modules = self.part(client, turn)
        if not rank:
            # Asked for nothing, and measured like everyone.
            rank, modules = min(self.ranks), tuple(sorted(self.target_modules))
        nonce = hashlib.sha256(
            f"nonce/{self.run}/{self.seed}/{round_number}/{client}".encode()
        ).hexdigest()[:32]
        return TrainAssignment(
            run=self.run,
            round=round_number,
            rounds=self.rounds,
            client=client,
            nonce=nonce,
            seed=self.seed,
            base=self.base,
            base_digest=self.base_digest,
            start_digest=start_digest,
            task=self.task,
            labels=self.labels,
            rank=rank,
            lora_alpha=self.alpha_over_rank * rank,
            use_rslora=self.use_rslora,
            target_modules=modules,
            start=self.start or START_KINDS[0],
            sampled_from=self.largest_rank if self.start == "sampled" else 0,
            trained_factors=self.trained_factors(round_number),
            shared_factors=self.shared_factors,
            upload=self.upload,
            training=self.training,
            privacy=self.privacy,
        )
