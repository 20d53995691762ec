"""What the server asks of one client in one round."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intarsia_client.errors import InputError
from intarsia_client.files import canonical_json

SCHEDULES = ("constant", "linear", "cosine")
PRIVACY_UNITS = ("none", "example", "client")
START_KINDS = ("residual", "prefix", "fresh", "sampled")
TRAINED_FACTORS = ("both", "a", "b", "none")
SHARED_FACTORS = ("both", "a")
PRECISIONS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, kw_only=True)
class TrainingParameters:
    """How a client trains; the same for every client of a federation.

    Args:
        epochs: Passes over the client's records in one round.
        batch_size: Sequences in one optimiser step (the expected number, with Poisson sampling).
        learning_rate: AdamW's peak learning rate.
        max_length: Longest sequence, in tokens.
        schedule: How the learning rate falls over the whole federation, one of
            :data:`SCHEDULES`.
        warmup: Share of a client's steps over which the rate rises, between 0 and 1.
        weight_decay: AdamW's decoupled weight decay.
        max_gradient_norm: Clipping norm of a batch's gradient, 0 for none; private training clips
            each record instead.
        max_steps: Upper bound of optimiser steps in one round, 0 for none.
        keep_optimizer: Whether AdamW's moments stay at the client from one round to the next,
            mapped to the new start's directions; see :mod:`intarsia_client.optimizer_state`.
        learning_rate_rank: The rank that ``learning_rate`` is meant for: a client of rank r uses
            ``learning_rate * sqrt(learning_rate_rank / r)``; 0 for the same rate at every rank.
            AdamW moves every entry of a factor by about the rate, so that r directions together
            move the product by about the rate times sqrt(r): with one rate, clients of high rank
            take longer steps than the others, and theirs bound the rate for all.
        head_learning_rate: Peak learning rate of a classification head at every rank; 0 for the
            factors' one. A head begins at random numbers and stands on ones of the size of 1, so
            that it bears, and in few steps needs, a rate that the factors do not.
    """

    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3
    max_length: int = 128
    schedule: str = "cosine"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    max_steps: int = 0
    keep_optimizer: bool = False
    learning_rate_rank: int = 0
    head_learning_rate: float = 0.0

    def rate(self, rank: int) -> float:
        """A client's peak learning rate.

        Args:
            rank: The client's rank, at least 1.

        Returns:
            The rate.
        """
        if not self.learning_rate_rank:
            return self.learning_rate
        return self.learning_rate * math.sqrt(self.learning_rate_rank / rank)


@dataclass(frozen=True, kw_only=True)
class PrivacyParameters:
    """The privacy that training must give.

    Args:
        unit: ``"none"``, or ``"example"`` (one record's presence is hidden).
        epsilon: Budget of one client over all rounds of the federation.
        delta: The delta that goes with it.
        max_grad_norm: Clipping norm of one record's gradient.
        noise_multiplier: Noise over clipping norm; 0 has each client find the smallest that
            keeps all its planned rounds within ``epsilon``.
    """

    unit: str = "none"
    epsilon: float = 8.0
    delta: float = 1e-5
    max_grad_norm: float = 1.0
    noise_multiplier: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainAssignment:
    """One client's task in one round.

    Args:
        run: The federation's identifier.
        round: Round number, from 1.
        rounds: Rounds planned in all; schedules and privacy budgets span them.
        client: The client's name.
        nonce: One-time word that the update must carry.
        seed: Seed of everything random in this client's round that is not private.
        base: The base model's path or hub identifier.
        base_digest: Digest that the client's copy of the base must have.
        start_digest: Digest of the global adapter that the round starts from, in PEFT's form; it
            names the start, whatever form travels.
        task: ``"causal-lm"`` or ``"sequence-classification"``.
        labels: Class names in order, for classification.
        rank: Rank that the client trains.
        lora_alpha: LoRA's alpha.
        use_rslora: Rank-stabilised scaling.
        target_modules: Full names of the modules that this client trains, among those of the
            global adapter.
        start: Where the client's round starts, one of :data:`START_KINDS`; see
            :mod:`intarsia_client.start`.
        sampled_from: Of how many leading directions a ``"sampled"`` start is drawn; 0 for all.
        trained_factors: Which factors get gradients, one of :data:`TRAINED_FACTORS`; ``"none"``
            trains the head alone.
        shared_factors: Which factors are shared at all, one of :data:`SHARED_FACTORS`; with
            ``"a"`` each client's B stays with it (Guo et al. 2024, FedSA-LoRA, arXiv:2410.01463).
        upload: How the update is encoded, one of :data:`PRECISIONS`.
        broadcast_digest: Digest of the broadcast bytes that travel with this assignment: the whole
            file, or the prefix that a ``"prefix"`` client gets.
        training: How to train.
        privacy: What privacy to give.
    """

    run: str
    round: int
    rounds: int
    client: str
    nonce: str
    seed: int
    base: str
    base_digest: str
    start_digest: str
    task: str
    rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    labels: tuple[str, ...] = ()
    use_rslora: bool = False
    start: str = "residual"
    sampled_from: int = 0
    trained_factors: str = "both"
    shared_factors: str = "both"
    upload: str = "float32"
    broadcast_digest: str = ""
    training: TrainingParameters = field(default_factory=TrainingParameters)
    privacy: PrivacyParameters = field(default_factory=PrivacyParameters)

    @property
    def scaling(self) -> float:
        """The factor before ``B @ A``."""
        return lora_scaling(self.lora_alpha, self.rank, self.use_rslora)

    @property
    def sent_factors(self) -> str:
        """The factors that travel back: those trained and shared, of :data:`TRAINED_FACTORS`.

        The receiver takes the others from the start.
        """
        if self.shared_factors == "both":
            return self.trained_factors
        return "a" if self.trained_factors in ("both", "a") else "none"

    def to_json(self) -> bytes:
        """Canonical JSON bytes."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes | str) -> TrainAssignment:
        """Read an assignment that :meth:`to_json` wrote.

        Raises:
            InputError: If it is not one; server and client are then of different versions.
        """
        try:
            value: dict[str, Any] = json.loads(data)
            return cls(
                **{
                    **value,
                    "target_modules": tuple(value["target_modules"]),
                    "labels": tuple(value["labels"]),
                    "training": TrainingParameters(**value["training"]),
                    "privacy": PrivacyParameters(**value["privacy"]),
                }
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                "assignment", error, "use the same version of Intarsia at the server and the client"
            ) from None

    def as_mapping(self) -> Mapping[str, Any]:
        """The assignment as plain JSON values, for a database row."""
        value: dict[str, Any] = json.loads(self.to_json())
        return value


def lora_scaling(lora_alpha: float, rank: int, use_rslora: bool) -> float:
    """LoRA's factor before ``B @ A``.

    Args:
        lora_alpha: LoRA's alpha.
        rank: The module's rank, at least 1.
        use_rslora: Divide by the square root of the rank (Kalajdzievski 2023, arXiv:2312.03732)
            instead of the rank (Hu et al. 2021, arXiv:2106.09685).

    Returns:
        The scaling.
    """
    return float(lora_alpha / (rank**0.5 if use_rslora else rank))
