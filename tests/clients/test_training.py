from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from intarsia_client import training
from intarsia_client.assignment import PrivacyParameters, TrainAssignment, TrainingParameters
from intarsia_client.base_model import head_tensors, linear_modules, load_base
from intarsia_client.errors import FederationError, InputError
from intarsia_client.evaluation import evaluate
from intarsia_client.files import bytes_digest
from intarsia_client.peft_files import adapter_digest, decode_adapter, write_encoded
from intarsia_client.privacy import BudgetExceeded, epsilon_of
from intarsia_client.private_gradients import PrivateGradients
from intarsia_client.records import Record
from intarsia_client.shards import DataShard
from intarsia_client.start import assigned_start, client_start
from intarsia_client.training import LocalTrainer
from intarsia_client.transport import decode_update
from intarsia_client.wire import Adapter, LowRankFactors, UpdateManifest

PRIVATE = PrivacyParameters(unit="example", epsilon=8.0)
WORDS = {
    "animal": ("fox", "dog", "the lazy dog", "brown fox", "quick fox", "a dog"),
    "colour": ("red", "green", "a blue sky", "a red house", "green door", "blue"),
    "number": ("one", "two", "three four", "five six", "seven", "eight nine ten"),
}
RECORDS = tuple(Record(text=text, label=label) for label, texts in WORDS.items() for text in texts)


def shard_of(records, client="ward"):
    return DataShard(client=client, records=records, digest=bytes_digest(repr(records).encode()))


SHARD = shard_of(RECORDS)


def empty_adapter(base):
    """The federation's first global adapter: no directions yet, and the base's head."""
    modules = {
        name: LowRankFactors(
            a=np.zeros((0, d_in), np.float32), b=np.zeros((d_out, 0), np.float32), scaling=1.0
        )
        for name, (d_out, d_in) in linear_modules(base, "all-linear").items()
    }
    return Adapter(
        base=base.base, task=base.task, modules=modules, dense=head_tensors(base),
        fan_in_fan_out=base.fan_in_fan_out,
    )  # fmt: skip


def assigned(model, adapter, **changes):
    training = {"batch_size": 4, "learning_rate": 5e-3, "max_length": 32}
    values = {
        "run": "run-1",
        "round": 1,
        "rounds": 2,
        "client": "ward",
        "nonce": "nonce-1",
        "seed": 0,
        "base": model.base,
        "base_digest": model.digest,
        "start_digest": adapter_digest(adapter),
        "task": model.task,
        "labels": model.labels,
        "rank": 4,
        "lora_alpha": 8.0,
        "target_modules": tuple(adapter.modules),
        "training": TrainingParameters(**{**training, **changes.pop("training", {})}),
    }
    return TrainAssignment(**{**values, **changes})


def train(model, adapter, *, shard=SHARD, private_seed=None, history=(), state=None, **changes):
    return LocalTrainer(model).train(
        shard, assigned(model, adapter, **changes), adapter,
        private_seed=private_seed, history=history, state=state,
    )  # fmt: skip


def factors_of(adapter, side):
    return {name: getattr(one, side).tobytes() for name, one in adapter.modules.items()}


