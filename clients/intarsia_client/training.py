"""One client's round: from its records and the global adapter to an update that may be sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from intarsia_client.assignment import TrainAssignment, TrainingParameters
from intarsia_client.assignment_check import check_assignment
from intarsia_client.attachment import read_trained
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
from intarsia_client.client_state import ClientState
from intarsia_client.errors import FederationError, InputError
from intarsia_client.files import bytes_digest
from intarsia_client.optimization import entropy_of, model_in_training, moments_of, set_rate
from intarsia_client.optimizer_state import OptimizerState, mapped_state
from intarsia_client.peft_files import EncodedAdapter, adapter_digest
from intarsia_client.privacy import planned_spend
from intarsia_client.private_gradients import PrivateGradients, poisson_sample, private_generator
from intarsia_client.shards import DataShard
from intarsia_client.start import ClientStart, assigned_start
from intarsia_client.transport import decode_update, encode_update, encode_with_feedback
from intarsia_client.wire import Adapter, AdapterUpdate, PrivacySpend, UpdateManifest

Tell = Callable[[int, int], None]
"""Takes how many steps of a round are done, and how many there are."""

_GRADIENT_BYTES = 1 << 28
_LOGITS_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class TrainedRound:
    """What a client's round gave.

    Args:
        update: The adapter as the receiver decodes it, and its manifest.
        encoded: The bytes that the manifest names.
        trained: The adapter as the client has it: not rounded, and with its own B.
        state: What the client keeps for its next round.
    """

    update: AdapterUpdate
    encoded: EncodedAdapter
    trained: Adapter
    state: ClientState


@dataclass(frozen=True, kw_only=True)
class _Course:
    """One round's training under way.

    Args:
        assignment: What the server asks.
        shard: The client's records.
        start: What is attached; only what may get gradients is trainable.
        past: Moments to begin with.
        tell: Called after each step.
    """

    assignment: TrainAssignment
    shard: DataShard
    start: ClientStart
    past: OptimizerState
    tell: Tell


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
        state: ClientState | None = None,
        tell: Tell | None = None,
    ) -> TrainedRound:
        """Train one client for one round.

        The same inputs give the same bytes, on the same machine; the process's own random state is
        neither used nor changed. Without privacy the order of the records follows from the
        assignment's seed, the client's name and the round.

        In private training nothing but the noisy steps depends on the records: the manifest's
        metrics hold only the number of steps, and ``shard_digest`` is blinded with the client's
        secret, since a plain digest would tell whoever knows all records but one whether that one
        is there. The number of records is public by assumption. The client's state follows from
        noisy steps too, so that what it adds to a round, and how the update is encoded, is
        post-processing of them.

        Args:
            shard: The client's records.
            assignment: What the server asks.
            global_adapter: The published adapter that goes with it, or its prefix for a
                ``"prefix"`` start.
            private_seed: The client's secret for private training; see
                :func:`intarsia_client.private_gradients.private_generator`.
            history: What this client has spent on these records before.
            state: What the client kept of its last round; None for nothing.
            tell: Called after each step of the optimiser; changes nothing. In private training
                the number of steps follows from the number of records alone.

        Returns:
            The update; its adapter is the trained one, not the difference from its start.

        Raises:
            InputError: If the assignment does not fit the base, the records or the global adapter.
            BudgetExceeded: If this round would take the client over its privacy budget; its
                records are not touched.
            FederationError: If the training diverged.
        """
        check_assignment(self._base, shard, assignment, global_adapter)
        state = state or ClientState()
        given = assigned_start(global_adapter, assignment)
        given = replace(given, trainable=_held(given.trainable))
        course = _course(assignment, shard, given, state, tell or _nobody)
        spend, shard_digest = None, shard.digest
        if assignment.privacy.unit == "none":
            adapter, moments, metrics = self._train_plainly(course)
        else:
            spend = planned_spend(len(shard.records), assignment, history)
            question = _question(course, global_adapter)
            generator = private_generator(private_seed, *question)
            adapter, moments = self._train_privately(course, spend, generator)
            metrics = {"steps": float(spend.steps)}
            blinding = private_generator(private_seed, "shard", shard.client).bytes(32)
            shard_digest = bytes_digest(blinding, shard.digest.encode())
        # Where the head alone was attached for training, the factors are as they started.
        trained = replace(adapter, modules={**given.trainable.modules, **adapter.modules})
        encoded, decoded, kept = _encoded(trained, given.trainable, assignment, state)
        manifest = UpdateManifest(
            run=assignment.run,
            round=assignment.round,
            client=assignment.client,
            nonce=assignment.nonce,
            base_digest=self._base.digest,
            start_digest=assignment.start_digest,
            task=assignment.task,
            target_modules=tuple(sorted(trained.modules)),
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
            update=AdapterUpdate(manifest=manifest, adapter=decoded),
            encoded=encoded,
            trained=trained,
            state=_next_state(kept, trained, moments, assignment),
        )

    def _train_plainly(self, course: _Course) -> tuple[Adapter, OptimizerState, dict[str, float]]:
        base, assignment = self._base, course.assignment
        training = assignment.training
        records = tokenise(base, course.shard.records, max_length=training.max_length)
        order = np.random.Generator(np.random.PCG64(entropy_of("order", assignment)))
        batches = _planned_batches(records, training, order)
        if not batches:
            raise InputError(
                f"records of client {course.shard.client}",
                "too short to train on",
                "give longer texts",
            )
        losses: list[float] = []
        tokens = 0
        with model_in_training(base, course.start, assignment, course.past) as (model, optimiser):
            parameters = [one for group in optimiser.param_groups for one in group["params"]]
            for step, indices in enumerate(batches):
                set_rate(optimiser, assignment, step, len(batches))
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
                course.tell(len(losses), len(batches))
            adapter, moments = _read(model, optimiser, course)
        metrics = {
            "train_loss": math.fsum(losses) / len(losses),
            "steps": float(len(losses)),
            "tokens": float(tokens),
        }
        return adapter, moments, metrics

    def _train_privately(
        self, course: _Course, spend: PrivacySpend, generator: np.random.Generator
    ) -> tuple[Adapter, OptimizerState]:
        base, assignment = self._base, course.assignment
        training = assignment.training
        records = tokenise(
            base, course.shard.records, max_length=training.max_length, one_each=True
        )
        with model_in_training(base, course.start, assignment, course.past) as (model, optimiser):
            at_once = _fits_at_once(base, model, training)
            with PrivateGradients(
                model,
                max_grad_norm=spend.max_grad_norm,
                noise_multiplier=spend.noise_multiplier,
                expected_batch_size=spend.sample_rate * len(records),
                generator=generator,
            ) as gradients:
                for step in range(spend.steps):
                    set_rate(optimiser, assignment, step, spend.steps)
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
                    course.tell(step + 1, spend.steps)
            return _read(model, optimiser, course)


def _held(adapter: Adapter) -> Adapter:
    return replace(adapter, modules=dict(adapter.modules))


def _nobody(done: int, steps: int) -> None:
    """Tell nobody."""


def _course(
    assignment: TrainAssignment,
    shard: DataShard,
    given: ClientStart,
    state: ClientState,
    tell: Tell,
) -> _Course:
    """What is attached: the client's own B in its place, and frozen what is not trained at all."""
    start = given
    if assignment.shared_factors == "a":
        start = replace(given, trainable=state.personal(given.trainable))
    if assignment.trained_factors == "none":
        start = ClientStart(
            trainable=replace(start.trainable, modules={}),
            underneath=replace(start.whole, dense={}),
        )
    past = OptimizerState()
    if assignment.training.keep_optimizer:
        past = mapped_state(state.optimizer, start.trainable)
    return _Course(assignment=assignment, shard=shard, start=start, past=past, tell=tell)


