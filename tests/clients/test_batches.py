from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.batches import (
    IGNORED,
    bucketed_batches,
    collate,
    packed_batches,
    sequence_losses,
    tokenise,
)
from intarsia_client.errors import InputError
from intarsia_client.records import Record

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "one", "two", "three")


def records(*texts, label=None):
    return [Record(text=text, label=label) for text in texts]


class TestTokenise:
    def test_a_record_is_framed(self, bases):
        base = bases.llama
        found = tokenise(base, records("the fox"), max_length=64)
        inside = base.tokenizer.encode("the fox", add_special_tokens=False)
        assert found.sequence(0).tolist() == [4, *inside, 5]
        assert found.tokens.dtype == np.int32

    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60), max_size=5),
        st.integers(2, 40),
    )
    def test_windows_predict_every_token_once(self, bases, texts, max_length):
        base = bases.llama
        texts = [" ".join(words) for words in texts]
        found = tokenise(base, records(*texts), max_length=max_length)
        sequences = [found.sequence(index).tolist() for index in range(len(found))]
        assert all(2 <= len(sequence) <= max_length for sequence in sequences)
        predicted = [token for sequence in sequences for token in sequence[1:]]
        expected = []
        for text in texts:
            expected += [*base.tokenizer.encode(text, add_special_tokens=False), 5]
        assert predicted == expected
        # Each window goes on where the one before ended.
        starts = [sequence[0] for sequence in sequences]
        ends = [sequence[-1] for sequence in sequences]
        for index in range(1, len(sequences)):
            assert starts[index] == (4 if ends[index - 1] == 5 else ends[index - 1])

    def test_private_training_has_one_sequence_a_record(self, bases):
        long = " ".join(WORDS * 5)
        found = tokenise(bases.llama, records(long, "a", long), max_length=8, one_each=True)
        assert found.lengths.tolist() == [8, 3, 8]
        assert found.sequence(0).tolist() == found.sequence(2).tolist()

    def test_classification_is_cut_and_framed_by_the_tokenizer(self, bases):
        base = bases.bert
        found = tokenise(base, records(" ".join(WORDS * 5), "fox", label="colour"), max_length=9)
        assert found.lengths[0] == 9
        assert found.sequence(0)[[0, -1]].tolist() == [2, 3]
        assert found.sequence(1).tolist() == base.tokenizer.encode("fox")
        assert found.classes.tolist() == [1, 1]

    @pytest.mark.parametrize("label", ["planet", None])
    def test_a_label_that_the_task_lacks(self, bases, label):
        with pytest.raises(InputError, match="animal, colour, number") as caught:
            tokenise(bases.bert, records("fox", label=label), max_length=9)
        assert caught.value.value == label

    @pytest.mark.parametrize("max_length", [-1, 0, 1, 65])
    def test_a_length_that_the_model_has_not(self, bases, max_length):
        with pytest.raises(InputError, match=r"train\.max_length.*between 2 and 64"):
            tokenise(bases.llama, records("fox"), max_length=max_length)

    def test_nothing(self, bases):
        assert len(tokenise(bases.llama, [], max_length=8)) == 0


class TestBucketedBatches:
    @given(
        st.lists(st.integers(1, 100), max_size=300),
        st.integers(1, 17),
        st.integers(0, 2**32),
    )
    def test_every_sequence_comes_once(self, lengths, batch_size, seed):
        lengths = np.array(lengths, dtype=np.int64)
        batches = bucketed_batches(lengths, batch_size, np.random.default_rng(seed))
        assert sorted(np.concatenate([*batches, np.zeros(0, int)]).tolist()) == list(
            range(len(lengths))
        )
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        assert sum(len(batch) < batch_size for batch in batches) <= 1

    def test_follows_from_the_generator_alone(self):
        lengths = np.random.default_rng(0).integers(1, 100, 500)

        def order(seed):
            made = bucketed_batches(lengths, 8, np.random.default_rng(seed))
            return [batch.tolist() for batch in made]

        assert order(3) == order(3)
        assert order(3) != order(4)

    def test_spends_little_on_padding(self):
        generator = np.random.default_rng(0)
        lengths = generator.integers(1, 129, 3200)
        batches = bucketed_batches(lengths, 16, generator)
        padded = sum(lengths[batch].max() * len(batch) for batch in batches)
        random = generator.permutation(3200).reshape(-1, 16)
        assert padded < 1.05 * lengths.sum()
        assert sum(lengths[batch].max() * 16 for batch in random) > 1.5 * lengths.sum()

    def test_long_ones_do_not_come_together_in_time(self):
        lengths = np.arange(1, 801)
        batches = bucketed_batches(lengths, 8, np.random.default_rng(0))
        means = np.array([lengths[batch].mean() for batch in batches])
        assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@given(
    st.lists(st.integers(0, 50), max_size=60),
    st.integers(1, 9),
    st.integers(1, 200),
)
def test_packed_batches_keep_their_bounds(lengths, sequences, tokens):
    lengths = np.array(lengths, dtype=np.int64)
    indices = np.arange(len(lengths))[::2]
    batches = packed_batches(lengths, indices, sequences=sequences, tokens=tokens)
    assert sorted(np.concatenate([*batches, np.zeros(0, int)]).tolist()) == indices.tolist()
    for batch in batches:
        assert 1 <= len(batch) <= sequences
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens


class TestCollate:
    def test_pads_on_the_right_and_shifts_the_labels(self, bases):
        found = tokenise(bases.llama, records("fox", "the lazy dog", "a"), max_length=64)
        batch = collate(bases.llama, found, np.array([1, 0]))
        long, short = found.sequence(1).tolist(), found.sequence(0).tolist()
        fill = len(long) - len(short)
        assert batch.tokens.tolist() == [long, short + [0] * fill]
        assert batch.attention_mask.tolist() == [[1] * len(long), [1] * len(short) + [0] * fill]
        assert batch.labels.tolist() == [
            [*long[1:], IGNORED],
            [*short[1:], IGNORED] + [IGNORED] * fill,
        ]

    def test_classes(self, bases):
        found = tokenise(
            bases.bert,
            [Record(text="fox", label="animal"), Record(text="two", label="number")],
            max_length=64,
        )
        assert collate(bases.bert, found, np.array([1, 0, 1])).labels.tolist() == [2, 0, 2]


class TestSequenceLosses:
    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_are_those_that_transformers_computes(self, bases, name):
        base = bases[name]
        found = tokenise(
            base, records("the fox", "one two three four five", "a red door"), max_length=64
        )
        with torch.no_grad():
            sums, counts, _ = sequence_losses(
                base.model, base, collate(base, found, np.array([0, 1, 2]))
            )
            for index in range(3):
                tokens = torch.from_numpy(found.sequence(index).astype(np.int64))[None]
                alone = base.model(input_ids=tokens, labels=tokens).loss
                torch.testing.assert_close(sums[index] / counts[index], alone)
                assert counts[index] == tokens.shape[1] - 1

    @pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "scorer"])
    def test_do_not_depend_on_the_rest_of_the_batch(self, bases, name):
        base = bases[name]
        texts = ("the fox", "one two three four five six seven", "a")
        found = tokenise(base, records(*texts, label="animal"), max_length=64)
        with torch.no_grad():
            together, _, _ = sequence_losses(
                base.model, base, collate(base, found, np.array([0, 1, 2]))
            )
            for index in range(3):
                alone, _, _ = sequence_losses(
                    base.model, base, collate(base, found, np.array([index]))
                )
                torch.testing.assert_close(together[index], alone[0], rtol=1e-5, atol=1e-5)