def state(base):
    hasher = hashlib.sha256()
    for name, tensor in base.model.state_dict().items():
        hasher.update(name.encode() + tensor.numpy().tobytes())
    kinds = [type(module).__name__ for module in base.model.modules()]
    return hasher.hexdigest(), kinds, base.model.training


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "scorer"])
@pytest.mark.parametrize("privacy", [PrivacyParameters(), PRIVATE])
class TestEveryKind:
    def test_same_inputs_give_the_same_bytes(self, bases, make_adapter, name, privacy):
        base = bases[name]
        adapter = make_adapter(base, 6)
        before = state(base)
        torch.manual_seed(1)
        first = train(base, adapter, privacy=privacy, private_seed=9)
        torch.manual_seed(2)
        np.random.seed(2)
        random_state = torch.random.get_rng_state()
        again = train(base, adapter, privacy=privacy, private_seed=9)
        assert torch.equal(torch.random.get_rng_state(), random_state)
        assert again.encoded == first.encoded
        assert again.update.manifest == first.update.manifest
        assert state(base) == before

    def test_every_step_is_told_and_telling_changes_nothing(
        self, bases, make_adapter, name, privacy
    ):
        base, told = bases[name], []
        adapter = make_adapter(base, 6)
        assignment = assigned(base, adapter, privacy=privacy, training={"epochs": 2})
        silent, heard = (
            LocalTrainer(base).train(SHARD, assignment, adapter, private_seed=9, tell=tell)
            for tell in (None, lambda *steps: told.append(steps))
        )
        assert heard.encoded == silent.encoded
        steps = int(heard.update.manifest.metrics["steps"])
        assert told == [(step, steps) for step in range(1, steps + 1)] and steps > 2

    def test_other_clients_and_rounds_differ(self, bases, make_adapter, name, privacy):
        base = bases[name]
        adapter = make_adapter(base, 6)
        options = {"privacy": privacy, "private_seed": 9, "training": {"schedule": "constant"}}
        made = {
            train(base, adapter, **options).encoded.digest,
            train(base, adapter, **options, round=2).encoded.digest,
            train(base, adapter, **options, shard=shard_of(RECORDS, "bay"), client="bay")
            .encoded.digest,
        }  # fmt: skip
        assert len(made) == 3

    def test_run_nonce_and_place_do_not_matter(self, bases, make_adapter, name, privacy):
        base = bases[name]
        adapter = make_adapter(base, 6)
        first = train(base, adapter, privacy=privacy, private_seed=9)
        other = train(
            base, adapter, privacy=privacy, private_seed=9, run="run-2", nonce="n", base="/else"
        )
        assert other.encoded.tensors == first.encoded.tensors

    def test_manifest_tells_what_was_done(self, bases, make_adapter, name, privacy):
        base = bases[name]
        adapter = make_adapter(base, 6)
        done = train(base, adapter, privacy=privacy, private_seed=9)
        manifest = done.update.manifest
        assert UpdateManifest.from_json(manifest.to_json()) == manifest
        assert manifest.tensors_digest == bytes_digest(done.encoded.tensors)
        assert manifest.number_of_examples == len(RECORDS)
        assert manifest.base_digest == base.digest
        assert manifest.start_digest == adapter_digest(adapter)
        assert manifest.target_modules == tuple(sorted(adapter.modules))
        assert (manifest.run, manifest.round, manifest.client) == ("run-1", 1, "ward")
        assert (manifest.rank, manifest.lora_alpha, manifest.nonce) == (4, 8.0, "nonce-1")
        decoded = decode_adapter(done.encoded.configuration, done.encoded.tensors)
        for key, factors in done.update.adapter.modules.items():
            assert factors.rank == 4
            assert decoded.modules[key].a.tobytes() == factors.a.tobytes()
            assert decoded.modules[key].scaling == pytest.approx(2.0)
        assert decoded.dense.keys() == done.update.adapter.dense.keys() == adapter.dense.keys()

    def test_a_rate_of_zero_changes_nothing(self, bases, make_adapter, name, privacy):
        base = bases[name]
        adapter = make_adapter(base, 6)
        done = train(
            base, adapter, privacy=privacy, private_seed=9, training={"learning_rate": 0.0}
        )
        start = client_start(adapter, rank=4, scaling=2.0, seed=0).trainable
        for key, factors in done.update.adapter.modules.items():
            assert factors.a.tobytes() == start.modules[key].a.tobytes()
            assert factors.b.tobytes() == start.modules[key].b.tobytes()
        for key, tensor in done.update.adapter.dense.items():
            assert tensor.tobytes() == start.dense[key].tobytes()


