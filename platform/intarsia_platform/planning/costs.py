"""What a round costs a client: memory, operations, bytes both ways, seconds.

Every cost is a constant, plus one part for each stage that gradients flow through, plus one part
for each module that is trained. That is what lets the planner choose by linear programming; every
part is an upper bound, so that what fits here fits the client.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from intarsia_client.assignment import PrivacyParameters, TrainingParameters
from intarsia_client.attachment import FOLD_BYTES
from intarsia_client.transport.precision import number_of_blocks

from intarsia_platform.planning.profile import BaseProfile, LinearModule
from intarsia_platform.planning.resources import ClientResources

# Weight, gradient and AdamW's two moments, each float32.
_TRAINED_BYTES = 16
# What training never lets per-example gradients outgrow, but for one example's own.
_EXAMPLE_GRADIENT_BYTES = 1 << 28
# What travels beside the numbers: an entry of a header beside its name, and the configuration with
# the manifest or the assignment, beside the names that they list.
_ENTRY_BYTES = 128
_MESSAGE_BYTES = 4096
_VALUE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much one client has to train on.

    Args:
        tokens: Tokens that it goes through in a round, all epochs together.
        length: Tokens of a sequence, on average.
        batch_size: Sequences that are computed at once.
        longest: Tokens of the longest sequence.
        private: Whether gradients are taken for each example.
    """

    tokens: int
    length: float
    batch_size: int
    longest: int
    private: bool = False

    @classmethod
    def of(
        cls,
        training: TrainingParameters,
        privacy: PrivacyParameters,
        *,
        records: int,
        tokens_per_record: float,
        sequences_per_record: float = 1.0,
    ) -> Workload:
        """The work of a client that has so many records.

        Args:
            training: How it trains.
            privacy: What privacy it gives.
            records: How many records it has.
            tokens_per_record: Tokens of a record on average, as it is trained on.
            sequences_per_record: Sequences that a record becomes on average.

        Returns:
            The work of one round.
        """
        tokens = training.epochs * records * tokens_per_record
        length = tokens_per_record / sequences_per_record
        if training.max_steps:
            most = training.max_steps * training.batch_size * max(length, 1.0)
            tokens = min(tokens, most)
        private = privacy.unit != "none"
        return cls(
            tokens=math.ceil(tokens),
            length=length,
            # A Poisson batch has no bound of its own; what is computed at once has this one.
            batch_size=(2 if private else 1) * training.batch_size,
            longest=training.max_length,
            private=private,
        )


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What travels between server and client, and where the client's round starts.

    Args:
        broadcast_rank: Largest rank of the adapter that clients are sent.
        start: One of :data:`intarsia_client.assignment.START_KINDS`.
        upload: Precision of what clients send, of :data:`intarsia_client.assignment.PRECISIONS`.
        download: Precision of what they are sent, likewise.
        sent: Which factors clients send: ``"both"``, ``"a"`` or ``"b"``.
        received: Which factors they are sent: ``"both"`` or ``"a"``.
    """

    broadcast_rank: int
    start: str = "residual"
    upload: str = "float32"
    download: str = "float32"
    sent: str = "both"
    received: str = "both"


@dataclass(frozen=True, kw_only=True)
class ClientCost:
    """What one round costs a client.

    Args:
        memory_bytes: Memory beyond the process itself.
        flops: Floating-point operations.
        bytes_up: Bytes sent.
        bytes_down: Bytes received.
    """

    memory_bytes: float
    flops: float
    bytes_up: float
    bytes_down: float

    def seconds(self, resources: ClientResources) -> float:
        """How long it takes: the adapter comes, training runs, the update goes."""
        return (
            self.bytes_down / resources.bytes_down_per_second
            + self.flops / resources.flops_per_second
            + self.bytes_up / resources.bytes_up_per_second
        )


@dataclass(frozen=True, kw_only=True)
class LinearCost:
    """Costs at one rank: a constant, a part a stage, a part a module.

    Args:
        constant: What it costs to take part at all.
        stages: From each stage to what it costs that gradients flow through it.
        modules: From each module's name to what it costs to train it, beside its stage.
    """

    constant: ClientCost
    stages: Mapping[int, ClientCost]
    modules: Mapping[str, ClientCost]

    def of(self, names: Collection[str], stage_of: Mapping[str, int]) -> ClientCost:
        """What it costs to train these modules.

        Args:
            names: The modules.
            stage_of: From each module's name to its stage.

        Returns:
            The sum: gradients flow through every stage from the first trained module's on.
        """
        first = min((stage_of[name] for name in names), default=math.inf)
        parts = [self.constant, *(self.modules[name] for name in sorted(names))]
        parts += [cost for stage, cost in sorted(self.stages.items()) if stage >= first]
        return ClientCost(
            memory_bytes=math.fsum(part.memory_bytes for part in parts),
            flops=math.fsum(part.flops for part in parts),
            bytes_up=math.fsum(part.bytes_up for part in parts),
            bytes_down=math.fsum(part.bytes_down for part in parts),
        )


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What training costs on one base model.

    Args:
        profile: The base model.
        modules: Full names of the modules that may be trained.
        exchange: What travels.
    """

    profile: BaseProfile
    modules: tuple[str, ...]
    exchange: Exchange

    @cached_property
    def trainable(self) -> dict[str, LinearModule]:
        """From each module that may be trained to what it is, in the order of computation."""
        wanted = set(self.modules)
        return {name: one for name, one in self.profile.modules.items() if name in wanted}

    @cached_property
    def stage_of(self) -> dict[str, int]:
        """From each module that may be trained to its stage."""
        return {name: module.stage for name, module in self.trainable.items()}

    def parameters(self, rank: int, names: Collection[str] | None = None) -> int:
        """How many numbers a client trains, the head's included.

        Args:
            rank: Its rank.
            names: The modules; None for all.
        """
        chosen = self.trainable if names is None else names
        low_rank = rank * sum(sum(self.trainable[name].shape) for name in chosen)
        return self.profile.head_parameters + low_rank

    def at(self, rank: int, workload: Workload) -> LinearCost:
        """The costs of training at one rank.

        Args:
            rank: The client's rank, at least 1.
            workload: How much it has to train on.

        Returns:
            The costs.
        """
        last = len(self.profile.stages) - 1
        # Gradients flow through what stands after the blocks whatever is trained.
        stages = {
            stage: self._stage(stage, workload)
            for stage in range(last)
            if any(one.stage == stage for one in self.profile.modules.values())
        }
        return LinearCost(
            constant=self._constant(rank, workload),
            stages=stages,
            modules={
                name: self._module(name, rank, module, workload)
                for name, module in self.trainable.items()
            },
        )

    def _constant(self, rank: int, workload: Workload) -> ClientCost:
        profile = self.profile
        last = len(profile.stages) - 1
        tail = self._stage(last, workload)
        batch_tokens = workload.batch_size * workload.longest
        down = self._bytes_down(rank)
        forward = sum(module.multiplications for module in profile.modules.values())
        attention = sum(stage.attention_width for stage in profile.stages)
        frozen_bytes, frozen_flops = self._underneath(rank, workload)
        head = profile.head_parameters
        # The loss is where most lives at once: beside what was kept the logits, the gradient of
        # their logarithms and their own.
        passing = max(
            3 * 4 * batch_tokens * profile.output_width,
            max(self._kept_bytes(stage, workload) for stage in range(last + 1)),
        )
        return ClientCost(
            memory_bytes=profile.weight_bytes
            + frozen_bytes
            + down
            + 4 * self._directions(self.exchange.broadcast_rank)
            + (_TRAINED_BYTES + 8) * head
            + self._private_bytes(rank, workload)
            + tail.memory_bytes
            + passing,
            flops=tail.flops
            + workload.tokens * (2 * forward + 4 * workload.length * attention)
            + frozen_flops,
            bytes_up=4 * head + _MESSAGE_BYTES,
            bytes_down=down,
        )

    def _stage(self, stage: int, workload: Workload) -> ClientCost:
        """What the backward pass through one stage takes beyond the forward pass."""
        inside = [one for one in self.profile.modules.values() if one.stage == stage]
        multiplications = sum(module.multiplications for module in inside)
        width = self.profile.stages[stage].attention_width
        return ClientCost(
            memory_bytes=self._kept_bytes(stage, workload),
            flops=workload.tokens * (2 * multiplications + 8 * workload.length * width),
            bytes_up=0.0,
            bytes_down=0.0,
        )

    def _module(self, name: str, rank: int, module: LinearModule, work: Workload) -> ClientCost:
        d_out, d_in = module.shape
        parameters = rank * (d_out + d_in)
        # Kept for the backward pass: what comes in, and what stands between the factors.
        kept = 4 * work.batch_size * work.longest * module.calls * (d_in + rank)
        sent = self._sent_bytes(rank, module)
        quantised = self.exchange.upload == "int8"
        # Beside what is trained: the trained copy, a private sum, what rounding carries over.
        held = _TRAINED_BYTES + 4 + 4 * work.private + 8 * quantised
        entries = 4 if quantised else 2
        return ClientCost(
            memory_bytes=held * parameters + kept + sent,
            flops=6 * work.tokens * module.calls * parameters,
            bytes_up=sent + entries * (len(name) + _ENTRY_BYTES) + 2 * len(name),
            bytes_down=0.0,
        )

    def _kept_bytes(self, stage: int, workload: Workload) -> float:
        cost = self.profile.stages[stage]
        pairs = cost.bytes_per_pair * workload.longest
        return workload.batch_size * workload.longest * (cost.bytes_per_token + pairs)

    def _private_bytes(self, rank: int, workload: Workload) -> float:
        """Gradients of the examples that are computed at once."""
        if not workload.private:
            return 0.0
        one = 4 * self.parameters(rank)
        return float(min(workload.batch_size * one, max(one, _EXAMPLE_GRADIENT_BYTES)))

    def _underneath(self, rank: int, work: Workload) -> tuple[float, float]:
        """Bytes and operations of the frozen directions: folded, or a branch where too large."""
        exchange = self.exchange
        most = exchange.broadcast_rank if exchange.start != "prefix" else rank
        left = float(FOLD_BYTES)
        memory = flops = 0.0
        for _, module in sorted(self.trainable.items()):
            held = min(most, *module.shape)
            size = 4 * math.prod(module.shape)
            if not held:
                continue
            if size <= left:
                left -= size
                memory += size
                flops += 2 * held * math.prod(module.shape)
            else:
                memory += 4 * held * sum(module.shape)
                flops += 4 * held * sum(module.shape) * module.calls * work.tokens
        return memory, flops

    def _directions(self, rank: int) -> int:
        """How many numbers the leading directions of all modules hold."""
        return sum(min(rank, *one.shape) * sum(one.shape) for one in self.trainable.values())

    def _bytes_down(self, rank: int) -> float:
        exchange = self.exchange
        components = exchange.broadcast_rank
        if exchange.start == "prefix":
            components = min(rank, components)
        size = 4.0 * self.profile.head_parameters
        for name, module in self.trainable.items():
            d_out, d_in = module.shape
            direction = encoded_bytes(d_in, exchange.download)
            if exchange.received == "both":
                direction += encoded_bytes(d_out, exchange.download)
            size += min(components, d_out, d_in) * direction + 2 * len(name) + _ENTRY_BYTES
        return size + 2 * _ENTRY_BYTES * exchange.broadcast_rank + _MESSAGE_BYTES

    def _sent_bytes(self, rank: int, module: LinearModule) -> int:
        d_out, d_in = module.shape
        exchange = self.exchange
        a = encoded_bytes(d_in, exchange.upload) if exchange.sent in ("both", "a") else 0
        b = encoded_bytes(d_out, exchange.upload) if exchange.sent in ("both", "b") else 0
        return rank * (a + b)


def encoded_bytes(width: int, precision: str) -> int:
    """Bytes of one row of A or one column of B as it travels.

    Args:
        width: How many numbers it holds.
        precision: One of :data:`intarsia_client.assignment.PRECISIONS`.

    Returns:
        The bytes, int8's scales included.
    """
    if precision == "int8":
        return width + 4 * number_of_blocks(width)
    return _VALUE_BYTES[precision] * width
