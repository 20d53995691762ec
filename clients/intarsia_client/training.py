"""One client's round: from its records and the global adapter to an update that may be sent."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from intarsia_client.assignment import SCHEDULES, TrainAssignment, TrainingParameters
from intarsia_client.attachment import attached, read_trained
from intarsia_client.base_model import BaseModel, precision
from intarsia_client.batches import (
    IndexArray,
    TokenisedRecords,
    bucketed_batches,
    collate,
    packed_batches,
    sequence_losses,
    tokenise,
)
from intarsia_client.errors import FederationError, InputError
from intarsia_client.files import bytes_digest
from intarsia_client.peft_files import EncodedAdapter, adapter_digest, encode_adapter
from intarsia_client.privacy import planned_spend
from intarsia_client.private_gradients import PrivateGradients, poisson_sample, private_generator
from intarsia_client.shards import DataShard
from intarsia_client.start import ClientStart, client_start
from intarsia_client.wire import Adapter, AdapterUpdate, PrivacySpend, UpdateManifest

_GRADIENT_BYTES = 1 << 28
_LOGITS_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class TrainedRound:
    """What a client's round gave.

    Args:
        update: The trained adapter and its manifest.
        encoded: The adapter's bytes as the manifest names them, so that they are made once.
    """

    update: AdapterUpdate
    encoded: EncodedAdapter


class LocalTrainer:
    """Trains clients' adapters on a base model that they share.

    Args:
        base: The base model; it is the same before and after every round.
    """

    def __init__(self, base: BaseModel) -> None:
        """Keep the base."""
        self._base = base

    def train(
        self,
        shard: DataShard,
        assignment: TrainAssignment,
        global_adapter: Adapter,
        *,
        private_seed: int | None = None,
        history: Sequence[PrivacySpend] = (),
    ) -> TrainedRound:
        """Train one client for one round.

        The same inputs give the same bytes, on the same machine; the process's own random state is
        neither used nor changed. Without privacy the order of the records follows from the
        assignment's seed, the client's name and the round.

        In private training nothing but the noisy steps depends on the records: the manifest's
        metrics hold only the number of steps, and ``shard_digest`` is blinded with the client's
        secret, since a plain digest would tell whoever knows all records but one whether that one
        is there. The number of records is public by assumption.

        Args:
            shard: The client's records.
            assignment: What the server asks.
            global_adapter: The published adapter that goes with it.
            private_seed: The client's secret for private training; see
                :func:`intarsia_client.private_gradients.private_generator`.
            history: What this client has spent on these records before.

        Returns:
            The update; its adapter is the trained one, not the difference from its start.

        Raises:
            InputError: If the assignment does not fit the base, the records or the global adapter.
            BudgetExceeded: If this round would take the client over its privacy budget; its
                records are not touched.
            FederationError: If the training diverged.
        """
        check_assignment(self._base, shard, assignment, global_adapter)
        start = client_start(
            global_adapter,
            rank=assignment.rank,
            scaling=assignment.scaling,
            seed=assignment.seed,
        )
        if assignment.privacy.unit == "none":
            adapter, metrics = self._train_plainly(shard, assignment, start)
            spend, shard_digest = None, shard.digest
        else:
            spend = planned_spend(len(shard.records), assignment, history)
            question = (
                # All that decides the result; not which run, message or folder it came in.
                replace(assignment, run="", nonce="", base="").to_json().decode(),
                adapter_digest(global_adapter),
                shard.digest,
            )
            generator = private_generator(private_seed, *question)
            adapter = self._train_privately(shard, assignment, start, spend, generator)
            metrics = {"steps": float(spend.steps)}
            blinding = private_generator(private_seed, "shard", shard.client).bytes(32)
            shard_digest = bytes_digest(blinding, shard.digest.encode())
        encoded = encode_adapter(adapter)
        manifest = UpdateManifest(
            run=assignment.run,
            round=assignment.round,
            client=assignment.client,
            nonce=assignment.nonce,
            base_digest=self._base.digest,
            start_digest=assignment.start_digest,
            task=assignment.task,
            target_modules=tuple(sorted(adapter.modules)),
            rank=assignment.rank,
            lora_alpha=assignment.lora_alpha,
            use_rslora=assignment.use_rslora,
            number_of_examples=len(shard.records),
            shard_digest=shard_digest,
            tensors_digest=bytes_digest(encoded.tensors),
            metrics=metrics,
            privacy=spend,
        )
        return TrainedRound(
            update=AdapterUpdate(manifest=manifest, adapter=adapter), encoded=encoded
        )

    def _train_plainly(
        self, shard: DataShard, assignment: TrainAssignment, start: ClientStart
    ) -> tuple[Adapter, dict[str, float]]:
        base, training = self._base, assignment.training
        records = tokenise(base, shard.records, max_length=training.max_length)
        order = np.random.Generator(np.random.PCG64(_entropy("order", assignment)))
        batches = _planned_batches(records, training, order)
        if not batches:
            raise InputError(
                f"records of client {shard.client}", "too short to train on", "give longer texts"
            )
        losses: list[float] = []
        tokens = 0
        with _training(base, start, assignment) as (model, optimiser):
            parameters = optimiser.param_groups[0]["params"]
            for step, indices in enumerate(batches):
                _set_rate(optimiser, assignment, step, len(batches))
                with precision(base):
                    sums, counts, _ = sequence_losses(model, base, collate(base, records, indices))
                    loss = sums.sum() / counts.sum()
                torch.autograd.backward(loss)
                if training.max_gradient_norm > 0:
                    torch.nn.utils.clip_grad_norm_(
                        parameters, training.max_gradient_norm, foreach=True
                    )
                optimiser.step()
                optimiser.zero_grad()
                losses.append(float(loss.detach()))
                tokens += int(records.lengths[indices].sum())
                if not math.isfinite(losses[-1]):
                    raise _diverged(assignment)
            adapter = _finite_adapter(model, start, assignment)
        metrics = {
            "train_loss": math.fsum(losses) / len(losses),
            "steps": float(len(losses)),
            "tokens": float(tokens),
        }
        return adapter, metrics

    def _train_privately(
        self,
        shard: DataShard,
        assignment: TrainAssignment,
        start: ClientStart,
        spend: PrivacySpend,
        generator: np.random.Generator,
    ) -> Adapter:
        base, training = self._base, assignment.training
        records = tokenise(base, shard.records, max_length=training.max_length, one_each=True)
        with _training(base, start, assignment) as (model, optimiser):
            at_once = _fits_at_once(base, start.trainable, training)
            with PrivateGradients(
                model,
                max_grad_norm=spend.max_grad_norm,
                noise_multiplier=spend.noise_multiplier,
                expected_batch_size=spend.sample_rate * len(records),
                generator=generator,
            ) as gradients:
                for step in range(spend.steps):
                    _set_rate(optimiser, assignment, step, spend.steps)
                    taken = poisson_sample(len(records), spend.sample_rate, generator)
                    for indices in packed_batches(records.lengths, taken, **at_once):
                        with precision(base):
                            batch = collate(base, records, indices)
                            sums, counts, _ = sequence_losses(model, base, batch)
                        # Its own mean: the batch's other sequences must not scale this one's.
                        gradients.accumulate(sums / counts.clamp(min=1))
                    gradients.release()
                    optimiser.step()
                    optimiser.zero_grad()
            return _finite_adapter(model, start, assignment)


def check_assignment(
    base: BaseModel, shard: DataShard, assignment: TrainAssignment, global_adapter: Adapter
) -> None:
    """Refuse what cannot be trained, before anything is.

    Args:
        base: The base model that the client has.
        shard: The client's records.
        assignment: What the server asks.
        global_adapter: The published adapter.

    Raises:
        InputError: Naming what does not fit.
    """
    expected = {
        "base_digest": base.digest,
        "task": base.task,
        "labels": base.labels,
        "target_modules": tuple(sorted(global_adapter.modules)),
        "client": shard.client,
    }
    asked = {name: getattr(assignment, name) for name in expected}
    asked["target_modules"] = tuple(sorted(assignment.target_modules))
    for name, value in expected.items():
        if asked[name] != value:
            raise InputError(
                f"assignment {name}", _short(asked[name]), f"this client has {_short(value)}"
            )
    if not shard.records:
        raise InputError(f"records of client {shard.client}", 0, "give at least one")
    if assignment.privacy.unit not in ("none", "example"):
        raise InputError(
            "privacy.unit",
            assignment.privacy.unit,
            'choose "none" or "example"; whole clients can only be protected where updates meet',
        )
    training = assignment.training
    for name, least in (("epochs", 1), ("batch_size", 1), ("max_steps", 0)):
        if getattr(training, name) < least:
            raise InputError(f"train.{name}", getattr(training, name), f"choose at least {least}")
    if training.schedule not in SCHEDULES:
        raise InputError(
            "train.schedule", training.schedule, f"choose one of {', '.join(SCHEDULES)}"
        )


def learning_rate_factor(
    training: TrainingParameters, *, round_number: int, rounds: int, step: int, steps: int
) -> float:
    """The share of the peak learning rate at one step.

    The schedule spans the whole federation; the warm-up comes at the start of every round, since
    every round begins with fresh optimiser moments.

    Args:
        training: Schedule and warm-up.
        round_number: From 1.
        rounds: Rounds planned in all.
        step: The step in this round, from 0.
        steps: Steps of this round.

    Returns:
        A number above 0 and up to 1.
    """
    progress = (round_number - 1 + step / steps) / rounds
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[training.schedule]
    rising = math.ceil(training.warmup * steps)
    return factor * min(1.0, (step + 1) / (rising + 1))


@contextlib.contextmanager
def _training(
    base: BaseModel, start: ClientStart, assignment: TrainAssignment
) -> Iterator[tuple[Any, torch.optim.Optimizer]]:
    """The attached model in training mode and its optimiser, with random state of their own."""
    devices = [base.device] if base.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        attached(base, trainable=start.trainable, underneath=start.underneath) as model,
    ):
        torch.manual_seed(_entropy("dropout", assignment) % (1 << 63))
        model.train()
        optimiser = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=assignment.training.learning_rate,
            weight_decay=assignment.training.weight_decay,
            fused=True,
        )
        yield model, optimiser


def _entropy(purpose: str, assignment: TrainAssignment) -> int:
    """A seed of this client's round, the same in every run of a federation's seed."""
    words = f"{purpose}/{assignment.seed}/{assignment.client}/{assignment.round}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:16])


def _planned_batches(
    records: TokenisedRecords, training: TrainingParameters, generator: np.random.Generator
) -> list[IndexArray]:
    batches: list[IndexArray] = []
    for _ in range(training.epochs if len(records) else 0):
        batches += bucketed_batches(records.lengths, training.batch_size, generator)
        if training.max_steps and len(batches) >= training.max_steps:
            return batches[: training.max_steps]
    return batches


def _set_rate(
    optimiser: torch.optim.Optimizer, assignment: TrainAssignment, step: int, steps: int
) -> None:
    factor = learning_rate_factor(
        assignment.training,
        round_number=assignment.round,
        rounds=assignment.rounds,
        step=step,
        steps=steps,
    )
    for group in optimiser.param_groups:
        group["lr"] = assignment.training.learning_rate * factor


def _fits_at_once(
    base: BaseModel, trainable: Adapter, training: TrainingParameters
) -> dict[str, int]:
    """How much of a Poisson batch, whose size has no bound, is computed at once."""
    width = max(int(getattr(base.model.config, "vocab_size", 1)), 1)
    if base.task != "causal-lm":
        width = len(base.labels)
    tokens = min(2 * training.batch_size * training.max_length, _LOGITS_BYTES // (4 * width))
    sequences = _GRADIENT_BYTES // (4 * trainable.number_of_parameters)
    return {"sequences": max(1, sequences), "tokens": max(1, tokens)}


def _finite_adapter(model: Any, start: ClientStart, assignment: TrainAssignment) -> Adapter:
    adapter = read_trained(model, start.trainable)
    arrays = [array for one in adapter.modules.values() for array in (one.a, one.b)]
    if not all(np.isfinite(array).all() for array in [*arrays, *adapter.dense.values()]):
        raise _diverged(assignment)
    return adapter


def _diverged(assignment: TrainAssignment) -> FederationError:
    return FederationError(
        f"training of client {assignment.client}",
        "the loss is not finite",
        f"lower train.learning_rate, now {assignment.training.learning_rate:g}",
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