class TestPlainTraining:
    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_learns_the_records(self, bases, name):
        base = bases[name]
        adapter = empty_adapter(base)
        before = evaluate(base, RECORDS, adapter=None, max_length=32)
        done = train(base, adapter, training={"epochs": 8, "learning_rate": 2e-2})
        after = evaluate(base, RECORDS, adapter=done.update.adapter, max_length=32)
        assert after.loss < before.loss - 0.5
        metrics = done.update.manifest.metrics
        assert after.loss < metrics["train_loss"] < before.loss
        assert metrics["steps"] == 8 * 5

    @pytest.mark.parametrize("name", ["bert", "scorer"])
    def test_learns_a_classification_with_its_head(self, bases, name):
        base = bases[name]
        adapter = empty_adapter(base)
        done = train(base, adapter, training={"epochs": 100, "learning_rate": 3e-3})
        found = evaluate(base, RECORDS, adapter=done.update.adapter, max_length=32)
        assert found.accuracy > 0.9
        assert done.update.manifest.privacy is None
        for key, tensor in done.update.adapter.dense.items():
            assert not np.array_equal(tensor, adapter.dense[key])

    def test_goes_on_where_the_last_round_ended(self, bases):
        base = bases.llama
        adapter = empty_adapter(base)
        first = train(base, adapter).update.adapter
        second = train(base, first, round=2).update.adapter
        losses = [
            evaluate(base, RECORDS, adapter=one, max_length=32).loss
            for one in (adapter, first, second)
        ]
        assert losses[0] > losses[1] > losses[2]

    def test_what_it_gives_loads_in_peft(self, bases, tmp_path):
        from peft import PeftModel

        base = bases.llama
        done = train(base, empty_adapter(base), training={"epochs": 3})
        write_encoded(tmp_path / "adapter", done.encoded)
        loaded = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter").eval()
        tokens = torch.tensor([[4, *base.tokenizer.encode("fox", add_special_tokens=False), 5]])
        with torch.no_grad():
            expected = float(loaded(input_ids=tokens, labels=tokens).loss)
        found = evaluate(base, RECORDS[:1], adapter=done.update.adapter, max_length=32)
        assert found.loss == pytest.approx(expected, rel=1e-4)

    def test_max_steps(self, bases):
        done = train(bases.llama, empty_adapter(bases.llama), training={"max_steps": 2})
        assert done.update.manifest.metrics["steps"] == 2
        assert done.update.manifest.number_of_examples == len(RECORDS)

    def test_divergence_names_client_and_rate(self, bases):
        with pytest.raises(FederationError, match=r"client ward.*learning_rate, now 1e") as caught:
            train(bases.llama, empty_adapter(bases.llama), training={"learning_rate": 1e30})
        assert "\n" not in str(caught.value)
        assert not bases.llama.model.training

    def test_weight_decay_and_clipping_take_part(self, bases, make_adapter):
        adapter = make_adapter(bases.llama, 4)
        made = {
            train(bases.llama, adapter, training=training).encoded.digest
            for training in ({}, {"weight_decay": 0.5}, {"max_gradient_norm": 0.01})
        }
        assert len(made) == 3

    def test_a_real_model_learns_shakespeare(self, stories, plays):
        base = load_base(str(stories), task="causal-lm")
        shard = shard_of([Record(text=text) for text in plays[:120]])
        test = [Record(text=text) for text in plays[-60:]]
        done = train(
            base, empty_adapter(base), shard=shard, rank=8,
            training={"batch_size": 16, "max_length": 96},
        )  # fmt: skip
        before = evaluate(base, test, adapter=None, max_length=96)
        after = evaluate(base, test, adapter=done.update.adapter, max_length=96)
        assert after.perplexity < 0.5 * before.perplexity