def _question(course: _Course, global_adapter: Adapter) -> tuple[str, ...]:
    """All that decides a private round's result; not which run, message or folder it came in.

    How the bytes travel does not decide it either: a round asked for again in another encoding
    must not be a second noisy look at the records.
    """
    asked = replace(
        course.assignment, run="", nonce="", base="", broadcast_digest="", upload="float32"
    )
    question = (asked.to_json().decode(), adapter_digest(global_adapter), course.shard.digest)
    own = ClientState(optimizer=course.past)
    if course.assignment.shared_factors == "a":
        modules = course.start.trainable.modules
        own = replace(own, own_b={name: factors.b for name, factors in modules.items()})
    return question if own.is_empty else (*question, bytes_digest(own.to_bytes()))


def _encoded(
    trained: Adapter, start: Adapter, assignment: TrainAssignment, state: ClientState
) -> tuple[EncodedAdapter, Adapter, ClientState]:
    """The update's bytes, what the receiver makes of them, and the state with what they lost."""
    factors = assignment.sent_factors
    if assignment.upload == "int8":
        encoded, carried = encode_with_feedback(
            trained,
            start,
            state.carried,
            factors=factors,
            only_a_is_shared=assignment.shared_factors == "a",
        )
        state = replace(state, carried=carried)
    else:
        encoded = encode_update(trained, start, assignment.upload, factors=factors)
        if assignment.upload == "float32" and factors == "both":
            return encoded, trained, state
    return encoded, _held(decode_update(encoded, start, factors=factors)), state


