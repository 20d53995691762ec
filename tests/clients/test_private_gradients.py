from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from intarsia_client.attachment import attached
from intarsia_client.batches import collate, sequence_losses, tokenise
from intarsia_client.errors import InputError
from intarsia_client.private_gradients import (
    PrivateGradients,
    poisson_sample,
    private_generator,
)
from intarsia_client.records import Record
from intarsia_client.start import client_start
from scipy import stats

TEXTS = ("the fox", "one two three four five six seven", "a", "a red house and a blue sky above")
RECORDS = [Record(text=text, label="colour") for text in TEXTS]


class Case:
    """An attached model in training mode and its tokenised records."""

    def __init__(self, base, model):
        self.base, self.model = base, model
        self.records = tokenise(base, RECORDS, max_length=64, one_each=True)
        model.train()
        # Dropout would differ between a batch and its parts.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.parameters = [one for one in model.parameters() if one.requires_grad]

    def losses(self, indices):
        batch = collate(self.base, self.records, np.array(indices))
        sums, counts, _ = sequence_losses(self.model, self.base, batch)
        return sums / counts.clamp(min=1)

    def gradients(self, **changes):
        options = {
            "max_grad_norm": 1.0,
            "noise_multiplier": 0.0,
            "expected_batch_size": 1.0,
            "generator": np.random.default_rng(0),
        }
        return PrivateGradients(self.model, **{**options, **changes})

    def released(self, gradients):
        gradients.release()
        return torch.cat([one.grad.flatten() for one in self.parameters])

    def alone(self, index):
        """One example's gradient by autograd, without Opacus."""
        parts = torch.autograd.grad(self.losses([index]).sum(), self.parameters)
        return torch.cat([one.flatten() for one in parts])


@pytest.fixture(params=["llama", "bert", "gpt2", "scorer"])
def case(request, bases, make_adapter):
    base = bases[request.param]
    start = client_start(make_adapter(base, 6), rank=4, scaling=2.0, seed=0)
    with attached(
        base, trainable=start.trainable, underneath=start.underneath, fold_bytes=10_000
    ) as model:
        dropout = {one: one.p for one in model.modules() if isinstance(one, torch.nn.Dropout)}
        yield Case(base, model)
        for module, share in dropout.items():
            module.p = share


class TestClipping:
    @pytest.mark.parametrize("share", [0.3, 0.9, 5.0])
    def test_is_that_of_one_example_at_a_time(self, case, share):
        own = [case.alone(index) for index in range(4)]
        norm = share * float(sorted(one.norm() for one in own)[1])
        clipped = [one * min(1.0, norm / float(one.norm())) for one in own]
        with case.gradients(max_grad_norm=norm) as gradients:
            gradients.accumulate(case.losses([0, 1, 2, 3]))
            found = case.released(gradients)
        expected = sum(clipped)
        assert (found - expected).norm() <= 1e-5 * expected.norm()

    def test_a_batch_may_be_cut(self, case):
        with case.gradients(max_grad_norm=0.5) as gradients:
            gradients.accumulate(case.losses([0, 1, 2, 3]))
            whole = case.released(gradients).clone()
            for part in ([2], [0, 3], [1]):
                gradients.accumulate(case.losses(part))
            parts = case.released(gradients)
        assert (whole - parts).norm() <= 1e-5 * whole.norm()

    def test_each_release_begins_anew(self, case):
        with case.gradients() as gradients:
            gradients.accumulate(case.losses([0, 1]))
            first = case.released(gradients).clone()
            gradients.accumulate(case.losses([0, 1]))
            assert torch.equal(case.released(gradients), first)

    def test_one_record_changes_the_sum_by_the_clipping_norm_at_most(self, case):
        with case.gradients(max_grad_norm=0.25) as gradients:
            gradients.accumulate(case.losses([0, 1, 3]))
            without = case.released(gradients).clone()
            for factor in (1e-3, 1.0, 1e6, 1e30, float("inf"), float("nan")):
                hostile = torch.tensor([1.0, 1.0, factor, 1.0])
                gradients.accumulate(case.losses([0, 1, 2, 3]) * hostile)
                change = case.released(gradients) - without
                assert torch.isfinite(change).all()
                assert change.norm() <= 0.25 * (1 + 1e-5)

    def test_denominator_is_fixed(self, case):
        with case.gradients(expected_batch_size=8.0) as gradients:
            gradients.accumulate(case.losses([0]))
            few = case.released(gradients).clone()
        with case.gradients(expected_batch_size=1.0) as gradients:
            gradients.accumulate(case.losses([0]))
            torch.testing.assert_close(case.released(gradients), few * 8)