class TestPrivateTraining:
    def test_only_the_secret_decides_the_noise(self, bases, make_adapter):
        adapter = make_adapter(bases.llama, 6)

        def digest(seed):
            done = train(bases.llama, adapter, privacy=PRIVATE, private_seed=seed)
            return done.encoded.digest

        assert digest(1) != digest(2)
        assert digest(None) != digest(None)

    def test_another_start_gets_other_noise(self, bases, make_adapter):
        """A server that asks twice, with two starts, must not be able to subtract the noise."""
        base = bases.llama
        adapter = make_adapter(base, 4)
        name = next(iter(adapter.modules))
        factors = adapter.modules[name]
        near = replace(factors, b=factors.b + np.float32(1e-7))
        other = replace(adapter, modules={**adapter.modules, name: near})
        loud = PrivacyParameters(unit="example", noise_multiplier=50.0)
        options = {"privacy": loud, "private_seed": 3, "training": {"schedule": "constant"}}
        claimed = {"start_digest": adapter_digest(adapter)}
        moved = []
        for start in (adapter, other):
            done = train(base, start, **options, **claimed).update.adapter
            begin = client_start(start, rank=4, scaling=2.0, seed=0).trainable
            moved.append(
                np.concatenate(
                    [(done.modules[key].a - begin.modules[key].a).ravel() for key in done.modules]
                )
            )
        assert abs(np.corrcoef(moved)[0, 1]) < 0.2

    def test_manifest_holds_nothing_of_the_records(self, bases, make_adapter):
        adapter = make_adapter(bases.llama, 6)
        done = train(bases.llama, adapter, privacy=PRIVATE, private_seed=4)
        manifest = done.update.manifest
        assert manifest.metrics == {"steps": 5.0}
        assert manifest.shard_digest != SHARD.digest
        later = train(bases.llama, adapter, privacy=PRIVATE, private_seed=4, round=2)
        assert later.update.manifest.shard_digest == manifest.shard_digest
        other = train(bases.llama, adapter, privacy=PRIVATE, private_seed=5)
        assert other.update.manifest.shard_digest != manifest.shard_digest

    def test_spend_is_in_the_manifest(self, bases, make_adapter):
        spend = train(
            bases.llama, make_adapter(bases.llama, 6), privacy=PRIVATE, private_seed=4
        ).update.manifest.privacy
        assert (spend.unit, spend.steps, spend.max_grad_norm) == ("example", 5, 1.0)
        assert spend.sample_rate == pytest.approx(4 / 18)
        assert 0 < spend.epsilon < 8.0
        parts = [(spend.noise_multiplier, spend.sample_rate, spend.steps)] * 2
        assert 7.9 < epsilon_of(parts, 1e-5) <= 8.0

    def test_budget_is_asked_before_the_records_are_touched(self, bases, make_adapter):
        class Untouchable(tuple):
            __slots__ = ()

            def __getitem__(self, index):
                pytest.fail("touched")

            def __iter__(self):
                pytest.fail("touched")

        base, adapter = bases.llama, make_adapter(bases.llama, 6)
        spend = train(base, adapter, privacy=PRIVATE, private_seed=4).update.manifest.privacy
        shard = DataShard(client="ward", records=Untouchable(RECORDS), digest="sha256:0")
        with pytest.raises(BudgetExceeded, match="client ward"):
            train(base, adapter, shard=shard, privacy=PRIVATE, history=[spend] * 2)

    def test_learns_with_little_noise(self, bases):
        base = bases.llama
        quiet = PrivacyParameters(
            unit="example", epsilon=1e9, noise_multiplier=0.01, max_grad_norm=1.0
        )
        done = train(
            base, empty_adapter(base), privacy=quiet, private_seed=0,
            training={"epochs": 8, "learning_rate": 2e-2},
        )  # fmt: skip
        before = evaluate(base, RECORDS, adapter=None, max_length=32)
        after = evaluate(base, RECORDS, adapter=done.update.adapter, max_length=32)
        assert after.loss < before.loss - 0.5

    @pytest.mark.parametrize("batch_size", [5, 18, 40])
    def test_each_record_counts_by_its_own_loss(self, bases, make_adapter, monkeypatch, batch_size):
        """Adam hides a common factor, so the losses and the denominator are looked at directly."""
        seen = {}

        class Watched(PrivateGradients):
            def __init__(self, model, **options):
                seen.update(options)
                super().__init__(model, **options)

            def accumulate(self, losses):
                seen.setdefault("losses", []).extend(losses.tolist())
                super().accumulate(losses)

        monkeypatch.setattr(training, "PrivateGradients", Watched)
        base, adapter = bases.llama, make_adapter(bases.llama, 6)
        train(
            base, adapter, privacy=PRIVATE, private_seed=0,
            training={"batch_size": batch_size, "max_steps": 1},
        )  # fmt: skip
        assert seen["expected_batch_size"] == pytest.approx(min(batch_size, 18))
        alone = [evaluate(base, [one], adapter=adapter, max_length=32).loss for one in RECORDS]
        assert seen["losses"]
        for loss in seen["losses"]:
            assert min(abs(loss - one) for one in alone) < 1e-4
        if batch_size >= 18:
            assert sorted(seen["losses"]) == pytest.approx(sorted(alone), rel=1e-4)

    def test_takes_steps_without_any_record(self, bases, make_adapter):
        """At this rate most batches are empty; they are steps of noise, and counted."""
        done = train(
            bases.llama, make_adapter(bases.llama, 6), privacy=PRIVATE, private_seed=0,
            training={"batch_size": 1, "max_steps": 12},
        )  # fmt: skip
        assert done.update.manifest.privacy.steps == 12

    def test_a_whole_client_cannot_be_hidden_here(self, bases, make_adapter):
        with pytest.raises(InputError, match=r'privacy\.unit: client; choose "none" or "example"'):
            train(
                bases.llama, make_adapter(bases.llama, 6), privacy=PrivacyParameters(unit="client")
            )


