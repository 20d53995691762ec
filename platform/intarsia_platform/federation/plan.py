"""Who takes part in a round, and what each is asked to do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from intarsia_client.assignment import PrivacyParameters, TrainAssignment, TrainingParameters
from intarsia_client.errors import InputError
from intarsia_client.start import check_rank


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
        names: From node identifier to the client's name; nodes that it lacks are called
            ``node-<identifier>``.
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
    names: Mapping[int, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a plan whose ranks the modules cannot hold.

        Raises:
            InputError: Naming the module and the largest rank that fits.
        """
        if not self.ranks:
            raise InputError("lora.ranks", [], "give at least one rank")
        for module, shape in self.target_modules.items():
            for rank in self.ranks:
                check_rank(module, rank, shape)

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
        rank = self.ranks[turn % len(self.ranks)]
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
            target_modules=tuple(sorted(self.target_modules)),
            training=self.training,
            privacy=self.privacy,
        )