class TestNoise:
    def test_has_the_promised_deviation_and_shape(self, case):
        options = {"max_grad_norm": 0.5, "noise_multiplier": 1.6, "expected_batch_size": 4.0}
        with case.gradients(**options) as gradients:
            draws = torch.cat([case.released(gradients) for _ in range(8)]).numpy()
        scaled = draws / (0.5 * 1.6 / 4.0)
        count = len(scaled)
        assert count > 20_000
        low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], count)
        assert low < float(np.sum(scaled.astype(np.float64) ** 2)) < high
        assert stats.kstest(scaled, "norm").pvalue > 1e-6

    def test_is_added_to_the_sum_and_not_repeated(self, case):
        with case.gradients(noise_multiplier=0.0) as gradients:
            gradients.accumulate(case.losses([0, 1]))
            clean = case.released(gradients).clone()
        with case.gradients(noise_multiplier=1.0) as gradients:
            gradients.accumulate(case.losses([0, 1]))
            first = case.released(gradients) - clean
            gradients.accumulate(case.losses([0, 1]))
            second = case.released(gradients) - clean
        for noise in (first, second):
            assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
        assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.1

    def test_follows_from_the_generator(self, case):
        def noise(seed):
            options = {"noise_multiplier": 1.0, "generator": np.random.default_rng(seed)}
            with case.gradients(**options) as gradients:
                return case.released(gradients).clone()

        assert torch.equal(noise(1), noise(1))
        assert not torch.equal(noise(1), noise(2))


def test_leaves_no_hooks_behind(case):
    def hooks():
        return [len(one._forward_hooks) + len(one._backward_hooks) for one in case.model.modules()]

    before = hooks()
    with case.gradients() as gradients:
        assert hooks() != before
        gradients.accumulate(case.losses([0]))
    assert hooks() == before
    with pytest.raises(ZeroDivisionError), case.gradients():
        raise ZeroDivisionError
    assert hooks() == before


def test_an_unreached_parameter_gets_noise_alone():
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = torch.nn.Linear(3, 2)
            self.used = torch.nn.Linear(3, 2)

        def forward(self, inputs):
            return self.used(self.used(inputs)[:, [0, 1, 0]])

    model = Half().train()
    options = {"expected_batch_size": 1.0, "generator": np.random.default_rng(0)}
    with PrivateGradients(model, max_grad_norm=9e9, noise_multiplier=0.0, **options) as gradients:
        # The used module runs twice; its gradient is the sum over both.
        losses = model(torch.randn(5, 3)).square().sum(1)
        expected = torch.autograd.grad(losses.sum(), model.used.weight, retain_graph=True)[0]
        gradients._gradients.clear()
        gradients.accumulate(losses)
        gradients.release()
    torch.testing.assert_close(model.used.weight.grad, expected)
    assert not model.spare.weight.grad.any()


def test_a_kind_of_module_that_opacus_does_not_know(bases, make_adapter):
    class Strange(torch.nn.Linear):
        pass

    # Layers are kept for the next adapter; this change must not be.
    base = replace(bases.llama, layers={})
    with attached(base, trainable=make_adapter(base, 2), underneath=None) as model:
        layer = model.model.layers[0].mlp.up_proj
        strange = Strange(32, 2, bias=False)
        layer.lora_A["default"] = strange
        with (
            pytest.raises(InputError, match=r"privacy\.unit.*Strange"),
            PrivateGradients(
                model,
                max_grad_norm=1.0,
                noise_multiplier=1.0,
                expected_batch_size=1.0,
                generator=np.random.default_rng(0),
            ),
        ):
            pytest.fail("entered")  # fmt: skip


class TestPrivateGenerator:
    def test_same_question_same_answer(self):
        first = private_generator(7, "round 1", "start").bytes(32)
        assert private_generator(7, "round 1", "start").bytes(32) == first
        assert private_generator(8, "round 1", "start").bytes(32) != first
        assert private_generator(7, "round 2", "start").bytes(32) != first
        assert private_generator(7, "round 1", "other start").bytes(32) != first

    def test_without_a_secret_nothing_repeats(self):
        assert private_generator(None, "x").bytes(32) != private_generator(None, "x").bytes(32)

    def test_a_secret_is_not_cut(self):
        small, large = 5, 5 + (1 << 64)
        assert private_generator(small, "x").bytes(8) != private_generator(large, "x").bytes(8)


class TestPoissonSample:
    def test_takes_each_record_independently(self):
        generator = np.random.default_rng(0)
        taken = np.zeros((4000, 20), dtype=bool)
        for row in taken:
            row[poisson_sample(20, 0.3, generator)] = True
        counts = taken.sum(1)
        observed = np.bincount(counts, minlength=21)
        expected = stats.binom.pmf(np.arange(21), 20, 0.3) * 4000
        keep = expected > 5
        assert (
            stats.chisquare(
                np.append(observed[keep], observed[~keep].sum()),
                np.append(expected[keep], expected[~keep].sum()),
            ).pvalue
            > 1e-6
        )
        assert abs(taken.mean(0) - 0.3).max() < 0.05
        correlations = np.corrcoef(taken.T) - np.eye(20)
        assert np.abs(correlations).max() < 0.1

    def test_all_and_none(self):
        generator = np.random.default_rng(0)
        assert poisson_sample(5, 1.0, generator).tolist() == [0, 1, 2, 3, 4]
        assert poisson_sample(5, 0.0, generator).tolist() == []