EITHER = pytest.mark.parametrize(
    "privacy", [PrivacyParameters(), PRIVATE], ids=["plain", "private"]
)


@EITHER
class TestAssignedParts:
    """Starts, factors, modules and encodings, each with and without privacy."""

    @pytest.mark.parametrize("trained", ["a", "b"])
    @pytest.mark.parametrize("upload", ["float32", "bfloat16", "int8"])
    def test_a_frozen_factor_stays_and_is_not_sent(
        self, bases, make_adapter, privacy, trained, upload
    ):
        base = bases.scorer
        adapter = make_adapter(base, 6)
        changes = {"trained_factors": trained, "upload": upload, "privacy": privacy}
        done = train(base, adapter, private_seed=1, **changes)
        start = assigned_start(adapter, assigned(base, adapter, **changes)).trainable
        frozen = "b" if trained == "a" else "a"
        assert factors_of(done.trained, frozen) == factors_of(start, frozen)
        for name, before in factors_of(start, trained).items():
            assert factors_of(done.trained, trained)[name] != before
        received = decode_update(done.encoded, start, factors=trained)
        assert factors_of(received, frozen) == factors_of(start, frozen)
        assert factors_of(received, trained) == factors_of(done.update.adapter, trained)
        if upload == "float32":
            assert factors_of(received, trained) == factors_of(done.trained, trained)
        both = train(base, adapter, private_seed=1, upload=upload, privacy=privacy)
        assert len(done.encoded.tensors) < 0.75 * len(both.encoded.tensors)

    def test_the_head_alone(self, bases, make_adapter, privacy):
        base = bases.bert
        adapter = make_adapter(base, 6)
        before = state(base)
        done = train(
            base, adapter, private_seed=1, trained_factors="none", privacy=privacy,
            training={"epochs": 3, "learning_rate": 5e-2},
        )  # fmt: skip
        start = client_start(adapter, rank=4, scaling=2.0, seed=0).trainable
        for side in ("a", "b"):
            assert factors_of(done.update.adapter, side) == factors_of(start, side)
        for name, tensor in done.update.adapter.dense.items():
            assert not np.array_equal(tensor, adapter.dense[name])
        assert done.update.manifest.target_modules == tuple(sorted(adapter.modules))
        assert len(done.encoded.tensors) < 4096
        assert state(base) == before

    def test_the_head_at_a_rate_of_its_own(self, bases, make_adapter, privacy):
        base = bases.bert
        adapter = make_adapter(base, 6)
        start = client_start(adapter, rank=4, scaling=2.0, seed=0).trainable
        moved = []
        for rate, head_rate in ((0.0, 1e-2), (1e-2, 0.0), (1e-2, 1e-2)):
            training = {"learning_rate": rate, "head_learning_rate": head_rate}
            done = train(base, adapter, private_seed=1, privacy=privacy, training=training)
            for side in ("a", "b"):
                same = factors_of(done.trained, side) == factors_of(start, side)
                assert same == (rate == 0.0)
            for name, tensor in done.trained.dense.items():
                assert not np.array_equal(tensor, adapter.dense[name])
            moved.append(done.encoded)
        assert moved[0] != moved[1]
        # Asking a private round otherwise draws other noise.
        assert (moved[1] == moved[2]) == (privacy.unit == "none")

    @pytest.mark.parametrize("kind", ["residual", "prefix", "fresh", "sampled"])
    def test_each_start_trains_what_the_server_will_subtract(
        self, bases, make_adapter, privacy, kind
    ):
        base = bases.llama
        adapter = make_adapter(base, 6)
        changes = {"start": kind, "privacy": privacy, "private_seed": 1}
        still = train(base, adapter, training={"learning_rate": 0.0}, **changes)
        start = assigned_start(adapter, assigned(base, adapter, start=kind)).trainable
        for side in ("a", "b"):
            assert factors_of(still.update.adapter, side) == factors_of(start, side)
        assert train(base, adapter, **changes).encoded != still.encoded

    def test_some_modules(self, bases, make_adapter, privacy):
        base = bases.llama
        adapter = make_adapter(base, 6)
        some = tuple(name for name in adapter.modules if name.endswith("q_proj"))
        done = train(
            base, adapter, private_seed=1, target_modules=some, privacy=privacy, upload="int8"
        )
        assert tuple(done.update.adapter.modules) == some
        assert done.update.manifest.target_modules == tuple(sorted(some))
        start = client_start(adapter, rank=4, scaling=2.0, seed=0, modules=some).trainable
        assert set(decode_update(done.encoded, start).modules) == set(some)

    @pytest.mark.parametrize("upload", ["bfloat16", "int8"])
    def test_the_encoding_changes_nothing_of_the_training(
        self, bases, make_adapter, privacy, upload
    ):
        """Nor the noise: the same round in another encoding is no second look at the records."""
        base = bases.llama
        adapter = make_adapter(base, 6)
        options = {"privacy": privacy, "private_seed": 5}
        plain = train(base, adapter, **options)
        other = train(base, adapter, upload=upload, broadcast_digest="sha256:x", **options)
        for side in ("a", "b"):
            assert factors_of(other.trained, side) == factors_of(plain.trained, side)
        start = client_start(adapter, rank=4, scaling=2.0, seed=0).trainable
        received = decode_update(other.encoded, start)
        for name, one in received.modules.items():
            wanted = plain.trained.modules[name].product()
            change = wanted - start.modules[name].product()
            error = np.linalg.norm(one.product() - wanted)
            limit = 0.02 * np.linalg.norm(change) + 4e-3 * np.linalg.norm(wanted)
            assert error < (limit if upload == "bfloat16" else 0.02 * np.linalg.norm(change))
            assert one.b.tobytes() == other.update.adapter.modules[name].b.tobytes()
        assert other.state.is_empty == (upload == "bfloat16")

    def test_what_int8_lost_goes_into_the_next_round(self, bases, make_adapter, privacy):
        base = bases.llama
        adapter = make_adapter(base, 6)
        options = {"privacy": privacy, "private_seed": 5, "upload": "int8"}
        first = train(base, adapter, **options)
        plain = train(base, adapter, round=2, **options)
        fed = train(base, adapter, round=2, state=first.state, **options)
        for side in ("a", "b"):
            assert factors_of(fed.trained, side) == factors_of(plain.trained, side)
        assert fed.encoded != plain.encoded
        name = next(iter(adapter.modules))
        owed = first.trained.modules[name].product() - first.update.adapter.modules[name].product()
        owed += fed.trained.modules[name].product()
        later = np.linalg.norm(owed - fed.update.adapter.modules[name].product())
        unfed = np.linalg.norm(owed - plain.update.adapter.modules[name].product())
        assert later < 0.9 * unfed

    def test_the_own_b_stays_and_is_trained_on(self, bases, make_adapter, privacy):
        base = bases.llama
        adapter = make_adapter(base, 4)
        zero = {name: replace(one, b=0.0 * one.b) for name, one in adapter.modules.items()}
        shared = replace(adapter, modules=zero)
        options = {"privacy": privacy, "private_seed": 5, "shared_factors": "a"}
        first = train(base, shared, **options)
        start = assigned_start(shared, assigned(base, shared, shared_factors="a")).trainable
        assert factors_of(start, "a") == factors_of(shared, "a")
        # What is sent has the start's B, which is zero, and the trained A.
        received = decode_update(first.encoded, start, factors="a")
        assert not any(one.b.any() for one in received.modules.values())
        assert factors_of(received, "a") == factors_of(first.trained, "a")
        assert all(one.b.any() for one in first.trained.modules.values())
        # The next round goes on with the client's own B, on whatever A is shared by then.
        still = train(
            base, shared, round=2, state=first.state, training={"learning_rate": 0.0}, **options
        )
        for name, one in still.trained.modules.items():
            np.testing.assert_allclose(one.b, first.trained.modules[name].b, rtol=1e-6)
            np.testing.assert_array_equal(one.a, shared.modules[name].a)
        assert factors_of(still.update.adapter, "b") == factors_of(start, "b")

    def test_kept_moments_take_part(self, bases, make_adapter, privacy):
        base = bases.bert
        adapter = make_adapter(base, 6)
        options = {"privacy": privacy, "private_seed": 5, "training": {"keep_optimizer": True}}
        first = train(base, adapter, **options)
        plain = train(base, adapter, privacy=privacy, private_seed=5)
        if privacy.unit == "none":
            assert first.encoded == plain.encoded
        assert plain.state.is_empty and not first.state.is_empty
        kept = first.state.optimizer
        assert set(kept.modules) == set(adapter.modules) and set(kept.dense) == set(adapter.dense)
        steps = int(first.update.manifest.metrics["steps"])
        assert kept.modules[next(iter(adapter.modules))].a.steps == steps
        again = [train(base, adapter, round=2, state=one, **options) for one in (first.state, None)]
        assert again[0].encoded != again[1].encoded
        moments = again[0].state.optimizer.modules[next(iter(adapter.modules))].b
        assert moments.steps == 2 * steps
        # What is kept does not grow.
        sizes = [len(one.state.to_bytes()) for one in (first, again[0])]
        assert abs(sizes[1] - sizes[0]) < 100