def _next_state(
    state: ClientState, trained: Adapter, moments: OptimizerState, assignment: TrainAssignment
) -> ClientState:
    """What the client keeps; modules that it did not train this time keep what they have."""
    if assignment.shared_factors == "a":
        own_b = {name: one.b * np.float32(one.scaling) for name, one in trained.modules.items()}
        state = replace(state, own_b={**state.own_b, **own_b})
    if assignment.training.keep_optimizer:
        modules = {**state.optimizer.modules, **moments.modules}
        state = replace(state, optimizer=replace(moments, modules=modules))
    return state


def _planned_batches(
    records: TokenisedRecords, training: TrainingParameters, generator: np.random.Generator
) -> list[IndexArray]:
    batches: list[IndexArray] = []
    for _ in range(training.epochs if len(records) else 0):
        batches += bucketed_batches(records.lengths, training.batch_size, generator)
        if training.max_steps and len(batches) >= training.max_steps:
            return batches[: training.max_steps]
    return batches


def _fits_at_once(base: BaseModel, model: Any, training: TrainingParameters) -> dict[str, int]:
    """How much of a Poisson batch, whose size has no bound, is computed at once."""
    width = max(int(getattr(base.model.config, "vocab_size", 1)), 1)
    if base.task != "causal-lm":
        width = len(base.labels)
    tokens = min(2 * training.batch_size * training.max_length, _LOGITS_BYTES // (4 * width))
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    sequences = _GRADIENT_BYTES // (4 * trained)
    return {"sequences": max(1, sequences), "tokens": max(1, tokens)}


def _read(
    model: Any, optimiser: torch.optim.Optimizer, course: _Course
) -> tuple[Adapter, OptimizerState]:
    """The trained adapter, all of it finite, and its moments where they are kept."""
    adapter = read_trained(model, course.start.trainable)
    arrays = [array for one in adapter.modules.values() for array in (one.a, one.b)]
    if not all(np.isfinite(array).all() for array in [*arrays, *adapter.dense.values()]):
        raise _diverged(course.assignment)
    moments = OptimizerState()
    if course.assignment.training.keep_optimizer:
        moments = moments_of(model, optimiser, adapter, course.past)
    return adapter, moments


def _diverged(assignment: TrainAssignment) -> FederationError:
    return FederationError(
        f"training of client {assignment.client}",
        "the loss is not finite",
        f"lower train.learning_rate, now {assignment.training.learning_rate:g}",
    )