class TestKeptMoments:
    def test_a_round_in_two_halves_is_one_round(self, bases):
        """With moments kept and nobody else taking part, cutting a round changes little."""
        base = bases.llama
        start = empty_adapter(base)
        training = {
            "batch_size": 18, "schedule": "constant", "max_gradient_norm": 0.0, "epochs": 4,
            "learning_rate": 2e-3,
        }  # fmt: skip
        whole = train(base, start, training=training).trained

        def halves(keep):
            half = {**training, "epochs": 2, "keep_optimizer": keep}
            first = train(base, start, training=half)
            return train(base, first.trained, training=half, round=1, state=first.state).trained

        def distance(one):
            return (
                sum(
                    np.linalg.norm(one.modules[name].product() - whole.modules[name].product()) ** 2
                    for name in whole.modules
                )
                ** 0.5
            )

        assert distance(halves(True)) < 0.35 * distance(halves(False))

    def test_alternating_factors_keep_the_moments_of_both(self, bases, make_adapter):
        base = bases.llama
        adapter = make_adapter(base, 4)
        training = {"keep_optimizer": True}
        first = train(base, adapter, training=training, trained_factors="b")
        name = next(iter(adapter.modules))
        assert first.state.optimizer.modules[name].a is None
        second = train(
            base, adapter, training=training, trained_factors="a", state=first.state, round=2
        )
        kept = second.state.optimizer.modules[name]
        assert kept.a is not None and kept.b is not None
        np.testing.assert_allclose(
            kept.b.first, first.state.optimizer.modules[name].b.first, rtol=0.5, atol=1e-2
        )

    def test_another_state_gets_other_noise(self, bases, make_adapter):
        base, adapter = bases.llama, make_adapter(bases.llama, 4)
        loud = PrivacyParameters(unit="example", noise_multiplier=50.0)
        options = {"privacy": loud, "private_seed": 3, "training": {"keep_optimizer": True}}
        first = train(base, adapter, **options)
        moved = []
        for kept in (None, first.state):
            done = train(base, adapter, round=2, state=kept, **options).state.optimizer
            moved.append(np.concatenate([one.a.first.ravel() for one in done.modules.values()]))
        assert abs(np.corrcoef(moved)[0, 1]) < 0.5


class TestCheckAssignment:
    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"base_digest": "sha256:other"}, "base_digest"),
            ({"task": "sequence-classification"}, "task"),
            ({"labels": ("a", "b")}, "labels"),
            ({"target_modules": ("q_proj",)}, "target_modules: q_proj; name modules of"),
            ({"target_modules": ()}, "target_modules: none"),
            ({"start": "warm"}, "assignment start: warm; choose one of residual"),
            ({"trained_factors": "c"}, "assignment trained_factors: c; choose one of both"),
            ({"shared_factors": "b"}, "assignment shared_factors: b; choose one of both, a"),
            ({"upload": "int4"}, "assignment upload: int4; choose one of float32"),
            ({"trained_factors": "none"}, "trained_factors: none; a causal-lm has no head"),
            ({"trained_factors": "b", "shared_factors": "a"}, "trained_factors: b; train A where"),
            ({"start": "fresh", "shared_factors": "a"}, "assignment start: fresh; a client's own"),
            ({"start": "fresh", "training": {"keep_optimizer": True}}, r"train\.keep_optimizer: T"),
            ({"start": "sampled", "shared_factors": "a"}, "start: sampled; a client's own B"),
            (
                {"start": "sampled", "training": {"keep_optimizer": True}},
                r"train\.keep_optimizer: True; a sampled start trains others",
            ),
            ({"client": "bay"}, "client"),
            ({"rank": 33}, "rank for"),
            ({"training": {"epochs": 0}}, r"train\.epochs"),
            ({"training": {"batch_size": 0}}, r"train\.batch_size"),
            ({"training": {"max_steps": -1}}, r"train\.max_steps"),
            ({"training": {"max_length": 65}}, r"train\.max_length"),
            ({"training": {"schedule": "steep"}}, r"train\.schedule"),
            ({"shard": shard_of(())}, "records of client ward: 0"),
        ],
    )
    def test_what_does_not_fit_is_named(self, bases, make_adapter, changes, word):
        before = state(bases.llama)
        with pytest.raises(InputError, match=word) as caught:
            train(bases.llama, make_adapter(bases.llama, 2), **changes)
        assert "\n" not in str(caught.value)
        assert state(bases.llama) == before
